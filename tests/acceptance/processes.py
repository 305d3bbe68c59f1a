"""Real worker processes for the tests, started by the command as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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

    def wait(self, timeout: float = 60.0) -> int:
        """Its exit code (negative: the signal that killed it); fails with what it wrote where it does not end in time."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker did not end within {timeout:g} s; it wrote:\n{self.wrote()}") from None

    def wrote(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:]


@contextmanager
def start(module: str, *options: str, queues: Iterable[str], env: Mapping[str, str], log: Path) -> Iterator[WorkerProcess]:
    """Run ``cloudq worker`` for the app of a task module; whatever is left of it at the end of the block is killed."""
    command = [sys.executable, "-W", "error", "-m", "cloudq.cli", "-A", f"{module}:app"]
    command += ["worker", "--log-format", "plain", "--queues", ",".join(queues), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=_ROOT, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield WorkerProcess(process, log)
    finally:
        process.kill()
        process.wait(30)
