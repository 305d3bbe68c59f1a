"""What the Lambda measurements share: one cold import, and a warm handler called often."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

RECORDS = 10
REPEATS = 300


def cold_import(module: str) -> tuple[Any, dict[str, float]]:
    """Import boto3 uncounted, then ``module``; milliseconds and MiB that it took."""
    import_module("boto3")
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    loaded = import_module(module)
    took = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return loaded, {"import_ms": took * 1e3, "memory_mib": (after - before) / 1024}


def batch(body: Callable[[int], str]) -> dict[str, Any]:
    """An SQS event as Lambda passes it."""
    return {
        "Records": [
            {
                "messageId": f"059f36b4-87a3-44ab-83d2-66197{i:07d}",
                "receiptHandle": f"AQEB{i:0180d}",
                "body": body(i),
                "attributes": {
                    "ApproximateReceiveCount": "1",
                    "SentTimestamp": "1545082649183",
                    "SenderId": "AIDAIENQZJOLO23YVJ4VO",
                    "ApproximateFirstReceiveTimestamp": "1545082649185",
                },
                "messageAttributes": {},
                "md5OfBody": "098f6bcd4621d373cade4e832627b4f6",
                "eventSource": "aws:sqs",
                "eventSourceARN": "arn:aws:sqs:eu-west-1:123456789012:default",
                "awsRegion": "eu-west-1",
            }
            for i in range(RECORDS)
        ]
    }


def microseconds(call: Callable[[], Any]) -> float:
    """CPU time of one record, the best of five rounds."""
    for _ in range(20):
        call()
    rounds: list[float] = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(REPEATS):
            call()
        rounds.append((time.process_time() - began) / REPEATS / RECORDS * 1e6)
    return min(rounds)


def report(**found: Any) -> None:
    print(json.dumps(found))
