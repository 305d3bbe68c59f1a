"""A task keeps its lease however long it takes and whatever it blocks: real workers that compete, SQS over HTTP with a short lease."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudq import CloudQ
from tests.acceptance import processes
from tests.acceptance.ledger import Ledger
from tests.servers import SQSServer, unique
from tests.waiting import until

# One server that is none of ours: these tests are about cloudq's hosts, and long.
pytestmark = pytest.mark.parametrize("sqs_server", ["moto"], indirect=True)

LEASE = 8
"""Seconds: a machine that is held up for as long loses leases, and nobody is to blame."""


@pytest.mark.parametrize("tasks", [("burn", "block"), ("burn", "burn", "hog", "burn")], ids=["each-kind", "no-one-lets-go-of-the-gil"])
def test_a_task_that_blocks_all_it_can_for_longer_than_its_lease_runs_once(sqs: SQSServer, tmp_path: Path, tasks: tuple[str, ...]) -> None:
    queue, ledger, gate = unique(), Ledger(tmp_path / "ledger"), tmp_path / "gate"
    sqs.make_queue(queue, dead_letter=f"{queue}-dlq")
    broker = f"sqs://?lease={LEASE}&wait=1"  # no store: nothing but the lease guards it
    env = {**sqs.env, "CLOUDQ_BROKER": broker, "LEDGER": str(ledger.path), "GATE": str(gate)}
    command = ("tests.acceptance.lasting", "--concurrency", "4")
    app = CloudQ("caller", broker="sqs://")
    with app.batch():
        ids = [app.send_task(task, (1.5 * LEASE,), queue=queue).id for task in tasks]
    app.close()
    with processes.start(*command, queues=[queue], env=env, log=tmp_path / "one.log") as one:
        ledger.wait("began", len(ids))
        with processes.start(*command, queues=[queue], env=env, log=tmp_path / "other.log") as other:
            until(lambda: "ready" in other.wrote(), "another worker")
            gate.touch()
            ledger.wait("ended", len(ids), timeout=120)
            until(lambda: sqs.depth(queue) == 0, "all messages acked")
            for worker in (one, other):
                worker.signal(15)
            assert [one.wait(), other.wait()] == [0, 0]
    assert ledger.counts("began") == ledger.counts("ended") == dict.fromkeys(ids, 1)
    assert {entry.pid for entry in ledger.entries()} == {one.pid}
    ledger.close()
