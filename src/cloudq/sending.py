"""Sends messages durably: merges concurrent calls into full batches, repeats failed entries alone, takes the shortest way to a delay."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from cloudq import claimcheck
from cloudq.broker import Broker, Outgoing
from cloudq.bulk import Addressed, Bulk, Entry, bulk_of, weigh
from cloudq.coalesce import IN_FLIGHT, Coalescer
from cloudq.errors import (
    BrokerError,
    BrokerUnavailable,
    Closed,
    DelayError,
    KeysError,
    KeysUnavailable,
    KeyWanted,
    MessageTooLarge,
    SendError,
    SendUnknown,
    StoreError,
    StoreUnavailable,
)
from cloudq.io import IOThread, drive

if TYPE_CHECKING:
    from cloudq.seal import Sealing
    from cloudq.timer import Timer

Answer: TypeAlias = Exception | None
"""``None`` once the entry is durably accepted."""

PAUSES: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Seconds between repeats of a failed entry; the last one goes on."""


TRYING: Final = 0.9
"""Of the time that a call waits, in which failed entries are repeated: so that it hears why."""


@dataclass(slots=True, eq=False, repr=False)
class Parcel:
    """One message on its way, and whom to tell."""

    queue: str
    outgoing: Outgoing
    task_id: str
    tell: Callable[[int, Answer], None]
    give_up: float
    """``time.monotonic()`` after which it is not repeated any more."""
    place: int = 0
    """Told to ``tell``: one function serves all that were posted together, as a closure each would double what is kept alive."""
    tries: int = 0
    timer_at: float | None = None


@dataclass(slots=True, eq=False, repr=False)
class Tally:
    """The answers to all entries of one ``send_many``; used on the I/O loop only, so that the count needs no lock."""

    left: int
    done: Callable[[], None]
    failed: dict[int, Exception] = field(default_factory=dict[int, Exception])
    answered: bytearray = field(init=False)
    """1 at the index of each that has an answer."""

    def __post_init__(self) -> None:
        self.answered = bytearray(self.left)

    def tell(self, index: int, answer: Answer) -> None:
        """One of them."""
        if answer is not None:
            self.failed[index] = answer
        self.settle((index,))

    def settle(self, indices: Sequence[int]) -> None:
        """These have their answer: they were taken, unless ``failed`` says otherwise."""
        for index in indices:
            self.answered[index] = 1
        self.left -= len(indices)
        if not self.left:
            self.done()


@dataclass(slots=True, eq=False, repr=False)
class Load:
    """A full request of one ``send_many``, whose messages are made when it is its turn."""

    queue: str
    entries: Bulk
    indices: Sequence[int]
    tally: Tally
    give_up: float

    def parcel(self, index: int) -> Parcel:
        """One of its messages, for itself."""
        entries = self.entries
        return Parcel(self.queue, entries.outgoing(index), entries.ids[index], self.tally.tell, self.give_up, index)


@dataclass(slots=True, eq=False, repr=False)
class Sender:
    """All sends of an app, from any thread, loop or process after a fork.

    ``patience``: seconds that a call waits for its confirmation before SendUnknown.
    """

    broker: Broker
    timer: Timer | None
    io: IOThread
    time: Callable[[], float]
    patience: float = 30.0
    sealing: Sealing | None = None
    """Signs and encrypts what is sent."""
    _inbox: deque[Parcel | Load] = field(default_factory=lambda: deque())
    _signalled: bool = False
    _lanes: dict[tuple[str, bool], Coalescer[Parcel]] = field(default_factory=lambda: {})
    checks: claimcheck.ClaimChecks | None = field(init=False)
    """Where bodies go that their queue does not take."""
    most: int = field(init=False)
    """Bytes of a message at most, its body inside it or elsewhere."""
    _rooms: dict[str, int] = field(default_factory=lambda: {})
    """Bytes of a message above which its body goes elsewhere, by queue."""
    _asking: dict[str, asyncio.Task[int]] = field(default_factory=lambda: {})
    """The requests that ask for these."""
    _hands: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(IN_FLIGHT))
    """How many bodies may be on their way at once."""
    _fitting: int = 0
    """Messages that wait for it."""

    def __post_init__(self) -> None:
        self.checks = claimcheck.of(self.broker)
        self.most = self.broker.limits.body if self.checks is None else max(self.broker.limits.body, claimcheck.MOST)
        self.io.after_fork(self._forget)

    def _forget(self) -> None:
        """In a forked child: what waits is the parent's to send."""
        self._inbox, self._lanes, self._signalled = deque(), {}, False
        self._fitting, self._asking, self._hands = 0, {}, asyncio.Semaphore(IN_FLIGHT)

    def check(self, outgoing: Outgoing, *, what: str) -> None:
        """Refuse at the call what can be known without a request; raises MessageTooLarge or DelayError naming ``what``."""
        limits = self.broker.limits
        size = weigh(outgoing)
        if size > self.most:
            missing = self.checks is None and isinstance(self.broker, claimcheck.ChecksBodies)
            place = ", or set bodies= in the broker's URL to the place where large bodies may lie" if missing else ""
            raise MessageTooLarge(
                f"{what}: the message has {size:,} bytes and the broker takes {self.most:,}; pass a reference (a key, a URL) instead{place}"
            )
        if self.checks is not None and size > min(limits.body, self.checks.over):
            self.checks.allow(outgoing.delay, what)
        if outgoing.group is not None and not limits.ordering:
            raise SendError(f"{what}: this broker keeps no order, so ordering_key= cannot be kept; leave it out or use a FIFO queue")
        if outgoing.delay > 0 and not self._broker_holds(outgoing):
            horizon = self.timer.limits.horizon if self.timer is not None else None
            if horizon is None:
                ordered = " on an ordered queue" if outgoing.group is not None else ""
                longest = max(limits.delay, limits.hold) if outgoing.group is None or limits.ordered_delay else 0
                raise DelayError(
                    f"{what}: a delay of {outgoing.delay:.0f} s{ordered} is over the broker's {longest:.0f} s and the app has no timer; "
                    "set CloudQ(timer=…) or CLOUDQ_TIMER, or use a shorter delay"
                )
            if outgoing.delay > horizon:
                raise DelayError(f"{what}: a delay of {outgoing.delay:.0f} s is over the timer's {horizon:.0f} s; use a shorter delay")

    def _broker_holds(self, outgoing: Outgoing) -> bool:
        """Whether the broker delays it, or those who receive it do."""
        limits = self.broker.limits
        return outgoing.delay <= max(limits.delay, limits.hold) and (outgoing.group is None or limits.ordered_delay)

    def _as_sent(self, outgoing: Outgoing) -> Outgoing:
        """The message without a delay that is its receiver's to keep: the ``eta`` in its body says it."""
        return replace(outgoing, delay=0.0) if self.broker.limits.delay < outgoing.delay and self._broker_holds(outgoing) else outgoing

    # ------------------------------------------------------------------ one message, by its caller

    def send(self, queue: str, outgoing: Outgoing, task_id: str) -> None:
        """Send and wait until durably accepted; from any thread but the I/O thread. Raises BrokerError or SendUnknown."""
        if self.sealing is not None:
            outgoing = self._sealed(self.sealing, outgoing)
        if self._at_once(outgoing):
            if not outgoing.delay:
                try:
                    if drive(self.broker.send(queue, (outgoing,)))[0] is None:
                        return
                except BrokerUnavailable:
                    pass
            _raise(drive(self._send_local(queue, [outgoing], [task_id]))[0])
            return
        self._refuse_own_thread()
        answers: list[Answer] = []
        answered = threading.Lock()  # all of a Future that is needed here, for a third of its cost
        answered.acquire()

        def tell(_: int, answer: Answer) -> None:
            answers.append(answer)
            answered.release()

        self._post([self._parcel(queue, outgoing, task_id, tell)])
        if not answered.acquire(timeout=self.patience):
            raise self._unknown(queue, task_id)
        _raise(answers[0])

    async def asend(self, queue: str, outgoing: Outgoing, task_id: str, *, as_is: bool = False) -> None:
        """``send`` for a coroutine on any loop, the I/O loop too. ``as_is``: it is sealed already, or is nothing to vouch for."""
        if self.sealing is not None and not as_is:
            outgoing = await self._asealed(self.sealing, outgoing)
        if self._at_once(outgoing):
            _raise((await self._send_local(queue, [outgoing], [task_id]))[0])
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Answer] = loop.create_future()

        def settle(answer: Answer) -> None:
            if not waiter.done():
                waiter.set_result(answer)

        def tell(_: int, answer: Answer) -> None:
            if loop is self.io.loop:
                settle(answer)
            elif not loop.is_closed():
                loop.call_soon_threadsafe(settle, answer)

        self._post([self._parcel(queue, outgoing, task_id, tell)])
        try:
            async with asyncio.timeout(self.patience):
                answer = await waiter
        except TimeoutError:
            raise self._unknown(queue, task_id) from None
        _raise(answer)

    # ------------------------------------------------------------------ many, by one caller

    def send_many(self, entries: Sequence[Addressed] | Bulk) -> dict[int, Exception]:
        """Send entries in full batches; returns the errors by index, empty when all were accepted.

        Waits ``patience`` seconds for each 10,000 entries at most; what is unconfirmed then is SendUnknown.
        """
        if not len(entries):
            return {}
        if (sealing := self.sealing) is not None:
            entries = Bulk(Entry(each.queue, self._sealed(sealing, each.outgoing), each.id) for each in entries)
        bulk = bulk_of(entries)
        if self._all_at_once(bulk):
            return drive(self._send_many_local(bulk))
        self._refuse_own_thread()
        done = threading.Event()
        tally = self._post_many(bulk, done.set)
        done.wait(self._patience_for(len(bulk)))
        return self._failures(bulk, tally)

    async def asend_many(self, entries: Sequence[Addressed] | Bulk) -> dict[int, Exception]:
        """``send_many`` for a coroutine on any loop."""
        if not len(entries):
            return {}
        if (sealing := self.sealing) is not None:
            entries = Bulk([Entry(each.queue, await self._asealed(sealing, each.outgoing), each.id) for each in entries])
        bulk = bulk_of(entries)
        if self._all_at_once(bulk):
            return await self._send_many_local(bulk)
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def tell() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        tally = self._post_many(bulk, tell)
        try:
            async with asyncio.timeout(self._patience_for(len(bulk))):
                await done.wait()
        except TimeoutError:
            pass
        return self._failures(bulk, tally)

    def _post_many(self, entries: Bulk, done: Callable[[], None]) -> Tally:
        """Full batches go as they are; what is left over, and what needs more than to be sent, goes the way of single messages."""
        tally, give_up = Tally(len(entries), done), time.monotonic() + TRYING * self.patience
        limits, everything = self.broker.limits, range(len(entries))
        plain: Sequence[int] = [i for i in everything if self._goes_as_it_is(entries, i)] if entries.whole or self.checks else everything
        batches = entries.packed(plain, limits.batch, limits.batch_bytes)
        last = {queue: at for at, (queue, _) in enumerate(batches)}
        loads: list[Parcel | Load] = []
        full = bytearray(len(entries))
        for at, (queue, indices) in enumerate(batches):
            if at < last[queue] or len(indices) == limits.batch:
                loads.append(Load(queue, entries, indices, tally, give_up))
                for index in indices:
                    full[index] = 1
        rest = (entries.entry(index) if not full[index] else None for index in everything)
        singles = [Parcel(each.queue, each.outgoing, each.id, tally.tell, give_up, i) for i, each in enumerate(rest) if each is not None]
        self._post([*loads, *singles])
        return tally

    def _goes_as_it_is(self, entries: Bulk, index: int) -> bool:
        """Whether it can be a part of any request: it has neither a delay nor an order to keep, and its body is small."""
        entry = entries.whole.get(index)
        if entry is not None and (entry.outgoing.delay or entry.outgoing.group is not None):
            return False
        return self.checks is None or entries.size(index) <= claimcheck.SMALL

    def _failures(self, entries: Bulk, tally: Tally) -> dict[int, Exception]:
        unknown = [index for index, answered in enumerate(tally.answered) if not answered] if tally.left else ()
        failures: dict[int, Exception] = {index: self._unknown(entries.queues[index], entries.ids[index]) for index in unknown}
        failures.update(tally.failed.copy())  # read last: answers go on coming, and one that failed since then is not to be lost
        return dict(sorted(failures.items()))

    # ------------------------------------------------------------------ sealing

    def fits(self, body: str) -> bool:
        """Whether a body that is not sealed yet can be sent."""
        return (len(body) if self.sealing is None else self.sealing.most(len(body))) <= self.most

    def _sealed(self, sealing: Sealing, outgoing: Outgoing) -> Outgoing:
        while True:
            try:
                return self._with(outgoing, sealing.seal(outgoing.body))
            except KeyWanted as wanted:
                fetch = wanted.fetch
            self._refuse_own_thread()
            with _keys_mapped():
                self.io.run(fetch(), timeout=self.patience)

    async def _asealed(self, sealing: Sealing, outgoing: Outgoing) -> Outgoing:
        while True:
            try:
                return self._with(outgoing, sealing.seal(outgoing.body))
            except KeyWanted as wanted:
                fetch = wanted.fetch
            with _keys_mapped():
                async with asyncio.timeout(self.patience):
                    await self.io.arun(fetch())

    def _with(self, outgoing: Outgoing, body: str) -> Outgoing:
        sealed = replace(outgoing, body=body)
        if (size := weigh(sealed)) > self.most:
            raise MessageTooLarge(
                f"signed or encrypted, the message has {size:,} bytes, and the broker takes {self.most:,}; pass a reference"
            )
        return sealed

    def _refuse_own_thread(self) -> None:
        if self.io.owns_this_thread():
            raise Closed("this would wait for the I/O thread on the I/O thread itself; await the async form there")

    def _patience_for(self, count: int) -> float:
        return self.patience * (1 + count // 10_000)

    def _unknown(self, queue: str, task_id: str) -> SendUnknown:
        return SendUnknown(
            f"the broker did not confirm the message {task_id} to {queue!r} within {self.patience:g} s: it may or may not be there. "
            f"Call again with task_id={task_id!r} to make sure; with a store the task runs once",
            task_id=task_id,
        )

    # ------------------------------------------------------------------ a local broker: in the caller's own thread

    def _at_once(self, outgoing: Outgoing) -> bool:
        return self.broker.limits.local and (
            not outgoing.delay or self._broker_holds(outgoing) or (self.timer is not None and self.timer.limits.local)
        )

    def _all_at_once(self, entries: Bulk) -> bool:
        if not self.broker.limits.local:
            return False
        return (self.timer is not None and self.timer.limits.local) or all(self._at_once(each.outgoing) for each in entries.whole.values())

    async def _send_local(self, queue: str, batch: list[Outgoing], ids: Sequence[str]) -> Sequence[Answer]:
        """A few tries, then the error: there is no network to wait for, but a broker that lies does fail now and then."""
        answers: list[Answer] = [None] * len(batch)
        open_entries = list(range(len(batch)))
        for _ in range(8):
            direct = [i for i in open_entries if not batch[i].delay or self._broker_holds(batch[i])]
            replies: Sequence[Answer]
            try:
                replies = await self.broker.send(queue, [self._as_sent(batch[i]) for i in direct]) if direct else ()
            except BrokerUnavailable as error:
                replies = [error] * len(direct)
            except BrokerError as error:
                return [error] * len(batch)
            for i, reply in zip(direct, replies, strict=True):
                answers[i] = reply
            for i in set(open_entries) - set(direct):
                answers[i] = await self._set_timer(queue, batch[i], ids[i])
            open_entries = [i for i in open_entries if _retryable(answers[i])]
            if not open_entries:
                break
        return answers

    async def _send_many_local(self, entries: Bulk) -> dict[int, Exception]:
        failures: dict[int, Exception] = {}
        limits = self.broker.limits
        for queue, indices in entries.packed(range(len(entries)), limits.batch, limits.batch_bytes):
            batch = [entries.outgoing(i) for i in indices]
            answers: list[Answer] = [BrokerUnavailable("it was not sent yet")] * len(batch)
            if not any(outgoing.delay for outgoing in batch):
                with suppress(BrokerError):
                    answers = [*await self.broker.send(queue, batch)]
            again = [k for k, answer in enumerate(answers) if _retryable(answer)]
            if again:
                repeated = await self._send_local(queue, [batch[k] for k in again], [entries.ids[indices[k]] for k in again])
                for k, answer in zip(again, repeated, strict=True):
                    answers[k] = answer
            failures.update((i, answer) for i, answer in zip(indices, answers, strict=True) if answer is not None)
        return failures

    # ------------------------------------------------------------------ every other: on the I/O loop

    def _parcel(self, queue: str, outgoing: Outgoing, task_id: str, tell: Callable[[int, Answer], None]) -> Parcel:
        return Parcel(queue, outgoing, task_id, tell, time.monotonic() + self.patience)

    def _post(self, parcels: Sequence[Parcel | Load]) -> None:
        loop = self.io.loop
        self._inbox.extend(parcels)
        if not self._signalled:
            self._signalled = True
            loop.call_soon_threadsafe(self._sort)

    def _sort(self) -> None:
        self._signalled = False  # before the inbox is read: what comes after wakes us again
        for _ in range(len(self._inbox)):
            parcel = self._inbox.popleft()
            if isinstance(parcel, Load):
                self._lane(parcel.queue).add_request(partial(self._send_load, parcel))
                continue
            if parcel.outgoing.delay:
                if not self._broker_holds(parcel.outgoing):
                    _spawn(self._by_timer(parcel))
                    continue
                parcel.outgoing = self._as_sent(parcel.outgoing)
            if self.checks is None:
                self._lane_of(parcel).add(parcel, weigh(parcel.outgoing))
            else:
                self._add(parcel)

    def _add(self, parcel: Parcel) -> None:
        size = weigh(parcel.outgoing)
        if size > claimcheck.SMALL and parcel.outgoing.group is None and size > self._rooms.get(parcel.queue, 0):
            self._fitting += 1
            _spawn(self._add_fitted(parcel))  # beside the lane: its body holds up no other message
        else:
            self._lane_of(parcel).add(parcel, size)

    async def _add_fitted(self, parcel: Parcel) -> None:
        try:
            while True:
                try:
                    parcel.outgoing = await self._fitted(parcel.queue, parcel.outgoing)
                except Exception as error:
                    pause = PAUSES[min(parcel.tries, len(PAUSES) - 1)]
                    if not _retryable(error) or time.monotonic() + pause >= parcel.give_up:
                        parcel.tell(parcel.place, error)
                        return
                    parcel.tries += 1
                    await asyncio.sleep(pause)
                else:
                    self._lane_of(parcel).add(parcel, weigh(parcel.outgoing))
                    return
        finally:
            self._fitting -= 1

    async def _fitted(self, queue: str, outgoing: Outgoing) -> Outgoing:
        """The message, or where it is too large for its queue a claim for its body, which has been left. BrokerError, DelayError."""
        checks, size = self.checks, weigh(outgoing)
        if checks is None or size <= claimcheck.SMALL:
            return outgoing
        room = self._rooms.get(queue)
        if room is None:
            asking = self._asking.get(queue)
            if asking is None:
                asking = self._asking[queue] = asyncio.get_running_loop().create_task(self._ask_room(queue, checks))
                asking.add_done_callback(lambda _: self._asking.pop(queue, None))
            room = await asyncio.shield(asking)
        return outgoing if size <= room else await self._left(checks, queue, outgoing)

    async def _ask_room(self, queue: str, checks: claimcheck.ClaimChecks) -> int:
        limit = await self.broker.body_limit(queue) if isinstance(self.broker, claimcheck.ChecksBodies) else checks.over
        self._rooms[queue] = room = min(limit, checks.over)
        return room

    async def _left(self, checks: claimcheck.ClaimChecks, queue: str, outgoing: Outgoing) -> Outgoing:
        what = f"a message to {queue!r}"
        checks.allow(outgoing.delay, what)
        try:
            async with self._hands:
                return replace(outgoing, body=await checks.leave(outgoing.body))
        except StoreUnavailable as error:
            raise BrokerUnavailable(f"{what}: its body could not be left: {error}") from error
        except StoreError as error:
            raise SendError(f"{what}: its body could not be left: {error}", code="BodyRefused") from error

    def _lane_of(self, parcel: Parcel) -> Coalescer[Parcel]:
        return self._lane(parcel.queue, ordered=parcel.outgoing.group is not None)

    def _lane(self, queue: str, *, ordered: bool = False) -> Coalescer[Parcel]:
        """Messages with an ordering key have a lane of their own with one request at a time, so that they cannot overtake each other."""
        lane = self._lanes.get((queue, ordered))
        if lane is None:
            limits = self.broker.limits

            async def perform(parcels: Sequence[Parcel]) -> None:
                await self._send_batch(queue, parcels)

            lane = Coalescer(perform, count=limits.batch, weight=limits.batch_bytes, in_flight=1 if ordered else IN_FLIGHT)
            self._lanes[queue, ordered] = lane
        return lane

    async def _fitted_in_order(self, queue: str, parcels: Sequence[Parcel]) -> Sequence[Parcel]:
        """Those that can be sent; where a body cannot be left just now it raises, for then none may overtake it."""
        refused: list[tuple[Parcel, Exception]] = []
        fitting: list[Parcel] = []
        for parcel in parcels:
            try:
                parcel.outgoing = await self._fitted(queue, parcel.outgoing)
            except BrokerUnavailable:
                raise
            except Exception as error:
                refused.append((parcel, error))
            else:
                fitting.append(parcel)
        for parcel, why in refused:  # now that nothing is tried again with them
            parcel.tell(parcel.place, why)
        return fitting

    async def _send_batch(self, queue: str, parcels: Sequence[Parcel]) -> None:
        try:
            if self.checks is not None and parcels[0].outgoing.group is not None:
                parcels = await self._fitted_in_order(queue, parcels)
                if not parcels:
                    return
        except Exception as error:
            answers: Sequence[Answer] = [error] * len(parcels)
        else:
            answers = await self._answers(queue, [parcel.outgoing for parcel in parcels])
        again: list[Parcel] = []
        longest = 0.0
        for parcel, answer in zip(parcels, answers, strict=True):
            if answer is None:
                parcel.tell(parcel.place, None)
                continue
            if parcel.outgoing.group is None:
                self._refused(parcel, answer)
            elif (pause := self._pause(parcel, answer)) is not None:
                again.append(parcel)
                longest = max(longest, pause)
        if again:  # their lane has this one request: nothing overtakes them meanwhile
            await asyncio.sleep(longest)
            await self._send_batch(queue, again)

    async def _send_load(self, load: Load) -> None:
        taken = load.indices
        answers = await self._answers(load.queue, [*map(load.entries.outgoing, taken)])
        if any(answers):
            for index, answer in zip(taken, answers, strict=True):
                if answer is not None:
                    self._refused(load.parcel(index), answer)
            taken = [index for index, answer in zip(taken, answers, strict=True) if answer is None]
        load.tally.settle(taken)

    async def _answers(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[Answer]:
        """The broker's, one for each message. A function of its own, as an error keeps its frame: only these messages live as long."""
        try:
            answers = await self.broker.send(queue, messages)
            if len(answers) != len(messages):
                raise BrokerError(f"queue {queue!r}: {len(answers)} answers to {len(messages)} messages: nobody knows which were taken")
        except Exception as error:
            return [error] * len(messages)
        return answers

    def _refused(self, parcel: Parcel, answer: Exception) -> None:
        """Have it sent again where that may help."""
        if (pause := self._pause(parcel, answer)) is not None:
            asyncio.get_running_loop().call_later(pause, self._lane_of(parcel).add, parcel, weigh(parcel.outgoing))

    def _pause(self, parcel: Parcel, answer: Exception) -> float | None:
        """Seconds until it is sent again; ``None`` where it is not, which it has been told then."""
        pause = PAUSES[min(parcel.tries, len(PAUSES) - 1)]
        if _retryable(answer) and time.monotonic() + pause < parcel.give_up:
            parcel.tries += 1
            return pause
        parcel.tell(parcel.place, answer)
        return None

    async def _by_timer(self, parcel: Parcel) -> None:
        answer = await self._set_timer(parcel.queue, parcel.outgoing, parcel.task_id)
        parcel.tell(parcel.place, answer)

    async def _set_timer(self, queue: str, outgoing: Outgoing, task_id: str) -> Answer:
        if self.timer is None:
            return DelayError("the app has no timer for a delay that the broker cannot hold")
        when = self.time() + outgoing.delay - self.timer.limits.late
        message = Outgoing(
            body=outgoing.body, group=outgoing.group, dedup=outgoing.dedup, tenant=outgoing.tenant, attributes=outgoing.attributes
        )
        try:
            if self.checks is not None:
                message = replace(await self._fitted(queue, replace(message, delay=outgoing.delay)), delay=0.0)
            try:
                await self.timer.at(when, queue, message, key=task_id)
            except MessageTooLarge:  # a timer may take less than its queue
                if self.checks is None or weigh(message) <= claimcheck.SMALL:
                    raise
                message = await self._left(self.checks, queue, replace(message, delay=outgoing.delay))
                await self.timer.at(when, queue, replace(message, delay=0.0), key=task_id)
        except Exception as error:
            return error
        return None

    async def drain(self) -> None:
        """Wait until everything posted has been answered (on the I/O loop, before it ends: the next one begins afresh)."""
        try:
            await self.idle()
        finally:
            self._forget()

    async def idle(self) -> None:
        """Wait until nothing is posted or in flight; on the I/O loop, which goes on."""
        while self._inbox or self._fitting or any(lane.busy for lane in self._lanes.values()):
            await asyncio.sleep(0.005)


@contextmanager
def _keys_mapped() -> Generator[None]:
    """A call that cannot be encrypted is one that cannot be sent."""
    try:
        yield
    except (KeysUnavailable, TimeoutError) as error:
        raise BrokerUnavailable(f"the key to encrypt the message could not be had: {str(error) or 'no answer in time'}") from error
    except KeysError as error:
        raise SendError(f"the key to encrypt the message could not be had: {error}", code="KeysRefused") from error


def _retryable(answer: Answer) -> bool:
    return isinstance(answer, BrokerUnavailable) or (isinstance(answer, SendError) and answer.retryable)


def _raise(answer: Answer) -> None:
    if answer is not None:
        raise answer


_background: set[asyncio.Task[None]] = set()


def _spawn(call: Coroutine[Any, Any, None]) -> None:
    task = asyncio.get_running_loop().create_task(call)
    _background.add(task)
    task.add_done_callback(_background.discard)
