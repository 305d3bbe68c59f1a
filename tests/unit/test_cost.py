"""What a plan costs: computed by hand, never less for more, and from prices that each have a use."""

from __future__ import annotations

import ast
import json
import operator
import re
from dataclasses import replace
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cloudq import CloudQ, Retry, cron, every
from cloudq.cli import costing
from cloudq.deploy.cost import MONTH, Cost, Line, Load, cost_of, read_prices, spread
from cloudq.deploy.plan import plan_of
from cloudq.deploy.settings import Target, parse
from cloudq.errors import ConfigError

PRICES = read_prices()
MILLION = 1_000_000.0


@pytest.fixture(autouse=True, scope="module")
def no_seams() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for seam in ("BROKER", "STORE", "TIMER"):
            patch.delenv(f"CLOUDQ_{seam}", raising=False)
        yield


def shop() -> CloudQ:
    app = CloudQ("shop")

    @app.task(name="mail", queue="emails", timeout="30s", retry=Retry(max_retries=3, max_delay=30))
    def mail() -> None: ...

    return app


def cost(
    target: Target = "aws-sam", table: dict[str, Any] | None = None, app: CloudQ | None = None, *, free: bool = False, **load: Any
) -> Cost:
    settings = parse({"store": False, "timer": False, **(table or {})}, "dev")
    plan = plan_of(app or shop(), settings, target=target, stage="dev")
    given: dict[str, Any] = {"tasks": {"emails": MILLION}, "fires": {}, **load}
    return cost_of(plan, settings, Load(**given), PRICES, free=free)


def dollars(found: Cost) -> dict[str, float]:
    """By what it is for, to a hundredth of a cent."""
    return {line.what: round(line.dollars, 4) for line in found.lines}


CONTAINER = {"defaults": {"runs_on": "container"}}


# ---------------------------------------------------------------------- by hand


def test_a_million_tasks_on_sqs_and_lambda() -> None:
    found = cost()
    assert found.host == "SQS + Lambda"
    assert dollars(found) == {
        "requests": 0.12,  # 0.3 a task
        "idle receives": 0.2628,  # 5 pollers, every 20 s
        "calls": 0.02,  # of 10 messages
        "computing": 0.6667,  # 100 ms of half a GB: 50,000 GB-seconds
        "alarms": 0.3,  # age, dead letters, throttles
    }
    assert found.requests == 300_000 + 657_000


def test_a_million_tasks_on_sqs_and_fargate() -> None:
    found = cost(table=CONTAINER)
    assert found.host == "SQS + ECS Fargate"
    assert dollars(found) == {
        "requests": 0.12,
        "idle receives": 0.0526,  # one worker
        "CPU": 5.9093,  # a quarter of a vCPU, 730 hours
        "memory": 1.2994,
        "alarms": 0.2,
    }


def test_a_million_tasks_on_pubsub_and_cloud_run() -> None:
    found = cost("gcp-terraform")
    assert found.host == "Pub/Sub + Cloud Run push"
    assert dollars(found) == {
        "bytes": 0.0728,  # published and pushed, 1,000 bytes each: 2e9 / 2**40 * 40
        "pushes": 0.4,
        "CPU": 0.24,  # 100 ms, ten at once: 10,000 vCPU-seconds
        "memory": 0.0125,
    }
    assert found.requests == 100_000 + 1_000_000


def test_a_million_tasks_on_pubsub_and_a_worker_pool() -> None:
    found = cost("gcp-terraform", CONTAINER)
    assert found.host == "Pub/Sub + worker pool"
    # A whole vCPU: Cloud Run gives no quarter to a pool
    assert dollars(found) == {"bytes": 0.0728, "idle pulls": 0.0048, "CPU": 29.5492, "memory": 1.6228}


def test_more_memory_takes_more_cpus_of_cloud_run() -> None:
    assert dollars(cost("gcp-terraform", {"defaults": {"memory": 8192}}))["CPU"] == 0.48


@pytest.mark.parametrize(
    ("kib", "together", "expected"),
    [(1, 1, 1.2), (1, 10, 0.12), (20, 10, 0.36), (60, 10, 0.84), (200, 1, 3.6), (200, 10, 2.64), (1000, 10, 13.2)],
)
def test_sqs_counts_each_64_kilobytes_of_a_request(kib: int, together: int, expected: float) -> None:
    assert dollars(cost(size=kib * 1024, together=together))["requests"] == expected


def test_a_store_is_written_twice_for_each_task_and_read_where_results_are() -> None:
    found = dollars(cost(table={"store": True}, results=True))
    assert (found["claims and ends"], found["results read"]) == (1.25, 0.125)
    found = dollars(cost("gcp-terraform", {"store": True}, results=True))
    assert (found["claims and ends"], found["results read"], found["documents expired"]) == (1.8, 0.3, 0.1)
    assert "results read" not in dollars(cost(table={"store": True}))


def test_a_long_task_renews_its_lease_and_its_claim_every_20_seconds() -> None:
    found = dollars(cost(table={**CONTAINER, "store": True}, duration=65.0))
    assert found["leases renewed"] == 0.12  # three times, ten in a request
    assert found["claims and ends"] == 3.125  # 5 writes a task


def test_a_long_delay_costs_a_schedule_and_three_requests_more_or_five_operations_on_google() -> None:
    found = dollars(cost(table={"timer": True}, delayed=0.5))
    assert (found["long delays"], found["requests of long delays"]) == (0.5, 0.6)
    assert dollars(cost("gcp-terraform", {"timer": True}, delayed=0.5))["delays"] == 1.0


def test_a_schedule_costs_its_invocations_and_the_tasks_that_it_calls() -> None:
    app = CloudQ("shop")

    @app.task(name="tick", queue="emails", schedule=every("5m"))
    def tick() -> None: ...

    found = cost(app=app, table={"timer": True}, tasks={}, fires={"tick": 10_000.0})
    assert dollars(found)["schedules"] == 0.01
    assert dollars(found)["calls"] == round(1_000 * 0.2e-6, 4)
    assert dollars(cost("gcp-terraform", app=app, table={"timer": True}, fires={"tick": 10_000.0}))["schedules"] == 0.1


def test_a_large_body_is_left_in_the_bucket_and_its_claim_travels() -> None:
    size = 2 << 20
    with pytest.raises(ConfigError, match="bodies = true"):
        cost(size=size)
    found = dollars(cost(size=size, table={"bodies": True}))
    assert (found["bodies left"], found["bodies collected"], found["requests"]) == (5.0, 0.4, 0.12)


def test_a_batch_window_gathers_what_comes_in_it() -> None:
    rare = cost(table={"queues": {"emails": {"batch_size": 100, "batch_window": 60}}}, together=1)
    assert dollars(rare)["calls"] == round(MONTH / 60 * 0.2e-6, 4)  # a call a minute


def test_more_workers_than_the_load_needs_are_paid_and_more_than_there_may_be_are_told() -> None:
    found = cost(table=CONTAINER, duration=600.0)  # 1e6 * 600 s / 10 at once: 22.8 workers
    assert found.notes == ("queue emails needs 22.831 workers for this load, and its max_workers is 10",)
    assert dollars(found)["CPU"] == round(22.8310502 * 730 * 0.25 * 0.03238, 4)


def test_a_call_that_gathers_more_than_fits_its_function_is_told() -> None:
    assert cost(duration=6.0).notes == ()  # ten of them are the function's minute
    (note,) = cost(duration=25.0).notes
    assert "10 tasks, of which 2 fit into the 60 s" in note
    assert cost("gcp-terraform", duration=25.0).notes == ("alerting policies of Cloud Monitoring are not counted",)


def test_a_task_that_outlasts_its_function_has_no_price() -> None:
    with pytest.raises(ConfigError, match='runs_on = "container"'):
        cost(duration=3_600.0)


def test_pods_are_counted_and_not_priced_and_compose_costs_nothing() -> None:
    found = cost("kubernetes")
    assert found.host == "SQS + Kubernetes"
    assert not {"CPU", "memory"} & dollars(found).keys()
    assert "1 pod of 0.25 vCPU and 512 MB" in found.notes[0]
    assert cost("compose").lines == ()


def test_what_nobody_runs_is_sent_and_received_all_the_same() -> None:
    found = cost(table={"defaults": {"runs_on": "none"}})
    assert found.host == "SQS + workers of your own"
    assert dollars(found) == {"requests": 0.12, "alarms": 0.2}


def test_what_is_free_is_taken_off_once() -> None:
    app = shop()

    @app.task(name="order", queue="orders.fifo")
    def order() -> None: ...

    tasks = {"emails": MILLION, "orders.fifo": MILLION}
    assert sum(line.free for line in cost(app=app, tasks=tasks, free=True).lines if line.unit == "request") == 1_000_000
    assert cost(app=app, tasks=tasks, free=True).dollars < cost(app=app, tasks=tasks).dollars


# ---------------------------------------------------------------------- in general

PLANS: list[tuple[Target, dict[str, Any]]] = [
    (target, {**table, **more})
    for target in ("aws-sam", "gcp-terraform", "kubernetes")
    for table in ({}, CONTAINER, {"queues": {"emails": {"runs_on": "function", "batch_size": 50, "batch_window": 20}}})
    for more in ({}, {"store": True, "timer": True, "bodies": True})
    if target != "kubernetes" or "queues" not in table
]
LOADS = st.fixed_dictionaries(
    {
        "tasks": st.integers(0, 10**10).map(lambda tasks: {"emails": float(tasks)}),
        "size": st.integers(1, 5 << 20),
        "duration": st.floats(0.001, 60),
        "together": st.integers(1, 2_000),
        "results": st.booleans(),
        "delayed": st.integers(0, 100).map(lambda percent: percent / 100),
    }
)


def more_costs_no_less(less: Cost, more: Cost) -> bool:
    return more.dollars >= less.dollars * (1 - 1e-9) and more.requests >= less.requests * (1 - 1e-9)


@given(st.sampled_from(PLANS), LOADS, st.floats(1, 1000), st.booleans())
def test_more_tasks_never_cost_less(plan: tuple[Target, dict[str, Any]], load: dict[str, Any], factor: float, free: bool) -> None:
    table = {**plan[1], "bodies": True}
    more = {**load, "tasks": {"emails": load["tasks"]["emails"] * factor}}
    assert more_costs_no_less(cost(plan[0], table, free=free, **load), cost(plan[0], table, free=free, **more))


@given(st.sampled_from(PLANS), LOADS, st.floats(0.001, 60), st.floats(0, 1))
def test_longer_tasks_and_more_delays_never_cost_less(
    plan: tuple[Target, dict[str, Any]], load: dict[str, Any], longer: float, delayed: float
) -> None:
    table = {**plan[1], "bodies": True}
    more = {**load, "duration": max(longer, load["duration"]), "delayed": max(delayed, load["delayed"])}
    assert more_costs_no_less(cost(plan[0], table, **load), cost(plan[0], table, **more))


def computed(line: Line) -> float:
    """The value of a formula as it is shown: its words taken out."""
    text = line.formula.replace("×", "*").replace("÷", "/").replace(",", "")
    return value(ast.parse(re.sub(r"\(GB\)|\(GiB\)|[A-Za-z]+", "", text).strip(), mode="eval").body)


def value(node: ast.expr) -> float:
    """Of plain arithmetic."""
    if isinstance(node, ast.Constant):
        return float(node.value)
    assert isinstance(node, ast.BinOp), ast.dump(node)
    apply = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}[type(node.op)]
    return float(apply(value(node.left), value(node.right)))


@given(st.sampled_from(PLANS), LOADS)
def test_each_formula_comes_to_the_quantity_beside_it(plan: tuple[Target, dict[str, Any]], load: dict[str, Any]) -> None:
    for line in cost(plan[0], {**plan[1], "bodies": True}, **load).lines:
        assert computed(line) == pytest.approx(line.quantity, rel=2e-3), line
        assert line.dollars == pytest.approx(line.quantity * line.unit_price / line.per)


def test_each_price_is_used_has_a_source_and_is_more_than_nothing() -> None:
    used: set[str] = set()
    for target, table in PLANS:
        for architecture in ("arm64", "x86_64"):
            for size in (1_000, 20 << 20):
                app = shop()

                @app.task(name="order", queue="orders.fifo", schedule=every("5m"))
                def order() -> None: ...

                settings = {**table, "bodies": True, "architecture": architecture}
                load = {"size": size, "results": True, "delayed": 0.1, "fires": {"order": 100.0}}
                used |= {line.price for line in cost(target, settings, app=app, **load).lines}
    assert used == PRICES.prices.keys()
    assert all(each.source and each.unit and each.dollars > 0 and each.per >= 1 for each in PRICES.prices.values())
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", PRICES.date)


# ---------------------------------------------------------------------- prices and loads that users write


def test_own_prices_stand_over_those_that_ship() -> None:
    own = read_prices(json.dumps({"date": "2030-01-01", "regions": {"aws": "eu-west-1"}, "prices": {"sqs.standard": {"dollars": 4}}}))
    assert own.prices["sqs.standard"] == replace(PRICES.prices["sqs.standard"], dollars=4)
    assert (own.date, own.regions) == ("2030-01-01", {"aws": "eu-west-1", "gcp": "us-central1"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no JSON"),
        ("[]", "with the date"),
        ('{"prices": {}}', "with the date"),
        ('{"date": "x", "price": {}}', "with the date"),
        ('{"date": "x", "prices": {"sqs.standart": {}}}', "did you mean 'sqs.standard'"),
        ('{"date": "x", "prices": {"sqs.standard": {"dollars": -1}}}', "must be like"),
        ('{"date": "x", "prices": {"sqs.standard": {"dollars": "1"}}}', "must be like"),
        ('{"date": "x", "prices": {"sqs.standard": {"per": 0}}}', "must be like"),
        ('{"date": "x", "prices": {"sqs.standard": {"cents": 1}}}', "must be like"),
        ('{"date": "x", "prices": {"sqs.standard": 1}}', "must be like"),
        ('{"date": "x", "prices": {"sqs.standard": {"dollars": NaN}}}', "must be like"),
    ],
)
def test_prices_that_are_none_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_prices(text)


def test_tasks_of_no_queue_in_particular_go_to_all_that_are_not_named() -> None:
    assert spread({None: 6.0}, ["a", "b"]) == {"a": 3.0, "b": 3.0}
    assert spread({None: 6.0, "a": 1.0}, ["a", "b", "c"]) == {"a": 1.0, "b": 3.0, "c": 3.0}
    with pytest.raises(ConfigError, match="did you mean 'emails'"):
        spread({"email": 1.0}, ["emails"])
    with pytest.raises(ConfigError, match="none is left"):
        spread({None: 1.0, "a": 1.0}, ["a"])


@pytest.mark.parametrize(
    ("given", "tasks"),
    [("1M", 1e6), ("20k", 20_000), ("1,000,000", 1e6), ("1e6", 1e6), ("2/s", 2 * MONTH), ("10/day", 10 * 730 / 24), ("5/month", 5)],
)
def test_tasks_are_a_number_a_month_or_a_rate(given: str, tasks: float) -> None:
    assert costing._tasks([given, f"emails={given}"]) == {None: pytest.approx(tasks), "emails": pytest.approx(tasks)}


@pytest.mark.parametrize("given", ["", "M", "-1", "1/week", "a=", "1.2.3", "nan"])
def test_tasks_that_are_no_number_are_refused(given: str) -> None:
    with pytest.raises(typer.BadParameter, match="write 1000000"):
        costing._tasks([given])


def test_a_schedule_fires_as_often_as_its_trigger_says() -> None:
    assert costing._fires(every("5m")) == pytest.approx(MONTH / 300)
    assert costing._fires(cron("0 9 1 * *")) == 1


@pytest.mark.parametrize("width", [80, 120])
def test_every_formula_can_be_read_whole_in_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=width, record=True, highlight=False)
    monkeypatch.setattr(costing, "out", lambda: console)
    monkeypatch.setattr(costing, "put", lambda text: console.print(text, soft_wrap=True))
    settings = parse({"store": True, "timer": True}, "dev")
    plan = plan_of(shop(), settings, target="aws-sam", stage="dev")
    load = Load(tasks={"emails": MILLION}, fires={}, results=True, delayed=0.1)
    found = cost_of(plan, settings, load, PRICES)
    costing._show(plan, load, found)
    lines = console.export_text().splitlines()[2:]
    assert max(map(len, lines)) <= width
    column = lines[0].index("why")
    text = " ".join(" ".join(line[column:] for line in lines).split())
    for line in found.lines:
        assert costing._why(line) in text
