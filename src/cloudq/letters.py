"""Looks into queues and dead-letter queues, redrives and purges: for commands and dashboards. Every function runs on the app's I/O loop.

A queue can only be read by receiving: what is looked at is leased, held so that it does not come twice, and given back at the end. Each
look counts as a delivery. Brokers may deliver twice, come back empty and lose leases meanwhile: nothing here deletes a message
that was not accepted elsewhere first (but ``purge``, which deletes), and every loop is bounded by the count at its start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from cloudq import claimcheck
from cloudq.broker import Broker, Delivery, Outgoing, QueueStats, SettleError
from cloudq.errors import BrokerError, BrokerUnavailable, CloudQError, DecodeError, QueueNotFound
from cloudq.message import derived_id, parse, unwrap
from cloudq.seal import is_sealed, noted
from cloudq.settle import DEAD_ATTRIBUTE
from cloudq.values import dumps

if TYPE_CHECKING:
    from cloudq.app import CloudQ

logger = logging.getLogger("cloudq.letters")

TRIES: Final = 3
"""Requests that fail one after another, or receives that bring nothing new, before the matter is left."""
WAIT: Final = 1.0
"""Seconds that a receive waits; on SQS any wait asks all of a queue's servers, and none asks a sample."""
UNCOUNTED: Final = 100_000
"""Messages looked at in one pass at most, where the broker does not say how many there are."""

_Request: TypeAlias = Callable[[Sequence[Delivery]], Awaitable[Sequence[SettleError | None]]]

Progress: TypeAlias = Callable[[int], None]
"""Told how many messages are done; called on the I/O loop, so it must not block."""


# ---------------------------------------------------------------------- what is found


@dataclass(frozen=True, slots=True, eq=False)
class Letter:
    """A message as it lies in a queue: a call, a dead letter, or whatever else somebody sent."""

    delivery: Delivery
    fields: dict[str, Any]
    """The body as JSON, decrypted where this process can; empty where it is no JSON object."""
    text: str = ""
    """The body that they were read from."""
    sealed: bool = False
    """Whether that is signed or encrypted: then no byte of it may change."""

    @classmethod
    def of(cls, delivery: Delivery, body: str | None = None) -> Letter:
        """Read a delivery, or ``body`` where its own is only a claim for that; one that cannot be read is a letter too."""
        text = delivery.body if body is None else body
        try:
            fields = parse(text)
        except DecodeError:
            return cls(delivery, {}, text)
        return cls(delivery, fields, text, is_sealed(fields))

    @property
    def id(self) -> str:
        """The task id; the provider's message id where there is none."""
        return _text(self.fields.get("id")) or self.message_id

    @property
    def message_id(self) -> str:
        """The provider's id of this message."""
        return self.delivery.message_id

    @property
    def task(self) -> str | None:
        """The task's name."""
        return _text(self.fields.get("task"))

    @property
    def attempt(self) -> int:
        """The attempt that the message stands for."""
        attempt = self.fields.get("attempt", 0)
        return attempt if isinstance(attempt, int) else 0

    @property
    def dead(self) -> dict[str, Any]:
        """Why it is a dead letter; empty where the broker itself moved it, or where it is none."""
        dead = self.fields.get("dead")
        return cast("dict[str, Any]", dead) if isinstance(dead, dict) else {}

    @property
    def reason(self) -> str:
        """Why it is dead, in words."""
        return _text(self.dead.get("reason")) or self.delivery.attributes.get(DEAD_ATTRIBUTE) or "moved by the broker: delivered too often"

    @property
    def error(self) -> dict[str, Any]:
        """The error's ``type``, ``detail`` and ``traceback``; empty where there was none."""
        error = self.dead.get("error")
        return cast("dict[str, Any]", error) if isinstance(error, dict) else {}

    @property
    def queue(self) -> str | None:
        """Where it died."""
        return _text(self.dead.get("queue"))

    @property
    def at(self) -> float | None:
        """When it died (Unix time, seconds)."""
        at = self.dead.get("at")
        return float(at) if isinstance(at, (int, float)) else None

    @property
    def sent(self) -> float | None:
        """When it was called (Unix time, seconds), or else when the broker took it."""
        sent = self.fields.get("sent")
        return float(sent) if isinstance(sent, (int, float)) else self.delivery.sent

    @property
    def raw(self) -> str | None:
        """The body before it died, where that was no JSON object."""
        return unwrap(self.fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Which letters are meant. What is not set does not count."""

    ids: frozenset[str] = frozenset()
    """Task ids or message ids."""
    task: str | None = None
    """The task's whole name."""
    error: str | None = None
    """Part of the error's type, of its message or of the reason, in any case."""

    def __call__(self, letter: Letter) -> bool:
        """Whether ``letter`` is meant."""
        if self.ids and not self.ids & {letter.id, letter.message_id}:
            return False
        if self.task is not None and letter.task != self.task:
            return False
        said = f"{letter.error.get('type', '')}\n{letter.error.get('detail', '')}\n{letter.reason}"
        return self.error is None or self.error.lower() in said.lower()


ALL: Final = Match()


@dataclass(slots=True)
class Found:
    """What a look found."""

    letters: list[Letter]
    stats: QueueStats
    """The queue's counts before the look."""
    looked_at: int = 0
    """Different messages received, whether meant or not."""

    @property
    def unseen(self) -> int:
        """How many were probably there and were not looked at: limited, or held by somebody else."""
        return max(0, (self.stats.ready or 0) + (self.stats.in_flight or 0) - self.looked_at)


@dataclass(slots=True)
class Redriven:
    """What a redrive did."""

    sent: list[tuple[Letter, str]] = field(default_factory=lambda: [])
    """Accepted by the queue named, and deleted here (or, in a dry run, would be)."""
    failed: list[tuple[Letter, str]] = field(default_factory=lambda: [])
    """Not sent, with the reason; they stay where they were."""
    kept: list[Letter] = field(default_factory=lambda: [])
    """Sent, but they could not be deleted here: they are in both queues, under one task id."""
    looked_at: int = 0


@dataclass(slots=True)
class Exported:
    """What an export did."""

    written: int = 0
    kept: list[Letter] = field(default_factory=lambda: [])
    """Written, but they could not be deleted here although they should have been."""


# ---------------------------------------------------------------------- the functions


async def stats(app: CloudQ, queue: str) -> QueueStats | None:
    """The counts of a queue; ``None`` where the broker has none of that name."""
    try:
        return await app.broker.stats(queue)
    except QueueNotFound:
        return None


def dead_letter_queue(app: CloudQ, name: str) -> str:
    """The dead-letter queue that ``name`` means: a queue's, or itself where it is one, or is an undeclared queue that is named in full."""
    in_full = ":" in name or "/" in name
    if name not in app.queues and (in_full or sources(app, name) or app.conf.dead_letter_queue(source(app, name)) == name):
        return name
    return app.dead_letter_queue(name)


def sources(app: CloudQ, dead_letters: str) -> list[str]:
    """The declared queues whose dead letters go to ``dead_letters``."""
    return [name for name in app.queues if app.dead_letter_queue(name) == dead_letters]


def source(app: CloudQ, dead_letters: str) -> str:
    """The queue that the naming rule gives: the name without the suffix."""
    stem, fifo = (dead_letters.removesuffix(".fifo"), ".fifo") if dead_letters.endswith(".fifo") else (dead_letters, "")
    return stem.removesuffix(app.conf.dead_letter_suffix) + fifo


async def scan(app: CloudQ, queue: str, match: Match = ALL, *, limit: int | None = None, progress: Progress | None = None) -> Found:
    """Look through a queue, for at most ``limit`` letters that match, and give everything back."""
    found = Found([], await app.broker.stats(queue))
    async with _reading(app, queue, found.stats, most=limit if match is ALL else None) as reading:
        async for batch in reading.batches():
            found.letters += [letter for letter in batch if match(letter)]
            found.looked_at = reading.seen
            if progress:
                progress(reading.seen)
            if limit is not None and len(found.letters) >= limit:
                break
    found.letters = found.letters[:limit]
    return found


async def redrive(
    app: CloudQ, dead_letters: str, match: Match, *, to: str | None = None, dry_run: bool = False, progress: Progress | None = None
) -> Redriven:
    """Send the dead letters that match to the queues where they died (or to ``to``), and delete them here once they are accepted.

    A letter keeps its ``dead`` field: the runner starts it afresh, under the same task id. What dies again meanwhile is left, and the
    pass is bounded by the count at its start: nothing is sent around in circles.
    """
    done, began, sent = Redriven(), app.clock.time(), set[str]()
    wanted = set(match.ids)
    async with _reading(app, dead_letters, await app.broker.stats(dead_letters)) as reading:
        async for batch in reading.batches():
            chosen = [letter for letter in batch if match(letter) and not (letter.id in sent and (letter.at or 0.0) > began)]
            await _redrive_batch(app, reading, dead_letters, chosen, done, to, dry_run=dry_run)
            sent.update(letter.id for letter in chosen)
            done.looked_at = reading.seen
            if progress:
                progress(len(done.sent))
            wanted -= {id for letter in chosen for id in (letter.id, letter.message_id)}
            if match.ids and not wanted:
                break
    return done


async def export(
    app: CloudQ,
    dead_letters: str,
    match: Match,
    write: Callable[[Sequence[Letter]], None],
    *,
    delete: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Give the dead letters that match to ``write``, some at a time; with ``delete`` they are deleted once it has returned.

    ``write`` is called on the I/O loop, which it may block for the time that a disk takes.
    """
    done = Exported()
    async with _reading(app, dead_letters, await app.broker.stats(dead_letters)) as reading:
        async for batch in reading.batches():
            chosen = [letter for letter in batch if match(letter)]
            if chosen:
                write(chosen)
            done.written += len(chosen)
            if delete:
                done.kept += await reading.ack(chosen)
            if progress:
                progress(reading.seen)
    return done


async def purge(app: CloudQ, queue: str, *, progress: Progress | None = None) -> int:
    """Delete what can be received, up to about the count at the start; returns how many. There is no way back."""
    deleted = 0
    async with _reading(app, queue, await app.broker.stats(queue)) as reading:
        async for batch in reading.batches():
            deleted += len(batch) - len(await reading.ack(batch))
            if progress:
                progress(deleted)
    return deleted


# ---------------------------------------------------------------------- redriving


async def _redrive_batch(
    app: CloudQ, reading: _Reading, dead_letters: str, chosen: Sequence[Letter], done: Redriven, to: str | None, *, dry_run: bool
) -> None:
    ready: list[tuple[Letter, str, Outgoing]] = []
    for letter in chosen:
        target, body = to or _target(app, dead_letters, letter), _body(letter)
        if target is None:
            done.failed.append((letter, f"it does not say where it died, and {dead_letters!r} serves several queues: name one"))
        elif len(body.encode("utf-8", "surrogatepass")) > app.sender.most:
            done.failed.append((letter, "with the note that makes it start afresh it is too large"))
        else:
            ready.append((letter, target, _outgoing(letter, body)))
    if dry_run:
        done.sent += [(letter, target) for letter, target, _ in ready]
        return
    if not ready:
        return
    sends = [app.sender.asend(target, outgoing, letter.id, as_is=True) for letter, target, outgoing in ready]
    answers = await asyncio.gather(*sends, return_exceptions=True)
    accepted = [(letter, target) for (letter, target, _), answer in zip(ready, answers, strict=True) if answer is None]
    done.failed += [(letter, str(answer)) for (letter, _, _), answer in zip(ready, answers, strict=True) if answer is not None]
    done.sent += accepted
    done.kept += await reading.ack([letter for letter, _ in accepted])


def _target(app: CloudQ, dead_letters: str, letter: Letter) -> str | None:
    if letter.queue is not None:
        return letter.queue
    served = sources(app, dead_letters)
    if len(served) > 1:
        return None
    named = source(app, dead_letters)
    return served[0] if served else named if named != dead_letters else None


def _body(letter: Letter) -> str:
    """What is sent: the letter as it is, the raw body that it wraps, or with a note where the letter itself holds none."""
    raw = letter.raw
    if raw is not None:
        return raw
    if letter.fields and "dead" not in letter.fields:
        # Too large for its note, or moved by the broker itself. Without the note a store would say that it has ended already.
        note = {"reason": letter.reason[:100]}
        return noted(letter.text, note) if letter.sealed else dumps({**letter.fields, "dead": note})
    return letter.delivery.body


def _outgoing(letter: Letter, body: str) -> Outgoing:
    delivery = letter.delivery
    return Outgoing(
        body=body,
        group=delivery.group,
        # not the call's own: within five minutes of its death an ordered queue would drop it as a repeat (AWS SendMessage)
        dedup=derived_id("redrive", delivery.message_id) if delivery.group is not None else None,
        tenant=_text(letter.fields.get("tenant")),
        attributes={name: value for name, value in delivery.attributes.items() if name != DEAD_ATTRIBUTE},
    )


# ---------------------------------------------------------------------- reading through a queue


@asynccontextmanager
async def _reading(app: CloudQ, queue: str, stats: QueueStats, *, most: int | None = None) -> AsyncGenerator[_Reading]:
    reading = _Reading(app, queue, stats, most)
    keeper = asyncio.create_task(reading.keep())
    try:
        yield reading
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await reading.give_back()


class _Reading:
    """One pass over a queue: what was received and is held, by message id."""

    def __init__(self, app: CloudQ, queue: str, stats: QueueStats, most: int | None) -> None:
        self._app = app
        self._broker: Broker = app.broker
        self._queue = queue
        self._expected = UNCOUNTED if stats.ready is None else stats.ready
        # Counts are approximate: one batch is always looked at.
        self._bound = max(self._expected, self._broker.limits.receive)
        if most is not None:  # each look counts as a delivery: no more than asked for
            self._bound = min(self._bound, most)
        self._held: dict[object, Delivery] = {}
        self._known: set[object] = set()

    @property
    def seen(self) -> int:
        """Different messages received so far."""
        return len(self._known)

    async def batches(self) -> AsyncIterator[list[Letter]]:
        """What is new, a receive at a time. Ends at the count at the start, or when receives bring nothing new."""
        fruitless = failures = 0
        while self.seen < self._bound:
            complete = self.seen >= self._expected
            want = min(self._broker.limits.receive, self._bound - self.seen)
            try:
                received = await self._broker.receive(
                    self._queue, max_messages=want, wait=0.0 if complete else min(WAIT, self._broker.limits.wait)
                )
            except BrokerUnavailable:
                failures += 1
                if failures >= TRIES:
                    raise
                await asyncio.sleep(0.1 * failures)
                continue
            failures = 0
            fresh = self._hold(received)
            fruitless = 0 if fresh else fruitless + 1
            if fresh:
                yield await asyncio.gather(*map(self._read, fresh))
            elif complete or fruitless >= TRIES:
                return

    def _hold(self, received: Sequence[Delivery]) -> list[Letter]:
        fresh: list[Letter] = []
        for delivery in received:
            key: object = delivery.message_id or delivery
            self._held[key] = delivery  # of a message that came twice the newer receipt counts
            if key not in self._known:
                self._known.add(key)
                fresh.append(Letter.of(delivery))
        return fresh

    async def _read(self, letter: Letter) -> Letter:
        """The letter in the clear, as far as this process can read it."""
        letter, sealing = await self._collected(letter), self._app.sealing
        if sealing is None or "enc" not in letter.fields:
            return letter
        try:
            return replace(letter, fields=await sealing.reveal(letter.text, letter.fields))
        except CloudQError as error:
            logger.warning("message %s on %r: %s", letter.message_id, self._queue, error)
            return letter

    async def _collected(self, letter: Letter) -> Letter:
        """The letter with what its body says elsewhere; as it is where that cannot be had."""
        checks, claim = claimcheck.of(self._broker), letter.fields
        if checks is None or not claimcheck.is_claim(claim):
            return letter
        try:
            found = Letter.of(letter.delivery, await checks.collect(claim))
        except CloudQError as error:
            logger.warning("message %s on %r: %s", letter.message_id, self._queue, error)
            return letter
        if letter.dead:
            found.fields["dead"] = letter.dead
        return found

    async def keep(self) -> None:
        """Hold the leases while the pass goes on; one that ends all the same only brings its message again."""
        limits, clock = self._broker.limits, self._app.clock
        while True:
            await clock.sleep(limits.lease / 4)
            due = [each for each in self._held.values() if each.lease_until < clock.time() + limits.lease * 0.6]
            for batch in self._batches(due):
                try:
                    await self._broker.extend(batch, limits.lease)
                except BrokerError as error:
                    logger.debug("leases on %r could not be extended: %s", self._queue, error)

    async def ack(self, letters: Sequence[Letter]) -> list[Letter]:
        """Delete; returns those that may still be there."""
        by_delivery = {self._held.pop(letter.message_id or letter.delivery, letter.delivery): letter for letter in letters}
        answers = await self._settle(list(by_delivery), self._broker.ack)
        return [by_delivery[delivery] for delivery in answers]

    async def give_back(self) -> None:
        """Let others receive what is held; where that fails it comes back when its lease ends."""
        held, self._held = list(self._held.values()), {}
        for delivery in await self._settle(held, lambda batch: self._broker.extend(batch, 0)):
            logger.debug("message %s on %r was not given back", delivery.message_id, self._queue)

    async def _settle(self, deliveries: Sequence[Delivery], request: _Request) -> list[Delivery]:
        """Do ``request`` in batches, again for entries that failed; returns those that failed for good."""
        failed: list[Delivery] = []
        for batch in self._batches(deliveries):
            left: list[Delivery] = batch
            for _ in range(TRIES):
                try:
                    answers: Sequence[SettleError | None] = await request(left)
                except BrokerError:
                    continue
                failed += [each for each, answer in zip(left, answers, strict=True) if answer is not None and not answer.retryable]
                left = [each for each, answer in zip(left, answers, strict=True) if answer is not None and answer.retryable]
                if not left:
                    break
            failed += left
        return failed

    def _batches(self, deliveries: Sequence[Delivery]) -> list[list[Delivery]]:
        size = self._broker.limits.batch
        return [list(deliveries[at : at + size]) for at in range(0, len(deliveries), size)]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
