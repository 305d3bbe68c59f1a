"""The function's time: how much of it is left, and the alarm that ends a sync task on the main thread."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NamedTuple, Protocol

MARGIN: Final = 1.0
"""Seconds that are kept for settling before the function's time is over; of a very short time, half."""
INSISTENCE: Final = 0.5
"""Seconds between alarms: a task that swallows one gets another."""


class LambdaContext(Protocol):
    """What is used of the context that Lambda passes."""

    def get_remaining_time_in_millis(self) -> int: ...


class TimeLeft(NamedTuple):
    """When the function's time is over, and from when it only settles (``time.monotonic()``)."""

    end: float
    stop: float

    @classmethod
    def of(cls, context: LambdaContext | None) -> TimeLeft:
        """As the context says; without one there is no end."""
        if context is None:
            return cls(math.inf, math.inf)
        left = context.get_remaining_time_in_millis() / 1000
        end = time.monotonic() + left
        return cls(end, end - min(MARGIN, left / 2))

    @property
    def seconds(self) -> float:
        """Until the function's end."""
        return self.end - time.monotonic()

    def until(self, now: float) -> float:
        """Seconds that tasks may still run; never quite 0, which would be no limit."""
        return max(self.stop - now, 0.001)

    def for_settling(self, kept: float = 0.1) -> float | None:
        """Seconds that settling may still take: a little is ``kept`` for the answer."""
        return None if math.isinf(self.end) else max(self.seconds - kept, 0.01)


class Alarm:
    """SIGALRM raised as an exception inside the task that runs on the main thread."""

    __slots__ = ("_error",)

    def __init__(self) -> None:
        self._error: BaseException | None = None

    def set(self, seconds: float, error: BaseException) -> None:
        """Raise ``error`` in ``seconds``, and again and again until it is switched off."""
        self._error = error
        if seconds < math.inf:
            signal.setitimer(signal.ITIMER_REAL, seconds, INSISTENCE)

    def off(self) -> None:
        """Raise nothing any more."""
        self._error = None
        signal.setitimer(signal.ITIMER_REAL, 0.0)

    def ring(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        if self._error is not None:
            raise self._error


@contextmanager
def alarms() -> Generator[Alarm | None]:
    """SIGALRM and its timer, given back afterwards; ``None`` off the main thread, where no signal comes."""
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    alarm = Alarm()
    began = time.monotonic()
    rest, interval = signal.setitimer(signal.ITIMER_REAL, 0.0)
    previous = signal.signal(signal.SIGALRM, alarm.ring)
    try:
        yield alarm
    finally:
        signal.signal(signal.SIGALRM, previous)
        if rest:
            signal.setitimer(signal.ITIMER_REAL, max(rest - (time.monotonic() - began), 0.001), interval)
