"""compose's file, read back and compared with the plan; and the image that it and others build.

``tests/infra/snapshots`` has the quickstart's files, for readers. ``UPDATE_SNAPSHOTS=1 pytest tests/unit/test_deploy_compose.py`` writes
them anew.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudq import CloudQ, __version__, every
from cloudq.deploy.checks import check
from cloudq.deploy.plan import Plan, plan_of
from cloudq.deploy.settings import Settings, Target, parse
from cloudq.deploy.targets import also_of, folder_of, values_of
from cloudq_templates import render
from tests.infra.apps import plan as app_plan

SNAPSHOTS = Path(__file__).parents[1] / "infra" / "snapshots"


def planned(table: dict[str, Any] | None = None, *, task: str = "t") -> tuple[Plan, Settings]:
    app = CloudQ("shop")
    app.reference = "shop:app"
    app.task(name=task, queue="emails", timeout="90s")(lambda: None)
    app.task(name="u", queue="slow.fifo", timeout="5m")(lambda: None)
    read = parse(table or {}, "dev")
    made = plan_of(app, read, target="compose", stage="dev")
    assert [each for each in check(made, read) if each.level == "error"] == []
    return made, read


def files(plan: Plan, read: Settings, **places: str) -> dict[str, str]:
    return render(folder_of(plan.target), values_of(plan, read, **places), also=also_of(plan))


def compose(plan: Plan, read: Settings, **places: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(files(plan, read, **places)["compose.yaml"])
    return found


def read_by_compose(value: str) -> str:
    """What compose makes of a value without variables in it."""
    assert not re.search(r"\$(?!\$)", value.replace("$$", "")), "a variable"
    return value.replace("$$", "$")


@pytest.mark.parametrize("name", ["quickstart", "everything", "adversarial"])
def test_every_container_of_the_plan_is_a_service(name: str) -> None:
    plan, read = app_plan(name, "compose")
    made = compose(plan, read)
    services = made["services"]
    assert services.keys() == {each.name for each in plan.containers} | {"queues"} | ({"schedules"} if plan.schedules else set())
    for each in plan.containers:
        service = services[each.name]
        told = f"worker --queues={each.queue} --concurrency={each.concurrency} --grace={each.grace - 10}s"
        assert " ".join(service["command"][:4]) == told
        assert "--schedules" not in service["command"]
        assert service["stop_grace_period"] == f"{each.grace}s"
        assert service["mem_limit"] == f"{each.memory}m"
        assert service["cpu_shares"] == each.cpu * 1024
        assert service["deploy"]["replicas"] == max(each.min_workers, 1)
        assert service["image"] == read.image
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["init"] is False
        assert service["tmpfs"] == ["/tmp"]
    queues = {each.removeprefix("--queue=") for each in services["queues"]["command"][2:]}
    assert queues == {name for each in plan.queues for name in (each.resource, each.dead_letters.resource)}


def test_one_service_fires_the_schedules() -> None:
    plan, read = app_plan("everything", "compose")
    services = compose(plan, read)["services"]
    assert [name for name, each in services.items() if "--schedules" in each["command"]] == ["schedules"]
    assert services["schedules"]["deploy"] == {"replicas": 1}


def test_schedules_of_queues_that_others_work_on_are_fired_by_nobody_here() -> None:
    app = CloudQ("shop")
    app.reference = "shop:app"
    app.task(name="t", queue="elsewhere", timeout="30s", schedule=every("1h"))(lambda: None)
    read = parse({"queues": {"elsewhere": {"runs_on": "none"}}}, "dev")
    assert compose(plan_of(app, read, target="compose", stage="dev"), read)["services"].keys() == {"queues"}


def test_broker_and_store_are_here_and_secrets_come_from_outside() -> None:
    made = compose(*app_plan("everything", "compose"))
    environment = made["services"]["shop-dev-emails"]["environment"]
    assert environment["CLOUDQ_BROKER"] == "sqs://eu-west-1/?prefix=shop-dev-"
    assert environment["AWS_ENDPOINT_URL_SQS"] == "http://queues:9324"
    assert environment["CLOUDQ_STORE"] == "sqlite:////data/shop-dev.sqlite3"
    assert environment["STRIPE_KEY"] == "${STRIPE_KEY:?set it in the environment or in .env}"
    assert made["services"]["shop-dev-emails"]["volumes"] == ["data:/data"]
    assert "data" in made["volumes"]
    assert made["services"]["queues"]["ports"] == ["127.0.0.1:9324:9324"]
    assert "environment" not in made["services"]["queues"]
    assert "volumes" not in compose(*planned({"store": False}))


def test_the_image_is_built_of_the_project_wherever_the_files_are_unless_there_is_one() -> None:
    plan, read = planned()
    services = compose(plan, read, folder="$infra/a b", project="../..")["services"]
    assert {name: each["build"] for name, each in services.items() if "build" in each} == {
        "queues": {"context": "../..", "dockerfile": "$$infra/a b/Dockerfile"}
    }, "one builds it, or several would at once"
    assert {each["image"] for each in services.values()} == {"shop-dev"}
    assert "build" not in compose(*planned({"image": "registry.example.com/shop:1"}))["services"]["queues"]


def test_the_command_says_to_compose_where_the_project_is(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "from cloudq import CloudQ\napp = CloudQ('shop')\napp.task(name='t', timeout='30s')(lambda: None)\n", "utf-8"
    )
    (tmp_path / "pyproject.toml").write_text('[tool.cloudq]\napp = "shop:app"\n', "utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDQ_")}
    command = [sys.executable, "-m", "cloudq.cli", "deploy", "compose", "--out", "infra/a b"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=60)
    file = tmp_path / "infra" / "a b" / "compose.yaml"
    build = yaml.safe_load(file.read_text("utf-8"))["services"]["queues"]["build"]
    assert (file.parent / build["context"]).resolve() == tmp_path.resolve()
    assert (tmp_path / build["dockerfile"]).is_file()


@settings(max_examples=30)
@given(value=st.text(), task=st.text(min_size=1))
def test_whatever_a_value_holds_it_arrives_as_it_is_and_changes_nothing_else(value: str, task: str) -> None:
    value = value.replace("\0", "")  # no variable can hold one, which is told
    plain, odd = compose(*planned({"environment": {"OFF": "x"}})), compose(*planned({"environment": {"OFF": value}}, task=task))
    assert read_by_compose(odd["services"]["shop-dev-emails"]["environment"]["OFF"]) == value
    for made in (plain, odd):
        del made["x-worker"]
        for name in ("shop-dev-emails", "shop-dev-slow-fifo"):
            made["services"][name]["environment"].pop("OFF", None)  # one and the same of both, by YAML's anchor
    assert odd == plain


@pytest.mark.parametrize(
    ("more", "services"),
    [
        ({"queues": {"emails": {"min_workers": 3}}}, {"shop-dev-emails"}),
        ({"queues": {"emails": {"memory": 1024}}}, {"shop-dev-emails"}),
        ({"queues": {"slow.fifo": {"cpu": 2.0}}}, {"shop-dev-slow-fifo"}),
        ({"environment": {"A_B": "1"}}, {"shop-dev-emails", "shop-dev-slow-fifo"}),
        ({"secrets": {"A_B": "prod/a"}}, {"shop-dev-emails", "shop-dev-slow-fifo"}),
        ({"image": "registry.example.com/shop:1"}, {"shop-dev-emails", "shop-dev-slow-fifo", "queues"}),
        ({"queues": {"emails": {"max_workers": 20}}}, set()),
        ({"python": "3.12"}, set()),
    ],
)
def test_a_setting_changes_only_what_it_should(more: dict[str, Any], services: set[str]) -> None:
    before, after = compose(*planned())["services"], compose(*planned(more))["services"]
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == services


def test_two_runs_give_the_same_bytes() -> None:
    assert files(*planned()) == files(*planned())


@pytest.mark.parametrize("target", ["compose", "kubernetes"])
def test_the_quickstart_s_files_are_as_readers_find_them(target: Target) -> None:
    folder, made = SNAPSHOTS / target, files(*app_plan("quickstart", target))
    if os.environ.get("UPDATE_SNAPSHOTS"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, text in made.items():
            (folder / name).write_text(text, "utf-8")
    assert {path.name: path.read_text("utf-8") for path in folder.iterdir()} == made


# ---------------------------------------------------------------------- the image


@pytest.mark.parametrize(
    ("target", "table", "installed"),
    [
        ("compose", {}, ['"cloudq-tasks[aws,cli]"']),
        ("aws-terraform", {"defaults": {"runs_on": "container"}}, ['"cloudq-tasks[aws,cli]"']),
        ("gcp-terraform", {"defaults": {"runs_on": "container"}}, ['"cloudq-tasks[gcp,cli]"']),
        ("gcp-terraform", {}, ['"cloudq-tasks[gcp,cli]"', '"uvicorn"']),
        ("aws-terraform", {}, None),
        ("aws-sam", {}, None),
    ],
)
def test_the_image_goes_along_where_something_runs_in_it_with_what_that_needs(target: Any, table: dict[str, Any], installed: Any) -> None:
    app = CloudQ("shop")
    app.reference = "shop:app"
    app.task(name="t", queue="emails", timeout="90s")(lambda: None)
    read = parse({"python": "3.12", **table}, "dev")
    plan = plan_of(app, read, target=target, stage="dev")
    if installed is None:
        assert also_of(plan) == ()
        return
    dockerfile = render("container", values_of(plan, read))["Dockerfile"]
    assert f"    && uv pip install {' '.join(installed)}\n" in dockerfile
    assert re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE) == ["python:3.12-slim-trixie"] * 2


@pytest.mark.parametrize(
    ("target", "table", "built"),
    [
        ("gcp-terraform", {"architecture": "arm64"}, "docker build --platform linux/amd64 --file"),
        ("aws-terraform", {"defaults": {"runs_on": "container"}}, "docker build --platform linux/arm64 --file"),
        ("aws-terraform", {"defaults": {"runs_on": "container"}, "architecture": "x86_64"}, "docker build --platform linux/amd64 --file"),
        ("kubernetes", {}, "docker build --file"),
    ],
)
def test_the_image_is_built_for_where_it_runs(target: Target, table: dict[str, Any], built: str) -> None:
    app = CloudQ("shop")
    app.task(name="t", queue="emails", timeout="90s")(lambda: None)
    read = parse(table, "dev")
    assert f"#   {built} " in render("container", values_of(plan_of(app, read, target=target, stage="dev"), read))["Dockerfile"]


def test_the_image_runs_a_worker_as_nobody_and_takes_no_secret_along() -> None:
    made = files(*planned())
    lines = made["Dockerfile"].splitlines()
    assert "USER 10001:10001" in lines
    assert lines[-2:] == ['ENTRYPOINT ["cloudq"]', 'CMD ["worker", "--health-file=/tmp/alive"]']
    ignored = made["Dockerfile.dockerignore"].splitlines()
    assert {"**/build/function.zip", "build", "dist", "infrastructure"} <= set(ignored)
    assert not {"**/build", "**/dist"} & set(ignored), "a package of the app may be called so"
    assert {"**/.env", "**/*.env", "**/*.tfstate", "**/*.tfvars", "**/*.tfvars.json", "**/.git", "**/*.pem"} <= set(ignored)


@pytest.mark.parametrize("folder", [".", "../elsewhere", "odd [folder]"])
def test_no_more_than_the_files_own_folder_stays_out_of_the_image(folder: str) -> None:
    plan, read = planned()
    made = render("container", values_of(plan, read, folder=folder))["Dockerfile.dockerignore"].splitlines()
    assert made[-1] == "dist"


@pytest.mark.parametrize("brought", [True, False])
def test_the_image_has_the_cloudq_that_the_project_brings_and_else_the_one_that_wrote_it(brought: bool, tmp_path: Path) -> None:
    dockerfile = files(*planned())["Dockerfile"]
    (run,) = [each for each in re.findall(r"^RUN ((?:.*\\\n)*.*)", dockerfile, re.MULTILINE) if "cloudq-tasks" in each]
    uv = tmp_path / "uv"
    uv.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/told\n[ "$2" != show ] || exit {0 if brought else 1}\n')
    uv.chmod(0o755)
    subprocess.run(["/bin/sh", "-ec", run], env={"PATH": str(tmp_path)}, check=True, timeout=60)
    told = (tmp_path / "told").read_text().splitlines()
    assert told[0] == "pip show --quiet cloudq-tasks"
    assert told[1:] == [*([] if brought else [f"pip install cloudq-tasks=={__version__}"]), "pip install cloudq-tasks[aws,cli]"]
