"""Runs the worker on this machine, and stops it as ECS does: ``python run_locally.py``. It needs no account and no network.

SQS is cloudq's own server on 127.0.0.1. The worker is the command that a container runs, with the environment that a task definition sets.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
CLOUDQ = [sys.executable, "-m", "cloudq", "-A", "tasks:app"]
"""In a container just ``cloudq``, with CLOUDQ_APP=tasks:app in its environment."""
WORKER = [*CLOUDQ, "worker", "--concurrency", "1", "--grace", "25s", "--log-format", "json"]
"""What the container runs. --grace is below the stopTimeout, so that cloudq ends the work, and not SIGKILL."""
STOP_TIMEOUT = 30.0
"""Seconds from SIGTERM to SIGKILL: stopTimeout in an ECS task definition, by default 30."""


def main() -> None:
    with TemporaryDirectory(prefix="cloudq-worker-") as folder, sqs_server("orders", "orders-dlq") as endpoint:
        os.environ |= {
            "CLOUDQ_BROKER": "sqs://eu-west-1/?wait=2",  # a worker that stops hears its last poll out: a short one, for a short example
            "CLOUDQ_STORE": f"sqlite:///{folder}/results.sqlite3",  # in AWS, where hosts share no disk: dynamodb://eu-west-1/TABLE
            # In AWS these are absent: the SDK finds the role of the task or of the instance, and AWS's own endpoint.
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
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
    """Stop a container as ECS does: SIGTERM, and SIGKILL when stopTimeout is over. Returns the exit code."""
    process.terminate()
    try:
        return process.wait(STOP_TIMEOUT)
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
def sqs_server(*queues: str) -> Iterator[str]:
    """cloudq's SQS server in a process of its own, with these queues; yields its endpoint."""
    made = [part for queue in queues for part in ("--queue", queue)]
    server = subprocess.Popen([sys.executable, "-m", "cloudq_aws.server", *made], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        with server.stdout:
            yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
