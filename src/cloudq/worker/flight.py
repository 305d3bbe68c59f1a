"""A delivery inside a worker, and where it stands there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from cloudq.outcome import Outcome
from cloudq.runner import Job


@dataclass(slots=True, eq=False)
class Flight:
    """One delivery from receive to ack. Changed on the I/O loop only, but for ``started``, which its executor sets."""

    job: Job
    began: float = field(default_factory=time.monotonic)
    started: bool = False
    """Its task has begun; before that it can be given back as if nothing had been."""
    started_at: float = 0.0
    """When it began (monotonic seconds)."""
    concluded: bool = False
    """Its outcome is known; a later one (of a thread that was given up) does not count."""
    durable: bool = False
    """Its outcome is durable; all that is left is to ack the delivery."""
    lost: bool = False
    """Its lease was lost: nothing more is extended."""
    slot_lost: bool = False
    """It has no slot to give back: it is held, or its thread could not be stopped at the time limit (then the thread's return frees it)."""
    alarm: asyncio.TimerHandle | None = None
    """Goes off at the time limit."""
    renewal: asyncio.Task[None] | None = None
    """The renewal of its claim that is out."""
    progress: tuple[str, Any] | None = None
    """What ``update_state`` said and the store does not have yet."""
    reporting: bool = False
    stoppable: bool = False
    """It may turn out to be revoked while it runs."""
    stop: Callable[[], None] | None = None
    """Ends the run of its sync task; set by its executor."""

    def start(self) -> None:
        """Its task begins now."""
        self.started_at = time.monotonic()
        self.started = True


def batches(flights: Iterable[Flight], size: int) -> Iterator[Sequence[Flight]]:
    """Flights of one queue each, as many as a request takes."""
    by_queue: dict[str, list[Flight]] = {}
    for flight in flights:
        by_queue.setdefault(flight.job.delivery.queue, []).append(flight)
    for group in by_queue.values():
        yield from (group[at : at + size] for at in range(0, len(group), size))


Complete: TypeAlias = Callable[[Flight, Outcome], None]
"""Told by an executor, from any thread, what a flight came to."""


class Executor(Protocol):
    """Runs flights, each within a slot that the worker has counted. All methods are called on the I/O loop."""

    def submit(self, flight: Flight) -> None:
        """Start the flight's task as soon as may be, and complete it exactly once (unless ``withdraw`` or ``close`` took it)."""
        ...

    def withdraw(self) -> list[Flight]:
        """Take back what was submitted and has not started."""
        ...

    def revoke(self, flight: Flight) -> None:
        """End the run of a flight whose ``job.revoked`` is set; it completes as ever, once it has ended."""
        ...

    def cancel(self) -> None:
        """End what can be ended of what runs; it completes with nothing."""
        ...

    def close(self) -> None:
        """Take no more; idle threads and processes end."""
        ...
