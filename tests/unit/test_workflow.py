"""Chains, groups and chords come to what their parts come to, in a worker and in place, and say so when a part fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloudq import Chain, CloudQ, Group, GroupResult, Ignore, Retry, Task, TaskFailed, TaskRevoked, chain, chord, group, states
from cloudq.errors import ArgumentsError, BatchSendError, NotBound, StoreRequired
from cloudq.io import drive
from cloudq.letters import ALL, redrive
from cloudq.memory import Lies, LyingBroker, MemoryBroker, MemoryStore
from cloudq.message import derived_id, parse
from cloudq.result import AsyncResult
from cloudq.signature import Canvas
from cloudq.worker import Worker, WorkerOptions


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL, "cloudq"):
        yield


class Shop:
    """An app with the arithmetic of Celery's user guide."""

    def __init__(self, **settings: Any) -> None:
        self.app = app = CloudQ("flow", **{"broker": MemoryBroker(), "store": MemoryStore(), **settings})
        self.told: list[dict[str, Any]] = []
        self.broken = True
        self.runs: list[str] = []

        @app.task(name="add")
        def add(x: int, y: int) -> int:
            self.runs.append("add")
            return x + y

        @app.task(name="mul")
        async def mul(x: int, y: int) -> int:
            return x * y

        @app.task(name="tsum")
        def tsum(numbers: list[int]) -> int:
            self.runs.append("tsum")
            return sum(numbers)

        @app.task(name="quiet", ignore_result=True)
        def quiet(x: int) -> int:
            return x

        @app.task(name="flaky", retry=Retry(max_retries=0))
        def flaky(x: int) -> int:
            if self.broken:
                raise ValueError("not today")
            return x

        @app.task(name="ignores")
        def ignores(x: int) -> int:
            raise Ignore("nothing to see")

        @app.task(name="tell")
        def tell(info: dict[str, Any]) -> None:
            self.told.append(info)

        self.add, self.mul, self.tsum, self.quiet = add, mul, tsum, quiet
        self.flaky, self.ignores, self.tell = flaky, ignores, tell

    def drain(self) -> None:
        worker = Worker(self.app, WorkerOptions(drain=True, wait=0.1))
        worker.start()
        worker.join(90)


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    yield shop
    shop.app.close()


def in_place(shop: Shop, canvas: Canvas[Any]) -> AsyncResult[Any]:
    return canvas.apply()


def by_worker(shop: Shop, canvas: Canvas[Any]) -> AsyncResult[Any]:
    result = canvas.delay()
    shop.drain()
    return result


def levels(shop: Shop, depth: int) -> Canvas[Any]:
    """Chords in groups in chains."""
    canvas: Canvas[Any] = shop.add.s(0)
    for level in range(depth):
        canvas = group(canvas, shop.add.si(0, -1)) | shop.tsum.s() if level % 2 else shop.add.s(2) | group(canvas) | shop.tsum.s()
    return canvas


HOSTS = pytest.mark.parametrize("run", [in_place, by_worker])
Run = Callable[[Shop, Canvas[Any]], AsyncResult[Any]]

CANVASES: dict[str, tuple[Callable[[Shop], Canvas[Any]], Any]] = {
    "chain": (lambda s: chain(s.add.s(2, 2), s.add.s(4), s.mul.s(8)), 64),
    "pipes": (lambda s: s.add.s(2, 2) | s.mul.s(8) | s.mul.s(10), 320),
    "immutable": (lambda s: s.add.si(2, 2) | s.add.si(4, 4) | s.add.si(8, 8), 16),
    "chains in a chain": (lambda s: chain(chain(s.add.s(1, 1), s.add.s(1)), chain(s.add.s(1))), 4),
    "a long chain": (lambda s: chain(s.add.si(0, 0), *(s.add.s(1) for _ in range(1_000))), 1_000),
    "fifty levels": (lambda s: s.add.s(1, 1) | levels(s, 50), 27),
    "group": (lambda s: group(s.add.s(i, i) for i in range(10)), [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]),
    "chord": (lambda s: chord((s.add.s(i, i) for i in range(100)), s.tsum.s()), 9900),
    "chord over several buckets": (lambda s: group(s.add.s(i, 0) for i in range(201)) | s.tsum.s(), 20100),
    "chord of one": (lambda s: group(s.add.s(2, 2)) | s.tsum.s(), 4),
    "members whose results are ignored elsewhere": (lambda s: group(s.quiet.s(1), s.quiet.s(2) | s.quiet.s()) | s.tsum.s(), 3),
    "immutable body": (lambda s: group(s.add.s(1, 1), s.add.s(2, 2)) | s.add.si(5, 5), 10),
    "chord in a chain": (lambda s: s.add.s(4, 4) | group(s.add.s(i) for i in range(3)) | s.tsum.s() | s.mul.s(2), 54),
    "group at the end": (lambda s: s.add.s(4, 16) | group(s.mul.s(2), s.mul.s(3)), [40, 60]),
    "group after group": (lambda s: group(s.add.s(1, 1), s.add.s(2, 2)) | group(s.tsum.s(), s.tsum.s()), [6, 6]),
    "chains in a group": (lambda s: group(s.add.s(1, 1) | s.mul.s(2), s.add.s(2, 2)), [4, 4]),
    "chains in a chord": (lambda s: group(s.add.s(1, 1) | s.mul.s(2) | s.add.s(1), s.add.s(2, 2)) | s.tsum.s(), 9),
    "chords in a chord": (
        lambda s: (
            group(group(s.add.s(1, 1), s.add.s(2, 2)) | s.tsum.s(), s.add.s(3, 3), s.add.s(0, 1) | group(s.add.s(1)) | s.tsum.s())
            | s.tsum.s()
        ),
        14,
    ),
    "group in a group": (lambda s: group(group(s.add.s(1, 1), s.add.s(2, 2)), s.add.s(3, 3)), [[2, 4], 6]),
    "branches that end in groups": (
        lambda s: group(s.add.s(1, 1) | group(s.add.s(1), s.add.s(2)), s.tsum.s([5]) | group(s.add.s(1))),
        [[3, 4], [6]],
    ),
    "empty header": (lambda s: group() | s.tsum.s(), 0),
    "empty branch": (lambda s: group(group(), s.add.s(1, 1) | group()) | s.add.si(7, 0), 7),
    "map": (lambda s: s.tsum.map([list(range(10)), list(range(100))]), [45, 4950]),
    "starmap": (lambda s: s.add.starmap(zip(range(10), range(10), strict=True)), [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]),
    "async starmap": (lambda s: s.mul.starmap([(2, 3), (4, 5)]), [6, 20]),
    "map and sum": (lambda s: s.tsum.map([[1, 2], [3]]) | s.tsum.s(), 6),
    "chunks": (lambda s: s.add.chunks(zip(range(7), range(7), strict=True), 3), [[0, 2, 4], [6, 8, 10], [12]]),
}


@HOSTS
@pytest.mark.parametrize("name", CANVASES)
def test_a_canvas_comes_to_what_its_parts_come_to(shop: Shop, run: Run, name: str) -> None:
    make, expected = CANVASES[name]
    result = run(shop, make(shop))
    assert result.get(timeout=5) == expected
    assert (result.ready(), result.successful(), result.failed(), result.state) == (True, True, False, states.SUCCESS)


def test_partial_arguments_go_in_front_of_the_first_step(shop: Shop) -> None:
    assert (shop.add.s(4) | shop.mul.s(8)).apply((16,)).get() == 160
    assert group(shop.add.s(1), shop.add.s(2)).apply((10,)).get() == [11, 12]


@HOSTS
def test_links_of_a_canvas_get_its_result(shop: Shop, run: Run) -> None:
    canvas = shop.add.s(2, 2)
    canvas.link(shop.add.s(16) | shop.tell.si({"after": "chain"}))
    canvas.link(group(shop.tell.si({"in": "group"}), shop.tell.si({"in": "group"})))
    run(shop, canvas)
    assert sorted(map(str, shop.told)) == ["{'after': 'chain'}", "{'in': 'group'}", "{'in': 'group'}"]


@HOSTS
def test_a_chain_ends_where_a_step_fails_and_its_result_says_which(shop: Shop, run: Run) -> None:
    canvas = shop.add.s(1, 1) | shop.flaky.s() | shop.add.s(1) | group(shop.add.s(1), shop.add.s(2)) | shop.tsum.s()
    result = run(shop, canvas.on_error(shop.tell.s()))
    with pytest.raises(TaskFailed, match="not today"):
        result.get(timeout=5)
    assert [info["task"] for info in shop.told] == ["flaky"]
    assert shop.runs == ["add"]
    assert result.parent is not None
    assert result.parent.failed()


@HOSTS
def test_a_member_that_fails_keeps_the_body_from_running_and_calls_its_errback_once(shop: Shop, run: Run) -> None:
    body = shop.tsum.s().on_error(shop.tell.s())
    canvas = group(shop.add.s(1, 1), shop.flaky.s(1), shop.flaky.s(2)) | body | shop.add.s(1)
    with pytest.raises(TaskFailed, match="not today"):
        run(shop, canvas).get(timeout=5)
    assert [info["task"] for info in shop.told] == ["tsum"]
    assert "tsum" not in shop.runs


def test_which_member_failed_and_why_stands_in_the_results_of_all_that_waited(shop: Shop) -> None:
    inner = group(shop.add.s(1, 1), shop.flaky.s(1)) | shop.tsum.s()
    result = by_worker(shop, group(shop.add.s(1, 1), inner) | shop.tsum.s())
    with pytest.raises(TaskFailed, match=r"member 1 of the group before it: member 1 .*flaky \[.*\] ended without a result.*not today"):
        result.get(timeout=5)
    record = result.record
    assert record is not None
    assert record["upstream"]


@HOSTS
def test_a_task_that_asks_to_be_ignored_ends_its_chain_without_an_error_call(shop: Shop, run: Run) -> None:
    result = run(shop, (shop.ignores.s(1) | shop.add.s(1)).on_error(shop.tell.s()))
    assert result.failed()
    assert not shop.told


def test_a_redriven_step_takes_the_chain_and_the_chord_on_to_their_end(shop: Shop) -> None:
    for canvas, expected in (
        (shop.add.s(1, 1) | shop.flaky.s() | shop.add.s(5), 7),
        (group(shop.add.s(1, 1), shop.flaky.s(5)) | shop.tsum.s() | shop.add.s(1), 8),
    ):
        shop.broken = True
        result = by_worker(shop, canvas)
        assert result.failed()
        shop.broken = False
        _redrive_all(shop)
        shop.drain()
        assert shop.app.result(result.id).get(timeout=5) == expected


def test_revoking_the_result_of_a_workflow_cancels_what_has_not_begun(shop: Shop) -> None:
    for canvas in (shop.add.s(1, 1) | shop.add.s(1), group(shop.add.s(1, 1), shop.add.s(2, 2)), group(shop.add.s(1, 1)) | shop.tsum.s()):
        result = canvas.delay()
        result.revoke()
        shop.drain()
        with pytest.raises(TaskFailed):
            result.get(timeout=5)
    assert not shop.runs


def test_a_group_tells_of_its_members(shop: Shop) -> None:
    result = group(shop.add.s(1, 1), shop.flaky.s(1), shop.add.s(2, 2)).delay()
    assert isinstance(result, GroupResult)
    assert (len(result), result.waiting(), result.completed_count(), result.ready()) == (3, True, 0, False)
    shop.drain()
    assert (result.waiting(), result.completed_count(), result.ready(), result.failed()) == (False, 2, True, True)
    assert [child.state for child in result] == [states.SUCCESS, states.FAILURE, states.SUCCESS]
    assert result[2].get() == 4
    with pytest.raises(TaskFailed, match="not today"):
        result.join(timeout=1)
    result.forget()
    assert result[0].state == states.PENDING


def test_an_empty_group_made_of_data_is_no_error() -> None:
    empty: Group[int] = group([])
    assert empty.delay().get() == []
    assert empty.apply().successful()


def test_all_ids_follow_from_the_id_of_the_whole(shop: Shop) -> None:
    result = (shop.add.s(1, 1) | group(shop.add.s(1), shop.add.s(2) | shop.mul.s(3))).apply_async(task_id="whole")
    assert isinstance(result, GroupResult)
    assert [child.id for child in result] == [derived_id("whole", 0), derived_id("whole", 1)]
    assert result[1].parent is not None
    assert result[1].parent.id == derived_id(derived_id("whole", 1), "step", 0)
    assert result.parent is not None
    assert result.parent.id == derived_id("whole", "step", 0)
    shop.drain()
    assert result.get(timeout=5) == [3, 12]


def test_a_chain_travels_flat_and_names_its_workflow(shop: Shop) -> None:
    chain(shop.add.s(1, 1), *(shop.add.s(1) for _ in range(500))).apply_async(task_id="flat")
    [delivery] = _peek(shop)
    fields = parse(delivery)
    assert fields["flow"] == "flat"
    assert len(fields["next"]) == 500
    assert fields["next"][-1] == {"task": "add", "queue": "default", "args": [1], "id": "flat"}


def test_what_does_not_fit_is_refused_at_the_call_wherever_it_stands(shop: Shop) -> None:
    bad = (
        shop.add.s(1, 1) | shop.add.s("x"),
        group(shop.add.s(1, 1), shop.add.s("x", 1)),
        group(shop.add.s(1, 1)) | shop.tsum.s() | shop.add.s(object()),
        shop.add.starmap([("x", 1)]),
        shop.add.starmap([5]),  # type: ignore[list-item]
    )
    for canvas in bad:
        with pytest.raises(ArgumentsError, match="add"):
            canvas.delay()
    with pytest.raises(ArgumentsError, match="signatures"):
        chain(shop.add.s(1, 1), 5)  # type: ignore[call-overload]
    with pytest.raises(ArgumentsError, match="signatures"):
        group(5)  # type: ignore[call-overload]
    with pytest.raises(ArgumentsError, match="needs a step"):
        chain()
    with pytest.raises(NotBound):
        Chain([group()]).delay()
    assert not _peek(shop)


def test_a_chord_without_a_store_is_refused_at_the_call_and_a_chain_is_not() -> None:
    shop = Shop(store=None)
    waits = (group(shop.add.s(1, 1)) | shop.tsum.s(), shop.add.s(1, 1) | group(shop.add.s(1)) | shop.tsum.s())
    for canvas in waits:
        with pytest.raises(StoreRequired, match="chord"):
            canvas.delay()
    (shop.add.s(1, 1) | group(shop.add.s(1), shop.add.s(2))).delay()
    shop.drain()
    assert shop.runs == ["add"] * 3
    assert waits[0].apply().get() == 2
    shop.app.close()


def test_members_that_the_broker_refuses_are_named() -> None:
    shop = Shop()
    with pytest.raises(BatchSendError):
        group(shop.add.s(1, 1), shop.add.options(queue="nowhere").s(2, 2)).delay()
    shop.app.close()


def test_a_broker_that_lies_changes_no_result() -> None:
    for seed in range(4):
        shop = Shop(broker=LyingBroker(MemoryBroker(lease=1.0), seed, Lies(duplicate=0.2, reorder=0.3, expire=0.1)), crash_cap=100)
        results = [(group(shop.add.s(i, i) for i in range(12)) | shop.tsum.s() | shop.add.s(1)).delay() for _ in range(10)]
        worker = Worker(shop.app, WorkerOptions(wait=0.1))
        worker.start()
        assert [result.get(timeout=60) for result in results] == [133] * 10
        worker.stop()
        worker.join(60)
        shop.app.close()


def test_what_a_revoked_workflow_says(shop: Shop) -> None:
    result = (shop.add.s(1, 1) | shop.add.s(2)).delay()
    result.revoke()
    shop.drain()
    assert result.parent is not None
    with pytest.raises(TaskRevoked):
        result.parent.get(timeout=5)


def _peek(shop: Shop) -> list[str]:
    """The bodies in the queue, which stay there."""
    found = drive(shop.app.broker.receive("default", max_messages=10, wait=0))
    if found:
        drive(shop.app.broker.extend(found, 0))
    return [delivery.body for delivery in found]


def _redrive_all(shop: Shop) -> None:
    shop.app.io.run(redrive(shop.app, "default-dlq", ALL))


def test_headers_go_on_with_what_follows_but_where_it_has_its_own() -> None:
    app, seen = CloudQ("shop", broker="memory://", store="memory://"), dict[str, object]()

    @app.task(bind=True, name="note")
    def note(self: Task[..., Any], name: str) -> None:
        seen[name] = dict(self.request.headers)

    first = note.si("a").set(headers={"trace": "t1"}).link(note.si("e"))
    canvas = first | group(note.si("b"), note.si("c").set(headers={"own": 1}))
    canvas.delay()
    Worker(app, WorkerOptions(drain=True)).run()
    assert seen == {"a": {"trace": "t1"}, "b": {"trace": "t1"}, "c": {"own": 1}, "e": {"trace": "t1"}}
    app.close()
