"""cloudq: a task queue for people whose queue is a cloud service.

The names that user code needs are all here; the rest of the package is for those who write adapters and hosts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any as _Any

from cloudq import states
from cloudq.app import CloudQ
from cloudq.config import Config, Queue
from cloudq.errors import (
    ArgumentsError,
    BatchSendError,
    CloudQError,
    ConfigError,
    Ignore,
    Reject,
    ResultTimeout,
    SendUnknown,
    TaskExpired,
    TaskFailed,
    TaskRevoked,
    TimeLimitExceeded,
)
from cloudq.middleware import Middleware
from cloudq.request import Request
from cloudq.result import AsyncResult, GroupResult
from cloudq.retry import Retry
from cloudq.signature import Signature
from cloudq.task import Task, shared_task, task
from cloudq.workflow import Chain, Group, chain, chord, group

if TYPE_CHECKING:
    from cloudq.schedules import cron, crontab, every

__version__ = "0.1.0"


def _run_eagerly(*call: _Any) -> AsyncResult[_Any]:
    from cloudq import eager  # with the runner, which whoever only sends does not need

    return eager.run(*call)


def _run_canvas_eagerly(app: CloudQ, canvas: _Any) -> AsyncResult[_Any]:
    from cloudq import eager

    return eager.run_canvas(app, canvas)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> _Any:
        if name in {"cron", "crontab", "every"}:  # an app without schedules does not load them
            from cloudq import schedules

            return getattr(schedules, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


CloudQ.eager_host = staticmethod(_run_eagerly)
CloudQ.eager_canvas_host = staticmethod(_run_canvas_eagerly)

__all__ = [
    "ArgumentsError",
    "AsyncResult",
    "BatchSendError",
    "Chain",
    "CloudQ",
    "CloudQError",
    "Config",
    "ConfigError",
    "Group",
    "GroupResult",
    "Ignore",
    "Middleware",
    "Queue",
    "Reject",
    "Request",
    "ResultTimeout",
    "Retry",
    "SendUnknown",
    "Signature",
    "Task",
    "TaskExpired",
    "TaskFailed",
    "TaskRevoked",
    "TimeLimitExceeded",
    "chain",
    "chord",
    "cron",
    "crontab",
    "every",
    "group",
    "shared_task",
    "states",
    "task",
]
