"""One batch of SQS records, from the event to the ids that Lambda must keep."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from cloudq.broker import Delivery
from cloudq.errors import ConfigError
from cloudq.outcome import Dead, Done, Later, Outcome
from cloudq.runner import Job
from cloudq.settle import Verdict, announce, is_settled, settle_repeatedly, task_logger
from cloudq_aws import undelivered
from cloudq_aws.function.execution import OUT_OF_TIME, Execution
from cloudq_aws.function.limits import TimeLeft, alarms
from cloudq_aws.sqs import SQSBroker

logger = logging.getLogger("cloudq.lambda")

ASYNC_TASKS: Final = 100
"""Async tasks of one batch at once (a batch may have 10,000 records)."""
FETCHES: Final = 16
"""Bodies that are fetched at once: as many as the client has threads."""
SETTLE_TRIES: Final = 3
TO_GIVE_BACK: Final = 0.4
"""Seconds that settling leaves at the function's end, for what it could not settle."""
SOON: Final = 30.0
LATEST: Final = 900.0
"""Seconds until a record that could not be settled comes again: ``SOON``, doubled with each delivery up to ``LATEST``. The queue's own
visibility timeout, six times the function's, is for a function that died."""


@dataclass(slots=True, eq=False, repr=False)
class _Record:
    """One record of a batch."""

    id: str
    job: Job
    began: float
    started: bool = False
    verdict: Verdict | None = None
    """``None`` until its outcome is durable, or known not to be."""
    settling: Future[Verdict] | None = None
    deleted: bool = False
    copies: list[_Record] = field(default_factory=lambda: [])
    """The same message, or the same attempt of the same task, once more in the batch."""

    @property
    def strikes(self) -> int:
        """How often a process may have died over it: deliveries and runs that came to no outcome. It may have been throttled, too."""
        job = self.job
        return max(job.delivery.receives - 1, 0) + (job.message.crashes if job.message is not None else 0)


class Batch:
    """One batch of records, from the event to the ids that are reported."""

    def __init__(self, execution: Execution, queue_of: Callable[[str], str], time_left: TimeLeft, *, concurrency: int = 1) -> None:
        self._app = execution.app
        self._execution = execution
        self._queue_of = queue_of
        self._time_left = time_left
        self._concurrency = concurrency
        self._any_started = False
        self._quiet = not task_logger.isEnabledFor(logging.INFO)

    def run(self, raw: Sequence[Mapping[str, Any]]) -> list[str]:
        """Run the records, and return the message ids of those that must be delivered again."""
        records, failed = self._read(raw)
        unique = self._unique(records)
        fresh: list[_Record] = []
        suspects: list[_Record] = []
        ordered: list[_Record] = []
        for record in unique:
            job = record.job
            if job.ordered:
                ordered.append(record)
            elif job.outcome is not None:
                self._conclude(record, job.outcome, ran=False)
            elif record.strikes and len(unique) > 1:
                suspects.append(record)
            else:
                fresh.append(record)
        suspects = self._run_last_chance(suspects, unique)
        self._run_group(fresh)
        # One of these may have taken the process along before, and with it its whole batch. So each runs alone, when those before it are
        # out of the queue for good, and in an order that is not always the same.
        random.shuffle(suspects)
        for suspect in suspects:
            self._delete_finished(unique)
            self._run_group([suspect])
        self._run_ordered(ordered, unique)
        self._await_settling(unique)
        self._give_back(unique)
        self._execution.flush(self._time_left)
        for record in unique:
            if record.verdict is not Verdict.ACK:
                failed += [record.id, *(copy.id for copy in record.copies)]
        return list(dict.fromkeys(failed))

    def _run_last_chance(self, suspects: Sequence[_Record], unique: Sequence[_Record]) -> list[_Record]:
        """Run a record that one more strike would make a dead letter, before any other can hurt it; returns the suspects that are left.

        Of several one runs, and the others are sent anew, some strikes better: so a strike that ends a message is its own.
        """
        most = 2 * self._app.conf.crash_cap - 2  # the runner's cap for deliveries, and about the queue's own
        last = [record for record in suspects if record.strikes >= most]
        if last:
            random.shuffle(last)
            for record in last[1:]:
                self._send_anew(record, "another may crash the process first")
            self._delete_finished(unique)
            self._run_group(last[:1])
            self._delete_finished(unique)
        return [record for record in suspects if record not in last]

    # ------------------------------------------------------------------ in

    def _read(self, raw: Sequence[Mapping[str, Any]]) -> tuple[list[_Record], list[str]]:
        """The records, and the ids of those that no delivery can be made of."""
        records: list[_Record] = []
        failed: list[str] = []
        now = self._app.clock.time()
        until = now + min(self._time_left.seconds, 900.0)
        began = time.monotonic()
        admit = self._execution.runner.admit
        for each in raw:
            if each.get("eventSource") != "aws:sqs":
                raise ConfigError(f"a record comes from {each.get('eventSource')!r}: connect this function to SQS queues only")
            id: str = each["messageId"]
            try:
                delivery = self._delivery(each, id, now, until)
            except (KeyError, TypeError, ValueError, AttributeError):
                logger.exception("record %s has not the shape of an SQS record", id)
                failed.append(id)
                continue
            try:
                job = admit(delivery)
            except Exception as error:  # a fault of ours; the record must not take the others of its batch along
                logger.exception("message %s could not be read in an unforeseen way", id)
                job = Job(delivery, outcome=Dead(f"it could not be read: {type(error).__name__}"))
            records.append(_Record(id, job, began))
        self._fetch([record.job for record in records if record.job.elsewhere])
        return records, failed

    def _fetch(self, jobs: Sequence[Job]) -> None:
        """Get the messages that lie elsewhere; one that is not had in time is sent again."""

        async def fetch_all() -> None:
            hands = asyncio.Semaphore(FETCHES)

            async def fetch(job: Job) -> None:
                async with hands:
                    await self._execution.runner.fetch(job)

            await asyncio.gather(*map(fetch, jobs))

        if jobs:
            try:
                self._app.io.run(fetch_all(), timeout=self._time_left.for_settling())
            except TimeoutError:
                logger.warning("bodies that lie elsewhere could not be fetched before the function's time was over")

    def _delivery(self, raw: Mapping[str, Any], id: str, now: float, until: float) -> Delivery:
        system, arn = raw["attributes"], raw["eventSourceARN"]
        attributes: Mapping[str, Mapping[str, str]] = raw.get("messageAttributes") or {}
        sent = system.get("SentTimestamp")
        delivery = Delivery(
            queue=self._queue_of(arn),
            body=raw["body"],
            receipt=raw["receiptHandle"],
            receives=int(system.get("ApproximateReceiveCount", 0)),
            message_id=id,
            sent=int(sent) / 1000 if sent else None,
            received=now,
            lease_until=until,  # the queue's visibility timeout is longer: Lambda sees to that
            group=system.get("MessageGroupId") if arn.endswith(".fifo") else None,  # on a standard queue it is the tenant
            attributes={name: value["stringValue"] for name, value in attributes.items() if value.get("stringValue") is not None},
        )
        broker = self._app.broker
        return undelivered.read(delivery, broker.queue_of) if attributes and isinstance(broker, SQSBroker) else delivery

    def _unique(self, records: Iterable[_Record]) -> list[_Record]:
        """Each message and each attempt once; the others become copies of the first."""
        first: dict[object, _Record] = {}
        unique: list[_Record] = []
        for record in records:
            job = record.job
            known = first.setdefault(record.id, record)
            if known is record and job.outcome is None and job.message is not None:
                known = first.setdefault((job.message.id, job.message.attempt), record)
            if known is record:
                unique.append(record)
            else:
                known.copies.append(record)
        return unique

    # ------------------------------------------------------------------ running

    def _may_start(self, job: Job) -> bool:
        """Whether there is time for it. The first one has all the time there is, so that each invocation gets on."""
        left = self._time_left.stop - time.monotonic()
        if not self._any_started and left > 0:
            self._any_started = True
            return True
        assert job.task is not None
        return left > self._execution.longest.get(job.task.name, job.timeout or 0.0)

    def _claim(self, records: Sequence[_Record]) -> list[_Record]:
        """Claim them all at once, where there is a store; returns those that may run."""
        if self._app.store is None or not records:
            return list(records)
        if self._time_left.stop <= time.monotonic():
            return []

        async def claim_all() -> None:
            await asyncio.gather(*(self._execution.runner.claim(record.job) for record in records))

        try:
            self._app.io.run(claim_all(), timeout=self._time_left.for_settling())
        except TimeoutError:
            logger.warning("the store did not answer before the function's time was over")
            return []
        runnable: list[_Record] = []
        for record in records:
            if record.job.outcome is not None:
                self._conclude(record, record.job.outcome, ran=False)
            else:
                self._execution.watch_progress(record.job)
                runnable.append(record)
        return runnable

    def _run_group(self, records: Sequence[_Record]) -> None:
        """Run records that may run at the same time."""
        records = self._claim(records)
        sync: list[_Record] = []
        waiting: deque[_Record] = deque()
        for record in records:
            assert record.job.task is not None
            (waiting if record.job.task.is_async else sync).append(record)
        if waiting:
            self._execution.loop.run_until_complete(self._run_async(waiting))
        if sync and self._concurrency > 1 and len(sync) > 1:
            self._run_threads(deque(sync))
        elif sync:
            with alarms() as alarm:
                for record in sync:
                    if not self._may_start(record.job):
                        break
                    record.started = True
                    self._conclude(record, self._execution.run_inline(record.job, self._time_left, alarm))

    async def _run_async(self, waiting: deque[_Record]) -> None:
        async def work() -> None:
            while waiting and self._may_start(waiting[0].job):
                record = waiting.popleft()
                record.started = True
                self._conclude(record, await self._execution.arun(record.job, self._time_left))

        await asyncio.gather(*(work() for _ in range(min(len(waiting), ASYNC_TASKS))))

    def _run_threads(self, waiting: deque[_Record]) -> None:
        """A thread that runs over its limit is given up: its outcome is settled without it, and what it says later does not count."""
        pool = ThreadPoolExecutor(self._concurrency, "cloudq-task")
        running: dict[Future[Outcome], tuple[_Record, float]] = {}
        lost = 0
        while waiting or running:
            while waiting and len(running) + lost < self._concurrency and self._may_start(waiting[0].job):
                record = waiting.popleft()
                record.started = True
                now = time.monotonic()
                limit = now + min(record.job.timeout or math.inf, self._time_left.until(now))
                running[pool.submit(self._execution.run_inline, record.job, self._time_left, None)] = record, limit
            if not running:
                break
            soonest = min(limit for _, limit in running.values()) - time.monotonic()
            done, _ = wait(running, None if math.isinf(soonest) else max(soonest, 0.0), FIRST_COMPLETED)
            for future in done:
                record, _ = running.pop(future)
                self._conclude(record, future.result())
            for future, (record, limit) in list(running.items()):
                if limit <= time.monotonic():
                    del running[future]
                    lost += 1
                    job, runner = record.job, self._execution.runner
                    own = job.timeout is not None and limit < self._time_left.stop
                    logger.error("%s ran over its time and cannot be stopped; its thread is lost until it returns", job.label)
                    self._conclude(record, runner.timed_out(job) if own else runner.crashed(job, OUT_OF_TIME), ran=False)
        pool.shutdown(wait=False)

    def _run_ordered(self, records: Sequence[_Record], all_records: Sequence[_Record]) -> None:
        """One after another, in order; what is behind a record that stays in the queue stays too."""
        stopped: set[tuple[str, str | None]] = set()
        for record in records:
            job = record.job
            group = (job.delivery.queue, job.delivery.group)
            if group in stopped:
                continue
            if job.delivery.receives > 1:
                self._delete_finished(all_records)
            if job.outcome is not None:
                self._conclude(record, job.outcome, ran=False)
            else:
                self._run_group([record])
            self._await_settling([record])
            if record.verdict is not Verdict.ACK:
                stopped.add(group)

    # ------------------------------------------------------------------ out

    def _conclude(self, record: _Record, outcome: Outcome, *, ran: bool = True) -> None:
        """The outcome is known: begin to make it durable."""
        job = record.job
        if not (self._quiet and isinstance(outcome, Done)):
            announce(job, outcome, time.monotonic() - record.began)
        if not ran:
            self._execution.runner.notify(job, outcome)
        if is_settled(job, outcome):
            record.verdict = Verdict.ACK
        else:
            record.settling = self._app.io.submit(settle_repeatedly(self._app, job, outcome, tries=SETTLE_TRIES))

    def _await_settling(self, records: Iterable[_Record]) -> None:
        for record in records:
            if record.verdict is None and record.settling is not None:
                try:
                    record.verdict = record.settling.result(self._time_left.for_settling(TO_GIVE_BACK))
                except Exception as error:
                    record.verdict = Verdict.LEFT
                    logger.error("%s is left in its queue: settling failed: %s: %s", record.job.label, type(error).__name__, error)

    def _delete_finished(self, records: Iterable[_Record]) -> None:
        """Take what is done out of its queue now, rather than with the whole batch; Lambda's own deletion then finds nothing to do."""
        self._await_settling(records)
        finished = [record for record in records if record.verdict is Verdict.ACK and not record.deleted]
        for record in finished:
            record.deleted = True
        self._request(finished, self._app.broker.ack, "deleting")

    def _give_back(self, records: Sequence[_Record]) -> None:
        """Make visible at once what was not begun, and soon what could not be settled.

        Each delivery counts at the queue, and too many look like a crash loop: from the second time on a record is sent again instead.
        """
        left = [record for record in records if record.verdict is None]
        for record in left:
            if not record.job.ordered and record.strikes:
                self._send_anew(record, "the function's time was over before it could start")
        self._await_settling(left)
        left = [record for record in left if record.verdict is None]
        claims = [record.job.claim for record in left if record.job.claim is not None]

        async def release() -> None:
            await asyncio.gather(*(claim.release() for claim in claims), return_exceptions=True)

        if claims:
            with suppress(TimeoutError):
                self._app.io.run(release(), timeout=self._time_left.for_settling())
        self._request(
            [copy for record in left for copy in (record, *record.copies)], lambda some: self._app.broker.extend(some, 0), "giving"
        )
        by_delay: dict[float, list[_Record]] = {}
        for record in records:
            for each in (record, *record.copies) if record.verdict is Verdict.LEFT else ():
                delay = min(SOON * 2.0 ** min(max(each.job.delivery.receives - 1, 0), 10), LATEST)
                by_delay.setdefault(delay, []).append(each)
        for delay, some in by_delay.items():
            self._request(some, partial(self._app.broker.extend, seconds=delay), "delaying")

    def _send_anew(self, record: _Record, why: str) -> None:
        """The queue counts a new message's deliveries from 1. Without a store it takes its strikes along, up to two below the cap."""
        changes = {} if self._app.store is not None else {"crashes": min(record.strikes, max(self._app.conf.crash_cap - 2, 0))}
        self._conclude(record, Later(0.0, why, changes), ran=False)

    def _request(self, records: Sequence[_Record], perform: Callable[[Sequence[Delivery]], Any], what: str) -> None:
        """Ask the broker in full batches, all at once; where it fails, the queue's visibility timeout decides."""
        if not records:
            return
        size = self._app.broker.limits.batch
        by_queue: dict[str, list[Delivery]] = {}
        for record in records:
            by_queue.setdefault(record.job.delivery.queue, []).append(record.job.delivery)

        async def ask() -> None:
            batches = [group[at : at + size] for group in by_queue.values() for at in range(0, len(group), size)]
            for answer in await asyncio.gather(*(perform(batch) for batch in batches), return_exceptions=True):
                errors = [answer] if isinstance(answer, BaseException) else [error for error in answer if error is not None]
                for error in errors:
                    logger.warning("%s a record failed: %s", what, error)

        with suppress(TimeoutError):
            self._app.io.run(ask(), timeout=self._time_left.for_settling())
