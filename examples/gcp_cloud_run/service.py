"""The service: ``uvicorn service:application``. Pub/Sub pushes each message to it."""

from __future__ import annotations

import os

from tasks import app

from cloudq_gcp.push import push_app

application = push_app(
    app,
    audience=os.environ.get("PUSH_AUDIENCE", ""),  # of the push subscription's token; only the emulator sends none
    service_account=os.environ.get("PUSH_SERVICE_ACCOUNT", ""),
)
