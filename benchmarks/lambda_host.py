"""Cold start and cost a record in Lambda: cloudq's handler beside Powertools' batch processors and a Celery app (`make bench-lambda`).

Each cold start is a fresh process that imports boto3 first, which the Lambda runtime brings anyway, and then what the function's module
imports: the time and the memory of that are counted. A record is one `add(2, 3)` in an SQS batch of 10, handled warm and without a
network: what is left is the handler's own work. Environment: ROUNDS (9).
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from memory import python_of  # the peers' environments

HERE = Path(__file__).resolve().parent
ROUNDS = int(os.environ.get("ROUNDS", "9"))
ENV = {
    **os.environ,
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_EC2_METADATA_DISABLED": "true",
    "POWERTOOLS_LOG_LEVEL": "ERROR",
    "PYTHONDONTWRITEBYTECODE": "",
}


@dataclass
class Case:
    """One row: a script that prints what it measured of itself."""

    name: str
    script: str
    peer: str | None = None
    runs: list[dict[str, float]] = field(default_factory=list)
    version: str = ""


CASES = [
    Case("cloudq", "lambda_cloudq.py"),
    Case("Powertools, utilities.batch", "lambda_powertools.py", "powertools"),
    Case("Celery app on SQS", "lambda_celery.py", "celery-sqs"),
]


def measure(case: Case) -> None:
    """Run a case once, in a process of its own."""
    command = [python_of(case.peer), str(HERE / "peers" / case.script)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{case.name} failed:\n{done.stderr or done.stdout}")
    found = json.loads(done.stdout.splitlines()[-1])
    case.version = found.pop("version")
    case.runs.append(found)


def median(case: Case, what: str) -> str:
    """Of all rounds, or a dash where a case has no such thing."""
    values = [run[what] for run in case.runs if what in run]
    return f"{statistics.median(values):.1f}" if values else "–"


def main() -> None:
    """Measure and print."""
    for case in CASES:
        measure(case)  # compiles what is imported; not counted
        case.runs.clear()
    for number in range(ROUNDS):
        for case in CASES:
            measure(case)
            print(f"\rround {number + 1} of {ROUNDS}: {case.name:<40}", end="", file=sys.stderr, flush=True)
    print("\r" + " " * 60 + "\r", end="", file=sys.stderr)
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, Python {platform.python_version()}, medians of {ROUNDS} fresh processes\n")
    print("| | import, ms | memory, MiB | sync, µs a record | async, µs a record | version |")
    print("|---|---|---|---|---|---|")
    for case in CASES:
        cells = " | ".join(median(case, what) for what in ("import_ms", "memory_mib", "sync_us", "async_us"))
        print(f"| {case.name} | {cells} | {case.version} |")


if __name__ == "__main__":
    main()
