"""Makes an outcome durable, in the order that loses nothing if the process dies at any step between."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from cloudq import calls, records, states
from cloudq.broker import Outgoing
from cloudq.errors import CloudQError, DecodeError, DocumentTooLarge, LeaseLost, MessageTooLarge
from cloudq.message import DEAD_ATTRIBUTE as DEAD_ATTRIBUTE
from cloudq.message import Message, dead_letter, derived_id
from cloudq.outcome import Again, Dead, Done, Dropped, Failure, Later, Outcome
from cloudq.values import dumps

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.runner import Job

logger = logging.getLogger("cloudq.runner")
task_logger = logging.getLogger("cloudq.task")

MOST_PAUSE: Final = 5.0
"""Seconds between two tries at most."""
MARGIN: Final = 10.0
"""Seconds of the longest lease that are left where an ordered message is kept away by it: clocks differ, and requests take time."""


class Verdict(Enum):
    """What a host now does with the delivery."""

    ACK = "ack"
    """Its outcome is durable: delete it."""
    KEEP = "keep"
    """Let it be: its lease was set to end when it shall come back, or somebody else holds it."""
    LEFT = "left"
    """Let it be: its outcome could not be made durable, and it is to be delivered again."""


def is_settled(job: Job, outcome: Outcome) -> bool:
    """Whether there is nothing to make durable: the task returned, and nobody wants its value."""
    return job.claim is None and type(outcome) is Done and (job.message is None or not job.message.has_follow_ups)


def announce(job: Job, outcome: Outcome, took: float) -> None:
    """Log what a message came to, ``took`` seconds after it was received: one record a message, its facts in ``record.cloudq``."""
    message = job.message
    level, said = logging.INFO, "done"
    match outcome:
        case Done():
            pass
        case Again(delay, error):
            level, said = logging.WARNING, f"again in {delay:.1f} s after {error.type}: {error.detail}"
        case Later(delay, why):
            said = f"later, in {delay:.1f} s: {why}"
        case Dead(reason, error):
            level, said = logging.ERROR, f"dead: {reason}"
            if error:
                said += f": {error.detail}" if reason.endswith(error.type) else f": {error.type}: {error.detail}"
        case Dropped():
            said = f"dropped: {outcome.why}"
    facts = {
        "task": message.task if message else None,
        "task_id": message.id if message else None,
        "queue": job.delivery.queue,
        "attempt": message.attempt if message else None,
        "outcome": type(outcome).__name__.lower(),
        "duration": round(took, 4),
    }
    if isinstance(outcome, (Again, Dead)) and outcome.error is not None and outcome.error.traceback:
        facts["exc"] = outcome.error.traceback
    task_logger.log(level, "%s %s (%.3f s)", job.label, said, took, extra={"cloudq": facts})


class _Unwritable(Exception):
    """A message could be read and cannot be written again: 1e999, nesting at Python's limit."""


async def settle(app: CloudQ, job: Job, outcome: Outcome) -> Verdict:
    """Make ``outcome`` durable; on the I/O loop. Raises CloudQError or TimeoutError where it could not; the delivery must stay.

    Each branch writes in the order whose interruption leads to a repetition and never to a loss.
    """
    try:
        if type(outcome) is Dead or (type(outcome) is Dropped and outcome.state is not None):
            outcome = await _known(app, job) or outcome
        match outcome:
            case Done():
                return await _done(app, job, outcome)
            case Again():
                return await _again(app, job, outcome)
            case Later():
                return await _later(app, job, outcome)
            case Dead():
                return await _dead(app, job, outcome)
            case Dropped():
                return await _dropped(app, job, outcome)
    except _Unwritable as error:
        return await _dead(app, job, Dead(f"it cannot be sent again: {error}"))
    except LeaseLost as lost:  # the claim's: whoever has it now settles; if they die too, the delivery comes back
        logger.warning("%s: %s; what it came to here is discarded", job.label, lost)
        return Verdict.KEEP


def may_pass(app: CloudQ, error: Exception, began: float) -> bool:
    """Whether to go on with what has failed since ``began`` (monotonic seconds): while the other end is away, and else for a while."""
    return isinstance(error, (ConnectionError, TimeoutError)) or time.monotonic() - began < app.conf.send_timeout


async def settle_repeatedly(app: CloudQ, job: Job, outcome: Outcome, *, tries: int, is_ours: Callable[[], bool] = lambda: False) -> Verdict:
    """``settle``, tried again where it could not: ``tries`` times, and then for as long as the delivery ``is_ours``, with growing pauses.

    What has run must not run again because a store is away. LEFT where its outcome could not be made durable. Never raises.
    """
    began = time.monotonic()
    for attempt in itertools.count(1):
        try:
            return await settle(app, job, outcome)
        except (CloudQError, TimeoutError) as error:
            logger.warning("%s: its outcome could not be made durable (try %d): %s", job.label, attempt, error)
            if attempt >= tries and not (is_ours() and may_pass(app, error, began)):
                break
            await asyncio.sleep(min(0.1 * 2**attempt, MOST_PAUSE))
        except Exception:
            logger.exception("%s: its outcome could not be made durable", job.label)
            break
    logger.error("%s is left to its lease: it will be delivered again", job.label)
    return Verdict.LEFT


async def _done(app: CloudQ, job: Job, outcome: Done) -> Verdict:
    """The result before the follow-ups: a redelivery finds the result, and sends the same follow-ups again."""
    if job.claim is not None:
        message, task = job.message, job.task
        assert message is not None and task is not None
        ignored = message.ignore_result or task.settings.ignore_result
        value = None if ignored and not message.has_follow_ups and task.key is None else outcome.value
        try:
            await job.claim.finish(states.SUCCESS, at=app.clock.time(), value=value, reason=None if outcome.kept else records.IGNORED)
        except DocumentTooLarge as error:  # to run it again would come to the same
            return await _dead(app, job, Dead(f"its result cannot be kept: {error}", None, states.FAILURE))
    if job.message is not None and outcome.kept:
        await _succeeded(app, job, outcome.value)
    elif job.message is not None:
        await _failed(app, job.message, job.delivery.queue, records.IGNORED, None, quiet=True)
    return Verdict.ACK


async def _again(app: CloudQ, job: Job, outcome: Again) -> Verdict:
    """The next attempt before the note of it: a redelivery of this attempt runs it again at worst."""
    assert job.message is not None
    if job.ordered:  # sending again would let later messages of the group overtake
        if job.claim is not None and not job.passed:
            crashes = job.claim.crashes + 1 if outcome.crashed else 0
            await job.claim.retry(outcome.error, app.clock.time() + outcome.delay, crashes=crashes)
            job.passed = True
        return await _hold(app, job, outcome.delay)
    if not job.passed:
        await _send(app, job, job.message.next_attempt(crashed=outcome.crashed), outcome.delay)
        job.passed = True
    if job.claim is not None:  # the message tells of this crash
        with suppress(LeaseLost):  # the next attempt has begun already
            await job.claim.retry(outcome.error, app.clock.time() + outcome.delay, crashes=job.claim.crashes if outcome.crashed else 0)
    return Verdict.ACK


async def _later(app: CloudQ, job: Job, outcome: Later) -> Verdict:
    """The same attempt again, in a new message: so the broker's receive count is not used up."""
    if job.claim is not None:
        await job.claim.release(app.clock.time() + outcome.delay)
    hold = app.broker.limits.hold
    held = job.claim is None and hold and (outcome.delay <= hold or app.timer is None)
    if job.ordered or held:  # sent again it would be back at once; what could be claimed comes back with an eta, and its host then holds it
        return await _hold(app, job, outcome.delay)
    message = job.message or Message(job.fields or {})
    if job.as_is and _is_sealed(message.fields):  # its key could not be had: no byte of it may change
        await app.sender.asend(job.delivery.queue, Outgoing(body=job.body, delay=_possible(app, job, outcome.delay)), "", as_is=True)
        return Verdict.ACK
    deferrals = message.fields.get("deferrals", 0)
    changes = {**outcome.changes, "deferrals": deferrals + 1 if isinstance(deferrals, int) else 1}
    await _send(app, job, message.copy(**changes), outcome.delay)
    return Verdict.ACK


async def _dead(app: CloudQ, job: Job, outcome: Dead) -> Verdict:
    """The dead letter before the result: a redelivery makes a second dead letter at worst; the other order could make none."""
    await _bury(app, job, outcome.reason, outcome.error)
    if job.message is not None:
        await _finish(app, job, outcome.state, reason=outcome.reason, error=outcome.error)
        error = outcome.error.as_json() if outcome.error else None
        await _failed(app, job.message, job.delivery.queue, outcome.reason, error)
    return Verdict.ACK


async def _bury(app: CloudQ, job: Job, reason: str, error: Failure | None) -> None:
    """Send the dead letter, once."""
    if job.passed:
        return
    queue = job.delivery.queue
    note: dict[str, Any] = {"reason": reason, "queue": queue, "at": round(app.clock.time(), 3), "receives": job.delivery.receives}
    if error is not None:
        note["error"] = error.as_json()
    await _send_body(app, job, app.dead_letter_queue(queue), _letter(job, note), note)
    job.passed = True


async def _dropped(app: CloudQ, job: Job, outcome: Dropped) -> Verdict:
    message, queue = job.message, job.delivery.queue
    if outcome.state is not None:
        await _finish(app, job, outcome.state, reason=outcome.why, error=None, value=outcome.value)
    if message is None:
        return Verdict.ACK
    repeats = outcome.state is None and outcome.follow_ups and (message.has_follow_ups or bool(message.link_error))
    if repeats and app.store is not None:
        now = app.clock.time()
        taken = await records.follow_again(app.store, message.id, now=now, until=max(job.delivery.lease_until, now))
        if taken is not True:
            return await _later(app, job, taken) if isinstance(taken, Later) else Verdict.ACK
    if outcome.state is not None and not outcome.follow_ups:
        await _failed(app, message, queue, outcome.why, None, quiet=outcome.state == states.SUCCESS)
    if outcome.follow_ups and outcome.ended is not None:
        quiet = outcome.ended["state"] == states.SUCCESS
        await _failed(app, message, queue, outcome.ended.get("reason", ""), outcome.ended.get("error"), quiet=quiet)
    elif outcome.follow_ups and not await _succeeded(app, job, outcome.value):
        return Verdict.ACK
    if repeats and app.store is not None:
        await records.note_followed(app.store, message.id, now=app.clock.time())
    return Verdict.ACK


async def _known(app: CloudQ, job: Job) -> Later | Dropped | None:
    """A copy of a message that comes late (it has expired meanwhile, or was delivered too often) does not decide what its task came to."""
    store, message = app.store, job.message
    return None if store is None or message is None or job.claim is not None else await records.before(store, message, app.clock.time())


async def _succeeded(app: CloudQ, job: Job, value: Any) -> bool:
    """Start what follows; returns whether all of it could be sent."""
    message = job.message
    if message is None or not message.has_follow_ups:
        return True
    from cloudq import follow  # with all of workflows, which most tasks are no part of

    try:
        await follow.succeeded(app, message, value)
    except follow.Refused as refused:  # its result stays; once redriven, only what follows is tried again
        reason = f"it is done, but what follows it cannot be sent: {refused}"
        logger.error("%s: %s", job.label, reason)
        await _bury(app, job, reason, None)
        return False
    return True


async def _failed(app: CloudQ, message: Message, queue: str, reason: str, error: Mapping[str, Any] | None, *, quiet: bool = False) -> None:
    if message.has_follow_ups or message.link_error:
        from cloudq import follow

        await follow.failed(app, message, queue, reason, error, quiet=quiet)


async def _finish(app: CloudQ, job: Job, state: str, *, reason: str, error: Failure | None, value: Any = None) -> None:
    store, message = app.store, job.message
    if job.claim is not None:
        await job.claim.finish(state, at=app.clock.time(), value=value, reason=reason, error=error)
    elif store is not None and message is not None:
        await records.finish_unclaimed(
            store,
            message,
            job.delivery.queue,
            state,
            at=app.clock.time(),
            ttl=app.conf.result_expires,
            reason=reason,
            error=error.as_json() if error else None,
        )


async def _send(app: CloudQ, job: Job, message: Message, delay: float) -> None:
    try:
        body = (message if job.message is None else calls.held_until(app, message, delay)).encode()
    except ValueError as error:
        raise _Unwritable(str(error)) from error
    tenant = None if job.message is None else message.tenant  # of a newer version nothing is known
    outgoing = Outgoing(body=body, delay=_possible(app, job, delay), tenant=tenant)  # no group: an ordered delivery is never sent again
    id = str(message.fields.get("id", ""))
    try:
        await app.sender.asend(job.delivery.queue, outgoing, id, as_is=job.as_is)
    except MessageTooLarge:  # for the timer, which may take less than the broker: then the broker's longest delay must do
        limits = app.broker.limits
        if outgoing.delay <= (longest := max(limits.delay, limits.hold)):
            raise
        if longest > limits.delay:  # it is held for as long as its eta says
            outgoing = replace(outgoing, body=calls.held_until(app, message, longest).encode())
        await app.sender.asend(job.delivery.queue, replace(outgoing, delay=longest), id, as_is=job.as_is)


def _possible(app: CloudQ, job: Job, delay: float) -> float:
    """The delay, or the longest that can be had: coming back too early is better than being lost."""
    longest = max(app.broker.limits.delay, app.broker.limits.hold)
    timer = app.timer
    if timer is not None:
        longest = max(longest, timer.limits.horizon)
    if (checks := app.sender.checks) is not None:  # what has an eta is sent again then, and its body with it
        longest = min(longest, checks.delay)
    if delay > longest:
        logger.warning("%s should wait %.3g s, but %.3g s is the longest delay here", job.label, delay, longest)
    return min(delay, longest)


def _is_sealed(fields: Mapping[str, Any]) -> bool:
    from cloudq.seal import is_sealed  # few apps have keys, and every cold start pays for what is imported

    return is_sealed(fields)


def _letter(job: Job, note: dict[str, Any]) -> str:
    """The body of a dead letter."""
    if job.message is None and job.fields is not None and _is_sealed(job.fields):
        from cloudq.seal import noted

        with suppress(DecodeError):
            return noted(job.body, note)
    return dead_letter(job.body, job.message.fields if job.message is not None else job.fields, note)


async def _send_body(app: CloudQ, job: Job, queue: str, body: str, note: dict[str, Any]) -> None:
    """Send a dead letter. Where its note makes it too large the traceback goes, then the error's text, then all but the reason."""
    error: dict[str, Any] = dict(note.get("error") or {})
    for left_out in (None, "traceback", "detail"):
        if left_out is not None and error:
            error[left_out] = "(left out: the message was too large)"
            body = _letter(job, {**note, "error": error})
        if app.sender.fits(body):
            break
    attributes: dict[str, str] = {}
    as_is = job.as_is
    if not app.sender.fits(body):
        as_is = True
        body, attributes = job.body, {DEAD_ATTRIBUTE: dumps(note["reason"])[1:-1][:200]}
    outgoing = Outgoing(
        body=body,
        attributes=attributes,
        group=job.delivery.group,
        dedup=derived_id("dead", dumps(job.body), job.delivery.message_id),
    )
    await app.sender.asend(queue, outgoing, job.message.id if job.message is not None else "", as_is=as_is)


async def _hold(app: CloudQ, job: Job, delay: float) -> Verdict:
    """Keep the delivery away for ``delay`` seconds by its own lease; its group waits with it."""
    if job.delivery.receipt is None:  # it was pushed: it comes back by the sender's own delays
        return Verdict.KEEP
    limits = app.broker.limits
    room = job.delivery.received + limits.max_lease - MARGIN - app.clock.time()  # what is asked for beyond is refused
    wait = max(min(delay, limits.extend, room), 1.0) if delay else 0.0
    answers = await app.broker.extend([job.delivery], wait)
    if answers[0] is not None and not isinstance(answers[0], LeaseLost):
        raise answers[0]
    return Verdict.KEEP
