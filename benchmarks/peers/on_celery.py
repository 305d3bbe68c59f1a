"""Celery on its memory transport with a worker in this process. Cases: solo, threads-N, eager."""

from __future__ import annotations

import os

from celery import Celery
from celery.contrib.testing.worker import start_worker
from tally import Tally

tally = Tally()
pool, _, threads = tally.case.partition("-")
app = Celery("bench", broker="memory://")
app.conf.update(task_ignore_result=True, task_always_eager=pool == "eager", worker_prefetch_multiplier=100, worker_hijack_root_logger=False)


@app.task
def add(x: int, y: int) -> int:
    tally.hit()
    return x + y


tally.begin()
for _ in range(tally.tasks):
    add.delay(2, 3)
if pool == "eager":
    tally.report("celery")
else:
    tally.sent()
    with start_worker(app, pool=pool, concurrency=int(threads or 1), perform_ping_check=False, loglevel="ERROR"):
        tally.wait()
        tally.report("celery")
        os._exit(0)
