"""cloudq on pubsub://. Cases: sync-100, async-1000: the kind of task, and how many a worker runs at once."""

from __future__ import annotations

from collections.abc import Iterator

from pubsub_trial import PROJECT, QUEUE, PubSubTrial

from cloudq import CloudQ
from cloudq.worker.worker import Worker, WorkerOptions

trial = PubSubTrial()
kind, concurrency = trial.case.split("-")
app = CloudQ("bench", broker=f"pubsub://{PROJECT}/")

if kind == "sync":

    @app.task(queue=QUEUE)
    def add(x: int, y: int) -> int:
        trial.hit(x)
        return x + y

else:

    @app.task(queue=QUEUE)
    async def add(x: int, y: int) -> int:
        trial.hit(x)
        return x + y


def call(numbers: Iterator[int]) -> None:
    for number in numbers:
        add.delay(number, 3)
        trial.accepted.append(number)


trial.send_by_threads(call)
with trial.sending("many"):
    bulk = trial.bulk()
    app.send_many(add.s(number, 3) for number in bulk)
    trial.accepted += bulk
with trial.draining():
    Worker(app, WorkerOptions(queues={QUEUE: 1}, concurrency=int(concurrency))).start()
    trial.wait()
trial.report("cloudq-tasks")
