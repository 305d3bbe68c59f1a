"""How many requests calls and their work take of SQS, counted by a proxy in front of a real server over HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from cloudq import CloudQ
from tests.acceptance import processes
from tests.acceptance.ledger import Ledger
from tests.proxy import Proxy, Request, proxy
from tests.servers import SQSServer, unique, use

# One server that is none of ours: these tests are about cloudq's hosts, and long.
pytestmark = pytest.mark.parametrize("sqs_server", ["moto"], indirect=True)

CALLS = 2000
THREADS = 8
COROUTINES = 100
CALLERS = THREADS + COROUTINES
LATENCY = 0.01
"""Seconds that the proxy adds to each request: SQS answers within a region in 5 to 20 ms."""


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
        ran = _drain(queue, sqs, tmp_path)
        total, draining = sum(sqs.requests.values()), time.monotonic() - began
        print(f"{sends} sends in {calling:.1f} s, drained in {draining:.1f} s: {total / CALLS:.4f} requests a task, {dict(sqs.requests)}")
        assert ran == Counter(map(str, range(CALLS)))
        assert sqs_server.depth(queue) == 0
        assert sends <= 210
        assert total / CALLS <= 0.35


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
    options = ("--concurrency", "20", "--drain", "--log-level", "warning")
    with processes.start("tests.acceptance.counted", *options, queues=[queue], env=env, log=folder / "worker.log") as worker:
        assert worker.wait(60) == 0, worker.wrote()
    ledger.close()
    return ledger.counts("run")
