"""The app's settings, in one place: defaults, units, what each takes, and what Celery's are called here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, cast

from cloudq.durations import seconds
from cloudq.errors import ConfigError
from cloudq.retry import Retry

AfterCommit = Callable[[Callable[[], None]], Any]
Router = Callable[[str], "str | None"]
Check = tuple[Callable[[Any], bool], str]
"""Whether a value will do, and what would."""


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
    """Runs in a row that ended without an outcome after which a message is taken to crash its worker, and dead-lettered.
    Without a store, which counts them, twice as many deliveries."""
    unknown_task_grace: float = 900.0
    """How long a message with an unknown task or a newer protocol waits for a deploy to bring it, before it is dead-lettered."""
    catch_up: Literal["latest", "all", "none"] = "latest"
    """Which fires of a schedule run that were missed while no worker was there, unless the schedule says so itself."""
    dead_letter_suffix: str = "-dlq"
    events: bool = False
    """Write events to the store (``cloudq events``): some writes a second beside those that a task takes anyway."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _CHECKS:
            raise _unknown([name])
        if name in _DURATIONS and value is not None:
            try:
                value = seconds(value, name)
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{error}") from error
        sound, wants = _CHECKS[name]
        if not sound(value):
            raise ConfigError(f"{name} takes {wants}, not {value!r:.100}")
        object.__setattr__(self, name, value)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Config:
        """Build from keywords; raises ConfigError for an unknown name, and for a value that is none."""
        if unknown := sorted(settings.keys() - _CHECKS.keys()):
            raise _unknown(unknown)
        return cls(**settings)

    def update(self, settings: Mapping[str, Any] = MappingProxyType({}), **more: Any) -> None:
        """Set several, as Celery's ``app.conf.update``; raises as ``of`` does, before any is set."""
        Config.of(settings := {**settings, **more})
        for name, value in settings.items():
            setattr(self, name, value)

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


def _are_routes(value: object) -> bool:
    if value is None or callable(value):
        return True
    targets = cast("Mapping[object, object]", value).values() if isinstance(value, Mapping) else [0]
    return all(_is_name(cast("Mapping[str, object]", each).get("queue") if isinstance(each, Mapping) else each) for each in targets)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _unknown(names: Sequence[str]) -> ConfigError:
    from difflib import get_close_matches

    known = [*_SEAMS, *_CHECKS]
    hints = [f"{name} is {CELERY[name]} here" for name in names if name in CELERY]
    near = [] if hints else get_close_matches(names[0], known, n=1)
    meant = f" ({'; '.join(hints)})" if hints else f" (did you mean {near[0]}?)" if near else ""
    return ConfigError(f"CloudQ has no setting {', '.join(names)}{meant}; it takes {', '.join(known)}")


CELERY: Final[Mapping[str, str]] = {
    "accept_content": "not needed: messages are JSON",
    "backend": "store=",
    "base": "middleware or a decorator",
    "beat_scheduler": "not needed: the cloud's scheduler, or cloudq worker --schedules",
    "broker_url": "broker=",
    "imports": "include=",
    "result_backend": "store=",
    "result_serializer": "not needed: results are JSON",
    "retry_kwargs": "max_retries= and default_retry_delay=",
    "serializer": "not needed: messages are JSON",
    "soft_time_limit": "timeout=, which raises in the task so that it can clean up",
    "task_acks_late": "always so",
    "task_default_queue": "default_queue=",
    "task_queues": "queues=",
    "task_serializer": "not needed: messages are JSON",
    "task_soft_time_limit": "timeout=, which raises in the task so that it can clean up",
    "task_time_limit": "timeout=",
    "throws": "Retry(never=…)",
    "timezone": "a trigger's own: cron(…, tz=…)",
    "worker_concurrency": "cloudq worker --concurrency",
}
"""What Celery's settings and options that have another name are here."""
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
_SWITCH: Final[Check] = (lambda value: isinstance(value, bool), "True or False")
_TIME: Final[Check] = (lambda value: value is not None and value > 0, "a time above 0 s")
_CHECKS: Final[Mapping[str, Check]] = {
    "default_queue": (_is_name, "the name of a queue"),
    "task_routes": (_are_routes, "a mapping from task name or pattern to a queue's name, or a function from name to name"),
    "retry": (lambda value: value is None or isinstance(value, Retry), "a Retry, as Retry(max_retries=3)"),
    "timeout": (lambda value: value is None or value > 0, "a time above 0 s, or None for no limit"),
    "result_expires": _TIME,
    "track_queued": (lambda value: value is None or isinstance(value, bool), "True, False or None"),
    "task_always_eager": _SWITCH,
    "send_timeout": _TIME,
    "after_commit": (lambda value: value is None or callable(value), "a function that takes a function, as transaction.on_commit"),
    "crash_cap": (lambda value: type(value) is int and value > 0, "a count of 1 or more"),
    "unknown_task_grace": (lambda value: value is not None, "a time"),
    "catch_up": (lambda value: value in ("latest", "all", "none"), '"latest", "all" or "none"'),
    "dead_letter_suffix": (_is_name, "what names of dead-letter queues end in"),
    "events": _SWITCH,
}
