"""As test_kill, on Google's Pub/Sub emulator: a worker killed by SIGKILL at any step of settling loses nothing."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloudq import CloudQ, states
from tests.acceptance import processes
from tests.acceptance.ledger import Ledger
from tests.acceptance.test_kill import APP, AT_ONCE, CALLS, LEASE, STEPS, Aftermath, Scenario, _call, _live_and_die
from tests.gcp_servers import PROJECT, PubSubServer, lead
from tests.servers import unique
from tests.waiting import until

CASES = [(step, kind) for kind in ("link", "retry", "dead") for step in STEPS]  # all but a mere result


@pytest.fixture(scope="module")
def aftermath(pubsub_emulator: PubSubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    """Let a worker die in each scenario, some at once, then let one other worker finish all the queues."""
    folder = tmp_path_factory.mktemp("killed")
    env = {
        **pubsub_emulator.env,
        "CLOUDQ_BROKER": f"pubsub://{PROJECT}/?lease={LEASE}&wait=1",
        "CLOUDQ_STORE": f"sqlite:///{folder}/store.db",
        "LEDGER": str(folder / "ledger"),
    }
    ledger = Ledger(folder / "ledger")
    scenarios = {(step, kind): Scenario(step, kind, unique(kind)) for step, kind in CASES}
    with pytest.MonkeyPatch.context() as patch:
        lead(pubsub_emulator.env, patch)
        app = CloudQ("sender", broker=env["CLOUDQ_BROKER"], store=env["CLOUDQ_STORE"])
        for scenario in scenarios.values():
            pubsub_emulator.make_queue(scenario.queue, dead_letter=f"{scenario.queue}-dlq")
            _call(app, scenario)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda scenario: _live_and_die(scenario, app, env, folder), scenarios.values()))
        _take_over(app, list(scenarios.values()), env, folder)
        for scenario in scenarios.values():
            scenario.letters = [json.loads(body)["id"] for body in pubsub_emulator.bodies(f"{scenario.queue}-dlq")]
        yield Aftermath(scenarios, app, ledger)
        app.close()
    ledger.close()


def _take_over(app: CloudQ, scenarios: list[Scenario], env: dict[str, str], folder: Path) -> None:
    queues = [scenario.queue for scenario in scenarios]
    ids = [id for scenario in scenarios for id in scenario.ids + scenario.follow_ups]
    with processes.start(APP, "--concurrency", str(2 * len(queues)), queues=queues, env=env, log=folder / "survivor.log") as worker:
        until(lambda: all(app.result(id).state in states.TERMINAL for id in ids), "an end of every call", 180)
        time.sleep(LEASE + 1)  # what the victims had settled and not acked comes too, and is not to run
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.wrote()


@pytest.mark.parametrize(("step", "kind"), CASES)
def test_a_worker_killed_at_any_step_of_settling_loses_nothing(aftermath: Aftermath, step: str, kind: str) -> None:
    scenario, ledger = aftermath.scenarios[step, kind], aftermath.ledger
    ids, follow_ups = set(scenario.ids), set(scenario.follow_ups)
    runs, follows, results = ledger.counts("run"), ledger.counts("follow"), ledger.counts("result")
    again = {entry.id for entry in ledger.entries() if entry.event in ("run", "follow") and entry.pid != scenario.victim}

    assert scenario.exit_code == -signal.SIGKILL
    assert len(ids) == CALLS
    # Every call ended, each in one terminal state; what failed is in the dead-letter queue, and nothing else is.
    assert {aftermath.app.result(id).state for id in ids | follow_ups} == {states.FAILURE if kind == "dead" else states.SUCCESS}
    assert set(scenario.letters) == (ids if kind == "dead" else set())
    assert all(results[id] <= 1 for id in ids | follow_ups)
    assert all(follows[id] for id in follow_ups)
    # What had ended was not run again; the rest ran once more at worst.
    assert not scenario.ended_before & again
    once = 2 if kind == "retry" else 1
    assert all(once <= runs[id] <= once + 1 for id in ids)
    assert sum(runs[id] for id in ids) <= once * CALLS + AT_ONCE
