"""cloudq: a task queue for people whose queue is a cloud service.

The names that user code needs are all here; the rest of the package is for those who write adapters and hosts.
"""

from __future__ import annotations

from cloudq import eager as _eager
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
from cloudq.result import AsyncResult
from cloudq.retry import Retry
from cloudq.signature import Signature
from cloudq.task import Task, shared_task, task

__version__ = "0.1.0"

CloudQ.eager_host = staticmethod(_eager.run)

__all__ = [
    "ArgumentsError",
    "AsyncResult",
    "BatchSendError",
    "CloudQ",
    "CloudQError",
    "Config",
    "ConfigError",
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
    "shared_task",
    "states",
    "task",
]
