"""The tasks of chords that are run by workers which lie to themselves about their broker, and which others kill."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from cloudq import CloudQ, Task
from cloudq.adapters import AdapterContext, open_broker
from cloudq.clock import SystemClock
from cloudq.memory import Lies, LyingBroker
from tests.acceptance.ledger import Ledger


class _Lying(LyingBroker):
    create_queue: Any = None  # the broker that it lies about has none


ledger = Ledger(Path(os.environ["LEDGER"]))
effects = Path(os.environ["EFFECTS"])
_sqs = open_broker(os.environ["CLOUDQ_BROKER"], AdapterContext(app="chorded", clock=SystemClock()))
app = CloudQ(
    "chorded",
    broker=_Lying(_sqs, os.getpid(), Lies(duplicate=0.2, reorder=0.5, expire=0.1)),
    store=os.environ["CLOUDQ_STORE"],
    crash_cap=1_000,  # each lie about a lease looks like a crash
)


@app.task(name="member", bind=True, ignore_result=True)
def member(task: Task[..., Any], value: int) -> int:
    ledger.note("member", task.request.id)
    time.sleep(0.1)  # so that those who are killed are at it
    return value


@app.task(name="body", bind=True)
def body(task: Task[..., Any], values: list[int]) -> list[int]:
    """Its effect is a file named by the task: to write it again changes nothing."""
    ledger.note("body", task.request.id)
    (effects / task.request.id).write_text(repr(values))
    return values
