"""The floor: hand-written loops of full batches over the SDK alone. Cases: aiobotocore-16, boto3-16, boto3-1."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

from trial import SINGLE, Trial

trial = Trial()
sdk, _, number_at_once = trial.case.partition("-")
count = int(number_at_once)
QUEUE = "bench"


def body(number: int) -> str:
    """As long as cloudq's message for the same call."""
    return json.dumps({"v": 1, "id": "0123456789abcdef0123456789abcdef", "task": "tasks.add", "args": [number, 3], "sent": 1790000000.123})


def entries_of(numbers: list[int]) -> list[dict[str, Any]]:
    return [{"Id": str(index), "MessageBody": body(number)} for index, number in enumerate(numbers)]


def delete_of(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the tasks, and say what is to be deleted."""
    found: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        trial.hit(json.loads(message["Body"])["args"][0])
        found.append({"Id": str(index), "ReceiptHandle": message["ReceiptHandle"]})
    return found


def batches(numbers: list[int]) -> list[list[int]]:
    return [numbers[at : at + 10] for at in range(0, len(numbers), 10)]


def accept(numbers: list[int], answer: dict[str, Any]) -> None:
    trial.accepted.extend(numbers[int(entry["Id"])] for entry in answer.get("Successful", ()))


async def with_aiobotocore() -> None:
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session

    config = AioConfig(max_pool_connections=64, parameter_validation=False)
    async with get_session().create_client("sqs", config=config) as client:
        url = (await client.get_queue_url(QueueName=QUEUE))["QueueUrl"]

        async def send(work: list[list[int]]) -> None:
            while work:
                numbers = work.pop()
                accept(numbers, await client.send_message_batch(QueueUrl=url, Entries=entries_of(numbers)))

        async def drain() -> None:
            while True:
                answer = await client.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=20, VisibilityTimeout=60)
                if messages := answer.get("Messages"):
                    await client.delete_message_batch(QueueUrl=url, Entries=delete_of(messages))

        with trial.sending("one"):
            for number in trial.numbers(0 if trial.complete else SINGLE):
                await client.send_message(QueueUrl=url, MessageBody=body(number))
                trial.accepted.append(number)
        with trial.sending("many"):
            work = batches(trial.bulk())
            await asyncio.gather(*(send(work) for _ in range(count)))
        with trial.draining():
            loop = asyncio.get_running_loop()
            draining = [loop.create_task(drain()) for _ in range(count)]
            await asyncio.to_thread(trial.wait)
        for each in draining:
            each.cancel()


def with_boto3() -> None:
    import botocore.session
    from botocore.config import Config

    config = Config(max_pool_connections=64, parameter_validation=False)
    client: Any = botocore.session.get_session().create_client("sqs", config=config)
    url = client.get_queue_url(QueueName=QUEUE)["QueueUrl"]

    def send(work: list[list[int]]) -> None:
        while work:
            try:
                numbers = work.pop()
            except IndexError:
                return
            accept(numbers, client.send_message_batch(QueueUrl=url, Entries=entries_of(numbers)))

    def drain() -> None:
        while True:
            answer = client.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=20, VisibilityTimeout=60)
            if messages := answer.get("Messages"):
                client.delete_message_batch(QueueUrl=url, Entries=delete_of(messages))

    with trial.sending("one"):
        for number in trial.numbers(0 if trial.complete else SINGLE):
            client.send_message(QueueUrl=url, MessageBody=body(number))
            trial.accepted.append(number)
    with trial.sending("many"):
        work = batches(trial.bulk())
        at_once(lambda: send(work))
    with trial.draining():
        for _ in range(count):
            threading.Thread(target=drain, daemon=True).start()
        trial.wait()


def at_once(call: Callable[[], None]) -> None:
    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if sdk == "boto3":
    with_boto3()
    trial.report("botocore")
else:
    asyncio.run(with_aiobotocore())
    trial.report("aiobotocore")
