"""Where the time of a message goes: µs of each step of cloudq's path on memory://, alone, at its best of many tries, collector off."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any, cast

from cloudq import CloudQ
from cloudq.broker import Delivery
from cloudq.calls import prepare
from cloudq.io import drive
from cloudq.runner import NOTHING, Job, Runner
from cloudq.worker.flight import Flight
from cloudq.worker.threads import LoopExecutor, ThreadExecutor

COUNT = 2_000
TRIES = 20


def best(step: Callable[[], object], fresh: Callable[[], object] = lambda: None) -> float:
    """µs a message, of ``step`` working on COUNT messages; ``fresh`` comes before each try and is not timed."""
    times: list[float] = []
    for _ in range(TRIES):
        fresh()
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return min(times) / COUNT * 1e6


class Idle:
    """A runner that does nothing, so that only the hand-over to and from its thread is left."""

    def run_isolated(self, job: Job) -> object:
        return NOTHING

    async def arun(self, job: Job) -> object:
        return NOTHING


def hand_over(kind: str, job: Job, at_once: int) -> float:
    """µs to pass a job to a thread (or the task loop) and to hear of its end, ``at_once`` at a time."""

    async def measure() -> float:
        loop = asyncio.get_running_loop()
        landed: list[Flight] = []
        all_in = asyncio.Event()

        def complete(flight: Flight, _outcome: object) -> None:
            landed.append(flight)
            if len(landed) == at_once:
                loop.call_soon_threadsafe(all_in.set)

        idle = cast("Any", Idle())
        executor = ThreadExecutor(idle, at_once, complete) if kind == "sync" else LoopExecutor(idle, at_once, complete)
        times: list[float] = []
        for _ in range(TRIES):
            began = time.perf_counter()
            for _ in range(COUNT // at_once):
                landed.clear()
                all_in.clear()
                for _ in range(at_once):
                    executor.submit(Flight(job))
                await all_in.wait()
            times.append(time.perf_counter() - began)
        executor.close()
        return min(times) / COUNT * 1e6

    return asyncio.run(measure())


def main() -> None:
    """Measure and print a Markdown table."""
    gc.disable()
    app = CloudQ("stages", broker="memory://")

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    @app.task
    async def aadd(x: int, y: int) -> int:
        return x + y

    broker, runner = app.broker, Runner(app)
    outgoing = prepare(app, add.name, add, (2, 3), {}, None).outgoing
    ten = [outgoing] * 10
    deliveries: list[Delivery] = []

    def send() -> None:
        for _ in range(COUNT // 10):
            drive(broker.send("default", ten))

    def receive() -> None:
        for _ in range(COUNT // 10):
            deliveries.extend(drive(broker.receive("default", max_messages=10, wait=0)))

    def ack() -> None:
        for at in range(0, len(deliveries), 10):
            drive(broker.ack(deliveries[at : at + 10]))

    def acked() -> None:
        ack()
        deliveries.clear()
        send()

    def received() -> None:
        acked()
        receive()

    rows = {
        "`add.s(2, 3)`": best(lambda: [add.s(2, 3) for _ in range(COUNT)] and None),
        "prepare and encode": best(lambda: [prepare(app, add.name, add, (2, 3), {}, None) for _ in range(COUNT)] and None),
        "`send_many` as a whole": best(lambda: app.send_many(add.s(2, 3) for _ in range(COUNT)) and None),
        "`delay` as a whole": best(lambda: [add.delay(2, 3) for _ in range(COUNT)] and None),
    }
    app.close()
    app = CloudQ("stages", broker="memory://")
    app.add(add)
    app.add(aadd)
    broker, runner = app.broker, Runner(app)
    rows["broker send, in tens"] = best(send)
    while drained := drive(broker.receive("default", max_messages=10, wait=0)):
        drive(broker.ack(drained))
    send()
    rows["broker receive, in tens"] = best(receive, acked)
    rows["admit: parse, check, decide"] = best(lambda: [runner.admit(each) for each in deliveries] and None)
    jobs = [runner.admit(each) for each in deliveries]
    rows["run a sync task in its context"] = best(lambda: [runner.run_isolated(job) for job in jobs] and None)

    async def arun() -> None:
        for job in jobs:
            await runner.arun(job)

    for each in deliveries:
        each.body = each.body.replace(add.name, aadd.name)
    jobs = [runner.admit(each) for each in deliveries]
    rows["run an async task"] = best(lambda: asyncio.run(arun()))
    rows["broker ack, in tens"] = best(ack, received)
    for kind in ("sync", "async"):
        for at_once in (10, 100):
            rows[f"hand-over and back, {kind}, {at_once} at once"] = hand_over(kind, jobs[0], at_once)
    print("| step | µs a message |\n|---|---|")
    for name, spent in rows.items():
        print(f"| {name} | {spent:.2f} |")


if __name__ == "__main__":
    main()
