"""docs/protocol.md and its JSON Schema say what cloudq writes and reads."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from cloudq import CloudQ, Reject, Retry, Task, group
from cloudq.broker import Delivery, Outgoing
from cloudq.clock import ManualClock
from cloudq.errors import DecodeError
from cloudq.io import drive
from cloudq.message import decode, derived_id, parse, unwrap
from cloudq.runner import Runner
from cloudq.settle import settle

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA: dict[str, Any] = json.loads((DOCS / "protocol.schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)
PAGE = (DOCS / "protocol.md").read_text()


class Wire:
    """An app on the memory broker whose every message is seen."""

    def __init__(self, store: str | None = None) -> None:
        self.clock = ManualClock()
        self.app = app = CloudQ("wire", broker="memory://", store=store, clock=self.clock, queues=["other"], unknown_task_grace=10)

        @app.task(name="total")
        def total(numbers: list[Any]) -> int:
            return sum(total(each) if isinstance(each, list) else each for each in numbers)

        @app.task(name="add")
        def add(x: int, y: int = 0) -> int:
            return x + y

        @app.task(name="fail", retry=Retry(max_retries=1, delay=1))
        def fail() -> None:
            raise ValueError("näh \ud800")

        @app.task(name="reject", bind=True)
        def reject(task: Task[..., Any]) -> None:
            add.delay(task.request.attempt, 1)  # a call from inside a task
            raise Reject("no")

        self.seen: list[str] = []

    def work(self, rounds: int = 8) -> None:
        """Deliver and settle what there is until time has brought all of it."""
        for _ in range(rounds):
            for queue in ("default", "other"):
                for delivery in self.take(queue):
                    runner = Runner(self.app)
                    job = runner.admit(delivery)
                    if job.outcome is None:
                        asyncio.run(runner.claim(job))
                    asyncio.run(settle(self.app, job, job.outcome or runner.run_isolated(job)))
            self.clock.advance(800)

    def take(self, queue: str) -> Iterator[Delivery]:
        while batch := drive(self.app.broker.receive(queue, max_messages=10, wait=0)):
            drive(self.app.broker.ack(batch))
            self.seen += [delivery.body for delivery in batch]
            yield from batch

    def letters(self) -> list[dict[str, Any]]:
        return [parse(delivery.body) for delivery in [*self.take("default-dlq"), *self.take("other-dlq")]]

    def check(self) -> list[dict[str, Any]]:
        assert self.seen
        for body in self.seen:
            assert body.isascii()
            VALIDATOR.validate(json.loads(body))
        return [json.loads(body) for body in self.seen]


def test_the_schema_is_a_valid_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_a_bare_call_is_small_and_has_no_more_fields_than_it_needs() -> None:
    wire = Wire()
    wire.app["add"].delay(2, 3)
    (delivery,) = wire.take("default")
    assert len(delivery.body) < 110
    (fields,) = wire.check()
    assert fields.keys() == {"v", "id", "task", "args", "sent"}


def test_calls_with_every_option_fit_the_schema_and_have_every_field_of_the_page() -> None:
    wire = Wire()
    add, fail, reject = (wire.app[name] for name in ("add", "fail", "reject"))
    link = add.si(4).set(delay="5s", expires=60, timeout=3, headers={"h": 1}, tenant="t", ignore_result=True, link=add.s(1), queue="other")
    timed = add.options(delay="1d", expires="2d", timeout="5s", task_id="mine", tenant="t", ignore_result=True)
    timed.options(headers={"trace": "ü"}, link=[link, add.s(y=2)], link_error=add.si(9)).delay(1, y=2)
    add.options(ordering_key="k", queue="other").delay(1)
    add.apply_async((1,), {"y": 2}, countdown=5)
    fail.options(link_error=reject.si()).delay()
    reject.delay()
    wire.app.send_task("gone", [1])
    wire.work(rounds=120)
    letters = wire.letters()
    wire.app["reject"].delay()
    wire.work(2)
    for letter in letters:  # what is redriven has a "first" and an attempt of its own
        drive(wire.app.broker.send(letter["dead"]["queue"], [Outgoing(body=json.dumps(letter))]))
    wire.work()
    wire.letters()
    seen = wire.check()
    documented = set(re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Identity")[0], re.MULTILINE))
    known = set(SCHEMA["$defs"]["call"]["properties"])
    assert documented == known
    written = {key for fields in seen for key in fields}
    assert written <= known
    workflows = {"next", "join", "results", "flow", "each"}
    assert known - written - workflows == {"crashes", "enc", "sig", "turn"}, "only a process that dies, has keys or a rate writes them"


def test_workflows_fit_the_schema_and_use_all_that_it_has_for_them() -> None:
    wire = Wire(store="memory://")
    add, total = wire.app["add"], wire.app["total"]
    inner = group(add.si(1, 1) | group(add.s(1), add.s(2)), add.starmap([(1, 2), (3, 4)]) | total.s())
    result = (add.s(1, 1) | inner | total.s().on_error(add.si(0)) | group(add.s(1), add.s(2).on_error(add.si(1)))).delay()
    linked = add.options(link=[add.s(1) | group(add.s(1)) | total.s(), group(add.s(2), add.si(3, 3))]).delay(1, 1)
    add.starmap([(1, 2)]).delay()
    wire.work()
    seen = wire.check()
    assert linked.successful()
    assert result.ready()
    written = {key for fields in seen for key in fields}
    assert {"next", "join", "results", "flow", "each"} <= written
    steps = [step for fields in seen for step in fields.get("next", ())]
    assert {key for step in steps for key in step} >= {"id", "members", "task", "queue", "link_error"}


def test_ticks_fit_the_schema_also_those_that_wait_for_a_deploy_and_their_dead_letters() -> None:
    wire = Wire()
    add = wire.app["add"]
    wire.app.schedule("old", add.s(1, 2), 60)
    now = int(wire.clock.time())
    drive(
        wire.app.broker.send(
            "default", [wire.app.schedules["old"].tick(wire.app, now), wire.app.schedules.pop("old").schedule(wire.app).message]
        )
    )
    wire.work(rounds=5)
    letters = wire.letters()
    assert [letter["tick"] for letter in letters] == ["old", "old"]
    drive(wire.app.broker.send("default", [Outgoing(body=json.dumps(letter)) for letter in letters]))
    wire.work(rounds=5)
    assert [letter["tick"] for letter in wire.letters()] == ["old", "old"]
    seen = wire.check()
    assert {key for fields in seen for key in fields} == set(SCHEMA["$defs"]["tick"]["properties"])


def test_every_field_of_a_link_is_documented() -> None:
    section = PAGE.partition("## Links")[2].partition("## Dead")[0]
    assert set(SCHEMA["$defs"]["link"]["properties"]) <= set(re.findall(r"`(\w+)`", section))


def test_dead_letters_fit_the_schema_wrapped_or_not() -> None:
    wire = Wire()
    for body in ("no json", "[1]", '{"v":1,"id":"a","task":"add","args":["x"]}'):
        drive(wire.app.broker.send("default", [Outgoing(body=body)]))
    wire.app["fail"].delay()
    wire.work()
    letters = wire.letters()
    for letter in letters:
        VALIDATOR.validate(letter)
    assert [unwrap(letter) for letter in letters].count(None) == 2
    section = PAGE.partition("## Dead letters")[2]
    documented = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    assert {key for letter in letters for key in letter["dead"]} == documented


def test_a_linked_call_has_the_id_that_the_page_says() -> None:
    import hashlib

    assert derived_id("a", "link", 0) == hashlib.sha256(b"a\0link\x000").hexdigest()[:32]


_FRACTION = st.floats(-1e6, 1e6).filter(lambda number: not number.is_integer())
_SCALAR = st.none() | st.booleans() | st.integers() | _FRACTION | st.text(max_size=5)
_JSON = _SCALAR | st.lists(_SCALAR, max_size=2) | st.dictionaries(st.sampled_from(["task", "queue", "x"]), _SCALAR, max_size=3)
_LINKS = st.lists(
    st.fixed_dictionaries({"task": _SCALAR, "queue": _SCALAR}, optional={"delay": _JSON, "args": _JSON, "link": _JSON}), max_size=2
)
_FIELD = st.sampled_from(sorted(SCHEMA["$defs"]["call"]["properties"].keys() - {"v", "first", "attempt", "dead"}))


@given(st.dictionaries(_FIELD, _JSON | _LINKS, max_size=4))
def test_what_is_read_is_what_the_schema_allows(changes: dict[str, Any]) -> None:
    fields = {"v": 1, "id": "a", "task": "add", **changes}
    try:
        decode(dict(fields))
    except DecodeError:
        accepted = False
    else:
        accepted = True
    assert accepted == VALIDATOR.is_valid(fields)


@pytest.mark.parametrize("wrong", [{"attempt": 1, "first": 2}])
def test_a_budget_that_begins_after_its_attempt_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(DecodeError, match="first"):
        decode({"v": 1, "id": "a", "task": "add", "sent": 1, **wrong})


def test_the_examples_of_the_page_are_calls() -> None:
    for example in re.findall(r'^\{"v":1.*\}$', PAGE, re.MULTILINE):
        VALIDATOR.validate(json.loads(example))
        assert decode(json.loads(example.replace("…", ""))).args == [2, 3]
