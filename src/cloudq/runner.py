"""One message in, one outcome out: the only place where a task runs."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import logging
import os
import random
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from cloudq import claimcheck, records, states
from cloudq.broker import Delivery
from cloudq.errors import (
    ArgumentsError,
    CloudQError,
    ConfigError,
    DecodeError,
    Ignore,
    KeysError,
    KeysUnavailable,
    KeyWanted,
    Reject,
    RetryRequested,
    StoreError,
    StoreUnavailable,
    TaskFailed,
    TimeLimitExceeded,
)
from cloudq.message import DEAD_ATTRIBUTE, Message, decode, is_bare, new_id, parse, unwrap, waits_for_members
from cloudq.middleware import FAULTS, call_quietly
from cloudq.outcome import LONGEST_PAUSE, Again, Dead, Done, Dropped, Failure, Later, Outcome, growing_pause
from cloudq.request import Request, current
from cloudq.values import dumps

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.limits import Rate, Turns
    from cloudq.store import Store
    from cloudq.task import Task

logger = logging.getLogger("cloudq.runner")

EACH: Final[Mapping[str, Any]] = {}
"""Marks arguments as those of several calls."""

NOTHING: Final = Done()
"""The outcome of a task whose value nobody wants: no store, no links."""

BODY_DELAY: Final = 10.0
"""Seconds that a message waits when its body, which lies elsewhere, cannot be fetched."""


class Interrupted(BaseException):
    """Raised by a host inside a run that it must give up, its own time being over.

    No Exception, so that a task's ``except Exception`` lets it pass.
    """


class Revoked(BaseException):
    """Raised by a host inside the run of a sync task that was revoked; no Exception, as Interrupted."""


@dataclass(slots=True, eq=False, repr=False)
class Job:
    """A delivery on its way through the runner. ``outcome`` is set as soon as it is known, also where nothing ran."""

    delivery: Delivery
    body: str = ""
    """The delivery's body; of a dead letter that wraps raw bytes, those."""
    fields: dict[str, Any] | None = None
    """The body as JSON; ``None`` where it is none."""
    message: Message | None = None
    """``None`` where the body is no message that this version reads."""
    task: Task[..., Any] | None = None
    arguments: tuple[Sequence[Any], Mapping[str, Any]] | None = None
    """As the task gets them, once they are decoded by its type hints."""
    timeout: float | None = None
    deadline: float | None = None
    """When the time limit ends the run (Unix time, seconds), once it has begun."""
    claim: records.Claim | None = None
    recorded: bool = False
    """Whoever asked for this run keeps its value, although no claim is held here: the parent process, or an eager call."""
    outcome: Outcome | None = None
    elsewhere: bool = False
    """The body is a claim for another one, or is encrypted with a key that is not at hand. ``fetch`` gets it; until then the job waits."""
    wanted: KeyWanted | None = None
    """That key."""
    as_is: bool = False
    """It was not found to be genuine: whatever becomes of it is sent as it came, for a seal would vouch for it."""
    abandoned: bool = False
    """Its host has settled without it: what the run still comes to counts for nothing, also for hooks."""
    revoked: bool = False
    """Its host ends the run, because it was revoked: no end but a result counts."""
    given: Sequence[Any] = ()
    """What goes before the message's own arguments: the list of its chord's results, as JSON values."""
    passed: bool = False
    """Its settling has done the step that may be done once only (another attempt sent or noted, a dead letter); the next try goes on."""
    made_request: Request | None = None
    """``request``, where somebody has asked for it."""

    @property
    def request(self) -> Request | None:
        """What the task's own code sees of the run; made when first asked for. ``None`` where there is no message."""
        message = self.message
        if self.made_request is None and message is not None:
            args, kwargs = self.arguments or (message.args, message.kwargs)
            delivery = self.delivery
            self.made_request = Request(message, delivery.queue, args, kwargs, delivery.receives, self.deadline)
        return self.made_request

    @property
    def ordered(self) -> bool:
        """Whether the delivery belongs to an ordering group: then it is never re-sent, which would lose its place."""
        return self.delivery.group is not None

    @property
    def deferrals(self) -> int:
        """How often it was put off. An ordered message keeps its place instead of being sent again, so there its deliveries say so."""
        if self.ordered:
            return max(self.delivery.receives - 1, 0)
        return 0 if self.message is None else self.message.deferrals

    @property
    def crashes(self) -> int:
        """How many runs are known to have ended without an outcome: those that its message tells of, and those that its claim does."""
        noted = 0 if self.message is None else self.message.crashes
        return noted if self.claim is None else noted + self.claim.crashes

    @property
    def label(self) -> str:
        """For logs: task and id, never arguments."""
        return f"{self.message.task}[{self.message.id}]" if self.message is not None else f"message {self.delivery.message_id or '(no id)'}"


class Runner:
    """Runs messages of one app, for any host. ``admit``, ``run`` and ``arun`` do no I/O; ``fetch`` and ``claim`` do."""

    def __init__(self, app: CloudQ, *, eager: bool = False) -> None:
        if not eager:
            app.check()
        self.app = app
        self.eager = eager
        """Whether results are kept by the host, which needs no store."""
        self._sealing = None if eager else app.sealing
        self._host = socket.gethostname()
        self._made_turns: Turns | None = None

    # ------------------------------------------------------------------ may it run?

    def admit(self, delivery: Delivery, *, trusted: bool = False) -> Job:
        """Read a delivery and decide whether it may run; if not, the job has its outcome already. Runs no user code.

        ``trusted``: it came by another way than a queue, from somebody who may call tasks, and needs no signature.
        """
        job = Job(delivery, delivery.body)
        vouched = True
        if (sealing := None if trusted else self._sealing) is not None:
            job.as_is = True
        try:
            fields = parse(delivery.body)
            raw = unwrap(fields) if "dead" in fields else None
            if raw is not None:
                job.body = raw
                fields = parse(raw)
            job.fields = fields
            if sealing is not None and not claimcheck.is_claim(fields):
                job.fields, vouched = sealing.open(job.body, fields)
                fields, job.as_is = job.fields, False
                vouched = vouched and raw is None and DEAD_ATTRIBUTE not in delivery.attributes
            message = decode(fields)
        except KeyWanted as wanted:
            job.wanted, job.elsewhere = wanted, True
            job.outcome = Later(BODY_DELAY, "its key could not be fetched")
            return job
        except DecodeError as error:
            if not error.newer and job.fields is not None and claimcheck.is_claim(job.fields):
                job.outcome = self._wait_for_body(job)
                return job
            if not error.newer and job.fields is not None and "tick" in job.fields and "task" not in job.fields:
                return self._admit_tick(job, job.fields)
            job.outcome = self._wait_for_deploy(job, str(error)) if error.newer else Dead(str(error))
            return job
        if "dead" in fields or raw is not None or DEAD_ATTRIBUTE in delivery.attributes:
            message = message.revived(timed=not vouched)
        return self._decide(job, message)

    def _admit_tick(self, job: Job, tick: Mapping[str, Any]) -> Job:
        """A tick says which schedule fires for which slot; what that calls is in the code here, so it needs no signature."""
        from cloudq import recurring

        job.as_is = False
        name = str(tick["tick"])
        found = self.app.schedules.get(name)
        if found is None:
            if tick.get("slot", recurring.SLOT) == recurring.SLOT:  # sent again, or redriven, it is still for the fire before this instant
                job.fields = {**tick, "sent": recurring.sent_of(tick, job.delivery, self.app.clock.time())}
            job.outcome = self._wait_for_deploy(job, f"no schedule named {name[:100]!r} is declared in this worker")
            return job
        now = self.app.clock.time()
        try:
            slot = recurring.slot_of(tick, found.trigger, recurring.sent_of(tick, job.delivery, now))
            message = found.message(self.app, slot)
        except (DecodeError, ArgumentsError) as error:
            job.outcome = Dead(str(error))
            return job
        redriven = "dead" in tick or DEAD_ATTRIBUTE in job.delivery.attributes
        if not redriven and job.delivery.receives < 2 and (why := found.missed(slot, now)) is not None:
            job.message, job.outcome = message, Dropped(why, state=states.EXPIRED)
            return job
        return self._decide(job, message)

    def _decide(self, job: Job, message: Message) -> Job:
        """Whether what was read may run now."""
        delivery, conf = job.delivery, self.app.conf
        job.message = message
        job.task = task = self.app.tasks.get(message.task)
        if task is None:
            job.outcome = self._wait_for_deploy(job, f"no task named {message.task!r} is registered in this worker")
            return job
        if self.app.store is None:
            job.outcome = self._worn_out(job, message, task)
            if job.outcome is not None:
                return job
            if delivery.group is not None:  # it is never sent again: its deliveries are all that is known of its attempts
                message = job.message = message.copy(attempt=max(message.attempt, message.first + delivery.receives - 1))
        if not is_bare(message.fields):
            now = self.app.clock.time()
            if message.expires is not None and message.expires <= now:
                job.outcome = Dropped("it expired before it could start", state=states.EXPIRED)
                return job
            if self.app.store is None and not self.eager and _needs_store(message):
                job.outcome = Dead("it belongs to a chord, and this worker has no store to count its members in: set CLOUDQ_STORE")
                return job
            if message.eta is not None and message.eta > now:
                job.outcome = Later(message.eta - now, "its time has not come")
                return job
        job.timeout = message.timeout or task.settings.timeout or conf.timeout
        return job

    def _worn_out(self, job: Job, message: Message, task: Task[..., Any]) -> Dead | None:
        """Without a store nobody notes that a run has begun, and deliveries must tell of crashes.

        Others are among them: what was given back or throttled never ran. So the cap is twice as high; a store counts the runs instead.
        """
        cap, receives = self.app.conf.crash_cap, job.delivery.receives
        if message.crashes >= cap:
            return Dead(f"crash loop: {message.crashes} runs ended without an outcome")
        retries = task.policy.max_retries if job.ordered else 0
        if retries is not None and message.crashes + receives - retries >= 2 * cap:
            return Dead(f"crash loop: delivered {message.crashes + receives} times without an outcome")
        return None

    def _wait_for_deploy(self, job: Job, reason: str) -> Later | Dead:
        """A newer worker may know what to do: give the deploy time, then give up."""
        delivery, now, grace = job.delivery, self.app.clock.time(), self.app.conf.unknown_task_grace
        noted = (job.fields or {}).get("unknown_since")
        stays = job.ordered or self.app.broker.limits.hold > 0  # it waits where it is, unchanged
        held = delivery.sent if job.ordered and delivery.receives > 1 else delivery.received if stays else None
        known = noted if isinstance(noted, (int, float)) else held or None
        since = now if known is None or known > now else known
        left = since + grace - now
        if left <= 0:
            return Dead(reason)
        wait = min(max(1.0, (now - since) / 2), 60.0)
        if stays:  # where nobody can hold it each look is a delivery: few must do for the whole time
            wait = max(wait, 2.0 ** min(delivery.receives + 1, 10))
        return Later(min(wait, left), reason, {"unknown_since": round(since, 3)})

    def _wait_for_body(self, job: Job) -> Later | Dead:
        """The message lies elsewhere: a host that does not fetch it sends it again."""
        delivery = job.delivery
        if claimcheck.of(self.app.broker) is None:
            return self._wait_for_deploy(
                job, "its body lies in an object store: name that place with bodies= in the URL of this broker too"
            )
        if delivery.group is None and delivery.receives >= 2 * self.app.conf.crash_cap:
            return Dead(f"crash loop: delivered {delivery.receives} times, and its body was never read")
        job.elsewhere = True
        return Later(BODY_DELAY, "its body could not be fetched")

    async def fetch(self, job: Job) -> None:
        """Get the message of a job that is ``elsewhere``, or its key, and decide again whether it may run.

        Where it cannot be had now the job waits; where it is gone or wrong it is dead, and its claim with it: a redrive tries again.
        """
        if job.wanted is None:
            await self._fetch_body(job)
        if job.wanted is not None:
            await self._fetch_key(job, job.wanted)

    async def _fetch_key(self, job: Job, wanted: KeyWanted) -> None:
        job.elsewhere, job.wanted = False, None
        try:
            await wanted.fetch()
        except (KeysUnavailable, ConfigError, TimeoutError) as error:
            logger.warning("%s waits: %s", job.label, error)
        except KeysError as error:
            job.outcome = Dead(f"it could not be decrypted: {error}")
        except Exception:
            logger.exception("%s waits: its key could not be fetched in an unforeseen way", job.label)
        else:
            self._become(job, self.admit(job.delivery))

    def _become(self, job: Job, found: Job) -> None:
        for name in Job.__slots__:
            setattr(job, name, getattr(found, name))

    async def _fetch_body(self, job: Job) -> None:
        checks, delivery, claim = claimcheck.of(self.app.broker), job.delivery, job.fields
        if not job.elsewhere or checks is None or claim is None:
            return
        job.elsewhere = False
        try:
            delivery.body = await checks.collect(claim)
            found = self.admit(delivery)
        except (StoreUnavailable, ConfigError) as error:
            logger.warning("%s waits: %s", job.label, error)
            return
        except (DecodeError, StoreError) as error:
            job.outcome = Dead(f"its body could not be fetched: {error}")
            return
        except Exception:
            logger.exception("%s waits: its body could not be fetched in an unforeseen way", job.label)
            return
        if found.fields is not None and claimcheck.is_claim(found.fields):
            job.outcome = Dead("the body that its claim is for is a claim itself")
            return
        if found.message is not None and "dead" in claim and found.message.dead is None:
            found.message = found.message.revived(timed=self._sealing is not None)
        self._become(job, found)

    async def claim(self, job: Job) -> None:
        """Where the app has a store, take the right to run the job while its delivery is ours; sets ``job.outcome`` if it may not run.

        Each claim has an owner of its own: a second delivery of what runs here already is refused like any other.
        """
        store, message = self.app.store, job.message
        if store is None or message is None:
            return
        owner = f"{self._host}:{os.getpid()}:{new_id()}"  # all of it now: processes fork, and functions start as copies of one snapshot
        now, until, ttl = self.app.clock.time(), job.delivery.lease_until, self.app.conf.result_expires
        if message.join is not None:
            ttl = max(ttl, records.JOINED)
        keyed = job.task is not None and job.task.key is not None
        key: str | None = None
        if keyed and job.task is not None:
            ttl = max(ttl, job.task.settings.window or 0.0)  # its duplicates want the result
        try:
            answer = await records.claim(
                store, message, job.delivery.queue, owner=owner, now=now, until=until, ttl=ttl, ordered=job.ordered
            )
        except CloudQError as error:
            logger.warning("%s waits: the store cannot be asked whether it may run: %s", job.label, error)
            job.outcome = _store_away(job)
            return
        if not isinstance(answer, records.Claim):
            job.outcome = answer
            return
        job.claim = answer
        if keyed:
            key = await self._claim_key(job, message, store, ttl)
            if job.outcome is not None:
                return
        if message.flow is not None or message.results is not None:
            await self._enter_flow(job, message, store)
        if job.ordered:
            job.message = message.copy(attempt=answer.value["attempt"])
        if job.crashes >= self.app.conf.crash_cap:
            job.outcome = Dead(f"crash loop: {job.crashes} runs ended without an outcome")
        if job.outcome is None and job.task is not None and job.task.is_limited:
            await self._enter_limits(job, job.task, answer, store)
        if key is not None and not isinstance(job.outcome, Later):  # what a limit sends away waits still
            await self._free_unique(job, message, key, store)

    async def _enter_limits(self, job: Job, task: Task[..., Any], claim: records.Claim, store: Store) -> None:
        """Take a seat and a turn, where the task's starts are limited; over a limit it waits, with no slot and no attempt used."""
        from cloudq import keyed, limits

        message, settings = job.message, task.settings
        assert message is not None
        try:
            key = "" if task.limit_key is None else await asyncio.to_thread(_limit_key, job)
        except ArgumentsError:
            return  # the run says so
        except FAULTS as error:
            job.outcome = Dead("its limit_key could not be made", Failure.of(error), states.FAILURE)
            return
        try:
            if settings.max_running is not None:
                seats = keyed.place("seat", task.name, key)
                claim.seat = await limits.sit(
                    store, seats, settings.max_running, message.id, now=self.app.clock.time(), until=job.delivery.lease_until
                )
                if claim.seat is None:
                    job.outcome = Later(growing_pause(job.deferrals), f"{settings.max_running} of it run already")
                    return
            if settings.rate_limit is not None:
                job.outcome = await self._wait_for_turn(job, message, settings.rate_limit, keyed.place("turn", task.name, key), store)
        except CloudQError as error:
            logger.warning("%s waits: the store cannot be asked about its limits: %s", job.label, error)
            job.outcome = _store_away(job)

    @property
    def _turns(self) -> Turns:
        from cloudq import limits

        if self._made_turns is None:
            self._made_turns = limits.Turns()
        return self._made_turns

    async def _wait_for_turn(self, job: Job, message: Message, rate: Rate, place: str, store: Store) -> Later | None:
        """A turn is given once, and travels with the message; one that is too old is none."""
        from cloudq import limits

        app, now = self.app, self.app.clock.time()
        turn = message.turn
        # Each time that it comes too late it may come twice as late: else busy workers would only ever hand out turns.
        late = max(limits.LATE, rate.interval) * 2.0 ** min(max(message.deferrals - 1, 0), 10)
        if turn is None or now - turn > late:
            # An ordered message is not sent again, so that it could not carry a turn along.
            ahead = limits.PATIENCE if job.ordered else min(limits.AHEAD, max(app.broker.limits.delay, app.broker.limits.hold))
            turn = await self._turns.take(store, place, rate, now, ahead=max(ahead, limits.PATIENCE))
            if turn is None:
                pause = random.uniform(ahead / 2, ahead) or 1.0
                if job.ordered:
                    pause = max(rate.interval, min(rate.interval * 2.0 ** min(job.deferrals, 10), LONGEST_PAUSE))
                return Later(pause, f"over its rate limit of {rate}")
        wait = turn - app.clock.time()
        if wait > limits.PATIENCE:
            return Later(wait, f"over its rate limit of {rate}", {"turn": round(turn, 6)})
        if wait > 0:
            await app.clock.sleep(wait)
        return None

    async def _claim_key(self, job: Job, message: Message, store: Store, ttl: float) -> str | None:
        """Take the idempotency key, and return it. It comes of decoded arguments: user code, off this loop."""
        from cloudq import idempotency

        assert job.task is not None
        try:
            text = await asyncio.to_thread(_key, job)
        except ArgumentsError:
            return None  # the run says so
        except FAULTS as error:
            job.outcome = Dead("its idempotency_key could not be made", Failure.of(error), states.FAILURE)
            return None
        now, window = self.app.clock.time(), job.task.settings.window
        try:
            if window is not None:
                job.outcome = await idempotency.claim(store, message, text, now=now, window=window, ttl=ttl, deferrals=job.deferrals)
        except CloudQError as error:
            logger.warning("%s waits: the store cannot be asked about its idempotency key: %s", job.label, error)
            job.outcome = _store_away(job)
        return text

    async def _free_unique(self, job: Job, message: Message, key: str, store: Store) -> None:
        """Its run begins, or it needs none: the same call may be sent again."""
        from cloudq import idempotency

        if job.task is None or job.task.settings.unique is None:
            return
        try:
            await idempotency.release(store, message.task, key, message.id)
        except CloudQError as error:
            logger.warning("%s waits: the store cannot be asked about its unique call: %s", job.label, error)
            job.outcome = _store_away(job)

    async def renew(self, job: Job, until: float) -> None:
        """The host's heartbeat: hold the claim until ``until`` (Unix time, seconds); sets ``job.revoked`` where the run is to end.

        Raises LeaseLost once the claim is another's, StoreError where the store cannot be asked.
        """
        claim, message, store = job.claim, job.message, self.app.store
        if claim is None or message is None or store is None:
            return
        stop = await claim.renew(until)
        if not stop and message.flow is not None and message.flow != message.id:
            stop = await records.is_revoked(store, message.flow, running=True)
        job.revoked = job.revoked or stop

    async def _enter_flow(self, job: Job, message: Message, store: Store) -> None:
        """What a step of a workflow needs beside its claim: that nobody has revoked the whole, and the results that it begins with."""
        from cloudq import chords

        try:
            if message.flow is not None and message.flow != message.id and await records.is_revoked(store, message.flow):
                job.outcome = Dropped("its workflow was revoked", state=states.REVOKED)
            elif message.results is not None:
                job.given = (await chords.results(store, message.results["chord"]),)
        except TaskFailed as missing:
            job.outcome = Dead(f"a chord's body without its results: {missing}", state=states.FAILURE)
        except CloudQError as error:
            logger.warning("%s waits: the store cannot be asked about its workflow: %s", job.label, error)
            job.outcome = _store_away(job)

    # ------------------------------------------------------------------ running

    def run(self, job: Job) -> Outcome:
        """Run a sync task in the calling thread and context; never raises."""
        task = job.task
        assert task is not None
        try:
            args, kwargs = self._enter(job)
            value = task.call(args, kwargs) if kwargs is not EACH else [task.call(each, {}) for each in args]
            outcome: Outcome = self._done(job, value)
        except BaseException as error:
            outcome = self.failed(job, error)
        self._leave(job, outcome)
        return outcome

    def run_isolated(self, job: Job) -> Outcome:
        """``run`` in a context of its own, so that what a task sets in context variables ends with it."""
        return contextvars.copy_context().run(self.run, job)

    async def arun(self, job: Job) -> Outcome:
        """Run an async task in the calling asyncio task, within its time limit. Raises only CancelledError, when the host cancels it."""
        task = job.task
        assert task is not None
        limit = asyncio.timeout(job.timeout)
        try:
            async with limit:
                args, kwargs = self._enter(job)
                value = await task.call(args, kwargs) if kwargs is not EACH else [await task.call(each, {}) for each in args]
            outcome: Outcome = self._done(job, value)
        except asyncio.CancelledError as error:
            if (own := asyncio.current_task()) is not None and own.cancelling() and not job.revoked:
                raise  # the host gives up this run
            outcome = self.failed(job, error)
        except BaseException as error:
            outcome = self.timed_out(job) if limit.expired() else self.failed(job, error)
        self._leave(job, outcome)
        return outcome

    def _enter(self, job: Job) -> tuple[Sequence[Any], Mapping[str, Any]]:
        task, message = job.task, job.message
        assert task is not None and message is not None
        current.set(job)
        if job.timeout is not None:
            job.deadline = self.app.clock.time() + job.timeout
        if message.each:
            arguments: tuple[Sequence[Any], Mapping[str, Any]] = [task.codec.decode(each, {})[0] for each in message.args], EACH
        else:
            arguments = task.codec.decode([*job.given, *message.args] if job.given else message.args, message.kwargs)
        job.arguments = arguments
        if (made := job.made_request) is not None:
            made.args, made.kwargs = arguments
            made.deadline = job.deadline
        for hook in self.app.hooks.before_run:
            hook(job.request)
        return arguments

    def _leave(self, job: Job, outcome: Outcome) -> None:
        hooks = self.app.hooks
        if job.abandoned:
            return
        if hooks.after_run or hooks.on_retry or hooks.on_dead:
            call_quietly(hooks.after_run, job.request, outcome)
            self.notify(job, outcome)

    def notify(self, job: Job, outcome: Outcome) -> None:
        """Call the middleware's hooks for a retry or a dead letter; user code, so never on the I/O thread."""
        if isinstance(outcome, Again):
            call_quietly(self.app.hooks.on_retry, job.request, outcome)
        elif isinstance(outcome, Dead):
            call_quietly(self.app.hooks.on_dead, job.message, job.delivery.queue, outcome)

    # ------------------------------------------------------------------ what it came to

    def _done(self, job: Job, value: object) -> Done | Dead:
        message, task = job.message, job.task
        assert message is not None and task is not None
        for each in cast("list[object]", value) if message.each else (value,):
            if inspect.iscoroutine(each):  # nothing of it has run
                each.close()
                return Dead(f"it returned a {type(each).__name__}, which nobody awaits: declare it with async def", None, states.FAILURE)
        wanted = (job.claim is not None or job.recorded) and not (message.ignore_result or task.settings.ignore_result)
        if not wanted and not message.has_follow_ups and task.key is None:
            return NOTHING
        try:
            if message.each:
                return Done([_kept(task.codec.encode_result(each)) for each in cast("list[object]", value)])
            return Done(_kept(task.codec.encode_result(value)))
        except (ArgumentsError, ValueError) as error:  # running it again would do its work twice and give the same
            return Dead(f"its result cannot travel: {error}", Failure.of(error), states.FAILURE)

    def failed(self, job: Job, error: BaseException) -> Outcome:
        """What an exception means for the job."""
        task, message = job.task, job.message
        assert task is not None and message is not None
        if job.revoked:
            return revoked()
        match error:
            case Ignore():
                return Done(kept=False)
            case Interrupted():
                return self.crashed(job, str(error))
            case Reject():
                return Dead(f"rejected by the task: {error}", Failure.of(error))
            case ArgumentsError() if error.task == task.name and _outermost(error):
                return Dead(str(error), Failure.of(error))
            case RetryRequested():
                cause = error.__cause__ or error
                most = task.policy.max_retries if error.max_retries is None else error.max_retries
                if most is not None and message.retries >= most:
                    return Dead(f"out of retries ({message.retries})", Failure.of(cause), states.FAILURE)
                return Again(task.policy.pause(message.retries) if error.delay is None else error.delay, Failure.of(cause))
            case Exception():
                try:
                    wait = task.policy.wait(error, message.retries)
                except FAULTS as broken:
                    return Dead("its Retry(decide=…) failed", Failure.of(broken), states.FAILURE)
                if wait is not None:
                    return Again(wait, Failure.of(error))
                retried = isinstance(error, task.policy.on) and message.retries > 0
                failure = Failure.of(error)
                why = "it ran over its time limit" if isinstance(error, TimeLimitExceeded) else f"it raised {failure.type}"
                reason = f"out of retries ({message.retries}): {why}" if retried else why
                return Dead(reason, failure, states.FAILURE)
            case _:  # SystemExit, KeyboardInterrupt raised by the task's own code, a stray CancelledError
                failure = Failure.of(error)
                return Dead(f"it raised {failure.type}", failure, states.FAILURE)

    def timed_out(self, job: Job) -> Outcome:
        """The outcome of a run that its host ended, or gave up, at its time limit."""
        assert job.timeout is not None
        return self.failed(job, TimeLimitExceeded(f"it ran over its time limit of {job.timeout:g} s"))

    def crashed(self, job: Job, how: str) -> Outcome:
        """The outcome of a run whose process died: one attempt, up to the crash cap, whatever its Retry says."""
        message = job.message
        assert message is not None
        error = Failure("cloudq.WorkerCrashed", how)
        crashes = job.crashes + 1
        if crashes >= self.app.conf.crash_cap:
            return Dead(f"crash loop: {how}, {crashes} times", error)
        return Again(min(2.0 ** (crashes - 1), 60.0), error, crashed=True)


def revoked() -> Dropped:
    """The outcome of a run that ended because its task was revoked."""
    return Dropped(states.WAS_REVOKED, state=states.REVOKED)


def _store_away(job: Job) -> Later:
    """It waits until the store can be asked again; longer each time, for each is a message."""
    return Later(growing_pause(job.deferrals + 2), "the store could not be reached")


def _kept(value: object) -> object:
    """A result as it is now: the task may have kept the list that it returned, and change it before it is written."""
    return json.loads(dumps(cast("object", value))) if isinstance(value, (list, dict)) else value


def _limit_key(job: Job) -> str:
    task, message = job.task, job.message
    assert task is not None and message is not None and task.limit_key is not None
    args = message.args[0] if message.each and message.args else [*job.given, *message.args]
    return task.limit_key.of(task.codec.decode(args, message.kwargs))


def _needs_store(message: Message) -> bool:
    return message.join is not None or message.results is not None or waits_for_members(message.fields)


def _key(job: Job) -> str:
    task, message = job.task, job.message
    assert task is not None and message is not None
    return "\n".join(task.call_key(args, message.kwargs) for args in (message.args if message.each else [[*job.given, *message.args]]))


def _outermost(error: ArgumentsError) -> bool:
    """Whether it comes from decoding this task's own arguments, not from a call that the task's code made of itself."""
    frame, depth = error.__traceback__, 0
    while frame is not None:
        if frame.tb_frame.f_code.co_name == "call" and frame.tb_frame.f_globals.get("__name__") == "cloudq.task":
            return False
        frame, depth = frame.tb_next, depth + 1
    return True
