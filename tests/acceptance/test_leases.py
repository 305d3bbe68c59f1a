"""A task keeps its lease however long it takes and whatever it blocks: real workers that compete, SQS over HTTP with a short lease."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudq import CloudQ
from tests.acceptance import processes
from tests.acceptance.ledger import Ledger, until
from tests.servers import SQSServer, unique

# One server that is none of ours: these tests are about cloudq's hosts, and long.
pytestmark = pytest.mark.parametrize("sqs_server", ["moto"], indirect=True)

LEASE = 2


@pytest.mark.parametrize("tasks", [("burn", "block"), ("burn", "burn", "hog", "burn")], ids=["each-kind", "no-one-lets-go-of-the-gil"])
def test_a_task_that_blocks_all_it_can_for_three_lease_lengths_runs_once(sqs: SQSServer, tmp_path: Path, tasks: tuple[str, ...]) -> None:
    queue, ledger = unique(), Ledger(tmp_path / "ledger")
    sqs.make_queue(queue, dead_letter=f"{queue}-dlq")
    env = {**sqs.env, "CLOUDQ_BROKER": f"sqs://?lease={LEASE}", "LEDGER": str(ledger.path)}  # no store: nothing but the lease guards it
    command = ("tests.acceptance.lasting", "--concurrency", "4")
    app = CloudQ("caller", broker="sqs://")
    with app.batch():
        ids = [app.send_task(task, (3.0 * LEASE,), queue=queue).id for task in tasks]
    app.close()
    with processes.start(*command, queues=[queue], env=env, log=tmp_path / "one.log") as one:
        ledger.wait("began", len(ids))
        with processes.start(*command, queues=[queue], env=env, log=tmp_path / "other.log") as other:
            ledger.wait("ended", len(ids), timeout=40)
            until(lambda: sqs.depth(queue) == 0, "all messages acked")
            for worker in (one, other):
                worker.signal(15)
            assert [one.wait(), other.wait()] == [0, 0]
            assert "ready" in other.wrote()
    assert ledger.counts("began") == ledger.counts("ended") == dict.fromkeys(ids, 1)
    assert {entry.pid for entry in ledger.entries()} == {one.pid}
    ledger.close()
