"""The examples for the clouds: each runs with its one command, and says what its README says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.gcp_servers import PubSubServer
from tests.servers import missing

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_the_worker_is_stopped_as_its_host_does_and_nothing_is_lost(cloud: str, request: pytest.FixtureRequest) -> None:
    env = {**os.environ, **request.getfixturevalue("pubsub_emulator").env} if cloud == "gcp" else None
    command = [sys.executable, "-W", "error", EXAMPLES / f"{cloud}_worker/run_locally.py"]
    for _ in range(3):  # where the machine is held up, the export may be over before the signal comes
        ran = subprocess.run(command, capture_output=True, text=True, timeout=180, env=env)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        if re.search("what waited is (QUEUED|RETRY)", ran.stdout):
            break
    *lines, _queue, _titles, letter, why = ran.stdout.rstrip().splitlines()
    assert lines[:3] == [f"charged 12.50 for order-{number}" for number in range(3)]
    stopped = re.fullmatch(r"SIGTERM while the export ran: it is SUCCESS, what waited is (QUEUED|RETRY), the worker ended with 0", lines[3])
    assert stopped, lines[3]
    assert lines[4] == "the next worker goes on: charged 9.90 for order-3"
    assert "tasks.refund" in letter
    assert "it raised NotImplementedError" in letter
    assert why.strip() == "refunds of order-0"


def test_cloud_run_is_pushed_to_and_each_order_is_charged_and_confirmed(pubsub_emulator: PubSubServer) -> None:
    if find_spec("uvicorn") is None:
        missing("uvicorn", "pip install uvicorn")
    command = [sys.executable, "-W", "error", EXAMPLES / "gcp_cloud_run/run_locally.py"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **pubsub_emulator.env})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    *lines, letter = ran.stdout.splitlines()
    orders = [f"order-{number}" for number in range(3)]
    assert sorted(lines) == sorted([f"charged 12.50 for {order}" for order in orders] + [f"confirmed {order}" for order in orders])
    assert letter == "dead letter: tasks.refund('order-0',): refunds of order-0"
