"""The app whose roles the IAM test watches: on each queue a task that does all that a task can do, and has done to it what can happen."""

from __future__ import annotations

import os
import time
from typing import Any, Final

from cloudq import CloudQ, Retry, Task, every

app = CloudQ("recorded", default_queue="mails")

QUEUES: Final = ("mails", "orders.fifo", "reports")
TEXT: Final = "x" * 2_000
"""Over what every queue takes: the sender asks how much this one does."""
LARGE: Final = "x" * 1_100_000
"""Over what SQS takes: it lies in the bucket."""
HOURS: Final = 7_200
"""Seconds, more than SQS delays: the timer's."""


def is_bare() -> bool:
    """Whether there are queues only: no store, no timer, no bucket."""
    return "CLOUDQ_STORE" not in os.environ


def to(queue: str, what: str, text: str = "", *, group: str = "g", **options: Any) -> Any:
    """A call to the task of a queue, with what an ordered one wants beside."""
    ordered = {"ordering_key": group} if queue.endswith(".fifo") else {}
    return app[queue].s(what, text).set(**ordered, **options)


def call(queue: str, what: str, text: str = "", *, group: str = "g", **options: Any) -> Any:
    """Call it."""
    return to(queue, what, text, group=group, **options).apply_async()


def use_everything(own: str) -> None:
    """What whoever calls tasks may do: a producer, and a task on the queue ``own``."""
    for queue in QUEUES:
        call(queue, "nothing", TEXT)
    if is_bare():
        return
    call(own, "nothing", LARGE)
    for _ in range(2):
        later = call(own, "nothing", task_id=f"later-{own}", countdown=HOURS)
    later.revoke()
    later.forget()
    assert app.result("nobody").state == "PENDING"


def _task(queue: str) -> None:
    again = Retry(max_retries=1, delay=0, on=(ConnectionError,))

    @app.task(name=queue, queue=queue, timeout=20, bind=True, retry=again, **({} if is_bare() else {"max_running": 50}))
    def act(self: Task[..., Any], what: str, text: str = "") -> int:
        match what:
            case "everything":
                use_everything(queue)
            case "again" if self.request.retries == 0:
                raise ConnectionError("injected")
            case "fail":
                raise ValueError(text)
            case "sleep":
                time.sleep(float(text))
        return len(text)

    @app.task(name=f"sum {queue}", queue=queue, timeout=20)
    def add(numbers: list[int]) -> int:
        return sum(numbers)


for _each in QUEUES:
    _task(_each)


@app.task(name="hourly", queue="mails", timeout=20)
def hourly() -> None: ...


app.schedule("hourly", hourly.si(), every("1h"))
