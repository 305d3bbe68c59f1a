"""A workflow as a tree says what it is made of, and how far it has come, whether its canvas is there or only its id."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cloudq import chain, graph, group, states
from cloudq.cli.app import cli
from cloudq.errors import ConfigError
from cloudq.graph import Node
from cloudq.io import drive
from cloudq.signature import Canvas
from tests.unit.test_workflow import Shop
from tests.unit.test_workflow_faults import deliver, take


@pytest.fixture
def shop(caplog: pytest.LogCaptureFixture) -> Iterator[Shop]:
    shop = Shop()
    with caplog.at_level(logging.CRITICAL, "cloudq"):
        yield shop
    shop.app.close()


Make = Callable[[Shop], Canvas[Any]]
CANVASES: dict[str, Make] = {
    "a call": lambda s: s.add.s(1, 1),
    "a chain": lambda s: s.add.s(1, 1) | s.add.s(1) | s.mul.s(2),
    "a long chain": lambda s: chain(s.add.si(0, 0), *(s.add.s(1) for _ in range(60))),
    "a group": lambda s: group(s.add.s(i, i) for i in range(60)),
    "a chord in a chain": lambda s: s.add.s(1, 1) | group(s.add.s(1), s.mul.s(1)) | s.tsum.s() | s.add.s(1) | s.mul.s(1),
    "groups in groups": lambda s: group(group(s.add.s(1, 1)), s.add.s(1, 1) | group(s.add.s(1), s.add.s(2) | s.mul.s(1)), s.add.s(2, 2)),
    "chords in chords": lambda s: group(group(s.add.s(1, 1)) | s.tsum.s() | group(s.add.s(1)), group(s.add.s(1, 2))) | s.tell.si({}),
    "chosen ids": lambda s: group(s.add.s(1, 1).set(task_id="one"), s.add.s(1, 1)) | s.tsum.s().set(task_id="end"),
}


@pytest.mark.parametrize("make", CANVASES.values(), ids=CANVASES)
def test_what_is_known_of_the_id_of_a_workflow_that_has_ended_is_its_whole_tree(shop: Shop, make: Make) -> None:
    canvas = make(shop)
    result = canvas.delay()
    shop.drain()
    result.get(timeout=5)
    found = _of(shop, result.id)
    assert found == _look(shop, graph.of_canvas(canvas, result.id))
    assert {each.state for each in _tasks(found)} == {states.SUCCESS}
    assert found.state == states.SUCCESS


def test_before_and_while_it_runs_it_is_known_as_far_as_it_has_come(shop: Shop) -> None:
    result = (shop.add.s(1, 1) | shop.add.s(1) | group(shop.add.s(1), shop.mul.s(2)) | shop.tsum.s() | shop.add.s(2)).delay()
    assert _shown(_of(shop, result.id)) == ["add QUEUED", "… PENDING", "… PENDING"]
    for _ in range(3):
        _deliver_one(shop)
    node = _of(shop, result.id)
    states_now = [state.split()[1] for state in _shown(node)]
    assert [name.split()[0] for name in _shown(node)] == ["add", "add", "add", graph.UNKNOWN, "tsum", "add"]
    assert states_now == ["SUCCESS"] * 3 + ["PENDING"] * 3
    assert node.state == states.STARTED


def test_a_failure_is_seen_where_it_was_and_in_all_that_waited_for_it(shop: Shop) -> None:
    canvas = shop.add.s(1, 1) | group(shop.flaky.s(), shop.add.s(1)) | shop.tsum.s() | group(shop.add.s(1), shop.add.s(2))
    result = canvas.delay()
    shop.drain()
    whole = _look(shop, graph.of_canvas(canvas, result.id))
    assert [state.split()[1] for state in _shown(whole)[:4]] == ["SUCCESS", "FAILURE", "SUCCESS", "FAILURE"]
    assert whole.state == states.FAILURE
    assert "not today" in (whole.reason or "")
    assert _of(shop, result.id).state == states.FAILURE
    assert [part.state for part in whole.parts] == [states.SUCCESS, states.FAILURE, states.FAILURE, states.FAILURE]


def test_nothing_is_known_of_what_was_never_called(shop: Shop) -> None:
    assert shop.app.store is not None
    assert drive(graph.of_id(shop.app.store, "nobody")) is None


def test_a_flowchart_has_a_box_a_task_and_neighbours_that_are_alike_share_one(shop: Shop) -> None:
    canvas = shop.add.s(1, 1) | group([shop.add.s(i) for i in range(1_000)] + [shop.mul.s(1) | shop.mul.s(2)]) | shop.tsum.s()
    assert graph.mermaid(graph.of_canvas(canvas)).splitlines() == [
        "flowchart LR",
        '    n0["add"]',
        '    n1["add × 1,000"]',
        '    n2["mul"]',
        '    n3["mul"]',
        "    n2 --> n3",
        '    n4["tsum"]',
        "    n0 --> n1",
        "    n0 --> n2",
        "    n1 --> n4",
        "    n3 --> n4",
    ]


TASKS = """
from cloudq import CloudQ, group

app = CloudQ("shop", broker="memory://", store="sqlite:///results.db")

@app.task(name="add")
def add(x: int, y: int) -> int:
    return x + y

@app.task(name="total")
def total(numbers: list[int]) -> int:
    return sum(numbers)

flow = group(add.s(i, i) for i in range(100)) | total.s()
"""


def test_the_command_shows_canvases_and_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CLOUDQ_APP", "graphed:app")
    (tmp_path / "graphed.py").write_text(TASKS)
    runner = CliRunner()

    def run(*args: str, code: int = 0) -> str:
        answer = runner.invoke(cli, ["graph", *args])
        assert answer.exit_code == code, (answer.output, answer.exception)
        return answer.stdout

    assert [line.strip() for line in run("graphed:flow").splitlines()] == [
        "chain",
        "├── group of 100",
        "│   └── add × 100",
        "└── total",
    ]
    assert 'n0["add × 100"]' in run("graphed:flow", "--mermaid")
    import graphed  # type: ignore[import-not-found]

    result = graphed.flow.delay()
    assert "add × 100  QUEUED" in run(result.id)
    assert f"total  PENDING  {result.id}" in run("graphed:flow", "--id", result.id)
    whole = json.loads(run(result.id, "--json"))
    assert (whole["kind"], whole["id"], whole["state"]) == ("chain", result.id, "STARTED")
    assert len(whole["steps"][0]["members"]) == 100
    assert whole["steps"][1] == {"kind": "task", "id": result.id, "state": "PENDING", "reason": None, "task": "total"}
    result.revoke()
    assert "to be revoked" in run("graphed:flow", "--id", result.id)
    run("nobody", code=1)
    run(result.id, "--id", result.id, code=2)
    assert isinstance(runner.invoke(cli, ["graph", "graphed:add"]).exception, ConfigError)
    graphed.app.close()


def _of(shop: Shop, id: str) -> Node:
    assert shop.app.store is not None
    found = drive(graph.of_id(shop.app.store, id))
    assert found is not None
    return found


def _look(shop: Shop, node: Node) -> Node:
    assert shop.app.store is not None
    return drive(graph.look(shop.app.store, node))


def _tasks(node: Node) -> list[Node]:
    return [node] if node.kind == "task" else [task for part in node.parts for task in _tasks(part)]


def _shown(node: Node) -> list[str]:
    return [f"{task.name} {task.state}" for task in _tasks(node)]


def _deliver_one(shop: Shop) -> None:
    first, *rest = take(shop)
    if rest:
        drive(shop.app.broker.extend(rest, 0))
    drive(shop.app.broker.ack([first]))
    deliver(shop, first.body)
