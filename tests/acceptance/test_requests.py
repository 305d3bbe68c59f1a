"""How many requests calls and their work take of SQS, counted by a proxy in front of a real server over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudq import CloudQ
from tests.acceptance import processes
from tests.acceptance.ledger import Ledger
from tests.proxy import Proxy, Request, proxy
from tests.servers import AWS_ENV, SQSServer, free_port, running, unique, use

CALLS = 2000
THREADS = 8
COROUTINES = 100
CALLERS = THREADS + COROUTINES


@pytest.fixture(scope="module")
def deep_sqs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SQSServer]:
    """A server that bears thousands of messages in a queue."""
    endpoint = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "tests.acceptance.deep_moto", "-H", "127.0.0.1", "-p", str(port)]
    log = tmp_path_factory.mktemp("moto") / "moto.log"
    with running(command, ready=f"{endpoint}/moto-api/", log=log, env=AWS_ENV) as server:
        yield SQSServer("moto", endpoint)
        assert server.process.poll() is None


@pytest.mark.parametrize("latency", [float(each) for each in os.environ.get("LAT", "0.01").split(",")])
def test_2000_calls_at_once_take_at_most_210_sends_and_0_35_requests_a_task_in_all(
    deep_sqs: SQSServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, latency: float
) -> None:
    queue = unique()
    deep_sqs.make_queue(queue, dead_letter=f"{queue}-dlq")
    with proxy(deep_sqs.endpoint) as sqs:
        sqs.latency = latency
        use({**deep_sqs.env, "AWS_ENDPOINT_URL": sqs.endpoint}, monkeypatch)
        began = time.monotonic()
        sent = _call(queue, sqs)
        sends, took = sqs.requests["SendMessageBatch"], time.monotonic() - began
        assert deep_sqs.depth(queue) == CALLS
        assert sent == Counter(range(CALLS))

        began = time.monotonic()
        ran = _drain(queue, sqs, tmp_path)
        total, drained = sum(sqs.requests.values()), time.monotonic() - began
        per_task = total / CALLS
        print(f"{latency * 1000:g} ms: {sends} sends in {took:.1f} s; drained in {drained:.1f} s; {per_task:.4f} requests a task; {dict(sqs.requests)}")
        assert ran == Counter(map(str, range(CALLS)))
        assert deep_sqs.depth(queue) == 0
        assert sends <= 210
        assert per_task <= 0.35


def _call(queue: str, sqs: Proxy) -> Counter[int]:
    """Make the calls, an equal share by each caller, all at once; returns the arguments that the proxy saw go by, counted."""
    seen: Counter[int] = Counter()

    def note(request: Request) -> None:
        if request.action == "SendMessageBatch":
            seen.update(json.loads(entry["MessageBody"])["args"][0] for entry in request.body["Entries"])

    sqs.decide = note
    app = CloudQ("caller", broker="sqs://")
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


def _drain(queue: str, sqs: Proxy, folder: Path) -> Counter[str]:
    ledger = Ledger(folder / "ledger")
    env = {"CLOUDQ_BROKER": "sqs://", "LEDGER": str(ledger.path)}
    options = {"queues": {queue: 1}, "concurrency": 20, "drain": True}
    with processes.start("tests.acceptance.counted", env=env, log=folder / "worker.log", **options) as worker:
        assert worker.wait(60) == 0, worker.wrote()
    ledger.close()
    return ledger.counts("run")
