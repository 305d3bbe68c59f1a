"""The ``cloudq`` command as its users run it: real processes, a real SQS server, a real SQLite file."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cloudq.cli.app import cli
from tests.servers import SQSServer, free_port, moto, unique
from tests.waiting import until

TASKS = """
import os, pathlib, time
from datetime import date
from cloudq import CloudQ

app = CloudQ("shop", store="sqlite:///results.db", default_queue=os.environ.get("QUEUE", "default"))

@app.task
def add(a: int, b: int) -> int:
    return a + b

@app.task
def fails(what: str) -> str:
    if pathlib.Path("repaired").exists():
        return f"{what} after all"
    raise ValueError(f"cannot {what}")

@app.task
def slow(seconds: float) -> str:
    pathlib.Path("begun").touch()
    time.sleep(seconds)
    return "slept"

@app.task
def next_day(day: date) -> date:
    return date.fromordinal(day.toordinal() + 1)

@app.task
def pid() -> int:
    return os.getpid()
"""

COMMAND = [sys.executable, "-m", "cloudq.cli"]
BROKER = "sqs://eu-west-1/?lease=60&wait=1"
PATIENCE = 120.0


@dataclass
class Shop:
    """A folder with an app, and its queue."""

    folder: Path
    queue: str = "default"
    started: list[Started] = field(default_factory=lambda: [])

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "QUEUE": self.queue, "CLOUDQ_APP": "tasks:app", "PYTHONUNBUFFERED": "1"}

    def run(self, *args: str, code: int = 0, **env: str) -> Any:
        """Run a command to its end; returns its JSON, or what it printed."""
        done = subprocess.run([*COMMAND, *args], cwd=self.folder, env={**self.env, **env}, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, f"{args} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        if code not in (0, 1):
            assert "Traceback" not in done.stderr
        self.said = done.stderr
        return json.loads(done.stdout) if "--json" in args else done.stdout

    def start(self, *args: str, **env: str) -> Started:
        """Start a command that goes on."""
        process = subprocess.Popen([*COMMAND, *args], cwd=self.folder, env={**self.env, **env}, stderr=subprocess.PIPE)
        started = Started(process)
        self.started.append(started)
        return started


@dataclass
class Started:
    """A command that goes on, and what it has written to stderr so far."""

    process: subprocess.Popen[bytes]
    said: str = ""

    def until(self, words: str, count: int = 1) -> str:
        """Wait until it has said ``words`` so often."""
        assert self.process.stderr is not None
        deadline = time.monotonic() + PATIENCE
        while self.said.count(words) < count:
            ready, _, _ = select.select([self.process.stderr], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self.process.stderr.fileno(), 65536) if ready else b""
            assert chunk, f"it never said {words!r} {count} times, but:\n{self.said}"
            self.said += chunk.decode()
        return self.said

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it, and return its exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        _, rest = self.process.communicate(timeout=PATIENCE)
        self.said += rest.decode()
        return self.process.returncode


@pytest.fixture(scope="module")
def sqs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SQSServer]:
    """One server that is none of ours: these tests are about commands, and long."""
    with moto(tmp_path_factory.mktemp("moto")) as server:
        yield server
        server.boto3.close()


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """A shop on memory://."""
    for name in ("CLOUDQ_BROKER", "CLOUDQ_STORE", "CLOUDQ_TIMER"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tasks.py").write_text(TASKS)
    shop = Shop(tmp_path)
    try:
        yield shop
    finally:
        for started in shop.started:
            if started.process.poll() is None:
                started.process.kill()
            started.process.communicate()


@pytest.fixture
def shop(local: Shop, sqs: SQSServer, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A shop on a real SQS server."""
    monkeypatch.setenv("CLOUDQ_BROKER", BROKER)
    local.queue = unique()
    sqs.make_queue(local.queue, dead_letter=f"{local.queue}-dlq")
    return local


# ---------------------------------------------------------------------- call, result


def test_a_call_is_worked_off_and_its_result_shown(shop: Shop) -> None:
    id = shop.run("call", "tasks.add", "-1", "b=4").strip()
    assert shop.run("result", id, "--json")["state"] == "QUEUED"
    shop.run("worker", "--drain")
    result = shop.run("result", id, "--json")
    assert {**result, "sent": 0, "started": 0, "finished": 0} == {
        "id": id, "task": "tasks.add", "state": "SUCCESS", "queue": shop.queue, "attempt": 0, "sent": 0, "started": 0, "finished": 0,
        "revoked": False, "progress": None, "value": 3, "error": None, "reason": None,
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", result["finished"])
    assert "SUCCESS" in shop.run("result", id)


def test_a_call_waits_for_its_result_where_a_worker_is_there(shop: Shop) -> None:
    worker = shop.start("worker")
    worker.until("ready")
    assert shop.run("call", "tasks.next_day", "2026-02-28", "--wait") == '"2026-03-01"\n'
    assert shop.run("call", "tasks.fails", "--kwargs", '{"what": "fly"}', "--wait", "--json", code=1)["error"]["type"] == "ValueError"
    assert worker.end() == 0


def test_what_has_no_result_in_time_ends_with_4(shop: Shop) -> None:
    id = shop.run("call", "tasks.add", "1", "2", "--timeout", "0.5s", code=4).strip()
    assert shop.run("result", id, "--timeout", "100ms", "--json", code=4)["state"] == "QUEUED"
    assert shop.run("result", "unknown", "--json", code=1)["state"] == "PENDING"


def test_a_wrong_call_sends_nothing_and_ends_with_2(shop: Shop, sqs: SQSServer) -> None:
    shop.run("call", "tasks.ad", "1", "2", code=2)
    assert "did you mean tasks.add" in shop.said
    shop.run("call", "tasks.add", "one", "2", code=2)
    assert "'a'" in shop.said
    shop.run("call", "tasks.add", "-1", "2", "--wiat", code=2)
    assert "no option --wiat" in " ".join(shop.said.split())
    shop.run("call", "tasks.add", "[1", code=2)
    assert sqs.depth(shop.queue) == 0
    shop.run("call", "elsewhere.task", "--force", "--args", '[1, {"a": null}]')
    assert sqs.depth(shop.queue) == 1


# ---------------------------------------------------------------------- worker


def test_sigterm_lets_what_runs_finish(shop: Shop) -> None:
    worker = shop.start("worker")
    id = shop.run("call", "tasks.slow", "1.5").strip()
    until((shop.folder / "begun").exists, "the beginning of the task")
    assert worker.end() == 0
    assert shop.run("result", id, "--json")["value"] == "slept"
    assert "ended (asked) after 1 messages" in worker.said


def test_a_second_signal_ends_at_once_and_loses_nothing(shop: Shop, sqs: SQSServer) -> None:
    worker = shop.start("worker")
    shop.run("call", "tasks.slow", "20")
    until((shop.folder / "begun").exists, "the beginning of the task")
    worker.process.send_signal(signal.SIGINT)
    worker.until("stopping")
    assert worker.end() == 128 + signal.SIGTERM
    assert "second signal" in worker.said
    assert sqs.depth(shop.queue) == 1


def test_once_ends_after_the_first_batch(shop: Shop) -> None:
    for _ in range(2):
        shop.run("call", "tasks.add", "1", "2")
    shop.run("worker", "--once", "-c", "1")
    assert shop.run("queue", "stats", shop.queue, "--json")["queues"][0]["ready"] == 1


def test_a_worker_that_has_run_its_number_of_tasks_replaces_itself_under_the_same_pid(shop: Shop) -> None:
    worker = shop.start("worker", "--max-tasks", "2", "-c", "2", "--log-format", "json")
    pids = [json.loads(shop.run("call", "tasks.pid", "--wait")) for _ in range(3)]
    worker.until("ready", count=2)
    assert set(pids) == {worker.process.pid}
    assert worker.end() == 0
    lines = [json.loads(line) for line in worker.said.splitlines()]
    assert sum("ended (recycle)" in line["message"] for line in lines) == 1
    done = [line for line in lines if line.get("outcome") == "done"]
    assert len(done) == 3
    assert {"ts", "level", "logger", "message", "task", "task_id", "queue", "attempt", "outcome", "duration"} == set(done[0])


def test_a_change_of_the_source_starts_the_worker_anew(shop: Shop) -> None:
    worker = shop.start("worker", "--reload")
    worker.until("ready")
    (shop.folder / "tasks.py").write_text(TASKS.replace("a + b", "a * b * 100"))
    worker.until("ready", count=2)
    assert shop.run("call", "tasks.add", "2", "3", "--wait") == "600\n"
    (shop.folder / "tasks.py").write_text("def broken(:")
    worker.until("waiting for a change")
    (shop.folder / "tasks.py").write_text(TASKS)
    worker.until("ready", count=3)
    assert worker.end() == 0
    assert worker.said.count("ended (asked)") == 3


def test_a_health_file_shows_that_a_worker_is_well(shop: Shop) -> None:
    worker = shop.start("worker", "--health-file", "alive")
    until((shop.folder / "alive").exists, "a touch of the health file")
    assert worker.end() == 0


def test_a_person_sees_a_banner_and_a_line_for_each_task(shop: Shop) -> None:
    shop.run("call", "tasks.add", "1", "2")
    shop.run("call", "tasks.fails", "fly")
    parent, child = pty.openpty()
    env = {**shop.env, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([*COMMAND, "worker", "--drain"], cwd=shop.folder, env=env, stdin=child, stdout=child, stderr=child)
    os.close(child)
    said = b""
    while True:
        try:
            said += os.read(parent, 65536)
        except OSError:  # the other side is closed
            break
    os.close(parent)
    assert process.wait(PATIENCE) == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", said.decode())
    assert re.search(rf"broker +{re.escape(BROKER)}", text)
    assert re.search(r"✓ tasks\.add\[\w+\] [\d.]+ m?s", text)
    assert re.search(r"✗ tasks\.fails\[\w+\] [\d.]+ m?s\s+dead: it raised ValueError: cannot fly", text)


# ---------------------------------------------------------------------- queues and dead letters


def test_a_paused_queue_is_shown_and_left_alone_until_it_is_resumed(shop: Shop) -> None:
    assert shop.run("queue", "pause", shop.queue, "--json") == {"queue": shop.queue, "paused": True, "changed": True}
    assert "already" in shop.run("queue", "pause", shop.queue)
    assert "event source mapping" in shop.said
    assert shop.run("queue", "list", "--json")["queues"][0]["paused"]
    id = shop.run("call", "tasks.add", "1", "2").strip()
    shop.run("worker", "--drain")
    assert shop.run("result", id, "--json")["state"] == "QUEUED"
    assert "goes on" in shop.run("queue", "resume", shop.queue)
    shop.run("worker", "--drain")
    assert shop.run("result", id, "--json")["value"] == 3
    shop.run("queue", "pause", "no-such-queue", code=1)


def test_dead_letters_are_listed_shown_and_redriven(shop: Shop) -> None:
    shop.run("call", "tasks.add", "1", "2")
    ids = [shop.run("call", "tasks.fails", what).strip() for what in ("fly", "swim")]
    shop.run("worker", "--drain")
    assert shop.run("queue", "list", "--json") == {
        "queues": [{
            "name": shop.queue, "exists": True, "ready": 0, "in_flight": 0, "delayed": 0, "oldest": None, "paused": None,
            "dead_letter": {"name": f"{shop.queue}-dlq", "exists": True, "ready": 2, "in_flight": 0, "delayed": 0, "oldest": None},
        }]
    }  # fmt: skip
    [listed] = shop.run("dlq", "list", "--error", "cannot fly", "--json")["queues"]
    assert [letter["id"] for letter in listed["letters"]] == ids[:1]
    assert listed["letters"][0]["error"] == {"type": "ValueError", "detail": "cannot fly"}

    shown = shop.run("dlq", "show", shop.queue, ids[1], "--json")
    assert "raise ValueError" in shown["traceback"]
    assert "args" not in shown["message"]
    assert shop.run("dlq", "show", shop.queue, ids[1], "--payload", "--json")["message"]["args"] == ["swim"]
    shop.run("dlq", "show", shop.queue, "nobody", code=1)

    shop.run("dlq", "redrive", code=2)
    shop.run("dlq", "redrive", shop.queue, "--all", code=2)
    assert "--yes" in shop.said
    (shop.folder / "repaired").touch()
    dry = shop.run("dlq", "redrive", "--all", "--dry-run", "--json")  # the app's only queue
    assert len(dry["sent"]) == 2
    [everywhere] = shop.run("dlq", "redrive", "--all-queues", "--error", "swim", "--dry-run", "--json")["queues"]
    assert [letter["id"] for letter in everywhere["sent"]] == ids[1:]
    done = shop.run("dlq", "redrive", shop.queue, ids[1], "nobody", "--yes", "--json", code=1)
    assert done["sent"] == [{"id": ids[1], "task": "tasks.fails", "queue": shop.queue}]
    assert done["not_found"] == ["nobody"]
    shop.run("worker", "--drain")
    assert shop.run("result", ids[1], "--json")["value"] == "swim after all"
    assert shop.run("result", ids[0], "--json", code=1)["state"] == "FAILURE"


def test_dead_letters_are_exported_with_all_that_they_say_and_deleted_once_on_disk(shop: Shop, sqs: SQSServer) -> None:
    id = shop.run("call", "tasks.fails", "fly").strip()
    sqs.boto3.send_message(QueueUrl=sqs.boto3.get_queue_url(QueueName=shop.queue)["QueueUrl"], MessageBody="no message")
    shop.run("worker", "--drain")
    dead = f"{shop.queue}-dlq"
    call, junk = sorted(map(json.loads, shop.run("dlq", "export").splitlines()), key=lambda letter: letter["task"] is None)
    assert (call["id"], call["task"], call["queue"], call["dead_letter_queue"]) == (id, "tasks.fails", shop.queue, dead)
    assert (call["message"]["args"], call["error"], call["attempt"]) == (["fly"], {"type": "ValueError", "detail": "cannot fly"}, 0)
    assert (call["reason"], call["raw"], "dead" in call["message"]) == ("it raised ValueError", None, False)
    assert "raise ValueError" in call["traceback"]
    assert (base64.b64decode(junk["raw"]), junk["task"]) == (b"no message", None)
    assert sqs.depth(dead) == 2

    shop.run("dlq", "export", "--delete", "--yes", code=2)
    shop.run("dlq", "export", "-o", "letters.jsonl", "--delete", code=2)
    assert not (shop.folder / "letters.jsonl").exists()
    shop.run("dlq", "export", shop.queue, "--task", "tasks.fails", "-o", "letters.jsonl", "--delete", "--yes")
    assert json.loads((shop.folder / "letters.jsonl").read_text()) == call
    assert sqs.depth(dead) == 1
    shop.run("dlq", "export", "-o", "letters.jsonl", code=2)
    assert json.loads((shop.folder / "letters.jsonl").read_text()) == call


def test_a_peek_gives_back_and_a_purge_deletes(shop: Shop, sqs: SQSServer) -> None:
    ids = {shop.run("call", "tasks.add", "1", str(n)).strip() for n in range(3)}
    assert {each["id"] for each in shop.run("queue", "peek", shop.queue, "--json")["messages"]} == ids
    assert sqs.depth(shop.queue) == 3
    shop.run("queue", "purge", shop.queue, code=2)
    assert shop.run("queue", "purge", shop.queue, "--dry-run", "--json") == {"queue": shop.queue, "dry_run": True, "deleted": 3}
    assert shop.run("queue", "purge", shop.queue, "--yes", "--json") == {"queue": shop.queue, "dry_run": False, "deleted": 3}
    assert sqs.depth(shop.queue) == 0
    shop.run("queue", "stats", "no-such-queue", code=1)


# ---------------------------------------------------------------------- what goes wrong, and dev


def test_a_broker_that_is_down_ends_with_3_and_one_line(shop: Shop) -> None:
    shop.run("queue", "list", code=3, AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}")
    assert len(shop.said.splitlines()) == 1


def test_a_worker_says_which_queue_is_missing(shop: Shop) -> None:
    shop.run("worker", "-Q", "nowhere", code=2)
    assert "'nowhere'" in shop.said


def test_memory_is_refused_where_it_makes_no_sense_with_the_way_out(local: Shop) -> None:
    local.run("worker", code=2)
    assert "cloudq dev" in local.said
    local.run("worker", "--processes", "2", code=2)
    assert "its children" in local.said
    local.run("queue", "list", code=2)
    assert "inside one process" in local.said
    local.run("call", "tasks.add", "1", "2", code=2)


def test_dev_works_on_memory_and_says_once_that_a_reload_forgets(local: Shop) -> None:
    started = "\nimport threading\nthreading.Timer(0.3, lambda: add.delay(1, 2)).start()\n"
    (local.folder / "tasks.py").write_text(TASKS + started)
    dev = local.start("dev", "--log-format", "json")
    dev.until('"outcome": "done"')
    (local.folder / "tasks.py").touch()
    dev.until('"outcome": "done"', count=2)
    assert dev.end(signal.SIGINT) == 0
    assert dev.said.count("starts empty") == 1


def test_the_app_is_found_by_option_or_pyproject_or_asked_for(local: Shop) -> None:
    deep = local.folder / "deep"
    deep.mkdir()
    (local.folder / "pyproject.toml").write_text('[tool.cloudq]\napp = "tasks:app"\n')
    for args, code, said in ((("-A", "tasks:nothing"), 2, "no CloudQ app"), ((), 1, "")):
        env = {**local.env, "CLOUDQ_APP": ""}
        done = subprocess.run(
            [*COMMAND, *args, "result", "x"], cwd=deep if not args else local.folder, env=env, capture_output=True, text=True
        )
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    (local.folder / "pyproject.toml").write_text("")
    local.run("result", "x", code=2, CLOUDQ_APP="")
    assert "-A module:app" in local.said


def test_without_its_extra_the_command_says_how_to_install_it() -> None:
    script = "import sys; sys.modules['typer'] = None; from cloudq.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'cloudq-tasks[cli]'" in done.stderr


def test_every_command_explains_itself() -> None:
    runner = CliRunner()
    assert re.fullmatch(r"cloudq \d+\.\d+\.\d+\S*\n", runner.invoke(cli, ["--version"]).stdout)
    commands = (
        "",
        "worker",
        "dev",
        "call",
        "result",
        "queue list",
        "queue stats",
        "queue peek",
        "queue purge",
        "dlq list",
        "dlq show",
        "dlq redrive",
        "task list",
        "task show",
        "task retry",
        "task cancel",
        "inspect ping",
        "inspect active",
        "inspect registered",
        "inspect stats",
        "inspect scheduled",
        "events",
    )
    for command in commands:
        answer = runner.invoke(cli, [*command.split(), "--help"])
        assert answer.exit_code == 0
        assert "Usage" in answer.stdout
