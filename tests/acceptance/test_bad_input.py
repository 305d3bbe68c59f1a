"""Bad input is refused at the call with the documented error, and in the worker it costs itself alone and is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest

from cloudq import ArgumentsError, CloudQ, SendUnknown
from cloudq.broker import Outgoing
from cloudq.errors import BrokerUnavailable, DelayError, MessageTooLarge, QueueNotFound, SendError
from cloudq.message import parse, unwrap
from cloudq.worker import Worker, WorkerOptions
from tests.servers import SQS_SERVERS, SQSServer, free_port, unique, use


@dataclass
class Place:
    """An app with a queue of its own, on either broker."""

    app: CloudQ
    queue: str

    def put(self, queue: str, *bodies: str) -> None:
        for body in bodies:
            assert list(self.app.io.run(self.app.broker.send(queue, [Outgoing(body=body)]))) == [None]

    def take(self, queue: str, count: int, within: float = 60.0) -> list[str]:
        """``count`` bodies out of ``queue``; fewer where no more come in time."""
        found: list[str] = []
        deadline = time.monotonic() + within
        while len(found) < count and time.monotonic() < deadline:
            batch = self.app.io.run(self.app.broker.receive(queue, max_messages=10, wait=0.2))
            if batch:
                self.app.io.run(self.app.broker.ack(batch))
            found += [delivery.body for delivery in batch]
        return found

    def empty(self) -> bool:
        stats = self.app.io.run(self.app.broker.stats(self.queue))
        return not (stats.ready or stats.in_flight or stats.delayed)

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        worker = Worker(self.app, WorkerOptions(concurrency=10, wait=1.0, queues={self.queue: 1}))
        worker.start()
        try:
            yield worker
        finally:
            worker.stop()
            worker.join(60)


@pytest.fixture(scope="module", params=["memory", *sorted(SQS_SERVERS)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SQSServer | None]:
    """Each SQS server; ``None`` stands for the memory broker."""
    if request.param == "memory":
        yield None
        return
    with SQS_SERVERS[request.param](tmp_path_factory.mktemp("server")) as server:
        yield server
        server.boto3.close()


@pytest.fixture
def place(server: SQSServer | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    queue, url = unique(), "memory://"
    if server is not None:
        use(server.env, monkeypatch)
        server.make_queue(queue, dead_letter=f"{queue}-dlq")
        url = "sqs://eu-west-1/?lease=60&wait=1"
    app = CloudQ("bad", broker=url, default_queue=queue, unknown_task_grace=1.5)
    yield Place(app, queue)
    app.close()


class Opaque:
    """Something that cannot travel."""


def with_tasks(app: CloudQ) -> CloudQ:
    @app.task(name="add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    @app.task(name="keep")
    def keep(value: Any) -> None: ...

    return app


# ---------------------------------------------------------------------- at the call


@pytest.mark.parametrize(
    ("call", "error", "parameter", "said"),
    [
        (lambda app: app["add"].delay("one"), ArgumentsError, "x", "'add'.*'x'"),
        (lambda app: app["add"].delay(1, y=[]), ArgumentsError, "y", "'add'.*'y'"),
        (lambda app: app["add"].delay(), ArgumentsError, None, "'add'.*'x'"),
        (lambda app: app["add"].delay(1, 2, 3), ArgumentsError, None, "'add'.*3 were given"),
        (lambda app: app["add"].delay(1, z=2), ArgumentsError, None, "'add'.*'z'"),
        (lambda app: app["keep"].delay(Opaque()), ArgumentsError, "value", "'keep'.*'value'.*Opaque"),
        (lambda app: app["keep"].delay(float("nan")), ArgumentsError, "value", "'keep'.*'value'"),
        (lambda app: app["keep"].delay({1: 2}), ArgumentsError, "value", "'keep'.*'value'"),
        (lambda app: app["keep"].delay("\ud800"), ArgumentsError, "value", "'keep'.*'value'"),
        (lambda app: app["keep"].delay(10**5000), ArgumentsError, "value", "'keep'.*'value'"),
        (lambda app: app.send_task("elsewhere", [Opaque()]), ArgumentsError, None, "'elsewhere'"),
        (lambda app: app["add"].apply_async((1,), priority=3), ArgumentsError, None, "'add'.*priority"),
        (lambda app: app["add"].apply_async((1,), task_id="a b"), ArgumentsError, None, "'add'.*task_id"),
        (lambda app: app["add"].apply_async((1,), expires="soon"), ArgumentsError, None, "'add'.*expires"),
        (lambda app: app["add"].apply_async((1,), headers={"at": Opaque()}), ArgumentsError, None, "'add'"),
        (lambda app: app["keep"].delay("x" * (2 << 20)), MessageTooLarge, None, "'keep'.*2,097,"),
        (lambda app: app["add"].apply_async((1,), countdown=-1), DelayError, None, "'add'.*countdown"),
        (lambda app: app["add"].apply_async((1,), countdown="soon"), DelayError, None, "'add'.*countdown"),
        (lambda app: app["add"].apply_async((1,), countdown=1, delay=2), DelayError, None, "'add'.*one of"),
        (lambda app: app["add"].apply_async((1,), eta=datetime(2030, 1, 1)), DelayError, None, "'add'.*time zone"),  # noqa: DTZ001
        (lambda app: app["add"].apply_async((1,), delay=timedelta(days=400)), DelayError, None, "'add'.*delay"),
        (lambda app: app["add"].apply_async((1,), queue="nowhere"), QueueNotFound, None, "nowhere"),
    ],
)
def test_a_bad_call_raises_the_documented_error_at_once_and_sends_nothing(
    place: Place, call: Callable[[CloudQ], object], error: type[Exception], parameter: str | None, said: str
) -> None:
    app = with_tasks(place.app)
    began = time.monotonic()
    with pytest.raises(error, match=f"(?s){said}") as caught:
        call(app)
    assert time.monotonic() - began < 20  # a call may wait for 30 s
    if isinstance(caught.value, ArgumentsError):
        assert caught.value.task in ("add", "keep", "elsewhere")
        assert caught.value.parameter == parameter
    assert "xxxx" not in str(caught.value), "a payload stays out of messages"
    assert place.empty()


def test_sqs_without_a_timer_refuses_three_days_and_any_delay_in_order(sqs: SQSServer) -> None:
    queue, ordered = unique(), unique() + ".fifo"
    sqs.make_queue(queue)
    sqs.make_queue(ordered)
    app = with_tasks(CloudQ("bad", broker="sqs://eu-west-1/", default_queue=queue))
    with pytest.raises(DelayError, match=r"'add'.*259200 s.*900 s.*timer"):
        app["add"].options(delay="3d").delay(1)
    with pytest.raises(DelayError, match=r"'add'.*ordered.*timer"):
        app["add"].options(delay=5, queue=ordered, ordering_key="k").delay(1)
    with pytest.raises(SendError, match="group"):
        app["add"].options(delay=5, queue=ordered).delay(1)
    with pytest.raises(SendError, match="fifo"):
        app["add"].options(ordering_key="k").delay(1)
    assert sqs.depth(queue) == sqs.depth(ordered) == 0
    app.close()


def test_a_broker_that_is_down_is_said_within_the_send_timeout(sqs: SQSServer, monkeypatch: pytest.MonkeyPatch) -> None:
    use({**sqs.env, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}, monkeypatch)
    app = with_tasks(CloudQ("bad", broker="sqs://eu-west-1/", send_timeout=3))
    began = time.monotonic()
    with pytest.raises((BrokerUnavailable, SendUnknown)):
        app["add"].delay(1)
    assert time.monotonic() - began < 20  # by default it may take 30 s
    app.close()


# ---------------------------------------------------------------------- in the worker

_NEST = 5_000
UNREADABLE = {
    "text": "hello",
    "no object": "[1, 2]",
    "cut off": '{"v":1,"id":"a","task":"ad',
    "not a number": '{"v":1,"id":"a","task":"add","args":[NaN]}',
    "deep": '{"v":1,"id":"a","task":"add","args":' + "[" * _NEST + "]" * _NEST + "}",
    "huge": '{"v":1,"id":"a","task":"add","args":[' + "9" * 5_000 + "]}",
}
"""Bodies that are no JSON object: dead letters wrap their bytes."""

WRONG = {
    "no message": ('{"hello":1}', '"v"'),
    "no id": ('{"v":1,"task":"add","args":[1]}', '"id"'),
    "id": ('{"v":1,"id":7,"task":"add","args":[1]}', '"id"'),
    "task": ('{"v":1,"id":"a","task":null,"args":[1]}', '"task"'),
    "args": ('{"v":1,"id":"a","task":"add","args":{"x":1}}', '"args"'),
    "kwargs": ('{"v":1,"id":"a","task":"add","args":[],"kwargs":[1]}', '"kwargs"'),
    "attempt": ('{"v":1,"id":"a","task":"add","args":[1],"attempt":-1,"first":0,"eta":0}', '"attempt"'),
    "attempts": ('{"v":1,"id":"a","task":"add","args":[1],"sent":1,"attempt":' + "9" * 99 + "}", '"attempt"'),
    "sent": ('{"v":1,"id":"a","task":"add","args":[1],"sent":"now"}', '"sent"'),
    "timeout": ('{"v":1,"id":"a","task":"add","args":[1],"sent":1,"timeout":-1}', '"timeout"'),
    "link": ('{"v":1,"id":"a","task":"add","args":[1],"sent":1,"link":[{"task":"add"}]}', '"link"'),
    "version": ('{"v":"1","id":"a","task":"add","args":[1]}', '"v"'),
    "v99": ('{"v":99,"id":"a","task":"add","args":[1],"more":{"x":1}}', "version 99"),
    "v99 of another shape": ('{"v":99,"call":["add",1],"tenant":5,"group":[]}', "version 99"),
    "unknown task": ('{"v":1,"id":"a","task":"gone","args":[1]}', "'gone'"),
    "infinite": ('{"v":1,"id":"a","task":"gone","args":[1e999]}', "again"),
    "does not fit": ('{"v":1,"id":"a","task":"add","args":["one"]}', "'x'"),
    "too many": ('{"v":1,"id":"a","task":"add","args":[1,2,3]}', "'add'"),
    "unknown keyword": ('{"v":1,"id":"a","task":"add","args":[1],"kwargs":{"old":1}}', "'old'"),
    "broken wrapper": ('{"v":1,"dead":{"raw":"no base64!"}}', '"id"'),
}
"""JSON objects that cannot run, with a part of the reason."""


def test_each_bad_message_ends_in_the_dead_letter_queue_with_its_reason_and_the_good_ones_run(place: Place) -> None:
    app, ran = with_tasks(place.app), []

    @app.task(name="good")
    def good(x: int) -> None:
        ran.append(x)

    bodies = [*UNREADABLE.values(), *(body for body, _ in WRONG.values())]
    for index, body in enumerate(bodies):  # each between two good ones
        good.delay(index)
        place.put(place.queue, body)
    good.delay(len(bodies))
    with place.worker():
        letters = place.take(f"{place.queue}-dlq", len(bodies))
        deadline = time.monotonic() + 60
        while not place.empty() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert sorted(ran) == list(range(len(bodies) + 1))
    assert place.empty()
    assert len(letters) == len(bodies)
    found = [parse(letter) for letter in letters]
    assert all(fields["dead"]["reason"] and fields["dead"]["queue"] == place.queue for fields in found)
    raw = {unwrap(fields): fields["dead"]["reason"] for fields in found}
    for name, body in UNREADABLE.items():
        assert "JSON" in raw[body], name
    for name, (body, reason) in WRONG.items():
        wrapped = "1e999" in body or "raw" in body
        original = {} if wrapped else parse(body)
        reasons = [
            fields["dead"]["reason"]
            for fields in found
            if (
                unwrap(fields) == body
                if wrapped
                else "raw" not in fields["dead"] and all(fields.get(key) == value for key, value in original.items())
            )
        ]
        assert any(reason in each for each in reasons), (name, reasons)


def test_a_dead_letter_sent_back_as_it_is_runs_once_the_deploy_is_fixed(place: Place) -> None:
    app, ran = place.app, []
    place.put(place.queue, '{"v":1,"id":"a","task":"gone","args":[7]}', '{"v":1,"id":"b","task":"grown","args":["x","y"]}')

    @app.task(name="grown")
    def old(x: str) -> None: ...

    with place.worker():
        letters = place.take(f"{place.queue}-dlq", 2)
    assert len(letters) == 2
    del app.tasks["grown"]

    @app.task(name="grown")
    def grown(x: str, y: str) -> None:
        ran.append((x, y))

    @app.task(name="gone")
    def gone(x: int) -> None:
        ran.append(x)

    place.put(place.queue, *letters)
    with place.worker():
        deadline = time.monotonic() + 60
        while not (len(ran) == 2 and place.empty()) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert sorted(ran, key=str) == [("x", "y"), 7]
    assert place.empty()


def test_bytes_that_are_no_message_survive_any_number_of_redrives(place: Place) -> None:
    place.put(place.queue, "no message")
    for _ in range(3):
        with place.worker():
            (letter,) = place.take(f"{place.queue}-dlq", 1)
        assert unwrap(parse(letter)) == "no message"
        place.put(place.queue, letter)


def test_a_wrapper_whose_bytes_can_be_read_by_now_is_run(place: Place) -> None:
    import base64

    app, ran = place.app, []

    @app.task(name="good")
    def good(x: int) -> None:
        ran.append(x)

    raw = base64.b64encode(b'{"v":1,"id":"a","task":"good","args":[5]}').decode()
    place.put(place.queue, f'{{"v":1,"dead":{{"reason":"x","raw":"{raw}"}}}}')
    with place.worker():
        deadline = time.monotonic() + 60
        while not place.empty() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert ran == [5]
