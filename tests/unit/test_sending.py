"""Sends are merged, repeated where that may help, kept in order where asked, and always answered."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloudq.broker import Delivery, Limits, Outgoing, QueueStats, SendError, SettleError
from cloudq.bulk import Entry, weigh
from cloudq.clock import ManualClock
from cloudq.errors import BrokerError, BrokerUnavailable, Closed, DelayError, MessageTooLarge, QueueNotFound, SendUnknown
from cloudq.io import IOThread
from cloudq.memory import MemoryBroker, MemoryTimer
from cloudq.memory.broker import DEFAULT
from cloudq.sending import Sender
from tests.waiting import until

Reply = Sequence[SendError | None]


class FakeBroker:
    """Over a network: every send suspends. ``answer(call number, bodies)`` may raise, answer, or return ``None`` to hang."""

    def __init__(self, answer: Callable[[int, list[str]], Reply | None] | None = None, limits: Limits | None = None) -> None:
        self.limits = limits or DEFAULT._replace(local=False)
        self.answer = answer or (lambda number, bodies: [None] * len(bodies))
        self.batches: list[list[str]] = []
        self.taken: list[str] = []
        self.threads: set[int] = set()

    async def send(self, queue: str, messages: Sequence[Outgoing]) -> Reply:
        self.threads.add(threading.get_ident())
        bodies = [message.body for message in messages]
        self.batches.append(bodies)
        number = len(self.batches)
        await asyncio.sleep(0.001)
        replies = self.answer(number, bodies)
        if replies is None:
            await asyncio.Event().wait()
            raise AssertionError
        self.taken += [body for body, reply in zip(bodies, replies, strict=True) if reply is None]
        return replies

    async def receive(self, queue: str, *, max_messages: int, wait: float) -> Sequence[Delivery]:
        raise NotImplementedError

    async def ack(self, deliveries: Sequence[Delivery]) -> Sequence[SettleError | None]:
        raise NotImplementedError

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[SettleError | None]:
        raise NotImplementedError

    async def stats(self, queue: str) -> QueueStats:
        raise NotImplementedError

    async def close(self) -> None: ...


@pytest.fixture
def io() -> Iterator[IOThread]:
    thread = IOThread("sending")
    yield thread
    thread.close()


def _sender(io: IOThread, broker: FakeBroker, *, patience: float = 30.0) -> Sender:
    return Sender(broker, None, io, time.time, patience)


def _out(body: str, **fields: object) -> Outgoing:
    return Outgoing(body=body, **fields)  # type: ignore[arg-type]


def test_calls_from_many_threads_are_merged_and_each_is_answered(io: IOThread) -> None:
    broker = FakeBroker()
    sender = _sender(io, broker)
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda i: sender.send("q", _out(str(i)), str(i)), range(200)))
    assert sorted(broker.taken, key=int) == [str(i) for i in range(200)]
    assert len(broker.batches) < 200
    assert all(len(batch) <= 10 for batch in broker.batches)
    assert len(broker.threads) == 1


def test_a_hammer_of_threads_loses_no_wake_up(io: IOThread) -> None:
    broker = FakeBroker()
    sender = _sender(io, broker)

    def hammer(lane: int) -> None:
        for i in range(30):
            sender.send(f"q{lane % 3}", _out(f"{lane}.{i}"), "x")

    threads = [threading.Thread(target=hammer, args=(lane,)) for lane in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(broker.taken)) == 12 * 30


def test_coroutines_on_any_loop_and_on_the_io_loop_send(io: IOThread) -> None:
    broker = FakeBroker()
    sender = _sender(io, broker)

    async def many() -> None:
        await asyncio.gather(*(sender.asend("q", _out(str(i)), str(i)) for i in range(25)))

    asyncio.run(many())
    assert len(broker.batches) < 25
    io.run(many())
    assert len(broker.taken) == 50


def test_waiting_for_a_send_on_the_io_thread_is_refused(io: IOThread) -> None:
    sender = _sender(io, FakeBroker())

    async def blocking() -> None:
        sender.send("q", _out("x"), "x")

    with pytest.raises(Closed):
        io.run(blocking())


def test_only_failed_entries_are_repeated_and_only_those_that_may_succeed(io: IOThread) -> None:
    final = SendError("never", code="Bad")

    def answer(number: int, bodies: list[str]) -> Reply:
        return [
            final if body == "bad" else SendError("slow down", retryable=True) if body == "slow" and number == 1 else None
            for body in bodies
        ]

    broker = FakeBroker(answer)
    sender = _sender(io, broker)
    failed = sender.send_many([Entry("q", _out(body), body) for body in ("good", "slow", "bad")])
    assert failed == {2: final}
    assert broker.batches == [["good", "slow", "bad"], ["slow"]]


def test_a_request_that_fails_as_a_whole_is_repeated_when_the_broker_was_away(io: IOThread) -> None:
    def answer(number: int, bodies: list[str]) -> Reply:
        if number == 1:
            raise BrokerUnavailable("away")
        return [None] * len(bodies)

    broker = FakeBroker(answer)
    _sender(io, broker).send("q", _out("x"), "x")
    assert broker.taken == ["x"]


@pytest.mark.parametrize("error", [QueueNotFound("no queue"), BrokerError("odd"), ValueError("a fault of the driver")])
def test_an_error_that_repeating_does_not_help_reaches_the_caller_at_once(io: IOThread, error: Exception) -> None:
    def answer(number: int, bodies: list[str]) -> Reply:
        raise error

    broker = FakeBroker(answer)
    with pytest.raises(type(error)):
        _sender(io, broker).send("q", _out("x"), "x")
    assert len(broker.batches) == 1


def test_what_the_broker_does_not_answer_is_unknown_with_its_task_id(io: IOThread) -> None:
    sender = _sender(io, FakeBroker(lambda number, bodies: None), patience=0.05)
    with pytest.raises(SendUnknown) as caught:
        sender.send("q", _out("x"), "the-id")
    assert caught.value.task_id == "the-id"

    async def scenario() -> None:
        with pytest.raises(SendUnknown):
            await sender.asend("q", _out("x"), "the-id")
        failed = await sender.asend_many([Entry("q", _out("x"), "one"), Entry("q", _out("y"), "two")])
        assert [type(failed[i]) for i in (0, 1)] == [SendUnknown, SendUnknown]

    asyncio.run(scenario())
    failed = sender.send_many([Entry("q", _out("x"), "one")])
    assert isinstance(failed[0], SendUnknown)


def test_a_broker_that_stays_away_is_given_up_within_the_patience(io: IOThread) -> None:
    def answer(number: int, bodies: list[str]) -> Reply:
        raise BrokerUnavailable("away")

    sender = _sender(io, FakeBroker(answer), patience=0.3)
    began = time.monotonic()
    with pytest.raises((BrokerUnavailable, SendUnknown)):
        sender.send("q", _out("x"), "x")
    assert time.monotonic() - began < 30


def test_messages_with_an_ordering_key_never_overtake_each_other_also_when_a_request_fails(io: IOThread) -> None:
    def answer(number: int, bodies: list[str]) -> Reply:
        if number in (1, 3):
            raise BrokerUnavailable("away")
        return [None] * len(bodies)

    broker = FakeBroker(answer)
    sender = _sender(io, broker)
    assert sender.send_many([Entry("q", _out(str(i), group="g"), str(i)) for i in range(35)]) == {}
    assert broker.taken == [str(i) for i in range(35)]


def test_a_cancelled_caller_leaves_the_others_alone(io: IOThread) -> None:
    broker = FakeBroker()
    sender = _sender(io, broker)

    async def scenario() -> None:
        first = asyncio.create_task(sender.asend("q", _out("a"), "a"))
        second = asyncio.create_task(sender.asend("q", _out("b"), "b"))
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert first.cancelled() or (await asyncio.gather(first, return_exceptions=True))

    asyncio.run(scenario())
    assert "b" in broker.taken


def test_it_sends_again_after_the_io_thread_was_closed_in_the_middle_of_a_request(io: IOThread) -> None:
    hang = True

    def answer(number: int, bodies: list[str]) -> Reply | None:
        return None if hang else [None] * len(bodies)

    broker = FakeBroker(answer)
    sender = _sender(io, broker, patience=0.2)
    io.at_close(sender.drain)
    for group in (None, "g"):
        with pytest.raises(SendUnknown):
            sender.send("q", _out("lost", group=group), "x")
    io.close(timeout=0.5)
    hang, sender.patience = False, 30.0
    for group in (None, "g"):
        sender.send("q", _out("found", group=group), "x")
    assert broker.taken == ["found", "found"]


def test_batches_keep_to_the_brokers_limits_of_count_and_bytes(io: IOThread) -> None:
    broker = FakeBroker(limits=DEFAULT._replace(local=False, batch=4, batch_bytes=100))
    assert _sender(io, broker).send_many([Entry("q", _out("x" * 30), str(i)) for i in range(10)]) == {}
    assert all(len(batch) <= 3 for batch in broker.batches)
    assert len(broker.taken) == 10


def test_a_local_broker_is_called_in_the_callers_own_thread() -> None:
    clock = ManualClock()
    broker = MemoryBroker(clock=clock)
    broker.create_queue("q")
    broker.create_queue("p")
    io = IOThread("unused")
    sender = Sender(broker, MemoryTimer(broker, clock), io, clock.time)
    sender.send("q", _out("a"), "a")
    asyncio.run(sender.asend("q", _out("b"), "b"))
    assert sender.send_many([Entry("q" if i % 2 else "p", _out(str(i)), str(i)) for i in range(30)]) == {}
    sender.send("q", _out("far", delay=10_000), "far")
    assert not io.running
    clock.advance(10_001)
    assert asyncio.run(broker.stats("q")).ready == 2 + 15 + 1


def test_a_local_batch_names_what_was_refused_by_its_index() -> None:
    broker = MemoryBroker()
    broker.create_queue("q")
    sender = Sender(broker, None, IOThread("unused"), time.time)
    failed = sender.send_many([Entry("q", _out("a"), "a"), Entry("q", _out("\0"), "b"), Entry("nowhere", _out("c"), "c")])
    assert {index: type(error) for index, error in failed.items()} == {1: SendError, 2: QueueNotFound}


def test_a_delay_beyond_the_broker_goes_by_the_timer_or_is_refused_naming_the_call(io: IOThread) -> None:
    sender = _sender(io, FakeBroker())
    with pytest.raises(DelayError, match=r"the task.*no timer"):
        sender.check(_out("x", delay=901), what="the task")
    with pytest.raises(DelayError, match="ordered queue"):
        sender.check(_out("x", delay=1, group="g"), what="the task")
    sender.check(_out("x", delay=900), what="the task")
    clock = ManualClock()
    broker = MemoryBroker(clock=clock)
    timed = Sender(broker, MemoryTimer(broker, clock), io, clock.time)
    timed.check(_out("x", delay=901), what="the task")
    with pytest.raises(DelayError, match="timer's"):
        timed.check(_out("x", delay=400 * 86_400), what="the task")


def test_a_message_over_the_brokers_size_is_refused_in_bytes_not_characters(io: IOThread) -> None:
    broker = FakeBroker(limits=DEFAULT._replace(local=False, body=10))
    sender = _sender(io, broker)
    sender.check(_out("x" * 10), what="t")
    with pytest.raises(MessageTooLarge):
        sender.check(_out("é" * 6), what="t")
    assert weigh(_out("é", attributes={"ab": "c"})) == 2 + 2 + 1 + 6


def test_an_ordering_key_is_refused_where_the_broker_keeps_no_order(io: IOThread) -> None:
    broker = FakeBroker(limits=DEFAULT._replace(local=False, ordering=False))
    with pytest.raises(SendError, match="ordering_key"):
        _sender(io, broker).check(_out("x", group="g"), what="t")


def test_nothing_to_send_is_sent_at_once(io: IOThread) -> None:
    sender = _sender(io, FakeBroker())
    assert sender.send_many([]) == {}
    assert asyncio.run(sender.asend_many([])) == {}
    assert not io.running


class Flaky(FakeBroker):
    """Fails whole requests, and of others refuses for a moment a part: from one message of a group on all of that group."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.chance = random.Random(seed)
        self.under_way: Counter[str] = Counter()
        self.most = 0

    async def send(self, queue: str, messages: Sequence[Outgoing]) -> Reply:
        groups = {str(message.group) for message in messages}
        assert not groups & {*self.under_way.elements()}, "two requests at once with messages of one group"
        self.under_way.update(groups)
        self.most = max(self.most, self.under_way.total())
        try:
            await asyncio.sleep(self.chance.random() * 0.005)
        finally:
            self.under_way.subtract(groups)
        if self.chance.random() < 0.2:
            raise BrokerUnavailable("away")
        refused: set[str | None] = set()
        replies: list[SendError | None] = []
        for message in messages:
            if self.chance.random() < 0.1:
                refused.add(message.group)
            replies.append(SendError("slow down", retryable=True) if message.group in refused else None)
            if message.group not in refused:
                self.taken.append(message.body)
        return replies


@pytest.mark.parametrize("seed", range(4))
def test_each_group_keeps_its_order_through_faults_while_others_are_sent_beside_it(
    io: IOThread, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("cloudq.parcels.PAUSES", (0.001, 0.003))
    broker = Flaky(seed)
    sender = _sender(io, broker)
    many = [Entry("q", _out(f"{i % 30}:{i}", group=str(i % 30)), "x") for i in range(900)]

    def one_by_one(group: str) -> None:
        for i in range(20):
            sender.send("q", _out(f"{group}:{i}", group=group), "x")

    with ThreadPoolExecutor(13) as pool:
        calls = [pool.submit(one_by_one, f"single{n}") for n in range(12)]
        assert pool.submit(sender.send_many, many).result() == {}
        for call in calls:
            call.result()
    orders: dict[str, list[int]] = {}
    for body in broker.taken:
        group, number = body.split(":")
        orders.setdefault(group, []).append(int(number))
    assert all(order == sorted(set(order)) for order in orders.values())
    assert sum(map(len, orders.values())) == 900 + 12 * 20
    assert broker.most > 1


@pytest.mark.parametrize("way", ["blocking", "awaiting", "many"])
def test_what_is_unknown_says_why_its_last_try_failed(io: IOThread, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr("cloudq.sending.TRYING", 1e9)

    def answer(number: int, bodies: list[str]) -> Reply | None:
        if number % 2:
            raise BrokerUnavailable("connection refused")
        return None

    sender = _sender(io, FakeBroker(answer), patience=0.2)

    def send() -> Exception:
        if way == "many":
            return sender.send_many([Entry("q", _out("x"), "x")])[0]
        with pytest.raises(SendUnknown) as caught:
            sender.send("q", _out("x"), "x") if way == "blocking" else asyncio.run(sender.asend("q", _out("x"), "x"))
        return caught.value

    while "its last try: connection refused" not in str(error := send()):
        sender.patience *= 2  # the machine stood still
        assert sender.patience < 60
    assert isinstance(error, SendUnknown)


def test_what_pauses_before_its_next_try_is_waited_for(io: IOThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudq.parcels.PAUSES", (0.5,))
    refused = threading.Event()

    def answer(number: int, bodies: list[str]) -> Reply:
        if number == 1:
            refused.set()
            raise BrokerUnavailable("away")
        return [None] * len(bodies)

    broker = FakeBroker(answer)
    sender = _sender(io, broker)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(sender.send, "q", _out("x"), "x")
        assert refused.wait(20)
        io.run(sender.idle(), timeout=20)
        assert broker.taken == ["x"]
        call.result()


@pytest.mark.parametrize("group", [None, "g"])
def test_closing_tells_those_who_still_wait(io: IOThread, group: str | None) -> None:
    def answer(number: int, bodies: list[str]) -> None:
        """Hangs."""

    broker = FakeBroker(answer)
    sender = _sender(io, broker, patience=600.0)
    io.at_close(sender.drain)
    messages = {name: _out(name, group=group) for name in ("blocking", "awaiting", "many", "awaiting many")}

    def blocking() -> Exception:
        with pytest.raises(SendUnknown) as caught:
            sender.send("q", messages["blocking"], "blocking")
        return caught.value

    def awaiting() -> Exception:
        with pytest.raises(SendUnknown) as caught:
            asyncio.run(sender.asend("q", messages["awaiting"], "awaiting"))
        return caught.value

    def many() -> Exception:
        return sender.send_many([Entry("q", messages["many"], "many")])[0]

    def awaiting_many() -> Exception:
        return asyncio.run(sender.asend_many([Entry("q", messages["awaiting many"], "awaiting many")]))[0]

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call) for call in (blocking, awaiting, many, awaiting_many)]
        until(lambda: len(sender._callers) == 4 and bool(broker.batches) and not sender._inbox)
        io.close(timeout=0.5)
        errors = [call.result(30) for call in calls]
    assert {type(error) for error in errors} == {SendUnknown}
    assert all("before the app was closed" in str(error) for error in errors)


def test_closing_while_a_coroutine_waits_starts_no_thread_anew(io: IOThread) -> None:
    go = threading.Event()

    class Slow(FakeBroker):
        async def send(self, queue: str, messages: Sequence[Outgoing]) -> Reply:
            go.set()
            await asyncio.sleep(0.3)
            return await super().send(queue, messages)

    sender = _sender(io, Slow())
    io.at_close(sender.drain)

    async def scenario() -> None:
        call = asyncio.create_task(sender.asend("q", _out("x"), "x"))
        await asyncio.to_thread(go.wait, 20)
        await asyncio.to_thread(io.close)
        await call

    asyncio.run(scenario())
    assert not io.running
