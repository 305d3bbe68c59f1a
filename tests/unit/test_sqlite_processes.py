"""Several processes share one SQLite store; killing or forking one of them loses nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from cloudq.sqlite import SQLiteStore

PROCESSES = 4
ROUNDS = 50

COMPETE = """
import asyncio, sys
from cloudq.errors import Conflict
from cloudq.sqlite import SQLiteStore
from cloudq.store import MISSING

async def main(path, name, rounds):
    store = SQLiteStore(path, timeout=60)
    async def increment():
        while True:
            document = await store.get("limit", "counter")
            count, expect = (document.value["count"], document.version) if document else (0, MISSING)
            try:
                return await store.put("limit", "counter", {"count": count + 1}, expect=expect)
            except Conflict:
                pass
    for number in range(rounds):
        _, size = await asyncio.gather(increment(), store.add_member("chord", "set", f"{name} {number}"))
        print(size)
    await store.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""

PUT_FOREVER = """
import asyncio, sys
from cloudq.sqlite import SQLiteStore

async def main(path):
    store = SQLiteStore(path)
    async def put(name):
        for number in range(1_000_000):
            await store.put("task", f"{name}-{number}", {"number": number})
            print(f"{name}-{number}", flush=True)
    await asyncio.gather(*(put(name) for name in range(10)))

asyncio.run(main(sys.argv[1]))
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def test_processes_that_compete_for_one_file_lose_no_increment_and_no_member(tmp_path: Path) -> None:
    path = tmp_path / "store.db"  # made by whichever process comes first
    running = [start(COMPETE, path, name, ROUNDS) for name in range(PROCESSES)]
    printed = [process.communicate(timeout=100)[0] for process in running]
    assert [process.returncode for process in running] == [0] * PROCESSES
    assert sorted(int(size) for text in printed for size in text.split()) == list(range(1, PROCESSES * ROUNDS + 1))

    async def check() -> None:
        store = SQLiteStore(path)
        document = await store.get("limit", "counter")
        assert document is not None
        assert document.value == {"count": PROCESSES * ROUNDS}
        await store.close()

    asyncio.run(check())


def test_a_killed_process_loses_no_put_that_had_returned(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    process = start(PUT_FOREVER, path)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(500)]
    process.kill()
    acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
    process.stdout.close()
    process.wait(60)

    async def check() -> None:
        store = SQLiteStore(path)
        found = await store.get_many("task", acknowledged)
        assert [document and document.value["number"] for document in found] == [int(key.split("-")[1]) for key in acknowledged]
        await store.put("task", "after", {})
        await store.close()

    asyncio.run(check())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_parent_and_forked_children_go_on_with_one_store(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db", timeout=60)
    forked = threading.Event()

    async def add(name: str, rounds: int) -> None:
        for number in range(rounds):
            await store.add_member("chord", "set", f"{name} {number}")

    async def add_until_forked() -> int:
        rounds = 0
        while not forked.is_set():
            await store.add_member("chord", "set", f"busy {rounds}")
            rounds += 1
        return rounds

    counts: list[int] = []
    busy = threading.Thread(target=lambda: counts.append(asyncio.run(add_until_forked())))
    asyncio.run(add("before", 5))
    busy.start()
    children = [fork(lambda name=f"child {number}": asyncio.run(add(name, 20))) for number in range(3)]
    forked.set()
    busy.join()
    asyncio.run(add("parent", 20))
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]

    async def check() -> None:
        assert len(await store.members("chord", "set")) == 5 + counts[0] + 20 + 3 * 20
        await store.close()

    asyncio.run(check())


def fork(work: Any) -> int:
    """Fork a child that runs ``work()`` and ends with status 0 where it did not raise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forking beside threads: here that is the point
        child = os.fork()
    if child == 0:
        signal.alarm(90)  # a child that hangs must not outlive the test
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child
