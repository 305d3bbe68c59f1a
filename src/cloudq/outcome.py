"""What running a message came to, as values: a host makes one durable before it lets go of the delivery."""

from __future__ import annotations

import random
import traceback as _traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

from cloudq import states

_OURS: Final = frozenset({"cloudq.runner", "cloudq.task"})

LONGEST_PAUSE: Final = 30.0
"""Seconds at most until a message asks again for what another has: a key, a seat."""

MAX_DETAIL: Final = 2_000
MAX_TRACEBACK: Final = 8_000
"""Characters of an error's message and traceback that are kept: the traceback's end says most, so its beginning goes."""


class Failure(NamedTuple):
    """An exception as it travels: names and text, nothing to unpickle."""

    type: str
    detail: str
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception; the frames of the runner at its beginning are left out."""
        try:
            detail = str(error)
        except Exception as broken:  # a __str__ that raises must not hide the failure
            detail = f"(its message could not be read: {type(broken).__name__})"
        frames = error.__traceback__
        while frames is not None and frames.tb_next is not None and frames.tb_frame.f_globals.get("__name__") in _OURS:
            frames = frames.tb_next
        text = "".join(_traceback.format_exception(type(error), error, frames))
        return cls(_name(type(error)), _clean(detail)[:MAX_DETAIL], _clean(text)[-MAX_TRACEBACK:])

    def as_json(self) -> dict[str, Any]:
        return {"type": self.type, "detail": self.detail, "traceback": self.traceback}


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _clean(text: str) -> str:
    """Text that any JSON reader takes: lone surrogates become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class Done(NamedTuple):
    """The task returned. ``value`` is its result as JSON values; ``kept`` is false for ``Ignore``."""

    value: Any = None
    kept: bool = True


class Again(NamedTuple):
    """It failed and may retry: attempt + 1 is sent with ``delay`` seconds."""

    delay: float
    error: Failure
    crashed: bool = False


NO_CHANGES: Final[Mapping[str, Any]] = MappingProxyType({})


class Later(NamedTuple):
    """Not now: the same attempt is sent again with ``delay`` seconds. ``changes`` are fields that it then carries."""

    delay: float
    why: str
    changes: Mapping[str, Any] = NO_CHANGES


class Dead(NamedTuple):
    """No more tries: to the dead-letter queue with ``reason``; ``state`` is FAILURE or DEAD."""

    reason: str
    error: Failure | None = None
    state: str = states.DEAD


class Dropped(NamedTuple):
    """Nothing to do: revoked, expired, superseded, or a duplicate of finished work.

    ``state`` is what the result then says (``None``: it stays as it is; SUCCESS with ``value``: another call's result is its own);
    ``follow_ups`` whether those of the finished work are sent, perhaps again:
    its links with ``value``, or where ``ended`` holds the record of work that ended without one, its error links.
    """

    why: str
    state: str | None = None
    value: Any = None
    follow_ups: bool = False
    ended: Mapping[str, Any] | None = None


Outcome: TypeAlias = Done | Again | Later | Dead | Dropped


def growing_pause(deferrals: int) -> float:
    """Seconds until a message that was deferred so often asks again; not all at once."""
    longest: float = min(2.0 ** min(deferrals, 10), LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1.0)
