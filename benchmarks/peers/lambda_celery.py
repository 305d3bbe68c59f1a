"""The import of a Celery app with five tasks and its SQS transport; Celery has no Lambda handler."""

from __future__ import annotations

import cold

_, found = cold.cold_import("lambda_celery_app")
cold.report(version=__import__("celery").__version__, **found)
