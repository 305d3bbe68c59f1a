"""What recurs in an app: a call under a name, the tick that a timer sends for it, and the message that a tick stands for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

from cloudq import calls
from cloudq.broker import Delivery, Outgoing
from cloudq.errors import ArgumentsError, ConfigError, DecodeError
from cloudq.launch import Launch
from cloudq.message import VERSION, Message
from cloudq.signature import Canvas, Signature
from cloudq.timer import Schedule, Trigger, last_fire
from cloudq.values import dumps
from cloudq.workflow import Chain

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.task import Task

CatchUp: TypeAlias = Literal["latest", "all", "none"]
"""Which of the fires run that were missed while no worker was there: the last of them, each, or none."""

TriggerLike: TypeAlias = "Trigger | str | float | timedelta"
"""A trigger, its text (``"0 9 * * 1-5 Europe/Berlin"``, ``"every 5m"``), or the seconds between fires."""

LATE: Final = 120.0
"""Seconds after its slot at which a tick counts as missed: a provider may send it a minute late, and a queue takes time too."""

SLOT: Final = "<slot>"
LONGEST_NAME: Final = 100
"""Characters of a schedule's name at most: with a slot after it, it is a task id."""


@dataclass(slots=True, eq=False, repr=False)
class Recurring:
    """A call that recurs: ``canvas`` at each fire of ``trigger``. Made by ``app.schedule`` and ``@app.task(schedule=…)``."""

    name: str
    canvas: Canvas[Any]
    trigger: Trigger
    catch_up: CatchUp
    made: list[dict[str, Any]] | None = field(default=None, init=False)

    def __repr__(self) -> str:
        return f"<schedule {self.name}: {self.trigger}>"

    @property
    def task(self) -> str:
        """The name of the task that is called, or of the first of a chain."""
        return _first(self.canvas).task

    def steps(self, app: CloudQ) -> list[dict[str, Any]]:
        """The call as it travels, encoded once. Raises ArgumentsError where it does not fit the task."""
        if self.made is None:
            self.made = calls.steps_of(app, self.canvas)
        return self.made

    def queue(self, app: CloudQ) -> str:
        """Where its ticks go."""
        queue: str = self.steps(app)[0]["queue"]
        return queue

    def schedule(self, app: CloudQ, *, paused: bool = False) -> Schedule:
        """What the timer is told."""
        first = self.steps(app)[0]
        tick = Outgoing(body=dumps({"v": VERSION, "tick": self.name, "slot": SLOT}), group=first.get("group"), tenant=first.get("tenant"))
        return Schedule(name=self.name, queue=first["queue"], message=tick, trigger=self.trigger, paused=paused)

    def tick(self, app: CloudQ, slot: int) -> Outgoing:
        """The tick of one slot, for whoever sends it by hand."""
        message = self.message(app, slot)
        body = dumps({"v": VERSION, "tick": self.name, "slot": slot})
        return Outgoing(body=body, group=message.group, dedup=message.id if message.group is not None else None, tenant=message.tenant)

    def id(self, slot: int) -> str:
        """The task id of the result of one slot: two ticks of it are one run."""
        return f"{self.name}@{slot}"

    def message(self, app: CloudQ, slot: int) -> Message:
        """The call of one slot (Unix time, seconds); the same whoever asks, and how often."""
        id, steps = self.id(slot), self.steps(app)
        whole = isinstance(self.canvas, Signature)
        launch = Launch(app, parent=Message({"id": id}), flow=None if whole else id)
        launch.start(steps, id)
        made = launch.calls[0].message
        assert made is not None
        expires = steps[0].get("expires")
        return made.copy(
            sent=float(slot), parent=None, root=None if whole else id, expires=None if expires is None else round(slot + expires, 3)
        )

    def missed(self, slot: int, now: float) -> str | None:
        """Why a tick that comes now does not run any more; ``None`` where it does."""
        if self.catch_up == "all" or now - slot <= LATE:
            return None
        if self.catch_up == "none":
            return f"its tick came {now - slot:.0f} s late, and missed ones are not made up for"
        following = self.trigger.next_after(slot)
        return None if following is None or following > now else f"its tick came {now - slot:.0f} s late, and there has been a later one"


def recurring(name: str, canvas: Canvas[Any], trigger: TriggerLike, catch_up: CatchUp, *, known: Mapping[str, Recurring]) -> Recurring:
    """Check what an app declares. Raises ConfigError, which names the schedule and says what to write."""
    if not name or not name.isascii() or not name.isprintable() or "@" in name or len(name) > LONGEST_NAME:
        raise ConfigError(f"schedule {name!r}: a name is 1 to {LONGEST_NAME} printable ASCII characters without '@'")
    if name in known:
        raise ConfigError(f"two schedules are named {name!r}: {known[name].trigger} and {trigger}; give one another name")
    if catch_up not in ("latest", "all", "none"):
        raise ConfigError(f"schedule {name!r}: catch_up is 'latest', 'all' or 'none', not {catch_up!r}")
    try:
        found = trigger_of(trigger)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"schedule {name!r}: {error}") from error
    try:
        first = _first(canvas)
    except TypeError as error:
        raise ConfigError(f"schedule {name!r}: {error}") from error
    refused = {"delay", "countdown", "eta", "after_commit"} & first.options.keys() | {"task_id"} & (
        first.options.keys() | canvas.options.keys()
    )
    if refused:
        raise ConfigError(
            f"schedule {name!r}: its call cannot have {', '.join(sorted(refused))}: its trigger says when, and its slot which"
        )
    return Recurring(name, _alone(canvas), found, catch_up)


def of_task(task: Task[..., Any], catch_up: CatchUp, known: Mapping[str, Recurring]) -> list[Recurring]:
    """The schedules that a task has itself: one has the task's name, several are numbered from 1. Raises ConfigError."""
    triggers = several(task.settings.schedule)
    try:
        task.codec.encode((), {})
    except ArgumentsError as error:
        raise ConfigError(
            f"task {task.name!r} has a schedule and is called without arguments, but: {error}. Give its parameters defaults, or declare "
            f"app.schedule('a name', {task.__name__}.s(…), trigger)"
        ) from error
    names = [task.name] if len(triggers) == 1 else [f"{task.name}.{number}" for number in range(1, len(triggers) + 1)]
    own = {name: each for name, each in known.items() if each.task != task.name}  # its own may come again, when a module is read anew
    return [recurring(name, task.si(), trigger, catch_up, known=own) for name, trigger in zip(names, triggers, strict=True)]


def queue_named(each: Recurring) -> str | None:
    """The queue that its call names itself."""
    return _first(each.canvas).options.get("queue")


def of_celery(name: str, entry: Mapping[str, Any], app: CloudQ) -> tuple[Canvas[Any], TriggerLike]:
    """An entry of Celery's ``beat_schedule``: ``task``, ``schedule``, ``args``, ``kwargs``, ``options``. Raises ConfigError."""
    if unknown := entry.keys() - {"task", "schedule", "args", "kwargs", "options", "relative"}:
        raise ConfigError(
            f"beat_schedule {name!r}: unknown key {', '.join(sorted(map(str, unknown)))}; it takes task, schedule, args, kwargs, options"
        )
    if missing := {"task", "schedule"} - entry.keys():
        raise ConfigError(f"beat_schedule {name!r}: it has no {' and no '.join(sorted(missing))}")
    task = entry["task"]
    called = task if isinstance(task, str) else cast("Task[..., Any]", task).name
    signature = app.signature(called, tuple(entry.get("args", ())), dict(entry.get("kwargs", {})), **entry.get("options", {}))
    return signature, cast("TriggerLike", entry["schedule"])


def trigger_of(value: object) -> Trigger:
    """A trigger from what a person writes. Raises ValueError or TypeError."""
    if isinstance(value, Trigger):
        return value
    from cloudq import schedules

    if isinstance(value, str):
        return schedules.parse(value)
    if isinstance(value, (int, float, timedelta)) and not isinstance(value, bool):
        return schedules.every(value)
    raise TypeError(f"its trigger is cron(…), every(…), crontab(…), text or seconds, not {type(value).__name__}")


def several(value: object) -> Sequence[TriggerLike]:
    """One trigger or a list of them, as a list."""
    if isinstance(value, Iterable) and not isinstance(value, (str, Trigger)):
        return list(cast("Iterable[TriggerLike]", value))
    return [cast("TriggerLike", value)]


def sent_of(tick: Mapping[str, Any], delivery: Delivery, now: float) -> float:
    """When a tick was sent first: one that waited for a deploy, or was a dead letter, says so itself."""
    noted = tick.get("sent")
    if isinstance(noted, (int, float)) and not isinstance(noted, bool) and 0 < noted < 1e11:
        return float(noted)
    return delivery.sent or now


def slot_of(fields: Mapping[str, Any], trigger: Trigger, sent: float) -> int:
    """The instant that a tick is for, Unix time in whole seconds. ``sent``: when the provider took it. Raises DecodeError.

    It is a number, or text as AWS writes it (``2027-01-15T08:00:00Z``); where nothing was put in, it is the last fire before ``sent``.
    """
    slot = fields.get("slot", SLOT)
    if slot == SLOT:
        found = last_fire(trigger, sent)
        if found is None:
            raise DecodeError(f"the tick names no slot, and {trigger} has not fired before it was sent")
        return int(found)
    if isinstance(slot, str):
        try:
            slot = float(slot) if slot.isdigit() else datetime.fromisoformat(slot).astimezone().timestamp()
        except (ValueError, OverflowError, OSError):
            slot = None
    if isinstance(slot, bool) or not isinstance(slot, (int, float)) or not math.isfinite(slot) or not 0 <= slot < 1e11:
        raise DecodeError('"slot" of a tick must be Unix time in seconds, or an instant such as 2027-01-15T08:00:00Z')
    return int(slot)


def _alone(canvas: Canvas[Any]) -> Canvas[Any]:
    """The same, with nothing to come before the arguments of its first task."""
    if isinstance(canvas, Chain):
        return Chain((_alone(canvas.steps[0]), *canvas.steps[1:]), canvas.options)
    first = _first(canvas)
    return Signature(first.task, first.args, first.kwargs, first.options, immutable=True, each=first.each, app=first.app)


def _first(canvas: Canvas[Any]) -> Signature[Any]:
    """The task that a tick becomes a call of. Raises TypeError for a canvas that begins with several."""
    while isinstance(canvas, Chain) and canvas.steps:
        canvas = canvas.steps[0]
    if not isinstance(canvas, Signature):
        raise TypeError(
            f"what recurs begins with one task, and {type(canvas).__name__.lower()} does not: call it from a task, or put one before it"
        )
    return canvas
