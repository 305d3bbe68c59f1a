"""Where the portable tasks run: each host is a context in which what ``app`` sends is worked off."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cloudq import CloudQ
from cloudq.worker import Worker, WorkerOptions
from tests.acceptance import processes
from tests.acceptance.ledger import Ledger
from tests.acceptance.portable_tasks import build
from tests.event_source import EventSource
from tests.gcp_servers import PROJECT, PubSubServer
from tests.runtime_api import function
from tests.servers import REGION, SQSServer, missing, unique

MODULE = "tests.acceptance.portable_tasks"


@dataclass
class Place:
    """What a test sees of a host: an app to call from, and what happened there."""

    app: CloudQ
    ledger: Ledger
    queue: str
    wrote: Callable[[], str] = lambda: ""


@contextmanager
def memory(folder: Path) -> Iterator[Place]:
    """One process: the memory broker and a worker in the background."""
    ledger = Ledger(folder / "ledger")
    app = build(ledger, broker="memory://", store="memory://")
    worker = Worker(app, WorkerOptions(concurrency=8, wait=0.5))
    worker.start()
    try:
        yield Place(app, ledger, "default")
    finally:
        worker.stop()
        worker.join(30)
        app.close()
        ledger.close()


def _on_sqs(server: SQSServer, folder: Path) -> tuple[Place, dict[str, str]]:
    queue = unique("portable")
    server.make_queue(queue, dead_letter=f"{queue}-dlq", max_receives=10, VisibilityTimeout="8")
    return _at(queue, f"sqs://{REGION}/?lease=8", server.env, folder)


def _at(queue: str, broker: str, server: Mapping[str, str], folder: Path) -> tuple[Place, dict[str, str]]:
    ledger = Ledger(folder / "ledger")
    store = f"sqlite:///{folder}/store.db"
    app = build(ledger, broker=broker, store=store, default_queue=queue)
    env = {
        **server,
        "CLOUDQ_APP": f"{MODULE}:app",
        "CLOUDQ_BROKER": broker,
        "CLOUDQ_STORE": store,
        "PORTABLE_LEDGER": str(folder / "ledger"),
        "PORTABLE_QUEUE": queue,
    }
    return Place(app, ledger, queue), env


@contextmanager
def sqs_worker(server: SQSServer, folder: Path, *options: str) -> Iterator[Place]:
    """SQS, and ``cloudq worker`` in a process of its own."""
    with _worker(*_on_sqs(server, folder), folder, *options) as place:
        yield place


@contextmanager
def pubsub_worker(server: PubSubServer, folder: Path) -> Iterator[Place]:
    """Pub/Sub, and ``cloudq worker`` in a process of its own."""
    queue = unique("portable")
    server.make_queue(queue, dead_letter=f"{queue}-dlq")
    with _worker(*_at(queue, f"pubsub://{PROJECT}/?lease=8", server.env, folder), folder, "--concurrency", "8") as place:
        yield place


@contextmanager
def _worker(place: Place, env: dict[str, str], folder: Path, *options: str) -> Iterator[Place]:
    with processes.start(MODULE, *options, queues=[place.queue], env=env, log=folder / "worker.log") as worker:
        place.wrote = worker.wrote
        try:
            yield place
        finally:
            place.app.close()
            place.ledger.close()


@contextmanager
def sqs_lambda(server: SQSServer, folder: Path) -> Iterator[Place]:
    """SQS, and the Lambda handler under AWS's runtime client, fed by two pollers with an environment each."""
    if find_spec("awslambdaric") is None:
        missing("awslambdaric", "pip install awslambdaric")
    place, env = _on_sqs(server, folder)
    ended, faults = threading.Event(), list[BaseException]()

    def feed(number: int) -> None:
        log = folder / f"function-{number}.log"
        try:
            with function("cloudq_aws.entry.handler", env=env, log=log, timeout=6.0) as environment:
                EventSource(server.boto3, place.queue, environment).run(ended.is_set)
        except BaseException as fault:
            faults.append(fault)

    pollers = [threading.Thread(target=feed, args=(number,), daemon=True) for number in range(2)]
    for poller in pollers:
        poller.start()
    place.wrote = lambda: "\n".join(log.read_text(errors="replace")[-3000:] for log in folder.glob("function-*.log")) + repr(faults)
    try:
        yield place
    finally:
        ended.set()
        for poller in pollers:
            poller.join(30)
        place.app.close()
        place.ledger.close()


def dead_letters(place: Place) -> list[dict[str, Any]]:
    """What lies in the dead-letter queue."""
    from cloudq import letters

    found = place.app.io.run(letters.scan(place.app, f"{place.queue}-dlq"))
    return [dict(letter.fields) for letter in found.letters]
