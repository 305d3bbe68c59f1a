"""Real worker processes for the tests: ``start`` runs a task module's app, and this module is also what that process runs."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


@dataclass
class WorkerProcess:
    """A worker under way. ``log`` is what it wrote."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, timeout: float = 30.0) -> int:
        """Its exit code (negative: the signal that killed it); fails with what it wrote where it does not end in time."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker did not end within {timeout:g} s; it wrote:\n{self.wrote()}") from None

    def wrote(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:]


@contextmanager
def start(module: str, *, env: Mapping[str, str], log: Path, **options: Any) -> Iterator[WorkerProcess]:
    """Run a worker for ``module.app`` with these WorkerOptions; whatever is left of it at the end of the block is killed."""
    command = [sys.executable, "-W", "error", "-m", "tests.acceptance.processes", module, json.dumps(options)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=_ROOT, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield WorkerProcess(process, log)
    finally:
        process.kill()
        process.wait(10)


def main(module: str, options: str) -> None:
    """What a worker process does."""
    from cloudq.worker import Worker, WorkerOptions

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    Worker(importlib.import_module(module).app, WorkerOptions(**json.loads(options))).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
