"""Runs the function on this machine: ``python run_locally.py``. It needs no account and no network.

SQS is cloudq's own server on 127.0.0.1; the loop at the end does what Lambda's event source mapping does.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import boto3

from cloudq_aws.server import serve_in_thread

FUNCTION_TIMEOUT = 30.0
"""Seconds."""


class Context:
    """What the function asks its context."""

    def __init__(self) -> None:
        self._end = time.monotonic() + FUNCTION_TIMEOUT

    def get_remaining_time_in_millis(self) -> int:
        return int((self._end - time.monotonic()) * 1000)


def main() -> None:
    with serve_in_thread() as server:
        os.environ.update(
            AWS_ENDPOINT_URL=server.endpoint,
            AWS_ACCESS_KEY_ID="local",
            AWS_SECRET_ACCESS_KEY="local",
            AWS_DEFAULT_REGION="eu-west-1",
            CLOUDQ_BROKER="sqs://eu-west-1/?client=boto3",
        )
        sqs = boto3.client("sqs")
        for queue in ("orders", "orders-dlq"):
            sqs.create_queue(QueueName=queue)

        from function import handler
        from tasks import app, charge, refund

        with app.batch():
            for number in range(3):
                charge.delay(f"order-{number}", 1250)
            refund.delay("order-0")
        feed(sqs, "orders", handler)
        for message in sqs.receive_message(QueueUrl=url(sqs, "orders-dlq"), MaxNumberOfMessages=10).get("Messages", []):
            letter = json.loads(message["Body"])
            print(f"dead letter: {letter['task']}{tuple(letter['args'])}: {letter['dead']['error']['detail']}")
        app.close()
        sqs.close()


def feed(sqs: Any, queue: str, handler: Any) -> None:
    """Invoke the handler with what is in the queue until nothing is left; delete what it does not report."""
    arn = f"arn:aws:sqs:eu-west-1:000000000000:{queue}"
    counts = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"]
    while any(int(n) for n in sqs.get_queue_attributes(QueueUrl=url(sqs, queue), AttributeNames=counts)["Attributes"].values()):
        reply = sqs.receive_message(
            QueueUrl=url(sqs, queue), MaxNumberOfMessages=10, WaitTimeSeconds=1, MessageSystemAttributeNames=["All"]
        )
        if messages := reply.get("Messages"):
            records = [
                {
                    "messageId": message["MessageId"],
                    "receiptHandle": message["ReceiptHandle"],
                    "body": message["Body"],
                    "attributes": message["Attributes"],
                    "messageAttributes": {},
                    "eventSource": "aws:sqs",
                    "eventSourceARN": arn,
                }
                for message in messages
            ]
            answer = handler({"Records": records}, Context())
            failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
            print(f"invoked with {len(records)} records, {len(failed)} reported")
            for record in records:
                if record["messageId"] not in failed:
                    sqs.delete_message(QueueUrl=url(sqs, queue), ReceiptHandle=record["receiptHandle"])


def url(sqs: Any, queue: str) -> str:
    return str(sqs.get_queue_url(QueueName=queue)["QueueUrl"])


if __name__ == "__main__":
    main()
