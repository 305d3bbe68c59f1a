"""When a failed task runs again: a policy as a value."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from cloudq.durations import Duration, seconds

Decide = Callable[[Exception, int], "float | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Retry on some errors, waiting longer each time, with jitter.

    The n-th retry waits ``min(max_delay, delay * backoff ** (n - 1))`` seconds, and with ``jitter`` a random part of that between
    nothing and all of it ("full jitter"), so that failures do not come back in step.
    """

    max_retries: int | None = 3
    """Retries after the first run; ``None`` for no end."""
    delay: Duration = 1.0
    """The first wait: seconds, a timedelta or text like ``"5s"``."""
    backoff: float = 2.0
    """What each wait is multiplied by; 1 keeps it constant."""
    max_delay: Duration = 600.0
    """The longest wait."""
    jitter: bool = True
    on: tuple[type[Exception], ...] = (Exception,)
    """Errors worth another try."""
    never: tuple[type[Exception], ...] = ()
    """Errors that are final although ``on`` names them."""
    decide: Decide | None = None
    """``decide(error, retries so far)`` instead of delay, backoff and jitter: seconds to wait, or ``None`` to give up."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "delay", seconds(self.delay, "Retry(delay)"))
        object.__setattr__(self, "max_delay", seconds(self.max_delay, "Retry(max_delay)"))
        for name in ("on", "never"):
            object.__setattr__(self, name, _classes(name, getattr(self, name)))
        if self.max_retries is not None and (isinstance(self.max_retries, bool) or self.max_retries < 0):
            raise ValueError("Retry(max_retries) must be 0 or more, or None for no end")
        if self.backoff < 1:
            raise ValueError("Retry(backoff) must be 1 or more")

    def wait(self, error: Exception, retries: int, *, uniform: Callable[[float, float], float] = random.uniform) -> float | None:
        """Seconds until the next run after ``error`` with ``retries`` retries behind it, or ``None``: no more."""
        if not isinstance(error, self.on) or isinstance(error, self.never) or self.exhausted(retries):
            return None
        if self.decide is not None:
            chosen = self.decide(error, retries)
            return None if chosen is None else seconds(chosen, "what Retry(decide=…) returned")
        return self.pause(retries, uniform=uniform)

    def exhausted(self, retries: int) -> bool:
        """Whether no retry is left."""
        return self.max_retries is not None and retries >= self.max_retries

    def pause(self, retries: int, *, uniform: Callable[[float, float], float] = random.uniform) -> float:
        """The wait before the next run, whatever the error."""
        longest, first = seconds(self.max_delay), seconds(self.delay)
        try:
            wait = min(longest, first * float(self.backoff) ** retries) if first else 0.0
        except OverflowError:
            wait = longest
        return uniform(0.0, wait) if self.jitter else wait


def _classes(name: str, given: object) -> tuple[type[BaseException], ...]:
    """One exception class, or a tuple of them, as a tuple."""
    several = cast("tuple[object, ...]", given) if isinstance(given, tuple) else (given,)
    classes = tuple(kind for kind in several if isinstance(kind, type) and issubclass(kind, BaseException))
    if len(classes) < len(several):
        raise TypeError(f"Retry({name}=…) takes exception classes, as in {name}=(ConnectionError,)")
    return classes


NO_RETRY = Retry(on=())
"""The default: errors are final, and ``self.retry()`` may still ask for up to three runs more."""
