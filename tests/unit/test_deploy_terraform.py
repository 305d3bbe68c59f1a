"""The data of the Terraform module: all that it declares, all that the plan says, nothing else, and the same bytes each time.

``tests/infra/snapshots/aws_terraform`` has the quickstart's, for readers. ``UPDATE_SNAPSHOTS=1 pytest tests/unit/test_deploy_terraform.py``
writes it anew.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import cloudq_templates
from cloudq.deploy.aws_terraform import values
from cloudq.deploy.plan import plan_of
from cloudq.deploy.settings import QueueSettings, Settings, parse
from tests.infra import apps

DATA: Final = "cloudq.auto.tfvars.json"
YOURS: Final = {"package", "image", "assign_public_ip"}
APPS: Final = {name: make() for name, make in apps.APPS.items()}
SNAPSHOT: Final = Path(__file__).parents[1] / "infra" / "snapshots" / "aws_terraform" / DATA


def settings_of(name: str, *changes: Mapping[str, Any]) -> dict[str, Any]:
    table = deepcopy(apps.settings_of(name, "aws-terraform"))
    for each in changes:
        merge(table, each)
    return table


def merge(table: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict) and key not in ("environment", "tags", "secrets"):
            merge(table[key], value)
        else:
            table[key] = value


def made(name: str = "everything", change: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The module's data for an app, with a change of its settings, which may not be allowed."""
    settings = parse(settings_of(name, change or {}), "dev")
    data: dict[str, Any] = values(plan_of(APPS[name], settings, target="aws-terraform", stage="dev"), settings)["variables"]
    return data


def rendered(name: str = "everything", change: Mapping[str, Any] | None = None) -> dict[str, str]:
    return cloudq_templates.render("aws_terraform", {"variables": made(name, change)})


def hcl(files: Mapping[str, str]) -> str:
    return "".join(text for name, text in sorted(files.items()) if name.endswith(".tf"))


def attributes(declared: str) -> set[str]:
    """The names of the attributes that variables' objects have."""
    return set(re.findall(r"[({,\n]\s*(\w+) += (?:optional\()?(?:string|number|bool|map|list)\b", declared)) - {"type"}


def test_the_data_has_every_variable_that_the_module_declares_but_the_user_s_own() -> None:
    files = rendered("quickstart")
    declared = set(re.findall(r'^variable "(\w+)"', files["variables.tf"], re.MULTILINE))
    assert json.loads(files[DATA]).keys() == declared - YOURS
    assert json.loads(rendered("everything")[DATA]).keys() == declared - YOURS | {"image"}
    text = hcl(files)
    assert set(re.findall(r"\bvar\.(\w+)", text)) == declared


def test_whatever_the_module_declares_of_a_variable_s_objects_it_uses_and_the_data_has() -> None:
    files = rendered()
    names = attributes(files["variables.tf"])
    assert {"visibility", "backlog_per_worker", "statements", "undelivered", "request"} <= names
    used = hcl({name: text for name, text in files.items() if name != "variables.tf"})
    assert {name for name in names if not re.search(rf"\.{name}\b", used)} - {"Sid", "Effect", "Action", "Resource", "Condition"} == set()
    given = set(re.findall(r'"(\w+)":', files[DATA]))
    assert names - given == set()


def test_two_runs_give_the_same_bytes() -> None:
    assert rendered() == rendered()


def test_the_quickstart_s_data_is_as_readers_find_it() -> None:
    text = rendered("quickstart")[DATA]
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.parent.mkdir(parents=True, exist_ok=True)
        SNAPSHOT.write_text(text, "utf-8")
    assert text == SNAPSHOT.read_text("utf-8")


# ---------------------------------------------------------------------- what a setting changes


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting, values that it may have, and a pattern of the data's keys that it changes, each with dots between."""

    at: str
    values: st.SearchStrategy[Any]
    changes: str


TEXTS = st.dictionaries(st.text(), st.text(), max_size=3)
KEYS = st.sampled_from([f"arn:aws:kms:eu-west-1:123456789012:key/{each}" for each in "ab"])
QUEUES = st.sampled_from([f"arn:aws:sqs:eu-west-1:{each * 12}:q" for each in "12"])
IMAGES = st.sampled_from(["a", "123456789012.dkr.ecr.eu-west-1.amazonaws.com/a:1"])
ROLES = r"roles\.[^.]+\.statements"
HOSTS = r"(functions|containers|roles|alarms)\..*"
FUNCTION, QUEUE, SERVICE = r"functions\.shop-dev-emails", r"queues\.emails", r"containers\.shop-dev-reports"
TICKS = r"schedules\.[^.]+(\..*)?\.(body|request)"
SETTINGS: Final = (
    Setting("environment", TEXTS, "environment"),
    Setting("secrets", st.dictionaries(st.text("ABC", min_size=1), st.text("abc/", min_size=1), max_size=2), rf"secrets|{ROLES}"),
    Setting("tags", TEXTS, "tags"),
    Setting("log_retention", st.integers(1), "log_retention"),
    Setting("alarms_topic", st.text(min_size=1), "alarms_topic"),
    Setting("python", st.sampled_from(["3.11", "3.12", "3.13", "3.14"]), "python"),
    Setting("architecture", st.sampled_from(["arm64", "x86_64"]), "architecture"),
    Setting("image", IMAGES, r"image|roles\.execution\.statements"),
    Setting(
        "store", st.booleans(), rf"store(\..*)?|{ROLES}|queues\.orders\.fifo\.max_receives|functions\.shop-dev-orders-fifo\.batch_size"
    ),
    Setting("bodies", st.booleans(), rf"bodies(\..*)?|{ROLES}"),
    Setting("timer", st.booleans(), rf"timer(\..*)?|{ROLES}|roles\.scheduler\..*|alarms\.timer-undelivered.*"),
    Setting("name", st.sampled_from(["a", "b"]), rf"app|prefix|.*resource|{HOSTS}|timer\..*"),
    Setting("prefix", st.sampled_from(["", "x-"]), rf"prefix|.*resource|{HOSTS}"),
    Setting("aws.region", st.sampled_from(["eu-west-1", "us-east-1"]), "region"),
    Setting("aws.kms_key", KEYS, rf"kms_key|{ROLES}"),
    Setting("aws.permission_boundary", st.text(min_size=1), "permission_boundary"),
    Setting("aws.subnets", st.lists(st.text(), min_size=1), "subnets"),
    Setting("aws.security_groups", st.lists(st.text()), "security_groups"),
    Setting("queues.emails.memory", st.integers(1), rf"{FUNCTION}\.memory"),
    Setting("queues.emails.timeout", st.integers(60, 900), rf"{FUNCTION}\.timeout|{QUEUE}\.visibility"),
    Setting("queues.emails.concurrency", st.integers(1), rf"{FUNCTION}\.concurrency"),
    Setting("queues.emails.max_concurrency", st.integers(1), rf"{FUNCTION}\.max_concurrency"),
    Setting("queues.emails.reserved_concurrency", st.integers(1), rf"{FUNCTION}\.reserved_concurrency"),
    Setting("queues.emails.batch_size", st.integers(1), rf"{FUNCTION}\.batch_size"),
    Setting("queues.emails.batch_window", st.integers(0, 300), rf"{FUNCTION}\.batch_window|{QUEUE}\.visibility"),
    Setting("queues.emails.retention", st.integers(60), rf"{QUEUE}\.retention|alarms\.age emails\.above"),
    Setting("queues.emails.visibility", st.integers(0), rf"{QUEUE}\.visibility"),
    Setting("queues.emails.max_receives", st.integers(1), rf"{QUEUE}\.max_receives"),
    Setting("queues.emails.fifo", st.booleans(), rf"{QUEUE}\.(fifo|max_receives)|dead_letters\.emails-dlq\.fifo|{TICKS}"),
    Setting("queues.emails.existing", QUEUES, rf"{QUEUE}\.existing|{ROLES}"),
    Setting("queues.emails.existing_dead_letter", QUEUES, rf"dead_letters\.emails-dlq\.existing|{ROLES}"),
    Setting("queues.emails.sends_to", st.lists(st.sampled_from(["reports", "fair"])), r"roles\.shop-dev-emails\.statements"),
    Setting("queues.emails.alarm_age", st.integers(1), r"alarms\.age emails\.above"),
    Setting("queues.emails.runs_on", st.sampled_from(["none", "container"]), rf"{HOSTS}|{QUEUE}\.visibility"),
    Setting("queues.reports.memory", st.integers(1), rf"{SERVICE}\.memory"),
    Setting("queues.reports.cpu", st.floats(0.25, 16), rf"{SERVICE}\.cpu"),
    Setting("queues.reports.concurrency", st.integers(1), rf"{SERVICE}\.command"),
    Setting("queues.reports.min_workers", st.integers(0), rf"{SERVICE}\.min_workers"),
    Setting("queues.reports.max_workers", st.integers(1), rf"{SERVICE}\.max_workers"),
    Setting("queues.reports.backlog_per_worker", st.integers(1), rf"{SERVICE}\.backlog_per_worker"),
)
ELSEWHERE: Final = {
    "app": "the plan's reference",
    "target": "this one",
    "stages": "applied before",
    "defaults": "of each queue",
    "queues": "each of its keys is a setting here",
    "gcp": "another provider's",
    "package": "of the zip",
    "templates": "where the files themselves come from",
}
"""Settings that are no keys of the data themselves."""


def test_each_setting_is_among_those_that_are_changed_here() -> None:
    changed = {each.at.split(".")[0] for each in SETTINGS}
    assert changed | ELSEWHERE.keys() == set(Settings.model_fields) | {"aws"}
    queue = {each.at.split(".")[2] for each in SETTINGS if each.at.startswith("queues.")}
    assert queue == set(QueueSettings.model_fields)


@given(st.data())
@hypothesis_settings(max_examples=10, deadline=None)
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: each.at)
def test_a_setting_changes_its_own_data_and_nothing_else(setting: Setting, data: st.DataObject) -> None:
    before, after = (dict(leaves(made(change=nested(setting.at, data.draw(setting.values))))) for _ in range(2))
    changed = {".".join(path) for path in before.keys() | after.keys() if before.get(path, ...) != after.get(path, ...)}
    assert {path for path in changed if not re.match(rf"({setting.changes})(\.|\Z)", path, re.DOTALL)} == set()


def test_the_module_is_what_the_templates_are_whatever_the_plan_says() -> None:
    static = {name: text for name, text in cloudq_templates.sources(["aws_terraform"]).items() if not name.endswith(".j2")}
    for name in apps.APPS:
        assert rendered(name).items() - static.items() == {(DATA, rendered(name)[DATA])}


def nested(path: str, value: Any) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from leaves(each, (*path, key))
    else:
        yield path, value


@given(st.text(), st.text())
@hypothesis_settings(max_examples=50, deadline=None)
def test_hostile_values_are_data_and_never_code(name: str, value: str) -> None:
    found = json.loads(rendered("quickstart", {"environment": {name: value}, "tags": {name: value}})[DATA])
    assert found["environment"] == found["tags"] == {name: value}


# ---------------------------------------------------------------------- what of the plan is there

NOT_THERE: Final = {
    "version": "of the plan's JSON",
    "target": "this one",
    "tasks.*.name": "the worker's",
    "tasks.*.timeout": "functions' and containers' times are made of it",
    "tasks.*.max_retries": "queues' max_receives are made of it",
    "tasks.*.longest_wait": "the timer is there for it",
    "tasks.*.needs_store": "the store is there for it",
    "queues.*.runs_on": "functions and containers are there for it",
    "queues.*.tasks": "for people",
    "queues.*.sends_to": "roles are made of it",
    "queues.*.alarm_age": "alarms are made of it",
    "schedules.*.task": "the worker's: a tick has the schedule's name",
    "schedules.*.catch_up": "the worker's",
    "schedules.*.warnings": "for people",
    "schedules.*.steps.*.task": "the worker's",
    "schedules.*.steps.*.delay": "the worker's",
    "schedules.*.body": "with the words of EventBridge Scheduler for its slot",
    "store.why": "for people",
    "store.result_expires": "each item has its own time",
    "timer.why": "for people",
    "roles.*.grants.*.action": "in the words of IAM",
    "seams_in_code": "refused before",
    "crash_cap": "queues' max_receives are made of it",
}
"""What of a plan no resource has, and why."""


def test_every_field_of_the_plan_is_in_the_data_or_there_is_a_reason() -> None:
    plan, settings = apps.plan("everything", "aws-terraform")
    whole = values(plan, settings)
    text = json.dumps(whole)

    def is_there(path: str, value: Any) -> bool:
        if isinstance(value, str):
            return json.dumps(value)[1:-1] in text or json.dumps(json.dumps(value)[1:-1])[1:-1] in text
        return values(otherwise(plan, path.split(".")), settings) != whole

    missing = {path for path, value in leaves_of(plan) if value is not None and not is_there(path, value)}
    assert {path: value for path, value in NOT_THERE.items() if path not in missing} == {}
    assert sorted(missing - NOT_THERE.keys()) == []


def leaves_of(value: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Each field of a plan by its path, where ``*`` is any of a tuple's members."""
    for field in fields(value):
        inner, path = getattr(value, field.name), before + field.name
        if is_dataclass(inner):
            yield from leaves_of(inner, f"{path}.")
        elif isinstance(inner, tuple) and inner and is_dataclass(inner[0]):
            for each in inner:
                yield from leaves_of(each, f"{path}.*.")
        else:
            yield path, inner


def otherwise(value: Any, path: list[str]) -> Any:
    """The plan with what is at the path otherwise: a number one more, no members where there were some."""
    match path, value:
        case [], bool():
            return not value
        case [], int() | float():
            return value + 1
        case [], tuple():
            return ()
        case [], _:
            return value
        case ["*", *rest], _:
            return tuple(otherwise(each, rest) for each in value)
        case [name, *rest], _:
            return replace(value, **{name: otherwise(getattr(value, name), rest)})
