"""Settings under [tool.cloudq]: strict, by stage, and every mistake at once with its path."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudq.deploy.problems import Problem, Refused
from cloudq.deploy.settings import Settings, key_path, parse, read
from cloudq.errors import ConfigError


def mistakes(table: dict[str, Any], stage: str = "dev") -> dict[str, Problem]:
    with pytest.raises(Refused) as caught:
        parse(table, stage)
    return {each.where: each for each in caught.value.problems}


def test_without_settings_a_queue_has_the_defaults() -> None:
    queue = parse({}, "dev").queue("emails")
    assert (queue.runs_on, queue.memory, queue.batch_size, queue.max_workers, queue.retention) == (None, 512, None, 10, 345_600.0)


def test_a_queue_says_otherwise_than_the_defaults_and_a_stage_otherwise_than_both() -> None:
    table: dict[str, Any] = {
        "defaults": {"memory": 256, "timeout": "2m"},
        "queues": {"emails": {"memory": 1024}},
        "tags": {"team": "a", "cost": "b"},
        "aws": {"region": "eu-west-1", "subnets": ["s-1"]},
        "stages": {
            "dev": {},
            "prod": {
                "defaults": {"timeout": 30, "cpu": 2.0},
                "queues": {"emails": {"batch_size": 5}, "bulk": {"max_concurrency": 9}},
                "tags": {"cost": "c"},
                "aws": {"region": "us-east-1"},
            },
        },
    }
    dev, prod = parse(table, "dev"), parse(table, "prod")
    assert (dev.queue("emails").memory, dev.queue("emails").timeout, dev.queue("emails").batch_size) == (1024, 120.0, None)
    assert (prod.queue("emails").memory, prod.queue("emails").timeout, prod.queue("emails").batch_size) == (1024, 30.0, 5)
    assert (prod.queue("bulk").memory, prod.queue("bulk").max_concurrency, prod.queue("bulk").cpu) == (256, 9, 2.0)
    assert prod.tags == {"team": "a", "cost": "c"}
    assert (prod.aws.region, prod.aws.subnets, dev.aws.region) == ("us-east-1", ("s-1",), "eu-west-1")


def test_every_mistake_is_told_at_once_with_its_path() -> None:
    found = mistakes({
        "ap": "shop:app",
        "queues": {"my emails": {"memmory": 1, "memory": "512", "timeout": "soon", "batch_size": 0, "runs_on": "lambda"}},
        "environment": {"DEBUG": True},
        "stages": {"prod": {"aws": {"regoin": "eu-west-1"}, "app": "other:app"}},
    })  # fmt: skip
    queue = 'tool.cloudq.queues."my emails"'
    assert found.keys() == {
        "tool.cloudq.ap",
        *(f"{queue}.{key}" for key in ("memmory", "memory", "timeout", "batch_size", "runs_on")),
        "tool.cloudq.environment.DEBUG",
        "tool.cloudq.stages.prod.aws.regoin",
        "tool.cloudq.stages.prod.app",
    }
    assert found["tool.cloudq.ap"].fix == "did you mean 'app'?"
    assert found[f"{queue}.memmory"].fix == "did you mean 'memory'?"
    assert found["tool.cloudq.stages.prod.aws.regoin"].fix == "did you mean 'region'?"
    assert "'function', 'container' or 'none'" in found[f"{queue}.runs_on"].fix


def test_an_error_never_shows_the_value_that_was_refused() -> None:
    (problem,) = mistakes({"secrets": {"API_KEY": ["hunter2"]}}).values()
    assert "hunter2" not in str(problem)


def test_a_stage_that_is_not_there_is_refused_with_the_nearest() -> None:
    assert mistakes({"stages": {"dev": {}, "prod": {}}}, "prd")["stage 'prd'"].fix == "did you mean 'prod'?"
    assert parse({}, "anything").stages == {}
    assert mistakes({}, 'x"; rm')


@pytest.mark.parametrize("name", ["Prod", "", "a" * 21, "-x", "${stage}", "a\nb"])
def test_a_stage_that_no_cloud_could_name_is_refused(name: str) -> None:
    assert mistakes({"stages": {name: {}}}, name)[key_path("stages", name)].level == "error"


def test_settings_are_read_from_a_file_and_a_broken_one_says_so(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text('[tool.cloudq]\napp = "shop:app"\ntarget = "aws-sam"\n[tool.other]\nx = 1\n', "utf-8")
    assert read(path, "dev").target == "aws-sam"
    path.write_text("[tool.cloudq\n", "utf-8")
    with pytest.raises(ConfigError, match=r"pyproject\.toml cannot be read"):
        read(path, "dev")


@pytest.mark.parametrize("text", ["tool = 1", "tool = []", 'tool.cloudq = "x"', "tool.cloudq = []", "tool.cloudq.queues = 1"])
def test_a_file_whose_tables_are_none_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError):
        read(path, "dev")


@given(st.text(min_size=1, alphabet=st.characters(codec="utf-8", exclude_characters="\0")))
def test_a_path_is_one_that_toml_reads_back(name: str) -> None:
    path = key_path("queues", name, "memory").removeprefix("tool.cloudq.")
    assert tomllib.loads(f"{path} = 1") == {"queues": {name: {"memory": 1}}}


@given(st.dictionaries(st.text(), st.text()), st.text(min_size=1))
def test_hostile_values_are_kept_as_they_are(environment: dict[str, str], name: str) -> None:
    settings = parse({"environment": environment, "tags": environment, "queues": {name: {"memory": 1}}}, "dev")
    assert isinstance(settings, Settings)
    assert (settings.environment, settings.tags, settings.queue(name).memory) == (environment, environment, 1)


def test_a_value_of_the_wrong_type_is_told_in_the_words_of_toml() -> None:
    with pytest.raises(Refused) as raised:
        parse({"store": "yes", "aws": {"subnets": "subnet-1"}, "defaults": {"memory": "512"}}, "dev")
    assert {each.where: each.fix for each in raised.value.problems} == {
        "tool.cloudq.store": "write true or false",
        "tool.cloudq.aws.subnets": 'write a list: ["…"]',
        "tool.cloudq.defaults.memory": "write a whole number",
    }
