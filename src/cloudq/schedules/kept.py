"""Triggers that are read back from a provider's scheduler: the one that was put, where the provider still keeps it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cloudq.errors import CannotExpress, TimerError
from cloudq.schedules.parsing import parse
from cloudq.timer import Trigger


@dataclass(frozen=True, slots=True)
class Kept:
    """A trigger that is of another kind, or was changed since: when it fires, the provider alone works out."""

    parts: tuple[tuple[str, str], ...]
    """Its expressions, in the provider's words, with their time zones."""
    text: str
    service: str
    """The provider's."""

    def next_after(self, instant: float) -> float | None:
        """Always TimerError."""
        raise TimerError(f"when {self.text} fires next is known to {self.service} only; ask the trigger in the code")

    def __str__(self) -> str:
        return self.text


def read_back(
    noted: str | None, parts: Sequence[tuple[str, str]], service: str, translate: Callable[[Trigger], Sequence[tuple[str, str]]]
) -> Trigger:
    """The trigger of ``parts``: the one whose text was noted beside them, if ``translate`` makes these parts of it."""
    found: Trigger | None = None
    with suppress(ValueError):  # a trigger of another kind: its text is all that is known
        found = parse(noted) if noted is not None else None
    if found is not None:
        with suppress(CannotExpress):
            if list(translate(found)) == list(parts):
                return found
        noted = None
    return Kept(tuple(parts), noted or ", ".join(said if zone == "UTC" else f"{said} {zone}" for said, zone in parts), service)
