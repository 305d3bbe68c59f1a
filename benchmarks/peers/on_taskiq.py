"""taskiq's InMemoryBroker, which has no queue: it starts each task as it is sent. Cases: (sync|async)-(spawn|inplace)."""

from __future__ import annotations

import asyncio
import os

from tally import Tally
from taskiq import InMemoryBroker
from taskiq.result_backends.dummy import DummyResultBackend

tally = Tally()
kind, how = tally.case.split("-")
broker = InMemoryBroker(sync_tasks_pool_size=10, cast_types=False, await_inplace=how == "inplace").with_result_backend(DummyResultBackend())


if kind == "async":

    @broker.task
    async def add(x: int, y: int) -> int:
        tally.hit()
        return x + y
else:

    @broker.task
    def add(x: int, y: int) -> int:
        tally.hit()
        return x + y


async def main() -> None:
    await broker.startup()
    tally.begin()
    for _ in range(tally.tasks):
        await add.kiq(2, 3)
    tally.sent()
    await broker.wait_all()
    tally.report("taskiq")


asyncio.run(main())
os._exit(0)
