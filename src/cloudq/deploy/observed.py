"""What is there at a provider, as plain data: an adapter's ``observing`` reads it, and ``doctor`` holds it against the plan."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from cloudq.errors import SeamError

T = TypeVar("T")
Seen: TypeAlias = Mapping[str, T | None]
"""Things by their names; ``None`` is not there. What could not be read is left out, and is told of in ``Observed.unread``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """What a Pub/Sub subscription has and no SQS queue."""

    topic: str
    """In full."""
    expires: int | None
    """Seconds without use after which Google deletes it; ``None``: never."""
    backoff: bool
    """Whether a message that was refused waits before it comes again."""
    filter: str
    detached: bool
    push: str | None
    """The endpoint; ``None``: it is pulled."""
    account: str | None
    """Whose token a push carries; ``None``: it carries none."""
    audience: str | None
    """Of that token; ``None``: the endpoint."""
    granted: bool | None
    """Whether Pub/Sub's own service agent may acknowledge here; ``None``: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """An SQS queue, or a Pub/Sub subscription. Times in seconds."""

    visibility: int
    retention: int
    fifo: bool
    encrypted: bool
    key: str | None
    """The customer's key that encrypts it."""
    dead_letters: str | None
    """Where the provider itself moves messages: the plain name of a queue or topic."""
    max_receives: int | None
    """After so many deliveries; ``None``: never."""
    waiting: int | None
    """Messages that could be received; ``None`` where the provider counts them elsewhere."""
    subscription: Subscription | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A Pub/Sub topic."""

    key: str | None
    granted: bool | None
    """Whether Pub/Sub's own service agent may publish here; ``None``: not known, or nobody needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A Lambda function."""

    state: str
    timeout: int
    runtime: str | None
    """``None``: an image."""
    architecture: str
    environment: Mapping[str, str] = field(repr=False)
    reserved: int | None
    """Of the account's concurrency, its own."""
    loops: str | None
    """``Allow`` or ``Terminate``; ``None``: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An event source mapping: which function gets a queue's messages, and how."""

    function: str
    state: str
    batch_size: int
    window: int
    partial: bool
    """Whether the function may report the failed messages of a batch alone."""
    max_concurrency: int | None
    filtered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A DynamoDB table, or a Firestore collection group."""

    state: str
    keys: Mapping[str, str] | None
    """Of the table: ``HASH`` and ``RANGE`` to name and type; ``None`` where there are none to choose."""
    ttl: str | None
    """The attribute by which documents expire, empty where none does; ``None``: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """A schedule group, or a Cloud Tasks queue."""

    state: str
    attempts: int | None
    """Tries after which it gives up; ``None``: it does not, or has a place for what it gave up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule of the provider's own, which is one of ours or a part of one."""

    expression: str
    timezone: str
    enabled: bool
    queue: str
    """The plain name of the queue or topic that it sends to."""
    body: str
    """With ``<slot>`` where the provider puts its time in."""
    group: str | None
    """The ordering key, or the tenant."""
    undelivered: str | None
    """The plain name of the queue for what it could not send."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A bucket for large messages."""

    days: int | None
    """After which its rules delete any object; ``None``: none does."""


@dataclass(frozen=True, slots=True)
class Unread:
    """What could not be read."""

    part: str
    """What kind of thing: ``the dead letters' grants``."""
    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Everything that was looked for. Things have the names of the plan."""

    place: str
    """Where that was, for people: ``eu-west-1 of 123456789012``."""
    queues: Seen[Queue]
    """With those of dead letters."""
    topics: Seen[Topic]
    functions: Seen[Function]
    sources: Mapping[str, tuple[Source, ...]]
    """By their queue."""
    stores: Seen[Store]
    timers: Seen[Timer]
    schedules: Mapping[str, Schedule] | None
    """By their names at the provider; ``None``: they could not be read."""
    buckets: Seen[Bucket]
    beside: Mapping[str, int] = field(default_factory=dict[str, int])
    """Queues that have the plan's prefix and are not in the plan, with how many messages wait there."""
    unread: tuple[Unread, ...]


class Missing(SeamError):
    """There is no such thing."""


@dataclass(slots=True)
class Looking:
    """Looks at several things at once, and keeps what could not be read instead of ending there. ConfigErrors do end it."""

    unread: list[Unread] = field(default_factory=list)

    async def one(self, part: str, name: str, reading: Awaitable[T]) -> tuple[T | None, bool]:
        """What was read, ``None`` where it is missing or could not be read; and whether it is known."""
        try:
            return await reading, True
        except Missing:
            return None, True
        except SeamError as error:
            self.unread.append(Unread(part, name, " ".join(str(error).split())))  # a proxy may have answered with a page
            return None, False

    async def each(self, part: str, names: Iterable[str], read: Callable[[str], Awaitable[T]]) -> dict[str, T | None]:
        """Several things by their names; those that could not be read are left out."""
        wanted = [*dict.fromkeys(names)]
        found = await asyncio.gather(*(self.one(part, name, read(name)) for name in wanted))
        return {name: seen for name, (seen, known) in zip(wanted, found, strict=True) if known}
