"""Brings the timer's schedules to those that the code declares: what differs first, as a value, and then each step of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from cloudq.timer import Schedule, Timer


class Step(StrEnum):
    """What is to be done about one schedule."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Change:
    """One step, and why."""

    step: Step
    name: str
    declared: Schedule | None
    """As the timer is told; ``None`` to delete."""
    kept: Schedule | None
    """As the timer has it; ``None`` to create."""
    differs: tuple[str, ...] = ()
    """What is not as declared: ``trigger``, ``queue``, ``message``."""


def changes(declared: Iterable[Schedule], kept: Iterable[Schedule]) -> list[Change]:
    """What brings ``kept`` to ``declared``, by name. What is paused stays paused."""
    wanted = {each.name: each for each in declared}
    known = {each.name: each for each in kept}
    return [_change(name, wanted.get(name), known.get(name)) for name in sorted(wanted.keys() | known.keys())]


async def apply(timer: Timer, change: Change) -> None:
    """Do one step; doing it again is safe. Raises TimerError."""
    if change.step is Step.DELETE:
        await timer.delete_schedule(change.name)
    elif change.step is not Step.KEEP and change.declared is not None:
        await timer.put_schedule(change.declared)


def _change(name: str, declared: Schedule | None, kept: Schedule | None) -> Change:
    if declared is None:
        return Change(Step.DELETE, name, None, kept)
    if kept is None:
        return Change(Step.CREATE, name, declared, None)
    differs = tuple(what for what in _COMPARED if _seen(declared, what) != _seen(kept, what))
    return Change(Step.UPDATE if differs else Step.KEEP, name, replace(declared, paused=kept.paused), kept, differs)


_COMPARED: Final = ("trigger", "queue", "message")


def _seen(schedule: Schedule, what: str) -> object:
    match what:
        case "trigger":
            return str(schedule.trigger)
        case "queue":
            return schedule.queue
        case _:  # its deduplication id is the timer's own
            message = schedule.message
            return message.body, message.group, message.tenant, dict(message.attributes)
