"""As test_kill, with the stores of the clouds: a worker killed by SIGKILL leaves claims that another takes over, and no result is lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping

import pytest

from cloudq import states
from tests.acceptance.test_kill import CALLS, Aftermath, killed_in_each
from tests.servers import SQSServer, dynalite

pytestmark = pytest.mark.parametrize("sqs_server", ["ours"], indirect=True)

CASES = [("during", "done"), ("after result", "link"), ("before ack", "dead")]


@pytest.fixture(scope="module", params=["dynamodb", "firestore"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Mapping[str, str]]]:
    """A store's URL, and the environment that leads to it."""
    if request.param == "firestore":
        yield "firestore:///killed", request.getfixturevalue("firestore_emulator").env
        return
    with dynalite(tmp_path_factory.mktemp("dynalite")) as server:
        yield f"dynamodb:///{server.make_table()}", {"AWS_ENDPOINT_URL_DYNAMODB": server.endpoint}
        server.boto3.close()


@pytest.fixture(scope="module")
def aftermath(sqs_server: SQSServer, store: tuple[str, Mapping[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    url, leads_there = store
    with killed_in_each(CASES, sqs_server, url, tmp_path_factory.mktemp("killed"), **leads_there) as found:
        yield found


@pytest.mark.parametrize(("step", "kind"), CASES)
def test_what_a_killed_worker_claimed_is_taken_over_and_what_it_ended_stays(aftermath: Aftermath, step: str, kind: str) -> None:
    scenario, ledger = aftermath.scenarios[step, kind], aftermath.ledger
    ids, follow_ups = set(scenario.ids), set(scenario.follow_ups)
    runs = ledger.counts("run")
    again = {entry.id for entry in ledger.entries() if entry.event in ("run", "follow") and entry.pid != scenario.victim}

    assert scenario.exit_code == -signal.SIGKILL
    assert {aftermath.app.result(id).state for id in ids | follow_ups} == {states.FAILURE if kind == "dead" else states.SUCCESS}
    assert set(scenario.letters) == (ids if kind == "dead" else set())
    assert not scenario.ended_before & again
    assert scenario.ended_before or step == "during"
    assert all(1 <= runs[id] <= 2 for id in ids)
    assert len(ids) == CALLS
