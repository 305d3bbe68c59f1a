"""Applying: the ecosystem's own tool, found, shown, asked for and run in the folder, with its own exit code. The tools are scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cloudq import CloudQ
from cloudq.deploy.applying import Command, apply, commands, text
from cloudq.deploy.plan import plan_of
from cloudq.deploy.settings import parse
from cloudq.errors import ConfigError


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole path."""
    made = tmp_path / "tools"
    made.mkdir()
    monkeypatch.setenv("PATH", str(made))
    return made


def tool(tools: Path, *names: str, does: str = "") -> None:
    """Scripts that note what they were told, and where."""
    for name in names:
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $* in ${{PWD##*/}}" >> "{tools.parent}/told"\n{does}\n')
        (tools / name).chmod(0o755)


def told(tools: Path) -> list[str]:
    path = tools.parent / "told"
    return path.read_text().splitlines() if path.exists() else []


def planned(target: Any, table: dict[str, Any] | None = None) -> Sequence[Command]:
    app = CloudQ("shop")
    app.reference = "shop:app"
    app.task(name="t", timeout=30)(lambda: None)
    settings = parse(table or {}, "dev")
    return commands(plan_of(app, settings, target=target, stage="dev"), settings)


def run(todo: Sequence[Command], tools: Path, *, says: bool = True) -> tuple[int, list[str], list[str]]:
    """Apply in the folder ``out``: the code, what was shown, and what was asked."""
    shown: list[str] = []
    asked: list[str] = []
    folder = tools.parent / "out"
    folder.mkdir(exist_ok=True)

    def confirm(question: str) -> bool:
        asked.append(question)
        return says

    return apply(todo, folder, show=shown.append, confirm=confirm), shown, asked


@pytest.mark.parametrize("target", ["aws-terraform", "gcp-terraform"])
def test_terraform_is_initialised_and_asks_for_itself(target: str, tools: Path) -> None:
    tool(tools, "terraform")
    code, shown, asked = run(planned(target), tools)
    assert (code, asked) == (0, [])
    assert shown == [f"$ cd {tools.parent / 'out'}", "$ terraform init", "$ terraform apply"]
    assert told(tools) == ["terraform init in out", "terraform apply in out"]


def test_sam_is_told_by_its_own_file_and_asks_before_it_changes_the_stack(tools: Path) -> None:
    tool(tools, "sam", "aws")
    assert run(planned("aws-sam"), tools) == (0, [f"$ cd {tools.parent / 'out'}", "$ sam deploy"], [])
    assert told(tools) == ["sam deploy in out"]


@pytest.mark.parametrize("target", ["aws-sam", "aws-cloudformation"])
def test_the_aws_cli_packs_and_deploys_once_it_has_been_allowed(target: str, tools: Path) -> None:
    tool(tools, "aws", *(["sam"] if target == "aws-cloudformation" else []))
    with pytest.raises(ConfigError, match=r"needs a bucket: set artifacts under \[tool\.cloudq\.aws\]"):
        planned(target)
    todo = planned(target, {"aws": {"artifacts": "ours", "region": "eu-west-1"}})
    code, _, (asked,) = run(todo, tools, says=False)
    assert (code, asked) == (1, f"run {todo[1]}?")
    place = "--s3-bucket ours --region eu-west-1"
    pack = f"aws cloudformation package --template-file template.yaml --output-template-file build/packaged.yaml {place} in out"
    deploy = (
        f"aws cloudformation deploy --template-file build/packaged.yaml --stack-name shop-dev {place} "
        "--capabilities CAPABILITY_NAMED_IAM --no-fail-on-empty-changeset in out"
    )
    assert told(tools) == [pack]
    assert run(todo, tools)[0] == 0
    assert told(tools) == [pack, pack, deploy]
    (deployed,) = planned(target, {"defaults": {"runs_on": "none"}})
    assert "--template-file template.yaml" in str(deployed)


@pytest.mark.parametrize(
    ("difference", "says", "code", "last"),
    [(0, True, 0, "diff"), (1, True, 0, "apply"), (1, False, 1, "diff"), (2, True, 0, "apply"), (2, False, 1, "diff")],
)
def test_kubectl_compares_first_and_applies_what_differs_or_cannot_be_compared_once_it_has_been_allowed(
    difference: int, says: bool, code: int, last: str, tools: Path
) -> None:
    tool(tools, "kubectl", does=f'[ "$1" = diff ] && exit {difference}\nexit 0')
    ended, shown, asked = run(planned("kubernetes"), tools, says=says)
    assert ended == code
    assert told(tools)[0] == "kubectl diff -k . in out"
    assert [each for each in told(tools) if " -k . " in each][-1] == f"kubectl {last} -k . in out"
    assert asked == (["run kubectl apply -k .?"] if difference else [])
    assert ("nothing would change" in shown) is (difference == 0)


GONE = "deployment.apps/shop-dev-reports"


@pytest.mark.parametrize("difference", [0, 1])
@pytest.mark.parametrize("gone", [True, False])
def test_workers_that_the_files_have_no_more_are_deleted_once_it_has_been_allowed(difference: int, gone: bool, tools: Path) -> None:
    tool(tools, "kubectl", does=f'[ "$1" = diff ] && exit {difference}\n[ "$1" = get ] && {f"echo {GONE}" if gone else "exit 0"}\nexit 0')
    todo = planned("kubernetes")
    ended, shown, asked = run(todo, tools)
    assert ended == 0
    labels = "app.kubernetes.io/name=shop,app.kubernetes.io/component=worker,app.kubernetes.io/managed-by=cloudq"
    where = f"--namespace shop-dev --selector {labels},app.kubernetes.io/instance notin (shop-dev-default)"
    kinds = "scaledobject,deployment,poddisruptionbudget,serviceaccount"
    assert told(tools)[-1 - gone] == f"kubectl get {kinds} {where} --output name in out"
    assert (told(tools)[-1] == f"kubectl delete {kinds} {where} in out") is gone
    assert (GONE in shown, f"run {todo[-1]}?" in asked) == (gone, gone)


def test_compose_builds_and_starts(tools: Path) -> None:
    tool(tools, "docker")
    assert run(planned("compose"), tools)[0] == 0
    assert told(tools) == ["docker compose up --build --detach --remove-orphans in out"]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("aws-sam", "sam is not installed: pip install aws-sam-cli"),
        ("aws-cloudformation", "aws is not installed: https://docs.aws"),
        ("aws-terraform", "terraform is not installed: https://developer.hashicorp.com/terraform/install"),
        ("gcp-terraform", "terraform is not installed"),
        ("kubernetes", "kubectl is not installed: https://kubernetes.io/docs/tasks/tools/"),
        ("compose", "docker is not installed: https://docs.docker.com/engine/install/"),
    ],
)
def test_a_tool_that_is_missing_is_named_with_where_it_comes_from(target: str, says: str, tools: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        planned(target)


@pytest.mark.parametrize(("does", "code"), [("exit 3", 3), ("kill -9 $$", 137)])
def test_the_first_command_that_fails_ends_it_with_its_code(does: str, code: int, tools: Path) -> None:
    tool(tools, "terraform", does=does)
    assert run(planned("aws-terraform"), tools)[0] == code
    assert told(tools) == ["terraform init in out"]


def test_what_is_shown_is_what_a_shell_takes() -> None:
    assert text([Command(("tool", "a b", "$c"), "asks")], Path("my out")) == "cd 'my out'\ntool 'a b' '$c'"


# ---------------------------------------------------------------------- the command

APP = """
from cloudq import CloudQ
app = CloudQ("shop")
@app.task(timeout=30)
def mail(): ...
"""
SETTINGS = """
[tool.cloudq]
app = "shop:app"
target = "aws-terraform"
alarms_topic = "arn:aws:sns:eu-west-1:123456789012:alarms"
aws = { region = "eu-west-1" }
"""


@pytest.fixture
def project(tools: Path) -> Path:
    made = tools.parent / "project"
    (made / "out/build").mkdir(parents=True)
    (made / "shop.py").write_text(APP)
    (made / "pyproject.toml").write_text(SETTINGS)
    (made / "out/build/function.zip").write_text("a package")
    return made


DEPLOY = [sys.executable, "-W", "error", "-m", "cloudq.cli", "deploy", "--out", "out"]


def deploy(project: Path, *arguments: str, code: int = 0) -> str:
    command = [*DEPLOY, *arguments]
    ran = subprocess.run(command, cwd=project, input="", capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def test_the_command_writes_shows_and_applies_and_leaves_the_tool_s_exit_code(project: Path, tools: Path) -> None:
    tool(tools, "terraform", does='echo "terraform itself"\n[ "$1" = init ] || exit 5')
    said = deploy(project, "--apply", "--no-package", code=5)
    assert said.count("terraform itself") == 2
    assert "$ cd out\n$ terraform init\n$ terraform apply\n" in said
    assert told(tools) == ["terraform init in out", "terraform apply in out"]
    assert (project / "out/queues.tf").exists()


def test_nothing_is_applied_while_an_edit_stands_against_the_plan(project: Path, tools: Path) -> None:
    tool(tools, "terraform")
    deploy(project)
    (project / "out/cloudq.auto.tfvars.json").write_text("{}\n")
    (project / "pyproject.toml").write_text(SETTINGS + "defaults.memory = 1024\n")
    said = deploy(project, "--apply", code=1)
    assert "cd out\nterraform init\nterraform apply\n" in said
    assert told(tools) == []
    deploy(project, "--apply", "--no-package", "--force")
    assert len(told(tools)) == 2


def test_an_edit_that_stands_against_nothing_is_applied_with_the_rest(project: Path, tools: Path) -> None:
    tool(tools, "terraform")
    deploy(project)
    (project / "out/queues.tf").write_text("# mine\n")
    (project / "out/alarms.tf").unlink()
    said = deploy(project, "--apply", "--no-package")
    assert "yours   out/alarms.tf\nyours   out/queues.tf\n" in said
    assert told(tools) == ["terraform init in out", "terraform apply in out"]
    assert ((project / "out/queues.tf").read_text(), (project / "out/alarms.tf").exists()) == ("# mine\n", False)


def test_templates_of_one_s_own_are_remembered_by_the_settings(project: Path) -> None:
    (project / "ours").mkdir()
    (project / "ours/alarms.tf").write_text("# ours\n")
    (project / "pyproject.toml").write_text(SETTINGS + 'templates = "ours"\n')
    (project / "below").mkdir()
    command = [*DEPLOY[:-1], "../out"]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    ran = subprocess.run(command, cwd=project / "below", env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (project / "out/alarms.tf").read_text() == "# ours\n"


def test_where_the_environment_leads_elsewhere_it_is_said(project: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tools, "terraform")
    assert "and not to AWS" not in deploy(project, "--apply", "--no-package")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9324")
    assert "so this goes to http://127.0.0.1:9324 and not to AWS" in deploy(project, "--apply", "--no-package")


def test_what_a_new_stack_asks_for_is_said_before_sam_does(project: Path, tools: Path) -> None:
    tool(tools, "sam")
    (project / "pyproject.toml").write_text(SETTINGS + 'defaults.runs_on = "container"\nimage = "registry.example.com/shop:1"\n')
    said = deploy(project, "aws-sam", "--apply")
    assert "a stack that is new asks for its containers' Subnets=subnet-… SecurityGroups=sg-…: set" in said
    assert told(tools) == ["sam deploy in out"]


def test_what_is_missing_is_said_before_anything_is_written(project: Path, tools: Path) -> None:
    assert "terraform is not installed" in deploy(project, "--apply", code=2)
    (project / "out/build/function.zip").unlink()
    tool(tools, "terraform")
    assert "there is no out/build/function.zip: leave out --no-package" in deploy(project, "--apply", "--no-package", code=2)
    assert not list((project / "out").glob("*.tf"))
    assert told(tools) == []


@pytest.mark.parametrize("arguments", [("--apply", "--check"), ("--package", "--diff"), ("--apply", "--json")])
def test_options_that_contradict_each_other_are_refused(arguments: tuple[str, ...], project: Path) -> None:
    assert "leave out" in " ".join(deploy(project, *arguments, code=2).split())


def test_ctrl_c_is_the_tool_s_which_ends_as_it_must(project: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    tool(tools, "terraform", does='[ "$1" = init ] && exit 0\ntrap "exit 7" INT\necho ready\nwhile :; do sleep 0.05; done')
    command = [*DEPLOY, "--apply", "--no-package"]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert any(line == "ready\n" for line in process.stdout)
            os.killpg(process.pid, signal.SIGINT)
            end = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
            assert process.returncode == 7
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
