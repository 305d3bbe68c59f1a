"""Tasks that last: some let others run meanwhile, some do not."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from cloudq import CloudQ
from tests.acceptance.ledger import Ledger

ledger = Ledger(Path(os.environ["LEDGER"]))
gate = Path(os.environ["GATE"])
"""Once this file is there, the seconds of those that block begin."""
app = CloudQ("lasting")


def _await_gate() -> None:
    while not gate.exists():
        time.sleep(0.02)


def _spin(seconds: float) -> None:
    """Hold the interpreter busy with pure Python."""
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        count += 1


@app.task(name="burn", bind=True)
def burn(self: Any, seconds: float) -> None:
    """A sync task that is CPU-bound."""
    ledger.note("began", self.request.id)
    _await_gate()
    _spin(seconds)
    ledger.note("ended", self.request.id)


@app.task(name="block", bind=True)
async def block(self: Any, seconds: float) -> None:
    """An async task that blocks its event loop without using the CPU."""
    ledger.note("began", self.request.id)
    _await_gate()
    time.sleep(seconds)  # noqa: ASYNC251  # that is the fault to be borne
    ledger.note("ended", self.request.id)


@app.task(name="hog", bind=True)
async def hog(self: Any, seconds: float) -> None:
    """An async task that blocks its event loop and is CPU-bound."""
    ledger.note("began", self.request.id)
    _await_gate()
    _spin(seconds)
    ledger.note("ended", self.request.id)


@app.task(name="rest", bind=True)
def rest(self: Any, seconds: float) -> None:
    """A sync task that waits."""
    ledger.note("began", self.request.id)
    time.sleep(seconds)
    ledger.note("ended", self.request.id)


@app.task(name="nap", bind=True)
async def nap(self: Any, seconds: float) -> None:
    """An async task that waits as it should, and says when it is cancelled."""
    ledger.note("began", self.request.id)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        ledger.note("cancelled", self.request.id)
        raise
    ledger.note("ended", self.request.id)
