"""The task of the request-counting test."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cloudq import CloudQ
from tests.acceptance.ledger import Ledger

ledger = Ledger(Path(os.environ["LEDGER"]))
app = CloudQ("counted")
pause = float(os.environ.get("PAUSE", "0"))


@app.task(name="count")
def count(number: int) -> None:
    if pause:
        time.sleep(pause)
    ledger.note("run", number)
