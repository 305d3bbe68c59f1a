"""The task of the request-counting test."""

from __future__ import annotations

import os
from pathlib import Path

from cloudq import CloudQ
from tests.acceptance.ledger import Ledger

ledger = Ledger(Path(os.environ["LEDGER"]))
app = CloudQ("counted")


@app.task(name="count")
def count(number: int) -> None:
    ledger.note("run", number)
