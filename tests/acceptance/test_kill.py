"""A worker killed by SIGKILL at any step of settling loses nothing: real processes, SQS over HTTP, a SQLite store and a ledger."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cloudq import CloudQ, Signature, states
from cloudq.message import derived_id
from tests.acceptance import processes
from tests.acceptance.ledger import Ledger
from tests.servers import SQSServer, unique, use
from tests.waiting import until

# One server that is none of ours: these tests are about cloudq's hosts, and long.
pytestmark = pytest.mark.parametrize("sqs_server", ["moto"], indirect=True)

STEPS = ("before run", "during", "after result", "after follow-up", "before ack", "after ack")
APP = "tests.acceptance.killed"
KINDS = ("done", "link", "retry", "dead")
CALLS = 8
"""A scenario's calls: twice what runs at once, so that some are done, some run and some wait when the worker dies."""
AT_ONCE = 4
LEASE = 8
"""Seconds: a machine that is held up for as long lets others have what still runs."""

CASES = [(step, kind) for kind in KINDS for step in STEPS if (step, kind) != ("after follow-up", "done")]  # which sends nothing


@dataclass
class Scenario:
    """One worker's life and death, and what was found when another had taken over."""

    step: str
    kind: str
    queue: str
    ids: list[str] = field(default_factory=lambda: [])
    exit_code: int = 0
    victim: int = 0
    ended_before: set[str] = field(default_factory=lambda: set())
    """The calls whose result was in the store when the worker died."""
    letters: list[str] = field(default_factory=lambda: [])
    """Task ids in the dead-letter queue at the end."""

    @property
    def follow_ups(self) -> list[str]:
        return [derived_id(id, "link", 0) for id in self.ids] if self.kind == "link" else []


@dataclass
class Aftermath:
    """All scenarios, after the survivor has drained their queues."""

    scenarios: dict[tuple[str, str], Scenario]
    app: CloudQ
    ledger: Ledger


@pytest.fixture(scope="module")
def aftermath(sqs_server: SQSServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    folder = tmp_path_factory.mktemp("killed")
    with killed_in_each(CASES, sqs_server, f"sqlite:///{folder}/store.db", folder) as found:
        yield found


@contextmanager
def killed_in_each(cases: Sequence[tuple[str, str]], server: SQSServer, store: str, folder: Path, **more: str) -> Iterator[Aftermath]:
    """Let a worker die in each scenario, six at once, then let one other worker drain all the queues. ``more``: of the environment."""
    env = {
        **server.env,
        **more,
        "CLOUDQ_BROKER": f"sqs://?lease={LEASE}&wait=1",
        "CLOUDQ_STORE": store,
        "LEDGER": str(folder / "ledger"),
    }
    ledger = Ledger(folder / "ledger")
    scenarios = {(step, kind): Scenario(step, kind, unique(kind)) for step, kind in cases}
    with pytest.MonkeyPatch.context() as patch:
        use(env, patch)
        app = CloudQ("sender", broker=env["CLOUDQ_BROKER"], store=store)
        for scenario in scenarios.values():
            server.make_queue(scenario.queue, dead_letter=f"{scenario.queue}-dlq")
        with app.batch():
            for scenario in scenarios.values():
                _call(app, scenario)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda scenario: _live_and_die(scenario, app, env, folder), scenarios.values()))
        _take_over(server, [scenario.queue for scenario in scenarios.values()], env, folder)
        for scenario in scenarios.values():
            scenario.letters = _letters(server, f"{scenario.queue}-dlq")
        yield Aftermath(scenarios, app, ledger)
        app.close()
    ledger.close()


def _call(app: CloudQ, scenario: Scenario) -> None:
    task = "done" if scenario.kind == "link" else scenario.kind
    for number in range(CALLS):
        link: list[Signature[int]] = [Signature("follow", options={"queue": scenario.queue})] if scenario.kind == "link" else []
        scenario.ids.append(app.send_task(task, (number,), queue=scenario.queue, link=link).id)


def _live_and_die(scenario: Scenario, app: CloudQ, env: dict[str, str], folder: Path) -> None:
    log = folder / f"{scenario.queue}.log"
    env = {**env, "KILL_AT": scenario.step}
    with processes.start(APP, "--concurrency", str(AT_ONCE), queues=[scenario.queue], env=env, log=log) as worker:
        scenario.victim, scenario.exit_code = worker.pid, worker.wait(180)
    scenario.ended_before = {id for id in scenario.ids + scenario.follow_ups if app.result(id).state in states.TERMINAL}


def _take_over(server: SQSServer, queues: list[str], env: dict[str, str], folder: Path) -> None:
    with processes.start(APP, "--concurrency", str(2 * len(queues)), queues=queues, env=env, log=folder / "survivor.log") as worker:
        for queue in queues:
            until(lambda queue=queue: server.depth(queue) == 0, f"an empty queue {queue}", 180)  # type: ignore[misc]
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.wrote()


def _letters(server: SQSServer, queue: str) -> list[str]:
    url = server.boto3.get_queue_url(QueueName=queue)["QueueUrl"]
    found: list[str] = []
    while messages := server.boto3.receive_message(QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=600).get("Messages"):
        found += [json.loads(message["Body"])["id"] for message in messages]
    return found


@pytest.mark.parametrize(("step", "kind"), CASES)
def test_a_worker_killed_at_any_step_of_settling_loses_nothing(aftermath: Aftermath, step: str, kind: str) -> None:
    scenario, ledger = aftermath.scenarios[step, kind], aftermath.ledger
    ids, follow_ups = set(scenario.ids), set(scenario.follow_ups)
    runs, follows, results = ledger.counts("run"), ledger.counts("follow"), ledger.counts("result")
    ended = {id: aftermath.app.result(id).state for id in ids | follow_ups}
    again = {entry.id for entry in ledger.entries() if entry.event in ("run", "follow") and entry.pid != scenario.victim}
    print(
        f"killed {step}, {kind}: {len(ids)} calls, {list(ended.values()).count(states.SUCCESS)} SUCCESS, "
        f"{list(ended.values()).count(states.FAILURE)} FAILURE, {len(set(scenario.letters))} dead letters, "
        f"{sum(runs[id] for id in ids)} runs, {len(scenario.ended_before)} had ended when the worker died"
    )

    assert scenario.exit_code == -signal.SIGKILL
    assert len(ids) == CALLS
    # Every call ended, each in one terminal state; what failed is in the dead-letter queue, and nothing else is.
    expected = states.FAILURE if kind == "dead" else states.SUCCESS
    assert set(ended.values()) == {expected}
    assert set(scenario.letters) == (ids if kind == "dead" else set())
    assert all(results[id] <= 1 for id in ids | follow_ups)  # 0 where the worker died between the store's write and the ledger's
    assert all(follows[id] for id in follow_ups)
    # What had ended was not run again; the rest ran once more at worst.
    assert not scenario.ended_before & again
    once = 2 if kind == "retry" else 1
    assert all(once <= runs[id] <= once + 1 for id in ids)
    assert sum(runs[id] for id in ids) <= once * CALLS + AT_ONCE
