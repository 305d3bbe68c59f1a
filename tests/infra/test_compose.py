"""compose's file of the three apps under the Compose Specification's schema; and its services, run as the processes that they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudq import CloudQ, every
from cloudq.deploy.container import DATA, HEALTH, HEALTHY
from cloudq.deploy.plan import plan_of
from cloudq.deploy.settings import parse
from cloudq.deploy.targets import also_of, folder_of, values_of
from cloudq_templates import render
from tests.infra import tools
from tests.infra.apps import APPS, plan
from tests.servers import free_port, running
from tests.waiting import until


@pytest.mark.parametrize("name", APPS)
def test_the_schema_of_compose_takes_it(name: str, tmp_path: Path) -> None:
    made, settings = plan(name, "compose")
    file = tmp_path / "compose.yaml"
    file.write_text(render(folder_of("compose"), values_of(made, settings), also=also_of(made))["compose.yaml"], "utf-8")
    tools.script("check_compose.py", tools.folder() / "schemas" / "compose-spec.json", file)


TASKS = """
import time
from pathlib import Path
from cloudq import CloudQ, every

app = CloudQ("shop")

@app.task(name="slow", timeout="30s")
def slow(seconds: float) -> str:
    Path("began").touch()
    time.sleep(seconds)
    return "done"

@app.task(name="tick", queue="ticks", timeout="30s", schedule=every("1s"))
def tick() -> None:
    Path("ticked").touch()
"""


def services(folder: Path, port: int) -> dict[str, Any]:
    """Those of an app, with what is a container's own put into ``folder``."""
    app = CloudQ("shop")
    app.reference = "shop:app"
    app.task(name="slow", timeout="30s")(lambda: None)
    app.task(name="tick", queue="ticks", timeout="30s", schedule=every("1s"))(lambda: None)
    settings = parse({"store": True}, "dev")
    made = plan_of(app, settings, target="compose", stage="dev")
    text = render(folder_of("compose"), values_of(made, settings), also=also_of(made))["compose.yaml"]
    for inside, here in (
        ("http://queues:9324", f"http://127.0.0.1:{port}"),
        ("--port=9324", f"--port={port}"),
        ("--host=0.0.0.0", "--host=127.0.0.1"),
        ("?prefix=shop-dev-", "?prefix=shop-dev-&wait=1"),  # so long may a receive that is out hold the end up
        (DATA, str(folder)),
        (HEALTH, str(folder / "alive")),
    ):
        assert inside in text
        text = text.replace(inside, here)
    found: dict[str, Any] = yaml.safe_load(text)["services"]
    return found


def environment(service: dict[str, Any]) -> dict[str, str]:
    """A container's, which has nothing of this process's but what Python needs."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("CLOUDQ_", "AWS_"))} | service["environment"]


@contextmanager
def started(folder: Path, service: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of the image: its entrypoint is ``cloudq``."""
    process = subprocess.Popen([sys.executable, "-m", "cloudq.cli", *service["command"]], cwd=folder, env=environment(service))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_its_services_run_tasks_fire_schedules_and_end_what_runs_at_sigterm(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(TASKS, "utf-8")
    made = services(tmp_path, port := free_port())
    queues, worker = made["queues"], made["shop-dev-default"]
    command = [sys.executable, *queues["entrypoint"][1:], *queues["command"]]
    with ExitStack() as stack:
        stack.enter_context(running(command, ready=f"http://127.0.0.1:{port}/_cloudq/health", log=tmp_path / "queues.log"))
        up = [stack.enter_context(started(tmp_path, made[name])) for name in ("shop-dev-default", "schedules")]
        until((tmp_path / "ticked").exists, "a fire of the schedule")
        call = [sys.executable, "-m", "cloudq.cli", "call", "slow", "2", "--wait"]
        calling = subprocess.Popen(call, cwd=tmp_path, env=environment(worker), stdout=subprocess.PIPE)
        stack.callback(calling.kill)
        until((tmp_path / "began").exists, "the beginning of the task")
        subprocess.run(["sh", "-c", HEALTHY.replace(HEALTH, str(tmp_path / "alive"))], check=True)
        for process in up:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(60) for process in up] == [0, 0]
        answer, _ = calling.communicate(timeout=60)
        assert (calling.returncode, answer.strip()) == (0, b'"done"')
        old = time.time() - 120
        os.utime(tmp_path / "alive", (old, old))
        assert subprocess.run(["sh", "-c", HEALTHY.replace(HEALTH, str(tmp_path / "alive"))], check=False).returncode == 1
