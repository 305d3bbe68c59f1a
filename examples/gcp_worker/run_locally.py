"""Runs the worker on this machine, and stops it as GKE does: ``python run_locally.py``. It needs no account and no network.

Pub/Sub is Google's own emulator: the one at PUBSUB_EMULATOR_HOST, or one that is started here and needs Java. The worker is the command
that a container runs, with the environment that a pod sets.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
PROJECT = f"local-{os.getpid()}"
CLOUDQ = [sys.executable, "-m", "cloudq", "-A", "tasks:app"]
"""In a container just ``cloudq``, with CLOUDQ_APP=tasks:app in its environment."""
WORKER = [*CLOUDQ, "worker", "--concurrency", "1", "--grace", "25s", "--log-format", "json"]
"""What the container runs. --grace is below the pod's grace period, so that cloudq ends the work, and not SIGKILL."""
GRACE_PERIOD = 30.0
"""Seconds from SIGTERM to SIGKILL: terminationGracePeriodSeconds of a pod, by default 30."""


def main() -> None:
    with TemporaryDirectory(prefix="cloudq-worker-") as folder, pubsub_emulator() as address:
        create(address, "orders-dlq")
        create(address, "orders", dead_letter="orders-dlq")
        os.environ |= {
            "CLOUDQ_BROKER": f"pubsub://{PROJECT}/?wait=2",  # a worker that stops hears its last pull out: a short one, for a short example
            "CLOUDQ_STORE": f"sqlite:///{folder}/results.sqlite3",  # where hosts share no disk: firestore://my-project/shop
            "PUBSUB_EMULATOR_HOST": address,  # absent on Google Cloud: there the libraries find Google, and the service account of the pod
        }
        from tasks import app, charge, export, refund

        log = Path(folder, "worker.log")
        with worker(log) as first:
            charged = [charge.delay(f"order-{number}", 1250) for number in range(3)]
            refund.delay("order-0")
            for result in charged:
                print(result.get(timeout=30))
            begun, waiting = export.delay(1.5), charge.delay("order-3", 990)
            while begun.state not in ("STARTED", "SUCCESS"):
                time.sleep(0.05)
            code = stop(first)
        print(f"SIGTERM while the export ran: it is {begun.state}, what waited is {waiting.state}, the worker ended with {code}")
        with worker(log):
            print(f"the next worker goes on: {waiting.get(timeout=30)}")
        app.close()
        print("$ cloudq dlq list", flush=True)
        subprocess.run([*CLOUDQ, "dlq", "list"], cwd=HERE, check=True)


def stop(process: subprocess.Popen[bytes]) -> int:
    """Stop a container as GKE does: SIGTERM, and SIGKILL when the grace period is over. Returns the exit code."""
    process.terminate()
    try:
        return process.wait(GRACE_PERIOD)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@contextmanager
def worker(log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as stderr:
        process = subprocess.Popen(WORKER, cwd=HERE, stderr=stderr)
    try:
        yield process
    finally:
        stop(process)


@contextmanager
def pubsub_emulator() -> Iterator[str]:
    """The ``host:port`` of Google's emulator. Its jar is started directly: gcloud's wrapper would leave its Java behind."""
    if address := os.environ.get("PUBSUB_EMULATOR_HOST"):
        yield address
        return
    gcloud = shutil.which("gcloud")
    homes = [*([Path(gcloud).resolve().parents[1]] if gcloud else []), Path("/usr/lib/google-cloud-sdk")]
    jars = [jar for home in homes for jar in home.glob("platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar")]
    if not jars or not shutil.which("java"):
        sys.exit("the Pub/Sub emulator is not here: install Java and google-cloud-cli-pubsub-emulator (cloud.google.com/sdk/docs/install)")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = ["java", "-Xmx512m", "-jar", str(jars[-1]), "--host=127.0.0.1", f"--port={port}"]
    emulator = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                ask("GET", f"http://127.0.0.1:{port}/")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        emulator.kill()
        emulator.wait()


def create(address: str, queue: str, *, dead_letter: str | None = None) -> None:
    """Make a topic and its subscription, which are what a queue is. On Google Cloud: ``gcloud pubsub``, Terraform."""
    topics = f"projects/{PROJECT}/topics"
    policy = {"deadLetterPolicy": {"deadLetterTopic": f"{topics}/{dead_letter}", "maxDeliveryAttempts": 100}} if dead_letter else {}
    ask("PUT", f"http://{address}/v1/{topics}/{queue}", {})
    subscription = {"topic": f"{topics}/{queue}", "ackDeadlineSeconds": 60, **policy}
    ask("PUT", f"http://{address}/v1/projects/{PROJECT}/subscriptions/{queue}", subscription)


def ask(method: str, url: str, body: object = None) -> None:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        answer.read()


if __name__ == "__main__":
    main()
