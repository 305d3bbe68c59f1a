"""The tests that a broker driver passes before it is finished.

::

    class TestMyBroker(BrokerConformance):
        async def make_broker(self) -> Broker: ...
        async def make_queue(self, *, ordered: bool = False) -> str: ...

Give the broker a short lease (2 s on a real server): the tests wait for several to end.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import pytest

from cloudq.broker import Broker, Delivery, Outgoing
from cloudq.errors import BrokerError, LeaseLost, QueueNotFound, SendError, SettleError
from cloudq.testing.suite import Suite, is_busy, scenario, unless

TEXTS: tuple[str, ...] = (
    "x",
    " leading and trailing ",
    '{"quote": "\\"", "slash": "\\/", "list": [1, null]}',
    json.dumps("".join(map(chr, range(0x20))) + "\x7f\u0085\u2028\ufffe\uffff"),
    "<tag attr='1'>&amp; & ]]></tag>",
    "one\ntwo\tthree\r\nfour\r",
    "Grüße, 日本語, שלום, \U0001f600, e\u0301",
    "%41+%2B=&?#",
)
"""Bodies that a transport must not change."""

MISSING = "cloudq-conformance-no-such-queue"
LATE = 0.5
"""Seconds beyond those that it lets pass from which on a test may be tried again: leases of 2 s may have ended under it."""
VAIN = 15.0
"""Seconds from which on it may not: what was looked for in vain for so long (``take``) is lost, on whatever machine."""


class BrokerConformance(Suite):
    """Subclass it as ``Test…`` in a test module. Each test has a broker of its own, closed at its end, and fresh queues."""

    exact: ClassVar[bool] = True
    """Whether a message is delivered once while its lease is held, and counts are current; false for a real cloud."""

    broker: Broker
    _passed: float

    @abstractmethod
    async def make_broker(self) -> Broker:
        """A broker that nobody else uses, made on the test's loop."""

    @abstractmethod
    async def make_queue(self, *, ordered: bool = False) -> str:
        """The name of a new, empty queue of ``self.broker``, one that keeps groups in order where asked."""

    def refused(self) -> Outgoing:
        """An entry that the broker refuses for good: by default one with too long a delay."""
        return Outgoing(body="refused", delay=self.broker.limits.delay + 1)

    async def play(self, scenario: Callable[[], Awaitable[None]]) -> None:
        """Run one scenario; where others have the machine it is tried three times at most, if leases may have ended under it.

        On a quiet machine (``is_busy``), and where it took no longer than it should (``LATE``) or looked for something in vain (``VAIN``),
        it fails at once.
        """
        for left in (2, 1, 0):
            self._passed, began = 0.0, time.monotonic()
            self.broker = await self.make_broker()
            try:
                await super().play(scenario)
            except Exception:
                if not left or not LATE <= time.monotonic() - began - self._passed < VAIN or not is_busy():
                    raise
            else:
                return
            finally:
                await self.broker.close()

    # What the tests do again and again.

    async def put(self, queue: str, *bodies: str, group: str | None = None) -> None:
        """Send bodies in order, in full batches; all must be taken."""
        size = self.broker.limits.batch
        for start in range(0, len(bodies), size):
            batch = [Outgoing(body=body, group=group, dedup=group and f"{group}-{body}") for body in bodies[start : start + size]]
            assert list(await self.broker.send(queue, batch)) == [None] * len(batch)

    async def take(self, queue: str, count: int, *, within: float = 0.0, ack: bool = False) -> list[Delivery]:
        """Receive until ``count`` messages are there, letting at most ``within`` seconds pass; more than ``count`` is an error."""
        taken: list[Delivery] = []
        passed = 0.0
        for _ in range(1000):
            most = min(self.broker.limits.receive, max(1, count - len(taken)))
            batch = await self.broker.receive(queue, max_messages=most, wait=0)
            assert len(batch) <= most
            taken += batch
            if ack and batch:
                assert await self.ack(batch) == [None] * len(batch)
            if len(taken) >= count:
                break
            if batch:
                continue
            if passed < within:
                await self.let_pass(1)
                passed += 1
            else:
                await asyncio.sleep(0.02)
        assert len(taken) == count
        return taken

    async def take_one(self, queue: str, *, within: float = 0.0) -> Delivery:
        """Receive one message."""
        return (await self.take(queue, 1, within=within))[0]

    async def ack(self, deliveries: Sequence[Delivery]) -> list[SettleError | None]:
        """Ack in requests of at most a batch."""
        size = self.broker.limits.batch
        answers: list[SettleError | None] = []
        for start in range(0, len(deliveries), size):
            answers += await self.broker.ack(deliveries[start : start + size])
        return answers

    async def is_empty(self, queue: str) -> bool:
        """Whether a receive finds nothing at once."""
        return not await self.broker.receive(queue, max_messages=1, wait=0)

    async def let_pass(self, seconds: float) -> None:
        """Let ``seconds`` pass on purpose."""
        self._passed += seconds
        await self.pass_time(seconds)

    async def lease_ends(self) -> None:
        """Let the time of a lease pass."""
        await self.let_pass(self.broker.limits.lease + self.slack)

    async def waiting(self, queue: str, *, wait: float | None = None) -> asyncio.Task[Sequence[Delivery]]:
        """Begin a receive that waits, by default as long as the broker can."""
        seconds = self.broker.limits.wait if wait is None else wait
        task = asyncio.create_task(self._receive(queue, seconds))
        for _ in range(5):
            await asyncio.sleep(0.01)
        return task

    async def _receive(self, queue: str, wait: float) -> Sequence[Delivery]:
        return await self.broker.receive(queue, max_messages=1, wait=wait)

    async def ordered_queue(self) -> str:
        """A queue that keeps groups in order; skips where the broker has none."""
        unless(self.broker.limits.ordering, "the broker keeps no order")
        return await self.make_queue(ordered=True)

    # The limits.

    @scenario
    async def test_it_is_a_broker_with_sane_limits(self) -> None:
        assert isinstance(self.broker, Broker)
        limits = self.broker.limits
        assert limits == self.broker.limits
        assert limits.batch >= 1
        assert limits.receive >= 1
        assert 0 < limits.body <= limits.batch_bytes
        assert limits.wait >= 0
        assert limits.delay >= 0
        assert 0 < limits.lease <= limits.max_lease
        assert 0 < limits.extend <= limits.max_lease

    @scenario
    async def test_a_local_broker_never_suspends(self) -> None:
        unless(self.broker.limits.local, "the broker is not local")
        queue = await self.make_queue()
        call = self.broker.send(queue, [Outgoing(body="x")])
        with pytest.raises(StopIteration):
            call.send(None)
        receive = self.broker.receive(queue, max_messages=1, wait=self.broker.limits.wait)
        with pytest.raises(StopIteration):
            receive.send(None)

    # Sending and receiving.

    @scenario
    async def test_text_arrives_as_it_was_sent(self) -> None:
        queue = await self.make_queue()
        await self.put(queue, *TEXTS)
        taken = await self.take(queue, len(TEXTS), ack=True)
        assert sorted(delivery.body for delivery in taken) == sorted(TEXTS)

    @scenario
    async def test_attributes_arrive_beside_the_body(self) -> None:
        queue = await self.make_queue()
        attributes = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tenant": "a b"}
        assert list(await self.broker.send(queue, [Outgoing(body="x", attributes=attributes)])) == [None]
        delivery = await self.take_one(queue)
        assert {name: delivery.attributes.get(name) for name in attributes} == attributes

    @scenario
    async def test_a_full_batch_is_taken_in_one_request(self) -> None:
        queue = await self.make_queue()
        bodies = [f"message {number}" for number in range(self.broker.limits.batch)]
        await self.put(queue, *bodies)
        taken = await self.take(queue, len(bodies), ack=True)
        assert sorted(delivery.body for delivery in taken) == sorted(bodies)

    @scenario
    async def test_a_refused_entry_does_not_hurt_the_others(self) -> None:
        unless(self.broker.limits.batch >= 3, "the broker takes fewer than three messages at once")
        queue = await self.make_queue()
        answers = await self.broker.send(queue, [Outgoing(body="first"), self.refused(), Outgoing(body="last")])
        assert answers[0] is None
        assert isinstance(answers[1], SendError)
        assert not answers[1].retryable
        assert answers[2] is None
        assert sorted(delivery.body for delivery in await self.take(queue, 2)) == ["first", "last"]
        assert await self.is_empty(queue)

    @scenario
    async def test_an_attribute_that_is_no_text_does_not_hurt_the_others(self) -> None:
        unless(self.broker.limits.batch >= 3, "the broker takes fewer than three messages at once")
        queue = await self.make_queue()
        entries = [Outgoing(body="first"), Outgoing(body="odd", attributes={"a": "\ud800"}), Outgoing(body="last")]
        first, odd, last = await self.broker.send(queue, entries)
        assert (first, last) == (None, None)
        assert odd is None or not odd.retryable
        expected = ["first", "last"] if odd else ["first", "last", "odd"]
        assert sorted(delivery.body for delivery in await self.take(queue, len(expected))) == expected

    @scenario
    async def test_the_largest_body_is_taken_and_a_larger_one_refused(self) -> None:
        queue = await self.make_queue()
        body = self.broker.limits.body
        try:
            (answer,) = await self.broker.send(queue, [Outgoing(body="x" * (body + 1))])
        except BrokerError:
            pass
        else:
            assert isinstance(answer, SendError)
            assert not answer.retryable
        assert await self.is_empty(queue)
        await self.put(queue, "x" * body)
        assert len((await self.take_one(queue)).body) == body

    @scenario
    async def test_the_size_of_a_body_is_counted_in_bytes(self) -> None:
        queue = await self.make_queue()
        try:
            (answer,) = await self.broker.send(queue, [Outgoing(body="é" * (self.broker.limits.body // 2 + 1))])
        except BrokerError:
            pass
        else:
            assert isinstance(answer, SendError)
        assert await self.is_empty(queue)

    @scenario
    async def test_a_receive_brings_no_more_than_asked(self) -> None:
        queue = await self.make_queue()
        await self.put(queue, "a", "b", "c")
        assert len(await self.broker.receive(queue, max_messages=2, wait=0)) <= 2
        assert len(await self.broker.receive(queue, max_messages=1, wait=0)) <= 1

    @scenario
    async def test_a_delivery_says_where_and_until_when_it_is_ours(self) -> None:
        queue = await self.make_queue()
        await self.put(queue, "x")
        began = time.monotonic()
        delivery = await self.take_one(queue)
        took = time.monotonic() - began
        limits = self.broker.limits
        assert delivery.queue == queue
        assert delivery.receives == (1 if limits.receives else 0)
        assert -0.01 < delivery.lease_until - delivery.received - limits.lease < took + 0.01  # some count a lease from the answer
        assert delivery.message_id

    # Waiting.

    @scenario
    async def test_a_receive_that_does_not_wait_comes_back_empty(self) -> None:
        assert await self.is_empty(await self.make_queue())

    @scenario
    async def test_a_receive_waits_no_longer_than_asked(self) -> None:
        unless(self.broker.limits.wait >= 2, "a receive waits less than two seconds")
        task = await self.waiting(await self.make_queue(), wait=2)
        await self.let_pass(1)
        assert not task.done()
        await self.let_pass(1 + self.slack)
        assert list(await task) == []

    @scenario
    async def test_a_waiting_receive_is_woken_by_a_send(self) -> None:
        unless(self.broker.limits.wait >= 1, "a receive does not wait")
        queue = await self.make_queue()
        task = await self.waiting(queue)
        await self.put(queue, "x")
        async with asyncio.timeout(max(1.0, self.broker.limits.wait / 2)):
            assert [delivery.body for delivery in await task] == ["x"]

    @scenario
    async def test_every_waiting_receive_is_woken_when_there_is_enough(self) -> None:
        unless(self.broker.limits.wait >= 1, "a receive does not wait")
        queue = await self.make_queue()
        tasks = [await self.waiting(queue) for _ in range(3)]
        await self.put(queue, "a", "b", "c")
        async with asyncio.timeout(max(1.0, self.broker.limits.wait / 2)):
            batches = await asyncio.gather(*tasks)
        assert sorted(delivery.body for batch in batches for delivery in batch) == ["a", "b", "c"]

    @scenario
    async def test_a_waiting_receive_is_woken_when_a_delay_is_over(self) -> None:
        unless(self.broker.limits.wait >= 5 and self.broker.limits.delay >= 1, "no delays, or a receive waits too short")
        queue = await self.make_queue()
        assert list(await self.broker.send(queue, [Outgoing(body="x", delay=1)])) == [None]
        task = await self.waiting(queue)
        await self.let_pass(1 + self.slack)
        assert [delivery.body for delivery in await task] == ["x"]

    @scenario
    async def test_a_delayed_send_wakes_who_waits_already(self) -> None:
        unless(self.broker.limits.wait >= 5 and self.broker.limits.delay >= 1, "no delays, or a receive waits too short")
        queue = await self.make_queue()
        task = await self.waiting(queue)
        assert list(await self.broker.send(queue, [Outgoing(body="x", delay=1)])) == [None]
        await self.let_pass(1 + self.slack)
        assert [delivery.body for delivery in await task] == ["x"]

    @scenario
    async def test_a_lease_that_another_waiter_got_ends_for_the_next(self) -> None:
        limits = self.broker.limits
        unless(limits.wait >= limits.lease + self.slack + 2, "a receive waits too short")
        queue = await self.make_queue()
        tasks = {await self.waiting(queue), await self.waiting(queue)}
        await self.put(queue, "x")
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert (len(done), len(pending)) == (1, 1)
        await self.lease_ends()
        assert [delivery.body for delivery in await pending.pop()] == ["x"]

    @scenario
    async def test_a_waiting_receive_is_woken_when_a_lease_ends(self) -> None:
        unless(self.broker.limits.wait >= 5, "a receive waits too short")
        queue = await self.make_queue()
        await self.put(queue, "x")
        delivery = await self.take_one(queue)
        assert list(await self.broker.extend([delivery], 1)) == [None]
        task = await self.waiting(queue)
        await self.let_pass(1 + self.slack)
        assert [again.message_id for again in await task] == [delivery.message_id]

    @scenario
    async def test_a_waiting_receive_is_woken_when_a_message_is_given_back(self) -> None:
        unless(self.broker.limits.wait >= 1, "a receive does not wait")
        queue = await self.make_queue()
        await self.put(queue, "x")
        delivery = await self.take_one(queue)
        task = await self.waiting(queue)
        assert list(await self.broker.extend([delivery], 0)) == [None]
        assert [again.message_id for again in await task] == [delivery.message_id]

    @scenario
    async def test_cancelling_a_receive_loses_nothing(self) -> None:
        queue = await self.make_queue()
        task = await self.waiting(queue)
        task.cancel()
        await self.put(queue, "a", "b")
        task_at_work = asyncio.create_task(self._receive(queue, 0))
        await asyncio.sleep(0)
        task_at_work.cancel()
        await asyncio.gather(task, task_at_work, return_exceptions=True)
        within = self.broker.limits.lease + self.slack + 1
        seen: set[str] = set()
        if task_at_work.done() and not task_at_work.cancelled():
            seen.update(delivery.body for delivery in task_at_work.result())
        seen.update(delivery.body for delivery in await self.take(queue, 2 - len(seen), within=within))
        assert seen == {"a", "b"}

    @scenario
    async def test_a_cancelled_waiter_leaves_its_message_to_another(self) -> None:
        unless(self.broker.limits.local, "only a local broker wakes exactly one waiter")
        queue = await self.make_queue()
        first, second = await self.waiting(queue), await self.waiting(queue)
        await self.put(queue, "x")
        first.cancel()
        assert [delivery.body for delivery in await second] == ["x"]

    # Leases.

    @scenario
    async def test_a_leased_message_is_nobody_elses(self) -> None:
        queue = await self.make_queue()
        await self.put(queue, "x")
        await self.take_one(queue)
        assert await self.is_empty(queue)

    @scenario
    async def test_a_message_comes_again_when_its_lease_ends(self) -> None:
        queue = await self.make_queue()
        await self.put(queue, "x")
        first = await self.take_one(queue)
        await self.lease_ends()
        again = await self.take_one(queue)
        assert again.body == "x"
        assert again.message_id == first.message_id
        if self.broker.limits.receives:
            assert again.receives == first.receives + 1

    @scenario
    async def test_an_extended_lease_holds(self) -> None:
        queue = await self.make_queue()
        await self.put(queue, "x")
        delivery = await self.take_one(queue)
        before = delivery.lease_until
        assert list(await self.broker.extend([delivery], self.broker.limits.lease + 3)) == [None]
        assert delivery.lease_until > before
        await self.lease_ends()
        assert await self.is_empty(queue)
        assert await self.ack([delivery]) == [None]

    @scenario
    async def test_an_extended_lease_ends(self) -> None:
        queue = await self.make_queue()
        await self.put(queue, "x")
        delivery = await self.take_one(queue)
        assert list(await self.broker.extend([delivery], 1)) == [None]
        await self.let_pass(1 + self.slack)
        assert (await self.take_one(queue)).message_id == delivery.message_id

    @scenario
    async def test_extending_by_nothing_gives_the_message_back(self) -> None:
        queue = await self.make_queue()
        await self.put(queue, "x")
        delivery = await self.take_one(queue)
        assert list(await self.broker.extend([delivery], 0)) == [None]
        again = await self.take_one(queue)
        assert again.message_id == delivery.message_id

    @scenario
    async def test_a_batch_is_extended_in_one_request(self) -> None:
        queue = await self.make_queue()
        bodies = [f"message {number}" for number in range(min(3, self.broker.limits.batch))]
        await self.put(queue, *bodies)
        taken = await self.take(queue, len(bodies))
        assert list(await self.broker.extend(taken, 0)) == [None] * len(taken)
        assert sorted(delivery.body for delivery in await self.take(queue, len(bodies))) == bodies

    # Acks.

    @scenario
    async def test_an_acked_message_never_comes_again(self) -> None:
        queue = await self.make_queue()
        await self.put(queue, "x")
        assert await self.ack([await self.take_one(queue)]) == [None]
        await self.lease_ends()
        assert await self.is_empty(queue)

    @scenario
    async def test_an_ack_is_for_its_own_message_alone(self) -> None:
        queue = await self.make_queue()
        await self.put(queue, "a", "b")
        taken = {delivery.body: delivery for delivery in await self.take(queue, 2)}
        assert await self.ack([taken["a"]]) == [None]
        await self.lease_ends()
        assert (await self.take_one(queue)).body == "b"
        assert await self.is_empty(queue)

    @scenario
    async def test_acking_twice_is_no_error(self) -> None:
        queue = await self.make_queue()
        await self.put(queue, "x")
        delivery = await self.take_one(queue)
        assert await self.ack([delivery]) == [None]
        assert await self.ack([delivery]) == [None]

    @scenario
    async def test_an_ack_after_the_lease_never_claims_to_have_lost_what_it_deleted(self) -> None:
        queue = await self.make_queue()
        await self.put(queue, "x")
        delivery = await self.take_one(queue)
        await self.lease_ends()
        (answer,) = await self.broker.ack([delivery])
        if answer is not None:  # None is right for a broker that cannot know
            assert isinstance(answer, LeaseLost)
            assert (await self.take_one(queue)).message_id == delivery.message_id

    @scenario
    async def test_a_stale_receipt_leaves_the_new_holder_its_ack(self) -> None:
        queue = await self.make_queue()
        await self.put(queue, "x")
        stale = await self.take_one(queue)
        await self.lease_ends()
        held = await self.take_one(queue)
        (answer,) = await self.broker.ack([stale])
        assert answer is None or isinstance(answer, LeaseLost)
        assert await self.ack([held]) == [None]

    @scenario
    async def test_a_stale_receipt_does_not_hurt_the_others_of_its_batch(self) -> None:
        unless(self.broker.limits.batch >= 2, "the broker acks one at a time")
        queue = await self.make_queue()
        await self.put(queue, "stale")
        stale = await self.take_one(queue)
        await self.lease_ends()
        held = [await self.take_one(queue)]
        await self.put(queue, "live")
        held.append(await self.take_one(queue))
        answers = await self.ack([stale, held[1]])
        assert answers[0] is None or isinstance(answers[0], LeaseLost)
        assert answers[1] is None
        assert await self.ack(held) == [None, None]
        await self.lease_ends()
        assert await self.is_empty(queue)

    # Delays and counts.

    @scenario
    async def test_a_delayed_message_comes_when_its_delay_is_over(self) -> None:
        unless(self.broker.limits.delay >= 2, "the broker has no delays")
        queue = await self.make_queue()
        answers = await self.broker.send(queue, [Outgoing(body="later", delay=2)])
        assert list(answers) == [None]
        await self.put(queue, "now")
        assert (await self.take_one(queue)).body == "now"
        assert await self.is_empty(queue)
        await self.let_pass(2 + self.slack)
        assert (await self.take_one(queue)).body == "later"

    @scenario
    async def test_stats_count_what_is_ready_and_what_is_leased(self) -> None:
        queue = await self.make_queue()
        await self.put(queue, "a", "b", "c")
        await self.take_one(queue)
        stats = await self.broker.stats(queue)
        if self.exact:
            assert (stats.ready, stats.in_flight) == (2, 1)
        if self.broker.limits.counts:
            assert stats.ready is not None and stats.ready >= 0
            assert stats.in_flight is not None and stats.in_flight >= 0
        assert stats.oldest is None or stats.oldest >= 0

    # A queue that is not there.

    @scenario
    async def test_sending_to_no_queue_is_said(self) -> None:
        with pytest.raises(QueueNotFound):
            await self.broker.send(MISSING, [Outgoing(body="x")])

    @scenario
    async def test_receiving_from_no_queue_is_said(self) -> None:
        with pytest.raises(QueueNotFound):
            await self.broker.receive(MISSING, max_messages=1, wait=0)

    @scenario
    async def test_counting_no_queue_is_said(self) -> None:
        with pytest.raises(QueueNotFound):
            await self.broker.stats(MISSING)

    @scenario
    async def test_settling_in_no_queue_is_said(self) -> None:
        queue = await self.make_queue()
        await self.put(queue, "x")
        lost = replace(await self.take_one(queue), queue=MISSING)
        with pytest.raises(QueueNotFound):
            await self.broker.ack([lost])
        with pytest.raises(QueueNotFound):
            await self.broker.extend([lost], 1)

    # Many at once.

    @scenario
    async def test_many_calls_at_once_deliver_each_message(self) -> None:
        queue = await self.make_queue()
        bodies = [f"message {number}" for number in range(40)]
        seen: Counter[str] = Counter()

        async def consume() -> None:
            while len(seen) < len(bodies):
                batch = await self.broker.receive(queue, max_messages=min(10, self.broker.limits.receive), wait=0)
                seen.update(delivery.body for delivery in batch)
                if batch:
                    assert await self.ack(batch) == [None] * len(batch)
                else:
                    await asyncio.sleep(0.02)

        await asyncio.gather(*(self.put(queue, *bodies[start::8]) for start in range(8)), *(consume() for _ in range(4)))
        assert sorted(seen) == sorted(bodies)
        if self.exact:
            assert set(seen.values()) == {1}

    @scenario
    async def test_a_local_broker_serves_every_thread(self) -> None:
        unless(self.broker.limits.local, "the broker is not local")
        queue = await self.make_queue()
        counts: Counter[str] = Counter()
        errors: list[BaseException] = []

        async def consume() -> None:
            while True:
                (delivery,) = await self.broker.receive(queue, max_messages=1, wait=self.broker.limits.wait)
                assert list(await self.broker.ack([delivery])) == [None]
                if delivery.body == "stop":
                    return
                counts[delivery.body] += 1  # each body has one owner at a time

        def work() -> None:
            try:
                asyncio.run(consume())
            except BaseException as error:  # for the test's own thread to show
                errors.append(error)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        bodies = [f"message {number}" for number in range(200)]
        for body in bodies:
            await self.put(queue, body)
        for _ in threads:
            await self.put(queue, "stop")
        for thread in threads:
            await asyncio.to_thread(thread.join, 20)
        assert not errors
        assert counts == dict.fromkeys(bodies, 1)

    @scenario
    async def test_closing_twice_is_no_error_and_a_later_call_connects_again(self) -> None:
        queue = await self.make_queue()
        await self.put(queue, "x")
        await self.broker.close()
        await self.broker.close()
        assert (await self.take_one(queue)).body == "x"

    # Groups.

    @scenario
    async def test_a_group_comes_in_the_order_sent(self) -> None:
        queue = await self.ordered_queue()
        bodies = [f"{number}" for number in range(1, 6)]
        await self.put(queue, *bodies[:3], group="a")
        for body in bodies[3:]:
            await self.put(queue, body, group="a")
        taken = await self.take(queue, len(bodies), ack=True)
        assert [delivery.body for delivery in taken] == bodies
        assert {delivery.group for delivery in taken} == {"a"}

    @scenario
    async def test_a_group_waits_while_one_of_it_is_leased(self) -> None:
        queue = await self.ordered_queue()
        await self.put(queue, "1", "2", group="a")
        first = await self.take_one(queue)
        assert first.body == "1"
        assert await self.is_empty(queue)
        assert await self.ack([first]) == [None]
        assert (await self.take_one(queue)).body == "2"

    @scenario
    async def test_a_group_does_not_hold_up_another(self) -> None:
        queue = await self.ordered_queue()
        await self.put(queue, "a1", "a2", group="a")
        assert (await self.take_one(queue)).body == "a1"
        await self.put(queue, "b1", group="b")
        assert (await self.take_one(queue)).body == "b1"
        assert await self.is_empty(queue)

    @scenario
    async def test_a_group_keeps_its_order_when_given_back(self) -> None:
        queue = await self.ordered_queue()
        await self.put(queue, "1", "2", "3", group="a")
        held = list(await self.broker.receive(queue, max_messages=min(2, self.broker.limits.receive), wait=0))
        assert held
        for delivery in reversed(held):
            assert list(await self.broker.extend([delivery], 0)) == [None]
        assert [delivery.body for delivery in await self.take(queue, 3, ack=True)] == ["1", "2", "3"]

    @scenario
    async def test_a_group_keeps_its_order_when_a_lease_ends(self) -> None:
        queue = await self.ordered_queue()
        await self.put(queue, "1", "2", group="a")
        assert (await self.take_one(queue)).body == "1"
        await self.lease_ends()
        assert [delivery.body for delivery in await self.take(queue, 2, ack=True)] == ["1", "2"]

    @scenario
    async def test_a_delay_in_a_group_is_refused_where_the_limits_say_so(self) -> None:
        limits = self.broker.limits
        unless(not limits.ordered_delay, "the broker has delays in groups")
        queue = await self.ordered_queue()
        (answer,) = await self.broker.send(queue, [Outgoing(body="x", group="a", dedup="x", delay=1)])
        assert isinstance(answer, SendError)
        assert not answer.retryable
