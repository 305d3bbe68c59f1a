"""The plan: what an app and its settings need of a platform."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloudq import CloudQ, Retry, chain, cron, every
from cloudq.config import Queue
from cloudq.deploy.plan import Grant, Plan, plan_of
from cloudq.deploy.settings import Target, parse
from cloudq.errors import ConfigError


@pytest.fixture(autouse=True)
def no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    for seam in ("BROKER", "STORE", "TIMER"):
        monkeypatch.delenv(f"CLOUDQ_{seam}", raising=False)


def planned(app: CloudQ, table: dict[str, Any] | None = None, target: Target = "aws-sam", stage: str = "dev") -> Plan:
    return plan_of(app, parse(table or {}, stage), target=target, stage=stage)


def shop() -> CloudQ:
    app = CloudQ("My Shop")

    @app.task(name="mail", queue="emails", timeout="30s", retry=Retry(max_retries=5, max_delay=60))
    def mail() -> None: ...

    @app.task(name="order", queue="orders.fifo", timeout="45s", retry=Retry(max_retries=12))
    def order() -> None: ...

    @app.task(name="report", timeout="5m", schedule=cron("0 9 1 * 1", tz="Europe/Berlin"))
    def report() -> None: ...

    return app


def grants(plan: Plan, role: str) -> dict[str, tuple[str, ...]]:
    found = next(each for each in plan.roles if each.name == role)
    return {each.action: each.on for each in found.grants}


def test_each_queue_has_a_name_of_its_stage_and_a_dead_letter_queue() -> None:
    plan = planned(shop())
    assert [(each.resource, each.dead_letters.resource) for each in plan.queues] == [
        ("my-shop-dev-default", "my-shop-dev-default-dlq"),
        ("my-shop-dev-emails", "my-shop-dev-emails-dlq"),
        ("my-shop-dev-orders.fifo", "my-shop-dev-orders-dlq.fifo"),
    ]
    assert {each.dead_letters.retention for each in plan.queues} == {14 * 86_400}
    assert planned(shop(), {"name": "x", "prefix": ""}).queue("emails").resource == "emails"


def test_a_function_has_room_for_its_longest_task_and_its_queue_hides_six_times_as_long() -> None:
    plan = planned(shop(), {"queues": {"emails": {"batch_size": 50, "batch_window": 7}}})
    assert {each.queue: each.timeout for each in plan.functions} == {"default": 310, "emails": 60, "orders.fifo": 60}
    assert (plan.queue("emails").visibility, plan.queue("default").visibility) == (6 * 60 + 7, 6 * 310)


def test_the_age_that_raises_an_alarm_is_beyond_what_a_task_that_runs_reaches() -> None:
    app = shop()
    app.task(name="video", queue="videos", timeout="40m")(lambda: None)
    above = {each.on: each.above for each in planned(app).alarms if each.kind == "age"}
    pauses = sum(2**retries for retries in range(10)) + 2 * 600
    assert above == {"default": 900, "emails": 900, "orders.fifo": 13 * 45 + pauses + 300, "videos": 45 * 60}  # it keeps its place
    said = planned(app, {"defaults": {"alarm_age": "20m"}, "queues": {"emails": {"alarm_age": 60}}})
    assert {each.above for each in said.alarms if each.kind == "age"} == {60, 1200}


def test_an_alarm_s_age_is_below_what_its_queue_keeps_also_where_tasks_retry_without_end() -> None:
    app = shop()
    app.task(name="forever", queue="orders.fifo", retry=Retry(max_retries=None))(lambda: None)
    plan = planned(app, {"queues": {"emails": {"retention": "10m"}}})
    above = {each.on: each.above for each in plan.alarms if each.kind == "age"}
    assert (above["emails"], above["orders.fifo"]) == (300, 2 * 86_400)


def test_on_google_a_push_has_the_service_s_time_and_a_minute_beside_the_task() -> None:
    plan = planned(shop(), target="gcp-terraform")
    assert {each.queue: (each.timeout, plan.queue(each.queue).visibility) for each in plan.functions} == {
        "default": (360, 360),
        "emails": (90, 90),
        "orders.fifo": (105, 105),
    }


def test_a_container_renews_its_lease_and_may_end_its_longest_task() -> None:
    plan = planned(shop(), {"defaults": {"runs_on": "container"}})
    assert plan.functions == ()
    assert {each.queue: each.grace for each in plan.containers} == {"default": 310, "emails": 40, "orders.fifo": 55}
    assert {each.visibility for each in plan.queues} == {60}


def test_the_provider_gives_up_well_after_cloudq_itself() -> None:
    plan = planned(shop())
    assert (plan.queue("emails").max_receives, plan.queue("orders.fifo").max_receives) == (10, 12 + 2 * 5)
    assert {each.max_receives for each in planned(shop(), target="gcp-terraform").queues} == {100}
    app = CloudQ("a", crash_cap=7)
    app.task(queue="q.fifo", retry=Retry(max_retries=None))(print_nothing)
    assert planned(app).queue("q.fifo").max_receives == 1_000


def print_nothing() -> None: ...


def test_without_a_store_what_is_behind_a_message_that_fails_is_not_delivered_with_it_and_with_one_that_does_not_count() -> None:
    bare, stored = planned(shop()), planned(shop(), {"store": True})
    assert {each.queue: each.batch_size for each in bare.functions} == {"default": 10, "emails": 10, "orders.fifo": 1}
    assert {each.batch_size for each in stored.functions} == {10}
    assert {each.name: each.max_receives for each in stored.queues} == {"default": 10, "emails": 10, "orders.fifo": 1_000}


def test_an_event_source_asks_for_no_more_than_its_function_has_reserved() -> None:
    tables: list[dict[str, Any]] = [{"reserved_concurrency": 9}, {"reserved_concurrency": 9, "max_concurrency": 5}]
    tables += [{"reserved_concurrency": 5_000}, {"reserved_concurrency": 1}]  # an event source takes 2 to 1,000
    plans = [planned(shop(), {"queues": {"emails": table}}) for table in tables]
    assert [each.max_concurrency for plan in plans for each in plan.functions if each.queue == "emails"] == [9, 5, 1_000, 2]


def test_the_default_queue_is_there_only_where_something_goes_there() -> None:
    app = CloudQ("a", queues=["mine", Queue("own", "own-dead")])
    assert [each.name for each in planned(app).queues] == ["mine", "own"]
    assert [each.name for each in planned(app, {"queues": {"default": {}}}).queues] == ["default", "mine", "own"]
    assert planned(app).queue("own").dead_letters.name == "own-dead"


def test_a_queue_that_the_code_names_in_full_is_there_already() -> None:
    arn = "arn:aws:sqs:eu-west-1:123456789012:legacy"
    queue = planned(CloudQ("a", queues=[Queue(arn, "legacy-dlq")])).queue(arn)
    assert (queue.existing, queue.resource, queue.dead_letters.existing) == (arn, "legacy", None)


def test_schedules_are_in_the_provider_s_own_words_or_say_why_not() -> None:
    app = shop()
    app.schedule("often", app["mail"].s(), every("7m"))
    aws = {each.name: each for each in planned(app).schedules}
    gcp = {each.name: each for each in planned(app, target="gcp-terraform").schedules}
    assert [(part.expression, part.timezone) for part in aws["report"].parts] == [
        ("cron(0 9 1 * ? *)", "Europe/Berlin"),
        ("cron(0 9 ? * 2 *)", "Europe/Berlin"),
    ]
    assert [part.expression for part in gcp["report"].parts] == ["0 9 1 * *", "0 9 * * 1"]
    assert gcp["often"].parts == ()
    assert "every 6m" in (gcp["often"].refused or "")
    assert planned(app, target="compose").schedules[0].refused is None


def test_queues_that_only_a_schedule_s_later_steps_name_are_planned() -> None:
    app = shop()
    late = app["mail"].si().set(queue="late", countdown=90)
    app.schedule("flow", chain(app["mail"].si(), late), every("1h"))
    plan = planned(app)
    (flow,) = [each for each in plan.schedules if each.name == "flow"]
    assert [(step.queue, step.delay) for step in flow.steps] == [("emails", 0.0), ("late", 90.0)]
    assert plan.queue("late").runs_on == "function"


def test_a_store_is_planned_where_a_task_needs_one_or_settings_say_so_and_whatever_the_shell_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(shop()).store is None
    assert planned(shop(), {"store": True}).store is not None
    app = shop()
    app.task(name="once", unique=True)(print_nothing)
    assert (planned(app).store or pytest.fail("there is none")).why == "unique of the task 'once'"
    assert planned(app, {"store": False}).store is None
    before = planned(shop())
    monkeypatch.setenv("CLOUDQ_STORE", "dynamodb://eu-west-1/table")
    monkeypatch.setenv("CLOUDQ_TIMER", "eventbridge://eu-west-1/group?role=r&dead_letter=d")
    monkeypatch.setenv("CLOUDQ_BROKER", "sqs://eu-west-1/?bodies=s3://bucket")
    assert planned(shop()) == before, "the same code and settings make the same files on each machine"


def test_a_timer_is_planned_for_schedules_for_long_retries_and_for_pushes() -> None:
    def app(longest: float, queue: str = "q") -> CloudQ:
        made = CloudQ("a")
        made.task(name="t", queue=queue, retry=Retry(max_delay=longest))(print_nothing)
        return made

    assert planned(app(900)).timer is None
    assert (planned(app(901)).timer or pytest.fail("there is none")).why == ("retries of 't' wait up to 901 s",)
    assert planned(app(901, "q.fifo")).timer is None, "ordered queues retry by extending the lease"
    assert (planned(shop()).timer or pytest.fail("there is none")).why == ("1 schedule",)
    assert planned(CloudQ("a", queues=["q"]), target="gcp-terraform").timer is not None
    assert planned(shop(), {"timer": False}).timer is None


def test_bodies_outlive_both_queues_and_a_month_of_delay() -> None:
    assert planned(shop()).bodies is None
    assert (planned(shop(), {"bodies": True}).bodies or pytest.fail("there is none")).days == 60
    assert (planned(shop(), {"bodies": True}, "gcp-terraform").bodies or pytest.fail("there is none")).days == 94


def test_each_role_may_do_what_its_host_does_and_no_more() -> None:
    table: dict[str, Any] = {
        "store": True,
        "bodies": True,
        "queues": {"emails": {"sends_to": []}, "orders.fifo": {"runs_on": "container"}},
    }
    plan = planned(shop(), table)
    names = ("default", "emails", "orders.fifo")
    assert grants(plan, "producer") == {"send": names, "use": ("store",), "leave": ("bodies",), "set": ("timer",), "pass": ("scheduler",)}
    assert grants(plan, "my-shop-dev-emails") == {
        "consume": ("emails",),
        "send": ("emails", "dead-letters of emails"),
        "use": ("store", "bodies"),
        "set": ("timer",),
        "pass": ("scheduler",),
        "write": ("logs",),
    }
    worker = grants(plan, "my-shop-dev-orders-fifo")
    assert (worker["consume"], worker["inspect"]) == (("orders.fifo",), ("dead-letters of orders.fifo",))
    assert "write" not in worker
    assert grants(plan, "scheduler") == {"send": (*names, "dead-letters of the timer")}
    letters = (*(f"dead-letters of {each}" for each in names), "dead-letters of the timer")
    assert grants(plan, "operator")["consume"] == (*names, *letters)
    assert not any(grant.action == "encrypt" for role in plan.roles for grant in role.grants)
    keyed = planned(shop(), {"aws": {"kms_key": "arn:aws:kms:eu-west-1:123456789012:key/k"}})
    assert all(Grant(action="encrypt", on=("key",)) in role.grants for role in keyed.roles)


def test_a_queue_that_nothing_runs_here_has_no_role() -> None:
    plan = planned(shop(), {"queues": {"emails": {"runs_on": "none"}}})
    assert {each.queue for each in plan.roles} == {None, "default", "orders.fifo"}


def test_the_plan_is_plain_data_and_the_same_whenever_it_is_made() -> None:
    table: dict[str, Any] = {"store": True, "bodies": True}
    one, other = (json.dumps(planned(shop(), table).document(), sort_keys=True) for _ in range(2))
    assert one == other
    assert json.loads(one)["version"] == 1


@pytest.mark.parametrize("name", ["日本", "!!!", "4u", "a" * 31])
def test_an_app_that_nothing_can_be_named_after_needs_a_name_in_its_settings(name: str) -> None:
    with pytest.raises(ConfigError, match=r"set name under \[tool.cloudq\]"):
        planned(CloudQ(name))
    assert planned(CloudQ(name), {"name": "shop"}).name == "shop"


def test_no_secret_and_no_environment_is_in_the_plan() -> None:
    table: dict[str, Any] = {"environment": {"PASSWORD": "hunter2"}, "secrets": {"KEY": "prod/key"}}
    assert "hunter2" not in json.dumps(planned(shop(), table).document())
