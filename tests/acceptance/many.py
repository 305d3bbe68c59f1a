"""The task of the volume test: one call in a hundred fails for good."""

from __future__ import annotations

import os
from pathlib import Path

from cloudq import CloudQ, Retry
from tests.acceptance.ledger import Ledger

ledger = Ledger(Path(os.environ["LEDGER"]))
app = CloudQ("many")


@app.task(name="double", retry=Retry(max_retries=1, delay=0))
def double(number: int) -> int:
    ledger.note("run", number)
    if number % 100 == 7:
        raise ValueError(f"not {number}")
    return 2 * number
