"""Celery's signals, on top of the middleware hooks: ``@task_prerun.connect``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from cloudq import outcome as outcomes
from cloudq.middleware import Middleware, call_quietly

if TYPE_CHECKING:
    from cloudq.message import Message
    from cloudq.outcome import Again, Dead, Outcome
    from cloudq.request import Request

Receiver = TypeVar("Receiver", bound=Callable[..., Any])

epoch: int = 0
"""Counts connects and disconnects, so that apps notice that hooks have changed."""


class Signal:
    """Receivers, each called with ``sender=`` and the signal's own keywords; they take ``**kwargs`` to stay compatible."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.receivers: list[tuple[Callable[..., Any], str | None]] = []

    def __repr__(self) -> str:
        return f"<Signal {self.name}>"

    @overload
    def connect(self, receiver: Receiver, *, sender: object = None) -> Receiver: ...
    @overload
    def connect(self, receiver: None = None, *, sender: object = None) -> Callable[[Receiver], Receiver]: ...
    def connect(self, receiver: Callable[..., Any] | None = None, *, sender: object = None) -> Any:
        """Connect a function, as a decorator or not; ``sender`` (a task or its name) limits it to that task. Held strongly."""

        def add(function: Receiver) -> Receiver:
            global epoch
            self.receivers.append((function, None if sender is None else getattr(sender, "name", str(sender))))
            epoch += 1
            return function

        return add if receiver is None else add(receiver)

    def disconnect(self, receiver: Callable[..., Any]) -> bool:
        """Take a receiver out; false where it was not connected."""
        global epoch
        left = [entry for entry in self.receivers if entry[0] != receiver]
        found = len(left) < len(self.receivers)
        self.receivers = left
        epoch += 1
        return found

    def send(self, sender: str, **keywords: object) -> None:
        """Call the receivers; their errors are logged."""
        for receiver, only in list(self.receivers):
            if only is None or only == sender:
                call_quietly((_bind(receiver, sender, keywords),))


def _bind(receiver: Callable[..., Any], sender: str, keywords: dict[str, object]) -> Callable[[], Any]:
    def call() -> Any:
        return receiver(sender=sender, **keywords)

    call.__qualname__ = getattr(receiver, "__qualname__", repr(receiver))
    return call


before_task_publish = Signal("before_task_publish")
after_task_publish = Signal("after_task_publish")
task_prerun = Signal("task_prerun")
task_postrun = Signal("task_postrun")
task_success = Signal("task_success")
task_failure = Signal("task_failure")
task_retry = Signal("task_retry")
worker_ready = Signal("worker_ready")
worker_shutdown = Signal("worker_shutdown")

_ALL = (before_task_publish, after_task_publish, task_prerun, task_postrun, task_success, task_failure, task_retry)


def connected() -> bool:
    """Whether any signal of a task has a receiver."""
    return any(signal.receivers for signal in _ALL)


class SignalMiddleware(Middleware):
    """Turns hooks into signals; an app adds it once a signal has a receiver."""

    def before_send(self, message: Message, queue: str) -> Message:
        before_task_publish.send(message.task, task_id=message.id, headers=message.headers, routing_key=queue)
        return message

    def after_send(self, message: Message, queue: str) -> None:
        after_task_publish.send(message.task, task_id=message.id, headers=message.headers, routing_key=queue)

    def before_run(self, request: Request) -> None:
        task_prerun.send(request.task, task_id=request.id, task=request.task, args=request.args, kwargs=request.kwargs)

    def after_run(self, request: Request, outcome: Outcome) -> None:
        value = outcome.value if isinstance(outcome, outcomes.Done) else None
        common = {"task_id": request.id, "task": request.task, "args": request.args, "kwargs": request.kwargs}
        if isinstance(outcome, outcomes.Done):
            task_success.send(request.task, task_id=request.id, result=value)
        elif isinstance(outcome, outcomes.Dead):
            task_failure.send(request.task, **common, reason=outcome.reason, failure=outcome.error)
        task_postrun.send(request.task, **common, retval=value, state=type(outcome).__name__)

    def on_retry(self, request: Request, outcome: Again) -> None:
        task_retry.send(request.task, request=request, reason=outcome.error.detail, failure=outcome.error)

    def on_dead(self, message: Message | None, queue: str, outcome: Dead) -> None:
        """``after_run`` has told of failures of tasks that ran; messages that never ran have no sender to tell."""


__all__ = [
    "Signal",
    "after_task_publish",
    "before_task_publish",
    "task_failure",
    "task_postrun",
    "task_prerun",
    "task_retry",
    "task_success",
    "worker_ready",
    "worker_shutdown",
]
