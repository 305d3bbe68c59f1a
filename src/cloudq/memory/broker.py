"""A real broker in one process: leases that end, redelivery, delays, dead letters and ordering groups, without a server."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import re
import threading
from bisect import insort
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from cloudq.broker import Delivery, Limits, Outgoing, QueueStats
from cloudq.clock import Clock, SystemClock
from cloudq.errors import BrokerError, LeaseLost, QueueNotFound, SendError, SettleError
from cloudq.forks import Lock, protect

DEFAULT: Final = Limits(
    batch=10,
    batch_bytes=1 << 20,
    body=1 << 20,
    receive=10,
    wait=20.0,
    delay=900.0,
    lease=30.0,
    extend=43_200.0,
    max_lease=43_200.0,
    ordering=True,
    ordered_delay=False,
    receives=True,
    local=True,
)
"""The limits of SQS (AWS SendMessageBatch, ReceiveMessage, ChangeMessageVisibility), so that what works here works there."""

DEDUP_SECONDS: Final = 300.0
"""How long a deduplication id is remembered, per group, as SQS FIFO does with ``DeduplicationScope=messageGroup``."""

_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # named, and not "all but": that takes 3 ms to compile
"""What XML 1.0 has no character for; SQS refuses it (AWS SendMessage)."""


class _Message:
    """A message in a queue. Its receives count tells one lease of it from the next."""

    __slots__ = ("attributes", "body", "done", "first", "group", "id", "leased", "number", "origin", "receives", "sent", "until")

    def __init__(self, number: int, body: str, sent: float, group: str | None, attributes: Mapping[str, str]) -> None:
        self.number = number
        self.body = body
        self.sent = sent
        self.group = group
        self.attributes = attributes
        self.id = str(number)
        self.receives = 0
        self.first = 0.0
        self.leased = 0.0
        self.until = 0.0
        self.done = False
        self.origin: str | None = None


class _Group:
    """The messages of one ordering key: those that wait, in order, and how many are leased. In ``ready`` only while none is."""

    __slots__ = ("leased", "queued", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Message] = deque()
        self.leased = 0
        self.queued = False


_Waiter = asyncio.Future[None]


class _Queue:
    """The state of one queue, guarded by the broker's lock."""

    __slots__ = ("alarm", "dead_letter", "delayed", "groups", "leased", "max_receives", "name", "next_end", "ready", "seen", "waiters")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: deque[_Message | _Group] = deque()
        self.delayed: list[tuple[float, int, _Message]] = []
        self.leased: dict[int, _Message] = {}
        self.next_end = math.inf  # no lease ends before this: a lower bound, so that a lease costs no heap operation
        self.groups: dict[str, _Group] = {}
        self.seen: dict[tuple[str, str], float] = {}
        self.waiters: deque[_Waiter] = deque()
        self.alarm = math.inf  # the earliest alarm that is set on the clock for the waiters
        self.dead_letter: str | None = None
        self.max_receives = 0


class MemoryBroker:
    """Queues in this process. Safe from every thread and loop; no call suspends but a receive that waits.

    Stricter than the clouds where they are vague, so that tests find what only fails there sometimes: a stale receipt is always
    LeaseLost and deletes nothing. Messages live as long as the broker object, whatever ``close`` says.
    """

    def __init__(self, *, clock: Clock | None = None, limits: Limits = DEFAULT, lease: float | None = None) -> None:
        """``lease`` is ``limits.lease`` in seconds, for short."""
        self.limits: Final = limits if lease is None else limits._replace(lease=lease)
        self.clock: Final[Clock] = clock or SystemClock()
        self._lock = threading.RLock()  # reentrant: the collector may close a waiting receive while we hold it
        self._queues: dict[str, _Queue] = {}
        self._numbers = itertools.count(1)
        protect(self, row=1)

    @property
    def fork_lock(self) -> Lock:
        return self._lock

    def after_fork(self) -> None:
        """Who waits is in the parent. The child has a copy of the messages, the leased ones included."""
        for queue in self._queues.values():
            queue.waiters.clear()
            queue.alarm = math.inf

    def create_queue(self, name: str, *, dead_letter: str | None = None, max_receives: int | None = None) -> None:
        """Create ``name`` unless it exists, and ``dead_letter`` with it.

        A message whose lease ends after ``max_receives`` deliveries moves to ``dead_letter``, as soon as anybody looks at the queue.
        """
        if (dead_letter is None) != (max_receives is None) or (max_receives is not None and max_receives < 1) or dead_letter == name:
            raise ValueError("dead_letter= is another queue and goes together with max_receives= of 1 or more")
        with self._lock:
            queue = self._queues.setdefault(name, _Queue(name))
            if dead_letter is not None and max_receives is not None:
                self._queues.setdefault(dead_letter, _Queue(dead_letter))
                queue.dead_letter, queue.max_receives = dead_letter, max_receives

    def queues(self) -> Sequence[str]:
        """The names of the queues, sorted."""
        with self._lock:
            return sorted(self._queues)

    def delete_queue(self, name: str) -> None:
        """Delete a queue with its messages; who waits there gets QueueNotFound. What it was the dead-letter queue of keeps its messages."""
        with self._lock:
            self.purge(name)
            queue = self._queues.pop(name)
            for other in self._queues.values():
                if other.dead_letter == name:
                    other.dead_letter, other.max_receives = None, 0
            while queue.waiters:
                _resolve(queue.waiters.popleft())

    def purge(self, name: str) -> None:
        """Delete every message of a queue, also those that are leased or delayed."""
        with self._lock:
            queue = self._find(name)
            for message in queue.leased.values():
                message.done = True
            for messages in (queue.ready, queue.delayed, queue.leased, queue.groups):
                messages.clear()
            queue.next_end = math.inf

    def redrive(self, name: str) -> tuple[str, int] | None:
        """The dead-letter queue of a queue and the receives before it, where it has one."""
        with self._lock:
            queue = self._find(name)
            return None if queue.dead_letter is None else (queue.dead_letter, queue.max_receives)

    def end_redrive(self, name: str) -> None:
        """Leave a queue without a dead-letter queue."""
        with self._lock:
            queue = self._find(name)
            queue.dead_letter, queue.max_receives = None, 0

    def first_received(self, delivery: Delivery) -> float:
        """When the delivery's message was received for the first time in its queue (Unix time, seconds)."""
        return delivery.receipt.first if isinstance(delivery.receipt, _Message) else delivery.received

    def origin(self, delivery: Delivery) -> str | None:
        """The queue that a dead letter was moved from by its receives; ``None`` for what was sent to the queue it is in."""
        return delivery.receipt.origin if isinstance(delivery.receipt, _Message) else None

    async def send(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
        """Take the messages; see Broker. A repeated dedup id within its group is answered as taken, and dropped."""
        self._check_count(len(messages), self.limits.batch)
        answers: list[SendError | None] = []
        total = 0
        for message in messages:
            size = self._weigh(message)
            if isinstance(size, SendError):
                answers.append(size)
            else:
                total += size
                answers.append(None)
        if total > self.limits.batch_bytes:
            raise BrokerError(f"the batch has {total} bytes; one request holds {self.limits.batch_bytes}")
        now = self.clock.time()
        with self._lock:
            target = self._find(queue)
            for message, refused in zip(messages, answers, strict=True):
                if refused is not None or (message.group is not None and message.dedup is not None and self._repeats(target, message, now)):
                    continue
                stored = _Message(next(self._numbers), message.body, now, message.group, message.attributes)
                if message.delay > 0:
                    due = now + message.delay
                    heapq.heappush(target.delayed, (due, stored.number, stored))
                    self._set_alarm(target, due)
                else:
                    self._make_ready(target, stored)
            self._wake(target)
        return answers

    async def receive(self, queue: str, *, max_messages: int, wait: float) -> Sequence[Delivery]:
        """Lease messages; see Broker. Waiting ends by a send, a delay that is over, a lease that ends, or the clock."""
        self._check_count(max_messages, self.limits.receive)
        if not 0 <= wait <= self.limits.wait:
            raise BrokerError(f"a receive waits 0 to {self.limits.wait:g} s, not {wait:g} s")
        deadline: float | None = None
        while True:
            now = self.clock.time()
            with self._lock:
                source = self._find(queue)
                batch = self._lease(source, queue, max_messages, now)
                if deadline is None:
                    deadline = now + wait
                if batch or now >= deadline:
                    self._wake(source)  # more than we took: the next waiter's
                    return batch
                waiter: _Waiter = asyncio.get_running_loop().create_future()
                source.waiters.append(waiter)
                self._set_alarm(source, min(deadline, source.next_end, source.delayed[0][0] if source.delayed else math.inf))
            try:
                await waiter
            except BaseException:
                with self._lock:
                    if waiter in source.waiters:
                        source.waiters.remove(waiter)
                    else:
                        self._wake(source)  # woken and cancelled at once: another waiter's turn
                raise

    async def ack(self, deliveries: Sequence[Delivery]) -> Sequence[SettleError | None]:
        """Delete for good; see Broker. A stale receipt deletes nothing and is LeaseLost, unless the message is gone already."""
        self._check_count(len(deliveries), self.limits.batch)
        now = self.clock.time()
        answers: list[SettleError | None] = []
        with self._lock:
            source = self._find(deliveries[0].queue)
            for delivery in deliveries:
                message = self._held(source, delivery, now)
                if isinstance(message, _Message):
                    message.done = True
                    del source.leased[message.number]
                    if message.group is not None and self.limits.ordering:
                        self._release_group(source, message.group)
                    answers.append(None)
                else:
                    answers.append(message)
            self._wake(source)
        return answers

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[SettleError | None]:
        """Move the ends of leases; see Broker."""
        self._check_count(len(deliveries), self.limits.batch)
        if not 0 <= seconds <= self.limits.extend:
            raise BrokerError(f"a lease is extended by 0 to {self.limits.extend:g} s, not {seconds:g} s")
        now = self.clock.time()
        until = now + seconds
        answers: list[SettleError | None] = []
        with self._lock:
            source = self._find(deliveries[0].queue)
            for delivery in deliveries:
                message = self._held(source, delivery, now)
                if message is None:
                    message = LeaseLost("the message is acked")
                elif isinstance(message, _Message) and until > message.leased + self.limits.max_lease:
                    message = LeaseLost(f"a message is held for {self.limits.max_lease:g} s in all, counted from its receive")
                if not isinstance(message, _Message):
                    answers.append(message)
                    continue
                delivery.lease_until = message.until = until
                if seconds == 0:
                    self._give_back(source, message)
                elif until < source.next_end:
                    source.next_end = until
                    self._set_alarm(source, until)
                answers.append(None)
            self._wake(source)
        return answers

    async def stats(self, queue: str) -> QueueStats:
        """Count the queue's messages, exactly; messages held up in their group count as ready."""
        now = self.clock.time()
        with self._lock:
            source = self._find(queue)
            self._catch_up(source, now)
            waiting = [item for item in source.ready if isinstance(item, _Message)]
            waiting += [message for group in source.groups.values() for message in group.waiting]
            return QueueStats(
                ready=len(waiting),
                in_flight=len(source.leased),
                delayed=len(source.delayed),
                oldest=max((now - message.sent for message in waiting), default=None),
            )

    async def close(self) -> None:
        """Do nothing: there is nothing to release, and the messages stay."""

    def _check_count(self, count: int, limit: int) -> None:
        if not 1 <= count <= limit:
            raise BrokerError(f"one request holds 1 to {limit} messages, not {count}")

    def _find(self, name: str) -> _Queue:
        queue = self._queues.get(name)
        if queue is None:
            raise QueueNotFound(f"the memory broker has no queue {name!r}; create_queue({name!r}) makes it")
        return queue

    def _weigh(self, message: Outgoing) -> int | SendError:
        """The message's size in bytes, or why it is refused."""
        limits = self.limits
        body = message.body
        if message.delay and not 0 <= message.delay <= limits.delay:
            return SendError(f"a delay is 0 to {limits.delay:g} s, not {message.delay:g} s", code="InvalidParameterValue")
        if message.delay and message.group is not None and limits.ordering and not limits.ordered_delay:
            return SendError("a message with a group can have no delay of its own", code="InvalidParameterValue")
        if body.isprintable() and body.isascii() and not message.attributes:
            size = len(body)
        else:
            texts = (body, *message.attributes, *message.attributes.values())
            if any(_NOT_XML.search(text) for text in texts):
                return SendError("the message holds a character that XML 1.0 does not have", code="InvalidMessageContents")
            size = sum(len(text.encode()) for text in texts)
        if not body:
            return SendError("the body is empty", code="MissingParameter")
        if size > limits.body:
            return SendError(f"the message has {size} bytes; at most {limits.body} are taken", code="InvalidParameterValue")
        return size

    def _repeats(self, queue: _Queue, message: Outgoing, now: float) -> bool:
        """Whether the dedup id was seen in the group within five minutes; if not, it is from now on."""
        if not self.limits.ordering or message.group is None or message.dedup is None:
            return False
        seen = queue.seen
        while seen and next(iter(seen.values())) <= now:
            del seen[next(iter(seen))]
        key = (message.group, message.dedup)
        if key in seen:
            return True
        seen[key] = now + DEDUP_SECONDS
        return False

    def _make_ready(self, queue: _Queue, message: _Message) -> None:
        if message.group is None or not self.limits.ordering:
            queue.ready.append(message)
            return
        group = queue.groups.get(message.group)
        if group is None:
            group = queue.groups[message.group] = _Group()
        insort(group.waiting, message, key=_number)
        if not group.leased and not group.queued:
            group.queued = True
            queue.ready.append(group)

    def _release_group(self, queue: _Queue, name: str) -> None:
        """One leased message fewer; after the last, the group's next ones can go."""
        group = queue.groups[name]
        group.leased -= 1
        if group.leased:
            return
        if group.waiting:
            group.queued = True
            queue.ready.append(group)
        else:
            del queue.groups[name]

    def _lease(self, queue: _Queue, name: str, count: int, now: float) -> list[Delivery]:
        self._catch_up(queue, now)
        ready = queue.ready
        if not ready:
            return []
        until = now + self.limits.lease
        taken: list[_Message] = []
        while ready and len(taken) < count:
            item = ready.popleft()
            if isinstance(item, _Message):
                taken.append(item)
                continue
            item.queued = False
            while item.waiting and len(taken) < count:
                taken.append(item.waiting.popleft())
                item.leased += 1
        batch: list[Delivery] = []
        for message in taken:
            message.receives += 1
            if message.receives == 1:
                message.first = now
            message.leased = now
            message.until = until
            queue.leased[message.number] = message
            batch.append(
                Delivery(
                    queue=name,
                    body=message.body,
                    receipt=message,
                    receives=message.receives,
                    message_id=message.id,
                    sent=message.sent,
                    received=now,
                    lease_until=until,
                    group=message.group,
                    attributes=message.attributes,
                )
            )
        if until < queue.next_end:
            queue.next_end = until
            self._set_alarm(queue, until)
        return batch

    def _held(self, queue: _Queue, delivery: Delivery, now: float) -> _Message | SettleError | None:
        """The delivery's message where its lease lasts, ``None`` where it is acked, else what to answer."""
        message = delivery.receipt
        if not isinstance(message, _Message):
            return SettleError("the receipt is none of the memory broker's", code="ReceiptHandleIsInvalid")
        if message.done:
            return None
        if queue.leased.get(message.number) is message and message.receives == delivery.receives and message.until > now:
            return message
        return LeaseLost("the lease had ended; the message may be with somebody else")

    def _catch_up(self, queue: _Queue, now: float) -> None:
        """Make ready what has fallen due, and give back what is leased no more."""
        delayed = queue.delayed
        while delayed and delayed[0][0] <= now:
            self._make_ready(queue, heapq.heappop(delayed)[2])
        if queue.next_end <= now:
            for message in [message for message in queue.leased.values() if message.until <= now]:
                self._give_back(queue, message)
            queue.next_end = min((message.until for message in queue.leased.values()), default=math.inf)

    def _give_back(self, queue: _Queue, message: _Message) -> None:
        """End the message's lease: back into its queue, or to the dead letters after its last receive."""
        del queue.leased[message.number]
        if queue.dead_letter is not None and message.receives >= queue.max_receives:
            dead = _Message(next(self._numbers), message.body, message.sent, message.group, message.attributes)
            dead.id = message.id
            dead.origin = queue.name
            target = self._queues[queue.dead_letter]
            self._make_ready(target, dead)
            self._wake(target)
        else:
            self._make_ready(queue, message)
        if message.group is not None and self.limits.ordering:
            self._release_group(queue, message.group)

    def _set_alarm(self, queue: _Queue, when: float) -> None:
        """See that the waiters look again at ``when``. An alarm is never taken back: one that finds nothing costs a look."""
        if when >= queue.alarm or not queue.waiters:
            return
        queue.alarm = when

        def ring() -> None:
            with self._lock:
                if queue.alarm == when:  # else an earlier one has rung, and who waits now has set another
                    queue.alarm = math.inf
                    while queue.waiters:
                        _resolve(queue.waiters.popleft())

        self.clock.call_at(when, ring)

    def _wake(self, queue: _Queue) -> None:
        """Wake one waiter if something is ready; it wakes the next when it leaves something."""
        while queue.ready and queue.waiters and not _resolve(queue.waiters.popleft()):
            pass


def _number(message: _Message) -> int:
    return message.number


def _resolve(waiter: _Waiter) -> bool:
    """Resolve a future of any loop from any thread; false where its loop is closed."""
    loop = waiter.get_loop()
    try:
        if asyncio.get_running_loop() is loop:  # in its own thread: no need to wake its selector
            _finish(waiter)
            return True
    except RuntimeError:
        pass
    try:
        loop.call_soon_threadsafe(_finish, waiter)
    except RuntimeError:
        return False
    return True


def _finish(waiter: _Waiter) -> None:
    if not waiter.done():
        waiter.set_result(None)
