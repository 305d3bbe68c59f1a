"""Counts the tasks that really ran and times the two phases; every peer's script reports through it, as one line of JSON."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from importlib.metadata import version


class Tally:
    """The task of a measurement calls ``hit``; ``wait`` returns once all ran. The collector stays as Python sets it."""

    def __init__(self) -> None:
        self.case = sys.argv[1]
        self.tasks = int(sys.argv[2])
        self.done = threading.Event()
        self._hits = itertools.count(1)  # next() on it is atomic under the interpreter's lock
        self._began = self._sent = self._cpu = 0.0

    def hit(self) -> None:
        """Count one run."""
        if next(self._hits) == self.tasks:
            self.done.set()

    def begin(self) -> None:
        """The first message is about to be sent."""
        self._cpu = time.process_time()
        self._began = time.perf_counter()

    def sent(self) -> None:
        """All messages are accepted; the worker starts now."""
        self._sent = time.perf_counter()

    def wait(self) -> None:
        """Return when the last task has run."""
        if not self.done.wait(120):
            raise SystemExit(f"only {next(self._hits) - 1} of {self.tasks} tasks ran within two minutes")

    def report(self, distribution: str | None = None, label: str = "") -> None:
        """Print the measurement: to be called right after the last task, before anything is closed."""
        ended, cpu = time.perf_counter(), time.process_time() - self._cpu
        time.sleep(0.05)  # a task that ran twice would come about now
        ran = next(self._hits) - 1
        if ran != self.tasks:
            raise SystemExit(f"{ran} tasks ran, {self.tasks} were sent")
        sent = self._sent or self._began
        found = f"{distribution} {version(distribution)}" if distribution else label
        print(json.dumps({"version": found, "send": sent - self._began, "run": ended - sent, "cpu": cpu, "ran": ran}), flush=True)
