"""cloudq on sqs://. Cases: aiobotocore-160, boto3-160 …: the SDK under it, and how many tasks a worker runs at once."""

from __future__ import annotations

from collections.abc import Iterator

from trial import Trial

from cloudq import CloudQ
from cloudq.worker.worker import Worker, WorkerOptions

trial = Trial()
sdk, concurrency = trial.case.split("-")
app = CloudQ("bench", broker=f"sqs://?client={sdk}")


@app.task(queue="bench")
def add(x: int, y: int) -> int:
    trial.hit(x)
    return x + y


def call(numbers: Iterator[int]) -> None:
    for number in numbers:
        add.delay(number, 3)
        trial.accepted.append(number)


if not trial.complete:
    trial.send_by_threads(call)
with trial.sending("many"):
    bulk = trial.bulk()
    app.send_many(add.s(number, 3) for number in bulk)
    trial.accepted += bulk
with trial.draining():
    Worker(app, WorkerOptions(queues={"bench": 1}, concurrency=int(concurrency))).start()
    trial.wait()
trial.report("cloudq-tasks")
