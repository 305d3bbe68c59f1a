"""Claim-checks: a body too large for its queue lies in an object store, and a small claim travels in its place.

The sender leaves the body there and the runner collects it (or a person's command, by ``letters``). A driver only says where bodies
lie: everything else is written here, once for all brokers.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol, cast, runtime_checkable

from cloudq.adapters import Location
from cloudq.broker import Broker
from cloudq.errors import ConfigError, DecodeError, DelayError, StoreError
from cloudq.message import VERSION
from cloudq.values import dumps

FIELD: Final = "claim_check"
"""The field that makes a body without a ``task`` a claim (docs/protocol.md)."""

OPTIONS: Final = ("bodies", "bodies_over", "bodies_days")
"""What a broker's URL says about it: where bodies lie, from how many bytes on, and how many days the place keeps them."""

SMALL: Final = 1024
"""Bytes that every queue takes (SQS lets none have a smaller MaximumMessageSize: AWS SetQueueAttributes). A claim has fewer."""

MOST: Final = 16 << 20
"""Bytes of a body at most: one request's worth of an object store, and no more than a reader may want in memory."""

DELAY_DAYS: Final = 32
"""What ``bodies_days`` has beside the longest rest in a queue and in its dead-letter queue, unless said otherwise: a month of delay."""

_DAY: Final = 86_400.0
_KEY: Final = r"(?=.{1,200}\Z)[A-Za-z0-9_-]+(?:[./][A-Za-z0-9_-]+)*"
_DIGEST: Final = "[0-9a-f]{64}"


class Bodies(Protocol):
    """Where bodies lie: bytes by key, in one place that configuration names. The lifecycle of the place deletes them, and nobody else.

    Safe to call many times at once on one event loop. Raises StoreUnavailable where trying again may help, and StoreError where it does
    not (gone, denied, no such bucket), saying what and where.
    """

    @property
    def place(self) -> str:
        """For messages, with its last slash: ``s3://bucket/prefix/``."""
        ...

    async def write(self, key: str, body: bytes) -> None:
        """Keep ``body`` under ``key``, durably; writing the same again begins its time anew."""
        ...

    async def read(self, key: str, *, most: int) -> bytes:
        """The bytes under ``key``; of an object with more than ``most``, only a beginning that is longer than ``most``."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class ClaimChecks(NamedTuple):
    """Leaves bodies and collects them. Objects are named by their content's SHA-256, so that repeating a send writes the same object."""

    bodies: Bodies
    over: int = MOST
    """Bytes of a message from which on its body is left, even where its queue would take it."""
    delay: float = DELAY_DAYS * _DAY
    """The longest delay (seconds) of a message whose body is left: it must still be there when the message has rested in its queues."""

    async def leave(self, body: str) -> str:
        """Keep ``body`` and return the claim that travels in its place. Raises StoreUnavailable, StoreError."""
        data = body.encode("utf-8", "surrogateescape")
        digest = hashlib.sha256(data).hexdigest()
        await self.bodies.write(digest, data)
        return dumps({"v": VERSION, FIELD: {"key": digest, "size": len(data), "sha256": digest}})

    async def collect(self, fields: Mapping[str, Any]) -> str:
        """The body that a claim is for. Raises DecodeError, StoreUnavailable, or StoreError where it is gone or is not what was left."""
        key, size, digest = _claim(fields)
        data = await self.bodies.read(key, most=size)
        if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
            raise StoreError(f"{self.bodies.place}{key} is not what was written there: its size or its SHA-256 differs")
        return data.decode("utf-8", "surrogateescape")

    def allow(self, delay: float, what: str) -> None:
        """Raise DelayError naming ``what`` where its body would be gone before the message has been handled."""
        if delay > self.delay:
            raise DelayError(
                f"{what}: its body lies in {self.bodies.place}, which does not keep it through a delay of {delay / _DAY:.0f} days "
                f"(at most {self.delay / _DAY:.0f}); use a shorter delay, or raise bodies_days= together with the place's lifecycle"
            )


@runtime_checkable
class ChecksBodies(Protocol):
    """A broker that can have a place for bodies."""

    @property
    def claim_checks(self) -> ClaimChecks | None:
        """``None`` where its URL names no place."""
        ...

    async def body_limit(self, queue: str) -> int:
        """Bytes that ``queue`` itself takes (body and attributes), at most ``limits.body``; asked for once a queue."""
        ...


def of(broker: Broker) -> ClaimChecks | None:
    """The claim-checks of a broker; ``None`` where it has none."""
    return broker.claim_checks if isinstance(broker, ChecksBodies) else None


def is_claim(fields: Mapping[str, Any]) -> bool:
    """Whether a parsed body only says where the message lies."""
    return FIELD in fields and "task" not in fields


def configured(location: Location, place: Callable[[str], Bodies], *, resting: float) -> ClaimChecks | None:
    """What a broker's URL says: ``?bodies=s3://bucket/prefix`` or ``gs://…``, with ``bodies_over=`` (bytes) and ``bodies_days=``.

    ``place`` opens a URL of bodies; ``resting`` is the longest that a message may lie in a queue and its dead-letter queue, in seconds.
    """
    options = location.options
    if "bodies" not in options:
        if stray := sorted(options.keys() & set(OPTIONS)):
            raise ConfigError(f"option {stray[0]} of the {location.scheme}:// URL needs bodies=, the place where large bodies lie")
        return None
    over, days = location.number("bodies_over", MOST), location.number("bodies_days", DELAY_DAYS + math.ceil(resting / _DAY))
    if not SMALL <= over <= MOST:
        raise ConfigError(f"bodies_over must be from {SMALL:,} to {MOST:,} bytes, not {over:,}")
    if days * _DAY < resting:
        raise ConfigError(
            f"bodies_days must be {resting / _DAY:.0f} or more, not {days}: "
            "so long a message may rest in its queue and then in a dead-letter queue"
        )
    return ClaimChecks(bodies=place(options["bodies"]), over=over, delay=days * _DAY - resting)


def _claim(fields: Mapping[str, Any]) -> tuple[str, int, str]:
    """Key, size and SHA-256 of a claim. The key stays inside the place that configuration names, whoever wrote it."""
    claim = fields.get(FIELD)
    found = cast("dict[str, object]", claim) if isinstance(claim, dict) else {}
    key, size, digest = found.get("key"), found.get("size"), found.get("sha256")
    if not isinstance(key, str) or not re.fullmatch(_KEY, key):
        raise DecodeError(f'"{FIELD}" must have a "key": letters, digits, _ and -, with single dots and slashes between')
    if type(size) is not int or not 0 < size <= MOST:
        raise DecodeError(f'"{FIELD}" must have a "size" of 1 to {MOST} bytes')
    if not isinstance(digest, str) or not re.fullmatch(_DIGEST, digest):
        raise DecodeError(f'"{FIELD}" must have a "sha256" of 64 hex digits')
    return key, size, digest
