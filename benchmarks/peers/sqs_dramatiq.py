"""dramatiq_sqs, its worker in this process. Cases: how many threads."""

from __future__ import annotations

from collections.abc import Iterator

import dramatiq
from dramatiq_sqs import SQSBroker
from trial import Trial

trial = Trial()
broker = SQSBroker()
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="bench")
def add(x: int, y: int) -> int:
    trial.hit(x)
    return x + y


def call(numbers: Iterator[int]) -> None:
    for number in numbers:
        add.send(number, 3)
        trial.accepted.append(number)


if trial.complete:
    with trial.sending("shared"):
        call(iter(trial.bulk()))
else:
    trial.send_by_threads(call)
with trial.draining():
    dramatiq.Worker(broker, worker_threads=int(trial.case)).start()
    trial.wait()
trial.report("dramatiq-sqs")
