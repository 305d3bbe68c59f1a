"""The broker seam: moves opaque text between processes; it knows no task, no JSON and no retry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from cloudq.errors import LeaseLost, QueueNotFound, SendError, SettleError

__all__ = [
    "Broker",
    "Delivery",
    "LeaseLost",
    "Limits",
    "Outgoing",
    "QueueNotFound",
    "QueueStats",
    "SendError",
    "SettleError",
]

EMPTY: Mapping[str, str] = {}


class Limits(NamedTuple):
    """What a broker can do. The core adapts to these values, never to a broker's name. Times in seconds, sizes in bytes."""

    batch: int
    """Entries in one send, ack or extend request at most; the core never passes more."""
    batch_bytes: int
    """Bodies and attributes of one send request together, at most."""
    body: int
    """Bytes (UTF-8) of one message at most, attributes included."""
    receive: int
    """Deliveries that one receive may ask for, at most."""
    wait: float
    """The longest a receive may wait for a first message."""
    delay: float
    """The longest per-message delay; 0 where there is none."""
    lease: float
    """How long a delivery is ours after receive, when nothing extends it."""
    extend: float
    """The longest a single extend may ask for, counted from the call."""
    max_lease: float
    """The longest a delivery can be held in all, counted from receive, however often it is extended."""
    hold: float = 0.0
    """For a broker without delays: how long a host that keeps leases may hold a message that is not due, its eta in the message."""
    ordering: bool = False
    """Whether ``Outgoing.group`` keeps the order of a group (at least on some queues)."""
    ordered_delay: bool = False
    """Whether a message with a group may also have a delay."""
    receives: bool = True
    """Whether ``Delivery.receives`` is counted."""
    counts: bool = True
    """Whether ``stats`` counts; where not, it says only that the queue is there."""
    local: bool = False
    """Whether no call ever suspends but a receive that waits: the core then calls in the caller's own thread."""


@dataclass(slots=True, kw_only=True)
class Outgoing:
    """A message on its way out. Treat it as frozen."""

    body: str
    """Any text of XML 1.0 characters (the narrowest alphabet among the brokers); cloudq's own bodies are ASCII."""
    delay: float = 0.0
    """Seconds before it can be received; at most ``Limits.delay``."""
    group: str | None = None
    """Ordering key: messages of one group are delivered one after another, in the order sent."""
    dedup: str | None = None
    """Deduplication id, for brokers that drop repeats (SQS FIFO); others ignore it."""
    tenant: str | None = None
    """Fairness key, for brokers that share a queue fairly among tenants (SQS fair queues); others ignore it."""
    attributes: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    """A few short strings beside the body (trace context); three at most."""


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Delivery:
    """A leased message: ours until ``lease_until``, or until acked or given back. Compared by identity."""

    queue: str
    body: str
    """The text; bytes that are no UTF-8 arrive surrogate-escaped."""
    receipt: object
    """The driver's own handle for ack and extend; opaque to the core. ``None``: it was pushed, and the answer to that settles it."""
    receives: int = 0
    """How often the provider says it was delivered, this time included; 0 where it does not count."""
    message_id: str = ""
    """The provider's id of the message, for logs and for batch responses."""
    sent: float | None = None
    """When the broker took it (Unix time, seconds), where it says so."""
    received: float = 0.0
    """When this lease began (Unix time, seconds, on the driver's clock)."""
    lease_until: float = 0.0
    """When this lease ends unless extended; ``extend`` moves it on."""
    group: str | None = None
    attributes: Mapping[str, str] = field(default_factory=lambda: EMPTY)


class QueueStats(NamedTuple):
    """Approximate counts, as the provider gives them; ``None`` where it gives none."""

    ready: int | None
    in_flight: int | None
    delayed: int | None = None
    oldest: float | None = None
    """Age in seconds of the oldest message that can be received."""


@runtime_checkable
class Broker(Protocol):
    """Moves text. A driver is finished when ``cloudq.testing.BrokerConformance`` passes.

    Every method is safe to call many times at once on one event loop; nothing is called from two loops, except
    on a broker with ``limits.local``, whose methods are safe from every thread. The constructor connects to nothing: the first
    call does, on the loop that it runs on. Cancelling a call leaves the broker usable.

    Transport faults: a driver may retry a request that is safe to repeat for a few seconds; then it raises BrokerUnavailable.
    Repeating failed *entries* is the caller's work, never the driver's. Provider exceptions never leave a driver: they are mapped to
    the errors named here, ``raise … from``.

    A queue that does not exist, or that we may not see, raises QueueNotFound from every method. No method creates one.
    """

    @property
    def limits(self) -> Limits:
        """What this broker can do; constant, and known without a request."""
        ...

    async def send(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
        """Take 1 to ``limits.batch`` messages, ``limits.batch_bytes`` together, in one request.

        Answers one entry a message, in order: ``None`` once it is durably taken, else why not. Entries do not hurt each other.
        Raises BrokerError where the request as a whole failed: each entry may or may not have been taken.
        """
        ...

    async def receive(self, queue: str, *, max_messages: int, wait: float) -> Sequence[Delivery]:
        """Lease up to ``max_messages`` (1 to ``limits.receive``) messages; wait up to ``wait`` seconds for the first.

        Returns as soon as there is one, and empty when ``wait`` is over; ``wait=0`` asks once. Messages of one group are never
        leased while an earlier one of the group is (all of one batch, in order, is allowed). Cancelling loses nothing: what was leased
        comes back by itself.
        """
        ...

    async def ack(self, deliveries: Sequence[Delivery]) -> Sequence[SettleError | None]:
        """Delete up to ``limits.batch`` deliveries of one queue for good, in one request; one answer each, in order.

        Acking twice is no error. LeaseLost says that the lease had ended and that the message may be delivered again; a
        broker that cannot know answers ``None``.
        """
        ...

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[SettleError | None]:
        """Make the leases of up to ``limits.batch`` deliveries of one queue end ``seconds`` from now (at most ``limits.extend``).

        On success ``lease_until`` is moved on. ``seconds=0`` gives the deliveries back: they can be received at once. LeaseLost
        where the lease had ended, or its total would pass ``limits.max_lease``.
        """
        ...

    async def stats(self, queue: str) -> QueueStats:
        """Count the queue's messages, approximately."""
        ...

    async def close(self) -> None:
        """Release connections; leases are left to end by themselves. Closing twice is no error, and a later call reconnects."""
        ...


@runtime_checkable
class CreatesQueues(Protocol):
    """A broker whose queues live and die with it (memory, the dev server): the app creates the queues that it declares.

    No cloud driver has this method: at run time cloudq creates no cloud resource.
    """

    def create_queue(self, name: str, *, dead_letter: str | None = None, max_receives: int | None = None) -> None:
        """Create ``name`` unless it exists. After ``max_receives`` deliveries a message moves to ``dead_letter``."""
        ...
