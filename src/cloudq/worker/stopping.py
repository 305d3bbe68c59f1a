"""Ends a sync task in its thread: an exception is raised inside the run, and can hit nothing but the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from cloudq.outcome import Outcome
from cloudq.runner import Job, Revoked, Runner, revoked

PAUSE: Final = 0.0005
"""Seconds between looks whether the one who ends the run has done so."""


class Stop:
    """The means to end one run in one thread, once.

    Who takes the token decides: the thread, when the run is over, so that nothing is raised in it any more; or who asks for the end.
    In that case the exception is sure to be raised, and the thread does not leave the run before it was, or was taken back.
    """

    __slots__ = ("_sent", "_thread", "_token")

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._token = [True]  # list.pop is one step, which a lock's block is not where exceptions come from outside
        self._sent = False

    def __call__(self) -> None:
        """Raise Revoked in the thread at its next bytecode (a call into C is not interrupted), unless the run is over; from any other."""
        try:
            self._token.pop()
        except IndexError:
            return
        _raise_in(self._thread, Revoked)
        self._sent = True

    def leave(self) -> None:
        """The run is over, in its thread: from here on nothing is raised; may itself raise Revoked."""
        try:
            self._token.pop()
        except IndexError:
            while not self._sent:
                time.sleep(PAUSE)
            _raise_in(self._thread, None)


def run(runner: Runner, job: Job, began: Callable[[Stop], None]) -> Outcome:
    """Run a sync task in the calling thread; ``began`` is told by what to end it. Set ``job.revoked`` before that is called."""
    outcome: Outcome | None = None
    stop = Stop()
    try:
        began(stop)
        if not job.revoked:
            outcome = runner.run_isolated(job)
        stop.leave()
    except Revoked:  # at most once, so nothing comes after it
        pass
    return revoked() if outcome is None else outcome


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    """Have ``kind`` raised in a thread, or with ``None`` what was to be raised there not raised any more."""
    import ctypes  # which few processes ever need

    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None if kind is None else ctypes.py_object(kind))
