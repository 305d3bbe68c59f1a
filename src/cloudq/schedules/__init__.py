"""When schedules fire: triggers, their texts, and their translation for the schedulers of the clouds. Pure: no I/O, no app."""

from __future__ import annotations

from cloudq.errors import CannotExpress
from cloudq.schedules.celery import crontab
from cloudq.schedules.expressions import Expression
from cloudq.schedules.parsing import parse
from cloudq.schedules.to_cloud_scheduler import cloud_scheduler
from cloudq.schedules.to_eventbridge import eventbridge
from cloudq.schedules.triggers import At, Cron, Every, at, cron, every
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
