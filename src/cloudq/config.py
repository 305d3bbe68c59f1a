"""The app's settings, in one place, with their defaults and units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, NamedTuple

from cloudq.durations import seconds
from cloudq.errors import ConfigError
from cloudq.retry import Retry

AfterCommit = Callable[[Callable[[], None]], Any]
Router = Callable[[str], "str | None"]


class Queue(NamedTuple):
    """A queue that the app uses. ``dead_letter``: where its dead letters go; by default ``name-dlq`` (``name-dlq.fifo``)."""

    name: str
    dead_letter: str | None = None


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Config:
    """``app.conf``: set through ``CloudQ(...)``, or changed before the first use. Durations are seconds;
    a timedelta or text like ``"5m"`` is converted when set."""

    default_queue: str = "default"
    task_routes: Mapping[str, str | Mapping[str, str]] | Router | None = None
    """Task name or glob pattern to queue, ``{"shop.mail.*": "emails"}``, or a function from name to queue."""
    retry: Retry | None = None
    """For tasks that set none; ``None``: errors are final."""
    timeout: float | None = None
    """Time limit of one run for tasks that set none."""
    result_expires: float = 7 * 86400.0
    """How long a task's document is kept after its last change. Within it duplicates of finished work are recognised:
    keep it above the queue's retention (SQS: 4 days unless configured)."""
    track_queued: bool | None = None
    """With a store: note QUEUED when a call is sent. ``None``: yes, unless the store is paid by the write (DynamoDB, Firestore), where it
    would double a task's writes. Tasks with ``ignore_result`` have none."""
    task_always_eager: bool = False
    """Run calls here and now, through codec and runner, instead of sending; for tests."""
    send_timeout: float = 30.0
    """How long a call waits for the broker's confirmation before SendUnknown."""
    after_commit: AfterCommit | None = None
    """Calls its argument when the current database transaction commits, as Django's ``transaction.on_commit``."""
    crash_cap: int = 5
    """Deliveries without an outcome after which a message is taken to crash its worker, and dead-lettered."""
    unknown_task_grace: float = 900.0
    """How long a message with an unknown task or a newer protocol waits for a deploy to bring it, before it is dead-lettered."""
    catch_up: Literal["latest", "all", "none"] = "latest"
    """Which fires of a schedule run that were missed while no worker was there, unless the schedule says so itself."""
    dead_letter_suffix: str = "-dlq"
    events: bool = False
    """Write events to the store (``cloudq events``): some writes a second beside those that a task takes anyway."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _DURATIONS and value is not None:
            try:
                value = seconds(value, name)
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{error}") from error
        object.__setattr__(self, name, value)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Config:
        """Build from keywords; raises ConfigError for an unknown name."""
        known = [entry.name for entry in fields(cls)]
        if unknown := sorted(settings.keys() - set(known)):
            from difflib import get_close_matches

            near = get_close_matches(unknown[0], [*_SEAMS, *known], n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(f"CloudQ has no setting {', '.join(unknown)}{meant}; it takes {', '.join([*_SEAMS, *known])}")
        return cls(**settings)

    def route(self, task: str) -> str | None:
        """The queue that ``task_routes`` names for a task; an exact name wins over patterns, and those count in their order."""
        routes = self.task_routes
        if routes is None:
            return None
        if callable(routes):
            return routes(task)
        target = routes.get(task)
        if target is None:
            target = next((routes[pattern] for pattern in routes if fnmatchcase(task, pattern)), None)
        return None if target is None else _queue(target)

    def routed_queues(self) -> list[str]:
        """The queues that ``task_routes`` names, where it is no function."""
        routes = self.task_routes
        return [] if routes is None or callable(routes) else [_queue(target) for target in routes.values()]

    def dead_letter_queue(self, queue: str) -> str:
        """The dead-letter queue of a queue, by rule. FIFO names keep their ``.fifo``, as SQS asks."""
        stem, fifo = (queue.removesuffix(".fifo"), ".fifo") if queue.endswith(".fifo") else (queue, "")
        return f"{stem}{self.dead_letter_suffix}{fifo}"


def _queue(target: str | Mapping[str, str]) -> str:
    return target if isinstance(target, str) else target["queue"]


_SEAMS: Final = (
    "broker",
    "store",
    "timer",
    "queues",
    "include",
    "middleware",
    "beat_schedule",
    "clock",
    "signing",
    "encryption",
    "accept_unsigned",
)
_DURATIONS: Final = frozenset({"timeout", "result_expires", "send_timeout", "unknown_task_grace"})
