"""The image's Dockerfile under hadolint and Checkov, and what it has uv do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
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


@pytest.mark.parametrize(
    "files",
    [
        {"pyproject.toml": '[tool.cloudq]\napp = "shop:app"\n'},
        {"pyproject.toml": '[project]\nname = "shop"\nversion = "1"\n[tool.cloudq]\napp = "shop:app"\n'},
        {"pyproject.toml": "", "requirements.txt": ""},
    ],
)
def test_the_image_installs_what_a_project_says_and_nothing_where_it_says_nothing(files: dict[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8")
    dockerfile = render("container", values_of(*plan("quickstart", "compose")))["Dockerfile"]
    (run,) = [each for each in re.findall(r"^RUN ((?:.*\\\n)*.*)", dockerfile, re.MULTILINE) if "pyproject.toml" in each]
    venv = tmp_path / "venv"
    environment = {**os.environ, "VIRTUAL_ENV": str(venv), "UV_OFFLINE": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["sh", "-ec", run.replace("/venv", str(venv))]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
