"""taskiq-aio-sqs, its receiver in this process. Cases: default, tuned (batches of 10 both ways, and as much prefetch as gains anything)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from taskiq.api import run_receiver_task
from taskiq_aio_sqs import SQSBroker
from trial import CALLERS, SHARED, SINGLE, Trial, stats

trial = Trial()
tuned = trial.case == "tuned"
options = {"enable_batching": True, "batch_timeout": 0.1, "max_number_of_messages": 10} if tuned else {}
broker = SQSBroker("bench", **options)
logging.disable()


@broker.task
async def add(x: int, y: int) -> int:
    trial.hit(x)
    return x + y


async def call(numbers: Iterable[int]) -> None:
    for number in numbers:
        await add.kiq(number, 3)
        trial.accepted.append(number)


async def arrived(sent: int) -> None:
    """A batched ``kiq`` returns before its message is sent: a phase is over when the server has been asked for all of them."""
    while tuned and sum(n for action, n in stats()["entries"].items() if action.startswith("Send")) < sent:
        await asyncio.sleep(0.005)


async def main() -> None:
    await broker.startup()
    if trial.complete:
        with trial.sending("many"):
            await call(trial.bulk())
            await arrived(len(trial.accepted))
    else:
        if not tuned:  # one caller waits for nothing with batches: its calls are a bulk
            with trial.sending("one"):
                await call(trial.numbers(SINGLE))
        with trial.sending("many" if tuned else "shared"):
            numbers = iter(trial.bulk()) if tuned else trial.numbers(SHARED)
            await asyncio.gather(*(call(numbers) for _ in range(CALLERS)))
            await arrived(len(trial.accepted))
    with trial.draining():
        receiving = asyncio.create_task(run_receiver_task(broker, max_async_tasks=160 if tuned else 100, max_prefetch=160 if tuned else 0))
        await asyncio.to_thread(trial.wait)
    assert not receiving.done()
    trial.report("taskiq-aio-sqs")


asyncio.run(main())
