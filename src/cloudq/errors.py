"""Every error that cloudq raises, one tree.

CloudQError
├── ConfigError                 the app, a task or a URL is set up wrongly; fix the code or the setting
│   ├── AdapterMissing          no installed adapter serves a URL's scheme; the message holds the pip command
│   ├── DuplicateTask           two different functions claim one task name
│   ├── NotBound                a task without an app was called
│   ├── StoreRequired           what was asked needs a store, and the app has none
│   └── CannotExpress           a trigger that a provider's scheduler cannot keep exactly
├── CallError                   refused at the call; nothing was sent
│   ├── ArgumentsError          (also TypeError) arguments do not fit the signature or cannot travel as JSON
│   ├── MessageTooLarge         (also ValueError) the encoded message is over the broker's limit
│   ├── DelayError              (also ValueError) no broker or timer here can hold the message that long
│   ├── UnknownSchedule         (also KeyError) no schedule of that name is declared
│   └── UnknownTask             (also KeyError) no task of that name is registered
├── DecodeError                 a body is no message of a version that this cloudq reads
├── SeamError                   a broker, store, timer or key service answered with an error
│   ├── BrokerError
│   │   ├── BrokerUnavailable   (also ConnectionError) it could not be reached
│   │   ├── QueueNotFound       (also LookupError) it has no such queue
│   │   ├── SendError           it refused one entry of a batch
│   │   │   └── EntryTooLarge   (also MessageTooLarge) for its size
│   │   └── SettleError         it could not ack or extend one delivery
│   │       └── LeaseLost       the lease has ended: somebody else may hold the message
│   ├── StoreError
│   │   ├── StoreUnavailable    (also ConnectionError) it could not be reached
│   │   ├── Conflict            a compare-and-set found another version
│   │   └── DocumentTooLarge    (also ValueError) the value is over the store's limit
│   ├── TimerError
│   │   └── TimerUnavailable    (also ConnectionError) it could not be reached, or takes no more just now
│   └── KeysError               a key service refused to make or unwrap a key
│       └── KeysUnavailable     (also ConnectionError) it could not be reached
├── SendUnknown                 (also TimeoutError) the broker did not answer in time: the message may or may not be there
├── BatchSendError              some of many messages were refused; holds which, and the results of the others
├── Closed                      (also RuntimeError) the app's I/O has ended, or it was called from the I/O thread itself
├── ResultError                 asked of a result
│   ├── ResultTimeout           (also TimeoutError) no result within the time given
│   └── TaskFailed              the task ended in FAILURE or DEAD; holds the type's name, the message and the traceback
│       ├── TaskRevoked         it was revoked before it ended
│       └── TaskExpired         it expired before it started
└── Control                     raised by a task to steer its own outcome
    ├── RetryRequested          what ``self.retry()`` raises
    ├── Ignore                  end here; record no result
    ├── Reject                  do not retry: to the dead-letter queue
    └── TimeLimitExceeded       (also TimeoutError) the task ran over its time limit

Messages say what was tried, what was wrong and what to do. None holds a payload.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from cloudq.store import Document


class CloudQError(Exception):
    """The root: ``except CloudQError`` catches whatever cloudq raises on purpose."""


class ConfigError(CloudQError):
    """The app, a task or a URL is set up wrongly."""


class AdapterMissing(ConfigError):
    """No installed adapter serves a URL's scheme."""


class DuplicateTask(ConfigError):
    """Two different functions claim one task name."""


class NotBound(ConfigError):
    """A task without an app was called; ``app.include(module)`` binds it."""


class StoreRequired(ConfigError):
    """What was asked needs a store, and the app has none."""


class CannotExpress(ConfigError):
    """A provider's scheduler cannot keep a trigger exactly. ``nearest`` is the text of one near it that can be kept, if there is one."""

    def __init__(self, trigger: str, service: str, reason: str, *, nearest: str | None) -> None:
        hint = f"; the nearest that can: {nearest}" if nearest is not None else ""
        super().__init__(f"{service} cannot keep {trigger}: {reason}{hint}")
        self.nearest = nearest


class CallError(CloudQError):
    """Refused at the call; nothing was sent."""


class ArgumentsError(CallError, TypeError):
    """Arguments do not fit the task's signature, or cannot travel as JSON.

    ``task`` is the task's name; ``parameter`` the parameter's, or ``None`` where the call as a whole does not fit.
    """

    def __init__(self, message: str, *, task: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.task = task
        self.parameter = parameter


class MessageTooLarge(CallError, ValueError):
    """The encoded message is over the broker's limit (bytes)."""


class DelayError(CallError, ValueError):
    """Neither the broker nor the timer can hold the message that long."""


class UnknownSchedule(CallError, KeyError):
    """No schedule of that name is declared."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class UnknownTask(CallError, KeyError):
    """No task of that name is registered."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class DecodeError(CloudQError):
    """A body is no message of a version that this cloudq reads.

    ``newer`` is true where the body names a protocol version above ours: a newer worker may read it.
    """

    def __init__(self, message: str, *, newer: bool = False) -> None:
        super().__init__(message)
        self.newer = newer


class SeamError(CloudQError):
    """A broker, store, timer or key service answered with an error."""


class BrokerError(SeamError):
    """A broker answered with an error."""


class BrokerUnavailable(BrokerError, ConnectionError):
    """The broker could not be reached; trying again may help."""


class QueueNotFound(BrokerError, LookupError):
    """The broker has no such queue, or does not let us see it."""


class SendError(BrokerError):
    """The broker refused one entry. ``retryable``: the same entry may be taken later. ``code``: the provider's own."""

    def __init__(self, message: str, *, retryable: bool = False, code: str = "") -> None:
        super().__init__(message)
        self.retryable = retryable
        self.code = code


class EntryTooLarge(SendError, MessageTooLarge):
    """The broker refused one entry for its size: its queue takes less, or takes it only with a place for large bodies."""


class SettleError(BrokerError):
    """The broker could not ack or extend one delivery. ``retryable`` and ``code`` as in SendError."""

    def __init__(self, message: str, *, retryable: bool = False, code: str = "") -> None:
        super().__init__(message)
        self.retryable = retryable
        self.code = code


class LeaseLost(SettleError):
    """The lease has ended: somebody else may hold the message now."""


class StoreError(SeamError):
    """A store answered with an error."""


class StoreUnavailable(StoreError, ConnectionError):
    """The store could not be reached; trying again may help."""


class Conflict(StoreError):
    """A compare-and-set found another version. ``current`` is the document found, ``None`` where there is none."""

    def __init__(self, message: str, *, current: Document | None) -> None:
        super().__init__(message)
        self.current = current


class DocumentTooLarge(StoreError, ValueError):
    """A value is over the store's limit (bytes)."""


class TimerError(SeamError):
    """A timer answered with an error."""


class TimerUnavailable(TimerError, ConnectionError):
    """The timer could not be reached, or takes no more just now; trying again may help."""


class KeysError(SeamError):
    """A key service refused to make or unwrap a data key."""


class KeysUnavailable(KeysError, ConnectionError):
    """The key service could not be reached; trying again may help."""


class SendUnknown(CloudQError, TimeoutError):
    """The broker did not answer in time, or before the app was closed: the message may or may not be there.

    ``task_id`` is the call's id. Sending again with ``task_id=`` reuses it, so that with a store the task runs once.
    """

    def __init__(self, message: str, *, task_id: str) -> None:
        super().__init__(message)
        self.task_id = task_id


class BatchSendError(CloudQError):
    """Some of many messages were not accepted.

    ``failed`` maps the index of each message that was not accepted to its error; ``results`` holds one AsyncResult a
    message, in order, also for those.
    """

    def __init__(self, message: str, *, failed: Mapping[int, Exception], results: Sequence[Any]) -> None:
        super().__init__(message)
        self.failed = failed
        self.results = results


class Closed(CloudQError, RuntimeError):
    """The app's I/O has ended, or it was called from the I/O thread itself."""


class ResultError(CloudQError):
    """Asked of a result."""


class ResultTimeout(ResultError, TimeoutError):
    """No result within the time given; the task may still end."""


class TaskFailed(ResultError):
    """The task ended without a value.

    ``type`` is the name of the exception's class in the worker, ``detail`` its message, ``traceback`` its text. The
    exception itself does not travel: nothing in a message or a result is ever unpickled.
    """

    def __init__(self, type: str, detail: str, *, task_id: str, traceback: str = "") -> None:
        super().__init__(f"{type}: {detail}" if detail else type)
        self.type = type
        self.detail = detail
        self.task_id = task_id
        self.traceback = traceback


class TaskRevoked(TaskFailed):
    """The task was revoked before it ended."""


class TaskExpired(TaskFailed):
    """The task expired before it started."""


class Control(CloudQError):
    """Raised by a task to steer its own outcome."""


class RetryRequested(Control):
    """What ``self.retry()`` raises: run this task again after ``delay`` seconds (``None``: as its Retry says)."""

    def __init__(self, message: str, *, delay: float | None = None, max_retries: int | None = None) -> None:
        super().__init__(message)
        self.delay = delay
        self.max_retries = max_retries


class Ignore(Control):
    """End here; record no result."""


class Reject(Control):
    """Do not retry: to the dead-letter queue. ``Reject("reason")``."""


class TimeLimitExceeded(Control, TimeoutError):
    """The task ran over its time limit."""


class KeyWanted(Exception):
    """Not raised to callers. A key is not at hand: await ``fetch()`` on the I/O loop and try again."""

    def __init__(self, fetch: Callable[[], Coroutine[Any, Any, None]]) -> None:
        super().__init__()
        self.fetch = fetch
