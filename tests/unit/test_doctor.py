"""The doctor's findings: what is there, held against a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from cloudq import CloudQ, every
from cloudq import Queue as Declared
from cloudq.deploy.doctor import Finding, as_used, findings
from cloudq.deploy.observed import Bucket, Function, Observed, Queue, Schedule, Source, Store, Subscription, Timer, Topic, Unread
from cloudq.deploy.plan import Plan, plan_of
from cloudq.deploy.settings import Settings, Target, parse
from cloudq.errors import ConfigError

T = TypeVar("T")
KEY = "arn:aws:kms:eu-west-1:123456789012:key/mine"


@pytest.fixture(autouse=True)
def no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    for seam in ("BROKER", "STORE", "TIMER"):
        monkeypatch.delenv(f"CLOUDQ_{seam}", raising=False)


def planned(table: Mapping[str, Any] | None = None, target: Target = "aws-sam") -> tuple[Plan, Settings]:
    app = CloudQ("shop", queues=[Declared("emails", "letters"), Declared("texts", "letters")])
    app.reference = "shop:app"
    app.task(name="mail", queue="emails", timeout=30, schedule=every("1h"))(lambda: None)
    app.task(name="text", queue="texts", timeout=100)(lambda: None)
    app.task(name="order", queue="orders.fifo", timeout=45)(lambda: None)
    gcp = {"project": "mine", "region": "europe-west1"}
    settings = parse({"store": True, "bodies": True, "gcp": gcp, **(table or {})}, "dev")
    return plan_of(app, settings, target=target, stage="dev"), settings


def as_planned(plan: Plan, settings: Settings) -> Observed:
    """What is there when all is as the plan says."""
    assert plan.store is not None
    assert plan.timer is not None
    assert plan.bodies is not None
    gcp = plan.provider == "gcp"
    functions = {each.queue: each for each in plan.functions}
    key = settings.aws.kms_key or settings.gcp.kms_key

    def queue(resource: str, retention: int, fifo: bool, pushed: str | None = None, **more: Any) -> Queue:
        subscription = Subscription(
            topic=f"projects/mine/topics/{resource}",
            expires=None,
            backoff=True,
            filter="",
            detached=False,
            push=None if pushed is None else "https://x.run.app/",
            account=None if pushed is None else "push@mine.iam.gserviceaccount.com",
            audience=None if pushed is None else f"https://{pushed}.mine.cloudq",
            granted=True,
        )
        given = {"visibility": 60, "encrypted": True, "key": key, "dead_letters": None, "max_receives": None, **more}
        waiting = None if gcp else 0
        return Queue(retention=retention, fifo=fifo, waiting=waiting, subscription=subscription if gcp else None, **given)

    queues: dict[str, Queue | None] = {}
    for each in plan.queues:
        letters, runs = each.dead_letters, functions.get(each.name)
        redrive = {"dead_letters": letters.resource, "max_receives": each.max_receives}
        pushed = runs.name if runs is not None else None
        queues[each.resource] = queue(each.resource, each.retention, each.fifo, pushed, visibility=each.visibility, **redrive)
        queues[letters.resource] = queue(letters.resource, letters.retention, each.fifo)
    if plan.timer.undelivered is not None:
        queues[plan.timer.undelivered] = queue(plan.timer.undelivered, 1_209_600, False)
    environment = {
        **settings.environment,
        "CLOUDQ_APP": plan.reference or "",
        "CLOUDQ_BROKER": f"sqs://eu-west-1/?prefix={plan.prefix}",
        "CLOUDQ_STORE": f"dynamodb://eu-west-1/{plan.store.resource}",
        "CLOUDQ_TIMER": f"eventbridge://eu-west-1/{plan.timer.resource}?role=r&dead_letter=d",
    }
    return Observed(
        place="here",
        queues=queues,
        topics={name: Topic(key=key, granted=True) for name in queues} if gcp else {},
        functions={}
        if gcp
        else {
            each.name: Function(
                state="Active",
                timeout=each.timeout,
                runtime="python3.13",
                architecture="arm64",
                environment=environment,
                reserved=each.reserved_concurrency,
                loops="Allow",
            )
            for each in plan.functions
        },
        sources={}
        if gcp
        else {
            each.resource: (
                Source(function=run.name, state="Enabled", batch_size=10, window=0, partial=True, max_concurrency=None, filtered=False),
            )
            if (run := functions.get(each.name))
            else ()
            for each in plan.queues
        },
        stores={
            plan.store.resource: Store(
                state="ACTIVE", keys=None if gcp else {"HASH": "pk S", "RANGE": "sk S"}, ttl="expires" if gcp else "ttl"
            )
        },
        timers={plan.timer.resource: Timer(state="RUNNING" if gcp else "ACTIVE", attempts=None)},
        schedules={
            part.name: Schedule(
                expression=part.expression,
                timezone=part.timezone,
                enabled=True,
                queue=plan.queue(each.queue).resource,
                body=each.body,
                group=each.group or each.tenant,
                undelivered=plan.timer.undelivered,
            )
            for each in plan.schedules
            for part in each.parts
        },
        buckets={plan.bodies.resource: Bucket(days=plan.bodies.days)},
        unread=(),
    )


def changed(seen: Mapping[str, T | None], name: str, **changes: Any) -> dict[str, T | None]:
    """The same with one thing otherwise."""
    there: Any = seen[name]
    return {**seen, name: replace(there, **changes)}


def only(found: tuple[Finding, ...]) -> tuple[str, str, str]:
    (each,) = found
    assert each.consequence
    assert each.fix
    return each.level, each.where, each.what


@pytest.mark.parametrize("target", ["aws-sam", "aws-terraform", "gcp-terraform", "kubernetes"])
@pytest.mark.parametrize(
    "table", [{}, {"environment": {"MODE": "x"}}, {"defaults": {"runs_on": "container"}}, {"defaults": {"runs_on": "none"}}]
)
def test_nothing_is_found_where_all_is_as_planned(target: Target, table: dict[str, Any]) -> None:
    plan, settings = planned(table, target)
    assert findings(plan, settings, as_planned(plan, settings)) == ()


def test_nothing_is_said_of_what_could_not_be_read() -> None:
    plan, settings = planned()
    blank = Observed(
        place="here", queues={}, topics={}, functions={}, sources={}, stores={}, timers={}, schedules=None, buckets={}, unread=()
    )
    assert findings(plan, settings, blank) == ()


def test_what_could_not_be_read_for_one_reason_is_one_finding_that_names_all() -> None:
    plan, settings = planned()
    denied = [Unread("queue", name, f"GetQueueUrl of {name}: access denied") for name in ("shop-texts", "shop-emails")]
    unread = (Unread("table", "t", "timed out"), *denied)
    found = findings(plan, settings, replace(as_planned(plan, settings), unread=unread))
    then = "whether it is right for shop-emails, shop-texts is not known"
    assert [(each.level, each.where, each.what, each.consequence) for each in found] == [
        ("unread", "queue", "could not be read: GetQueueUrl of shop-emails: access denied", then),
        ("unread", "table", "could not be read: timed out", "whether it is right for t is not known"),
    ]


def test_a_queue_beside_the_plan_s_is_told_of_with_what_waits_there() -> None:
    plan, settings = planned()
    seen = replace(as_planned(plan, settings), beside={"shop-dev-old": 2, "shop-dev-empty": 0})
    found = findings(plan, settings, seen)
    assert [(each.level, each.where) for each in found] == [("warning", "queue shop-dev-old"), ("note", "queue shop-dev-empty")]
    assert found[0].what.endswith("; 2 messages wait there")
    assert "cloudq worker --queues old --drain" in found[0].fix


def test_a_guard_against_loops_would_drop_the_retries_of_tasks() -> None:
    plan, settings = planned()
    seen = as_planned(plan, settings)
    found = findings(plan, settings, replace(seen, functions=changed(seen.functions, "shop-dev-emails", loops="Terminate")))
    assert only(found) == ("error", "function shop-dev-emails", "its RecursiveLoop is Terminate, and its tasks send tasks")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"state": "Failed"}, "its state is Failed"),
        ({"architecture": "x86_64"}, "it runs on x86_64, and packages are built for arm64"),
        ({"reserved": 0}, "0 of it may run at once, and its event source asks for up to 5"),
        ({"runtime": "nodejs22.x"}, "its runtime is nodejs22.x"),
        ({"environment": {}}, None),
        ({"runtime": None}, ()),
        ({"state": "Inactive"}, ()),
        ({"loops": None}, ()),
    ],
)
def test_a_function_that_cannot_work_is_found(change: dict[str, Any], what: str | tuple[()] | None) -> None:
    plan, settings = planned()
    seen = as_planned(plan, settings)
    found = findings(plan, settings, replace(seen, functions=changed(seen.functions, "shop-dev-emails", **change)))
    if what is None:
        names = ["CLOUDQ_APP", "CLOUDQ_BROKER", "CLOUDQ_STORE", "CLOUDQ_TIMER"]
        assert [each.what for each in found] == [f"{name} is not set" for name in names]
    else:
        assert [each.what for each in found] == ([what] if what else [])


@pytest.mark.parametrize("broker", ["sqs://eu-west-1/", "pubsub://mine/?prefix=shop-dev-", "nonsense", "sqs://x/?prefix=a&prefix=b"])
def test_a_broker_that_leads_elsewhere_is_found_and_never_shown(broker: str) -> None:
    plan, settings = planned()
    seen = as_planned(plan, settings)
    there = seen.functions["shop-dev-emails"]
    assert there is not None
    environment = {**there.environment, "CLOUDQ_BROKER": broker}
    found = findings(plan, settings, replace(seen, functions=changed(seen.functions, "shop-dev-emails", environment=environment)))
    assert only(found) == ("error", "function shop-dev-emails", "CLOUDQ_BROKER is not as planned")
    assert broker not in str(found)


def test_values_of_the_environment_are_never_shown() -> None:
    plan, settings = planned({"environment": {"MODE": "hunter2"}})
    seen = as_planned(plan, settings)
    there = seen.functions["shop-dev-emails"]
    assert there is not None
    environment = {**there.environment, "MODE": "correct horse"}
    found = findings(plan, settings, replace(seen, functions=changed(seen.functions, "shop-dev-emails", environment=environment)))
    assert only(found)[2] == "MODE is another than in tool.cloudq.environment"
    assert not any(secret in str(found) + repr(seen) for secret in ("hunter2", "correct horse"))


def test_a_secret_that_a_function_does_not_get_is_found() -> None:
    plan, settings = planned({"secrets": {"STRIPE_KEY": "prod/stripe", "OTHER": "prod/other"}})
    seen = as_planned(plan, settings)
    there = seen.functions["shop-dev-emails"]
    assert there is not None
    for given, missing in (
        ({"CLOUDQ_SECRETS": '{"STRIPE_KEY": "prod/stripe", "OTHER": "prod/other"}'}, None),
        ({"CLOUDQ_SECRETS": '{"OTHER": "prod/other"}'}, "STRIPE_KEY"),
        ({"CLOUDQ_SECRETS": "{"}, "OTHER, STRIPE_KEY"),
        ({"OTHER": "x"}, "STRIPE_KEY"),
    ):
        functions = changed(seen.functions, "shop-dev-emails", environment={**there.environment, **given})
        functions = changed(functions, "shop-dev-texts", environment={**there.environment, "STRIPE_KEY": "", "OTHER": ""})
        functions = changed(functions, "shop-dev-orders-fifo", environment={**there.environment, "STRIPE_KEY": "", "OTHER": ""})
        found = findings(plan, settings, replace(seen, functions=functions))
        assert [each.what for each in found] == ([f"it is handed no {missing}, which tool.cloudq.secrets names"] if missing else [])


def test_a_function_that_is_gone_is_not_missed_twice() -> None:
    plan, settings = planned()
    seen = as_planned(plan, settings)
    gone = {**seen.functions, "shop-dev-emails": None}
    found = findings(plan, settings, replace(seen, functions=gone, sources={**seen.sources, "shop-dev-emails": ()}))
    assert only(found)[1:] == ("function shop-dev-emails", "it is not there")


def test_a_dead_letter_queue_that_several_share_is_told_of_once() -> None:
    plan, settings = planned()
    seen = as_planned(plan, settings)
    assert (
        only(findings(plan, settings, replace(seen, queues={**seen.queues, "shop-dev-letters": None})))[1]
        == "dead letters shop-dev-letters"
    )
    found = findings(plan, settings, replace(seen, queues=changed(seen.queues, "shop-dev-letters", waiting=2)))
    assert only(found) == ("note", "dead letters shop-dev-letters", "2 wait there")


def test_the_order_that_a_queue_keeps_is_that_of_its_plan() -> None:
    plan, settings = planned()
    seen = as_planned(plan, settings)
    assert (
        only(findings(plan, settings, replace(seen, queues=changed(seen.queues, "shop-dev-emails", fifo=True))))[2] == "it keeps an order"
    )
    found = findings(plan, settings, replace(seen, queues=changed(seen.queues, "shop-dev-orders-dlq.fifo", fifo=False)))
    assert only(found)[:2] == ("error", "dead letters shop-dev-orders-dlq.fifo")


def test_on_an_ordered_queue_retries_are_deliveries() -> None:
    plan, settings = planned({"queues": {"orders.fifo": {"max_receives": 30}}})
    seen = as_planned(plan, settings)
    (found,) = findings(plan, settings, replace(seen, queues=changed(seen.queues, "shop-dev-orders.fifo", max_receives=12)))
    assert (found.level, found.consequence) == ("warning", "retries end too soon: here each is a delivery, also of those that wait behind")


def test_more_than_is_needed_is_no_fault() -> None:
    plan, settings = planned()
    seen = as_planned(plan, settings)
    queues = changed(seen.queues, "shop-dev-emails", visibility=43_200, max_receives=1_000)
    assert findings(plan, settings, replace(seen, queues=queues)) == ()


def test_messages_that_outlive_the_store_run_again() -> None:
    plan, settings = planned()
    assert plan.store is not None
    plan = replace(plan, store=replace(plan.store, result_expires=86_400 * 5))
    seen = as_planned(plan, settings)
    found = findings(plan, settings, replace(seen, queues=changed(seen.queues, "shop-dev-emails", retention=86_400 * 14)))
    assert only(found)[2] == "messages are kept for 14d, and the store forgets after 5d"


@pytest.mark.parametrize("key", [None, "arn:aws:kms:eu-west-1:123456789012:key/other"])
def test_another_key_than_the_settings_name_is_found(key: str | None) -> None:
    plan, settings = planned({"aws": {"kms_key": KEY}})
    seen = as_planned(plan, settings)
    assert findings(plan, settings, seen) == ()
    found = findings(plan, settings, replace(seen, queues=changed(seen.queues, "shop-dev-emails", key=key)))
    assert only(found) == ("warning", "queue shop-dev-emails", f"it is encrypted with {key or 'a key of the provider'}, and not with {KEY}")


def test_a_queue_that_was_there_before_is_asked_for_what_matters_only() -> None:
    arn = "arn:aws:sqs:eu-west-1:123456789012:"
    own = {"existing": f"{arn}shop-dev-emails", "runs_on": "none", "existing_dead_letter": f"{arn}shop-dev-letters"}
    plan, settings = planned({"queues": {"emails": own, "texts": {"existing_dead_letter": f"{arn}shop-dev-letters"}}})
    seen = as_planned(plan, settings)
    fine = changed(seen.queues, "shop-dev-emails", encrypted=False, visibility=30, retention=86_400 * 5)
    fine = changed(fine, "shop-dev-letters", encrypted=False, retention=86_400 * 5)
    assert findings(plan, settings, replace(seen, queues=fine)) == ()
    worse = changed(fine, "shop-dev-emails", visibility=29, max_receives=None, dead_letters=None)
    assert [each.what for each in findings(plan, settings, replace(seen, queues=worse))] == [
        "it has no RedrivePolicy",
        "messages are hidden for 29s, and its longest task has 30s",
    ]


def test_a_schedule_that_is_nowhere_but_in_the_code_is_told_of_once_and_not_beside_its_group() -> None:
    plan, settings = planned()
    seen = replace(as_planned(plan, settings), schedules={})
    assert only(findings(plan, settings, seen)) == ("error", "schedule mail", "it is not there")
    found = findings(plan, settings, replace(seen, timers={"shop-dev": None}))
    assert only(found)[1] == "schedule group shop-dev"


def test_a_message_is_compared_by_what_it_says() -> None:
    plan, settings = planned()
    seen = as_planned(plan, settings)
    assert seen.schedules is not None
    (name,) = seen.schedules
    spaced = changed(seen.schedules, name, body=plan.schedules[0].body.replace(",", " , "))
    assert findings(plan, settings, replace(seen, schedules=spaced)) == ()  # type: ignore[arg-type]


def test_a_detached_subscription_is_found() -> None:
    plan, settings = planned({}, "gcp-terraform")
    seen = as_planned(plan, settings)
    queue = seen.queues["shop-dev-emails"]
    assert queue is not None
    assert queue.subscription is not None
    detached = replace(queue.subscription, detached=True)
    found = findings(plan, settings, replace(seen, queues=changed(seen.queues, "shop-dev-emails", subscription=detached)))
    assert only(found) == ("error", "queue shop-dev-emails", "it is detached")


def test_what_was_made_by_hand_is_found_where_the_app_s_seams_lead() -> None:
    plan, settings = planned({"queues": {"texts": {"existing": "arn:aws:sqs:eu-west-1:123456789012:shop-dev-texts"}}})
    urls = {
        "broker": "sqs://us-east-1/?prefix=mine-",
        "store": "dynamodb://us-east-1/results",
        "timer": "eventbridge://us-east-1/later?role=r&dead_letter=arn:aws:sqs:us-east-1:123456789012:unsent",
    }
    used, where = as_used(plan, settings, urls)
    assert [each.resource for each in used.queues] == ["mine-emails", "mine-orders.fifo", "shop-dev-texts"]
    assert [each.dead_letters.resource for each in used.queues] == ["mine-letters", "mine-orders-dlq.fifo", "mine-letters"]
    assert used.store is not None
    assert used.timer is not None
    assert (used.store.resource, used.timer.resource, used.timer.undelivered, used.bodies) == ("results", "later", "unsent", None)
    assert where.aws.region == "us-east-1"
    bare, _ = as_used(plan, settings, {"broker": "sqs:///"})
    assert (bare.prefix, bare.queue("emails").resource, bare.store, bare.timer) == ("", "emails", None, None)
    with pytest.raises(ConfigError, match="set CLOUDQ_BROKER as its hosts have it"):
        as_used(plan, settings, {"broker": "memory://"})


def test_on_google_cloud_the_broker_names_the_project() -> None:
    plan, settings = planned({}, "gcp-terraform")
    urls = {"broker": "pubsub://theirs/", "timer": "cloudtasks://theirs/europe-west1/later?service_account=x"}
    used, where = as_used(plan, settings, urls)
    assert used.timer is not None
    assert (used.queue("emails").resource, used.timer.resource, where.gcp.project) == ("emails", "later", "theirs")


def test_the_worst_comes_first() -> None:
    plan, settings = planned()
    seen = as_planned(plan, settings)
    queues = changed(seen.queues, "shop-dev-emails", visibility=1, encrypted=False)
    queues = changed(queues, "shop-dev-letters", waiting=1)
    found = findings(plan, settings, replace(seen, queues=queues, unread=(Unread("table", "t", "no"),)))
    assert [each.level for each in found] == ["error", "warning", "note", "unread"]
