"""Tasks a second in one process: cloudq on memory://, beside huey, taskiq, dramatiq and Celery on theirs (`make bench-memory`).

Every measurement is a fresh process; the rounds are interleaved, so that a busy moment of the machine hurts all alike. Environment:
ROUNDS (5), TASKS (50000), ONLY (words parted by commas; a case runs if one is in its name), CPU (a core to pin each measurement to, by
taskset).
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROUNDS = int(os.environ.get("ROUNDS", "5"))
TASKS = int(os.environ.get("TASKS", "50000"))
BASE = "cloudq, send_many, sync, 10 threads"


@dataclass
class Case:
    """One row of the table."""

    name: str
    script: str
    argument: str
    peer: str | None = None
    """The environment to run in; ``None``: this one, which has cloudq."""
    slow: bool = False
    """Takes so long that three rounds must do."""
    runs: list[dict[str, float]] = field(default_factory=list)
    version: str = ""


CASES = [
    Case(BASE, "on_cloudq.py", "many-sync-10"),
    Case("cloudq, send_many, sync, 100 threads", "on_cloudq.py", "many-sync-100"),
    Case("cloudq, send_many, sync, 1 thread", "on_cloudq.py", "many-sync-1"),
    Case("cloudq, send_many, async, 10 at once", "on_cloudq.py", "many-async-10"),
    Case("cloudq, send_many, async, 100 at once", "on_cloudq.py", "many-async-100"),
    Case("cloudq, delay, sync, 10 threads", "on_cloudq.py", "delay-sync-10"),
    Case("cloudq, delay, async, 100 at once", "on_cloudq.py", "delay-async-100"),
    Case("huey, 1 thread", "on_huey.py", "1", "huey"),
    Case("huey, 10 threads", "on_huey.py", "10", "huey"),
    Case("taskiq, async, awaited in place", "on_taskiq.py", "async-inplace", "taskiq"),
    Case("taskiq, async, spawned (its default)", "on_taskiq.py", "async-spawn", "taskiq"),
    Case("taskiq, sync, pool of 10", "on_taskiq.py", "sync-inplace", "taskiq", slow=True),
    Case("dramatiq, 10 threads, no middleware", "on_dramatiq.py", "bare-10", "dramatiq"),
    Case("dramatiq, 10 threads", "on_dramatiq.py", "default-10", "dramatiq"),
    Case("dramatiq, 1 thread", "on_dramatiq.py", "default-1", "dramatiq"),
    Case("Celery, memory transport, solo", "on_celery.py", "solo", "celery", slow=True),
    Case("Celery, memory transport, 10 threads", "on_celery.py", "threads-10", "celery", slow=True),
    Case("note: Celery, task_always_eager (no queue)", "on_celery.py", "eager", "celery", slow=True),
    Case("floor: JSON out and in", "floor.py", "json"),
    Case("floor: queue.Queue and a thread", "floor.py", "thread-queue"),
    Case("floor: queue.SimpleQueue and a thread", "floor.py", "thread-simplequeue"),
    Case("floor: asyncio.Queue", "floor.py", "asyncio-queue"),
]


def python_of(peer: str | None) -> str:
    """The interpreter of a peer's environment, made from its pins on first use and when they change."""
    if peer is None:
        return sys.executable
    pins = (HERE / "peers" / f"{peer}.txt").read_text(encoding="utf-8")
    home = HERE / ".venvs" / peer
    python, stamp = home / "bin" / "python", home / ".pins"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != pins:
        print(f"setting up {peer} (once) ...", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True, symlinks=True)
        options = ["-qq", "--disable-pip-version-check", "--require-hashes"]
        subprocess.run([python, "-m", "pip", "install", *options, "-r", HERE / "peers" / f"{peer}.txt"], check=True)
        stamp.write_text(pins, encoding="utf-8")
    return str(python)


def measure(case: Case) -> None:
    """Run a case once, in a process of its own."""
    pinned = ["taskset", "-c", os.environ["CPU"]] if "CPU" in os.environ and shutil.which("taskset") else []
    command = [*pinned, python_of(case.peer), str(HERE / "peers" / case.script), case.argument, str(TASKS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{case.name} failed:\n{done.stderr or done.stdout}")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ran"] == TASKS
    case.version = found.pop("version")
    case.runs.append(found)


def totals(case: Case) -> list[float]:
    """Seconds of sending and running, a round each."""
    return [run["send"] + run["run"] for run in case.runs]


def table(cases: list[Case]) -> str:
    """The results as Markdown."""
    base = next((statistics.median(totals(case)) for case in cases if case.name == BASE), None)
    lines = [
        "| | tasks/s, median (lowest – highest) | of cloudq | µs to send | µs to run | CPU µs, lowest | version |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        seconds = totals(case)
        rates = sorted(TASKS / each for each in seconds)
        median = statistics.median(seconds)
        send, run = (statistics.median(each[part] for each in case.runs) / TASKS * 1e6 for part in ("send", "run"))
        ratio = f"{base / median:.2f}" if base else "–"
        cpu = min(each["cpu"] for each in case.runs) / TASKS * 1e6  # of the whole process: what the least disturbed round tells
        together = case.name.startswith(("taskiq, async, awaited", "taskiq, sync", "note"))
        phases = f"| {send + run:.1f} together | " if together else f"| {send:.1f} | {run:.1f} "
        lines.append(
            f"| {case.name} | {TASKS / median:,.0f} ({rates[0]:,.0f} – {rates[-1]:,.0f}) | {ratio} {phases}| {cpu:.1f} | {case.version} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    words = [word.strip() for word in os.environ.get("ONLY", "").split(",") if word.strip()]
    cases = [case for case in CASES if not words or any(word in case.name for word in words)]
    for peer in dict.fromkeys(case.peer for case in cases):
        python_of(peer)
    for number in range(ROUNDS):
        for case in cases:
            if not (case.slow and number >= 3):
                measure(case)
                print(f"\rround {number + 1} of {ROUNDS}: {case.name:<50}", end="", file=sys.stderr, flush=True)
    print("\r" + " " * 78 + "\r", end="", file=sys.stderr)
    pinned = f", pinned to core {os.environ['CPU']}" if "CPU" in os.environ else ""
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, Python {platform.python_version()}, {os.cpu_count()} cores{pinned}")
    print(f"{TASKS:,} tasks add(2, 3), {ROUNDS} rounds\n")
    print(table(cases))


if __name__ == "__main__":
    main()
