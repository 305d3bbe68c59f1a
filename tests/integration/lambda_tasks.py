"""The app that the Lambda tests run under awslambdaric; the environment says where its ledger, broker and store are."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from cloudq import CloudQ, Retry
from tests.acceptance.ledger import Ledger

app = CloudQ("lambda", include=(), default_queue=os.environ.get("TEST_QUEUE", "default"))
ledger = Ledger(Path(os.environ["TEST_LEDGER"]))

AGAIN = Retry(max_retries=3, on=(ConnectionError,), delay=0, jitter=False)


class Refused(Exception):
    """What a task that fails for good raises."""


def _first_time(event: str, n: int) -> bool:
    known = ledger.counts(event)[str(n)]
    ledger.note(event, n)
    return not known


@app.task(retry=AGAIN)
def work(n: int, how: str = "well") -> int:
    """Note one effect; ``how`` says what goes wrong before that."""
    match how:
        case "retry" if _first_time("failed", n):
            raise ConnectionError("injected")
        case "dead":
            ledger.note("refused", n)
            raise Refused("injected")
        case "kill" if _first_time("killed", n):
            time.sleep(0.3)  # what came before in the batch is settled by then
            os.kill(os.getpid(), signal.SIGKILL)
        case "poison":
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang" if _first_time("hung", n):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # as C code that does not return
            time.sleep(60)
        case "slow" if _first_time("slow", n):
            time.sleep(60)  # the function's time ends it
    ledger.note("done", n)
    return n


@app.task(retry=AGAIN)
async def awork(n: int, how: str = "well") -> int:
    """``work``, async; one that goes well sends another task."""
    await asyncio.sleep(0.001)
    if how == "retry" and _first_time("failed", n):
        raise ConnectionError("injected")
    ledger.note("done", n)
    return n


@app.task
def parent(n: int) -> None:
    """Send a task from a sync task on the main thread."""
    work.delay(n)
    ledger.note("sent", n)


@app.task
async def aparent(n: int) -> None:
    """Send a task from an async task."""
    await work.adelay(n)
    ledger.note("sent", n)


@app.task
def modules(names: list[str]) -> list[str]:
    """Which of these are imported here."""
    import sys

    return [name for name in names if name in sys.modules]


@app.task
def echo(value: Any) -> Any:
    """Return the argument."""
    return value


app.schedule("echoed", echo.s({"b": 2}), "0 0 * * *", catch_up="all")


@app.task
def fail() -> None:
    """Fail."""
    raise Refused("it does not work")
