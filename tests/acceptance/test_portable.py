"""The same task module comes to the same outcomes on memory, SQS with a worker and Lambda, and Pub/Sub pulled, pushed and by event."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from cloudq import AsyncResult, CloudQ, chord, group, states
from cloudq.broker import Outgoing
from cloudq.signature import Canvas
from tests.acceptance import hosts
from tests.acceptance.hosts import Place
from tests.acceptance.portable_tasks import Order
from tests.gcp_servers import PubSubServer, lead
from tests.servers import moto, use

ORDER = Order(id=UUID(int=7), total=Decimal("12.50"), placed=datetime(2026, 11, 21, tzinfo=UTC), seal=b"\x00\xff")
HOSTS = ("memory", "sqs-worker", "sqs-processes", "sqs-lambda", "pubsub-worker", "pubsub-push", "pubsub-function")

MORE = 2 + 2
"""Dead letters beside those of the cases: a call with an error link, what is no message, and the broken step of each broken canvas."""

Call = Callable[[CloudQ], "AsyncResult[Any]"]


@dataclass(frozen=True)
class Case:
    """A call, and what it comes to everywhere."""

    call: Call
    state: str = states.SUCCESS
    value: Any = None
    runs: int | None = 1
    """How often it ran; ``None`` for a canvas, whose steps are calls of their own."""
    says: str = ""
    """In the error's text, or in the reason."""
    letter: bool = False
    """Whether it lies in the dead-letter queue at the end."""


CASES: dict[str, Case] = {
    "sync": Case(lambda app: app["add"].delay(2, 3), value=5),
    "async": Case(lambda app: app["aadd"].delay(2, 3), value=5),
    "typed values": Case(lambda app: app["echo"].delay(ORDER), value=ORDER),
    "retries": Case(lambda app: app["flaky"].delay(), value=2, runs=3),
    "out of retries": Case(lambda app: app["hopeless"].delay(), states.FAILURE, runs=2, says="it never works", letter=True),
    "a final error": Case(lambda app: app["picky"].delay(), states.FAILURE, runs=1, says="final", letter=True),
    "rejected": Case(lambda app: app["refuses"].delay(), states.DEAD, says="not for me", letter=True),
    "ignored": Case(lambda app: app["ignores"].delay()),
    "a sync task over its time": Case(lambda app: app["sleeps"].delay(), states.FAILURE, says="time limit", letter=True),
    "an async task over its time": Case(lambda app: app["asleeps"].delay(), states.FAILURE, says="time limit", letter=True),
    "a large result": Case(lambda app: app["big"].delay(150_000), value="x" * 150_000),
    "delayed": Case(lambda app: app["add"].apply_async((1, 1), countdown=2), value=2),
    "expired": Case(lambda app: app["add"].apply_async((1, 1), countdown=2, expires=0.5), states.EXPIRED, runs=0),
    "unknown": Case(lambda app: app.send_task("nosuch", (1,)), states.DEAD, runs=0, says="no task named", letter=True),
    "a schedule's tick, sent twice": Case(lambda app: _tick(app, "sum"), value=23),
    "a tick that begins a chain": Case(lambda app: _tick(app, "sums"), value=24, runs=None),
    "arguments that do not fit": Case(lambda app: _raw(app, "add", ["x", {}]), states.DEAD, runs=0, says="x", letter=True),
}

# From Celery's user guide, "Canvas: Designing Work-flows", and what it leads people to try.
CANVASES: dict[str, tuple[Callable[[CloudQ], Canvas[Any]], Any]] = {
    "chain": (lambda app: app["add"].s(2, 2) | app["add"].s(4) | app["aadd"].s(8), 16),
    "immutable steps": (lambda app: app["add"].si(2, 2) | app["add"].si(4, 4) | app["add"].si(8, 8), 16),
    "group": (lambda app: group(app["add"].s(i, i) for i in range(10)), [i + i for i in range(10)]),
    "chord": (lambda app: chord((app["add"].s(i, i) for i in range(100)), app["total"].s()), 9900),
    "chain into a group": (lambda app: app["add"].s(4, 4) | group(app["add"].s(i) for i in range(5)), [8, 9, 10, 11, 12]),
    "group into a chain": (lambda app: group(app["aadd"].s(i, i) for i in range(12)) | app["total"].s() | app["add"].s(1), 133),
    "nested chords": (
        lambda app: group(group(app["add"].s(1, 1), app["aadd"].s(2, 2)) | app["total"].s(), app["add"].s(3, 3)) | app["total"].s(),
        12,
    ),
    "group of chains": (lambda app: group(app["add"].s(1, 1) | app["add"].s(i) for i in range(3)), [2, 3, 4]),
    "map": (lambda app: app["total"].map([list(range(10)), list(range(100))]), [45, 4950]),
    "starmap": (lambda app: app["add"].starmap([(1, 2), (3, 4)]), [3, 7]),
    "chunks": (lambda app: app["add"].chunks(zip(range(10), range(10), strict=True), 4), [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]),
    "chord without members": (lambda app: group() | app["total"].s(), 0),
}
CASES |= {
    f"canvas: {name}": Case(lambda app, make=make: make(app).delay(), value=value, runs=None) for name, (make, value) in CANVASES.items()
}
BROKEN: dict[str, Callable[[CloudQ], Canvas[Any]]] = {
    "chain": lambda app: app["hopeless"].s() | app["add"].s(1) | app["add"].s(2),
    "chord": lambda app: group(app["add"].s(1, 1), app["hopeless"].s()) | app["total"].s() | app["add"].s(1),
}
CASES |= {
    f"broken {name}": Case(lambda app, make=make: make(app).delay(), states.FAILURE, runs=None, says="hopeless", letter=False)
    for name, make in BROKEN.items()
}


def _raw(app: CloudQ, task: str, args: list[Any]) -> AsyncResult[Any]:
    """What a program without the task's code may send."""
    id = f"raw-{time.time_ns()}"
    _send(app, json.dumps({"v": 1, "id": id, "task": task, "args": args}))
    return app.result(id)


def _tick(app: CloudQ, name: str) -> AsyncResult[Any]:
    """What a scheduler in the cloud sends, at least once."""
    slot = int(time.time())
    for written in (slot, datetime.fromtimestamp(slot, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")):
        _send(app, json.dumps({"v": 1, "tick": name, "slot": written}))
    return app.result(f"{name}@{slot}")


def _send(app: CloudQ, body: str) -> None:
    (error,) = app.use_broker(lambda broker: broker.send(app.conf.default_queue, [Outgoing(body=body)]))
    assert error is None


@dataclass
class Outcome:
    """All that was called on one host, once all of it has ended."""

    place: Place
    results: dict[str, AsyncResult[Any]]
    called: float
    letters: list[dict[str, Any]] = field(default_factory=lambda: [])
    duplicated: str = "twice"


@pytest.fixture(scope="module", params=HOSTS)
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        if request.param == "memory":
            place = stack.enter_context(hosts.memory(folder))
        elif request.param == "pubsub-worker":
            broker, store = request.getfixturevalue("pubsub_emulator"), request.getfixturevalue("firestore_emulator")
            lead(broker.env | store.env, patch)
            place = stack.enter_context(hosts.pubsub_worker(broker, store, folder))
        elif request.param.startswith("pubsub-"):
            emulator: PubSubServer = request.getfixturevalue("pubsub_emulator")
            lead(emulator.env, patch)
            place = stack.enter_context(getattr(hosts, request.param.replace("-", "_"))(emulator, folder))
        else:
            server = stack.enter_context(moto(folder))
            stack.callback(server.boto3.close)
            use(server.env, patch)
            host = hosts.sqs_lambda if request.param == "sqs-lambda" else hosts.sqs_worker
            options = ("--processes", "4") if request.param == "sqs-processes" else ("--concurrency", "8")
            place = stack.enter_context(host(server, folder) if host is hosts.sqs_lambda else host(server, folder, *options))
        app, called = place.app, time.time()
        results = {name: case.call(app) for name, case in CASES.items()}
        results["link"] = app["add"].apply_async((1, 2), link=app["add"].s(10))
        results["link error"] = app["hopeless"].apply_async(link_error=app["tells"].s().set(task_id="told"))
        results["told"], results["child"] = app.result("told"), app.result("child")
        results["postponed"] = app["postpones"].delay()
        results["parent"] = app["parent"].delay("child")
        app.result("revoked").revoke()  # before it is called: it may run as soon as it is
        results["revoked"] = app["add"].apply_async((1, 1), task_id="revoked", countdown=1)
        for _ in range(2):
            results["twice"] = app["add"].apply_async((4, 4), task_id="twice")
        many = app.send_many(app["aadd"].s(n, 0) for n in range(60))
        results |= {f"many-{n}": each for n, each in enumerate(many)}
        _send(app, "{no json")
        deadline = time.monotonic() + 240
        for name, result in results.items():
            while not result.ready():
                assert time.monotonic() < deadline, f"{name}: {result.record}\n{place.wrote()}"
                time.sleep(0.05)
        found = Outcome(place, results, called)
        expected = sum(case.letter for case in CASES.values()) + MORE
        while len(found.letters) < expected and time.monotonic() < deadline:
            found.letters = hosts.dead_letters(place)
        yield found


@pytest.mark.parametrize("name", CASES)
def test_each_call_comes_to_the_same_on_every_host(outcome: Outcome, name: str) -> None:
    case, result = CASES[name], outcome.results[name]
    record = result.record or {"state": states.SUCCESS if result.successful() else states.FAILURE}
    assert record["state"] == case.state, record
    if case.state == states.SUCCESS:
        assert result.get(timeout=0) == case.value
    said = f"{record.get('reason')} {record.get('error', {}).get('detail')} {record.get('error', {}).get('type')}"
    assert case.says in said
    if case.runs is not None:
        assert outcome.place.ledger.counts("run")[result.id] == case.runs
    assert (result.id in {letter.get("id") for letter in outcome.letters}) == case.letter


def test_delays_are_kept(outcome: Outcome) -> None:
    for name, seconds in (("delayed", 2.0), ("postponed", 1.0)):
        (*_, last) = [entry for entry in outcome.place.ledger.entries("run") if entry.id == outcome.results[name].id]
        assert last.at >= outcome.called + seconds - 0.05, name


def test_what_follows_a_call_is_called(outcome: Outcome) -> None:
    results = outcome.results
    assert results["link"].get(timeout=0) == 3
    assert results["told"].get(timeout=0).startswith("out of retries")
    assert results["child"].get(timeout=0) == 42
    assert [results[f"many-{n}"].get(timeout=0) for n in range(60)] == list(range(60))


def test_what_was_revoked_has_not_run_and_what_was_sent_twice_ran_once(outcome: Outcome) -> None:
    counts = outcome.place.ledger.counts("run")
    assert outcome.results["revoked"].state == states.REVOKED
    assert counts[outcome.results["revoked"].id] == 0
    assert counts["twice"] == 1


def test_what_is_no_message_is_a_dead_letter_with_its_bytes(outcome: Outcome) -> None:
    (letter,) = [letter for letter in outcome.letters if "task" not in letter]
    assert letter["dead"]["raw"] == "e25vIGpzb24="
    assert len(outcome.letters) == sum(case.letter for case in CASES.values()) + MORE
