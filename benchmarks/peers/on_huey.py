"""huey's MemoryHuey with a consumer of worker threads. Cases: thread counts."""

from __future__ import annotations

import os

from huey import MemoryHuey
from tally import Tally

tally = Tally()
huey = MemoryHuey("bench", results=False)


@huey.task()
def add(x: int, y: int) -> int:
    tally.hit()
    return x + y


tally.begin()
for _ in range(tally.tasks):
    add(2, 3)
tally.sent()
consumer = huey.create_consumer(workers=int(tally.case), periodic=False, check_worker_health=False)
consumer.start()
tally.wait()
tally.report("huey")
os._exit(0)
