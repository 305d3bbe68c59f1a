"""Looking into queues, redriving and purging: nothing is lost, also on a broker that lies."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cloudq import CloudQ, Queue, letters, states
from cloudq.broker import Delivery, Outgoing
from cloudq.clock import Clock
from cloudq.io import drive
from cloudq.letters import ALL, Letter, Match
from cloudq.memory import LyingBroker, MemoryBroker
from cloudq.memory.broker import DEFAULT
from cloudq.message import dead_letter, parse
from cloudq.settle import DEAD_ATTRIBUTE
from cloudq.values import dumps
from cloudq.worker import Worker, WorkerOptions
from tests.unit.pacing import PacedClock


def _app(broker: Any = "memory://", **settings: Any) -> CloudQ:
    return CloudQ("shop", broker=broker, **settings)


def _body(id: str, task: str = "shop.add", **fields: Any) -> str:
    return dumps({"v": 1, "id": id, "task": task, "args": [1], **fields})


def _dead(id: str, task: str = "shop.add", *, queue: str = "default", error: str = "ValueError", at: float = 1.0) -> str:
    fields = {"v": 1, "id": id, "task": task, "args": [1]}
    note = {"reason": "the task failed", "queue": queue, "at": at, "error": {"type": error, "detail": "no", "traceback": "…"}}
    return dead_letter("", fields, note)


def _send(app: CloudQ, queue: str, *bodies: str, **options: Any) -> None:
    broker = app.broker._broker if isinstance(app.broker, LyingBroker) else app.broker
    for body in bodies:
        assert asyncio.run(broker.send(queue, [Outgoing(body=body, **options)])) == [None]


def _all(app: CloudQ, queue: str) -> list[Delivery]:
    """Everything that can be received, without lies; it is given back."""
    broker = app.broker._broker if isinstance(app.broker, LyingBroker) else app.broker

    async def read() -> list[Delivery]:
        found: list[Delivery] = []
        while received := await broker.receive(queue, max_messages=broker.limits.receive, wait=0):
            found += received
        for delivery in found:
            await broker.extend([delivery], 0)
        return found

    return asyncio.run(read())


def _ids(found: Sequence[Delivery | Letter]) -> list[str]:
    return [each.id if isinstance(each, Letter) else str(parse(each.body)["id"]) for each in found]


def test_a_scan_finds_every_message_once_and_gives_all_back() -> None:
    app = _app()
    _send(app, "default", *(_body(f"t{n}") for n in range(35)))
    found = app.io.run(letters.scan(app, "default"))
    assert sorted(_ids(found.letters)) == sorted(f"t{n}" for n in range(35))
    assert found.unseen == 0
    assert len(_all(app, "default")) == 35


def test_a_peek_receives_no_more_than_it_shows() -> None:
    app = _app()
    _send(app, "default", *(_body(f"t{n}") for n in range(25)))
    found = app.io.run(letters.scan(app, "default", limit=3))
    assert len(found.letters) == 3
    assert found.unseen == 22
    assert Counter(delivery.receives for delivery in _all(app, "default")) == {1: 22, 2: 3}


def test_a_scan_with_a_limit_ends_at_the_first_matches() -> None:
    app = _app()
    _send(app, "default", *(_body(f"t{n}", "shop.add" if n % 2 else "shop.mail") for n in range(60)))
    found = app.io.run(letters.scan(app, "default", Match(task="shop.mail"), limit=2))
    assert [letter.task for letter in found.letters] == ["shop.mail"] * 2
    assert found.looked_at <= 20


def _paced(broker: Callable[[Clock], Any]) -> CloudQ:
    """An app whose leases end only as its loop goes on."""
    clock = PacedClock(speed=10)
    app = _app(broker(clock), clock=clock)
    clock.go_with(app)
    return app


class _Slow(MemoryBroker):
    async def receive(self, queue: str, *, max_messages: int, wait: float) -> Sequence[Delivery]:
        await self.clock.sleep(0.05)
        return await super().receive(queue, max_messages=max_messages, wait=0)


def test_leases_are_kept_for_as_long_as_a_scan_takes() -> None:
    app = _paced(lambda clock: _Slow(clock=clock, limits=DEFAULT._replace(lease=1.0, receive=2)))
    app.broker.create_queue("default")  # type: ignore[attr-defined]
    _send(app, "default", *(_body(f"t{n}") for n in range(60)))
    found = app.io.run(letters.scan(app, "default"))
    assert len(found.letters) == 60
    assert {letter.delivery.receives for letter in found.letters} == {1}
    assert asyncio.run(app.broker.stats("default")).ready == 60
    app.close()


def test_a_letter_that_is_redriven_runs_again_under_its_id() -> None:
    app = _app(store="memory://")
    broken = [True]

    @app.task
    def charge(order: int) -> str:
        if broken[0]:
            raise ValueError("card declined")
        return f"charged {order}"

    result = charge.delay(7)
    drain(app)
    assert result.state == states.FAILURE

    broken[0] = False
    done = app.io.run(letters.redrive(app, "default-dlq", Match(ids=frozenset({result.id}))))
    assert [(letter.id, target) for letter, target in done.sent] == [(result.id, "default")]
    assert "dead" in parse(_all(app, "default")[0].body)
    assert _all(app, "default-dlq") == []
    drain(app)
    assert app.result(result.id).get(timeout=0) == "charged 7"
    app.close()


def drain(app: CloudQ) -> None:
    """Work off what is in the queues."""
    worker = Worker(app, WorkerOptions(drain=True))
    worker.start()
    worker.join(60)


def test_only_the_letters_that_match_are_redriven() -> None:
    app = _app()
    _send(app, "default-dlq", _dead("a"), _dead("b", "shop.mail"), _dead("c", error="smtp.Timeout"))
    done = app.io.run(letters.redrive(app, "default-dlq", Match(error="timeout")))
    assert _ids([letter for letter, _ in done.sent]) == ["c"]
    assert _ids(_all(app, "default")) == ["c"]
    assert sorted(_ids(_all(app, "default-dlq"))) == ["a", "b"]


def test_a_dry_run_sends_nothing_and_deletes_nothing() -> None:
    app = _app()
    _send(app, "default-dlq", _dead("a"), _dead("b"))
    done = app.io.run(letters.redrive(app, "default-dlq", ALL, dry_run=True))
    assert len(done.sent) == 2
    assert _all(app, "default") == []
    assert len(_all(app, "default-dlq")) == 2


def test_a_letter_whose_queue_does_not_take_it_stays() -> None:
    app = _app()
    _send(app, "default-dlq", _dead("a", queue="gone"), _dead("b"))
    done = app.io.run(letters.redrive(app, "default-dlq", ALL))
    assert [letter.id for letter, _ in done.failed] == ["a"]
    assert _ids(_all(app, "default-dlq")) == ["a"]
    assert _ids(_all(app, "default")) == ["b"]


def test_bytes_that_were_no_message_go_back_as_they_were() -> None:
    app = _app()
    _send(app, "default-dlq", dead_letter("<order id='1'/>", None, {"reason": "the body is not JSON", "queue": "default"}))
    app.io.run(letters.redrive(app, "default-dlq", ALL))
    assert [delivery.body for delivery in _all(app, "default")] == ["<order id='1'/>"]


def test_a_letter_without_a_note_is_marked_so_that_it_starts_afresh() -> None:
    app = _app()
    _send(app, "default-dlq", _body("a"), attributes={DEAD_ATTRIBUTE: "the task failed"})
    _send(app, "default-dlq", _body("b"))
    app.io.run(letters.redrive(app, "default-dlq", ALL))
    found = {parse(delivery.body)["id"]: delivery for delivery in _all(app, "default")}
    assert parse(found["a"].body)["dead"] == {"reason": "the task failed"}
    assert not found["a"].attributes
    assert "dead" in parse(found["b"].body)


def test_a_letter_that_names_no_queue_stays_where_several_share_its_dead_letter_queue() -> None:
    app = _app(queues=[Queue(name="a", dead_letter="morgue"), Queue(name="b", dead_letter="morgue")])
    _send(app, "morgue", _body("x"))
    done = app.io.run(letters.redrive(app, "morgue", ALL))
    assert len(done.failed) == 1
    assert len(_all(app, "morgue")) == 1
    done = app.io.run(letters.redrive(app, "morgue", ALL, to="b"))
    assert _ids(_all(app, "b")) == ["x"]


def test_what_dies_again_during_a_redrive_is_not_sent_once_more() -> None:
    app = _app()
    _send(app, "default-dlq", _dead("a"), _dead("b"))

    def dies_again(sent: int) -> None:
        if sent:
            drive(app.broker.send("default-dlq", [Outgoing(body=_dead("a", at=app.clock.time() + 1))]))

    done = app.io.run(letters.redrive(app, "default-dlq", Match(ids=frozenset({"a", "missing"})), progress=dies_again))
    assert [letter.id for letter, _ in done.sent] == ["a"]
    assert _ids(_all(app, "default")) == ["a"]
    assert "b" in _ids(_all(app, "default-dlq"))


def test_ordered_letters_are_redriven_in_order_and_not_dropped_as_repeats() -> None:
    app = _app(queues=["orders.fifo"])
    for n in range(12):
        _send(app, "orders.fifo", _body(f"t{n}"), group="g", dedup=f"t{n}")
        _send(app, "orders-dlq.fifo", _dead(f"t{n}", queue="orders.fifo"), group="g", dedup=f"dead-{n}")
    assert app.io.run(letters.purge(app, "orders.fifo")) == 12
    app.io.run(letters.redrive(app, "orders-dlq.fifo", ALL))

    async def read() -> list[str]:
        found: list[str] = []
        while received := await app.broker.receive("orders.fifo", max_messages=10, wait=0):
            found += [parse(delivery.body)["id"] for delivery in received]
            await app.broker.ack(received)
        return found

    assert asyncio.run(read()) == [f"t{n}" for n in range(12)]


def test_what_dies_again_meanwhile_is_not_sent_in_circles() -> None:
    app = _app(default_queue="default")
    _send(app, "default-dlq", *(_dead(f"t{n}") for n in range(15)))

    async def redrive_while_dying() -> int:
        async def die() -> None:
            while True:
                for delivery in await app.broker.receive("default", max_messages=10, wait=0):
                    await app.broker.send("default-dlq", [Outgoing(body=delivery.body)])
                    await app.broker.ack([delivery])
                await asyncio.sleep(0)

        dying = asyncio.create_task(die())
        done = await letters.redrive(app, "default-dlq", ALL)
        dying.cancel()
        return len(done.sent)

    assert app.io.run(redrive_while_dying(), timeout=60) == 15


@pytest.mark.parametrize("seed", range(12))
def test_a_lying_broker_loses_no_letter_to_a_redrive(seed: int) -> None:
    app = _paced(lambda clock: LyingBroker(MemoryBroker(clock=clock, lease=1.0), seed))
    app.declare_queue("default")
    everything = {f"t{n}" for n in range(40)}
    _send(app, "default-dlq", *(_dead(id) for id in sorted(everything)))
    for _ in range(10):
        done = app.io.run(letters.redrive(app, "default-dlq", ALL))
        assert done.looked_at <= 40
    asyncio.run(app.clock.sleep(1.1))  # what the broker held back by a lie comes back with its lease
    assert set(_ids(_all(app, "default"))) | set(_ids(_all(app, "default-dlq"))) == everything
    assert len(set(_ids(_all(app, "default")))) > 30
    app.close()


@pytest.mark.parametrize("seed", range(6))
def test_a_lying_broker_loses_no_letter_to_a_scan(seed: int) -> None:
    app = _paced(lambda clock: LyingBroker(MemoryBroker(clock=clock, lease=1.0), seed))
    app.declare_queue("default")
    everything = {f"t{n}" for n in range(40)}
    _send(app, "default-dlq", *(_dead(id) for id in sorted(everything)))
    found = app.io.run(letters.scan(app, "default-dlq"))
    assert len(_ids(found.letters)) == len(set(_ids(found.letters)))
    asyncio.run(app.clock.sleep(1.1))
    assert set(_ids(_all(app, "default-dlq"))) == everything
    app.close()


def test_a_purge_deletes_all_and_counts() -> None:
    app = _app()
    _send(app, "default", *(_body(f"t{n}") for n in range(33)))
    assert app.io.run(letters.purge(app, "default")) == 33
    assert _all(app, "default") == []
    assert app.io.run(letters.purge(app, "default")) == 0


def test_a_name_means_its_dead_letter_queue_or_itself() -> None:
    app = _app(queues=[Queue(name="a", dead_letter="morgue"), "b.fifo"])
    full = "arn:aws:sqs:eu-west-1:123456789012:shop-undelivered"
    names = ("a", "morgue", "default", "default-dlq", "b.fifo", "b-dlq.fifo", "other", full)
    found = [letters.dead_letter_queue(app, name) for name in names]
    assert found == ["morgue", "morgue", "default-dlq", "default-dlq", "b-dlq.fifo", "b-dlq.fifo", "other-dlq", full]
