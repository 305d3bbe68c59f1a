"""Celery on SQS, its worker in this process with threads. Cases: threads-16."""

from __future__ import annotations

from collections.abc import Iterator

from celery import Celery
from celery.contrib.testing.worker import start_worker
from trial import CALLERS, Trial

trial = Trial()
pool, threads = trial.case.split("-")
app = Celery("bench", broker="sqs://")
app.conf.update(
    task_default_queue="bench",
    task_ignore_result=True,
    worker_prefetch_multiplier=10,
    worker_hijack_root_logger=False,
    worker_enable_remote_control=False,
    broker_connection_retry_on_startup=True,
    broker_pool_limit=CALLERS,
    broker_transport_options={"polling_interval": 0.1, "visibility_timeout": 60},
)


@app.task
def add(x: int, y: int) -> int:
    trial.hit(x)
    return x + y


def call(numbers: Iterator[int]) -> None:
    for number in numbers:
        add.delay(number, 3)
        trial.accepted.append(number)


if trial.complete:
    with trial.sending("shared"):
        call(iter(trial.bulk()))
else:
    trial.send_by_threads(call)
with trial.draining():
    worker = start_worker(app, pool=pool, concurrency=int(threads), perform_ping_check=False, loglevel="ERROR")
    worker.__enter__()
    trial.wait()
trial.report("celery")
