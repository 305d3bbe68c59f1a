"""The data of the Terraform module: all that it declares, nothing else, and the same bytes each time."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudq import CloudQ
from cloudq.deploy.aws_terraform import DATA, render
from cloudq.deploy.plan import plan_of
from cloudq.deploy.settings import parse
from cloudq.errors import ConfigError


def rendered(table: dict[str, Any] | None = None) -> dict[str, str]:
    app = CloudQ("shop")
    app.reference = "shop:app"
    app.task(name="t", queue="emails", timeout=30)(lambda: None)
    app.task(name="u", queue="slow.fifo", timeout=30)(lambda: None)
    settings = parse(table or {}, "dev")
    return dict(render(plan_of(app, settings, target="aws-terraform", stage="dev"), settings))


def test_the_data_has_every_variable_that_the_module_declares_but_the_user_s_own() -> None:
    files = rendered()
    declared = set(re.findall(r'^variable "(\w+)"', files["variables.tf"], re.MULTILINE))
    assert json.loads(files[DATA]).keys() == declared - {"package"}
    used = set(re.findall(r"\bvar\.(\w+)", "".join(text for name, text in files.items() if name.endswith(".tf"))))
    assert used == declared


def test_two_runs_give_the_same_bytes_and_a_setting_changes_only_its_own() -> None:
    assert rendered() == rendered()
    one, other = rendered(), rendered({"queues": {"emails": {"memory": 1024}}})
    assert {name for name in one if one[name] != other[name]} == {DATA}
    before, after = json.loads(one[DATA]), json.loads(other[DATA])
    assert after["functions"]["shop-dev-emails"].pop("memory") == 1024
    before["functions"]["shop-dev-emails"].pop("memory")
    assert before == after


@given(st.text(), st.text())
def test_hostile_values_are_data_and_never_code(name: str, value: str) -> None:
    files = rendered({"environment": {name: value}, "tags": {name: value}})
    assert json.loads(files[DATA])["environment"] == json.loads(files[DATA])["tags"] == {name: value}
    assert files[DATA].isascii()
    assert {each: text for each, text in files.items() if each != DATA} == {each: text for each, text in rendered().items() if each != DATA}


def test_what_the_module_cannot_make_yet_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"run the queues slow\.fifo on"):
        rendered({"queues": {"slow.fifo": {"runs_on": "container"}}})
    with pytest.raises(ConfigError, match="no secrets"):
        rendered({"secrets": {"KEY": "prod/key"}})
