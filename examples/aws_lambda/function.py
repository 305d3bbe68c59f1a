"""The Lambda function: set its handler to ``function.handler``."""

from __future__ import annotations

from tasks import app

from cloudq_aws.handler import lambda_handler

handler = lambda_handler(app)
