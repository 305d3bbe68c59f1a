"""Tasks of the service under test in test_push; its ledger is the file that PUSH_LEDGER names."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from cloudq import CloudQ, Retry
from tests.acceptance.ledger import Ledger

app = CloudQ("push", default_queue=os.environ.get("PUSH_QUEUE", "orders"))
ledger = Ledger(Path(os.environ["PUSH_LEDGER"]))


@app.task(name="note")
def note(value: str, seconds: float = 0.0) -> str:
    ledger.note("began", value)
    time.sleep(seconds)
    ledger.note("done", value)
    return value


@app.task(name="anote")
async def anote(value: str, seconds: float = 0.0) -> str:
    ledger.note("began", value)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        ledger.note("cancelled", value)
        raise
    ledger.note("done", value)
    return value


@app.task(name="fails", retry=Retry(max_retries=1, delay=0, on=(ValueError,)))
def fails(value: str) -> None:
    ledger.note("began", value)
    raise ValueError(value)
