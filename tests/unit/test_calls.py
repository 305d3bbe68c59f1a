"""A call becomes a message: options are checked before anything is sent, and links travel as plain values."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloudq import CloudQ
from cloudq.broker import Delivery
from cloudq.clock import ManualClock
from cloudq.errors import ArgumentsError, DelayError, MessageTooLarge, NotBound
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.runner import Runner
from cloudq.signature import Signature
from cloudq.worker import Worker, WorkerOptions


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def app(clock: ManualClock) -> Iterator[CloudQ]:
    app = CloudQ("calls", broker=MemoryBroker(clock=clock), clock=clock)

    @app.task(name="add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    yield app
    app.close()


def _take(app: CloudQ, queue: str = "default") -> list[dict[str, Any]]:
    found: list[Delivery] = list(asyncio.run(app.broker.receive(queue, max_messages=10, wait=0)))
    return [json.loads(each.body) for each in found]


def _drain(app: CloudQ) -> None:
    worker = Worker(app, WorkerOptions(drain=True, concurrency=3))
    worker.start()
    worker.join(60)


def test_a_bare_call_is_small_and_holds_only_what_it_needs(app: CloudQ) -> None:
    app["add"].delay(2, 3)
    (delivery,) = asyncio.run(app.broker.receive("default", max_messages=1, wait=0))
    assert len(delivery.body) < 120
    assert json.loads(delivery.body).keys() == {"v", "id", "task", "args", "sent"}


@pytest.mark.parametrize("spelling", ["delay", "countdown"])
def test_delays_are_kept_by_the_broker_however_they_are_spelt(app: CloudQ, clock: ManualClock, spelling: str) -> None:
    app["add"].apply_async((1,), **{spelling: "1m"})
    assert _take(app) == []
    clock.advance(60)
    assert len(_take(app)) == 1


def test_an_eta_is_an_aware_instant_and_one_that_is_past_is_now(app: CloudQ, clock: ManualClock) -> None:
    now = datetime.fromtimestamp(clock.time(), UTC)
    add = app["add"]
    add.options(eta=now - timedelta(days=1)).delay(1)
    assert len(_take(app)) == 1
    add.options(eta=now + timedelta(seconds=20)).delay(1)
    assert _take(app) == []
    clock.advance(20)
    assert len(_take(app)) == 1
    with pytest.raises(DelayError, match="time zone"):
        add.options(eta=datetime(2030, 1, 1)).delay(1)  # noqa: DTZ001


def test_a_delay_beyond_the_brokers_carries_its_eta(app: CloudQ, clock: ManualClock) -> None:
    app["add"].options(delay="3d").delay(1)
    clock.advance(3 * 86_400 - 1)
    assert _take(app) == []
    clock.advance(1)
    (body,) = _take(app)
    assert body["eta"] == pytest.approx(clock.time())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"delay": 1, "countdown": 1}, DelayError),
        ({"delay": -1}, DelayError),
        ({"delay": "soon"}, DelayError),
        ({"delay": "5000d"}, DelayError),
        ({"task_id": ""}, ArgumentsError),
        ({"task_id": "a b"}, ArgumentsError),
        ({"task_id": "x" * 129}, ArgumentsError),
        ({"task_id": "é"}, ArgumentsError),
        ({"expires": "soon"}, ArgumentsError),
        ({"timeout": -1}, ArgumentsError),
        ({"priority": 5}, ArgumentsError),
        ({"nonsense": 5}, ArgumentsError),
        ({"headers": {"x": object()}}, ArgumentsError),
        ({"ordering_key": "g", "delay": "500d"}, DelayError),
        ({"ordering_key": 5}, ArgumentsError),
        ({"tenant": 5}, ArgumentsError),
        ({"ignore_result": 1}, ArgumentsError),
    ],
)
def test_an_option_that_cannot_be_kept_is_refused_and_nothing_is_sent(app: CloudQ, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="'add'"):
        app["add"].options(**options).delay(1)
    assert asyncio.run(app.broker.stats("default")).ready == 0


def test_a_message_over_the_limit_is_refused_bare_or_not(app: CloudQ) -> None:
    @app.task(name="echo")
    def echo(text: str) -> None: ...

    for call in (echo, echo.options(headers={"a": 1})):
        with pytest.raises(MessageTooLarge):
            call.delay("x" * (1 << 20))


def test_everything_a_call_can_set_travels(app: CloudQ, clock: ManualClock) -> None:
    app["add"].options(expires="1m", time_limit=5, headers={"a": 1}, tenant="t", ignore_result=True, task_id="mine").delay(1, y=2)
    (body,) = _take(app)
    assert body["expires"] == pytest.approx(clock.time() + 60)
    assert (body["timeout"], body["headers"], body["tenant"], body["ignore_result"]) == (5.0, {"a": 1}, "t", True)
    assert (body["id"], body["args"], body["kwargs"]) == ("mine", [1], {"y": 2})


def test_options_that_are_none_are_not_set(app: CloudQ) -> None:
    app["add"].apply_async((1,), {"y": 2}, **dict.fromkeys(("ordering_key", "tenant", "ignore_result", "task_id", "eta", "headers")))
    (body,) = _take(app)
    assert body.keys() == {"v", "id", "task", "args", "kwargs", "sent"}


def test_a_tasks_own_expiry_is_in_every_call(clock: ManualClock, app: CloudQ) -> None:
    app.task(name="soon", expires="10s")(lambda: None).delay()
    (body,) = _take(app)
    assert body["expires"] == pytest.approx(clock.time() + 10)


# ---------------------------------------------------------------------------------------------- links


def test_links_travel_with_their_queue_and_options_and_what_cannot_is_refused(app: CloudQ) -> None:
    add = app["add"]
    add.options(link=[add.s(10).set(queue="default", delay=5, expires=60), add.si(1, 2)], link_error=add.si(3)).delay(1)
    (body,) = _take(app)
    first, second = body["link"]
    assert first == {"task": "add", "queue": "default", "args": [10], "delay": 5.0, "expires": 60.0}
    assert second["immutable"] is True
    assert len(body["link_error"]) == 1
    for refused in ({"eta": datetime.now(UTC)}, {"after_commit": True}, {"expires": datetime.now(UTC)}):
        with pytest.raises(ArgumentsError, match=next(iter(refused))):
            add.options(link=add.s(1).set(**refused)).delay(1)  # type: ignore[typeddict-item]
    with pytest.raises(DelayError, match="the link to 'add'"):
        add.options(link=add.s(1).set(delay="5000d")).delay(1)
    with pytest.raises(ArgumentsError):
        add.options(link=add.s(1, 2)).delay(1)  # with the result in front there is no room for two


def test_links_are_called_with_the_result_in_front_and_keep_their_lineage() -> None:
    app = CloudQ("links", broker=MemoryBroker(), store=MemoryStore())
    seen: list[Any] = []

    @app.task(name="collect", bind=True)
    def collect(self: Any, *values: Any) -> None:
        seen.append((*values, self.request.root_id, self.request.parent_id))

    @app.task(name="start")
    def start() -> str:
        return "made"

    result = start.options(link=[collect.s("own"), collect.si("alone")]).delay()
    _drain(app)
    assert sorted(seen) == [("alone", result.id, result.id), ("made", "own", result.id, result.id)]
    app.close()


def test_a_link_of_a_link_is_called_too_and_a_call_inside_a_task_belongs_to_it() -> None:
    app = CloudQ("lineage", broker=MemoryBroker())
    seen: dict[str, tuple[str, str | None]] = {}

    @app.task(name="leaf", bind=True)
    def leaf(self: Any, name: str) -> str:
        seen[name] = (self.request.root_id, self.request.parent_id)
        return name + "'"

    @app.task(name="root", bind=True)
    def root(self: Any) -> str:
        seen["inner id"] = (leaf.delay("inner").id, None)
        return "linked"

    result = root.options(link=leaf.s().set(link=leaf.s())).delay()
    _drain(app)
    assert seen["inner"] == (result.id, result.id)
    assert seen["linked"] == (result.id, result.id)
    assert seen["linked'"][0] == result.id
    assert seen["linked'"][1] not in (result.id, None)
    app.close()


def test_error_links_are_told_what_went_wrong_as_plain_values() -> None:
    app = CloudQ("errors", broker=MemoryBroker())
    seen: list[Any] = []

    @app.task(name="mourn")
    def mourn(what: dict[str, Any]) -> None:
        seen.append(what)

    @app.task(name="bad")
    def bad() -> None:
        raise ValueError("broken")

    result = bad.options(link=mourn.s(), link_error=mourn.s()).delay()
    _drain(app)
    assert [(each["id"], each["task"], each["error"]["type"], each["error"]["detail"]) for each in seen] == [
        (result.id, "bad", "ValueError", "broken")
    ]
    app.close()


def test_an_unregistered_signature_is_linked_as_it_is_and_one_without_an_app_sends_nothing(app: CloudQ) -> None:
    app["add"].options(link=Signature("far.away", (1,))).delay(1)
    (body,) = _take(app)
    assert body["link"] == [{"task": "far.away", "queue": "default", "args": [1]}]
    with pytest.raises(NotBound):
        Signature("far.away").delay()


def test_calls_within_a_run_name_their_root_and_parent(app: CloudQ) -> None:
    @app.task(name="outer")
    def outer() -> None:
        app["add"].delay(1)

    runner = Runner(app)
    job = runner.admit(Delivery(queue="default", body='{"v":1,"id":"me","task":"outer","args":[],"root":"r"}', receipt=None))
    runner.run_isolated(job)
    (body,) = _take(app)
    assert (body["root"], body["parent"]) == ("r", "me")
