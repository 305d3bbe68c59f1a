"""What is wrong with a plan: every problem at once, each with its fix; and `cloudq plan`, which shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudq import CloudQ, Retry, chain, cron, every
from cloudq.config import Queue
from cloudq.deploy.checks import check
from cloudq.deploy.plan import plan_of
from cloudq.deploy.problems import Problem
from cloudq.deploy.settings import Target, parse
from cloudq.durations import text


@pytest.fixture(autouse=True)
def no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    for seam in ("BROKER", "STORE", "TIMER"):
        monkeypatch.delenv(f"CLOUDQ_{seam}", raising=False)


def nothing() -> None: ...


def an_app(queue: str = "q", **options: Any) -> CloudQ:
    app = CloudQ("shop")
    app.reference = "shop:app"
    app.task(**{"name": "t", "queue": queue, "timeout": "30s", **options})(nothing)
    return app


TOPIC = "arn:aws:sns:eu-west-1:123456789012:alarms"
IMAGE = "registry.example.com/shop:1.2.3"
CHANNEL = "projects/shop-123456/notificationChannels/1"
GCP: dict[str, Any] = {"gcp": {"project": "shop-123456", "region": "europe-west1"}}


def found(app: CloudQ, table: dict[str, Any] | None = None, target: Target = "aws-sam") -> list[Problem]:
    own = {"alarms_topic": CHANNEL, "image": IMAGE} if target == "gcp-terraform" else {"alarms_topic": TOPIC}
    settings = parse({**own, **(table or {})}, "dev")
    return list(check(plan_of(app, settings, target=target, stage="dev"), settings))


def only(app: CloudQ, table: dict[str, Any] | None = None, target: Target = "aws-sam") -> Problem:
    (problem,) = found(app, table, target)
    return problem


@pytest.mark.parametrize("target", ["aws-sam", "aws-terraform", "gcp-terraform", "kubernetes", "compose"])
def test_a_sound_app_has_no_problem_on_any_target(target: Target) -> None:
    aws = {"region": "eu-west-1", "account": "123456789012"}
    table: dict[str, Any] = {"terraform": {**GCP, "aws": aws}, "kubernetes": {"aws": aws, "image": IMAGE}}.get(
        target.rpartition("-")[2], {}
    )
    assert found(an_app(retry=Retry(), schedule=cron("0 9 * * 1-5", tz="Europe/Berlin")), table, target) == []


def test_every_problem_is_told_at_once_errors_first() -> None:
    app = an_app(timeout="20m", unique=True)
    app.schedule("often", app["t"].s(), every("90s"))
    table = {"store": False, "queues": {"q": {"batch_size": 11, "visibility": 30, "memory": 64}, "qq": {}}, "log_retention": 31}
    problems = found(app, table)
    assert {(each.where, each.level) for each in problems} == {
        ("task t", "error"),
        ("schedule often", "error"),
        ("tool.cloudq.queues.q.batch_size", "error"),
        ("tool.cloudq.queues.q.visibility", "error"),
        ("tool.cloudq.queues.q.memory", "error"),
        ("tool.cloudq.queues.qq", "error"),
        ("tool.cloudq.log_retention", "error"),
    }
    assert len(problems) == 8, "the task has two"
    assert all(each.what and each.fix for each in problems)
    levels = [each.level for each in [*problems, *found(an_app(timeout=None), {"queues": {"x": {}}})]]
    assert levels == ["error"] * 9 + ["warning"]


@pytest.mark.parametrize(
    ("target", "timeout", "limit"), [("aws-sam", 899, "899s"), ("gcp-terraform", 540, "9m")]
)  # fmt: skip
def test_a_task_that_takes_longer_than_a_function_may_is_sent_to_a_container(target: Target, timeout: int, limit: str) -> None:
    table = GCP if target == "gcp-terraform" else {}
    assert found(an_app(timeout=timeout), table, target) == []
    problem = only(an_app(timeout=timeout + 1), table, target)
    assert f"over the {limit} of a function" in problem.what
    assert problem.fix == 'set runs_on = "container" in tool.cloudq.queues.q'
    longer = found(an_app(timeout=timeout + 1), {**table, "queues": {"q": {"runs_on": "container", "memory": 512}}}, target)
    assert [each for each in longer if each.level == "error"] == []


def test_a_task_must_fit_the_time_that_settings_give_its_function() -> None:
    problem = only(an_app(timeout=60), {"queues": {"q": {"timeout": 60}}})
    assert "does not fit its function" in problem.what
    assert found(an_app(timeout=60), {"queues": {"q": {"timeout": 62}}}) == []


def test_a_task_without_a_limit_on_a_function_is_a_warning_and_on_a_container_none() -> None:
    assert only(an_app(timeout=None)).level == "warning"
    assert found(an_app(timeout=None), {"queues": {"q": {"runs_on": "container"}}}) == []


def test_messages_must_be_hidden_for_six_times_the_function_s_timeout() -> None:
    assert "set 360 or more" in only(an_app(), {"queues": {"q": {"visibility": 359}}}).fix
    assert found(an_app(), {"queues": {"q": {"visibility": 360}}}) == []
    assert "set 365 or more" in only(an_app(), {"queues": {"q": {"visibility": 360, "batch_window": 5}}}).fix


@pytest.mark.parametrize(
    ("queue", "settings", "key"),
    [
        ("q", {"batch_size": 11}, "batch_size"),
        ("q", {"batch_size": 10_001, "batch_window": 1}, "batch_size"),
        ("q", {"batch_window": 301}, "batch_window"),
        ("q.fifo", {"batch_size": 11}, "batch_size"),
        ("q.fifo", {"batch_window": 1}, "batch_window"),
        ("q", {"max_concurrency": 1}, "max_concurrency"),
        ("q", {"max_concurrency": 9, "reserved_concurrency": 8}, "reserved_concurrency"),
        ("q", {"reserved_concurrency": 4}, "reserved_concurrency"),
        ("q", {"memory": 127}, "memory"),
        ("q", {"timeout": 901}, "timeout"),
        ("q", {"retention": "15d"}, "retention"),
        ("q", {"max_receives": 1_001}, "max_receives"),
        ("q", {"sends_to": ["elsewhere"]}, "sends_to"),
        ("q", {"alarm_age": "5d"}, "alarm_age"),
        ("q", {"runs_on": "container", "cpu": 3.0}, "cpu"),
        ("q", {"runs_on": "container", "memory": 4096}, "memory"),
        ("q", {"runs_on": "container", "min_workers": 11}, "min_workers"),
        ("q", {"existing": "arn:aws:sqs:eu-west-1:123456789012:other"}, "existing"),
    ],
)
def test_what_a_queue_s_settings_ask_beyond_the_limits_of_aws_is_told(queue: str, settings: dict[str, Any], key: str) -> None:
    errors = [each for each in found(an_app(queue), {"timer": True, "queues": {queue: settings}}) if each.level == "error"]
    quoted = f'"{queue}"' if "." in queue else queue
    assert f"tool.cloudq.queues.{quoted}.{key}" in {each.where for each in errors}


def test_fewer_deliveries_than_twice_the_crash_cap_are_a_warning() -> None:
    problem = only(an_app(), {"queues": {"q": {"max_receives": 9}}})
    assert (problem.level, "set 10 or more" in problem.fix) == ("warning", True)


def test_an_ordered_queue_must_hold_its_tasks_retries() -> None:
    table: dict[str, Any] = {"timer": True, "queues": {"q.fifo": {"max_receives": 12}}}
    assert "12 of them do not hold the 7 retries of 't'" in only(an_app("q.fifo", retry=Retry(max_retries=7)), table).what
    assert found(an_app("q.fifo", retry=Retry(max_retries=6)), table) == []
    assert only(an_app("q.fifo", retry=Retry(max_retries=None)), {"timer": True}).level == "warning"


def test_several_messages_at_once_of_an_ordered_queue_without_a_store_are_a_warning() -> None:
    table: dict[str, Any] = {"timer": True, "queues": {"q.fifo": {"batch_size": 5}}}
    problem = only(an_app("q.fifo"), table)
    assert (problem.level, problem.where) == ("warning", 'tool.cloudq.queues."q.fifo".batch_size')
    assert found(an_app("q.fifo"), table | {"store": True}) == []


def test_a_delay_on_an_ordered_queue_needs_the_timer() -> None:
    app = an_app("q.fifo")
    assert "no timer" in only(app).what
    app.schedule("flow", chain(app["t"].si().set(ordering_key="a"), app["t"].si().set(ordering_key="a", countdown=60)), every("1h"))
    assert found(app) == []
    assert any("waits 1m, and the ordered queue 'q.fifo' takes no delay" in each.what for each in found(app, {"timer": False}))


def test_a_schedule_to_an_ordered_queue_needs_a_group_and_cannot_be_google_s() -> None:
    app = an_app("q.fifo")
    app.schedule("s", app["t"].s(), every("1h"))
    assert "without a group" in only(app).what
    assert "Cloud Scheduler cannot send in order" in only(app, GCP, "gcp-terraform").what


def test_a_schedule_that_the_target_cannot_say_is_told_with_the_nearest_that_it_can() -> None:
    app = an_app()
    app.schedule("s", app["t"].s(), every("7m"))
    assert found(app) == []
    assert "the nearest that can: every 6m" in only(app, GCP, "gcp-terraform").what


def test_a_fire_in_the_hours_of_a_change_of_clocks_is_a_warning_and_on_google_nobody_knows() -> None:
    app = an_app(schedule=cron("30 2 * * *", tz="Europe/Berlin"))
    on_aws, on_google = found(app), found(app, GCP, "gcp-terraform")
    for problems in (on_aws, on_google):
        assert [(each.where, each.level) for each in problems] == [("schedule t", "warning")] * 2
        assert {each.fix for each in problems} == {"take a time outside 02:00 to 03:00, or tz='UTC'"}
    assert on_aws[0].what.endswith("because clocks go forward: nothing fires then")
    assert all(each.what.endswith(": Cloud Scheduler may fire then, or not") for each in on_google)
    assert [each.what for each in found(an_app(schedule=cron("*/7 * * * *")))] == ["minute */7 begins anew at 0, 4m after 56"]


def test_a_queue_of_another_name_is_named_by_its_arn_in_the_code() -> None:
    arn = "arn:aws:sqs:eu-west-1:123456789012:theirs"
    problem = only(an_app(), {"queues": {"q": {"existing": arn}}})
    assert problem.fix.endswith(f'or take this out and name it by its ARN in the code, queue="{arn}"')
    assert found(an_app(queue=arn)) == []


def test_kubernetes_is_not_told_of_alarms_that_another_target_makes() -> None:
    settings = parse({"aws": {"region": "eu-west-1", "account": "123456789012"}, "image": IMAGE}, "dev")
    assert check(plan_of(an_app(), settings, target="kubernetes", stage="dev"), settings) == ()


def test_a_queue_that_nobody_consumes_and_one_that_nobody_uses_are_warnings() -> None:
    assert "nobody consumes it: 1 tasks go there" in only(an_app(), {"queues": {"q": {"runs_on": "none"}}}).what
    app = an_app()
    app.declare_queue("idle")
    assert "no task goes there" in only(app).what


def test_a_queue_that_the_app_has_not_is_told_with_the_nearest() -> None:
    assert only(an_app("emails"), {"queues": {"email": {}}}).fix == "did you mean 'emails'?"


@pytest.mark.parametrize("name", ["a" * 80, "übung", 'q"; DROP', "${AWS::StackName}", "a b", "q\nr", "!Ref x", "q.fifo.fifo"])
def test_a_name_that_sqs_cannot_have_is_told(name: str) -> None:
    problems = [each for each in found(an_app(name)) if "can be named" in each.what]
    assert len(problems) == 2, "the queue's, and that of its dead letters"


def test_two_queues_whose_hosts_would_have_one_name_are_told() -> None:
    app = an_app("Emails")
    app.task(name="u", queue="emails", timeout=1)(nothing)
    assert "'shop-dev-emails', like that of the queue Emails" in only(app).what


def test_a_queue_must_not_take_the_name_of_a_role_or_of_the_timer_s_queue() -> None:
    assert "the name of a role" in only(an_app("operator"), {"prefix": ""}).what
    assert "the name of a role" in only(an_app("scheduler"), {"timer": True}).what
    assert "leaves what it could not send" in only(an_app("undelivered"), {"timer": True}).what
    sharing = an_app()
    sharing.queues["q"] = Queue("q", dead_letter="undelivered")
    assert "leaves what it could not send" in only(sharing, {"timer": True}).what
    container = {"runs_on": "container", "memory": 512}
    assert "the name of a role" in only(an_app("execution"), {"queues": {"execution": container}}).what
    assert found(an_app("execution")) == []


def test_dead_letters_must_not_be_worked_off_and_share_a_queue_ten_at_most() -> None:
    app = an_app()
    app.task(name="u", queue="q-dlq", timeout=1)(nothing)
    assert any("which is worked off" in each.what for each in found(app))
    many = CloudQ("shop", queues=[Queue(f"q{index}", "dead") for index in range(11)])
    assert sum("SQS allows 10" in each.what for each in found(many)) == 11


def test_two_tasks_of_one_name_are_told() -> None:
    settings = parse({"alarms_topic": TOPIC}, "dev")
    plan = plan_of(an_app(), settings, target="aws-sam", stage="dev")
    (problem,) = check(replace(plan, tasks=plan.tasks * 2), settings)[:1]
    assert "2 tasks have this name" in problem.what


def test_a_seam_that_the_code_sets_is_told_because_no_environment_changes_it() -> None:
    app = CloudQ("shop", broker="memory://")
    app.reference = "shop:app"
    assert "the code sets the broker (memory)" in only(app).what
    assert "the code sets the broker (memory)" in only(app, target="compose").what


def test_kubernetes_needs_an_image_and_the_account_whose_queues_it_names() -> None:
    assert [each.where for each in found(an_app(), target="kubernetes")] == [
        "tool.cloudq.aws.region",
        "tool.cloudq.image",
        "tool.cloudq.aws.account",
    ]
    assert [each.where for each in found(an_app(), GCP, "kubernetes")] == ["tool.cloudq.image"]
    wrong = {"image": "-Shop", "aws": {"account": "123456789012 ", "region": "eu-west-1"}}
    assert {each.where for each in found(an_app(), wrong, "kubernetes")} == {"tool.cloudq.image", "tool.cloudq.aws.account"}
    # a label's value has 63 characters, a role's name 64
    name, rest = "q" * 55, {"image": IMAGE, "aws": {"account": "123456789012", "region": "eu-west-1"}}
    assert found(an_app(name), target="aws-sam") == []
    assert "a name has 1 to 63 characters" in only(an_app(name), rest, "kubernetes").what


def test_compose_has_the_limits_of_the_queue_server_that_it_runs() -> None:
    assert (
        "is not ordered, and its name ends in .fifo" in found(an_app("q.fifo"), {"queues": {"q.fifo": {"fifo": False}}}, "compose")[0].what
    )
    assert "a name is 1 to 80 letters" in found(an_app("a:b"), target="compose")[0].what
    assert "named 'queues', which is the name of another service" in only(an_app("queues"), {"prefix": ""}, "compose").what
    app = an_app()
    app.schedule("late", chain(app["t"].si(), app["t"].si().set(delay="1h")), every("1d"))
    assert "compose has no timer" in only(app, target="compose").fix
    assert (problem := only(an_app(), {"bodies": True}, "compose")).level == "warning"
    assert "1 MiB" in problem.what


def test_what_an_app_uses_is_in_its_own_region() -> None:
    arn = "arn:aws:{}:{}:123456789012:{}".format
    app = an_app()

    def table(region: str) -> dict[str, Any]:
        queue = {"existing": arn("sqs", region, "shop-dev-q"), "existing_dead_letter": arn("sqs", region, "shop-dev-q-dlq")}
        return {
            "aws": {"region": "eu-west-1", "kms_key": arn("kms", region, "key/1")},
            "alarms_topic": arn("sns", region, "alarms"),
            "secrets": {"STRIPE": arn("secretsmanager", region, "secret:stripe-AbCdEf"), "OTHER": "prod/other"},
            "queues": {"q": queue},
        }

    assert found(app, table("eu-west-1")) == []
    assert {(each.where, each.what) for each in found(app, table("eu-west-2"))} == {
        (f"tool.cloudq.{where}", "it is in eu-west-2, and the app in eu-west-1")
        for where in ("aws.kms_key", "alarms_topic", "secrets.STRIPE", "queues.q.existing", "queues.q.existing_dead_letter")
    }


def test_what_defaults_say_of_all_queues_is_told_once() -> None:
    app = an_app()
    app.task(name="u", queue="r", timeout="30s")(nothing)
    assert only(app, {"defaults": {"retention": "15d"}}).where == "tool.cloudq.defaults.retention"
    both = found(app, {"defaults": {"retention": "15d"}, "queues": {"q": {"retention": "16d"}}})
    assert {each.where for each in both} == {"tool.cloudq.defaults.retention", "tool.cloudq.queues.q.retention"}


def test_a_bad_arn_tag_or_network_is_told() -> None:
    table: dict[str, Any] = {
        "alarms_topic": "alarms",
        "tags": {"aws:x": "1", "ok": "<&>", "Kosten stelle": "a+b"},
        "aws": {"kms_key": "alias/x", "permission_boundary": "p", "region": "Frankfurt", "subnets": ["vpc-1"]},
    }
    assert {each.where for each in found(an_app(), table)} == {
        "tool.cloudq.aws.subnets",
        "tool.cloudq.alarms_topic",
        'tool.cloudq.tags."aws:x"',
        "tool.cloudq.tags.ok",
        "tool.cloudq.aws.kms_key",
        "tool.cloudq.aws.permission_boundary",
        "tool.cloudq.aws.region",
        "tool.cloudq.aws.security_groups",
    }


def test_secrets_are_named_and_never_written() -> None:
    table: dict[str, Any] = {
        "environment": {"CLOUDQ_SIGNING_KEYS": "k:hunter2", "DB": "postgres://u:hunter2@db/x", "API_TOKEN": "hunter2", "SAFE": "x"},
        "secrets": {"OTHER": "hunter2 is a value", "SAFE": "prod/safe", "CLOUDQ_APP": "x", "AWS_REGION": "x", "1": "x"},
    }
    problems = found(an_app(), table)
    assert {each.where.removeprefix("tool.cloudq."): each.level for each in problems} == {
        "environment.CLOUDQ_SIGNING_KEYS": "error",
        "environment.DB": "error",
        "environment.API_TOKEN": "warning",
        "secrets.OTHER": "error",
        "secrets.SAFE": "error",
        "secrets.CLOUDQ_APP": "error",
        "secrets.AWS_REGION": "error",
        "secrets.1": "error",
    }
    assert not any("hunter2" in str(each) for each in problems)
    kms: dict[str, Any] = {"environment": {"CLOUDQ_ENCRYPTION_KEYS": "k:kms://eu-west-1/alias/shop"}}
    assert found(an_app(), kms) == []
    assert "Lambda takes 4,096" in only(an_app(), {"environment": {"BIG": "x" * 3_500}}).what


def test_terraform_needs_a_region_on_aws() -> None:
    assert only(an_app(), target="aws-terraform").where == "tool.cloudq.aws.region"


def test_google_needs_a_project_and_a_region() -> None:
    assert {each.where for each in found(an_app(), target="gcp-terraform")} == {"tool.cloudq.gcp.project", "tool.cloudq.gcp.region"}


def test_a_target_without_functions_runs_containers_and_refuses_a_function() -> None:
    assert (
        "kubernetes has no functions"
        in only(an_app(), {**GCP, "image": IMAGE, "queues": {"q": {"runs_on": "function"}}}, "kubernetes").what
    )


@pytest.mark.parametrize(
    ("name", "sound"),
    [
        ("prod/stripe", True),
        ("arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/stripe-AbCdEf", True),
        ("arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/stripe", False),
        ("arn:aws:ssm:eu-west-1:123456789012:parameter/prod-AbCdEf", False),
    ],
)
def test_an_arn_of_a_secret_is_whole(name: str, sound: bool) -> None:
    problems = found(an_app(), {"secrets": {"STRIPE_KEY": name}})
    assert [each.where for each in problems] == ([] if sound else ["tool.cloudq.secrets.STRIPE_KEY"])


def test_containers_on_fargate_need_a_network_and_are_told_when_they_are_ended() -> None:
    table: dict[str, Any] = {"queues": {"q": {"runs_on": "container"}}, "aws": {"region": "eu-west-1"}}
    assert only(an_app(), table, "aws-terraform").where == "tool.cloudq.aws.subnets"
    table["aws"] |= {"subnets": ["subnet-1"], "security_groups": ["sg-1"]}
    assert found(an_app(timeout=110), table, "aws-terraform") == []
    problem = only(an_app(timeout=111), table, "aws-terraform")
    assert (problem.level, "ends a container 2m after" in problem.what) == ("warning", True)


@given(name=st.text(min_size=1), value=st.text())
def test_whatever_users_write_is_checked_and_never_falls_over(name: str, value: str) -> None:
    app = an_app(name)
    app.schedule("s", app["t"].s(), every("7m"))
    table: dict[str, Any] = {
        "environment": {name: value},
        "secrets": {value: name},
        "tags": {name: value},
        "prefix": value,
        "queues": {name: {"existing": value or "x", "sends_to": [value]}},
        "aws": {"kms_key": value or "x"},
    }
    for target in ("aws-sam", "gcp-terraform", "compose"):
        for problem in found(app, table, target):
            assert problem.what
            assert problem.fix


@pytest.mark.parametrize(("seconds", "said"), [(0, "0s"), (90, "90s"), (900, "15m"), (899.5, "899.5s"), (86_400, "1d"), (90_000, "25h")])
def test_durations_are_said_as_settings_read_them(seconds: float, said: str) -> None:
    assert text(seconds) == said
    assert parse({"defaults": {"timeout": said}}, "dev").defaults.timeout == seconds


# ---------------------------------------------------------------------- the command

SHOP = """
from cloudq import CloudQ, cron
app = CloudQ("shop")
@app.task(queue="emails", timeout="30s", schedule=cron("0 9 * * 1-5", tz="Europe/Berlin"))
def mail(): ...
"""


def cloudq(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDQ_")}
    command = [sys.executable, "-W", "error", "-m", "cloudq.cli", "plan", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_prints_the_plan_and_leaves_2_with_every_problem(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP, "utf-8")
    settings = tmp_path / "pyproject.toml"
    settings.write_text(f'[tool.cloudq]\napp = "shop:app"\ntarget = "aws-sam"\nalarms_topic = "{TOPIC}"\n', "utf-8")
    shown = cloudq(tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "names of queues begin with shop-dev-" in shown.stdout
    assert "emails-dlq" in shown.stdout
    assert "cron(0 9 ? * 2-6 *) Europe/Berlin" in shown.stdout
    assert "batch 10" in shown.stdout
    beside = cloudq(tmp_path, "kubernetes").stdout
    assert "all that is beside them are made by aws-terraform or aws-sam" in beside
    on_one_machine = cloudq(tmp_path, "compose").stdout
    assert ("by a worker here" in on_one_machine, "cannot be said" in on_one_machine) == (True, False)
    answered = json.loads(cloudq(tmp_path, "compose", "--json").stdout)
    assert (answered["plan"]["target"], answered["problems"]) == ("compose", [])
    settings.write_text(settings.read_text("utf-8") + '[tool.cloudq.gcp]\nproject = "shop-1"\nregion = "europe-west1"\n', "utf-8")
    assert "10 at once" in cloudq(tmp_path, "gcp-terraform").stdout
    settings.write_text(
        settings.read_text("utf-8") + '[tool.cloudq.queues.emails]\nmemroy = 1\n[tool.cloudq.queues."\\u001b[31m"]\nx = 1\n', "utf-8"
    )
    refused = cloudq(tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "did you mean 'memory'?" in refused.stderr
    assert "\x1b" not in refused.stderr
    assert "2 problems" in refused.stderr
    assert cloudq(tmp_path, "--json").returncode == 2


def test_on_a_terminal_of_80_columns_nothing_of_a_plan_is_cut(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP, "utf-8")
    (tmp_path / "pyproject.toml").write_text(f'[tool.cloudq]\napp = "shop:app"\nalarms_topic = "{TOPIC}"\n', "utf-8")
    wide = cloudq(tmp_path, "aws-sam").stdout
    terminal, output = os.openpty()
    environment = {**{name: value for name, value in os.environ.items() if not name.startswith("CLOUDQ_")}, "TERM": "dumb"}  # 80 columns
    command = [sys.executable, "-m", "cloudq.cli", "plan", "aws-sam"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.DEVNULL) as process:
        os.close(output)
        told = bytearray()
        while chunk := _read(terminal):
            told += chunk
        assert process.wait(60) == 0
    os.close(terminal)
    lines = told.decode().splitlines()
    assert max(map(len, lines)) <= 80
    assert sorted(" ".join(lines).split()) == sorted(wide.split())


def _read(terminal: int) -> bytes:
    """What a program writes to its terminal; nothing once it has ended."""
    try:
        return os.read(terminal, 65_536)
    except OSError:
        return b""
