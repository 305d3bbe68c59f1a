"""A new project, as a newcomer meets it: made by ``cloudq init``, and then only what that prints and its README says."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cloudq.cli.app import cli
from tests.servers import free_port

BIN = Path(sys.executable).parent
NOT_OURS = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "PYTHONPATH")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in NOT_OURS and not name.startswith("CLOUDQ_")},
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "PYTHONUNBUFFERED": "1",
}


def run(command: str, cwd: Path, code: int = 0) -> str:
    """Run a line of shell as it stands in a README; returns what it printed."""
    done = subprocess.run(["bash", "-c", command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "my-shop"
    run("cloudq init my-shop --yes", folder.parent)
    return folder


@pytest.fixture
def dev(project: Path) -> Iterator[int]:
    """``cloudq dev`` as the README starts it, on a port that is free."""
    (command,) = re.findall(r"\$ (CLOUDQ_STORE=.* cloudq dev .*)", (project / "README.md").read_text("utf-8"))
    port = free_port()
    words = shlex.split(command.replace("9324", str(port)))
    name, _, value = words[0].partition("=")
    started = subprocess.Popen(
        words[1:], cwd=project, env={**ENVIRONMENT, name: value}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert started.stdout is not None
        for line in started.stdout:
            if "ready" in line:
                break
        else:
            pytest.fail("it ended before it was ready")
        yield port
    finally:
        started.send_signal(signal.SIGINT)
        started.communicate(timeout=120)


def test_its_tests_pass(project: Path) -> None:
    assert "4 passed" in run("python -W error -m pytest -q -p no:cacheprovider", project)
    assert "4 passed" in run("pytest -q -p no:cacheprovider", project)


def test_a_task_runs_in_dev_when_it_is_called_from_another_terminal(project: Path, dev: int) -> None:
    readme = (project / "README.md").read_text("utf-8")
    (source,) = re.findall(r"\$ (source local\.env)", readme)
    ((call, answer),) = re.findall(r"\$ (cloudq call .*)\n(.*)", readme)
    there = f"{source}; export AWS_ENDPOINT_URL=http://127.0.0.1:{dev}"
    assert run(f"{there}; {call}", project).strip() == answer
    assert run(f"{there}; cloudq call my_shop.tasks.welcome Ana --wait", project) == '"Welcome, Ana!"\n'
    program = 'from my_shop.tasks import welcome; print(welcome.delay("Ana").get(timeout=60))'
    assert run(f"{there}; python -c {shlex.quote(program)}", project) == "Welcome, Ana!\n"


TARGETS = {
    "aws-sam": "",
    "aws-cloudformation": "",
    "aws-terraform": "--region eu-west-1",
    "gcp-terraform": "--project my-project",
    "kubernetes": "--account 123456789012 --image registry.example.com/shop:1.2",
    "compose": "",
}


@pytest.mark.parametrize("target", TARGETS)
def test_it_can_be_planned_and_deployed_on_each_target(target: str, tmp_path: Path) -> None:
    made = CliRunner().invoke(cli, ["init", str(tmp_path / "shop"), "--yes", "--target", target, *TARGETS[target].split()])
    assert made.exit_code == 0, made.output
    problems = json.loads(run("cloudq plan --stage prod --json", tmp_path / "shop"))["problems"]
    assert not [each for each in problems if each["level"] == "error"]
    (deploy,) = re.findall(r"\$ (cloudq deploy .*?)  ", (tmp_path / "shop" / "README.md").read_text("utf-8"))
    assert "create" in run(deploy, tmp_path / "shop")


def test_its_cost_is_said_beside_that_of_other_hosts(project: Path) -> None:
    (line,) = re.findall(r"\$ (cloudq cost .*?)  ", (project / "README.md").read_text("utf-8"))
    assert "a month" in run(line, project)
    found: dict[str, Any] = json.loads(run("cloudq cost --compare --json --results --delayed 0.1", project))
    assert found["cost"]["dollars"] == pytest.approx(sum(each["dollars"] for each in found["cost"]["lines"]))
    hosts = ["SQS + ECS Fargate", "Pub/Sub + Cloud Run push", "Pub/Sub + worker pool"]
    assert [each["host"] for each in found["compared"]] == hosts
    assert all(each["cost"]["dollars"] > 0 and each["refused"] is None for each in found["compared"])
    run("cloudq cost --tasks nowhere=1M", project, code=2)
    run("cloudq cost --duration 1h", project, code=2)  # over the function's time


def test_on_a_terminal_it_asks_and_asks_again_where_an_answer_is_no_good(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        os.write(ours, b"Shop!\nshop\ngcp-terraform\nmy-project\n\n\n")
        done = subprocess.run(
            [str(BIN / "cloudq"), "init", "here"], cwd=tmp_path, env=ENVIRONMENT, stdin=theirs, capture_output=True, text=True, timeout=300
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert "'Shop!' cannot be the name" in done.stderr
    written = (tmp_path / "here" / "pyproject.toml").read_text("utf-8")
    assert 'project = "my-project"\nregion = "us-central1"' in written
