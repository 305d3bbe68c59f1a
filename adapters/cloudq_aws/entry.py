"""The ready-made Lambda function: ``cloudq_aws.entry.handler`` runs the app that ``CLOUDQ_APP`` (``module:attribute``) names.

``CLOUDQ_CONCURRENCY`` is how many sync tasks of a batch run at once (1 unless set).
"""

from __future__ import annotations

import os

from cloudq.errors import ConfigError
from cloudq.loading import load_app
from cloudq_aws.handler import Handler, lambda_handler

__all__ = ["handler"]


def _handler() -> Handler:
    reference = os.environ.get("CLOUDQ_APP")
    if not reference:
        raise ConfigError("set CLOUDQ_APP=module:attribute in the function's environment, as in shop.tasks:app")
    concurrency = os.environ.get("CLOUDQ_CONCURRENCY", "1")
    if not concurrency.isdigit():
        raise ConfigError(f"CLOUDQ_CONCURRENCY must be a whole number, not {concurrency!r}")
    return lambda_handler(load_app(reference), concurrency=int(concurrency))


handler = _handler()
"""What the function's handler setting names."""
