"""How many requests calls and their work take of SQS, counted over HTTP: by a proxy in front of a server, or by the server itself."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import cloudq_aws.server
from cloudq import CloudQ
from tests.acceptance import processes
from tests.acceptance.ledger import Ledger
from tests.proxy import Proxy, Request, proxy
from tests.servers import SQSServer, unique, use
from tests.waiting import until

CALLS = 2000
THREADS = 8
COROUTINES = 100
CALLERS = THREADS + COROUTINES
LATENCY = 0.01
"""Seconds that the proxy adds to each request: SQS answers within a region in 5 to 20 ms."""
IN_BULK = 10_000
WATCHED = 45.0
"""Seconds that an idle worker is watched: two of its long polls at least."""
MINUTE = 60.0


@pytest.mark.usefixtures("idle_worker")
@pytest.mark.parametrize("sqs_server", ["moto"], indirect=True)  # one that is none of ours
def test_2000_calls_at_once_take_at_most_210_sends_and_0_35_requests_a_task_in_all(
    sqs_server: SQSServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    queue = unique()
    sqs_server.make_queue(queue, dead_letter=f"{queue}-dlq")
    with proxy(sqs_server.endpoint) as sqs:
        sqs.latency = LATENCY
        use({**sqs_server.env, "AWS_ENDPOINT_URL": sqs.endpoint}, monkeypatch)
        began = time.monotonic()
        sent = _call(queue, sqs)
        sends, calling = sqs.requests["SendMessageBatch"], time.monotonic() - began
        assert sent == Counter(range(CALLS))
        assert sqs_server.depth(queue) == CALLS

        began = time.monotonic()
        ran = _drain(queue, tmp_path)
        total, draining = sum(sqs.requests.values()), time.monotonic() - began
        print(f"{sends} sends in {calling:.1f} s, drained in {draining:.1f} s: {total / CALLS:.4f} requests a task, {dict(sqs.requests)}")
        assert ran == Counter(map(str, range(CALLS)))
        assert sqs_server.depth(queue) == 0
        assert sends <= 210
        assert total / CALLS <= 0.35


@dataclass(frozen=True)
class Idle:
    """A worker on two empty queues, and when it was started (monotonic seconds)."""

    server: cloudq_aws.server.SQSServer
    began: float


@pytest.fixture(scope="module")
def idle_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Idle]:
    """It is idle while other tests of this module run."""
    folder = tmp_path_factory.mktemp("idle")
    queues = ["one", "two"]
    with cloudq_aws.server.serve_in_thread() as server:
        for queue in queues:
            server.broker.create_queue(queue)
            server.broker.create_queue(f"{queue}-dlq")
        env = {**SQSServer("ours", server.endpoint).env, "CLOUDQ_BROKER": "sqs://", "LEDGER": str(folder / "ledger")}
        began = time.monotonic()
        with processes.start("tests.acceptance.counted", queues=queues, env=env, log=folder / "worker.log") as worker:
            until(lambda: server.requests["ReceiveMessage"] > 0, "the first receive")
            yield Idle(server, began)
            assert worker.process.poll() is None, worker.wrote()


@pytest.mark.usefixtures("idle_worker")
def test_10000_tasks_sent_in_bulk_take_at_most_0_35_requests_a_task_in_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    queue = unique()
    with cloudq_aws.server.serve_in_thread(latency=0.002) as server:
        server.broker.create_queue(queue)
        server.broker.create_queue(f"{queue}-dlq")
        use(SQSServer("ours", server.endpoint).env, monkeypatch)
        app = CloudQ("caller", broker="sqs://", send_timeout=300)
        with app.batch():
            for number in range(IN_BULK):
                app.send_task("count", (number,), queue=queue)
        app.close()
        ran = _drain(queue, tmp_path)
        total = sum(server.requests.values())
        print(f"{total / IN_BULK:.4f} requests a task, {dict(server.requests)}, {dict(server.entries)}")
        assert ran == Counter(map(str, range(IN_BULK)))
        assert server.entries["DeleteMessageBatch"] == IN_BULK
        assert total / IN_BULK <= 0.35


def test_an_idle_worker_makes_at_most_4_receives_a_minute_of_each_queue(idle_worker: Idle) -> None:
    # In real time: shorter polls in a shorter time would not show what a worker asks for of its own accord.
    time.sleep(max(0.0, idle_worker.began + WATCHED - time.monotonic()))
    receives, minutes = idle_worker.server.requests["ReceiveMessage"], (time.monotonic() - idle_worker.began) / MINUTE
    assert 2 * 2 <= receives <= 2 * (4 * minutes + 1), f"{receives} receives of two queues in {minutes:.2f} minutes"
    others = idle_worker.server.requests - Counter(ReceiveMessage=receives)
    assert others.total() <= 8, f"asked besides: {others}"  # where the queues are, and whether they are there


def _call(queue: str, sqs: Proxy) -> Counter[int]:
    """Make the calls, an equal share by each caller, all at once; returns the arguments that the proxy saw go by, counted."""
    seen: Counter[int] = Counter()

    def note(request: Request) -> None:
        if request.action == "SendMessageBatch":
            seen.update(json.loads(entry["MessageBody"])["args"][0] for entry in request.body["Entries"])

    sqs.decide = note
    app = CloudQ("caller", broker="sqs://", send_timeout=300)
    start = threading.Barrier(THREADS + 1)

    def by_thread(caller: int) -> None:
        start.wait()
        for number in range(caller, CALLS, CALLERS):
            app.send_task("count", (number,), queue=queue)

    async def by_coroutine(caller: int) -> None:
        for number in range(caller, CALLS, CALLERS):
            await app.asend_task("count", (number,), queue=queue)

    async def by_coroutines() -> None:
        start.wait()
        await asyncio.gather(*(by_coroutine(caller) for caller in range(THREADS, CALLERS)))

    threads = [threading.Thread(target=by_thread, args=(caller,)) for caller in range(THREADS)]
    for thread in threads:
        thread.start()
    asyncio.run(by_coroutines())
    for thread in threads:
        thread.join()
    app.close()
    sqs.decide = None
    return seen


def _drain(queue: str, folder: Path) -> Counter[str]:
    ledger = Ledger(folder / "ledger")
    env = {"CLOUDQ_BROKER": "sqs://", "LEDGER": str(ledger.path)}
    options = ("--concurrency", "20", "--drain", "--log-level", "warning")
    with processes.start("tests.acceptance.counted", *options, queues=[queue], env=env, log=folder / "worker.log") as worker:
        assert worker.wait(300) == 0, worker.wrote()
    ledger.close()
    return ledger.counts("run")
