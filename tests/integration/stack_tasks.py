"""The tasks of the stack that the tests make: an app with an ordered queue, tenants, schedules, results and a secret."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cloudq import CloudQ, Retry, Task, chain, cron
from tests.acceptance.ledger import Ledger

app = CloudQ("stack")


def note(event: str, id: object) -> int:
    """Note it in the ledger; how often it had been noted before."""
    ledger = Ledger(Path(os.environ["STACK_LEDGER"]))
    before = ledger.counts(event)[str(id)]
    ledger.note(event, id)
    ledger.close()
    return before


@app.task(name="double", queue="mails", timeout=5)
def double(number: int) -> int:
    note("double", number)
    return 2 * number


@app.task(name="flaky", queue="mails", timeout=5, retry=Retry(max_retries=3, delay=0, on=(ConnectionError,)))
def flaky(number: int) -> int:
    if note("flaky", number) < 2:
        raise ConnectionError("not yet")
    return number


@app.task(name="hopeless", queue="mails", timeout=5)
async def hopeless(number: int) -> None:
    note("hopeless", number)
    raise ValueError(f"{number} never works")


@app.task(name="large", queue="mails", timeout=5)
def large(text: str) -> int:
    return len(text)


@app.task(name="secret", queue="mails", timeout=5)
def secret() -> str:
    return os.environ["API_PASSWORD"] + os.environ["GREETING"]


@app.task(name="follow", queue="orders.fifo", timeout=5, bind=True)
def follow(self: Task[..., Any], group: str, number: int) -> int:
    note(f"follow-{group}", number)
    double.apply_async((100 + number,), task_id=f"followed-{group}-{number}")
    return number


@app.task(name="report", queue="reports", timeout="20m")
def report() -> None:
    """In a container, which no test starts."""


app.schedule("nightly", double.si(7), cron("0 2 * * *", tz="Europe/Berlin"))
app.schedule('"chained" ${it}', chain(double.si(8), double.s()), cron("30 2 1 * 1"))
app.schedule("ordered", follow.si("tick", 1).set(ordering_key="tick"), cron("0 3 * * *"))
app.schedule("tenant", double.si(9).set(tenant="a"), cron("0 4 * * *"))
