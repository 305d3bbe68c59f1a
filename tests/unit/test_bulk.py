"""Many calls of one send: the same messages as calls one by one, in full requests, each answered by its own index."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from cloudq import CloudQ
from cloudq.broker import EMPTY, Outgoing, SendError
from cloudq.bulk import Bulk, Entry
from cloudq.calls import prepare_many, prepare_signature
from cloudq.clock import ManualClock
from cloudq.errors import BatchSendError, SendUnknown
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.memory.broker import DEFAULT
from cloudq.message import new_ids


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
    with pytest.raises(BatchSendError) as caught:
        app.send_many(app["take"].s(n) for n in range(25))
    assert sorted(caught.value.failed) == list(range(10))
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
