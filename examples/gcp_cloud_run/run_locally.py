"""Runs the service on this machine, with Google's Pub/Sub emulator pushing to it: ``python run_locally.py``. It needs no account.

The emulator is the one at PUBSUB_EMULATOR_HOST, or one that is started here and needs Java.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PROJECT = f"local-{os.getpid()}"
INSTALL = "the Pub/Sub emulator is not here: install Java and google-cloud-cli-pubsub-emulator (cloud.google.com/sdk/docs/install)"


def main() -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        if "PUBSUB_EMULATOR_HOST" not in os.environ:
            os.environ["PUBSUB_EMULATOR_HOST"] = stack.enter_context(emulator(Path(folder)))
        os.environ.update(CLOUDQ_BROKER=f"pubsub://{PROJECT}/", CLOUDQ_STORE=f"sqlite:///{folder}/results.db")
        port = free_port()
        subscriber = create_queues(f"http://127.0.0.1:{port}/")
        command = [sys.executable, "-m", "uvicorn", "service:application", f"--port={port}", "--log-level=error"]
        service = subprocess.Popen(command, cwd=HERE)
        try:
            await_port(port, service)
            use_it(subscriber)
        finally:
            service.send_signal(signal.SIGTERM)  # as Cloud Run does: what runs is finished
            service.wait(20)
            subscriber.close()


def use_it(subscriber: Any) -> None:
    from tasks import app, charge, refund

    charged = [charge.delay(f"order-{number}", 1250) for number in range(3)]
    refund.delay("order-0")
    for result in charged:
        app.result(result.get(timeout=60)).get(timeout=60)
    reply = subscriber.pull(subscription=f"projects/{PROJECT}/subscriptions/orders-dlq", max_messages=1, timeout=30)
    letter = json.loads(reply.received_messages[0].message.data)
    print(f"dead letter: {letter['task']}{tuple(letter['args'])}: {letter['dead']['error']['detail']}")
    app.close()


def create_queues(endpoint: str) -> Any:
    """Topic and push subscription of the queue, and its dead letters, which are pulled; returns a client."""
    from google.cloud import pubsub_v1

    publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
    for queue, push_to in (("orders", endpoint), ("orders-dlq", None)):
        topic = f"projects/{PROJECT}/topics/{queue}"
        publisher.create_topic(name=topic)
        request: dict[str, Any] = {"name": f"projects/{PROJECT}/subscriptions/{queue}", "topic": topic, "ack_deadline_seconds": 600}
        if push_to is not None:
            request["push_config"] = {"push_endpoint": push_to}
        subscriber.create_subscription(request=request)
    publisher.transport.close()
    return subscriber


@contextmanager
def emulator(folder: Path) -> Iterator[str]:
    """Google's emulator, until the end of the block; yields its address. Without gcloud's wrapper, which leaves Java behind."""
    gcloud = shutil.which("gcloud")
    roots = [Path("/usr/lib/google-cloud-sdk"), *([Path(gcloud).resolve().parents[1]] if gcloud else [])]
    jars = [jar for root in roots for jar in root.glob("platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar")]
    if not jars or not shutil.which("java"):
        sys.exit(INSTALL)
    port = free_port()
    with (folder / "emulator.log").open("wb") as log:
        command = ["java", "-Xmx512m", "-jar", str(jars[-1]), "--host=127.0.0.1", f"--port={port}"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        await_port(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


def await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit(f"nothing listens on port {port}")


if __name__ == "__main__":
    main()
