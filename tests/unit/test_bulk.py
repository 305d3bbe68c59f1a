"""Many calls of one send: the same messages as calls one by one, in full requests, each answered by its own index."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cloudq import CloudQ, calls
from cloudq.broker import EMPTY, Outgoing, SendError
from cloudq.bulk import Bulk, Entry
from cloudq.calls import prepare_many, prepare_signature
from cloudq.clock import ManualClock
from cloudq.errors import BatchSendError, BrokerError, BrokerUnavailable, SendUnknown
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.memory.broker import DEFAULT
from cloudq.message import new_ids
from cloudq.parcels import Tally


class Remote(MemoryBroker):
    """A broker over a network; it refuses the bodies that hold ``refused``, each once if ``once``."""

    def __init__(self, refused: str = "\0", *, once: bool = False) -> None:
        super().__init__(limits=DEFAULT._replace(local=False))
        self.refused, self.once = refused, once
        self.requests: list[int] = []
        self.seen: Counter[str] = Counter()

    async def send(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
        self.requests.append(len(messages))
        await asyncio.sleep(0)
        answers: list[SendError | None] = []
        for message in messages:
            bad = self.refused in message.body and not (self.once and self.seen[message.body])
            self.seen[message.body] += 1
            answers.append(SendError("no", retryable=self.once) if bad else None)
        return answers


def app_of(broker: MemoryBroker, **more: Any) -> CloudQ:
    app = CloudQ("shop", broker=broker, **more)

    @app.task(name="take", queue="q")
    def take(x: int, text: str = "") -> None: ...

    @app.task(name="late", queue="other", expires="1h")
    def late(x: int) -> None: ...

    return app


def body(outgoing: Outgoing) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(outgoing.body)
    assert len(fields.pop("id")) == 32
    return fields


def test_a_call_among_many_is_the_same_message_as_alone() -> None:
    app = app_of(MemoryBroker(), clock=ManualClock(1_790_000_000.5))
    take, late = app["take"], app["late"]
    signatures = [take.s(1), take.s(2, "é"), take.s(3, text="b"), take.s(4).set(delay=5), late.s(5), take.s(6).set(tenant="a")]
    bulk = prepare_many(app, signatures, bare=True)
    alone = [prepare_signature(app, each) for each in signatures]
    assert sorted(bulk.whole) == [2, 3, 4, 5]
    for index, each in enumerate(alone):
        mine = bulk.entry(index)
        assert (mine.queue, body(mine.outgoing)) == (each.queue, body(each.outgoing))
        assert (mine.outgoing.delay, mine.outgoing.tenant) == (each.outgoing.delay, each.outgoing.tenant)
        assert mine.outgoing.attributes is EMPTY
        assert bulk.size(index) == len(mine.outgoing.body)
    assert len(set(bulk.ids)) == len(signatures)
    assert [json.loads(each.outgoing.body)["id"] for each in bulk] == bulk.ids


def test_ids_asked_for_by_the_hundred_are_as_many() -> None:
    ids = [id for id, _ in zip(new_ids(), range(5_000), strict=False)]
    assert len(set(ids)) == 5_000
    assert {len(id) for id in ids} == {32}


def test_many_calls_go_in_full_requests_and_one_for_what_is_left() -> None:
    broker = Remote()
    app = app_of(broker)
    assert len(app.send_many(app["take"].s(n) for n in range(1_003))) == 1_003
    assert Counter(broker.requests) == {10: 100, 3: 1}


def test_an_entry_that_is_refused_is_told_by_its_index_and_none_else_is() -> None:
    app = app_of(Remote(refused="wrong"))
    with pytest.raises(BatchSendError) as caught:
        app.send_many(app["take"].s(n, "wrong" if n in (7, 95, 101) else "") for n in range(105))
    assert sorted(caught.value.failed) == [7, 95, 101]
    assert len(caught.value.results) == 105


def test_an_entry_that_fails_for_a_while_is_sent_again_alone() -> None:
    broker = Remote(refused="slow", once=True)
    app = app_of(broker)
    app.send_many(app["take"].s(n, "slow" if n in (3, 14) else "") for n in range(40))
    assert Counter(broker.seen.values()) == {1: 38, 2: 2}
    assert sum(broker.requests) == 42


def test_what_no_answer_comes_for_is_unknown_by_its_index() -> None:
    class Silent(Remote):
        async def send(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
            if any('"args":[3]' in message.body for message in messages):
                await asyncio.sleep(3600)
            return await super().send(queue, messages)

    app = app_of(Silent())
    app.sender.patience = 0.3
    while True:
        with pytest.raises(BatchSendError) as caught:
            app.send_many(app["take"].s(n) for n in range(25))
        if set(caught.value.failed) == set(range(10)):
            break
        assert set(caught.value.failed) > set(range(10))
        app.sender.patience *= 2  # the machine stood still
        assert app.sender.patience < 10
    assert {type(each) for each in caught.value.failed.values()} == {SendUnknown}


def test_inside_a_batch_and_after_a_commit_the_calls_are_held_back() -> None:
    committed: list[Any] = []
    broker = Remote()
    app = app_of(broker, after_commit=committed.append)
    with app.batch():
        held = app.send_many(app["take"].s(n) for n in range(12))
        assert broker.requests == []
    assert sum(broker.requests) == len(held) == 12
    both = app.send_many([app["take"].s(1), app["take"].s(2).set(after_commit=True)])
    assert (sum(broker.requests), len(both), len(committed)) == (13, 2, 1)
    committed[0]()
    assert sum(broker.requests) == 14


def test_calls_that_are_recorded_as_queued_are_so_among_many() -> None:
    app = app_of(MemoryBroker(), store=MemoryStore())
    results = app.send_many(app["take"].s(n) for n in range(20))
    assert {each.state for each in results} == {"QUEUED"}


def test_entries_are_packed_by_queue_count_and_bytes() -> None:
    bulk = Bulk(Entry("a" if n % 2 else "b", Outgoing(body="x" * 30), str(n)) for n in range(6))
    bulk.add_bare("6", "a", "x" * 50)
    assert bulk.packed(range(7), 2, 1000) == [("b", [0, 2]), ("a", [1, 3]), ("b", [4]), ("a", [5, 6])]
    assert bulk.packed([1, 3, 5, 6], 10, 100) == [("a", [1, 3, 5]), ("a", [6])]


class Scripted(Remote):
    """What it answers to each request is said by a function of its number and its messages; each takes ``trip`` seconds."""

    def __init__(self, answer: Callable[[int, Sequence[Outgoing]], Sequence[SendError | None]], trip: float = 0.0) -> None:
        super().__init__()
        self.answer, self.trip = answer, trip

    async def send(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
        self.requests.append(len(messages))
        number = len(self.requests)
        await asyncio.sleep(self.trip)
        return self.answer(number, messages)


def taken(number: int, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
    return [None] * len(messages)


@pytest.mark.parametrize("given", [0, 9, 11])
def test_a_driver_that_gives_another_number_of_answers_has_confirmed_nothing(given: int) -> None:
    app = app_of(Scripted(lambda number, messages: [None] * (given if len(messages) == 10 else len(messages))))
    with pytest.raises(BatchSendError, match=f"{given} answers to 10 messages") as caught:
        app.send_many(app["take"].s(n) for n in range(23))
    assert sorted(caught.value.failed) == list(range(20))
    assert {type(each) for each in caught.value.failed.values()} == {BrokerError}


def test_an_entry_that_is_refused_while_the_patience_ends_is_not_taken_for_accepted() -> None:
    sender, refused = app_of(Remote()).sender, SendError("no")
    tally = Tally(2, lambda: None)

    class Late(bytearray):
        """The answer comes while it is looked for."""

        def __iter__(self) -> Any:
            tally.tell(0, refused)
            return super().__iter__()

    tally.answered = Late(2)
    failures = sender._failures(Bulk(Entry("q", Outgoing(body="x"), str(n)) for n in range(2)), tally, "in time")
    assert failures[0] is refused
    assert isinstance(failures[1], SendUnknown)


def test_many_calls_are_sent_although_callers_beside_them_keep_the_queue_full() -> None:
    broker = Scripted(taken, trip=0.02)
    app = app_of(broker)

    async def scenario() -> None:
        async def caller() -> None:
            while True:
                await app["take"].adelay(0)

        callers = [asyncio.create_task(caller()) for _ in range(400)]
        await asyncio.sleep(0.2)
        await app.asend_many(app["take"].s(n) for n in range(500))
        for each in callers:
            each.cancel()
        await asyncio.wait(callers)

    asyncio.run(scenario())


def test_a_call_beside_many_does_not_wait_for_all_of_them() -> None:
    broker = Scripted(taken, trip=0.01)
    app = app_of(broker)
    many = threading.Thread(target=lambda: app.send_many(app["take"].s(n) for n in range(10_000)))
    many.start()
    while len(broker.requests) < 20:
        threading.Event().wait(0.001)

    async def beside() -> int:  # counted where the requests are made, whatever the threads' turns
        before = len(broker.requests)
        await app["take"].adelay(0)
        return before

    before = app.io.run(beside(), timeout=60)
    assert broker.requests.index(1) - before < 100
    many.join()
    assert sum(broker.requests) == 10_001


def test_closing_in_the_middle_leaves_no_request_that_was_made_and_not_begun() -> None:
    app = app_of(Scripted(taken, trip=3600.0))  # a coroutine that nobody awaits would fail this test
    app.sender.patience = 0.5

    def send() -> None:
        with pytest.raises(BatchSendError):
            app.send_many(app["take"].s(n) for n in range(1_000))

    many = threading.Thread(target=send)
    many.start()
    while not app.io.running:
        threading.Event().wait(0.001)
    threading.Event().wait(0.1)
    app.io.close(timeout=0.5)
    many.join()
    gc.collect()


def test_a_request_that_failed_and_was_repeated_keeps_nothing_alive() -> None:
    class Held:
        def __init__(self, number: int) -> None:
            self.queue, self.outgoing, self.id = "q", Outgoing(body=str(number)), str(number)

    def away(number: int, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
        if number == 2:
            raise BrokerUnavailable("away")
        return [None] * len(messages)

    app = app_of(Scripted(away))
    entries = [Held(number) for number in range(50)]
    alive = weakref.WeakSet(entries)
    gc.disable()
    try:
        assert app.sender.send_many(entries) == {}
        del entries
        app.close()
        assert len(alive) == 0
    finally:
        gc.enable()


def test_calls_that_no_store_records_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_of(Remote(), store=MemoryStore(), track_queued=False)
    monkeypatch.setattr(calls, "parse", None)
    assert len(app.send_many(app["take"].s(n) for n in range(20))) == 20


def test_calls_to_be_recorded_wait_without_their_messages() -> None:
    app = app_of(MemoryBroker(), store=MemoryStore())
    bulk = prepare_many(app, (app["take"].s(n) for n in range(2_000)), bare=True)
    tracemalloc.start()
    try:
        accepted = app.dispatch.tracked(bulk, {})
        assert len(accepted) == 2_000
        assert tracemalloc.get_traced_memory()[0] / 2_000 < 300
    finally:
        tracemalloc.stop()
