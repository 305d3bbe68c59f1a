"""cloudq on SQS beside Celery, dramatiq_sqs and taskiq-aio-sqs, and beside the hand-written loop over the same SDK (`make bench-sqs`).

All against cloudq's own SQS server, which adds a latency and counts requests, on one core; the client is on another. Every trial is a fresh
process and a fresh server; the rounds are interleaved. Environment: ROUNDS (3), LATENCIES ("2, 10", in milliseconds), ONLY (words parted
by commas; a case runs if one is in its name), LOSSES (1; 0 leaves the last table out).
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory import python_of

HERE = Path(__file__).resolve().parent
ROUNDS = int(os.environ.get("ROUNDS", "3"))
LATENCIES = [float(each) / 1000 for each in os.environ.get("LATENCIES", "2, 10").split(",")]
SECONDS = 1.5
"""Of a phase at most; a drain has twice that."""
FAIL_EVERY = 7
ENV = {
    **os.environ,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass
class Case:
    """One row of each table."""

    name: str
    script: str
    argument: str
    peer: str | None = None
    """The environment to run in; ``None``: this one, which has cloudq."""
    raw: str | None = None
    """The row that is the floor of this one: same SDK, as many requests at once."""
    many: int = 6000
    """Messages to send in bulk."""
    runs: dict[float, list[dict[str, Any]]] = field(default_factory=dict)


RAW = "raw loop, aiobotocore, 16 at once"
RAW_2 = "raw loop, aiobotocore, 2 at once"
RAW_BOTO3 = "raw loop, boto3, 16 threads"
BASE = "cloudq, 160 tasks at once"
CASES = [
    Case(RAW, "sqs_raw.py", "aiobotocore-16"),
    Case(BASE, "sqs_cloudq.py", "aiobotocore-160", raw=RAW),
    Case(RAW_2, "sqs_raw.py", "aiobotocore-2", many=3000),
    Case("cloudq, 20 tasks at once", "sqs_cloudq.py", "aiobotocore-20", raw=RAW_2),
    Case(RAW_BOTO3, "sqs_raw.py", "boto3-16"),
    Case("cloudq over boto3, 160 tasks at once", "sqs_cloudq.py", "boto3-160", raw=RAW_BOTO3),
    Case("Celery, 16 threads, prefetch 10 each", "sqs_celery.py", "threads-16", "celery-sqs", many=1000),
    Case("dramatiq_sqs, 8 threads", "sqs_dramatiq.py", "8", "dramatiq-sqs", many=1000),
    Case("taskiq-aio-sqs, default", "sqs_taskiq.py", "default", "taskiq-sqs", many=1000),
    Case("taskiq-aio-sqs, tuned", "sqs_taskiq.py", "tuned", "taskiq-sqs", many=3000),
]


@contextmanager
def served(*options: str) -> Generator[str]:
    """A server with a queue and its dead-letter queue on the first core; yields its endpoint."""
    command = [sys.executable, "-m", "cloudq_aws.server", "--queue", "bench", "--queue", "bench-dlq", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        pin(server.pid, 0)
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait(10)


def pin(process: int, core: int) -> None:
    """Keep a process on one core, where the system can and there are two."""
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(process, {sorted(os.sched_getaffinity(0))[core]})


def trial(case: Case, *options: str, many: int, more: str = "") -> dict[str, Any]:
    """Run a case once, against a server of its own."""
    with served(*options) as endpoint:
        command = [python_of(case.peer), str(HERE / "peers" / case.script), case.argument, str(SECONDS), str(many), more]
        env = {**ENV, "AWS_ENDPOINT_URL": endpoint, "AWS_ENDPOINT_URL_SQS": endpoint}
        client = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        pin(client.pid, 1)
        try:
            output, errors = client.communicate(timeout=120)
        finally:
            client.kill()
    if client.returncode != 0:
        raise SystemExit(f"{case.name} failed:\n{errors or output}")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def median(case: Case | None, latency: float, what: str) -> float | None:
    """Of all rounds; None where the case has no such thing."""
    values = [run[what] for run in case.runs.get(latency, ()) if what in run] if case else []
    return statistics.median(values) if values else None


def table(cases: list[Case], latency: float) -> str:
    """The results at one latency as Markdown."""
    by_name = {case.name: case for case in cases}
    lines = [
        "| | sends/s, 1 caller | 16 callers | in bulk | of raw | tasks/s |"
        " of raw | of cloudq | requests a task | bytes | CPU µs to send | to run |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        raw, base = by_name.get(case.raw or RAW), by_name.get(BASE)
        floor = RAW_BOTO3 if case.raw == RAW_BOTO3 else RAW  # sending takes 16 at once whatever the worker
        drain = median(case, latency, "drain")
        sends = next((found for how in ("many", "shared") if (found := median(case, latency, f"{how} requests")) is not None), 0.0)
        bulk = next((found for how in ("many", "shared", "one") if (found := median(case, latency, how)) is not None), None)
        cells = [
            *(rate(median(case, latency, how)) for how in ("one", "shared", "many")),
            share(bulk, median(by_name.get(floor), latency, "many")),
            spread(case, latency, "drain"),
            share(drain, median(raw, latency, "drain")),
            share(drain, median(base, latency, "drain")),
            f"{sends + (median(case, latency, 'drain requests') or 0.0):.3f}",
            f"{median(case, latency, 'bytes'):,.0f}",
            *(least(case, latency, *each) for each in (("many cpu", "shared cpu", "one cpu"), ("drain cpu",))),
        ]
        lines.append(f"| {case.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rate(value: float | None) -> str:
    return f"{value:,.0f}" if value is not None else "–"


def spread(case: Case, latency: float, what: str) -> str:
    """The median, with the lowest and the highest."""
    values = sorted(run[what] for run in case.runs[latency])
    return f"{statistics.median(values):,.0f} ({values[0]:,.0f} – {values[-1]:,.0f})"


def least(case: Case, latency: float, *either: str) -> str:
    """CPU of the client's process a message, in µs: the lowest, which a busy machine disturbs least."""
    what = next(each for each in either if each in case.runs[latency][0])
    return f"{min(run[what] for run in case.runs[latency]) * 1e6:,.0f}"


def share(value: float | None, whole: float | None) -> str:
    return f"{value / whole:.3f}" if value is not None and whole else "–"


def main() -> None:
    """Measure and print."""
    words = [word.strip() for word in os.environ.get("ONLY", "").split(",") if word.strip()]
    cases = [case for case in CASES if not words or any(word in case.name for word in words)]
    for peer in dict.fromkeys(case.peer for case in cases):
        python_of(peer)
    for number in range(ROUNDS):
        for latency in LATENCIES:
            for case in cases:
                note(f"round {number + 1} of {ROUNDS}, {latency * 1000:g} ms: {case.name}")
                case.runs.setdefault(latency, []).append(trial(case, "--latency", str(latency), many=case.many))
    note("")
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, Python {platform.python_version()}, {os.cpu_count()} cores, {ROUNDS} rounds")
    for latency in LATENCIES:
        print(f"\nLatency {latency * 1000:g} ms\n\n{table(cases, latency)}")
    if os.environ.get("LOSSES", "1") != "0":
        print(f"\nEvery {FAIL_EVERY}th entry of batches failed\n\n| | calls that returned | of these never run |\n|---|---|---|")
        for case in cases:
            note(case.name)
            found = trial(case, "--fail-every", str(FAIL_EVERY), many=1000, more="complete")
            note("")
            print(f"| {case.name} | {found['accepted']:,} | {found['lost']:,} |")
    print("\n" + ", ".join(dict.fromkeys(run["version"] for case in cases for run in case.runs[LATENCIES[0]])))


def note(text: str) -> None:
    print(f"\r{text:<78}\r", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
