"""Many calls that are sent together, in columns: thousands wait without an object for each, which the collector would have to walk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from cloudq.broker import Outgoing


class Addressed(Protocol):
    """A message, where it goes, and the id of its task."""

    @property
    def queue(self) -> str: ...
    @property
    def outgoing(self) -> Outgoing: ...
    @property
    def id(self) -> str: ...


class Entry(NamedTuple):
    """An ``Addressed`` with nothing more."""

    queue: str
    outgoing: Outgoing
    id: str


class Bulk:
    """Entries by their index. One that is no more than a body has no object of its own until ``outgoing`` makes its message."""

    __slots__ = ("bodies", "ids", "queues", "whole")

    def __init__(self, entries: Iterable[Addressed] = ()) -> None:
        self.ids: list[str] = []
        self.queues: list[str] = []
        self.bodies: list[str] = []
        self.whole: dict[int, Addressed] = {}
        """Those that are more than a body."""
        for each in entries:
            self.add(each)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Addressed]:
        return map(self.entry, range(len(self.ids)))

    def add(self, entry: Addressed) -> None:
        """Put one at the end."""
        self.whole[len(self.ids)] = entry
        self.add_bare(entry.id, entry.queue, entry.outgoing.body)

    def add_bare(self, id: str, queue: str, body: str) -> None:
        """Put one at the end that is no more than an ASCII body."""
        self.ids.append(id)
        self.queues.append(queue)
        self.bodies.append(body)

    def entry(self, index: int) -> Addressed:
        """One of them."""
        return self.whole.get(index) or Entry(self.queues[index], Outgoing(body=self.bodies[index]), self.ids[index])

    def outgoing(self, index: int) -> Outgoing:
        """The message of one of them."""
        entry = self.whole.get(index) if self.whole else None
        return Outgoing(body=self.bodies[index]) if entry is None else entry.outgoing

    def size(self, index: int) -> int:
        """Bytes of its message."""
        entry = self.whole.get(index) if self.whole else None
        return len(self.bodies[index]) if entry is None else weigh(entry.outgoing)

    def packed(self, indices: Iterable[int], most: int, heaviest: int) -> list[tuple[str, list[int]]]:
        """Batches of one queue each, in order, of at most ``most`` entries and ``heaviest`` bytes; a queue's last may have room left."""
        batches: list[tuple[str, list[int]]] = []
        filling: dict[str, list[int]] = {}
        totals: dict[str, int] = {}
        queues, size_of = self.queues, self.size
        for index in indices:
            queue, size = queues[index], size_of(index)
            batch = filling.get(queue)
            if batch is None or len(batch) >= most or totals[queue] + size > heaviest:
                batch = filling[queue] = []
                totals[queue] = 0
                batches.append((queue, batch))
            batch.append(index)
            totals[queue] += size
        return batches


def bulk_of(entries: Sequence[Addressed] | Bulk) -> Bulk:
    """The same entries, in columns."""
    return entries if isinstance(entries, Bulk) else Bulk(entries)


def weigh(outgoing: Outgoing) -> int:
    """Bytes of a message as brokers count them: body and attributes."""
    body = outgoing.body
    size = len(body) if body.isascii() else len(body.encode("utf-8", "surrogatepass"))
    if not outgoing.attributes:
        return size
    return size + sum(len(name) + len(value.encode()) + 6 for name, value in outgoing.attributes.items())
