"""The memory broker passes the conformance suite, and does what is its own: dead letters, deduplication, strictness, options."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudq.adapters import AdapterContext, Location
from cloudq.broker import CreatesQueues, Delivery, Outgoing
from cloudq.clock import ManualClock
from cloudq.errors import BrokerError, ConfigError, LeaseLost, SendError, SettleError
from cloudq.memory import LyingBroker, MemoryBroker, adapter
from cloudq.memory.broker import DEFAULT
from cloudq.testing import BrokerConformance


class TestMemoryBroker(BrokerConformance):
    patience = 20.0
    slack = 0.0

    async def make_broker(self) -> MemoryBroker:
        self.clock = ManualClock()
        self.names = (f"queue-{number}" for number in itertools.count())
        return MemoryBroker(clock=self.clock, lease=5)

    async def make_queue(self, *, ordered: bool = False) -> str:
        name = next(self.names)
        assert isinstance(self.broker, CreatesQueues)
        self.broker.create_queue(name)
        return name

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await asyncio.sleep(0.01)  # for what the clock woke


def _broker(*, clock: ManualClock | None = None, **options: float) -> MemoryBroker:
    broker = MemoryBroker(clock=clock or ManualClock(), limits=DEFAULT._replace(**options))  # type: ignore[arg-type]
    broker.create_queue("q", dead_letter="dead", max_receives=2)
    return broker


async def _take(broker: MemoryBroker, queue: str = "q") -> list[Delivery]:
    return list(await broker.receive(queue, max_messages=10, wait=0))


def test_a_message_moves_to_the_dead_letters_after_its_last_receive() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        broker = _broker(clock=clock)
        await broker.send("q", [Outgoing(body="poison")])
        (first,) = await _take(broker)
        clock.advance(30)
        (delivery,) = await _take(broker)
        assert (first.receives, delivery.receives) == (1, 2)
        clock.advance(30)
        assert await _take(broker) == []
        (dead,) = await _take(broker, "dead")
        assert (dead.body, dead.receives, dead.message_id, dead.sent) == ("poison", 1, delivery.message_id, delivery.sent)
        (answer,) = await broker.ack([delivery])
        assert isinstance(answer, LeaseLost)
        assert (await broker.stats("dead")).in_flight == 1

    asyncio.run(scenario())


def test_who_waits_for_dead_letters_is_woken_by_one() -> None:
    async def scenario() -> None:
        broker = _broker()
        await broker.send("q", [Outgoing(body="poison")])
        await broker.extend(await _take(broker), 0)
        held = await _take(broker)
        task = asyncio.create_task(broker.receive("dead", max_messages=1, wait=20))
        await asyncio.sleep(0)
        await broker.extend(held, 0)
        async with asyncio.timeout(10):
            assert [delivery.body for delivery in await task] == ["poison"]

    asyncio.run(scenario())


def test_a_dead_letter_lets_the_rest_of_its_group_go_on() -> None:
    async def scenario() -> None:
        broker = _broker()
        await broker.send("q", [Outgoing(body="1", group="g"), Outgoing(body="2", group="g")])
        for _ in range(2):
            await broker.extend(await broker.receive("q", max_messages=1, wait=0), 0)
        assert [delivery.body for delivery in await _take(broker)] == ["2"]
        assert [delivery.body for delivery in await _take(broker, "dead")] == ["1"]

    asyncio.run(scenario())


def test_a_stale_receipt_deletes_nothing() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        broker = _broker(clock=clock)
        await broker.send("q", [Outgoing(body="x")])
        (stale,) = await _take(broker)
        clock.advance(30)
        assert isinstance((await broker.ack([stale]))[0], LeaseLost)
        held = await _take(broker)
        assert isinstance((await broker.ack([stale]))[0], LeaseLost)
        assert isinstance((await broker.extend([stale], 5))[0], LeaseLost)
        assert (await broker.stats("q")).in_flight == 1
        assert await broker.ack(held) == [None]

    asyncio.run(scenario())


def test_a_receipt_of_another_broker_is_refused() -> None:
    async def scenario() -> None:
        broker = _broker()
        (answer,) = await broker.ack([Delivery(queue="q", body="x", receipt="foreign")])
        assert isinstance(answer, SettleError)
        assert not isinstance(answer, LeaseLost)

    asyncio.run(scenario())


def test_no_lease_is_extended_past_twelve_hours_from_its_receive() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        broker = _broker(clock=clock)
        await broker.send("q", [Outgoing(body="x")])
        (delivery,) = await _take(broker)
        assert await broker.extend([delivery], 43_200) == [None]
        clock.advance(1)
        assert isinstance((await broker.extend([delivery], 43_200))[0], LeaseLost)
        assert await broker.extend([delivery], 43_199) == [None]
        assert await broker.ack([delivery]) == [None]

    asyncio.run(scenario())


def test_leases_end_in_any_order() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        broker = _broker(clock=clock)
        await broker.send("q", [Outgoing(body=str(number)) for number in range(4)])
        taken = await _take(broker)
        for delivery, seconds in zip(taken, (40, 10, 50, 20), strict=True):
            assert await broker.extend([delivery], seconds) == [None]
        came: list[tuple[int, str]] = []
        for second in range(10, 60, 10):
            clock.advance(10)
            came += [(second, delivery.body) for delivery in await _take(broker)]
        assert came == [(10, "1"), (20, "3"), (40, "0"), (50, "2")]
        assert [delivery.body for delivery in await _take(broker, "dead")] == ["1", "3"]

    asyncio.run(scenario())


def test_a_dedup_id_is_dropped_within_five_minutes_and_its_group_only() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        broker = _broker(clock=clock)
        for group, dedup in (("a", "1"), ("a", "1"), ("a", "2"), ("b", "1")):
            assert await broker.send("q", [Outgoing(body=group + dedup, group=group, dedup=dedup)]) == [None]
        await broker.send("q", [Outgoing(body="free", dedup="1"), Outgoing(body="free", dedup="1")])
        taken = await _take(broker)
        assert sorted(delivery.body for delivery in taken) == ["a1", "a2", "b1", "free", "free"]
        await broker.ack(taken)
        clock.advance(299)
        await broker.send("q", [Outgoing(body="a1", group="a", dedup="1")])
        assert await _take(broker) == []
        clock.advance(1)
        await broker.send("q", [Outgoing(body="a1", group="a", dedup="1")])
        assert [delivery.body for delivery in await _take(broker)] == ["a1"]

    asyncio.run(scenario())


def test_a_batch_may_hold_several_of_a_group_and_the_next_wait_for_all() -> None:
    async def scenario() -> None:
        broker = _broker()
        await broker.send("q", [Outgoing(body=str(number), group="g") for number in range(4)])
        first, second = await broker.receive("q", max_messages=2, wait=0)
        assert (first.body, second.body) == ("0", "1")
        await broker.ack([second])
        assert await _take(broker) == []
        await broker.ack([first])
        assert [delivery.body for delivery in await _take(broker)] == ["2", "3"]

    asyncio.run(scenario())


def test_a_waiting_receive_is_woken_when_its_group_goes_on() -> None:
    async def scenario() -> None:
        broker = _broker()
        await broker.send("q", [Outgoing(body="1", group="g"), Outgoing(body="2", group="g")])
        held = await broker.receive("q", max_messages=1, wait=0)
        task = asyncio.create_task(broker.receive("q", max_messages=1, wait=20))
        await asyncio.sleep(0)
        await broker.ack(held)
        async with asyncio.timeout(10):
            assert [delivery.body for delivery in await task] == ["2"]

    asyncio.run(scenario())


class _Ledger:
    """What a queue must do, kept beside it: every message in one place, one holder each, groups in order."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.broker = MemoryBroker(clock=self.clock, lease=10)
        self.broker.create_queue("q")
        self.sent: list[tuple[str, str | None]] = []
        self.held: dict[str, Delivery] = {}
        self.done: set[str] = set()

    def live(self) -> dict[str, Delivery]:
        return {body: delivery for body, delivery in self.held.items() if delivery.lease_until > self.clock.time()}

    async def step(self, action: str, number: int) -> None:
        if action == "send":
            group = [None, "g", "h"][number % 3]
            body = str(len(self.sent))
            self.sent.append((body, group))
            assert await self.broker.send("q", [Outgoing(body=body, group=group, delay=0 if group else number % 2 * 5)]) == [None]
        elif action == "receive":
            live = self.live()
            for delivery in await self.broker.receive("q", max_messages=1 + number, wait=0):
                assert delivery.body not in live
                assert delivery.body not in self.done
                members = [body for body, name in self.sent if name is not None and name == delivery.group]
                for earlier in members[: members.index(delivery.body)] if members else ():
                    assert earlier in self.done or (earlier in self.held and self.held[earlier].received == delivery.received)
                    assert earlier not in live
                self.held[delivery.body] = delivery
        elif action == "pass":
            self.clock.advance(number)
        elif self.held:
            body, delivery = sorted(self.held.items())[number % len(self.held)]
            holds = body in self.live()
            call = self.broker.ack([delivery]) if action == "ack" else self.broker.extend([delivery], number * 3)
            (answer,) = await call
            assert (answer is None) == holds
            if action == "ack" and holds:
                self.done.add(body)
                del self.held[body]


@given(
    st.lists(st.tuples(st.sampled_from(["send", "send", "receive", "receive", "ack", "extend", "pass"]), st.integers(0, 5)), max_size=60)
)
@settings(deadline=None)
def test_every_message_has_one_holder_keeps_its_groups_order_and_is_not_lost(steps: list[tuple[str, int]]) -> None:
    async def scenario() -> None:
        ledger = _Ledger()
        for action, number in steps:
            await ledger.step(action, number)
        for _ in range(200):
            for delivery in await ledger.broker.receive("q", max_messages=10, wait=0):
                assert await ledger.broker.ack([delivery]) == [None]
                ledger.done.add(delivery.body)
            ledger.clock.advance(5)
        assert ledger.done == {body for body, _ in ledger.sent}

    asyncio.run(scenario())


def test_a_group_that_is_done_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        broker = _broker()
        for number in range(20):
            await broker.send("q", [Outgoing(body="x", group=str(number))])
        await broker.ack(await _take(broker))
        await broker.ack(await _take(broker))
        assert broker._queues["q"].groups == {}

    asyncio.run(scenario())


def test_a_delay_in_a_group_is_taken_where_the_limits_say_so() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        broker = _broker(clock=clock, ordered_delay=True)
        assert await broker.send("q", [Outgoing(body="1", group="g", delay=5), Outgoing(body="2", group="g")]) == [None, None]
        assert [delivery.body for delivery in await _take(broker)] == ["2"]
        clock.advance(5)
        assert await _take(broker) == []

    asyncio.run(scenario())


@pytest.mark.parametrize("body", ["", "\x00", "\x0b", "\ud800", "\ufffe", "\uffff"])
def test_a_body_that_sqs_refuses_is_refused(body: str) -> None:
    async def scenario() -> None:
        (answer,) = await _broker().send("q", [Outgoing(body=body)])
        assert isinstance(answer, SendError)
        assert not answer.retryable

    asyncio.run(scenario())


def test_a_batch_over_the_limits_is_refused_as_a_whole() -> None:
    async def scenario() -> None:
        broker = _broker()
        with pytest.raises(BrokerError, match="1 to 10 messages, not 11"):
            await broker.send("q", [Outgoing(body="x")] * 11)
        with pytest.raises(BrokerError, match="bytes"):
            await broker.send("q", [Outgoing(body="x" * 600_000)] * 2)
        with pytest.raises(BrokerError, match="not 0"):
            await broker.ack([])
        with pytest.raises(BrokerError, match="1 to 10 messages, not 11"):
            await broker.receive("q", max_messages=11, wait=0)
        with pytest.raises(BrokerError, match="0 to 20 s"):
            await broker.receive("q", max_messages=1, wait=21)
        assert (await broker.stats("q")).ready == 0

    asyncio.run(scenario())


def test_attributes_count_in_the_size() -> None:
    async def scenario() -> None:
        (answer,) = await _broker(body=10).send("q", [Outgoing(body="12345678", attributes={"k": "é"})])
        assert isinstance(answer, SendError)

    asyncio.run(scenario())


def test_stats_count_delayed_messages_and_the_age_of_the_oldest() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        broker = _broker(clock=clock)
        await broker.send("q", [Outgoing(body="x", delay=60), Outgoing(body="y"), Outgoing(body="z", group="g")])
        clock.advance(7)
        stats = await broker.stats("q")
        assert (stats.ready, stats.in_flight, stats.delayed, stats.oldest) == (2, 0, 1, 7.0)

    asyncio.run(scenario())


def test_a_dead_letter_queue_is_another_queue() -> None:
    with pytest.raises(ValueError, match="another queue"):
        MemoryBroker().create_queue("q", dead_letter="q", max_receives=1)
    with pytest.raises(ValueError, match="goes together"):
        MemoryBroker().create_queue("q", dead_letter="dead")


def test_creating_a_queue_again_keeps_its_messages() -> None:
    async def scenario() -> None:
        broker = _broker()
        await broker.send("q", [Outgoing(body="x")])
        broker.create_queue("q")
        assert len(await _take(broker)) == 1
        assert broker.queues() == ["dead", "q"]

    asyncio.run(scenario())


def test_a_send_from_a_thread_wakes_a_receive_in_a_loop() -> None:
    async def scenario() -> None:
        broker = MemoryBroker()
        broker.create_queue("q")

        def send() -> None:
            with pytest.raises(StopIteration):
                broker.send("q", [Outgoing(body="x")]).send(None)

        thread = threading.Timer(0.05, send)
        thread.start()
        async with asyncio.timeout(10):
            (delivery,) = await broker.receive("q", max_messages=1, wait=20)
        assert delivery.body == "x"
        thread.join()

    asyncio.run(scenario())


def test_the_machines_clock_ends_a_wait_a_delay_and_a_lease() -> None:
    async def scenario() -> None:
        broker = MemoryBroker(lease=0.05)
        broker.create_queue("q")
        assert await broker.receive("q", max_messages=1, wait=0.05) == []
        await broker.send("q", [Outgoing(body="x", delay=0.05)])
        async with asyncio.timeout(10):
            (first,) = await broker.receive("q", max_messages=1, wait=20)
            (again,) = await broker.receive("q", max_messages=1, wait=20)
        assert (first.receives, again.receives) == (1, 2)

    asyncio.run(scenario())


def test_a_waiter_of_a_closed_loop_does_not_swallow_the_wake() -> None:
    broker = MemoryBroker()
    broker.create_queue("q")
    abandoned = asyncio.new_event_loop()
    task = abandoned.create_task(broker.receive("q", max_messages=1, wait=20))
    abandoned.run_until_complete(asyncio.sleep(0))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    abandoned.close()

    async def scenario() -> None:
        live = asyncio.create_task(broker.receive("q", max_messages=1, wait=20))
        await asyncio.sleep(0)
        await broker.send("q", [Outgoing(body="x")])
        async with asyncio.timeout(10):
            assert len(await live) == 1

    asyncio.run(scenario())
    del task


def test_a_standard_test_is_not_overridden_quietly() -> None:
    class Quiet(TestMemoryBroker):
        def test_text_arrives_as_it_was_sent(self) -> None: ...

    class Said(TestMemoryBroker):
        @pytest.mark.xfail(reason="it has a reason")
        def test_text_arrives_as_it_was_sent(self) -> None: ...

    Said().test_no_standard_test_is_overridden_without_a_reason()
    with pytest.raises(AssertionError):
        Quiet().test_no_standard_test_is_overridden_without_a_reason()


def _open(url: str) -> object:
    assert adapter.broker is not None
    return adapter.broker(Location.parse(url), AdapterContext(app="test", clock=ManualClock()))


def test_a_url_without_a_name_makes_a_fresh_broker_and_a_name_is_shared() -> None:
    assert _open("memory://") is not _open("memory://")
    assert _open("memory://shared-here") is _open("memory://shared-here")
    assert _open("memory://shared-here") is not _open("memory://shared-there")


def test_the_urls_options_set_the_limits() -> None:
    broker = _open("memory://?lease=1m&batch=100&receive=50")
    assert isinstance(broker, MemoryBroker)
    assert (broker.limits.lease, broker.limits.batch, broker.limits.receive) == (60.0, 100, 50)
    assert isinstance(_open("memory://?lie=7"), LyingBroker)


@pytest.mark.parametrize("url", ["memory://?colour=red", "memory://?lease=0", "memory://?batch=0", "memory://?batch=x", "memory:///path"])
def test_a_url_that_makes_no_sense_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        _open(url)


def test_one_name_has_one_set_of_options() -> None:
    _open("memory://optioned?lease=5")
    with pytest.raises(ConfigError, match="other options"):
        _open("memory://optioned?lease=6")
