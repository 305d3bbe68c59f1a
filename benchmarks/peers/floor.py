"""What Python itself costs, without a task queue. Cases: asyncio-queue, thread-queue, thread-simplequeue, json."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import queue
import threading

from tally import Tally

tally = Tally()
CALL = {"v": 1, "id": "0123456789abcdef0123456789abcdef", "task": "tasks.add", "args": [2, 3], "sent": 1_790_000_000.123}


async def asyncio_queue() -> None:
    waiting: asyncio.Queue[int] = asyncio.Queue()
    for number in range(tally.tasks):
        waiting.put_nowait(number)
    tally.sent()
    for _ in range(tally.tasks):
        await waiting.get()
        tally.hit()


def thread_queue(kind: type[queue.Queue[int]] | type[queue.SimpleQueue[int]]) -> None:
    waiting = kind()
    for number in range(tally.tasks):
        waiting.put(number)
    tally.sent()

    def work() -> None:
        for _ in range(tally.tasks):
            waiting.get()
            tally.hit()

    threading.Thread(target=work, daemon=True).start()
    tally.wait()


def json_only() -> None:
    bodies = [json.dumps(CALL) for _ in range(tally.tasks)]
    tally.sent()
    for body in bodies:
        json.loads(body)
        tally.hit()


tally.begin()
match tally.case:
    case "asyncio-queue":
        asyncio.run(asyncio_queue())
    case "thread-queue":
        thread_queue(queue.Queue)
    case "thread-simplequeue":
        thread_queue(queue.SimpleQueue)
    case _:
        json_only()
tally.report(label=f"Python {platform.python_version()}")
os._exit(0)
