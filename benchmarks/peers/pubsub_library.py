"""Google's client library. Cases: default (batches of 100, streaming pull), tuned (of 1,000), unary (of 1,000, a loop of pulls)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.cloud.pubsub_v1.types import BatchSettings, FlowControl
from pubsub_trial import SUBSCRIPTION, TOPIC, PubSubTrial

trial = PubSubTrial()
publisher: Any = PublisherClient() if trial.case == "default" else PublisherClient(BatchSettings(max_messages=1000))
subscriber: Any = SubscriberClient()


def body(number: int) -> bytes:
    """As long as cloudq's message for the same call."""
    call = {"v": 1, "id": "0123456789abcdef0123456789abcdef", "task": "tasks.add", "args": [number, 3], "sent": 1790000000.123}
    return json.dumps(call, separators=(",", ":")).encode()


def call(numbers: Iterator[int]) -> None:
    for number in numbers:
        publisher.publish(TOPIC, body(number)).result()
        trial.accepted.append(number)


def run(message: Any) -> None:
    trial.hit(json.loads(message.data)["args"][0])
    message.ack()


def pull() -> None:
    while True:
        ids: list[str] = []
        for received in subscriber.pull(subscription=SUBSCRIPTION, max_messages=1000).received_messages:
            trial.hit(json.loads(received.message.data)["args"][0])
            ids.append(received.ack_id)
        subscriber.acknowledge(subscription=SUBSCRIPTION, ack_ids=ids)


trial.send_by_threads(call)
bulk = trial.bulk()
with trial.sending("many"):
    for future in [publisher.publish(TOPIC, body(number)) for number in bulk]:
        future.result()
    trial.accepted += bulk
with trial.draining():
    if trial.case == "unary":
        threading.Thread(target=pull, daemon=True).start()
    else:
        subscriber.subscribe(SUBSCRIPTION, run, flow_control=FlowControl(max_messages=1000))
    trial.wait()
trial.report("google-cloud-pubsub")
