"""cloudq on Pub/Sub beside Google's client library and Celery, and beside the loop of unary pulls over gRPC alone (`make bench-pubsub`).

All against one emulator of Google's, started here on one core; the client is on another. Every trial is a fresh process with a topic of its
own; the rounds are interleaved. Environment: ROUNDS (3), ONLY (words parted by commas; a case runs if one is in its name).
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from memory import python_of
from sqs import HERE, ROUNDS, Case, least, median, note, pin, rate, spread

PROJECT = "bench"
SECONDS = 1.5
"""Of a phase at most; a drain has twice that."""
FOREIGN = ("GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_CONFIG", "grpc_proxy", "http_proxy", "https_proxy")
"""What would lead Google's libraries past the emulator."""
RAW = "raw loop, bytes only, 16 pulls of 1,000"
BASE = "cloudq, 1,000 sync tasks at once"
CASES = [
    Case(RAW, "pubsub_raw.py", "bytes-16-1000", many=60_000),
    Case("raw loop, bytes only, over the client's own async API", "pubsub_raw.py", "api-16-1000", many=60_000),
    Case("raw loop with JSON, 16 pulls of 1,000", "pubsub_raw.py", "json-16-1000", many=60_000),
    Case(BASE, "pubsub_cloudq.py", "sync-1000", many=40_000),
    Case("cloudq, 100 sync tasks at once", "pubsub_cloudq.py", "sync-100", many=20_000),
    Case("cloudq, 1,000 async tasks at once", "pubsub_cloudq.py", "async-1000", many=40_000),
    Case("client library, streaming pull", "pubsub_library.py", "default", many=20_000),
    Case("client library, batches of 1,000, streaming pull", "pubsub_library.py", "tuned", many=20_000),
    Case("raw loop of unary pulls over the client library", "pubsub_library.py", "unary", many=20_000),
    Case("Celery, solo", "pubsub_celery.py", "solo-1", "celery-pubsub"),
    Case("Celery, 16 threads, prefetch 10 each", "pubsub_celery.py", "threads-16", "celery-pubsub"),
]


def emulator() -> list[str]:
    """How Google's emulator is started: its jar, because gcloud's wrapper leaves its Java behind when it is killed."""
    gcloud = shutil.which("gcloud")
    homes = [Path(gcloud).resolve().parents[1]] if gcloud else []
    for home in (*homes, Path("/usr/lib/google-cloud-sdk")):
        jars = sorted((home / "platform/pubsub-emulator/lib").glob("cloud-pubsub-emulator-*-all.jar"))
        if jars and shutil.which("java"):
            return ["java", "-Xmx2g", "-XX:+UseSerialGC", "-jar", str(jars[-1])]
    raise SystemExit("this needs Java, and google-cloud-cli-pubsub-emulator from Google's Debian repository")


@contextmanager
def served() -> Generator[str]:
    """The emulator on the first core; yields its ``host:port``."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [*emulator(), "--host=127.0.0.1", f"--port={address.rpartition(':')[2]}"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=lambda: pin(0, 0))
    try:
        until = time.monotonic() + 30
        while not answers(address):
            if server.poll() is not None or time.monotonic() > until:
                raise SystemExit("the emulator did not start")
            time.sleep(0.1)
        yield address
    finally:
        server.kill()
        server.wait(10)


def answers(address: str) -> bool:
    try:
        ask("GET", address, "")
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


def ask(method: str, address: str, path: str, body: dict[str, Any] | None = None) -> None:
    """A request to the emulator's REST interface."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{address}/{path}", data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        answer.read()


def make_queue(address: str, name: str, **settings: Any) -> None:
    """A topic and a subscription of one name."""
    topic = f"projects/{PROJECT}/topics/{name}"
    ask("PUT", address, f"v1/{topic}", {})
    ask("PUT", address, f"v1/projects/{PROJECT}/subscriptions/{name}", {"topic": topic, "ackDeadlineSeconds": 60, **settings})


def trial(case: Case, address: str) -> dict[str, Any]:
    """Run a case once, with a topic of its own and another for its dead letters."""
    queue = f"bench-{uuid4().hex[:8]}"
    make_queue(address, f"{queue}-dlq")
    policy = {"deadLetterTopic": f"projects/{PROJECT}/topics/{queue}-dlq", "maxDeliveryAttempts": 100}
    make_queue(address, queue, deadLetterPolicy=policy)
    command = [python_of(case.peer), str(HERE / "peers" / case.script), case.argument, str(SECONDS), str(case.many)]
    env = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    env |= {"PUBSUB_EMULATOR_HOST": address, "GOOGLE_CLOUD_PROJECT": PROJECT, "BENCH_QUEUE": queue}
    client = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pin(client.pid, 1)
    try:
        output, errors = client.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{case.name} did not end within a minute") from None
    finally:
        client.kill()
    if client.returncode != 0:
        raise SystemExit(f"{case.name} failed:\n{errors or output}")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def table(cases: list[Case]) -> str:
    """The results as Markdown."""
    by_name = {case.name: case for case in cases}
    raw, base = by_name.get(RAW), by_name.get(BASE)
    lines = [
        "| | publishes/s, 1 caller | 16 callers | in bulk | of raw | tasks/s | of raw | of cloudq | CPU µs to publish | to run |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        cells = [
            *(rate(median(case, 0.0, how)) for how in ("one", "shared", "many")),
            part(case, "many" if "many" in case.runs[0.0][0] else "shared", raw, "many"),
            spread(case, 0.0, "drain"),
            part(case, "drain", raw, "drain"),
            part(case, "drain", base, "drain"),
            *(least(case, 0.0, *each) for each in (("many cpu", "shared cpu"), ("drain cpu",))),
        ]
        lines.append(f"| {case.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def part(case: Case, what: str, whole: Case | None, of: str) -> str:
    """The median of each round's own ratio: what else the machine does changes from round to round."""
    ratios = [mine[what] / theirs[of] for mine, theirs in zip(case.runs[0.0], whole.runs[0.0], strict=True)] if whole else []
    return f"{statistics.median(ratios):.3f}" if ratios else "–"


def main() -> None:
    """Measure and print."""
    words = [word.strip() for word in os.environ.get("ONLY", "").split(",") if word.strip()]
    cases = [case for case in CASES if not words or any(word in case.name for word in words)]
    for peer in dict.fromkeys(case.peer for case in cases):
        python_of(peer)
    with served() as address:
        for _ in range(2):
            note("warming the emulator up")
            trial(CASES[0], address)
        for number in range(ROUNDS):
            for case in cases:
                note(f"round {number + 1} of {ROUNDS}: {case.name}")
                case.runs.setdefault(0.0, []).append(trial(case, address))
    note("")
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, Python {platform.python_version()}, {os.cpu_count()} cores, {ROUNDS} rounds\n")
    print(table(cases))
    print("\n" + ", ".join(dict.fromkeys(run["version"] for case in cases for run in case.runs[0.0])))
    if lost := {case.name: sum(run["lost"] for run in case.runs[0.0]) for case in cases if "cloudq" in case.name}:
        print("not run within the time: " + ", ".join(f"{name} {count:,}" for name, count in lost.items()))


if __name__ == "__main__":
    main()
