"""One trial on the Pub/Sub emulator, which counts no requests; every script of `benchmarks/pubsub.py` reports through it."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import contextmanager

from trial import Trial

QUEUE = os.environ["BENCH_QUEUE"]
PROJECT = os.environ["GOOGLE_CLOUD_PROJECT"]
TOPIC = f"projects/{PROJECT}/topics/{QUEUE}"
SUBSCRIPTION = f"projects/{PROJECT}/subscriptions/{QUEUE}"


class PubSubTrial(Trial):
    """A Trial that asks the server for nothing."""

    @contextmanager
    def sending(self, how: str) -> Generator[None]:
        """A phase of sending; its rate counts what was accepted until it ends."""
        accepted, cpu, began = len(self.accepted), time.process_time(), time.perf_counter()
        yield
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        sent = max(len(self.accepted) - accepted, 1)
        self.found[how], self.found[f"{how} cpu"] = sent / took, cpu / sent

    @contextmanager
    def draining(self, how: str = "drain") -> Generator[None]:
        """The worker starts inside the block, and then ``wait`` is called there."""
        self.ran, cpu = [], time.process_time()
        yield
        self.found[f"{how} cpu"] = (time.process_time() - cpu) / max(len(self.ran), 1)
        ran, times = len(self.ran), sorted(at for at, _ in self.ran)
        low, high = ran // 10, ran * 9 // 10  # the middle: neither the start of a worker nor its last partial batch
        self.found[how] = (high - low) / (times[high] - times[low]) if ran > 10 else 0.0
