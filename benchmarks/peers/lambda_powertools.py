"""Powertools' batch processors with the same work."""

from __future__ import annotations

import json

import cold

batch, found = cold.cold_import("aws_lambda_powertools.utilities.batch")
from aws_lambda_powertools import __version__  # noqa: E402


def add(record):
    x, y = json.loads(record.body)["args"]
    return x + y


async def aadd(record):
    return add(record)


event = cold.batch(lambda _: json.dumps({"args": [2, 3]}))
sync, asynchronous = (kind(event_type=batch.EventType.SQS) for kind in (batch.BatchProcessor, batch.AsyncBatchProcessor))


def handle():
    return batch.process_partial_response(event=event, record_handler=add, processor=sync, context=None)


def ahandle():
    return batch.async_process_partial_response(event=event, record_handler=aadd, processor=asynchronous, context=None)


assert handle() == ahandle() == {"batchItemFailures": []}
found["sync_us"] = cold.microseconds(handle)
found["async_us"] = cold.microseconds(ahandle)
cold.report(version=__version__, **found)
