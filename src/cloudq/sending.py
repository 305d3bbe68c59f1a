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
from zlib import crc32

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
)
from cloudq.fitting import Fitting
from cloudq.io import IOThread, drive
from cloudq.parcels import TRYING, Answer, Load, Parcel, Tally, retryable
from cloudq.timed import Timed

if TYPE_CHECKING:
    from cloudq.seal import Sealing
    from cloudq.timer import Timer

Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], Coroutine[Any, Any, None]]
"""How a caller has a call run on the I/O thread, and waits for it."""

_UNORDERED: Final = -1
_CLOSED: Final = "before the app was closed"

ORDERED_LANES: Final = 8
"""Requests at once to an ordered queue: each group has its place in one of these lanes. With more, batches would be emptier."""


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
    _lanes: dict[tuple[str, int], Coalescer[Parcel]] = field(default_factory=lambda: {})
    _aside: set[Parcel] = field(default_factory=lambda: set())
    """What waits outside of the lanes: until its body has been left, or before it is sent again."""
    _callers: set[Parcel | Tally] = field(default_factory=lambda: set())
    """What is waited for, by anybody."""
    checks: claimcheck.ClaimChecks | None = field(init=False)
    """Where bodies go that their queue does not take."""
    most: int = field(init=False)
    """Bytes of a message at most, its body inside it or elsewhere."""
    _fitting: Fitting = field(init=False)
    _timed: Timed = field(init=False)

    def __post_init__(self) -> None:
        self._fitting = Fitting(self.broker)
        self._timed = Timed(self.timer, self._fitting, self.time)
        self.checks = self._fitting.checks
        self.most = self.broker.limits.body if self.checks is None else max(self.broker.limits.body, claimcheck.MOST)
        self.io.after_fork(self._forget)

    def _forget(self) -> None:
        """In a forked child, where what waits is the parent's to send, and when the loop ends."""
        for lane in self._lanes.values():
            lane.clear()
        self._inbox, self._lanes, self._signalled = deque(), {}, False
        self._aside, self._callers = set(), set()
        self._fitting.forget()
        self._timed.forget()

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
        if self._needs_timer(outgoing):
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
            outgoing = drive(self._sealed(self.sealing, outgoing, self._run))
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
            if answered.locked():  # else it has been told already
                answered.release()

        parcel = self._parcel(queue, outgoing, task_id, tell)
        self._callers.add(parcel)
        try:
            self._post([parcel])
            if not answered.acquire(timeout=self.patience):
                raise _unknown(queue, task_id, _within(self.patience), parcel.errors.get(0))
        finally:
            self._callers.discard(parcel)
        _raise(answers[0])

    async def asend(self, queue: str, outgoing: Outgoing, task_id: str, *, as_is: bool = False) -> None:
        """``send`` for a coroutine on any loop, the I/O loop too. ``as_is``: it is sealed already, or is nothing to vouch for."""
        if self.sealing is not None and not as_is:
            outgoing = await self._sealed(self.sealing, outgoing, self._arun)
        if self._at_once(outgoing):
            _raise((await self._send_local(queue, [outgoing], [task_id]))[0])
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Answer] = loop.create_future()

        def settle(answer: Answer) -> None:
            if not waiter.done():
                waiter.set_result(answer)

        def tell(_: int, answer: Answer) -> None:
            if loop is asyncio.get_running_loop():
                settle(answer)
            else:
                _call(loop, settle, answer)

        parcel = self._parcel(queue, outgoing, task_id, tell)
        self._callers.add(parcel)
        try:
            self._post([parcel])
            async with asyncio.timeout(self.patience):
                answer = await waiter
        except TimeoutError:
            raise _unknown(queue, task_id, _within(self.patience), parcel.errors.get(0)) from None
        finally:
            self._callers.discard(parcel)
        _raise(answer)

    # ------------------------------------------------------------------ many, by one caller

    def send_many(self, entries: Sequence[Addressed] | Bulk) -> dict[int, Exception]:
        """Send entries in full batches; returns the errors by index, empty when all were accepted.

        Waits ``patience`` seconds at most, and again so long for each 10,000 entries, or 1,000 that go by the timer; what is unconfirmed
        then is SendUnknown.
        """
        if not len(entries):
            return {}
        bulk = drive(self._as_bulk(entries, self._run))
        if self._all_at_once(bulk):
            return drive(self._send_many_local(bulk))
        self._refuse_own_thread()
        done, patience = threading.Event(), self._patience_for(bulk)
        tally = Tally(len(bulk), done.set)
        self._callers.add(tally)
        try:
            self._post_many(bulk, tally, patience)
            return self._failures(bulk, tally, _CLOSED if done.wait(patience) else _within(patience))
        finally:
            self._callers.discard(tally)

    async def asend_many(self, entries: Sequence[Addressed] | Bulk) -> dict[int, Exception]:
        """``send_many`` for a coroutine on any loop."""
        if not len(entries):
            return {}
        bulk = await self._as_bulk(entries, self._arun)
        if self._all_at_once(bulk):
            return await self._send_many_local(bulk)
        loop = asyncio.get_running_loop()
        done, patience = asyncio.Event(), self._patience_for(bulk)
        tally = Tally(len(bulk), partial(_call, loop, done.set))
        self._callers.add(tally)
        try:
            self._post_many(bulk, tally, patience)
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await done.wait()
            return self._failures(bulk, tally, _CLOSED if done.is_set() else _within(patience))
        finally:
            self._callers.discard(tally)

    def _post_many(self, entries: Bulk, tally: Tally, patience: float) -> None:
        """Full batches go as they are; what is left over, and what needs more than to be sent, goes the way of single messages."""
        give_up = time.monotonic() + TRYING * patience
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
        tell, errors = tally.tell, tally.failed
        singles = [
            Parcel(each.queue, each.outgoing, each.id, tell, give_up, errors, i, True) for i, each in enumerate(rest) if each is not None
        ]
        self._post([*loads, *singles])

    def _goes_as_it_is(self, entries: Bulk, index: int) -> bool:
        """Whether it can be a part of any request: it has neither a delay nor an order to keep, and its body is small."""
        entry = entries.whole.get(index)
        if entry is not None and (entry.outgoing.delay or entry.outgoing.group is not None):
            return False
        return self.checks is None or entries.size(index) <= claimcheck.SMALL

    def _failures(self, entries: Bulk, tally: Tally, when: str) -> dict[int, Exception]:
        """By index. Those without an answer ``when`` the wait ended are unknown."""
        failures: dict[int, Exception] = {}
        for index, answered in enumerate(tally.answered) if tally.left else ():
            if not answered:
                failures[index] = _unknown(entries.queues[index], entries.ids[index], when, tally.failed.get(index))
        for index in tuple(tally.failed):  # read last: answers go on coming, and one that failed since then is not to be lost
            if tally.answered[index] and (error := tally.failed.get(index)) is not None:
                failures[index] = error
        return dict(sorted(failures.items()))

    # ------------------------------------------------------------------ sealing

    def fits(self, body: str) -> bool:
        """Whether a body that is not sealed yet can be sent."""
        return (len(body) if self.sealing is None else self.sealing.most(len(body))) <= self.most

    async def _sealed(self, sealing: Sealing, outgoing: Outgoing, run: Run) -> Outgoing:
        while True:
            try:
                return self._with(outgoing, sealing.seal(outgoing.body))
            except KeyWanted as wanted:
                fetch = wanted.fetch
            with _keys_mapped():
                await run(fetch())

    async def _as_bulk(self, entries: Sequence[Addressed] | Bulk, run: Run) -> Bulk:
        if (sealing := self.sealing) is None:
            return bulk_of(entries)
        return Bulk([Entry(each.queue, await self._sealed(sealing, each.outgoing, run), each.id) for each in entries])

    async def _run(self, call: Coroutine[Any, Any, None]) -> None:
        """For a caller that blocks: it never suspends."""
        self.io.run(call, timeout=self.patience)

    async def _arun(self, call: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(self.patience):
            await self.io.arun(call)

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

    def _patience_for(self, entries: Bulk) -> float:
        timed = sum(self._needs_timer(each.outgoing) for each in entries.whole.values())
        return self.patience * (1 + len(entries) // 10_000 + timed // 1_000)

    def _needs_timer(self, outgoing: Outgoing) -> bool:
        return outgoing.delay > 0 and not self._broker_holds(outgoing)

    # ------------------------------------------------------------------ a local broker: in the caller's own thread

    def _at_once(self, outgoing: Outgoing) -> bool:
        return self.broker.limits.local and (not self._needs_timer(outgoing) or (self.timer is not None and self.timer.limits.local))

    def _all_at_once(self, entries: Bulk) -> bool:
        if not self.broker.limits.local:
            return False
        return (self.timer is not None and self.timer.limits.local) or all(self._at_once(each.outgoing) for each in entries.whole.values())

    async def _send_local(self, queue: str, batch: list[Outgoing], ids: Sequence[str]) -> Sequence[Answer]:
        """A few tries, then the error: there is no network to wait for, but a broker that lies does fail now and then."""
        answers: list[Answer] = [None] * len(batch)
        open_entries = list(range(len(batch)))
        for _ in range(8):
            direct = [i for i in open_entries if not self._needs_timer(batch[i])]
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
                answers[i] = await self._timed.set(queue, batch[i], ids[i], self.time() + batch[i].delay)
            open_entries = [i for i in open_entries if retryable(answers[i])]
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
            again = [k for k, answer in enumerate(answers) if retryable(answer)]
            if again:
                repeated = await self._send_local(queue, [batch[k] for k in again], [entries.ids[indices[k]] for k in again])
                for k, answer in zip(again, repeated, strict=True):
                    answers[k] = answer
            failures.update((i, answer) for i, answer in zip(indices, answers, strict=True) if answer is not None)
        return failures

    # ------------------------------------------------------------------ every other: on the I/O loop

    def _parcel(self, queue: str, outgoing: Outgoing, task_id: str, tell: Callable[[int, Answer], None]) -> Parcel:
        return Parcel(queue, outgoing, task_id, tell, time.monotonic() + TRYING * self.patience, {})

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
                if self._needs_timer(parcel.outgoing):
                    self._timed.add(parcel)
                    continue
                parcel.outgoing = self._as_sent(parcel.outgoing)
            self._add(parcel)

    def _add(self, parcel: Parcel) -> None:
        size = weigh(parcel.outgoing)
        if self.checks is None or parcel.outgoing.group is not None or self._fitting.known(parcel.queue, size):
            self._lane_of(parcel).add(parcel, size)
        else:
            self._aside.add(parcel)
            _spawn(self._add_fitted(parcel))  # beside the lane: its body holds up no other message

    def _return(self, parcel: Parcel) -> None:
        """To the lanes, unless they are new ones since it was put aside."""
        if parcel in self._aside:
            self._aside.remove(parcel)
            self._lane_of(parcel).add(parcel, weigh(parcel.outgoing))

    async def _add_fitted(self, parcel: Parcel) -> None:
        while True:
            try:
                parcel.outgoing = await self._fitting.fitted(parcel.queue, parcel.outgoing)
            except Exception as error:
                if (pause := parcel.again(error)) is None:
                    self._aside.discard(parcel)
                    return
                await asyncio.sleep(pause)
            else:
                self._return(parcel)
                return

    def _lane_of(self, parcel: Parcel) -> Coalescer[Parcel]:
        group = parcel.outgoing.group
        return self._lane(parcel.queue, _UNORDERED if group is None else crc32(group.encode("utf-8", "surrogatepass")) % ORDERED_LANES)

    def _lane(self, queue: str, number: int = _UNORDERED) -> Coalescer[Parcel]:
        """The messages of an ordering key share a lane with one request at a time, so that they cannot overtake each other."""
        lane = self._lanes.get((queue, number))
        if lane is None:
            limits = self.broker.limits

            async def perform(parcels: Sequence[Parcel]) -> None:
                await self._send_batch(queue, parcels)

            in_flight = IN_FLIGHT if number == _UNORDERED else 1
            lane = Coalescer(perform, count=limits.batch, weight=limits.batch_bytes, in_flight=in_flight)
            self._lanes[queue, number] = lane
        return lane

    async def _fitted_in_order(self, queue: str, parcels: Sequence[Parcel]) -> Sequence[Parcel]:
        """Those that can be sent; where a body cannot be left just now it raises, for then none may overtake it."""
        refused: list[tuple[Parcel, Exception]] = []
        fitting: list[Parcel] = []
        for parcel in parcels:
            try:
                parcel.outgoing = await self._fitting.fitted(queue, parcel.outgoing)
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
            elif (pause := parcel.again(answer)) is not None:
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
        if (pause := parcel.again(answer)) is not None:
            self._aside.add(parcel)
            asyncio.get_running_loop().call_later(pause, self._return, parcel)

    async def drain(self) -> None:
        """Wait until everything posted has been answered (on the I/O loop, before it ends: the next one begins afresh).

        Where that is cut short, those who still wait are told so.
        """
        try:
            await self.idle()
        finally:
            callers = tuple(self._callers)
            self._forget()
            for each in callers:
                if isinstance(each, Tally):
                    each.done()
                else:
                    each.tell(each.place, _unknown(each.queue, each.task_id, _CLOSED, each.errors.get(each.place)))

    async def idle(self) -> None:
        """Wait until nothing is posted, in flight or to be tried again; on the I/O loop, which goes on."""
        while self._inbox or self._aside or self._timed.busy or any(lane.busy for lane in self._lanes.values()):
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


def _within(patience: float) -> str:
    return f"within {patience:g} s"


def _unknown(queue: str, task_id: str, when: str, last: Exception | None) -> SendUnknown:
    tried = "" if last is None else f" (its last try: {last})"
    return SendUnknown(
        f"the broker did not confirm the message {task_id} to {queue!r} {when}{tried}: it may or may not be there. "
        f"Call again with task_id={task_id!r} to make sure; with a store the task runs once",
        task_id=task_id,
    )


def _call(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *args: Any) -> None:
    """Call it on a loop of somebody else's, unless that has ended."""
    with suppress(RuntimeError):  # asked before, it might end in between
        loop.call_soon_threadsafe(call, *args)


def _raise(answer: Answer) -> None:
    if answer is not None:
        raise answer


_background: set[asyncio.Task[None]] = set()


def _spawn(call: Coroutine[Any, Any, None]) -> None:
    task = asyncio.get_running_loop().create_task(call)
    _background.add(task)
    task.add_done_callback(_background.discard)
