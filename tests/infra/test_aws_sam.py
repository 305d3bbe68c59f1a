"""The CloudFormation template under the tools of its users: cfn-lint, SAM's translation, checkov."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cloudq.deploy.settings import Target
from cloudq.deploy.targets import folder_of, values_of
from cloudq_templates import render
from tests.cloudformation import load, resolved
from tests.infra import checkov_exceptions, tools
from tests.infra.apps import APPS, plan

TARGETS: tuple[Target, ...] = ("aws-sam", "aws-cloudformation")


@cache
def files(name: str, target: Target) -> Mapping[str, str]:
    made = plan(name, target)
    return render(folder_of(target), values_of(*made))


def translated(name: str, folder: Path) -> Path:
    """What SAM makes of an app's template, as JSON."""
    source, made = folder / f"{name}.json", folder / f"{name}-translated.json"
    source.write_text(json.dumps(load(files(name, "aws-sam")["template.yaml"])), "utf-8")
    tools.accepted(tools.python(), Path(__file__).with_name("translate_sam.py"), source, made)
    return made


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of each app and target, and what SAM makes of its templates."""
    folder = tmp_path_factory.mktemp("cloudformation")
    for name in APPS:
        for target in TARGETS:
            (home := folder / f"{name}-{target}").mkdir()
            for path, text in files(name, target).items():
                (home / path).write_text(text, "utf-8")
        translated(name, folder)
    return folder


def test_cfn_lint_has_nothing_to_say_not_even_what_it_only_informs_of(written: Path) -> None:
    templates = sorted(written.glob("*/template.yaml"))
    assert len(templates) == len(APPS) * len(TARGETS)
    tools.accepted("cfn-lint", "--include-checks", "I", "--", *templates)


def test_cfn_lint_takes_what_sam_makes_of_the_template(written: Path) -> None:
    tools.accepted("cfn-lint", "--", *sorted(written.glob("*-translated.json")))


def test_checkov_finds_nothing_but_what_there_is_a_reason_for(written: Path) -> None:
    (home := written / "checked").mkdir()
    for target in TARGETS:  # an app whose settings encrypt and join a network, and one without
        for name in ("everything", "quickstart"):
            (home / f"{name}-{target}.yaml").write_text(files(name, target)["template.yaml"], "utf-8")
    tools.checkov(home, "cloudformation", skipped=checkov_exceptions.CLOUDFORMATION)


def test_with_sam_and_without_the_same_stack_is_made(written: Path) -> None:
    for name in APPS:
        with_sam = json.loads((written / f"{name}-translated.json").read_text("utf-8"))
        without = load(files(name, "aws-cloudformation")["template.yaml"])
        one, other = resources(with_sam), resources(without)
        assert one.keys() == other.keys()
        for id, resource in other.items():
            assert one[id] == resource, id


def resources(template: Mapping[str, Any]) -> dict[str, Any]:
    """The resources, without what says where a function's code is and without SAM's own tag."""
    found: dict[str, Any] = resolved(template)["Resources"]
    for resource in found.values():
        properties = resource["Properties"]
        properties.pop("Code", None)
        if "Tags" in properties:
            properties["Tags"] = sorted((each["Key"], each["Value"]) for each in properties["Tags"] if each["Key"] != "lambda:createdBy")
    return found
