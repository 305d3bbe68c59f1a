"""Feeds a function from an SQS queue by the rules of AWS's event source mapping ("Handling errors for an SQS event source in Lambda")."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.runtime_api import Environment, FunctionError
from tests.servers import REGION

_ATTRIBUTES = {"ApproximateReceiveCount", "SentTimestamp", "SenderId", "ApproximateFirstReceiveTimestamp"}
_OPTIONAL = {"MessageGroupId", "MessageDeduplicationId", "SequenceNumber", "AWSTraceHeader"}


@dataclass
class EventSource:
    """One poller: receives a batch, invokes, deletes what the function has done; what failed comes back when its visibility ends.

    How often it may come back, and where it goes then, says the queue's own redrive policy, which its server keeps.
    """

    sqs: Any
    """A boto3 client."""
    queue: str
    """The queue's name."""
    environment: Environment
    batch_size: int = 10
    partial: bool = True
    """ReportBatchItemFailures."""
    invocations: int = 0
    failures: list[FunctionError] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)
    """Message ids that came back as failures, in the order of the responses."""

    def __post_init__(self) -> None:
        self.url = self.sqs.get_queue_url(QueueName=self.queue)["QueueUrl"]
        self.arn = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]

    def poll(self, wait: int = 1) -> int:
        """One receive and, if it brought something, one invocation; returns how many messages that were."""
        self.environment.warm()  # what is received is not to wait for that: its visibility runs
        reply = self.sqs.receive_message(
            QueueUrl=self.url,
            MaxNumberOfMessages=self.batch_size,
            WaitTimeSeconds=wait,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        messages = reply.get("Messages", [])
        if messages:
            self.invocations += 1
            done = self._invoke(messages)
            if done:
                entries = [{"Id": str(index), "ReceiptHandle": message["ReceiptHandle"]} for index, message in enumerate(done)]
                self.sqs.delete_message_batch(QueueUrl=self.url, Entries=entries)
        return len(messages)

    def run(self, until: Callable[[], bool]) -> None:
        """Poll until ``until()``."""
        while not until():
            self.poll()

    def _invoke(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The messages that the function has done."""
        try:
            answer = self.environment.invoke(event(self.arn, messages))
        except FunctionError as error:
            self.failures.append(error)
            return []
        failed = failed_ids(answer, {message["MessageId"] for message in messages}) if self.partial else set()
        if failed is None:
            self.failures.append(FunctionError("InvalidResponse", answer))
            return []
        self.reported += [message["MessageId"] for message in messages if message["MessageId"] in failed]
        return [message for message in messages if message["MessageId"] not in failed]


def event(arn: str, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What Lambda makes of received messages."""
    return {"Records": [_record(arn, message) for message in messages]}


def _record(arn: str, message: Mapping[str, Any]) -> dict[str, Any]:
    system = message.get("Attributes", {})
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": {name: value for name, value in system.items() if name in _ATTRIBUTES | _OPTIONAL},
        "messageAttributes": {
            name: {"stringValue": value["StringValue"], "stringListValues": [], "binaryListValues": [], "dataType": value["DataType"]}
            for name, value in message.get("MessageAttributes", {}).items()
        },
        "md5OfBody": hashlib.md5(message["Body"].encode(), usedforsecurity=False).hexdigest(),
        "eventSource": "aws:sqs",
        "eventSourceARN": arn,
        "awsRegion": REGION,
    }


def failed_ids(answer: Any, ids: set[str]) -> set[str] | None:
    """The message ids that a response reports; ``None`` where AWS takes the whole batch as failed.

    Complete success: an empty or null list, an empty or null response. Complete failure: no JSON of that form, or an item that is empty,
    null, misspelt or unknown.
    """
    if answer is None or answer == {}:
        return set()
    if not isinstance(answer, dict) or "batchItemFailures" not in answer:
        return None
    failures = answer["batchItemFailures"]
    if failures is None:
        return set()
    if not isinstance(failures, list):
        return None
    found = {item.get("itemIdentifier") if isinstance(item, dict) else None for item in failures}
    return found if found <= ids else None


def run_several(sources: Sequence[EventSource], until: Callable[[], bool]) -> None:
    """Poll with all sources at once, each with its own environment; raises what one of them raised."""
    errors: list[BaseException] = []

    def run(source: EventSource) -> None:
        try:
            source.run(lambda: bool(errors) or until())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(source,), daemon=True) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
