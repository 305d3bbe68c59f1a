"""cloudq on memory://. Cases: (delay|many)-(sync|async)-CONCURRENCY."""

from __future__ import annotations

import os

from tally import Tally

from cloudq import CloudQ
from cloudq.worker.worker import Worker, WorkerOptions

tally = Tally()
how, kind, concurrency = tally.case.split("-")
app = CloudQ("bench", broker="memory://")


if kind == "async":

    @app.task
    async def add(x: int, y: int) -> int:
        tally.hit()
        return x + y
else:

    @app.task
    def add(x: int, y: int) -> int:
        tally.hit()
        return x + y


tally.begin()
if how == "many":
    app.send_many(add.s(2, 3) for _ in range(tally.tasks))
else:
    for _ in range(tally.tasks):
        add.delay(2, 3)
tally.sent()
worker = Worker(app, WorkerOptions(concurrency=int(concurrency)))
worker.start()
tally.wait()
tally.report("cloudq-tasks")
worker.stop()
worker.join(10)
stats = app.use_broker(lambda broker: broker.stats("default"))
if worker.handled != tally.tasks or stats.ready or stats.in_flight:
    raise SystemExit(f"{worker.handled} messages settled, {stats} left")
os._exit(0)
