"""The floor: full batches and unary pulls. Cases: bytes-16-1000, json-16-1000, api-16-1000: how many requests at once, of how many.

``bytes`` moves bytes only: bodies are made by one format, and read as far as the number. ``json`` writes and parses them. Both are over
grpc.aio and protobuf alone; ``api`` moves the same bytes through the generated asynchronous client of Google's library, by its own types.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc.aio
from google.pubsub_v1 import PublisherAsyncClient, SubscriberAsyncClient, types
from pubsub_trial import SUBSCRIPTION, TOPIC, PubSubTrial
from trial import SINGLE

trial = PubSubTrial()
kind, at_once, of = trial.case.split("-")
loops, batch = int(at_once), int(of)
CALL = {"v": 1, "id": "0123456789abcdef0123456789abcdef", "task": "tasks.add", "args": [2, 3], "sent": 1790000000.123}
BODY = json.dumps(CALL, separators=(",", ":")).encode().replace(b"[2,3]", b"[%d,3]")
AT = BODY.index(b"[") + 1
PUBLISH, PULL, ACK = (getattr(types, name).pb() for name in ("PublishRequest", "PullRequest", "AcknowledgeRequest"))
PUBLISHED, PULLED, MESSAGE = (getattr(types, name).pb() for name in ("PublishResponse", "PullResponse", "PubsubMessage"))


def body(number: int) -> bytes:
    """As long as cloudq's message for the same call."""
    if kind != "json":
        return BODY % number
    return json.dumps({**CALL, "args": [number, 3]}, separators=(",", ":")).encode()


def number_of(data: bytes) -> int:
    if kind != "json":
        return int(data[AT : data.index(b",", AT)])
    number: int = json.loads(data)["args"][0]
    return number


async def api() -> None:
    """The loops over the generated client."""
    channel = grpc.aio.insecure_channel(os.environ["PUBSUB_EMULATOR_HOST"], options=[("grpc.max_receive_message_length", -1)])
    publisher = PublisherAsyncClient(transport=PublisherAsyncClient.get_transport_class("grpc_asyncio")(channel=channel))
    subscriber = SubscriberAsyncClient(transport=SubscriberAsyncClient.get_transport_class("grpc_asyncio")(channel=channel))

    async def send(numbers: list[int]) -> int:
        reply = await publisher.publish(topic=TOPIC, messages=[types.PubsubMessage(data=body(number)) for number in numbers])
        return len(reply.message_ids)

    async def drain() -> None:
        while True:
            reply = await subscriber.pull(subscription=SUBSCRIPTION, max_messages=batch)
            ids: list[str] = []
            for received in reply.received_messages:
                trial.hit(number_of(received.message.data))
                ids.append(received.ack_id)
            await subscriber.acknowledge(subscription=SUBSCRIPTION, ack_ids=ids)

    await measured(send, drain)


async def plain() -> None:
    """The loops over gRPC alone."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(os.environ["PUBSUB_EMULATOR_HOST"], options=options) as channel:

        def method(path: str, request: Any, parse: Any) -> Any:
            return channel.unary_unary(f"/google.pubsub.v1.{path}", request.SerializeToString, parse)

        publish = method("Publisher/Publish", PUBLISH, PUBLISHED.FromString)
        pull = method("Subscriber/Pull", PULL, PULLED.FromString)
        acknowledge = method("Subscriber/Acknowledge", ACK, lambda _: None)

        async def send(numbers: list[int]) -> int:
            reply = await publish(PUBLISH(topic=TOPIC, messages=[MESSAGE(data=body(number)) for number in numbers]))
            return len(reply.message_ids)

        async def drain() -> None:
            while True:
                ids: list[str] = []
                for received in (await pull(PULL(subscription=SUBSCRIPTION, max_messages=batch))).received_messages:
                    trial.hit(number_of(received.message.data))
                    ids.append(received.ack_id)
                await acknowledge(ACK(subscription=SUBSCRIPTION, ack_ids=ids))

        await measured(send, drain)


async def measured(send: Callable[[list[int]], Awaitable[int]], drain: Callable[[], Coroutine[None, None, None]]) -> None:
    """One caller, then in bulk, then the drain."""

    async def sending(work: list[list[int]]) -> None:
        while work:
            numbers = work.pop()
            trial.accepted += numbers[: await send(numbers)]

    with trial.sending("one"):
        for number in trial.numbers(SINGLE):
            await sending([[number]])
    bulk = trial.bulk()
    work = [bulk[at : at + batch] for at in range(0, len(bulk), batch)]
    with trial.sending("many"):
        await asyncio.gather(*(sending(work) for _ in range(loops)))
    with trial.draining():
        loop = asyncio.get_running_loop()
        draining = [loop.create_task(drain()) for _ in range(loops)]
        await asyncio.to_thread(trial.wait)
    assert not any(each.done() for each in draining)
    trial.report("google-cloud-pubsub" if kind == "api" else "grpcio")


asyncio.run(api() if kind == "api" else plain())
