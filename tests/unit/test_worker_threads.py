"""The worker's thread pool: nothing that is handed to it is left lying, and few threads are woken for short work."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections import Counter
from typing import Any, cast

from cloudq.worker.flight import Flight
from cloudq.worker.threads import ThreadExecutor


class Blocking:
    """A runner whose every job is to call it."""

    def run_isolated(self, job: Any) -> object:
        return job()


def pool(size: int, ended: list[object]) -> ThreadExecutor:
    return ThreadExecutor(cast("Any", Blocking()), size, lambda _flight, outcome: ended.append(outcome))


def until(count: int, ended: list[object]) -> None:
    deadline = time.monotonic() + 60
    while len(ended) < count:
        assert time.monotonic() < deadline, f"{len(ended)} of {count} ran"
        time.sleep(0.001)


def test_tasks_that_wait_for_each_other_run_at_the_same_time() -> None:
    ended: list[object] = []
    threads = pool(20, ended)
    for _ in range(3):
        barrier = threading.Barrier(20)
        for _ in range(20):
            threads.submit(Flight(cast("Any", lambda barrier=barrier: barrier.wait(60))))
        until(20, ended)
        ended.clear()
    threads.close()


def test_no_more_tasks_run_at_once_than_there_are_threads() -> None:
    ended: list[object] = []
    running = Counter[str]()
    most: list[int] = []
    lock = threading.Lock()

    def job() -> None:
        with lock:
            running["now"] += 1
            most.append(running["now"])
        time.sleep(0.002)
        with lock:
            running["now"] -= 1

    threads = pool(4, ended)
    for _ in range(40):
        threads.submit(Flight(cast("Any", job)))
    until(40, ended)
    assert max(most) <= 4
    threads.close()


def test_whatever_the_timing_no_task_is_left_lying() -> None:
    ended: list[object] = []
    threads = pool(6, ended)
    draw = random.Random(7)
    sent = 0
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(1500):
            for _ in range(draw.choice((1, 1, 2, 10))):
                pause = draw.choice((0.0, 0.0, 0.0001))
                threads.submit(Flight(cast("Any", lambda pause=pause: time.sleep(pause) if pause else None)))
                sent += 1
            if draw.random() < 0.3:
                time.sleep(draw.choice((0.0, 0.0001, 0.0005)))  # threads fall asleep just as work comes
            if draw.random() < 0.1:
                until(sent, ended)
        until(sent, ended)
    finally:
        sys.setswitchinterval(interval)
    assert len(ended) == sent
    threads.close()


def test_what_was_withdrawn_never_runs_and_hooks_run_all_the_same() -> None:
    ended: list[object] = []
    hooked = threading.Event()

    async def main() -> None:
        threads = pool(1, ended)
        hold = threading.Event()
        first = Flight(cast("Any", lambda: hold.wait(60)))
        threads.submit(first)
        while not first.started:
            await asyncio.sleep(0.001)
        waiting = [Flight(cast("Any", lambda: "never")) for _ in range(3)]
        for flight in waiting:
            threads.submit(flight)
        threads.call(hooked.set)
        assert threads.withdraw() == waiting
        hold.set()
        assert await asyncio.to_thread(hooked.wait, 60)
        threads.close()

    asyncio.run(main())
    assert ended == [True]


def test_threads_end_when_the_pool_is_closed() -> None:
    ended: list[object] = []
    threads = pool(5, ended)
    before = {thread.name for thread in threading.enumerate()}
    barrier = threading.Barrier(5)
    for _ in range(5):
        threads.submit(Flight(cast("Any", lambda: barrier.wait(60))))
    until(5, ended)
    threads.close()
    deadline = time.monotonic() + 60
    while any(thread.name.startswith("cloudq-task-") and thread.name not in before for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
