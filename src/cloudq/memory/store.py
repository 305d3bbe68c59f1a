"""The memory store: documents and sets in this process, for tests, development and single-process apps."""

from __future__ import annotations

import itertools
import json
import marshal
import threading
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeAlias

from cloudq.clock import Clock, SystemClock
from cloudq.errors import Conflict, DocumentTooLarge
from cloudq.forks import Lock, protect
from cloudq.store import ANY, MISSING, Document, Expect, Page, StoreLimits, Value

_Entry: TypeAlias = tuple[bytes, str, float | None]
"""Encoded value, version, expiry. Never changed once stored, so that a read needs no lock."""

_MARSHAL = 2  # later formats share equal parts of a value, and what is read would share them too
_GROWTH = 6  # JSON text is at most this many times as long as the same value in marshal format 2 (a control character: \u0000)
_SWEEP = 1024


class MemoryStore:
    """A Store in this process. Thread-safe; no call ever suspends; what it keeps ends with the process, not with ``close``.

    Values are kept encoded, so that neither a writer nor a reader shares them; marshal is three times as fast as JSON at that.
    ``value`` (bytes) is a little under DynamoDB's 400 KB an item, so that what fits here fits there, its key included.
    """

    def __init__(self, clock: Clock | None = None, *, value: int = 400_000, members: int = 10_000) -> None:
        self._clock = clock or SystemClock()
        self._limits = StoreLimits(value=value, members=members, local=True)
        self._lock = threading.Lock()
        self._versions = itertools.count(1)  # for all keys together: a key that is deleted and made again repeats none
        self._documents: defaultdict[str, dict[str, _Entry]] = defaultdict(dict)
        self._sets: dict[tuple[str, str], tuple[set[str], float | None]] = {}
        self._order: dict[str, list[str]] = {}
        self._room = _SWEEP  # how many more keys may be made before the next sweep
        protect(self, row=1)

    @property
    def fork_lock(self) -> Lock:
        return self._lock

    def after_fork(self) -> None:
        """Do nothing: the child has a copy."""

    @property
    def limits(self) -> StoreLimits:
        return self._limits

    async def get(self, kind: str, key: str) -> Document | None:
        return self._document(self._documents[kind].get(key))

    async def get_many(self, kind: str, keys: Sequence[str]) -> Sequence[Document | None]:
        documents = self._documents[kind]
        return [self._document(documents.get(key)) for key in keys]

    async def put(self, kind: str, key: str, value: Value, *, expect: Expect = ANY, ttl: float | None = None) -> str:
        data = self._encode(kind, key, value)
        now = self._clock.time()
        documents = self._documents[kind]
        with self._lock:
            present = documents.get(key)
            if expect is not ANY:
                found = present if present is not None and not _gone(present[2], now) else None
                if (found is not None) if expect is MISSING else (found is None or found[1] != expect):
                    wanted = "none" if expect is MISSING else "the version that was read"
                    raise Conflict(f"{kind} {key} is not as expected: {wanted}", current=self._document(found))
            version = str(next(self._versions))
            documents[key] = (data, version, None if ttl is None else now + ttl)
            if present is None:
                self._order.pop(kind, None)
                self._grown(now)
        return version

    async def add_member(self, kind: str, key: str, member: str, *, ttl: float | None = None) -> int:
        now = self._clock.time()
        with self._lock:
            found = self._sets.get((kind, key))
            if found is None or _gone(found[1], now):
                self._sets[kind, key] = ({member}, None if ttl is None else now + ttl)
                self._grown(now)
                return 1
            members = found[0]
            if member not in members and len(members) >= self._limits.members:
                raise DocumentTooLarge(f"the set {kind} {key} is full: it holds {len(members)} members, as many as this store takes")
            members.add(member)
            return len(members)

    async def members(self, kind: str, key: str) -> frozenset[str]:
        with self._lock:
            found = self._sets.get((kind, key))
            return frozenset() if found is None or _gone(found[1], self._clock.time()) else frozenset(found[0])

    async def delete(self, kind: str, key: str) -> None:
        with self._lock:
            self._sets.pop((kind, key), None)
            if self._documents[kind].pop(key, None) is not None:
                self._order.pop(kind, None)

    async def list(self, kind: str, *, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        documents = self._documents[kind]
        with self._lock:
            if (order := self._order.get(kind)) is None:
                order = self._order[kind] = sorted(documents)
        start = bisect_left(order, prefix) if cursor is None else max(bisect_left(order, prefix), bisect_right(order, cursor))
        items: list[tuple[str, Document]] = []
        for key in itertools.islice(order, start, None):
            if not key.startswith(prefix):
                break
            if len(items) == limit:
                return Page(items, items[-1][0])
            if document := self._document(documents.get(key)):
                items.append((key, document))
        return Page(items)

    async def close(self) -> None:
        pass

    def _encode(self, kind: str, key: str, value: Value) -> bytes:
        plain: Any = value
        try:
            data = marshal.dumps(plain, _MARSHAL)
        except ValueError:  # another mapping than dict, a str enum: JSON says what it is
            data = marshal.dumps(json.loads(json.dumps(dict(value), allow_nan=False)), _MARSHAL)
        if len(data) * _GROWTH > self._limits.value:
            size = len(json.dumps(marshal.loads(data), allow_nan=False, separators=(",", ":")))
            if size > self._limits.value:
                raise DocumentTooLarge(f"{kind} {key} is {size} bytes as JSON; this store takes {self._limits.value}")
        return data

    def _document(self, entry: _Entry | None) -> Document | None:
        if entry is None or (entry[2] is not None and _gone(entry[2], self._clock.time())):
            return None
        return Document(marshal.loads(entry[0]), entry[1], entry[2])

    def _grown(self, now: float) -> None:
        """Forget what has expired, each time that as many keys were made as the last sweep left: O(1) a key, memory ≤ 2 × live."""
        self._room -= 1
        if self._room > 0:
            return
        for documents in list(self._documents.values()):  # a get of a new kind adds to it without the lock
            for key in [key for key, entry in documents.items() if _gone(entry[2], now)]:
                del documents[key]
        for pair in [pair for pair, entry in self._sets.items() if _gone(entry[1], now)]:
            del self._sets[pair]
        self._order.clear()
        self._room = max(_SWEEP, len(self._sets) + sum(map(len, list(self._documents.values()))))


def _gone(expires: float | None, now: float) -> bool:
    return expires is not None and expires <= now
