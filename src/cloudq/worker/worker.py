"""The long-lived host: receives, runs, settles, and ends without losing anything."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any, Final

from cloudq import events, signals
from cloudq.app import CloudQ
from cloudq.broker import Broker, Delivery, SettleError
from cloudq.coalesce import Coalescer
from cloudq.errors import BrokerError, CloudQError, ConfigError, LeaseLost, QueueNotFound
from cloudq.io import drive
from cloudq.outcome import Again, Dead, Done, Later, Outcome
from cloudq.runner import Job, Runner, revoked
from cloudq.settle import MOST_PAUSE, Verdict, announce, is_settled, may_pass, settle_repeatedly, task_logger
from cloudq.worker.firing import fire, to_fire
from cloudq.worker.flight import Executor, Flight, batches
from cloudq.worker.groups import Groups
from cloudq.worker.holding import Holding
from cloudq.worker.leases import HASTE, Leases
from cloudq.worker.pausing import Pausing
from cloudq.worker.poller import Poller
from cloudq.worker.processes import ProcessExecutor
from cloudq.worker.progress import keep_progress
from cloudq.worker.reporting import Reporter, describe_app, describe_runs
from cloudq.worker.slots import Slots
from cloudq.worker.threads import LoopExecutor, ThreadExecutor

logger = logging.getLogger("cloudq.worker")

ACK_LINGER: Final = 0.1
"""Seconds that an ack waits at most for others of its queue."""
AHEAD: Final = 100
"""Deliveries of a local broker that may wait for a thread."""
SETTLE_TRIES: Final = 5
ACK_TRIES: Final = 3
HURRIED: Final = 0.5
"""Seconds that a receive may still be out when a person waits for the end."""
RETURNED: Final = 3.0
"""Seconds that it may still be out when running tasks were given back a moment before."""
OVERRUN: Final = 5.0
"""Seconds that an async task has to obey its cancellation before it is given up."""
STUCK: Final = 300.0
"""Seconds after which a worker is ill where nothing runs and nothing becomes of what it has taken."""


class StopReason(Enum):
    """Why a worker ended."""

    ASKED = "asked"
    """A signal, or ``stop()``."""
    DRAINED = "drained"
    """Nothing was left to do (``--drain``, ``--once``)."""
    RECYCLE = "recycle"
    """The process shall be replaced: ``--max-tasks`` reached, or too many slots lost to tasks over their time limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How a worker works. Times in seconds."""

    queues: Mapping[str, int] = field(default_factory=lambda: {})
    """Queue to weight; empty: all that the app declares, with weight 1. Of two queues with work, one of weight 3 gets 3 of 4 slots."""
    concurrency: int = 10
    """Tasks at once in this process; with ``processes``, that number counts instead."""
    processes: int = 0
    """Run tasks in this many child processes, one task each at a time; 0: in threads and on a loop here."""
    grace: float = 25.0
    """How long running tasks may go on after a stop (ECS gives 30 s by default, Kubernetes too)."""
    max_tasks: int | None = None
    """Recycle after this many: the process, or with ``processes`` each child."""
    drain: bool = False
    """End once the queues are empty and nothing runs; delayed messages are not waited for."""
    once: bool = False
    """End after the first received batch has been settled."""
    wait: float = 20.0
    """The longest a receive waits for a first message."""
    schedules: bool = False
    """Fire the app's schedules from here where no timer does (``cloudq dev``); one worker is enough."""
    health_file: Path | None = None
    """Touched every few seconds while all is well; a probe compares its age."""


class Worker:
    """Runs an app's tasks until stopped. One object is one run."""

    def __init__(self, app: CloudQ, options: WorkerOptions | None = None) -> None:
        app.load()
        self.app = app
        self.options = options or WorkerOptions()
        if self.options.concurrency < 1 or self.options.processes < 0:
            raise ConfigError("a worker needs a concurrency of 1 or more, and processes of 0 or more")
        self.queues = dict(self.options.queues) or dict.fromkeys(app.queues, 1)
        if bad := [name for name, weight in self.queues.items() if weight < 1]:
            raise ConfigError(f"the weight of {', '.join(bad)} must be 1 or more")
        if (file := self.options.health_file) is not None and not file.parent.is_dir():
            raise ConfigError(f"the health file {file} cannot be made: there is no directory {file.parent}")
        self.runner = Runner(app)
        self.reason = StopReason.ASKED
        self.handled = 0
        """Outcomes made durable so far."""
        self._size = self.options.processes or self.options.concurrency
        self._local = app.broker.limits.local
        self._reporter: Reporter | None = None
        self._begun_at = 0.0
        self._events = app.events
        self._flights: set[Flight] = set()
        self._groups = Groups()
        self._completed: deque[tuple[Flight, Outcome]] = deque()
        self._woken = False
        self._leases = Leases(
            app, self.runner, self._flights, begin=self._begin, revoked=lambda flight: self._executor_of(flight.job).revoke(flight)
        )
        self._stopping = asyncio.Event()
        self._stopped_at = 0.0
        self._signalled = False
        self._hurry = False
        self._landed_at = 0.0
        self._moved_at = 0.0
        """When something became of a delivery, or was tried for one (monotonic seconds)."""
        self._end = math.inf
        """When the grace time is over (monotonic seconds)."""
        self._lost_slots = 0
        self._started_tasks = 0
        self._background: set[asyncio.Task[Any]] = set()
        self._future: Future[None] | None = None
        self._ready = Future[None]()

    # ------------------------------------------------------------------ from outside

    def start(self) -> None:
        """Begin in the background and return once it receives; for ``dev`` and for tests. Raises ConfigError for missing queues."""
        self._future = self.app.io.submit(self._main())
        self._future.add_done_callback(self._ended)
        self._ready.result()

    def _ended(self, future: Future[None]) -> None:
        if not self._ready.done():
            error = future.exception() if not future.cancelled() else None
            self._ready.set_exception(error or ConfigError("the worker ended before it was ready"))

    def stop(self, *, hurry: bool = False) -> None:
        """Ask it to end gracefully; from any thread. Nothing is lost, whatever runs.

        It lets the receive that is out end by itself (within the grace time). With ``hurry``, for a person who waits, it cuts
        that short: a message that the broker hands over at that very moment then comes back only when its lease ends.
        """
        self._hurry = hurry
        if self.app.io.running:
            self.app.io.loop.call_soon_threadsafe(self._ask_stop, StopReason.ASKED)
        else:  # it has not begun, or has ended
            self._ask_stop(StopReason.ASKED)

    def join(self, timeout: float | None = None) -> StopReason:
        """Wait until it has ended; raises what it failed with, or TimeoutError."""
        assert self._future is not None, "start() comes first"
        self._future.result(timeout)
        return self.reason

    def run(self) -> StopReason:
        """Work in the main thread's stead until SIGTERM or SIGINT; a second signal ends the process at once.

        Nothing is lost by either: what was not settled is delivered again.
        """
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self.start()
            assert self._future is not None
            while not self._future.done():
                try:
                    self._future.result(0.5)
                except TimeoutError:
                    continue
            return self.join()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:
            os.write(2, b"cloudq: second signal, ending now; unsettled messages will be delivered again\n")
            os._exit(128 + number)
        self._signalled = True
        self.stop(hurry=number == signal.SIGINT)

    # ------------------------------------------------------------------ the run, on the I/O loop

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        if not await self._prepared():
            logger.info("ended (%s) before it was ready", self.reason.value)
            self._ready.set_result(None)
            return
        firing = [self._begin(fire(self.app, each)) for each in await to_fire(self.app, wanted=self.options.schedules)]
        await asyncio.to_thread(signals.worker_ready.send, "worker", worker=self)  # receivers are user code
        # from here to the wait for the end nothing suspends: a poller that outran it would bounce messages
        receiving = [self._begin(poller.run()) for poller in self._pollers.values()]
        keeping = [self._begin(self._leases.keep()), self._begin(self._watch()), *firing]
        if self.app.store is not None:
            self._begun_at, self._reporter = round(self.app.clock.time(), 3), Reporter(self.app.store, self._describe)
            keeping += [self._begin(self._pausing.keep()), self._begin(self._reporter.run())]
            self._note("online")
        self._ready.set_result(None)
        logger.info("ready: %s, %d at once, queues %s", self.app.name, self._size, ", ".join(self.queues))
        try:
            await self._stopping.wait()
            await self._wind_down(receiving)
        finally:
            for task in (*receiving, *keeping):
                task.cancel()
            await asyncio.gather(*receiving, *keeping, return_exceptions=True)
            if self._reporter is not None:
                await self._reporter.end()
            if self._events is not None:
                self._note("offline")
                await self._events.flush()
            if self._background:
                await asyncio.wait(self._background, timeout=2.0)  # deliveries on their way back
            for executor in self._executors():
                executor.close()
            if self._children is not None:
                await self._children.wait_closed()
            await asyncio.to_thread(signals.worker_shutdown.send, "worker", worker=self)
            logger.info("ended (%s) after %d messages", self.reason.value, self.handled)

    async def _prepared(self) -> bool:
        """Make ready to receive; false where a stop came first, whatever it was that took so long."""
        preparing, stopped = asyncio.ensure_future(self._prepare()), asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait([preparing, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if not preparing.done():
                preparing.cancel()
                await asyncio.wait([preparing])
        if preparing.cancelled():
            return False
        preparing.result()
        return True

    async def _prepare(self) -> None:
        await self._check_queues()
        options, limits = self.options, self.app.broker.limits
        self._slots = Slots(self._size + self._ahead(), self.queues)
        self._holding = Holding(
            limits,
            timer=self.app.timer is not None,
            busy=lambda: len(self._flights) - len(self._holding) >= self._size,
            resume=self._resume,
        )
        self._threads = ThreadExecutor(self.runner, self._size, self._complete)
        self._tasks = LoopExecutor(self.runner, self._size, self._complete)
        self._children = (
            ProcessExecutor(self.runner, options.processes, self._complete, max_tasks=options.max_tasks) if options.processes else None
        )
        self._ackers = {queue: Coalescer(self._acking, count=limits.batch, linger=ACK_LINGER, eager=False) for queue in self.queues}
        wait = 0.0 if options.drain or options.once else min(options.wait, 1.0) if self._size < len(self.queues) else options.wait
        self._wait = min(wait, limits.wait)
        self._pollers = {
            queue: Poller(
                self.app.broker,
                queue,
                self._slots,
                self._accept,
                alone=len(self.queues) == 1,
                attempts=self.app.store is not None,
                wait=max(wait, 0.1),  # a receive that never waits would keep the loop for itself
            )
            for queue in self.queues
        }
        self._pausing = Pausing(self.app.store, self._pollers, self.app.clock, self._nudge)
        await self._pausing.look()
        if self._children is not None:
            await self._children.start()

    def _ahead(self) -> int:
        """How many deliveries may wait here for a free thread, beside those that run.

        None, where others could run them. On a local broker there are no others, and receiving them one by one costs more than a
        short task: so a batch waits here, under heartbeat, and goes back at a stop. Not where it would show: with a store what waits
        here would count as started, several queues have weights, and ``max_tasks`` counts.
        """
        plain = self._local and len(self.queues) == 1 and self.app.store is None
        return AHEAD if plain and self.options.max_tasks is None and not self.options.once else 0

    async def _check_queues(self) -> None:
        """Say at the start what is missing, rather than fail message by message."""

        async def is_missing(name: str) -> bool:
            try:
                await self.app.broker.stats(name)
            except QueueNotFound:
                return True
            except BrokerError as error:
                logger.warning("queue %r could not be checked: %s", name, error)
            return False

        names = [name for queue in self.queues for name in (queue, self.app.dead_letter_queue(queue))]
        answers = await asyncio.gather(*(is_missing(name) for name in names))
        if missing := [name for name, answer in zip(names, answers, strict=True) if answer]:
            raise ConfigError(
                f"the broker has no queue {', '.join(map(repr, missing))}; create it (cloudq never does at run time), or name other queues"
            )

    def _executors(self) -> list[Executor]:
        return [self._threads, self._tasks, *([self._children] if self._children is not None else [])]

    def _executor_of(self, job: Job) -> Executor:
        if self._children is not None:
            return self._children
        return self._tasks if job.task is not None and job.task.is_async else self._threads

    def _begin(self, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(call)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(_report_fault)
        return task

    def _spawn(self, call: Coroutine[Any, Any, None], flight: Flight | None = None) -> None:
        """Do something beside; a fault of ours in it must not take along the slot of the ``flight`` that waits for it."""
        task = self._begin(call)
        if flight is not None:
            task.add_done_callback(lambda task: self._leave(flight) if not task.cancelled() and task.exception() is not None else None)

    def _leave(self, flight: Flight) -> None:
        """Nothing more becomes of it here: it is left to its lease, and comes back when that ends."""
        if flight in self._flights:
            self._settled(flight, Verdict.KEEP)

    @property
    def _is_stopping(self) -> bool:
        return self._stopping.is_set()

    def _ask_stop(self, reason: StopReason) -> None:
        if not self._stopping.is_set():
            self.reason, self._stopped_at = reason, time.monotonic()
            self._stopping.set()

    # ------------------------------------------------------------------ in

    def _accept(self, deliveries: Sequence[Delivery]) -> None:
        """Take over what was received: each holds one slot until its outcome is durable."""
        refused, plain, began = self._is_stopping or deliveries[0].queue in self._pausing.queues, self.app.store is None, time.monotonic()
        admit, keep, self._moved_at = self.runner.admit, self._flights.add, began
        if refused:
            self._refuse([Flight(Job(delivery), began) for delivery in deliveries])
            return
        for delivery in deliveries:
            try:
                job = admit(delivery)
            except Exception as error:  # a fault of ours; the message must not take the others of its batch along
                logger.exception("message %s could not be read in an unforeseen way", delivery.message_id)
                job = Job(delivery, outcome=Dead(f"it could not be read: {type(error).__name__}"))
            flight = Flight(job, began)
            keep(flight)
            if plain and delivery.group is None and job.outcome is None:
                self._guarded(self._execute, flight)
            elif delivery.group is None or self._groups.enter(flight):
                self._guarded(self._go, flight)
        if self.options.once:
            self._ask_stop(StopReason.DRAINED)

    def _refuse(self, deliveries: Sequence[Flight]) -> None:
        """Give back what came too late, once nobody else who stops or pauses still has a receive out.

        Given back at once it would be handed to the next of these, and so on, and each time counts as a delivery.
        """
        alone = self._local or self._hurry or self.reason is not StopReason.ASKED
        since = self._stopped_at if self._is_stopping else time.monotonic()
        self._spawn(self._give_back(deliveries, 0.0 if alone else max(0.0, since + self._wait - time.monotonic())))

    def _guarded(self, step: Callable[[Flight], None], flight: Flight) -> None:
        """A fault of ours must not take along the others of a batch."""
        try:
            step(flight)
        except Exception:
            logger.exception("%s: an unforeseen fault in the worker", flight.job.label)
            self._leave(flight)

    def _go(self, flight: Flight) -> None:
        if flight.job.elsewhere:
            self._spawn(self._fetch(flight), flight)
        elif flight.job.outcome is not None:
            self._conclude(flight, flight.job.outcome, hooks=True)
        elif self.app.store is not None:
            self._spawn(self._claim(flight), flight)
        else:
            self._execute(flight)

    async def _fetch(self, flight: Flight) -> None:
        await self.runner.fetch(flight.job)
        if flight in self._flights:  # not given back meanwhile
            self._go(flight)

    async def _claim(self, flight: Flight) -> None:
        job = flight.job
        await self.runner.claim(job)
        if flight not in self._flights:  # given back meanwhile
            await self._leases.release(flight)
        elif job.outcome is not None:
            self._conclude(flight, job.outcome)
        else:
            flight.stoppable = job.claim is not None
            keep_progress(flight, self._loop, self._spawn)
            self._note("started", job)
            self._execute(flight)

    def _execute(self, flight: Flight) -> None:
        job = flight.job
        assert job.task is not None
        self._started_tasks += 1
        if self._children is not None:
            self._children.submit(flight)  # it keeps the time limit itself, from when the child begins
        elif job.task.is_async:
            self._tasks.submit(flight)
            if job.timeout is not None:
                flight.alarm = self._loop.call_later(job.timeout + OVERRUN, self._overran, flight)
        else:
            self._threads.submit(flight)
            if job.timeout is not None:
                flight.alarm = self._loop.call_later(job.timeout, self._overran, flight)
        if self.options.max_tasks is not None and not self.options.processes and self._started_tasks >= self.options.max_tasks:
            self._ask_stop(StopReason.RECYCLE)

    def _ack_at_once(self, broker: Broker, flights: Sequence[Flight]) -> None:
        try:
            answers = drive(broker.ack([flight.job.delivery for flight in flights]))
        except Exception:
            answers = None
        if answers is None or any(answers):  # the acker repeats what may help, and logs
            for flight in flights:
                self._ackers[flight.job.delivery.queue].add(flight)
        else:
            self._land(flights)

    def _land(self, flights: Sequence[Flight], verdict: Verdict = Verdict.ACK) -> None:
        """Deliveries are no longer ours; those of their groups that waited go on, or go back where an earlier one stays."""
        self._flights.difference_update(flights)
        self._landed_at = self._moved_at = time.monotonic()
        for flight in flights:
            if flight.job.ordered:
                stop = verdict is not Verdict.ACK or self._is_stopping
                following = self._groups.leave(flight, skip_rest=stop)
                if stop:
                    self._spawn(self._give_back(following))
                else:
                    for each in following:
                        self._guarded(self._go, each)

    def _overran(self, flight: Flight) -> None:
        """A thread cannot be stopped: settle without it. Its slot is lost until it returns by itself."""
        if flight.concluded or flight not in self._flights:
            return
        assert flight.job.timeout is not None
        limit = flight.job.timeout + (OVERRUN if flight.job.task is not None and flight.job.task.is_async else 0.0)
        left = limit - (time.monotonic() - flight.started_at) if flight.started else limit
        if left > 0:  # it has waited for its thread meanwhile
            flight.alarm = self._loop.call_later(left, self._overran, flight)
            return
        flight.slot_lost = flight.concluded = flight.job.abandoned = True
        self._lost_slots += 1
        logger.error("%s ran over its %g s and cannot be stopped; its slot is lost until it returns", flight.job.label, flight.job.timeout)
        self._spawn(self._time_out(flight), flight)
        if self._lost_slots * 2 >= self._size:
            logger.error("%d of %d slots are lost to tasks over their time limit: recycling this process", self._lost_slots, self._size)
            self._ask_stop(StopReason.RECYCLE)

    async def _time_out(self, flight: Flight) -> None:
        """Ask the task's Retry and the hooks what its time limit means; that is user code, and the pool's threads may all be stuck."""

        def ask() -> Outcome:
            outcome = self.runner.timed_out(flight.job)
            self.runner.notify(flight.job, outcome)
            return outcome

        self._conclude(flight, await asyncio.to_thread(ask))

    # ------------------------------------------------------------------ out

    def _complete(self, flight: Flight, outcome: Outcome) -> None:
        """From any thread: hand an outcome to the I/O loop, waking it once for many."""
        self._completed.append((flight, outcome))
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop has ended before the task: its delivery was given back
                self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._woken = False
        completed, flights, quiet = self._completed, self._flights, not task_logger.isEnabledFor(logging.INFO)
        settled: list[Flight] = []
        while completed:
            flight, outcome = completed.popleft()
            job = flight.job
            if flight.alarm is not None:
                flight.alarm.cancel()
            if flight.slot_lost:
                self._lost_slots -= 1  # the flag stays: settling, perhaps still under way, gives no slot back then
                self._slots.give(1)
            elif flight.concluded or flight not in flights:
                continue
            elif quiet and is_settled(job, outcome):  # the common case, many at a time
                flight.concluded = True
                settled.append(flight)
            else:
                self._conclude(flight, outcome)
        if settled:
            self._ack_many(settled)

    def _ack_many(self, flights: Sequence[Flight]) -> None:
        """Ack deliveries whose outcomes are durable; on a local broker at once and together, else by the queue's acker."""
        self.handled += len(flights)
        for flight in flights:
            flight.durable = True
        if self._local:
            broker = self.app.broker
            for batch in batches(flights, broker.limits.batch):
                self._ack_at_once(broker, batch)
        else:
            for flight in flights:
                self._ackers[flight.job.delivery.queue].add(flight)
                if flight.job.ordered:
                    self._ackers[flight.job.delivery.queue].flush()  # its group waits for it
        self._slots.give(sum(not flight.slot_lost for flight in flights))

    def _conclude(self, flight: Flight, outcome: Outcome, *, hooks: bool = False) -> None:
        """The outcome is known: make it durable, then let the slot and the delivery go."""
        flight.concluded = True
        if flight.job.revoked and not isinstance(outcome, Done):  # whatever its end made it come to
            outcome = revoked()
        if not isinstance(outcome, Done) or task_logger.isEnabledFor(logging.INFO):
            announce(flight.job, outcome, time.monotonic() - flight.began)
        if isinstance(outcome, Later) and not self._is_stopping and self._holding.hold(flight, outcome):
            self._slots.give(0 if flight.slot_lost else 1)
            flight.slot_lost = True
            if flight.job.ordered:  # the rest of its batch is still to come
                self._loop.call_soon(self._clear_behind, flight)
            return
        if hooks and self.app.hooks.on_dead and isinstance(outcome, Dead):
            self._threads.call(lambda: self.runner.notify(flight.job, outcome))
        if is_settled(flight.job, outcome):
            self._ack_many([flight])
        else:
            self._spawn(self._settle(flight, outcome), flight)

    def _clear_behind(self, flight: Flight) -> None:
        """What waits behind a held one of its group has slots, and goes back."""
        if behind := self._groups.clear(flight):
            self._spawn(self._give_back(behind))

    def _resume(self, flight: Flight) -> None:
        """What was held is due: look at its delivery as if it had just come."""
        self._flights.discard(flight)
        if flight.job.ordered and (behind := self._groups.leave(flight, skip_rest=True)):
            self._spawn(self._give_back(behind))
        if not flight.lost:
            self._slots.borrow()
            self._accept([flight.job.delivery])

    async def _settle(self, flight: Flight, outcome: Outcome) -> None:
        job = flight.job
        if flight.lost and job.claim is None and not isinstance(outcome, Done):
            self._settled(flight, Verdict.KEEP)  # the delivery is somebody else's, and with it what is to be done
            return
        if flight.renewal is not None:
            flight.renewal.cancel()  # it must not come after what settling writes
        verdict = await settle_repeatedly(self.app, job, outcome, tries=SETTLE_TRIES, is_ours=lambda: self._is_ours(flight))
        if self._reporter is not None and (verdict is Verdict.ACK or (job.ordered and isinstance(outcome, Again))):
            self._reporter.count(outcome)
            if (event := events.named(outcome)) is not None:
                took = round(time.monotonic() - flight.started_at, 4) if flight.started else None
                self._note(event, job, took=took, error=events.error_of(outcome))
        self._settled(flight, verdict)

    def _note(self, event: str, job: Job | None = None, **facts: Any) -> None:
        if self._events is not None and self._reporter is not None:
            message, queue = (None, None) if job is None else (job.message, job.delivery.queue)
            self._events.note(event, message, queue, worker=self._reporter.key, **facts)

    def _settled(self, flight: Flight, verdict: Verdict) -> None:
        if verdict is Verdict.ACK:
            self._ack_many([flight])
        else:
            self.handled += 1
            self._slots.give(0 if flight.slot_lost else 1)
            self._land([flight], verdict)

    async def _acking(self, flights: Sequence[Flight]) -> None:
        """Ack a batch of one queue; what fails is tried again, as long as an outcome would be. At worst it is delivered again."""
        left, began = list(flights), time.monotonic()
        try:
            for attempt in itertools.count(1):
                answers: Sequence[SettleError | Exception | None]
                try:
                    answers = await self.app.broker.ack([flight.job.delivery for flight in left])
                except (CloudQError, TimeoutError) as error:
                    logger.warning("acking %d messages failed (try %d): %s", len(left), attempt, error)
                    answers = [error] * len(left)
                over: list[Flight] = []
                going: list[Flight] = []
                for flight, answer in zip(left, answers, strict=True):
                    if isinstance(answer, LeaseLost):
                        logger.warning("%s was done, but its lease had ended: it may run again", flight.job.label)
                    hopeless = answer is None or (isinstance(answer, SettleError) and not answer.retryable)
                    again = attempt < ACK_TRIES or (answer is not None and self._is_ours(flight) and may_pass(self.app, answer, began))
                    (going if again and not hopeless else over).append(flight)
                left = going
                self._land(over)
                if not left:
                    break
                await asyncio.sleep(min(0.05 * 2**attempt, MOST_PAUSE))
        finally:
            self._land(left)

    def _is_ours(self, flight: Flight) -> bool:
        """Whether to go on with what fails for it: while its lease is kept; after a stop in the grace time only, unless a person waits."""
        self._moved_at = time.monotonic()
        return flight in self._flights and not flight.lost and not self._hurry and self._moved_at < self._end

    # ------------------------------------------------------------------ meanwhile

    def _nudge(self) -> None:
        """Have what is reported of this worker be up to date."""
        if self._reporter is not None:
            self._reporter.nudge()

    def _describe(self) -> dict[str, Any]:
        """What ``cloudq inspect`` shows of this worker."""
        return {
            **describe_app(self.app),
            **describe_runs(self._flights, now := self.app.clock.time()),
            "started": self._begun_at,
            "at": round(now, 3),
            "state": "stopping" if self._is_stopping else "running",
            "queues": self.queues,
            "paused": sorted(self._pausing.queues),
            "concurrency": self._size,
            "processes": self.options.processes,
        }

    @property
    def healthy(self) -> bool:
        """Whether receives are answered, and something becomes of what they bring. That a task runs for long is no illness."""
        waits = len(self._flights) > len(self._holding) and not any(flight.started and not flight.concluded for flight in self._flights)
        return not (waits and time.monotonic() - self._moved_at > STUCK) and all(poller.healthy for poller in self._pollers.values())

    async def _watch(self) -> None:
        """Say by the health file that receives go on, and end a drain once nothing is left."""
        options, said = self.options, False
        while True:
            if options.health_file is not None and self.healthy:
                try:
                    await asyncio.to_thread(options.health_file.touch)
                except OSError as error:
                    if not said:
                        logger.error("the health file could not be touched, so that a probe will take this worker for ill: %s", error)
                    said = True
            if options.drain:
                await asyncio.sleep(0.05)
                looked = all(poller.paused or (poller.empty and poller.looked_at > self._landed_at) for poller in self._pollers.values())
                if looked and len(self._flights) == len(self._holding):  # what settling sent was there to be found
                    self._ask_stop(StopReason.DRAINED)
            else:
                await asyncio.sleep(2.0)

    # ------------------------------------------------------------------ the end

    async def _wind_down(self, receiving: Sequence[asyncio.Task[Any]]) -> None:
        """Give back what has not started, let finish what runs, give back the rest; receives still out give back what they bring."""
        out = "" if self._local else f"; a receive that is out may take up to {self.options.wait:g} s more"
        logger.info("stopping (%s): %d in flight%s", self.reason.value, len(self._flights), out)
        self._end = time.monotonic() + self.options.grace
        for poller in self._pollers.values():
            poller.stop()
        self._nudge()
        await self._give_back(self._holding.withdraw())
        if not self.options.once and self.reason is not StopReason.RECYCLE:  # what --max-tasks has counted runs
            await self._give_back([flight for executor in self._executors() for flight in executor.withdraw()])
            await self._give_back(
                [flight for flight in self._flights if not flight.started and not flight.concluded and self._idle(flight)]
            )
        patience = HURRIED
        await self._until(lambda: not self._open(), self._end)
        if self._open():
            for executor in self._executors():
                executor.cancel()
            logger.warning("%d tasks did not end within %.0f s: they are given back", len(self._open()), self.options.grace)
            await self._until(lambda: not self._open(), time.monotonic() + 1.0)
            await self._give_back(self._open())
            patience = RETURNED  # what was given back may be handed to a receive of ours that is out, and is given back again then
        # A receive that is out may still be answered: what nobody hears would stay hidden for a whole lease.
        if not self._local:
            patience = max(patience, 0.0 if self._hurry else self._end - time.monotonic())
            await asyncio.wait(receiving, timeout=patience)
        for task in receiving:
            task.cancel()
        await asyncio.gather(*receiving, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(self._end - time.monotonic(), HASTE)):
                await asyncio.gather(*(acker.drain() for acker in self._ackers.values()))

    def _idle(self, flight: Flight) -> bool:
        """Whether it waits for its claim, and no executor has it."""
        return flight.job.claim is None and self.app.store is not None

    def _open(self) -> list[Flight]:
        """Flights whose outcome is not durable yet."""
        return [flight for flight in self._flights if not flight.durable]

    async def _until(self, done: Callable[[], bool], deadline: float) -> None:
        while not done() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    async def _give_back(self, flights: Sequence[Flight], delay: float = 0.0) -> None:
        """Make deliveries available to others in ``delay`` seconds, and those that wait behind them in their groups.

        A store or broker that does not answer keeps nobody waiting for long: they come back when their leases end.
        """
        behind = [each for flight in flights if flight.job.ordered for each in self._groups.leave(flight, skip_rest=True)]
        flights = [*flights, *(each for each in behind if each not in flights)]
        self._flights.difference_update(flights)
        try:
            await self._leases.let_go(flights, delay)
        finally:
            self._slots.give(sum(not flight.slot_lost for flight in flights))


def _report_fault(task: asyncio.Task[Any]) -> None:
    """A fault of ours must not vanish with its task."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("an unforeseen fault in the worker", exc_info=error)
