"""Celery on gcpubsub, its worker in this process. Cases: solo-1, threads-16: the pool and its size."""

from __future__ import annotations

from collections.abc import Iterator

from celery import Celery
from celery.contrib.testing.worker import start_worker
from pubsub_trial import PROJECT, QUEUE, PubSubTrial
from trial import CALLERS

trial = PubSubTrial()
pool, size = trial.case.split("-")
app = Celery("bench", broker=f"gcpubsub://projects/{PROJECT}")
app.conf.update(
    task_default_queue=QUEUE,
    task_ignore_result=True,
    worker_prefetch_multiplier=0 if pool == "solo" else 10,
    worker_hijack_root_logger=False,
    worker_enable_remote_control=False,
    broker_connection_retry_on_startup=True,
    broker_pool_limit=CALLERS,
    broker_transport_options={"queue_name_prefix": "celery-", "ack_deadline_seconds": 60, "bulk_max_messages": 1000},
)


@app.task
def add(x: int, y: int) -> int:
    trial.hit(x)
    return x + y


def call(numbers: Iterator[int]) -> None:
    for number in numbers:
        add.delay(number, 3)
        trial.accepted.append(number)


trial.send_by_threads(call)
with trial.draining():
    worker = start_worker(app, pool=pool, concurrency=int(size), perform_ping_check=False, loglevel="ERROR")
    worker.__enter__()
    trial.wait()
trial.report("celery")
