"""The store seam: small documents by kind and key, with compare-and-set and expiry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from cloudq.errors import Conflict, DocumentTooLarge

__all__ = ["ANY", "KINDS", "MISSING", "Conflict", "Document", "DocumentTooLarge", "Expect", "Page", "Store", "StoreLimits", "Value"]

Value: TypeAlias = Mapping[str, Any]
"""A JSON object: str keys; values None, bool, int, float (finite), str, list and dict of the same, exactly as ``json`` reads them."""


class _Expect(Enum):
    ANY = "any"
    MISSING = "missing"


ANY: Final = _Expect.ANY
"""``put(expect=ANY)``: whatever is there."""
MISSING: Final = _Expect.MISSING
"""``put(expect=MISSING)``: only where there is no document, or an expired one."""

Expect: TypeAlias = Literal[_Expect.ANY, _Expect.MISSING] | str
"""What a put requires of the present document: ANY, MISSING, or the version that was read."""

KINDS: Final = ("task", "claim", "chord", "limit", "pause", "worker", "event", "schedule")
"""The kinds of documents that the core writes. ``list`` serves these, and a driver may keep an index for each."""


class StoreLimits(NamedTuple):
    """What a store can do; sizes in bytes."""

    value: int
    """The largest value, encoded as JSON."""
    members: int
    """The most members of one set."""
    metered: bool = False
    """Whether each write costs money: the core then leaves out, by default, writes that only inform (QUEUED)."""
    local: bool = False
    """Whether no call ever suspends: the core then calls in the caller's own thread."""


class Document(NamedTuple):
    """What is stored under a kind and key. ``version`` changes with every put; it is opaque."""

    value: Value
    version: str
    expires: float | None = None
    """Unix time in seconds after which the document counts as gone."""


class Page(NamedTuple):
    """A part of a listing: keys with documents, and the cursor for the next page (``None`` at the end)."""

    items: Sequence[tuple[str, Document]]
    cursor: str | None = None


@runtime_checkable
class Store(Protocol):
    """Keeps documents. A driver is finished when ``cloudq.testing.StoreConformance`` passes.

    Every method is safe to call many times at once on one event loop; on a store with ``limits.local`` from every thread. The
    constructor connects to nothing; the first call does. Reads see every put that has returned. An expired document is gone at
    once for every method, whenever the provider really deletes it. ``ttl`` is in seconds from now, ``None`` for ever.
    Keys are 1 to 512 characters of printable ASCII. Transport faults: a driver may retry for a few seconds what is safe
    to repeat, then raises StoreUnavailable. **A put whose own earlier try may have been applied must not report a Conflict with
    itself**: a driver that retries conditional writes compares what it finds with what it wrote.
    """

    @property
    def limits(self) -> StoreLimits:
        """What this store can do; constant, and known without a request."""
        ...

    async def get(self, kind: str, key: str) -> Document | None:
        """The document, or ``None``."""
        ...

    async def get_many(self, kind: str, keys: Sequence[str]) -> Sequence[Document | None]:
        """One answer a key, in order; any number of keys (the driver splits)."""
        ...

    async def put(self, kind: str, key: str, value: Value, *, expect: Expect = ANY, ttl: float | None = None) -> str:
        """Write the whole document if ``expect`` holds, in one atomic step, and return its new version.

        Raises Conflict, with the document found, where it does not hold; DocumentTooLarge over ``limits.value``.
        """
        ...

    async def add_member(self, kind: str, key: str, member: str, *, ttl: float | None = None) -> int:
        """Add ``member`` to the set under ``key`` and return the set's size after it; adding again changes nothing.

        Concurrent adds of n members return each size at most once for new members, and one of them n. Sets and documents of one kind have
        keys of their own: the same key can hold both. ``ttl`` counts from the first add of the set.
        """
        ...

    async def members(self, kind: str, key: str) -> frozenset[str]:
        """The members of the set, empty where there is none."""
        ...

    async def delete(self, kind: str, key: str) -> None:
        """Delete the document and the set under ``key``; what is not there is no error."""
        ...

    async def list(self, kind: str, *, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        """Documents of a kind of KINDS, by key in ascending (code point) order, by an index and never by a scan of everything.

        It goes on after the key ``cursor``, whether there is such a document or not; a page's cursor is its last key.
        """
        ...

    async def close(self) -> None:
        """Release connections. Closing twice is no error, and a later call reconnects."""
        ...
