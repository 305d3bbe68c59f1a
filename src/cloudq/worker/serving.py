"""Works off deliveries that others bring one by one: who brings one waits until its outcome is durable."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Coroutine
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from cloudq.errors import CloudQError, LeaseLost
from cloudq.outcome import Dead, Done, Later, Outcome
from cloudq.runner import Job, Runner, revoked
from cloudq.settle import MOST_PAUSE, Verdict, announce, is_settled, settle_repeatedly, task_logger
from cloudq.worker.flight import Flight
from cloudq.worker.progress import keep_progress
from cloudq.worker.threads import LoopExecutor, ThreadExecutor

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.broker import Delivery

logger = logging.getLogger("cloudq.worker")

OUT_OF_TIME: Final = "the time that its host had for it was over while it ran"
MARGIN: Final = 5.0
"""Seconds that are kept for settling before a delivery's time is over; of a short time, a fifth."""
SHORT: Final = 1.0
"""Seconds that a message is early at most to be waited for here; a timer would not be more exact."""
OVERRUN: Final = 5.0
"""Seconds that a task has to end once it was given up."""
SETTLE_TRIES: Final = 3


class Answer(Enum):
    """What became of a delivery."""

    DONE = "done"
    """Its outcome is durable."""
    KEPT = "kept"
    """It must be delivered again."""
    BUSY = "busy"
    """As many as may be are being worked off; nothing was done."""
    STOPPING = "stopping"
    """Nothing more is taken; nothing was done."""


class Serving:
    """Runs what it is brought, at most ``concurrency`` deliveries at once, until stopped. Nothing is begun before the first one.

    A delivery is never extended: it has ``seconds``, and a task that is still running shortly before they are over is given up, which
    counts as a crash. A task that cannot be stopped (a thread) keeps its place until it ends by itself; where half of the places are
    lost so, the process asks itself to end (SIGTERM), for whatever has started it to start another.
    """

    def __init__(self, app: CloudQ, *, concurrency: int) -> None:
        self.app = app
        self.size = concurrency
        self.runner = Runner(app)
        self._threads = ThreadExecutor(self.runner, concurrency, self._complete)
        self._tasks = LoopExecutor(self.runner, concurrency, self._complete)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = 0
        self._runs: dict[Flight, asyncio.Future[Outcome | None]] = {}
        """What runs, each with a future of its outcome; ``None``: it is given back."""
        self._lost: set[Flight] = set()
        """What was given up, and has not ended."""
        self._background: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._given_up_all = False
        """The grace time is over."""
        self._recycled = False

    @property
    def stopping(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stopping

    @property
    def full(self) -> bool:
        """Whether there is no place for one more."""
        return self._open + len(self._lost) >= self.size

    async def serve(self, delivery: Delivery, seconds: float) -> Answer:
        """Work off one delivery, which is ours for ``seconds``; on the I/O loop."""
        if self._stopping:
            return Answer.STOPPING
        if self.full:
            return Answer.BUSY
        self._loop = asyncio.get_running_loop()
        self._open += 1
        try:
            return Answer.DONE if await self._work_off(delivery, time.monotonic() + seconds) is Verdict.ACK else Answer.KEPT
        finally:
            self._open -= 1

    def stop(self, grace: float) -> None:
        """Take nothing more, and give back what still runs in ``grace`` seconds; from any thread, and from a signal's handler."""
        self._stopping = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.call_later, grace, self._give_up_all)

    async def close(self) -> None:
        """Wait for the end of what was taken (``stop`` bounds that), and let go of the threads; on the I/O loop."""
        while self._open:
            await asyncio.sleep(0.01)
        self._threads.close()
        self._tasks.close()

    # ------------------------------------------------------------------ one delivery

    async def _work_off(self, delivery: Delivery, end: float) -> Verdict:
        began = time.monotonic()
        job = await self._admitted(delivery)
        if job.outcome is None:
            await self.runner.claim(job)
        outcome = job.outcome
        if outcome is None:
            outcome = None if self._stopping else await self._run(job, end - min(MARGIN, (end - began) / 5))
        elif isinstance(outcome, Dead) and self.app.hooks.on_dead:
            await asyncio.to_thread(self.runner.notify, job, outcome)
        if outcome is not None and job.revoked and not isinstance(outcome, Done):  # whatever its end made it come to
            outcome = revoked()
        if outcome is not None and (not isinstance(outcome, Done) or task_logger.isEnabledFor(logging.INFO)):
            announce(job, outcome, time.monotonic() - began)
        if outcome is None or (isinstance(outcome, Later) and not self._can_delay(outcome.delay)):
            await self._release(job)
            return Verdict.KEEP
        if is_settled(job, outcome):
            return Verdict.ACK
        return await settle_repeatedly(self.app, job, outcome, tries=SETTLE_TRIES, is_ours=lambda: self._has_time(end))

    def _has_time(self, end: float) -> bool:
        """Whether a delivery that is ours until ``end`` (monotonic seconds) may take one more try."""
        return not self._given_up_all and time.monotonic() + MOST_PAUSE < end

    async def _admitted(self, delivery: Delivery) -> Job:
        while True:
            try:
                job = self.runner.admit(delivery)
            except Exception as error:  # a fault of ours
                logger.exception("message %s could not be read in an unforeseen way", delivery.message_id)
                return Job(delivery, outcome=Dead(f"it could not be read: {type(error).__name__}"))
            if job.elsewhere:
                await self.runner.fetch(job)
            early = job.outcome.delay if isinstance(job.outcome, Later) and job.task is not None else 0.0
            if not 0 < early <= SHORT:
                return job
            await asyncio.sleep(early)

    def _can_delay(self, delay: float) -> bool:
        """Whether it can be sent again for later. If not it stays, and comes by its sender's own delays: sent at once it would circle."""
        return self.app.timer is not None or delay <= self.app.broker.limits.delay

    async def _release(self, job: Job) -> None:
        if job.claim is not None:
            try:
                await job.claim.release()
            except CloudQError as error:
                logger.warning("%s: its claim could not be released: %s", job.label, error)

    # ------------------------------------------------------------------ running

    async def _run(self, job: Job, stop: float) -> Outcome | None:
        """The outcome of a run that may last until ``stop``; ``None``: it is given back."""
        task, loop = job.task, asyncio.get_running_loop()
        assert task is not None
        executor = self._tasks if task.is_async else self._threads
        flight = Flight(job)
        flight.stoppable = task.is_async or job.claim is not None
        keep_progress(flight, loop, self._spawn)
        run: asyncio.Future[Outcome | None] = loop.create_future()
        self._runs[flight] = run
        keeper = self._spawn(self._keep(flight)) if job.claim is not None else None
        rest = max(stop - time.monotonic(), 0.001)
        own = None if job.timeout is None else job.timeout + (OVERRUN if task.is_async else 0.0)  # an async task's is kept by the runner
        executor.submit(flight)
        try:
            await asyncio.wait([run], timeout=rest if own is None else min(own, rest))
        finally:
            flight.concluded = True
            if keeper is not None:
                keeper.cancel()
        if run.done() and (outcome := run.result()) is not None:
            return outcome
        job.abandoned = True
        if flight in self._runs:  # it has not ended since
            self._lost.add(flight)
        loop.call_later(OVERRUN, self._look_at_lost)
        if task.is_async:
            executor.revoke(flight)
        if run.done():
            logger.warning("%s did not end in the grace time: it is given back", job.label)
            return None
        if own is not None and own <= rest:
            logger.error("%s ran over its %g s and cannot be stopped; its slot is lost until it returns", job.label, job.timeout)
            return await asyncio.to_thread(self._given_up, job, None)
        logger.error("%s did not end in time", job.label)
        return await asyncio.to_thread(self._given_up, job, OUT_OF_TIME)

    def _given_up(self, job: Job, why: str | None) -> Outcome:
        """What it means that a run was given up; user code is asked, too."""
        outcome = self.runner.timed_out(job) if why is None else self.runner.crashed(job, why)
        self.runner.notify(job, outcome)
        return outcome

    async def _keep(self, flight: Flight) -> None:
        """Hold the claim while the task runs, and see whether it was revoked."""
        job, lease = flight.job, self.app.broker.limits.lease
        while True:
            await asyncio.sleep(lease / 3)
            known = job.revoked
            try:
                await self.runner.renew(job, self.app.clock.time() + lease)
            except LeaseLost:
                logger.error("%s: its claim was lost while it ran; its result will be discarded", job.label)
                return
            except CloudQError as error:
                logger.warning("%s: its claim could not be renewed, trying again: %s", job.label, error)
            if job.revoked and not known and job.task is not None:
                logger.info("%s was revoked: its run is ended", job.label)
                (self._tasks if job.task.is_async else self._threads).revoke(flight)

    def _complete(self, flight: Flight, outcome: Outcome) -> None:
        """From any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._land, flight, outcome)

    def _land(self, flight: Flight, outcome: Outcome) -> None:
        self._lost.discard(flight)
        run = self._runs.pop(flight, None)
        if run is not None and not run.done():
            run.set_result(outcome)

    def _give_up_all(self) -> None:
        self._given_up_all = True
        for run in self._runs.values():
            if not run.done():
                run.set_result(None)

    def _look_at_lost(self) -> None:
        if len(self._lost) * 2 >= self.size and not self._recycled:
            self._recycled = True
            logger.error("%d of %d slots are lost to tasks over their time: this process ends itself", len(self._lost), self.size)
            os.kill(os.getpid(), signal.SIGTERM)

    def _spawn(self, call: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(call)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task
