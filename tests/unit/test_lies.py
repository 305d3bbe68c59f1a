"""The lying broker lies as it was told, the same way for the same seed, and never loses a message."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudq.broker import Delivery, Outgoing
from cloudq.clock import ManualClock
from cloudq.errors import BrokerError, BrokerUnavailable, ConfigError, LeaseLost, QueueNotFound, SendError, SettleError
from cloudq.memory import Lies, LyingBroker, MemoryBroker

NONE = dict.fromkeys(Lies.__slots__, 0.0)


def _lying(seed: int = 1, **rates: float) -> tuple[LyingBroker, MemoryBroker, ManualClock]:
    clock = ManualClock()
    truth = MemoryBroker(clock=clock)
    truth.create_queue("q")
    return LyingBroker(truth, seed, Lies(**{**NONE, **rates})), truth, clock


async def _take(broker: LyingBroker | MemoryBroker) -> list[Delivery]:
    return list(await broker.receive("q", max_messages=10, wait=0))


async def _sent_and_taken(broker: LyingBroker, truth: MemoryBroker, group: str | None = None) -> Delivery:
    await truth.send("q", [Outgoing(body="x", group=group)])
    (delivery,) = await _take(broker)
    return delivery


def test_at_no_rates_it_tells_the_truth() -> None:
    async def scenario() -> None:
        broker, _, clock = _lying()
        messages = [Outgoing(body=str(number)) for number in range(10)]
        assert await broker.send("q", messages) == [None] * 10
        taken = await _take(broker)
        assert [delivery.body for delivery in taken] == [message.body for message in messages]
        assert await broker.extend(taken, 60) == [None] * 10
        assert await broker.ack(taken) == [None] * 10
        clock.advance(120)
        assert await _take(broker) == []
        await broker.close()

    asyncio.run(scenario())


def test_a_refused_entry_may_have_been_taken() -> None:
    async def scenario() -> None:
        broker, truth, _ = _lying(send_refused=1)
        answers = await broker.send("q", [Outgoing(body=str(number)) for number in range(10)])
        assert all(isinstance(answer, SendError) and answer.retryable for answer in answers)
        assert 0 < (await truth.stats("q")).ready < 10

    asyncio.run(scenario())


def test_a_truth_stays_with_its_entry() -> None:
    async def scenario() -> None:
        broker, _, _ = _lying(send_refused=0.5)
        for _ in range(20):
            answers = await broker.send("q", [Outgoing(body="x"), Outgoing(body="x", delay=901), Outgoing(body="x")])
            assert isinstance(answers[1], SendError)
            for answer in (answers[0], answers[2]):
                assert answer is None or answer.retryable

    asyncio.run(scenario())


def test_a_lost_send_may_have_been_taken() -> None:
    async def scenario() -> None:
        broker, truth, _ = _lying(send_lost=1)
        for _ in range(20):
            with pytest.raises(BrokerUnavailable):
                await broker.send("q", [Outgoing(body="x")])
        assert 0 < (await truth.stats("q")).ready < 20

    asyncio.run(scenario())


def test_a_receive_comes_back_empty_although_there_is_a_message() -> None:
    async def scenario() -> None:
        broker, truth, _ = _lying(receive_empty=1)
        await truth.send("q", [Outgoing(body="x")])
        assert await broker.receive("q", max_messages=1, wait=20) == []
        with pytest.raises(QueueNotFound):
            await broker.receive("missing", max_messages=1, wait=0)

    asyncio.run(scenario())


def test_what_a_lost_receive_leased_comes_when_the_lease_ends() -> None:
    async def scenario() -> None:
        broker, truth, clock = _lying(receive_lost=1)
        await truth.send("q", [Outgoing(body="x")])
        with pytest.raises(BrokerUnavailable):
            await _take(broker)
        assert await _take(truth) == []
        clock.advance(30)
        assert len(await _take(truth)) == 1

    asyncio.run(scenario())


def test_a_batch_is_shuffled() -> None:
    async def scenario() -> None:
        broker, truth, _ = _lying(reorder=1)
        bodies = [str(number) for number in range(10)]
        await truth.send("q", [Outgoing(body=body) for body in bodies])
        shuffled = [delivery.body for delivery in await _take(broker)]
        assert sorted(shuffled) == bodies
        assert shuffled != bodies

    asyncio.run(scenario())


def test_a_duplicate_is_with_two_at_once_and_neither_knows() -> None:
    async def scenario() -> None:
        broker, truth, _ = _lying(duplicate=1)
        first = await _sent_and_taken(broker, truth)
        assert first.lease_until == first.received + 30
        (second,) = await _take(truth)
        assert second.message_id == first.message_id
        assert isinstance((await broker.ack([first]))[0], LeaseLost)
        assert await broker.ack([second]) == [None]

    asyncio.run(scenario())


def test_a_lease_may_end_early() -> None:
    async def scenario() -> None:
        broker, truth, _ = _lying(expire=1)
        delivery = await _sent_and_taken(broker, truth)
        assert isinstance((await broker.extend([delivery], 60))[0], LeaseLost)
        assert len(await _take(truth)) == 1

    asyncio.run(scenario())


def test_a_stale_receipt_may_be_accepted_and_deletes_nothing() -> None:
    async def scenario() -> None:
        broker, truth, _ = _lying(expire=1, stale_accepted=1)
        delivery = await _sent_and_taken(broker, truth)
        assert await broker.ack([delivery]) == [None]
        assert len(await _take(truth)) == 1

    asyncio.run(scenario())


def test_a_message_may_come_again_after_its_ack() -> None:
    async def scenario() -> None:
        broker, truth, _ = _lying(ack_undone=1)
        delivery = await _sent_and_taken(broker, truth)
        assert await broker.ack([delivery]) == [None]
        assert [again.message_id for again in await _take(truth)] == [delivery.message_id]

    asyncio.run(scenario())


def test_an_ack_may_be_done_and_answered_with_an_error() -> None:
    async def scenario() -> None:
        broker, truth, clock = _lying(settle_refused=1)
        (answer,) = await broker.ack([await _sent_and_taken(broker, truth)])
        assert isinstance(answer, SettleError)
        assert answer.retryable
        assert not isinstance(answer, LeaseLost)
        clock.advance(60)
        assert await _take(truth) == []

    asyncio.run(scenario())


def test_the_answer_to_an_ack_may_be_lost() -> None:
    async def scenario() -> None:
        broker, truth, clock = _lying(settle_lost=1)
        with pytest.raises(BrokerUnavailable):
            await broker.ack([await _sent_and_taken(broker, truth)])
        clock.advance(60)
        assert await _take(truth) == []

    asyncio.run(scenario())


def test_groups_are_neither_repeated_nor_reordered() -> None:
    async def scenario() -> None:
        broker, truth, _ = _lying(duplicate=1, expire=1, ack_undone=1, reorder=1)
        await truth.send("q", [Outgoing(body=str(number), group="g") for number in range(10)])
        taken = await _take(broker)
        assert [delivery.body for delivery in taken] == [str(number) for number in range(10)]
        assert await broker.ack(taken) == [None] * 10
        assert (await truth.stats("q")).in_flight == 0

    asyncio.run(scenario())


def test_queues_are_created_where_the_broker_creates_them() -> None:
    class Cloud:
        limits = MemoryBroker().limits

    with pytest.raises(ConfigError, match="Cloud creates no queues"):
        LyingBroker(Cloud()).create_queue("q")  # type: ignore[arg-type]
    broker, truth, _ = _lying()
    broker.create_queue("other")
    assert truth.queues() == ["other", "q"]


async def _work(seed: int) -> tuple[set[str], list[str]]:
    """A careful producer and a careful consumer: which bodies must have been worked on, and what came, in order."""
    clock = ManualClock()
    broker = LyingBroker(MemoryBroker(clock=clock), seed)
    broker.create_queue("q")
    confirmed: set[str] = set()
    for number in range(30):
        try:
            if (await broker.send("q", [Outgoing(body=str(number), group="g" if number % 5 == 0 else None)]))[0] is None:
                confirmed.add(str(number))
        except BrokerError:
            pass
    came: list[str] = []
    for _ in range(300):
        try:
            batch = await _take(broker)
            came += [delivery.body for delivery in batch]
            if batch:
                await broker.ack(batch)
        except BrokerError:
            pass
        clock.advance(10)
    assert (await broker.stats("q")).ready == 0
    return confirmed, came


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_nothing_is_ever_lost_by_a_lie(seed: int) -> None:
    confirmed, came = asyncio.run(_work(seed))
    assert confirmed <= set(came)


def test_the_same_seed_tells_the_same_lies() -> None:
    first, again, other = (asyncio.run(_work(seed)) for seed in (5, 5, 6))
    assert first == again
    assert first != other
