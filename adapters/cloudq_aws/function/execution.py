"""Runs tasks inside a function: sync ones on the main thread or on threads, async ones on a loop that outlives the invocation."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
import weakref
from contextlib import suppress
from typing import Any, Final, cast

from cloudq.app import CloudQ
from cloudq.errors import CloudQError, TimeLimitExceeded
from cloudq.outcome import Outcome
from cloudq.runner import Interrupted, Job, Runner
from cloudq_aws.function.limits import Alarm, TimeLeft, alarms

logger = logging.getLogger("cloudq.lambda")

OUT_OF_TIME: Final = "the function's time was over while it ran"


class Execution:
    """Runs jobs of an app, in whatever invocation they come."""

    def __init__(self, app: CloudQ) -> None:
        self.app = app
        self.runner = Runner(app)
        self.longest: dict[str, float] = {}
        """The longest run of each task so far, in seconds."""
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where async tasks run: one loop for all invocations, so that what they keep open stays usable."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            weakref.finalize(self, self._loop.close)
            if sys.version_info >= (3, 12):
                self._loop.set_task_factory(asyncio.eager_task_factory)
        return self._loop

    def run_alone(self, job: Job, time_left: TimeLeft) -> Outcome:
        """Run one job, of whichever kind, on the main thread."""
        assert job.task is not None
        if job.task.is_async:
            return self.loop.run_until_complete(self.arun(job, time_left))
        with alarms() as alarm:
            return self.run_inline(job, time_left, alarm)

    def run_inline(self, job: Job, time_left: TimeLeft, alarm: Alarm | None) -> Outcome:
        """Run a sync task here, until its limit or the end of the function's time."""
        if alarm is None:
            began = time.monotonic()
            outcome = self.runner.run_isolated(job)
            self.note(job, time.monotonic() - began)
            return outcome
        known: list[Outcome] = []  # a list: an alarm may come between the run's end and an assignment
        began = time.monotonic()
        rest = time_left.until(began)
        own = job.timeout is not None and job.timeout <= rest
        error = TimeLimitExceeded(f"it ran over its time limit of {job.timeout:g} s") if own else Interrupted(OUT_OF_TIME)
        try:
            alarm.set(cast("float", job.timeout) if own else rest, error)
            try:
                known.append(self.runner.run_isolated(job))
            finally:
                alarm.off()
        except (TimeLimitExceeded, Interrupted):  # it came while the runner was at work, after the task or before it
            alarm.off()
        self.note(job, time.monotonic() - began)
        if known:
            return known[0]
        return self.runner.timed_out(job) if own else self.runner.crashed(job, OUT_OF_TIME)

    async def arun(self, job: Job, time_left: TimeLeft) -> Outcome:
        """Run an async task, cancelled at its limit or at the end of the function's time."""
        began = time.monotonic()
        rest = time_left.until(began)
        try:
            async with asyncio.timeout(None if math.isinf(rest) else rest):
                outcome = await self.runner.arun(job)
        except TimeoutError:
            outcome = self.runner.crashed(job, OUT_OF_TIME)
            self.runner.notify(job, outcome)
        except asyncio.CancelledError as error:  # the task has cancelled itself
            outcome = self.runner.failed(job, error)
        self.note(job, time.monotonic() - began)
        return outcome

    def note(self, job: Job, took: float) -> None:
        """Remember how long tasks may take."""
        assert job.task is not None
        if took > self.longest.get(job.task.name, 0.0):
            self.longest[job.task.name] = took

    def watch_progress(self, job: Job) -> None:
        """``update_state`` writes at once, and waits for it: nothing may be under way when the function returns."""
        claim = job.claim
        if claim is None or job.request is None:
            return

        def report(state: str, meta: Any) -> None:
            try:
                self.app.io.run(claim.report(state, meta), timeout=5.0)
            except (CloudQError, TimeoutError) as error:
                logger.warning("%s: its progress could not be recorded: %s", job.label, error)

        job.request.report = report

    def flush(self, time_left: TimeLeft) -> None:
        """Wait for what tasks have begun to send and did not wait for: a frozen environment sends nothing."""
        if self.app.io.running:
            with suppress(TimeoutError):
                self.app.io.run(self.app.sender.idle(), timeout=time_left.for_settling())
