"""cloudq's ready-made Lambda function with an app of five tasks."""

from __future__ import annotations

import json
import os

import cold

os.environ |= {"CLOUDQ_APP": "lambda_app:app", "CLOUDQ_BROKER": "sqs://eu-west-1/"}

entry, found = cold.cold_import("cloudq_aws.entry")


def body(task: str) -> str:
    return json.dumps({"v": 1, "id": "5f" * 16, "task": f"lambda_app.{task}", "args": [2, 3], "sent": 1545082649.183})


for kind, task in (("sync_us", "add"), ("async_us", "aadd")):
    event = cold.batch(lambda _: body(task))  # noqa: B023
    assert entry.handler(event, None) == {"batchItemFailures": []}
    found[kind] = cold.microseconds(lambda: entry.handler(event, None))  # noqa: B023
cold.report(version=__import__("cloudq").__version__, **found)
