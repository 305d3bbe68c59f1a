"""What runs and what has run, by the ``cloudq`` command: a worker process, a real SQS server, a real SQLite file."""

from __future__ import annotations

import json
import logging
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloudq import CloudQ
from cloudq.cli import app as commands
from cloudq.worker import Worker, WorkerOptions
from tests.integration.test_cli import COMMAND, PATIENCE, Started
from tests.servers import SQSServer, unique
from tests.waiting import until

TASKS = """
import os, pathlib, time
from cloudq import CloudQ, Retry

app = CloudQ("shop", store="sqlite:///results.db", default_queue=os.environ["QUEUE"])

@app.task(name="shop.add")
def add(a: int, b: int) -> int:
    return a + b

@app.task(name="shop.fails")
def fails(what: str) -> str:
    if pathlib.Path("repaired").exists():
        return f"{what} after all"
    raise ValueError(f"cannot {what}")

@app.task(name="shop.again", retry=Retry(max_retries=1, delay="10m", jitter=False))
def again() -> None:
    raise ConnectionError("no answer")

@app.task(name="shop.counts", bind=True)
def counts(self, total: int) -> str:
    done = 0
    while not pathlib.Path("enough").exists():
        done = min(done + 1, total - 1)
        self.progress(done, total)
        time.sleep(0.02)
    return "counted"
"""


@dataclass
class Shop:
    """A folder with an app, and its queue. Commands run in this process, which saves a second each; what goes on is a process."""

    folder: Path
    module: str
    queue: str
    capture: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch
    said: str = ""

    @property
    def app(self) -> CloudQ:
        app: CloudQ = sys.modules[self.module].app
        return app

    def run(self, *args: str, code: int = 0) -> Any:
        """Run a command; returns its JSON, or what it printed."""
        self.capture.readouterr()
        self.patch.setattr(sys, "argv", ["cloudq", *args])
        try:
            ended = commands.run()
        except SystemExit as end:
            ended = int(end.code or 0)
        printed, self.said = self.capture.readouterr()
        assert ended == code, f"{args} ended with {ended}:\n{printed}\n{self.said}"
        return json.loads(printed) if "--json" in args and args[0] != "events" else printed

    def is_worked(self) -> bool:
        """Whether a worker has reported."""
        try:
            return bool(self.run("inspect", "ping", "--json")["workers"])
        except AssertionError:
            return False

    def drain(self) -> None:
        worker = Worker(self.app, WorkerOptions(drain=True))
        worker.start()
        worker.join(PATIENCE)


@pytest.fixture
def shop(tmp_path: Path, sqs: SQSServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    for name in ("CLOUDQ_STORE", "CLOUDQ_TIMER"):
        monkeypatch.delenv(name, raising=False)
    shop = Shop(tmp_path, f"tasks_{unique().replace('-', '_')}", unique(), capsys, monkeypatch)
    (tmp_path / f"{shop.module}.py").write_text(TASKS)
    for name, value in {"CLOUDQ_BROKER": "sqs://?lease=12&wait=1", "QUEUE": shop.queue, "CLOUDQ_APP": f"{shop.module}:app"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sqs.make_queue(shop.queue, dead_letter=f"{shop.queue}-dlq")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield shop
    finally:
        if shop.module in sys.modules:
            shop.app.close()
            del sys.modules[shop.module]
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)


@pytest.fixture
def worker(shop: Shop) -> Iterator[Started]:
    """A worker's process that is ready."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    started = Started(subprocess.Popen([*COMMAND, "worker", "-E", "--concurrency", "3"], cwd=shop.folder, env=env, stderr=subprocess.PIPE))
    try:
        started.until("ready")
        until(shop.is_worked, "its report")
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.communicate()


ours = pytest.mark.parametrize("sqs_server", ["ours"], indirect=True)


@ours
def test_workers_and_what_they_run_are_seen_until_they_end(shop: Shop, worker: Started) -> None:
    shop.run("call", "shop.fails", "fly")
    counting = shop.run("call", "shop.counts", "100").strip()
    retried = shop.run("call", "shop.again").strip()
    delayed = shop.run("call", "shop.add", "1", "2", "--delay", "5m").strip()

    def stats() -> Any:
        return shop.run("inspect", "stats", "--json")["workers"][0]

    until(lambda: stats()["counts"] == {"done": 0, "again": 1, "later": 0, "dead": 1, "dropped": 0}, "its being counted")
    until(lambda: stats()["busy"] == 1, "its being seen")
    assert (stats()["concurrency"], stats()["queues"]) == (3, {shop.queue: 1})
    assert stats()["pid"] == worker.process.pid
    (active,) = shop.run("inspect", "active", "--json")["workers"]
    assert [(run["id"], run["task"], run["queue"]) for run in active["running"]] == [(counting, "shop.counts", shop.queue)]
    assert counting in shop.run("inspect", "active")
    assert "shop.again" in shop.run("inspect", "registered")
    assert [(each["id"], each["state"]) for each in shop.run("inspect", "scheduled", "--json")["tasks"]] == [
        (delayed, "QUEUED"),
        (retried, "RETRY"),
    ]
    (shop.folder / "enough").touch()
    assert worker.end() == 0
    assert "shop.again" in shop.run("inspect", "scheduled")
    assert shop.run("inspect", "ping", "--json", code=1) == {"workers": []}
    shop.run("inspect", "stats", code=1)
    assert "no worker has reported in the last 90 s" in shop.said

    happened = [json.loads(line) for line in shop.run("events", "--since", "10m", "--no-follow", "--json").splitlines()]
    of = {task: [each["event"] for each in happened if each["task"] == task] for task in {each["task"] for each in happened}}
    assert of == {
        None: ["online", "offline"],
        "shop.fails": ["started", "failed"],
        "shop.again": ["started", "retried"],
        "shop.counts": ["started", "succeeded"],
    }
    assert (happened[0]["event"], happened[-1]["event"]) == ("online", "offline")
    assert {each["id"] for each in happened if each["task"] == "shop.counts"} == {counting}
    assert "ValueError" in shop.run("events", "--since", "10m", "--no-follow", "--task", "*.fails", "--event", "failed")


@ours
def test_tasks_are_listed_shown_run_again_and_cancelled(shop: Shop) -> None:
    added = shop.run("call", "shop.add", "1", "2").strip()
    failed = shop.run("call", "shop.fails", "fly").strip()
    shop.drain()
    waiting = shop.run("call", "shop.add", "3", "4").strip()

    def listed(*args: str) -> list[str]:
        return [each["id"] for each in shop.run("task", "list", "--json", *args)["tasks"]]

    assert set(listed()) == {added, failed, waiting}
    assert listed()[0] == waiting
    assert set(listed("--task", "*.add")) == {added, waiting}
    assert listed("--state", "failure", "--state", "DEAD") == [failed]
    assert listed("--limit", "1") == [waiting]
    assert "ValueError: cannot fly" in shop.run("task", "list")
    first = shop.run("task", "list", "--json", "--read", "2")
    rest = shop.run("task", "list", "--json", "--after", first["next"])
    assert {each["id"] for each in (*first["tasks"], *rest["tasks"])} == {added, failed, waiting}
    assert (first["read"], rest["read"], rest["next"]) == (2, 1, None)
    shop.run("task", "list", "--state", "LOST", code=2)

    shown = shop.run("task", "show", failed, "--json")
    assert (shown["state"], shown["error"]["type"], shown["held_until"]) == ("FAILURE", "ValueError", None)
    assert "cannot {what}" in shop.run("task", "show", failed)
    shop.run("task", "show", "nothing", code=1)

    shop.run("task", "retry", added, waiting, "nothing", code=1)
    assert "it has succeeded" in shop.said
    assert "it has not failed: its state is QUEUED" in shop.said
    assert "the store knows nothing of it" in shop.said
    assert shop.run("task", "retry", failed, "--json") == {
        "sent": [{"id": failed, "task": "shop.fails", "queue": shop.queue}],
        "failed": [],
    }
    assert shop.run("task", "cancel", waiting, "--json") == {"tasks": [{"id": waiting, "state": "QUEUED", "changed": True}]}
    (shop.folder / "repaired").touch()
    shop.drain()
    assert shop.run("task", "show", failed, "--json")["value"] == "fly after all"
    assert listed("--state", "REVOKED") == [waiting]
    shop.run("task", "cancel", waiting, added, code=1)
    assert "has ended already: SUCCESS" in shop.said


@ours
def test_a_run_is_watched_and_cancelled(shop: Shop, worker: Started) -> None:
    id = shop.run("call", "shop.counts", "100").strip()
    until(lambda: (shop.run("result", id, "--json")["progress"] or {}).get("meta", {}).get("total") == 100, "its progress")
    shop.run("result", id, "--watch", "--timeout", "0.1s", code=4)
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm"}
    watcher = subprocess.Popen([*COMMAND, "result", id, "--watch"], cwd=shop.folder, env=env, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen, deadline = b"", time.monotonic() + PATIENCE
    while b"/100" not in seen:
        ready, _, _ = select.select([ours], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, seen
        seen += os.read(ours, 65536)
    assert shop.run("task", "cancel", id).strip().endswith("next heartbeat")
    try:
        while data := os.read(ours, 65536):
            seen += data
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert watcher.wait(PATIENCE) == 1
    assert b"REVOKED" in seen
    assert worker.end(signal.SIGINT) == 0


@ours
def test_what_needs_a_shared_store_says_so(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    (shop.folder / f"{shop.module}.py").write_text('from cloudq import CloudQ\napp = CloudQ("shop")\n')
    for command in (("inspect", "ping"), ("task", "list"), ("task", "cancel", "x")):
        shop.run(*command, code=2)
        assert "needs a store" in shop.said
    shop.app.close()
    del sys.modules[shop.module]
    monkeypatch.setenv("CLOUDQ_STORE", "memory://")
    shop.run("inspect", "ping", code=2)
    assert "memory:// lives inside one process" in shop.said
