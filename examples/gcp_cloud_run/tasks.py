"""A shop's background tasks. Nothing here knows that Pub/Sub pushes them to a service."""

from __future__ import annotations

import asyncio

from cloudq import CloudQ, Retry

app = CloudQ("shop", default_queue="orders")  # CLOUDQ_BROKER, CLOUDQ_STORE and CLOUDQ_TIMER say where it runs

_tries: dict[str, int] = {}


@app.task(retry=Retry(max_retries=3, on=(ConnectionError,), delay="1s"), timeout="20s")
def charge(order: str, cents: int) -> str:
    """Charge an order. The payment service is down at first, so that each order needs a retry."""
    _tries[order] = _tries.get(order, 0) + 1
    if _tries[order] == 1:
        raise ConnectionError("the payment service does not answer")
    print(f"charged {cents / 100:.2f} for {order}", flush=True)
    return confirm.delay(order).id


@app.task
async def confirm(order: str) -> None:
    """Write to the customer; the mails go out at the same time."""
    await asyncio.sleep(0.05)
    print(f"confirmed {order}", flush=True)


@app.task
def refund(order: str) -> None:
    """Nobody has written this yet: it ends in the dead-letter queue."""
    raise NotImplementedError(f"refunds of {order}")
