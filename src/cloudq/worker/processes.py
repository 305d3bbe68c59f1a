"""Runs tasks in child processes, one at a time in each: whatever a task does to its process, it does to itself alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final

from cloudq import logs
from cloudq.errors import ConfigError
from cloudq.loading import reference_of
from cloudq.outcome import Dead, Later, Outcome
from cloudq.runner import Job, Runner, revoked
from cloudq.worker import frames
from cloudq.worker.flight import Complete, Flight

logger = logging.getLogger("cloudq.worker")

REVOKE_GRACE: Final = 5.0
"""Seconds that a revoked task has to end before its process is killed."""
ASYNC_GRACE: Final = 1.0
"""Seconds that an async task has to obey its cancellation before its process is killed."""
PATIENCE: Final = 2.0
"""Seconds that an idle child has to end before it is killed."""
SLOW_START: Final = 30.0
"""Seconds of loading after which the log says what is waited for."""
MAX_PAUSE: Final = 30.0
"""Seconds at most between tries to start a child."""


@dataclass(slots=True, eq=False)
class _Child:
    """A process and what it is doing."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    tasks: frozenset[str] = frozenset()
    """Those that its app has."""
    flight: Flight | None = None
    run: int = 0
    """How many tasks it was given; also names the present one."""
    begun: bool = False
    """It has the present task: from here on its death counts as the task's doing."""
    useful: bool = False
    """It has got as far as beginning a task."""
    overran: bool = False
    abandoned: bool = False
    limit: asyncio.TimerHandle | None = None
    ending: asyncio.TimerHandle | None = None
    """Kills it where a revoked task does not end."""

    def send(self, frame: dict[str, Any]) -> None:
        self.writer.write(frames.encode(frame))

    def kill(self) -> None:
        """End it at once, and the programs that its task has started."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def overrun(self) -> None:
        self.overran = True
        self.kill()

    def forget(self) -> Flight | None:
        """Let go of the present flight."""
        flight, self.flight = self.flight, None
        for alarm in (self.limit, self.ending):
            if alarm is not None:
                alarm.cancel()
        return flight


class ProcessExecutor:
    """``count`` children, each replaced when it dies and after ``max_tasks`` tasks. For one event loop.

    A child is a fresh interpreter that loads the app by its name, never a fork of this process with its threads.
    """

    def __init__(self, runner: Runner, count: int, complete: Complete, *, max_tasks: int | None = None) -> None:
        self._runner = runner
        self._count = count
        self._complete = complete
        self._max_tasks = max_tasks
        self._waiting: deque[Flight] = deque()
        self._children: set[_Child] = set()
        self._idle: list[_Child] = []
        self._closing = False
        self._keepers: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[None]] = set()
        self._hello: dict[str, Any] = {}

    async def start(self) -> None:
        """Start the children, all at once, and return when all have loaded the app; raises ConfigError where one could not."""
        app = self._runner.app
        main = sys.modules["__main__"].__spec__
        if main is not None and main.name == "cloudq.worker.child":
            raise ConfigError("the app's module starts a worker while it is imported: put that under if __name__ == '__main__':")
        if app.broker.limits.local:
            raise ConfigError(
                "with --processes the broker must be one that other processes reach too; a memory:// broker is in this one alone"
            )
        self._hello = {"app": reference_of(app), "path": [str(entry) for entry in sys.path], "log": _logging()}
        spawning = [asyncio.ensure_future(self._spawn()) for _ in range(self._count)]
        try:
            started = await asyncio.gather(*spawning, return_exceptions=True)
        except asyncio.CancelledError:  # the worker stops while they load
            await asyncio.gather(*(self._end(each.result()) for each in spawning if not each.cancelled() and each.exception() is None))
            raise
        children = [child for child in started if isinstance(child, _Child)]
        failure: BaseException | None = next((each for each in started if isinstance(each, BaseException)), None)
        if missing := sorted({name for child in children for name in app.tasks.keys() - child.tasks}):
            failure = ConfigError(
                f"a child process that loads {self._hello['app']} does not get the task {', '.join(missing)}:"
                " name the module that makes it in CloudQ(include=[…])"
            )
        if failure is not None:
            await asyncio.gather(*(self._end(child) for child in children))
            raise failure
        self._keepers = [self._begin(self._keep(child)) for child in children]
        await asyncio.sleep(0)  # so that each has its keeper, whatever is called next

    def submit(self, flight: Flight) -> None:
        self._waiting.append(flight)
        self._hand_out()

    def withdraw(self) -> list[Flight]:
        taken = list(self._waiting)
        self._waiting.clear()
        return taken

    def revoke(self, flight: Flight) -> None:
        """Ask the child to end its task, and kill it where that takes too long."""
        if flight in self._waiting:
            self._waiting.remove(flight)
            self._complete(flight, revoked())
            return
        for child in self._children:
            if child.flight is flight:
                child.send({"revoke": child.run})
                child.ending = asyncio.get_running_loop().call_later(REVOKE_GRACE, child.kill)

    def cancel(self) -> None:
        """Kill what runs, for good: it is replaced by nothing."""
        self._closing = True
        for child in self._children:
            if child.flight is not None:
                child.abandoned = True
                child.kill()

    def close(self) -> None:
        self._closing = True
        for keeper in self._keepers:
            keeper.cancel()

    async def wait_closed(self) -> None:
        """After ``close``: wait, a few seconds at most, until every child has ended."""
        while self._background:
            await asyncio.wait(self._background)

    # ------------------------------------------------------------------ a child's life

    def _begin(self, call: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(call)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _keep(self, child: _Child) -> None:
        """Keep one place filled: serve a child to its end, start the next."""
        failures = 0
        while True:
            await self._serve(child)
            failures = 0 if child.useful else failures + 1  # its successor may come to no more
            while True:
                if self._closing:
                    return
                if failures:
                    await asyncio.sleep(min(MAX_PAUSE, 0.25 * 2**failures))
                try:
                    child = await self._spawn()
                except Exception as error:
                    failures += 1
                    logger.error("a child process could not be started (%d times now): %s", failures, error)
                    self._put_off()
                else:
                    break

    def _put_off(self) -> None:
        """With no child left, let other workers have what waits here."""
        if not self._children:
            for flight in self.withdraw():
                self._complete(flight, Later(MAX_PAUSE, "this worker's child processes do not start"))

    async def _spawn(self) -> _Child:
        """Start a child that has loaded the app; raises ConfigError if it does not come to that."""
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *("-m", "cloudq.worker.child", str(theirs.fileno())),
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    process_group=0,  # the terminal's Ctrl-C is for the worker; and the group can be killed with the task's own programs
                )
            except BaseException:
                writer.close()
                raise
        child = _Child(process, reader, writer)
        try:
            child.send(self._hello)
            hello = await self._first_word(child)
            if "failed" in hello:
                raise ConfigError(f"a child process cannot load {self._hello['app']}: {hello['failed']}")
            child.tasks = frozenset(hello["ready"])
        except (EOFError, OSError):
            await self._end(child)
            raise ConfigError(f"a child process {_how(child)} while it was loading {self._hello['app']}") from None
        except BaseException:
            child.kill()
            await self._end(child)
            raise
        return child

    async def _first_word(self, child: _Child) -> dict[str, Any]:
        reading = asyncio.ensure_future(frames.read(child.reader))
        began = time.monotonic()
        try:
            while not (await asyncio.wait([reading], timeout=SLOW_START))[0]:
                logger.warning("child process %d has been loading the app for %.0f s", child.process.pid, time.monotonic() - began)
            return reading.result()
        finally:
            reading.cancel()

    async def _serve(self, child: _Child) -> None:
        """Give a child tasks until it dies, is worn out, or this executor closes."""
        self._children.add(child)
        self._idle.append(child)
        self._hand_out()
        listening = asyncio.ensure_future(self._listen(child))
        exited = asyncio.ensure_future(child.process.wait())  # the connection may outlive it, in a process that a task forked
        try:
            await asyncio.wait([listening, exited], return_when=asyncio.FIRST_COMPLETED)
            self._rest(child)
            if listening.done() and listening.result():
                _ = self._begin(self._end(child))
                return
            await asyncio.wait([listening, exited], timeout=1.0)  # the other follows: its last words, or its status
            child.kill()
            await self._bury(child)
        except asyncio.CancelledError:
            if child.flight is not None:
                child.kill()
            await self._end(child)
            raise
        finally:
            listening.cancel()
            exited.cancel()
            self._rest(child)
            self._children.discard(child)

    def _rest(self, child: _Child) -> None:
        """Give it nothing more to do."""
        if child in self._idle:
            self._idle.remove(child)

    async def _listen(self, child: _Child) -> bool:
        """Hear a child out; returns whether it is worn out, rather than gone."""
        while True:
            try:
                frame = await frames.read(child.reader)
            except (EOFError, OSError, ValueError) as error:
                if isinstance(error, ValueError):
                    logger.error(
                        "child process %d sends what no child does: its task writes to files that are not its own", child.process.pid
                    )
                return False
            flight = child.flight
            if flight is None or frame.get("run", frame.get("begun")) != child.run:
                continue  # progress of a task that has ended
            if "begun" in frame:
                child.begun = child.useful = True
            elif "progress" in frame:
                request = flight.job.request
                if request is not None and request.report is not None:
                    request.report(frame["progress"], frame["meta"])
            else:
                child.forget()
                self._complete(flight, frames.unpack(frame["outcome"]))
                if self._max_tasks is not None and child.run >= self._max_tasks:
                    return True
                self._idle.append(child)
                self._hand_out()

    async def _bury(self, child: _Child) -> None:
        """A child has died: say what that means for its task."""
        await child.process.wait()
        child.writer.close()
        flight = child.forget()
        how = _how(child)
        if flight is None:
            logger.warning("idle child process %d %s; it is replaced", child.process.pid, how)
        elif child.abandoned:
            logger.info("%s was ended with its process", flight.job.label)
        elif flight.job.revoked:
            self._complete(flight, revoked())
        elif not child.begun and not child.overran:
            flight.started = False
            self._waiting.appendleft(flight)
            self._hand_out()
        else:
            if not child.overran:
                logger.error("%s: its process %d %s", flight.job.label, child.process.pid, how)
            outcome = await asyncio.to_thread(self._post_mortem, flight.job, None if child.overran else f"the child process {how}")
            self._complete(flight, outcome)

    def _post_mortem(self, job: Job, how: str | None) -> Outcome:
        """What a death comes to; in a thread, as it may ask the user's code."""
        outcome = self._runner.timed_out(job) if how is None else self._runner.crashed(job, how)
        self._runner.notify(job, outcome)
        return outcome

    async def _end(self, child: _Child) -> None:
        """Let a child end by itself: it does once the connection closes."""
        child.writer.close()
        try:
            async with asyncio.timeout(PATIENCE):
                await child.process.wait()
        except TimeoutError:
            child.kill()
            await child.process.wait()
        finally:
            child.kill()

    # ------------------------------------------------------------------ work

    def _hand_out(self) -> None:
        while self._idle and self._waiting:
            flight = self._waiting.popleft()
            try:
                task = _frame(flight.job, self._idle[-1].run + 1)
            except (ValueError, RecursionError) as error:  # it could be read and cannot be written: 1e999, nesting at Python's limit
                _ = self._begin(self._refuse(flight, Dead(f"it cannot be handed to a child process: {error}")))
            else:
                self._give(self._idle.pop(), flight, task)

    async def _refuse(self, flight: Flight, outcome: Dead) -> None:
        await asyncio.to_thread(self._runner.notify, flight.job, outcome)
        self._complete(flight, outcome)

    def _give(self, child: _Child, flight: Flight, task: bytes) -> None:
        job = flight.job
        flight.start()
        child.flight, child.begun = flight, False
        child.run += 1
        child.writer.write(task)
        if job.timeout is not None:
            grace = ASYNC_GRACE if job.task is not None and job.task.is_async else 0.0  # its own limit comes first, in the child
            child.limit = asyncio.get_running_loop().call_later(job.timeout + grace, child.overrun)


def _frame(job: Job, run: int) -> bytes:
    """A job for a child, as its run of that number; raises ValueError or RecursionError for what cannot be written."""
    message, delivery, request = job.message, job.delivery, job.request
    assert message is not None and request is not None
    return frames.encode(
        {
            "run": run,
            "body": message.encode(),
            "queue": delivery.queue,
            "receives": delivery.receives,
            "sent": delivery.sent,
            "group": delivery.group,
            "given": list(job.given),
            "recorded": job.recorded or job.claim is not None,
            "reports": request.report is not None,
        }
    )


def _how(child: _Child) -> str:
    """How a process ended, as the rest of a sentence."""
    status = child.process.returncode
    if status is None or status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-status}"


def _logging() -> tuple[str | None, int]:
    """The form and level of this process's logs, for its children; no form where it has none."""
    root = logging.getLogger()
    if not root.handlers:
        return None, root.level
    formatter = root.handlers[0].formatter
    form = "json" if isinstance(formatter, logs.JSONFormatter) else "plain" if isinstance(formatter, logs.PlainFormatter) else "other"
    return form, root.level
