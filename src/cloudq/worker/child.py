"""A child process of a worker: runs one task at a time, and ends when its parent does."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from io import TextIOWrapper
from types import FrameType
from typing import Any, Final

from cloudq import logs
from cloudq.app import CloudQ
from cloudq.broker import Delivery
from cloudq.errors import ConfigError
from cloudq.loading import load_app
from cloudq.outcome import Outcome
from cloudq.runner import Job, Runner
from cloudq.worker import frames, stopping

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG: Final = 1
PATIENCE: Final = 2.0
"""Seconds that the interpreter has to end in good order."""


class Child:
    """The child's side of the connection: a thread listens, the main thread runs tasks."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._tasks: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._busy = True
        self._run = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._revoked = 0
        """The run that the parent last wanted to end."""
        self._end: tuple[int, Job, Callable[[], object]] | None = None
        """The present run, and what ends it."""

    def serve(self) -> None:
        """Load the app, then run what comes, until the parent closes the connection or dies."""
        threading.Thread(target=self._listen, name="cloudq-parent", daemon=True).start()
        hello = self._tasks.get()
        if hello is None:
            return
        try:
            app = _load(hello)
        except BaseException as error:
            if not isinstance(error, ConfigError) or error.__cause__ is not None:
                traceback.print_exception(error)
            self._send({"failed": str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"})
            return
        runner = Runner(app)
        self._busy = False
        self._send({"ready": list(app.tasks)})
        while (frame := self._tasks.get()) is not None:
            self._perform(runner, frame)
        if self._loop is not None:
            self._loop.close()

    def _perform(self, runner: Runner, frame: dict[str, Any]) -> None:
        run = self._run = frame["run"]
        delivery = Delivery(
            queue=frame["queue"],
            body=frame["body"],
            receipt=None,
            receives=frame["receives"],
            sent=frame["sent"],
            group=frame["group"],
        )
        job = runner.admit(delivery, trusted=True)  # the parent has seen to that
        outcome = job.outcome
        if outcome is not None:  # since the worker looked it has expired, or a deploy has changed the code
            runner.notify(job, outcome)
        else:
            assert job.task is not None and job.request is not None
            job.recorded, job.given = frame["recorded"], frame["given"]
            if frame["reports"]:
                job.request.report = lambda state, meta: self._report(run, state, meta)
            if job.task.is_async:
                self._loop = self._loop or asyncio.new_event_loop()
                outcome = self._loop.run_until_complete(self._arun(runner, job, run))
            else:
                outcome = stopping.run(runner, job, lambda stop: self._began(run, job, stop))
        self._busy = False
        self._send({"run": run, "outcome": frames.pack(outcome)})

    async def _arun(self, runner: Runner, job: Job, run: int) -> Outcome:
        task, loop = asyncio.ensure_future(runner.arun(job)), asyncio.get_running_loop()
        self._began(run, job, lambda: loop.call_soon_threadsafe(task.cancel))
        if job.revoked:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError as error:  # it was ended before it began, or the task has cancelled itself
            return runner.failed(job, error)

    def _began(self, run: int, job: Job, end: Callable[[], object]) -> None:
        self._end = run, job, end
        if self._revoked == run:  # in this order, and the listener's is the reverse: one of both sees the other
            job.revoked = True

    def _revoke(self, run: int) -> None:
        self._revoked = run
        if (known := self._end) is not None and known[0] == run:
            _, job, end = known
            job.revoked = True
            end()

    def _report(self, run: int, state: str, meta: Any) -> None:
        if run == self._run:  # not from a thread that outlived its task
            self._send({"run": run, "progress": state, "meta": meta})

    def _send(self, frame: dict[str, Any]) -> None:
        data = frames.encode(frame)
        with self._sending, contextlib.suppress(OSError):  # the parent is gone, and the listener ends this process
            self._connection.sendall(data)

    def _listen(self) -> None:
        """Take frames; at the end of the connection end the process, at once if a task runs: nobody waits for it any more."""
        run = 0  # the first frame is no task
        try:
            while (data := frames.receive(self._connection)) is not None:
                if data.startswith(frames.REVOKE):
                    self._revoke(frames.decode(data)["revoke"])
                    continue
                self._busy = True
                if run:
                    self._send({"begun": run})  # before it is read: if that kills the process, it is this task's doing
                self._tasks.put(frames.decode(data))
                run += 1
        except OSError:
            pass  # the parent is gone
        except BaseException:  # no memory left for it
            os._exit(1)
        if not self._busy:
            self._tasks.put(None)
            time.sleep(PATIENCE)
        os._exit(1)


def _load(hello: dict[str, Any]) -> CloudQ:
    sys.path[:] = hello["path"]
    form, level = hello["log"]
    if form in ("plain", "json"):
        logs.configure(form, level)
    app = load_app(hello["app"])
    app.load()
    if form is not None and not logging.getLogger().handlers:  # the app's module has not configured it either
        logs.configure("plain", level)
    return app


def _carry_on(number: int, frame: FrameType | None) -> None:
    """The parent decides when a child ends. Not SIG_IGN, which programs that a task starts would inherit."""


def _die_with_parent() -> None:
    """Be killed when the parent dies, also inside a C call that lets no thread run; beside Linux the connection's end must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Serve on the socket whose descriptor is the first argument."""
    for number in _SIGNALS:
        signal.signal(number, _carry_on)
    _die_with_parent()
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)

    def let_go() -> None:
        """In a process that a task forks: signals end it as they would any, and the connection is none of its business."""
        connection.close()
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    os.register_at_fork(after_in_child=let_go)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # what a task printed is not lost when its process is killed
    Child(connection).serve()


if __name__ == "__main__":
    main()
