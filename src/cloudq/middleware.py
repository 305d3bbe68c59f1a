"""Hooks around sending and running, as a class to override; the methods read like a list of what happens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cloudq.message import Message
    from cloudq.outcome import Again, Dead, Outcome
    from cloudq.request import Request

logger = logging.getLogger("cloudq")

FAULTS: Final = (Exception, SystemExit, KeyboardInterrupt)
"""What an app's own code may raise of itself: none of it may end a thread or a loop of ours."""


class Middleware:
    """Override what you need; the rest costs nothing. Hooks are sync and run where the task's own code runs, never on the I/O thread.

    An error in ``before_send`` is the caller's, one in ``before_run`` fails that run as if the task had raised it; in
    the others it is logged and goes no further.
    """

    def before_send(self, message: Message, queue: str) -> Message:
        """Return the message to send: this one, or ``message.copy(headers={…})``."""
        return message

    def after_send(self, message: Message, queue: str) -> None:
        """The broker has durably accepted it."""

    def before_run(self, request: Request) -> None:
        """A task is about to run, in this thread or on this loop."""

    def after_run(self, request: Request, outcome: Outcome) -> None:
        """It ran, and came to ``outcome``, which is not durable yet."""

    def on_retry(self, request: Request, outcome: Again) -> None:
        """It failed and will run again."""

    def on_dead(self, message: Message | None, queue: str, outcome: Dead) -> None:
        """A message goes to the dead-letter queue; ``message`` is ``None`` where it could not be read."""


_NAMES: Final = ("before_send", "after_send", "before_run", "after_run", "on_retry", "on_dead")
Hook = Callable[..., Any]


class Hooks:
    """The overridden methods of some middleware, by name: an empty tuple is a hook that costs one truth test."""

    __slots__ = ("after_run", "after_send", "before_run", "before_send", "on_dead", "on_retry")

    before_send: tuple[Hook, ...]
    after_send: tuple[Hook, ...]
    before_run: tuple[Hook, ...]
    after_run: tuple[Hook, ...]
    on_retry: tuple[Hook, ...]
    on_dead: tuple[Hook, ...]

    def __init__(self, middleware: Iterable[Middleware]) -> None:
        stack = list(middleware)
        for name in _NAMES:
            plain = getattr(Middleware, name)
            setattr(self, name, tuple(getattr(each, name) for each in stack if getattr(type(each), name) is not plain))


def call_quietly(hooks: tuple[Hook, ...], *args: object) -> None:
    """Call hooks whose errors must not change what happens: they are logged. Only Ctrl-C, which is the main thread's, goes through."""
    for hook in hooks:
        try:
            hook(*args)
        except FAULTS as error:
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise
            logger.exception("the middleware hook %s failed", getattr(hook, "__qualname__", hook))
