"""A poller fetches what there are slots for, joins helpers only to a backlog, and outlives every fault of a receive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import pytest

from cloudq.broker import Broker, Delivery, Outgoing, QueueStats, SendError, SettleError
from cloudq.errors import BrokerUnavailable, QueueNotFound
from cloudq.memory.broker import DEFAULT
from cloudq.worker import poller as module
from cloudq.worker.poller import Poller
from cloudq.worker.slots import Slots

Answer = Callable[[int], Sequence[Delivery]]


class FakeBroker:
    """Only receives: each call asks ``answer``, which may raise. Counts how many receives are out at once."""

    def __init__(self, answer: Callable[[int], object]) -> None:
        self.limits = DEFAULT._replace(local=False)
        self.answer = answer
        self.asked: list[int] = []
        self.waits: list[float] = []
        self.out = 0
        self.most_out = 0

    async def receive(self, queue: str, *, max_messages: int, wait: float) -> Sequence[Delivery]:
        self.asked.append(max_messages)
        self.waits.append(wait)
        self.out += 1
        self.most_out = max(self.most_out, self.out)
        try:
            await asyncio.sleep(0)
            found = self.answer(max_messages)
            if found is None:
                await asyncio.Event().wait()
            if not found:
                await asyncio.sleep(0.005)
            assert isinstance(found, list)
            return found
        finally:
            self.out -= 1

    async def send(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
        raise NotImplementedError

    async def ack(self, deliveries: Sequence[Delivery]) -> Sequence[SettleError | None]:
        raise NotImplementedError

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[SettleError | None]:
        raise NotImplementedError

    async def stats(self, queue: str) -> QueueStats:
        raise NotImplementedError

    async def close(self) -> None: ...


def _messages(count: int) -> list[Delivery]:
    return [Delivery(queue="q", body="", receipt=None) for _ in range(count)]


def _poller(broker: Broker, slots: Slots, accept: Callable[[Sequence[Delivery]], None], *, alone: bool = True, wait: float = 1.0) -> Poller:
    return Poller(broker, "q", slots, accept, alone=alone, wait=wait)


@pytest.mark.parametrize(("queue", "group", "sizes"), [("q", None, {5}), ("q.fifo", "g", {1}), ("q", "g", {5, 1})])
def test_where_deliveries_are_attempts_an_ordered_queue_is_received_from_one_by_one(queue: str, group: str | None, sizes: set[int]) -> None:
    def answer(count: int) -> list[Delivery]:
        return [Delivery(queue=queue, body="", receipt=None, group=group) for _ in range(count)]

    async def scenario(attempts: bool) -> FakeBroker:
        slots, broker = Slots(5, {queue: 1}), FakeBroker(answer)

        def accept(batch: Sequence[Delivery]) -> None:
            asyncio.get_running_loop().call_later(0.002, slots.give, len(batch))

        poller = Poller(broker, queue, slots, accept, alone=True, wait=1.0, attempts=attempts)
        await _while_running(poller, lambda: len(broker.asked) > 20)
        return broker

    broker = asyncio.run(scenario(attempts=False))
    assert set(broker.asked) == sizes
    assert broker.asked[1:].count(5) == (0 if group else len(broker.asked) - 1)
    if group:
        assert broker.most_out > 1  # several at once: of different groups
    assert set(asyncio.run(scenario(attempts=True)).asked) == {5}


async def _while_running(poller: Poller, until: Callable[[], bool], seconds: float = 30.0) -> None:
    running = asyncio.create_task(poller.run())
    async with asyncio.timeout(seconds):
        while not until():
            await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_no_receive_asks_for_more_than_there_are_slots() -> None:
    async def scenario() -> None:
        taken: list[Delivery] = []
        slots = Slots(3, {"q": 1})
        broker = FakeBroker(_messages)
        await _while_running(_poller(broker, slots, taken.extend), lambda: len(taken) >= 3)
        assert len(taken) == 3
        assert slots.free == 0

    asyncio.run(scenario())


def test_an_idle_queue_has_one_receive_out_and_gives_every_slot_back() -> None:
    async def scenario() -> None:
        slots = Slots(20, {"q": 1})
        broker = FakeBroker(lambda count: [])
        await _while_running(_poller(broker, slots, lambda batch: None), lambda: len(broker.asked) > 5)
        assert broker.most_out == 1
        assert slots.free == 20

    asyncio.run(scenario())


def test_helpers_join_while_receives_come_back_full_and_leave_when_they_do_not() -> None:
    async def scenario() -> None:
        backlog = 200
        slots = Slots(100, {"q": 1})

        def answer(count: int) -> list[Delivery]:
            nonlocal backlog
            found = min(count, backlog)
            backlog -= found
            return _messages(found)

        broker = FakeBroker(answer)

        def accept(batch: Sequence[Delivery]) -> None:
            asyncio.get_running_loop().call_later(0.002, slots.give, len(batch))

        poller = _poller(broker, slots, accept)
        await _while_running(poller, lambda: backlog == 0 and broker.out == 1 and len(broker.asked) > 25)
        assert 1 < broker.most_out <= module.MAX_RECEIVERS
        assert set(broker.waits) == {0.0, 1.0}
        await asyncio.sleep(0.02)
        assert slots.free == 100

    asyncio.run(scenario())


def test_a_receive_that_fails_is_tried_again_after_a_pause_and_loses_no_slot(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        slots = Slots(5, {"q": 1})
        faults: list[Exception] = [BrokerUnavailable("down"), QueueNotFound("gone"), RuntimeError("unforeseen"), TimeoutError()]
        taken: list[Delivery] = []
        pauses: list[float] = []
        sleep = asyncio.sleep

        async def quick(seconds: float) -> None:
            pauses.append(seconds)
            await sleep(0)

        def answer(count: int) -> list[Delivery]:
            if faults:
                raise faults.pop(0)
            return _messages(1)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module.asyncio, "sleep", quick)
            poller = _poller(FakeBroker(answer), slots, taken.extend)
            running = asyncio.create_task(poller.run())
            while len(taken) < 5:
                await sleep(0)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert sum(pause > 0.01 for pause in pauses) == 4
        assert slots.free == 0

    with caplog.at_level(logging.CRITICAL, "cloudq.worker"):
        asyncio.run(scenario())


def test_a_receive_that_hangs_is_started_anew(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "OVERDUE", 0.02)

    async def scenario() -> None:
        slots = Slots(2, {"q": 1})
        answers: list[object] = [None]
        taken: list[Delivery] = []
        broker = FakeBroker(lambda count: answers.pop() if answers else _messages(count))
        await _while_running(_poller(broker, slots, taken.extend, wait=0.01), lambda: len(taken) == 2)
        assert broker.most_out == 1

    with caplog.at_level(logging.CRITICAL, "cloudq.worker"):
        asyncio.run(scenario())


def test_a_stopped_poller_begins_no_receive_and_lets_the_one_that_is_out_end() -> None:
    async def scenario() -> None:
        slots = Slots(1, {"q": 1})
        taken: list[Delivery] = []
        broker = FakeBroker(lambda count: _messages(count))
        poller = _poller(broker, slots, taken.extend)
        running = asyncio.create_task(poller.run())
        await asyncio.sleep(0)  # the receive is out
        poller.stop()
        await asyncio.wait_for(running, 30)
        assert len(taken) == 1
        assert len(broker.asked) == 1

    asyncio.run(scenario())


def test_a_stopped_poller_that_gets_a_slot_gives_it_back() -> None:
    async def scenario() -> None:
        slots = Slots(1, {"q": 1})
        await slots.take("q", 1)
        broker = FakeBroker(_messages)
        poller = _poller(broker, slots, lambda batch: None)
        running = asyncio.create_task(poller.run())
        await asyncio.sleep(0)
        poller.stop()
        slots.give(1)
        await running
        assert slots.free == 1
        assert broker.asked == []

    asyncio.run(scenario())


def test_among_several_queues_an_idle_one_holds_a_single_slot() -> None:
    async def scenario() -> None:
        slots = Slots(10, {"q": 1, "other": 1})
        broker = FakeBroker(lambda count: [])
        await _while_running(_poller(broker, slots, lambda batch: None, alone=False), lambda: len(broker.asked) > 3)
        assert broker.asked[0] == 10
        assert set(broker.asked[1:]) == {1}

    asyncio.run(scenario())


def test_an_idle_queue_only_looks_in_while_another_waits_for_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AWAY", 0.05)

    async def scenario() -> None:
        slots = Slots(1, {"q": 1, "other": 1})
        broker = FakeBroker(lambda count: [])
        poller = _poller(broker, slots, lambda batch: None, alone=False)
        got = 0

        async def busy() -> None:
            nonlocal got
            while True:
                await slots.take("other", 1)
                got += 1
                asyncio.get_running_loop().call_later(0.001, slots.give, 1)

        other = asyncio.create_task(busy())
        await _while_running(poller, lambda: len(broker.asked) > 4)
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
        assert set(broker.waits[2:]) == {0.0}
        assert got > len(broker.asked)

    asyncio.run(scenario())


def test_cancelling_while_a_receive_is_out_gives_its_slots_back() -> None:
    async def scenario() -> None:
        slots = Slots(4, {"q": 1})
        broker = FakeBroker(lambda count: None)
        await _while_running(_poller(broker, slots, lambda batch: None), lambda: broker.out == 1)
        assert slots.free == 4

    asyncio.run(scenario())


def test_waiting_for_a_slot_is_no_illness_and_a_stuck_receive_is(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots(1, {"q": 1})
    poller = _poller(FakeBroker(_messages), slots, lambda batch: None)
    assert poller.healthy
    poller.alive_at -= 1_000
    assert not poller.healthy  # also while it holds every slot itself
    slots.free = 0

    async def go() -> None:
        await _while_running(poller, lambda: poller.healthy)

    asyncio.run(go())
