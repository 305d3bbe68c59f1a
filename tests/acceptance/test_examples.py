"""The examples for AWS: each runs with its one command, and says what its README says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_worker_is_stopped_as_ecs_does_and_nothing_is_lost() -> None:
    command = [sys.executable, "-W", "error", EXAMPLES / "aws_worker/run_locally.py"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    *lines, _queue, _titles, letter, why = ran.stdout.rstrip().splitlines()
    assert lines[:3] == [f"charged 12.50 for order-{number}" for number in range(3)]
    stopped = re.fullmatch(r"SIGTERM while the export ran: it is SUCCESS, what waited is (QUEUED|RETRY), the worker ended with 0", lines[3])
    assert stopped, lines[3]
    assert lines[4] == "the next worker goes on: charged 9.90 for order-3"
    assert "tasks.refund" in letter
    assert "it raised NotImplementedError" in letter
    assert why.strip() == "refunds of order-0"
