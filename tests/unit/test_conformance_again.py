"""When a test of a broker is tried again: on a busy machine, a few times, and never to hide a fault."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest

from cloudq.broker import Broker
from cloudq.memory import MemoryBroker
from cloudq.testing import BrokerConformance
from cloudq.testing import broker as suite
from cloudq.testing.suite import is_busy


class Failing(BrokerConformance):
    """One scenario, which fails in its first ``faults`` tries."""

    __test__ = False

    def __init__(self, faults: int) -> None:
        self.faults, self.tries = faults, 0

    async def make_broker(self) -> Broker:
        self.tries += 1
        return MemoryBroker()

    async def make_queue(self, *, ordered: bool = False) -> str:
        return "q"

    async def scenario(self) -> None:
        assert self.tries > self.faults


@pytest.mark.parametrize(
    ("busy", "late", "vain", "faults", "tries"),
    [(True, 0, 60, 0, 1), (True, 0, 60, 2, 3), (True, 0, 60, 3, 3), (True, 60, 90, 1, 1), (True, 0, 0, 1, 1), (False, 0, 60, 1, 1)],
    ids=["it passes", "it passes at last", "it fails each time", "it failed too soon", "it looked in vain", "the machine is quiet"],
)
def test_only_what_a_busy_machine_may_have_spoilt_is_tried_again(
    busy: bool, late: float, vain: float, faults: int, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("is_busy", lambda: busy), ("LATE", late), ("VAIN", vain)):
        monkeypatch.setattr(suite, name, value)
    failing = Failing(faults)
    with nullcontext() if tries > faults else pytest.raises(AssertionError):
        asyncio.run(failing.play(failing.scenario))
    assert failing.tries == tries


def test_a_machine_is_busy_while_others_compute_on_all_its_processors() -> None:
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        for each in others:
            assert each.stdout is not None
            each.stdout.readline()
        assert is_busy()
    finally:
        for each in others:
            each.kill()
            each.communicate()
