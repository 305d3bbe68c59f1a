"""dramatiq's StubBroker with a Worker. Cases: (default|bare)-THREADS; bare has no middleware, so no retries and no limits."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.stub import StubBroker
from tally import Tally

tally = Tally()
middleware, threads = tally.case.split("-")
broker = StubBroker(middleware=[] if middleware == "bare" else None)
dramatiq.set_broker(broker)


@dramatiq.actor
def add(x: int, y: int) -> int:
    tally.hit()
    return x + y


tally.begin()
for _ in range(tally.tasks):
    add.send(2, 3)
tally.sent()
worker = dramatiq.Worker(broker, worker_threads=int(threads))
worker.start()
tally.wait()
tally.report("dramatiq")
os._exit(0)
