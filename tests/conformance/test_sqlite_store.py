"""The SQLite store keeps the store contract, and says clearly what is wrong with a file."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cloudq.adapters import AdapterContext, Location
from cloudq.clock import ManualClock
from cloudq.errors import ConfigError, StoreError, StoreUnavailable
from cloudq.sqlite import SQLiteStore, adapter
from cloudq.testing.store import StoreConformance


class TestSQLiteStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path) -> None:
        self.path = tmp_path / "store.db"

    def make_store(self) -> SQLiteStore:
        self.clock = ManualClock()
        return SQLiteStore(self.path, clock=self.clock)

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)


async def use(store: SQLiteStore) -> None:
    try:
        await store.put("task", "a", {})
    finally:
        await store.close()


def refusal(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        asyncio.run(use(SQLiteStore(path)))
    return str(caught.value)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    assert f"the directory {tmp_path / 'none'} does not exist; create it" in refusal(tmp_path / "none" / "store.db")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    asyncio.run(use(SQLiteStore(path)))
    execute(path, "PRAGMA user_version = 99")
    assert "written by a newer cloudq (schema 99" in refusal(path)


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    execute(path, "CREATE TABLE mine (x)")
    before = path.read_bytes()
    assert "another program's database" in refusal(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_text("no database at all " * 100)
    assert "no SQLite file" in refusal(path)


def test_a_file_locked_for_too_long_is_unavailable_and_works_again_later(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    async def scenario() -> None:
        store = SQLiteStore(path, timeout=0.05)
        await store.put("task", "a", {"n": 1})
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="stayed locked"):
            await store.put("task", "a", {"n": 2})
        document = await store.get("task", "a")
        assert document is not None
        assert document.value == {"n": 1}
        holder.close()
        await store.put("task", "a", {"n": 3})
        await store.close()

    asyncio.run(scenario())


def test_a_full_disk_fails_what_does_not_fit_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    async def scenario() -> None:
        store = SQLiteStore(path)
        await store.put("task", "a", {"n": 1})
        connection = store._writer._connection
        assert connection is not None
        connection.execute("PRAGMA max_page_count = 20")
        with pytest.raises(StoreUnavailable, match="full"):
            await store.put("task", "big", {"text": "x" * 500_000})
        await store.put("task", "a", {"n": 2})
        await store.close()

    asyncio.run(scenario())


def test_a_call_that_fails_leaves_the_others_of_its_batch_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = SQLiteStore(tmp_path / "store.db")
        answers = await asyncio.gather(
            store.put("task", "a", {"n": 1}),
            store.add_member("chord", "set", "\ud800"),
            store.put("task", "b", {"n": 2}),
            return_exceptions=True,
        )
        assert isinstance(answers[1], UnicodeEncodeError)
        found = await store.get_many("task", ["a", "b"])
        assert [document and document.version for document in found] == [answers[0], answers[2]]
        assert await store.add_member("chord", "set", "fine") == 1
        await store.close()

    asyncio.run(scenario())


def test_event_loops_of_several_threads_share_one_store(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db")
    sizes: list[int] = []

    async def add(name: int) -> None:
        sizes.extend(await asyncio.gather(*(store.add_member("chord", "set", f"{name} {number}") for number in range(25))))

    threads = [threading.Thread(target=asyncio.run, args=(add(name),)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sizes) == list(range(1, 101))
    asyncio.run(store.close())


def test_closing_waits_for_the_calls_before_it_and_ends_the_thread(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    async def scenario() -> None:
        store = SQLiteStore(path)
        puts = [asyncio.create_task(store.put("task", f"{number}", {})) for number in range(2_500)]
        await asyncio.sleep(0)
        await store.close()
        await asyncio.sleep(0)
        assert all(put.done() for put in puts)

    asyncio.run(scenario())
    assert [file.name for file in tmp_path.iterdir()] == ["store.db"], "the last connection takes the log with it"
    assert execute(path, "SELECT count(*) FROM documents") == [(2_500,)]


def test_expired_rows_are_deleted_by_later_writes(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    async def scenario() -> None:
        clock = ManualClock()
        store = SQLiteStore(path, clock=clock)
        await asyncio.gather(*(store.put("task", f"{number}", {}, ttl=5) for number in range(150)))
        await asyncio.gather(*(store.add_member("chord", f"{number}", "m", ttl=5) for number in range(150)))
        clock.advance(6)
        for _ in range(3):
            await store.put("task", "later", {})
        await store.close()

    asyncio.run(scenario())
    counts = "SELECT (SELECT count(*) FROM documents), (SELECT count(*) FROM sets), (SELECT count(*) FROM members)"
    assert execute(path, counts) == [(1, 0, 0)]


def test_listing_and_expiry_use_indexes(tmp_path: Path) -> None:
    from cloudq import sqlite

    path = tmp_path / "store.db"
    asyncio.run(use(SQLiteStore(path)))
    for statement, arguments in ((sqlite._LIST, 6), (sqlite._SWEEP_DOCUMENTS, 2), (sqlite._DUE_SETS, 2), (sqlite._DUE, 2)):
        plan = execute(path, f"EXPLAIN QUERY PLAN {statement}", *[0] * arguments)
        assert not [row for row in plan if str(row[3]).startswith("SCAN") and "CONSTANT" not in str(row[3])]
        assert not [row for row in plan if "TEMP B-TREE" in str(row[3])]


def test_a_store_left_open_ends_quietly_with_its_process(tmp_path: Path) -> None:
    code = """
import asyncio, sys
from cloudq.sqlite import SQLiteStore
store = SQLiteStore(sys.argv[1])
asyncio.run(store.put("task", "a", {}))
"""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code, str(tmp_path / "store.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert done.stderr == ""
    assert [file.name for file in tmp_path.iterdir()] == ["store.db"]


def test_urls_name_relative_and_absolute_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asyncio.run(use(opened("sqlite:///relative.db")))
    asyncio.run(use(opened(f"sqlite:///{tmp_path}/absolute.db?timeout=2s")))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["absolute.db", "relative.db"]


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_store_in_memory_is_refused_with_advice(url: str) -> None:
    with pytest.raises(ConfigError, match="memory://"):
        opened(url)


def test_a_file_in_the_place_of_the_host_is_refused_with_the_right_spelling() -> None:
    with pytest.raises(ConfigError, match=r"sqlite:///cloudq\.db"):
        opened("sqlite://cloudq.db")


def opened(url: str) -> SQLiteStore:
    assert adapter.store is not None
    store = adapter.store(Location.parse(url), AdapterContext(app="test", clock=ManualClock()))
    assert isinstance(store, SQLiteStore)
    return store


def execute(path: Path, statement: str, *arguments: object) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return connection.execute(statement, arguments).fetchall()
    finally:
        connection.close()
