"""What a worker and its child processes say to each other: JSON objects, each after its length in bytes."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any, Final, cast

from cloudq.outcome import Again, Dead, Done, Dropped, Failure, Later, Outcome

# To the child, once:    app, path (sys.path), log (format and level)
# To the child, a task:  run (a number), body, queue, receives, group, sent, recorded, reports
# To the child, in one:  revoke (the run that is to end); always the frame's only key
# From the child:        ready: [names of tasks] | failed: text, once
#                        begun: run | progress: run, state, meta | outcome, run

LENGTH: Final = 4
REVOKE: Final = b'{"revoke":'
"""How a frame begins that is no task."""

_OUTCOMES: Final[dict[str, type[Outcome]]] = {kind.__name__: kind for kind in (Done, Again, Later, Dead, Dropped)}


def encode(frame: dict[str, Any]) -> bytes:
    """Bytes to send; raises TypeError or ValueError for what is no JSON."""
    body = json.dumps(frame, separators=(",", ":"), allow_nan=False).encode("ascii")
    return len(body).to_bytes(LENGTH, "big") + body


def decode(body: bytes) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(body))


async def read(stream: asyncio.StreamReader) -> dict[str, Any]:
    """The next frame; raises EOFError or OSError where none comes."""
    length = int.from_bytes(await stream.readexactly(LENGTH), "big")
    return decode(await stream.readexactly(length))


def receive(connection: socket.socket) -> bytes | None:
    """The next frame, not decoded yet; ``None`` at the end."""
    head = _exactly(connection, LENGTH)
    return None if head is None else _exactly(connection, int.from_bytes(head, "big"))


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    got = bytearray()
    while len(got) < count:
        part = connection.recv(min(count - len(got), 1 << 20))
        if not part:
            return None
        got += part
    return bytes(got)


def pack(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON values."""
    packed = outcome._asdict()
    if isinstance(packed.get("error"), Failure):
        packed["error"] = packed["error"].as_json()
    if "changes" in packed:
        packed["changes"] = dict(packed["changes"])
    return {"kind": type(outcome).__name__, **packed}


def unpack(packed: dict[str, Any]) -> Outcome:
    """The outcome that ``pack`` was given."""
    values = dict(packed)
    kind = _OUTCOMES[values.pop("kind")]
    if values.get("error") is not None:
        values["error"] = Failure(**values["error"])
    return kind(**values)
