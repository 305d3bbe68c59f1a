"""An append-only file in which tasks note what they do, so that a test can count effects across processes that die."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import until


@dataclass(frozen=True, slots=True)
class Entry:
    """One effect: what happened to which id, in which process, when (Unix time, seconds)."""

    event: str
    id: str
    pid: int
    at: float


class Ledger:
    """One line an effect. A line is one O_APPEND write: lines of many processes never mix, and outlive SIGKILL."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def close(self) -> None:
        """Close the file; what was noted stays."""
        os.close(self._file)

    def note(self, event: str, id: object) -> None:
        """Write that ``event`` happened to ``id``."""
        os.write(self._file, f"{event} {id} {os.getpid()} {time.time():.3f}\n".encode())

    def entries(self, event: str | None = None) -> list[Entry]:
        """What was noted so far, of one event or of all."""
        fields = (line.split() for line in self.path.read_text().splitlines())
        found = [Entry(what, id, int(pid), float(at)) for what, id, pid, at in fields]
        return [entry for entry in found if event in (None, entry.event)]

    def counts(self, event: str) -> Counter[str]:
        """How often ``event`` happened to each id."""
        return Counter(entry.id for entry in self.entries(event))

    def wait(self, event: str, count: int = 1, timeout: float = 60.0) -> None:
        """Return once ``event`` has happened ``count`` times; TimeoutError after ``timeout`` seconds."""
        until(lambda: len(self.entries(event)) >= count, f"{count} × {event!r} in the ledger", timeout)
