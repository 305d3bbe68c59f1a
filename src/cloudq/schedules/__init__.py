"""When schedules fire: triggers, their texts, and their translation for the schedulers of the clouds. Pure: no I/O, no app."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cloudq.errors import CannotExpress
from cloudq.schedules.triggers import At, Cron, Every, at, cron, every

if TYPE_CHECKING:
    from cloudq.schedules.celery import crontab
    from cloudq.schedules.expressions import Expression
    from cloudq.schedules.parsing import parse
    from cloudq.schedules.to_cloud_scheduler import cloud_scheduler
    from cloudq.schedules.to_eventbridge import eventbridge
    from cloudq.timer import Trigger

__all__ = [
    "At",
    "CannotExpress",
    "Cron",
    "Every",
    "Expression",
    "Trigger",
    "at",
    "cloud_scheduler",
    "cron",
    "crontab",
    "eventbridge",
    "every",
    "parse",
]

_WHERE = {
    "Expression": "cloudq.schedules.expressions",
    "Trigger": "cloudq.timer",
    "cloud_scheduler": "cloudq.schedules.to_cloud_scheduler",
    "crontab": "cloudq.schedules.celery",
    "eventbridge": "cloudq.schedules.to_eventbridge",
    "parse": "cloudq.schedules.parsing",
}
"""What a cold start of an app that declares schedules does without."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _WHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_WHERE[name]), name)
        return found
