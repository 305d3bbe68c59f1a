"""What a running task can know of its own run: ``task.request``, and the context that carries it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from cloudq.message import Message


@dataclass(slots=True, eq=False, repr=False)
class Request:
    """One run of a task."""

    message: Message
    queue: str
    args: Sequence[Any]
    """As the task gets them: decoded by its type hints."""
    kwargs: Mapping[str, Any]
    receives: int = 0
    """How often the broker delivered the message; 0 where it does not say."""
    deadline: float | None = None
    """When the time limit ends this run (Unix time, seconds)."""
    is_eager: bool = False
    progressed: float = -math.inf
    """When a count was last recorded (monotonic seconds)."""
    report: Callable[[str, Any], None] | None = None
    """Records progress: ``report(state, meta)``; ``None`` where no store keeps it."""

    @property
    def id(self) -> str:
        """The task id."""
        return self.message.id

    @property
    def task(self) -> str:
        """The task's name."""
        return self.message.task

    @property
    def retries(self) -> int:
        """0 in the first run."""
        return self.message.retries

    @property
    def attempt(self) -> int:
        """0 in the first run; unlike ``retries`` it goes on counting after a redrive."""
        return self.message.attempt

    @property
    def root_id(self) -> str:
        """The id of the call that began the workflow."""
        return self.message.root

    @property
    def parent_id(self) -> str | None:
        """The id of the task that made this call."""
        return self.message.parent

    @property
    def headers(self) -> Mapping[str, Any]:
        """What the caller sent beside the arguments."""
        return self.message.headers


class Run(Protocol):
    """What the context carries: the run itself. Its request is made when somebody asks, as most tasks never do."""

    @property
    def message(self) -> Message | None: ...
    @property
    def request(self) -> Request | None: ...


current: ContextVar[Run | None] = ContextVar("cloudq_run", default=None)
"""The run that the calling code belongs to; ``None`` outside of tasks."""
