"""A worker asked to end loses nothing, and one that is not goes on: signals, bad messages, hanging polls, a broker that is gone."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloudq import CloudQ
from cloudq.cli import exits
from cloudq.errors import ConfigError
from cloudq.testing.suite import is_busy
from cloudq.worker import StopReason, Worker, WorkerOptions
from cloudq.worker import poller as polling
from tests.acceptance import processes
from tests.acceptance.ledger import Ledger
from tests.acceptance.processes import WorkerProcess
from tests.proxy import Cut, Fault, Hang, Proxy, Request, first, proxy
from tests.servers import SQSServer, unique, use
from tests.waiting import until

# One server that is none of ours: these tests are about cloudq's hosts, and long.
pytestmark = pytest.mark.parametrize("sqs_server", ["moto"], indirect=True)

LONG = 60
"""A lease, in seconds, that no test waits for: what comes back earlier was given back."""
SOON = 30.0
"""Seconds within which what must come has come, however slow the machine; a test that passes does not wait for it."""
GIVEN_BACK = 20.0
"""Seconds within which a delivery given back must be there for others: less than is left of its lease, and a request takes far less."""


class Queue:
    """A queue of the test's own, with a caller and a ledger."""

    def __init__(self, server: SQSServer, folder: Path) -> None:
        self.name = unique()
        self.url = server.make_queue(self.name, dead_letter=f"{self.name}-dlq")
        self.server = server
        self.folder = folder
        self.ledger = Ledger(folder / "ledger")
        self.gate = folder / "gate"
        """Until it is there, a task that blocks does so."""
        self.app = CloudQ("caller", broker="sqs://")

    def call(self, *calls: tuple[str, float]) -> list[str]:
        """Call each task with its seconds, in one batch; returns the ids."""
        with self.app.batch():
            return [self.app.send_task(task, (seconds,), queue=self.name).id for task, seconds in calls]

    @contextmanager
    def worker(self, *options: str, lease: int = LONG, also: Sequence[str] = ()) -> Iterator[WorkerProcess]:
        env = {**self.server.env, "CLOUDQ_BROKER": f"sqs://?lease={lease}", "LEDGER": str(self.ledger.path), "GATE": str(self.gate)}
        command = ("tests.acceptance.lasting", "--concurrency", "4", *options)
        with processes.start(*command, queues=[self.name, *also], env=env, log=self.folder / "worker.log") as worker:
            yield worker

    def back(self, count: int, within: float) -> set[str]:
        """The ids of ``count`` messages that can be received within so many seconds, as another worker would."""
        found: set[str] = set()
        deadline = time.monotonic() + within
        while len(found) < count and time.monotonic() < deadline:
            reply = self.server.boto3.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10, WaitTimeSeconds=1, VisibilityTimeout=LONG)
            found |= {json.loads(message["Body"])["id"] for message in reply.get("Messages", ())}
        return found

    @property
    def depth(self) -> int:
        return self.server.depth(self.name)

    def close(self) -> None:
        self.app.close()
        self.ledger.close()


@pytest.fixture
def queue(sqs: SQSServer, tmp_path: Path) -> Iterator[Queue]:
    made = Queue(sqs, tmp_path)
    yield made
    made.close()


# ---------------------------------------------------------------------- signals, by real processes


def test_sigterm_gives_back_at_once_what_has_not_started_and_lets_finish_what_runs(queue: Queue) -> None:
    running, *waiting = queue.call(("block", 0.0), ("nap", 0.0), ("nap", 0.0), ("nap", 0.0))
    with queue.worker() as worker:
        queue.ledger.wait("began")
        worker.signal(signal.SIGTERM)
        assert queue.back(3, within=GIVEN_BACK) == set(waiting)  # while the one that runs still blocks the loop that they wait for
        queue.gate.touch()
        assert worker.wait() == 0, worker.wrote()
    assert queue.ledger.counts("ended") == {running: 1}
    assert queue.ledger.counts("began") == {running: 1}
    assert queue.depth == len(waiting)


def test_what_does_not_end_within_the_grace_time_is_given_back(queue: Queue) -> None:
    for _ in range(3):  # where the machine is held up, a receive that is out may end with the worker, and what it was handed is hidden
        ids = queue.call(("rest", 50.0), ("nap", 50.0))
        with queue.worker("--grace", "1") as worker:
            until(lambda: queue.ledger.counts("began").keys() >= set(ids), "both")  # noqa: B023  # in this round
            worker.signal(signal.SIGINT)
            assert worker.wait(30) == 0, worker.wrote()  # they would take longer
        assert queue.ledger.counts("cancelled")[ids[1]] == 1  # the async one was told
        if (back := queue.back(2, within=GIVEN_BACK)) == set(ids) or not is_busy():
            break
    assert back == set(ids)


def test_a_second_signal_ends_the_worker_now_and_its_messages_come_back(queue: Queue) -> None:
    (id,) = queue.call(("rest", 50.0))
    with queue.worker(lease=2) as worker:
        queue.ledger.wait("began")
        worker.signal(signal.SIGTERM)
        until(lambda: "stopping" in worker.wrote(), "the first signal's effect")
        worker.signal(signal.SIGTERM)
        assert worker.wait(20) == 128 + signal.SIGTERM
    assert queue.back(1, within=60.0) == {id}


def test_a_worker_whose_queues_are_missing_says_which_and_ends(queue: Queue) -> None:
    lonely = unique("lonely")
    queue.server.make_queue(lonely)
    with queue.worker(also=["nowhere", lonely]) as worker:
        assert worker.wait() == exits.code_of(ConfigError())
        assert f"the broker has no queue 'nowhere', 'nowhere-dlq', '{lonely}-dlq'" in " ".join(worker.wrote().split())


# ---------------------------------------------------------------------- what goes wrong meanwhile


@pytest.fixture
def between(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy between the workers of this process and the server."""
    with proxy(queue.server.endpoint) as made:
        use({**queue.server.env, "AWS_ENDPOINT_URL": made.endpoint}, monkeypatch)
        yield made


@contextmanager
def working(queue: Queue, **options: Any) -> Iterator[Worker]:
    """A worker in this process, for tests that no signal and no death belongs to."""
    app = CloudQ("here", broker="sqs://?lease=10&wait=1", queues=[queue.name], default_queue=queue.name)

    @app.task(name="nap", bind=True)
    async def nap(self: Any, seconds: float) -> None:
        queue.ledger.note("ended", self.request.id)

    worker = Worker(app, WorkerOptions(queues={queue.name: 1}, **options))
    worker.start()
    try:
        yield worker
        worker.stop()
        worker.join(60)
    finally:
        app.close()


def test_bad_messages_cost_themselves_and_no_other_of_their_batch(queue: Queue) -> None:
    bad = ["\u00ff\u00fe no JSON", "{}", "[1, 2]", '{"v": 1, "id": "x", "task": "nap", "args": "not a list"}']
    good = queue.call(("nap", 0.0), ("nap", 0.0), ("nap", 0.0))
    entries = [{"Id": str(index), "MessageBody": body} for index, body in enumerate(bad)]
    queue.server.boto3.send_message_batch(QueueUrl=queue.url, Entries=entries)
    good += queue.call(("nap", 0.0), ("nap", 0.0))
    with working(queue, drain=True) as worker:
        assert worker.join(60) is StopReason.DRAINED
    assert queue.ledger.counts("ended") == dict.fromkeys(good, 1)
    assert queue.depth == 0
    assert queue.server.depth(f"{queue.name}-dlq") == len(bad)


def test_a_receive_that_hangs_is_started_anew(queue: Queue, between: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "OVERDUE", 0.5)
    between.decide = first(2, Hang(), "ReceiveMessage")
    with working(queue):
        ids = queue.call(("nap", 0.0))
        queue.ledger.wait("ended")
    assert queue.ledger.counts("ended") == dict.fromkeys(ids, 1)
    assert between.requests["ReceiveMessage"] >= 3


def test_the_health_file_goes_stale_when_polls_hang_and_is_touched_again_when_they_answer(
    queue: Queue, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "OVERDUE", 1.0)
    health = queue.folder / "health"

    def touched(within: float) -> bool:
        health.unlink(missing_ok=True)
        deadline = time.monotonic() + within
        while not health.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return health.exists()

    with working(queue, health_file=health):
        assert touched(within=SOON)
        between.decide = lambda request: Hang() if request.action == "ReceiveMessage" else None
        until(lambda: not touched(within=4.5), "a health file that is not touched for twice its interval of 2 s", SOON)
        between.decide = None
        assert touched(within=SOON)


def test_a_worker_goes_on_when_its_broker_comes_back(queue: Queue, between: Proxy) -> None:
    def away(request: Request) -> Fault:
        return Cut(forward=False)

    with working(queue):
        before = queue.call(("nap", 0.0))
        queue.ledger.wait("ended")
        between.decide = away
        seen = sum(between.requests.values())
        until(lambda: sum(between.requests.values()) >= seen + 5, "five requests in vain")
        between.decide = None
        after = queue.call(("nap", 0.0), ("nap", 0.0))
        queue.ledger.wait("ended", 3, timeout=120)
        until(lambda: queue.depth == 0, "all messages acked")
    assert queue.ledger.counts("ended").keys() == {*before, *after}
    assert queue.ledger.counts("ended").total() <= 4  # the ack of the first may have fallen into the gap


def test_a_worker_in_this_process_names_the_missing_dead_letter_queue(queue: Queue) -> None:
    app = CloudQ("here", broker="sqs://", default_queue=(lonely := unique("lonely")))
    queue.server.make_queue(lonely)
    with pytest.raises(ConfigError, match=f"no queue '{lonely}-dlq'; create it"):
        Worker(app).start()
    app.close()
