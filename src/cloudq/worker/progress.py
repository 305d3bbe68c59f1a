"""Writes what a run says of its progress: the latest counts, and the task does not wait for the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from cloudq.errors import CloudQError
from cloudq.worker.flight import Flight

logger = logging.getLogger("cloudq.worker")


def keep_progress(flight: Flight, loop: asyncio.AbstractEventLoop, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
    """Have ``update_state`` of the flight's task, in whichever thread, written on ``loop`` by what ``spawn`` starts there."""
    if flight.job.claim is None or flight.job.request is None:
        return

    def report(state: str, meta: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended before the task
            loop.call_soon_threadsafe(note, (state, meta))

    def note(progress: tuple[str, Any]) -> None:
        flight.progress = progress
        if not flight.reporting and not flight.concluded:
            flight.reporting = True
            spawn(_write(flight))

    flight.job.request.report = report


async def _write(flight: Flight) -> None:
    claim = flight.job.claim
    try:
        while claim is not None and not flight.concluded and (progress := flight.progress) is not None:
            flight.progress = None
            await claim.report(*progress)
    except CloudQError as error:
        logger.warning("%s: its progress could not be recorded: %s", flight.job.label, error)
    finally:
        flight.reporting = False
