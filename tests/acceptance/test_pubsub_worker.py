"""Real workers that compete on Google's Pub/Sub emulator: long tasks keep their leases, and of many messages none is lost or run twice."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from cloudq import CloudQ
from cloudq.errors import TaskFailed
from tests.acceptance import processes
from tests.acceptance.ledger import Ledger
from tests.gcp_servers import PROJECT, PubSubServer
from tests.servers import unique
from tests.waiting import until

LEASE = 10
"""Seconds: the shortest ack deadline that a subscription can have."""
MANY = 20_000


def fails(number: int) -> bool:
    """Whether that call of ``many`` can never succeed."""
    return number % 100 == 7


@pytest.mark.slow
def test_a_task_that_blocks_all_it_can_for_longer_than_its_lease_runs_once(pubsub: PubSubServer, tmp_path: Path) -> None:
    queue, ledger, gate = unique(), Ledger(tmp_path / "ledger"), tmp_path / "gate"
    pubsub.make_queue(queue, lease=6 * LEASE, dead_letter=f"{queue}-dlq")
    broker = f"pubsub://{PROJECT}/?lease={LEASE}&wait=1"  # no store: nothing but the lease guards it
    env = {**pubsub.env, "CLOUDQ_BROKER": broker, "LEDGER": str(ledger.path), "GATE": str(gate)}
    command = ("tests.acceptance.lasting", "--concurrency", "4")
    app = CloudQ("caller", broker=broker)
    with app.batch():
        ids = [app.send_task(task, (1.5 * LEASE,), queue=queue).id for task in ("burn", "block")]
    app.close()
    with processes.start(*command, queues=[queue], env=env, log=tmp_path / "one.log") as one:
        ledger.wait("began", len(ids))
        with processes.start(*command, queues=[queue], env=env, log=tmp_path / "other.log") as other:
            until(lambda: "ready" in other.wrote(), "another worker")
            gate.touch()
            ledger.wait("ended", len(ids), timeout=120)
            for worker in (one, other):
                worker.signal(signal.SIGTERM)
            assert [one.wait(), other.wait()] == [0, 0]
    assert pubsub.bodies(queue) == []
    assert ledger.counts("began") == ledger.counts("ended") == dict.fromkeys(ids, 1)
    assert {entry.pid for entry in ledger.entries()} == {one.pid}
    ledger.close()


@pytest.mark.slow
def test_twenty_thousand_messages_end_exactly_in_results_and_dead_letters(pubsub: PubSubServer, tmp_path: Path) -> None:
    queue, ledger = unique(), Ledger(tmp_path / "ledger")
    pubsub.make_queue(queue, lease=60, dead_letter=f"{queue}-dlq")
    urls = {"CLOUDQ_BROKER": f"pubsub://{PROJECT}/?lease=60&wait=2", "CLOUDQ_STORE": f"sqlite:///{tmp_path}/store.db"}
    env = {**pubsub.env, **urls, "LEDGER": str(ledger.path)}
    command = ("tests.acceptance.many", "--concurrency", "200")
    app = CloudQ("caller", broker=urls["CLOUDQ_BROKER"], store=urls["CLOUDQ_STORE"], default_queue=queue, send_timeout=300)
    with (
        processes.start(*command, queues=[queue], env=env, log=tmp_path / "one.log") as one,
        processes.start(*command, queues=[queue], env=env, log=tmp_path / "other.log") as other,
    ):
        until(lambda: "ready" in one.wrote() and "ready" in other.wrote(), "both workers", 120)
        results = app.send_many(app.signature("double", (number,)) for number in range(MANY))
        runs = MANY + MANY // 100  # each that fails is tried twice
        until(lambda: ledger.path.read_bytes().count(b"\n") >= runs, f"{runs} runs", 480)
        for worker in (one, other):
            worker.signal(signal.SIGTERM)
        assert [one.wait(), other.wait()] == [0, 0], one.wrote() + other.wrote()
    ended = [result.get(60, propagate=False) for result in results]
    assert all(isinstance(value, TaskFailed) if fails(number) else value == 2 * number for number, value in enumerate(ended))
    assert ledger.counts("run") == {str(number): 2 if fails(number) else 1 for number in range(MANY)}
    letters = [json.loads(body) for body in pubsub.bodies(f"{queue}-dlq")]
    assert sorted(letter["id"] for letter in letters) == sorted(result.id for number, result in enumerate(results) if fails(number))
    assert {letter["dead"]["error"]["type"] for letter in letters} == {"ValueError"}
    assert pubsub.bodies(queue) == []
    assert len({entry.pid for entry in ledger.entries()}) == 2
    app.close()
    ledger.close()
