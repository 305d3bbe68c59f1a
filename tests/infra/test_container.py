"""The image's Dockerfile under hadolint and Checkov."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudq.deploy.settings import Target
from cloudq.deploy.targets import values_of
from cloudq_templates import render
from tests.infra import tools
from tests.infra.apps import APPS, plan

CASES: tuple[tuple[str, Target], ...] = (
    *((name, "compose") for name in APPS),
    ("everything", "kubernetes"),
    ("quickstart", "gcp-terraform"),
)


@pytest.fixture(scope="module")
def dockerfiles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("dockerfiles")
    found = [folder / f"{name}-{target}" / "Dockerfile" for name, target in CASES]
    for path, (name, target) in zip(found, CASES, strict=True):
        path.parent.mkdir()
        path.write_text(render("container", values_of(*plan(name, target)))["Dockerfile"], "utf-8")
    return found


def test_hadolint_has_nothing_to_say(dockerfiles: list[Path]) -> None:
    tools.accepted(tools.python().with_name("hadolint"), "--no-color", *dockerfiles)


def test_checkov_finds_nothing(dockerfiles: list[Path]) -> None:
    tools.checkov(dockerfiles[0].parents[1], "dockerfile", skipped={})
