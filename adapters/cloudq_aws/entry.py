"""The ready-made Lambda function: ``cloudq_aws.entry.handler`` runs the app that ``CLOUDQ_APP`` (``module:attribute``) names.

``CLOUDQ_CONCURRENCY`` is how many sync tasks of a batch run at once (1 unless set). Secrets that ``CLOUDQ_SECRETS`` names are read first
(see ``cloudq_aws.secrets``).
"""

from __future__ import annotations

import os

from cloudq.loading import load_configured
from cloudq_aws.handler import Handler, lambda_handler

__all__ = ["handler"]


def _handler() -> Handler:
    if "CLOUDQ_SECRETS" in os.environ:
        from cloudq_aws import secrets

        secrets.load()  # the app may read them as it is imported
    app, concurrency = load_configured()
    return lambda_handler(app, concurrency=1 if concurrency is None else concurrency)


handler = _handler()
"""What the function's handler setting names."""
