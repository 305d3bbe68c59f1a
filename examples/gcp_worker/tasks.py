"""A shop's background tasks. Nothing here knows where on Google Cloud they run."""

from __future__ import annotations

import time
from typing import Any

from cloudq import CloudQ, Retry, Task

app = CloudQ("shop", default_queue="orders")  # CLOUDQ_BROKER and CLOUDQ_STORE say where it runs


@app.task(bind=True, retry=Retry(max_retries=3, on=(ConnectionError,), delay="1s"), timeout="20s")
def charge(self: Task[..., Any], order: str, cents: int) -> str:
    """Charge an order. The payment service is down at first, so that each order needs a retry."""
    if self.request.retries == 0:
        raise ConnectionError("the payment service does not answer")
    return f"charged {cents / 100:.2f} for {order}"


@app.task
def export(seconds: float) -> None:
    """Write a report of all orders: it takes long enough for a deploy to come in between."""
    time.sleep(seconds)


@app.task
def refund(order: str) -> None:
    """Nobody has written this yet: it ends in the dead-letter queue."""
    raise NotImplementedError(f"refunds of {order}")
