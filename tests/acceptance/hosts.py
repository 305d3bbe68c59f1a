"""Where the portable tasks run: each host is a context in which what ``app`` sends is worked off."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cloudq import CloudQ
from cloudq.clock import ManualClock
from cloudq.worker import Worker, WorkerOptions
from tests.acceptance import processes
from tests.acceptance.ledger import Ledger
from tests.acceptance.portable_tasks import build
from tests.event_source import EventSource
from tests.gcp_servers import PROJECT, Emulator, PubSubServer
from tests.google_api import google_api
from tests.push_host import ACCOUNT, AUDIENCE, feeding, functions_framework, issuer, uvicorn, way
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
        worker.join(60)
        app.close()
        ledger.close()


def _on_sqs(server: SQSServer, folder: Path) -> tuple[Place, dict[str, str]]:
    queue = unique("portable")
    server.make_queue(queue, dead_letter=f"{queue}-dlq", max_receives=10, VisibilityTimeout="60")
    return _at(queue, f"sqs://{REGION}/?lease=60&wait=4", server.env, folder)


def _at(
    queue: str, broker: str, server: Mapping[str, str], folder: Path, *, store: str = "", **settings: str
) -> tuple[Place, dict[str, str]]:
    ledger = Ledger(folder / "ledger")
    store = store or f"sqlite:///{folder}/store.db"
    app = build(ledger, broker=broker, store=store, default_queue=queue, **settings)
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
def pubsub_worker(server: PubSubServer, firestore: Emulator, folder: Path) -> Iterator[Place]:
    """Pub/Sub with Firestore, and ``cloudq worker`` in a process of its own."""
    queue = unique("portable")
    server.make_queue(queue, dead_letter=f"{queue}-dlq")
    broker, env = f"pubsub://{PROJECT}/?lease=60&wait=4", server.env | firestore.env
    with _worker(*_at(queue, broker, env, folder, store=f"firestore:///{queue}"), folder, "--concurrency", "8") as place:
        yield place


@contextmanager
def pubsub_push(server: PubSubServer, folder: Path) -> Iterator[Place]:
    """Pub/Sub pushing to the service under uvicorn, and Cloud Tasks for what is delayed."""
    with issuer() as certs, way(certs.token) as road, timed(server) as env:
        queue = unique("portable")
        server.make_queue(queue, dead_letter=f"{queue}-dlq", lease=60, push_to=road.url)
        place, env = _at(queue, f"pubsub://{PROJECT}/?hold=0", {**server.env, **env}, folder, timer=env["CLOUDQ_TIMER"])
        env |= {"CLOUDQ_PUSH_AUDIENCE": AUDIENCE, "CLOUDQ_PUSH_SERVICE_ACCOUNT": ACCOUNT, "CLOUDQ_PUSH_CERTS": certs.url}
        with uvicorn("cloudq_gcp.entry:app", env=env | {"CLOUDQ_CONCURRENCY": "16"}, log=folder / "service.log") as service:
            road.upstream = service.url
            place.wrote = lambda: f"{Counter(road.answers)}\n{service.wrote()}"
            try:
                yield place
            finally:
                place.app.close()
                place.ledger.close()


@contextmanager
def pubsub_function(server: PubSubServer, folder: Path) -> Iterator[Place]:
    """The function under functions-framework, fed with what is pulled from its subscription as Eventarc does."""
    with timed(server) as env:
        queue = unique("portable")
        server.make_queue(queue, dead_letter=f"{queue}-dlq", lease=60)
        place, env = _at(queue, f"pubsub://{PROJECT}/?hold=0", {**server.env, **env}, folder, timer=env["CLOUDQ_TIMER"])
        source = folder / "main.py"
        source.write_text("from cloudq_gcp.entry import handler\n")
        with functions_framework(source, "handler", env=env, log=folder / "function.log") as service:
            place.wrote = service.wrote
            try:
                with feeding(server, queue, service.url):
                    yield place
            finally:
                place.app.close()
                place.ledger.close()


@contextmanager
def timed(server: PubSubServer) -> Iterator[dict[str, str]]:
    """Cloud Tasks in real time; the environment that leads there, set in this process, too."""
    clock, ended = ManualClock(time.time()), threading.Event()
    with google_api(server.address, clock) as api, pytest.MonkeyPatch.context() as patch:

        def pass_time() -> None:
            while not ended.wait(0.02):
                api.pass_time(max(0.0, time.time() - clock.time()))

        api.make_queue(f"projects/{PROJECT}/locations/europe-west1/queues/portable")
        url = f"cloudtasks://{PROJECT}/europe-west1/portable?service_account=tasks@p.iam.gserviceaccount.com"
        env = {"CLOUD_TASKS_EMULATOR_HOST": api.address, "CLOUDQ_TIMER": url}
        patch.setenv("CLOUD_TASKS_EMULATOR_HOST", api.address)
        passing = threading.Thread(target=pass_time, daemon=True)
        passing.start()
        try:
            yield env
        finally:
            ended.set()
            passing.join(60)


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
            with function("cloudq_aws.entry.handler", env=env, log=log, timeout=30.0) as environment:
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
            poller.join(60)
        place.app.close()
        place.ledger.close()


def dead_letters(place: Place) -> list[dict[str, Any]]:
    """What lies in the dead-letter queue."""
    from cloudq import letters

    found = place.app.io.run(letters.scan(place.app, f"{place.queue}-dlq"))
    return [dict(letter.fields) for letter in found.letters]
