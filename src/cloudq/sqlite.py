"""The SQLite store: documents and sets in one file, shared by the processes of one machine."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import secrets
import sqlite3
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from cloudq.adapters import Adapter, AdapterContext, Location
from cloudq.clock import Clock, SystemClock
from cloudq.errors import ConfigError, Conflict, DocumentTooLarge, StoreError, StoreUnavailable
from cloudq.store import ANY, MISSING, Document, Expect, Page, StoreLimits, Value

T = TypeVar("T")
_Row: TypeAlias = tuple[str, str, float | None]
"""Value as JSON, version, expiry."""

_LIMITS = StoreLimits(value=1_000_000, members=1_000_000)
_SCHEMA_VERSION: Final = 1
_SCHEMA = (
    "CREATE TABLE documents (kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, version TEXT NOT NULL, expires REAL,"
    " PRIMARY KEY (kind, key))",
    "CREATE TABLE sets (kind TEXT NOT NULL, key TEXT NOT NULL, size INTEGER NOT NULL, expires REAL, PRIMARY KEY (kind, key))",
    "CREATE TABLE members (kind TEXT NOT NULL, key TEXT NOT NULL, member TEXT NOT NULL, PRIMARY KEY (kind, key, member)) WITHOUT ROWID",
    "CREATE INDEX documents_expires ON documents (expires) WHERE expires IS NOT NULL",
    "CREATE INDEX sets_expires ON sets (expires) WHERE expires IS NOT NULL",
    f"PRAGMA user_version = {_SCHEMA_VERSION}",
)
_LIVE = "(expires IS NULL OR expires > ?)"
_GET = f"SELECT value, version, expires FROM documents WHERE kind = ? AND key = ? AND {_LIVE}"
_SET = f"SELECT size FROM sets WHERE kind = ? AND key = ? AND {_LIVE}"
_INSERT = (
    "INSERT INTO documents (kind, key, value, version, expires) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value, version = excluded.version, expires = excluded.expires"
)
_REPLACE = f"UPDATE documents SET value = ?, version = ?, expires = ? WHERE kind = ? AND key = ? AND version = ? AND {_LIVE}"
_LIST = (
    "SELECT key, value, version, expires FROM documents"
    f" WHERE kind = ? AND key >= ? AND key < ? AND key > ? AND {_LIVE} ORDER BY key LIMIT ?"
)
_DUE = "SELECT EXISTS (SELECT 1 FROM documents WHERE expires <= ?) OR EXISTS (SELECT 1 FROM sets WHERE expires <= ?)"
_DUE_SETS = "SELECT kind, key FROM sets WHERE expires <= ? LIMIT ?"
_SWEEP_DOCUMENTS = "DELETE FROM documents WHERE rowid IN (SELECT rowid FROM documents WHERE expires <= ? LIMIT ?)"
_AFTER_ASCII = "\x7f"  # keys are printable ASCII: prefix <= key < prefix + DEL is every key with the prefix

_BATCH = 1000  # calls in one transaction at most, so that other processes get their turn
_SWEEP = 100  # expired documents (and sets) deleted at a time


class SQLiteStore:
    """A Store in the file ``path``; its directory must exist. ``timeout`` is the longest wait, in seconds, for another process's write.

    One daemon thread owns the connection. Calls, from any event loop, queue to it, and all that wait go into one transaction.

    The file is in WAL mode with ``synchronous=NORMAL``: a put that has returned is in the operating system's hands, so that killing
    the process loses nothing. A power cut may lose the last moments' puts, but never harms the file: sqlite.org/pragma.html says so.
    WAL needs memory shared by all its processes: a file on a network file system will not do.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock | None = None, timeout: float = 10.0) -> None:
        name = os.fspath(path)
        if not name or name == ":memory:":
            raise ConfigError("the SQLite store needs a file, like sqlite:///cloudq.db; for a store in memory, use memory://")
        self._clock = clock or SystemClock()
        self._writer = _Writer(Path(name).absolute(), timeout, self._clock)
        weakref.finalize(self, self._writer.stop)  # at exit too: the last to close a file tidies its log away

    @property
    def limits(self) -> StoreLimits:
        return _LIMITS

    async def get(self, kind: str, key: str) -> Document | None:
        return _document(await self._writer.call(lambda c: self._get(c, kind, key)))

    async def get_many(self, kind: str, keys: Sequence[str]) -> Sequence[Document | None]:
        rows = await self._writer.call(lambda c: [self._get(c, kind, key) for key in keys])
        return [_document(row) for row in rows]

    async def put(self, kind: str, key: str, value: Value, *, expect: Expect = ANY, ttl: float | None = None) -> str:
        text = json.dumps(value if isinstance(value, dict) else dict(value), allow_nan=False, separators=(",", ":"))
        if len(text) > _LIMITS.value:  # ASCII: as many bytes as characters
            raise DocumentTooLarge(f"{kind} {key} is {len(text)} bytes as JSON; this store takes {_LIMITS.value}")
        version = secrets.token_hex(8)

        def put(connection: sqlite3.Connection) -> Conflict | None:
            now = self._clock.time()
            expires = None if ttl is None else now + ttl
            if expect is ANY:
                connection.execute(_INSERT, (kind, key, text, version, expires))
                return None
            if expect is MISSING:
                cursor = connection.execute(f"{_INSERT} WHERE documents.expires <= ?", (kind, key, text, version, expires, now))
            else:
                cursor = connection.execute(_REPLACE, (text, version, expires, kind, key, expect, now))
            if cursor.rowcount:
                return None
            wanted = "none" if expect is MISSING else "the version that was read"
            return Conflict(f"{kind} {key} is not as expected: {wanted}", current=_document(self._get(connection, kind, key)))

        if conflict := await self._writer.call(put, writes=True):
            raise conflict
        return version

    async def add_member(self, kind: str, key: str, member: str, *, ttl: float | None = None) -> int:
        def add(connection: sqlite3.Connection) -> int:
            now = self._clock.time()
            size = self._size(connection, kind, key)
            if size is None:
                _drop_set(connection, kind, key)
                connection.execute("INSERT INTO sets VALUES (?, ?, 0, ?)", (kind, key, None if ttl is None else now + ttl))
                size = 0
            if connection.execute("INSERT OR IGNORE INTO members VALUES (?, ?, ?)", (kind, key, member)).rowcount:
                size += 1
                connection.execute("UPDATE sets SET size = ? WHERE kind = ? AND key = ?", (size, kind, key))
            return size

        return await self._writer.call(add, writes=True)

    async def members(self, kind: str, key: str) -> frozenset[str]:
        def read(connection: sqlite3.Connection) -> frozenset[str]:
            if self._size(connection, kind, key) is None:
                return frozenset()
            rows = connection.execute("SELECT member FROM members WHERE kind = ? AND key = ?", (kind, key))
            return frozenset(member for (member,) in rows)

        return await self._writer.call(read)

    async def delete(self, kind: str, key: str) -> None:
        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM documents WHERE kind = ? AND key = ?", (kind, key))
            _drop_set(connection, kind, key)

        await self._writer.call(delete, writes=True)

    async def list(self, kind: str, *, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        bounds = (kind, prefix, prefix + _AFTER_ASCII, cursor or "")
        rows = await self._writer.call(lambda c: c.execute(_LIST, (*bounds, self._clock.time(), limit + 1)).fetchall())
        items = [(key, Document(json.loads(text), version, expires)) for key, text, version, expires in rows[:limit]]
        return Page(items, items[-1][0] if len(rows) > limit else None)

    async def close(self) -> None:
        await self._writer.close()

    def _get(self, connection: sqlite3.Connection, kind: str, key: str) -> _Row | None:
        row: _Row | None = connection.execute(_GET, (kind, key, self._clock.time())).fetchone()
        return row

    def _size(self, connection: sqlite3.Connection, kind: str, key: str) -> int | None:
        row: tuple[int] | None = connection.execute(_SET, (kind, key, self._clock.time())).fetchone()
        return row[0] if row else None


def _document(row: _Row | None) -> Document | None:
    return Document(json.loads(row[0]), row[1], row[2]) if row else None


def _drop_set(connection: sqlite3.Connection, kind: str, key: str) -> None:
    connection.execute("DELETE FROM members WHERE kind = ? AND key = ?", (kind, key))
    connection.execute("DELETE FROM sets WHERE kind = ? AND key = ?", (kind, key))


@dataclass(slots=True, eq=False)
class _Call:
    """One operation on its way through the writer, and where its answer goes."""

    run: Callable[[sqlite3.Connection], Any]
    writes: bool
    future: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Failed:
    """An answer: the operation did nothing, for this reason."""

    error: Exception


class _Writer:
    """The thread that owns the connection. It starts at the first call, and ends with ``close``, ``stop`` or the process."""

    def __init__(self, path: Path, timeout: float, clock: Clock) -> None:
        self._path = path
        self._timeout = timeout
        self._clock = clock
        self.reset()
        with _forking:
            _writers.add(self)

    def reset(self) -> None:
        """Begin anew with locks that nobody holds, without thread and connection, as a forked child must."""
        self.gate = threading.Lock()  # held wherever the connection is used
        self._wake = threading.Condition()  # its lock is reentrant: ``stop``, a finalizer, may run inside any other section
        self._pending: list[_Call] = []
        self._thread: threading.Thread | None = None
        self._ending = False
        self._connection: sqlite3.Connection | None = None

    async def call(self, run: Callable[[sqlite3.Connection], T], *, writes: bool = False) -> T:
        """Answer ``run(connection)`` from the thread; what it wrote is committed by then."""
        return await self._submit(run, writes, ending=False)

    async def close(self) -> None:
        """Wait for the calls before this one, close the connection and end the thread; a later call starts both again."""
        if self._thread is not None:
            await self._submit(lambda _: None, writes=False, ending=True)

    def stop(self) -> None:
        """End the thread from outside any event loop, waiting a second for it at most."""
        with self._wake:
            self._ending = True
            self._wake.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)

    def disconnect(self) -> None:
        """Close the connection, undoing what is not committed; the caller holds the gate."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    async def _submit(self, run: Callable[[sqlite3.Connection], T], writes: bool, *, ending: bool) -> T:
        call = _Call(run, writes, asyncio.get_running_loop().create_future())
        with self._wake:
            self._pending.append(call)
            self._ending = ending  # a call after a close keeps the thread going
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cloudq-sqlite", daemon=True)
                self._thread.start()
            self._wake.notify()
        answer: T | _Failed = await call.future
        if not isinstance(answer, _Failed):
            return answer
        if isinstance(answer.error, sqlite3.Error):
            raise _mapped(answer.error, self._path) from answer.error
        raise answer.error

    def _run(self) -> None:
        ended = False
        while not ended:
            with self._wake:
                while not self._pending and not self._ending:
                    self._wake.wait()
                batch, self._pending = self._pending[:_BATCH], self._pending[_BATCH:]
            with self.gate:
                answers = self._answers(batch) if batch else []
                with self._wake:
                    ended = self._ending and not self._pending
                    if ended:
                        self._thread, self._ending = None, False
                if ended:
                    self.disconnect()  # a thread that starts meanwhile waits at the gate
            _deliver(batch, answers)
            if any(call.writes for call in batch):
                del batch, answers
                with self.gate:
                    self._sweep()

    def _answers(self, batch: list[_Call]) -> list[Any]:
        """Run a batch in one transaction. A batch that fails is undone and run call by call, so that each answers for itself."""
        try:
            connection = self._connection = self._connection or self._connect()
            # A write transaction from its start: one that began by reading could not wait for another process's write.
            connection.execute("BEGIN IMMEDIATE" if any(call.writes for call in batch) else "BEGIN")
        except (sqlite3.Error, StoreError) as error:
            self.disconnect()
            return [_Failed(copy.copy(error)) for _ in batch]
        try:
            answers = [call.run(connection) for call in batch]
            connection.execute("COMMIT")
            return answers
        except Exception as error:
            self.disconnect()
            if len(batch) == 1:
                return [_Failed(error)]
        return [answer for call in batch for answer in self._answers([call])]

    def _connect(self) -> sqlite3.Connection:
        if not self._path.parent.is_dir():
            raise StoreError(f"cannot open {self._path}: the directory {self._path.parent} does not exist; create it, or name another file")
        deadline = time.monotonic() + self._timeout
        while True:
            connection = sqlite3.connect(self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(connection)
                return connection
            except BaseException as error:
                connection.close()
                # While another process turns a new file to WAL, SQLite answers "locked" without waiting.
                if not isinstance(error, sqlite3.Error) or not _is_busy(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if self._version(connection) == 0:
            connection.execute("BEGIN IMMEDIATE")
            if self._version(connection) == 0:  # nobody was faster
                if connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_master)").fetchone()[0]:
                    raise StoreError(f"{self._path} is another program's database; name another file")
                for statement in _SCHEMA:
                    connection.execute(statement)
            connection.execute("COMMIT")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreError(f"{self._path} cannot be shared by processes: SQLite keeps it in {mode} mode; put it on a local disk")
        connection.execute("PRAGMA synchronous = NORMAL")

    def _version(self, connection: sqlite3.Connection) -> int:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA_VERSION:
            raise StoreError(
                f"{self._path} was written by a newer cloudq (schema {version}; this one reads {_SCHEMA_VERSION});"
                " upgrade cloudq here, or name another file"
            )
        return version

    def _sweep(self) -> None:
        """Delete some of what has expired; where that fails, the next write's sweep tries again."""
        connection = self._connection
        if connection is None:
            return
        now = self._clock.time()
        try:
            if not connection.execute(_DUE, (now, now)).fetchone()[0]:
                return
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_SWEEP_DOCUMENTS, (now, _SWEEP))
            for kind, key in connection.execute(_DUE_SETS, (now, _SWEEP)).fetchall():
                _drop_set(connection, kind, key)
            connection.execute("COMMIT")
        except sqlite3.Error:
            self.disconnect()


def _deliver(batch: list[_Call], answers: list[Any]) -> None:
    """Hand answers to their event loops, waking each loop once."""
    loops: defaultdict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = defaultdict(list)
    for call, answer in zip(batch, answers, strict=True):
        loops[call.future.get_loop()].append((call.future, answer))
    for loop, pairs in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, pairs)


def _settle(pairs: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, answer in pairs:
        if not future.done():  # it may have been cancelled
            future.set_result(answer)


def _is_busy(error: sqlite3.Error) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part; the module's own errors have none


def _mapped(error: sqlite3.Error, path: Path) -> StoreError:
    if _is_busy(error):
        return StoreUnavailable(f"{path} stayed locked by another process ({error}); try again, or look for what holds it")
    if _code(error) == sqlite3.SQLITE_FULL:
        return StoreUnavailable(f"cannot write {path}: {error}; make room, then try again")
    if _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreError(f"{path} is damaged, or no SQLite file ({error}); move it away, or put a backup in its place")
    if _code(error) in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return StoreError(f"cannot use {path} ({error}); this process must be allowed to write the file and its directory")
    return StoreError(f"SQLite could not use {path}: {error}")


# A connection must not cross a fork, and SQLite's locks on a file are the process's: a child that inherited an open file would take
# locks for its own that its parent holds (sqlite.org/howtocorrupt.html, 2.6). So a fork waits for the running batches, with the
# connections closed; parent and child then open their own at their next call.
_writers: weakref.WeakSet[_Writer] = weakref.WeakSet()
_forking = threading.Lock()
_held: list[_Writer] = []


def _before_fork() -> None:
    _forking.acquire()
    for writer in _writers:
        writer.gate.acquire()
        writer.disconnect()
        _held.append(writer)


def _after_fork_in_parent() -> None:
    for writer in _held:
        writer.gate.release()
    _held.clear()
    _forking.release()


def _after_fork_in_child() -> None:
    for writer in _held:
        writer.reset()
    _held.clear()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def _open(location: Location, context: AdapterContext) -> SQLiteStore:
    location.allow("timeout")
    if location.host:
        raise ConfigError(f"sqlite://{location.host} names no file; write sqlite:///cloudq.db, or sqlite:////var/lib/cloudq.db")
    return SQLiteStore(location.path, clock=context.clock, timeout=location.seconds("timeout", 10.0))


adapter = Adapter(store=_open)
"""``sqlite:///relative.db``, ``sqlite:////absolute/path.db``; option ``timeout``."""
