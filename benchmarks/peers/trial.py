"""One trial on an SQS server: phases of sending, a drain, and a ledger; every script of `benchmarks/sqs.py` reports through it, as JSON.

A phase ends after its seconds or its messages, whichever comes first, so that slow systems take no longer than fast ones. What a phase cost
in requests is asked of the server.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

SINGLE = 500
"""Messages that the phase of one caller sends at most."""
CALLERS = 16
SHARED = 2000
"""Messages that the phase of CALLERS callers sends at most."""
QUIET = 3.0
"""Seconds without a task after which what has not run is taken for lost."""


class Trial:
    """``numbers`` are the arguments of the tasks, each used once; ``accept`` those whose call has returned, ``hit`` those that ran."""

    def __init__(self) -> None:
        self.case = sys.argv[1]
        self.seconds = float(sys.argv[2])
        self.many = int(sys.argv[3])
        """Messages that are sent in bulk."""
        self.complete = "complete" in sys.argv
        """Only send in bulk, and drain to the end: the question is what was lost."""
        self.accepted: list[int] = []
        self.ran: list[tuple[float, int]] = []
        self.found: dict[str, Any] = {}
        self._next = 0
        self._lock = threading.Lock()

    def numbers(self, most: int) -> Iterator[int]:
        """Numbers until the phase's time is over; several callers may share the iterator."""
        return _Numbers(self, most, time.perf_counter() + self.seconds)

    def bulk(self) -> list[int]:
        """The numbers to be sent in bulk."""
        return [self.take() for _ in range(self.many)]

    def take(self) -> int:
        """A number that was not used yet."""
        with self._lock:
            self._next += 1
            return self._next

    @contextmanager
    def sending(self, how: str) -> Generator[None]:
        """A phase of sending; its rate counts what was accepted until it ends."""
        before, accepted, cpu, began = stats(), len(self.accepted), time.process_time(), time.perf_counter()
        yield
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        sent = max(len(self.accepted) - accepted, 1)
        self.found[how], self.found[f"{how} cpu"] = sent / took, cpu / sent
        after = stats()
        self.found[f"{how} requests"] = ratio(before, after, "Send")
        self.found["bytes"] = (after["body_bytes"] - before["body_bytes"]) / max(entries(before, after, "Send"), 1)

    def send_by_threads(self, call: Callable[[Iterator[int]], None]) -> None:
        """The phases of single calls: by one thread, then by CALLERS of them, whose connections are opened before."""
        self._share(call, self.numbers(4 * CALLERS))
        with self.sending("one"):
            call(self.numbers(SINGLE))
        with self.sending("shared"):
            self._share(call, self.numbers(SHARED))

    def _share(self, call: Callable[[Iterator[int]], None], numbers: Iterator[int]) -> None:
        threads = [threading.Thread(target=call, args=(numbers,)) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def hit(self, number: int) -> None:
        """A task runs."""
        self.ran.append((time.perf_counter(), number))

    @contextmanager
    def draining(self, how: str = "drain") -> Generator[None]:
        """The worker starts inside the block, and then ``wait`` is called there."""
        before, self.ran, cpu = stats(), [], time.process_time()
        yield
        self.found[f"{how} cpu"] = (time.process_time() - cpu) / max(len(self.ran), 1)
        ran, times = len(self.ran), sorted(at for at, _ in self.ran)
        low, high = ran // 10, ran * 9 // 10  # the middle: neither the start of a worker nor its last partial batch
        self.found[how] = (high - low) / (times[high] - times[low]) if ran > 10 else 0.0
        time.sleep(0.3)  # acks that linger
        after = stats()
        self.found[f"{how} requests"] = sum(ratio(before, after, kind) for kind in ("Receive", "Delete"))

    def wait(self) -> None:
        """Return when every accepted task has run, when none has for some time, or when the phase is over."""
        deadline = time.perf_counter() + 30
        started = False
        while (now := time.perf_counter()) < deadline:
            time.sleep(0.02)
            if not self.ran:
                continue
            if not started:
                started, deadline = True, now + (60 if self.complete else 2 * self.seconds)
            if len(self.ran) >= len(self.accepted) and len({number for _, number in self.ran}) >= len(self.accepted):
                break
            if now - self.ran[-1][0] > QUIET:
                break

    def report(self, distribution: str) -> None:
        """Print what was found, and end the process without winding anything down."""
        ran = {number for _, number in self.ran}
        self.found["accepted"], self.found["lost"] = len(self.accepted), len(set(self.accepted) - ran)
        self.found["version"] = f"{distribution} {version(distribution)}"
        print(json.dumps(self.found), flush=True)
        os._exit(0)


class _Numbers:
    def __init__(self, trial: Trial, most: int, until: float) -> None:
        self._trial = trial
        self._left = most
        self._until = until

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self._left <= 0 or time.perf_counter() > self._until:
            raise StopIteration
        self._left -= 1
        return self._trial.take()


def stats() -> dict[str, Any]:
    """What the server has counted."""
    with urllib.request.urlopen(os.environ["AWS_ENDPOINT_URL"] + "/_cloudq/stats") as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def entries(before: dict[str, Any], after: dict[str, Any], kind: str) -> int:
    """Messages that actions of a kind (Send, Receive, Delete, Change) were about between two looks."""
    return _count(after["entries"], kind) - _count(before["entries"], kind)


def ratio(before: dict[str, Any], after: dict[str, Any], kind: str) -> float:
    """Requests a message of actions of a kind."""
    return (_count(after["requests"], kind) - _count(before["requests"], kind)) / max(entries(before, after, kind), 1)


def _count(counted: dict[str, int], kind: str) -> int:
    return sum(number for action, number in counted.items() if action.startswith(kind))
