"""What the tests of recorded permissions share: the app anew for each role, and a person's commands."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any, Final

import pytest
from typer.testing import CliRunner

from cloudq.cli.app import cli
from cloudq.errors import CloudQError
from tests.integration import recorded_tasks as tasks

APP: Final = "tests.integration.recorded_tasks:app"


def fresh(patch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    """The app anew, with this environment: what one role has learnt another must ask for itself."""
    tasks.app.close()
    for seam in ("BROKER", "STORE", "TIMER"):
        patch.delenv(f"CLOUDQ_{seam}", raising=False)
    for name, value in environment.items():
        patch.setenv(name, value)
    importlib.reload(tasks)


def use_store_and_timer(letter: str) -> None:
    """What a person does with the command line but for queues; ``letter`` is the id of a dead letter of ``reports``."""
    for each in (
        *("inspect ping", "inspect active", "inspect registered", "inspect stats", "inspect scheduled"),
        *("schedule sync --yes", "schedule list", "schedule pause hourly", "schedule resume hourly", "schedule trigger hourly"),
        *("task list", "task cancel unheard-of", f"task show {letter}", f"task retry {letter}", f"graph {letter}", f"result {letter}"),
        *("events --no-follow", "queue pause mails", "queue resume mails"),
    ):
        run(each)


def run(command: str) -> Any:
    """Run a command; what it answers in JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cloudq.logs.configure", lambda *_: None)  # a command would do it to the process, which is pytest's
        ran = CliRunner().invoke(cli, ["-A", APP, *command.split()])
    # An answer may be that nobody works, or that nothing is known; what was refused to the role the test knows from the server
    assert ran.exit_code in (0, 1), f"{command}: {ran.output}"
    assert ran.exception is None or isinstance(ran.exception, SystemExit | CloudQError), f"{command}: {ran.exception!r}"
    return json.loads(ran.stdout) if "--json" in command else None
