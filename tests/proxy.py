"""A proxy in front of an SQS server that counts requests and entries by action, and injects latency and faults."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the proxy saw it. ``number`` counts the requests of its action from 1."""

    action: str
    number: int
    body: Mapping[str, Any]

    @property
    def entries(self) -> int:
        """Entries of a batch; 1 where the action has none."""
        return len(self.body.get("Entries", (None,)))


@dataclass(frozen=True, slots=True)
class Cut:
    """Close the connection without an answer, after the server carried the request out, or (``forward=False``) without its knowing."""

    forward: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer in the server's place; it does not see the request."""

    status: int
    body: Mapping[str, Any] | bytes = b"{}"


@dataclass(frozen=True, slots=True)
class Hang:
    """Never answer; the server does not see the request."""


@dataclass(frozen=True, slots=True)
class FailEntries:
    """Report the entries of these positions as failed; the server sees the others only."""

    positions: frozenset[int]
    code: str = "InternalError"
    sender_fault: bool = False


@dataclass(frozen=True, slots=True)
class After:
    """Carry the request out once ``holds()``."""

    holds: Callable[[], object]


Fault: TypeAlias = Cut | Answer | Hang | FailEntries | After
Decide: TypeAlias = Callable[[Request], Fault | None]


def every(n: int, fault: Fault, action: str) -> Decide:
    """Inject ``fault`` into each n-th request of ``action``."""
    return lambda request: fault if request.action == action and request.number % n == 0 else None


def first(n: int, fault: Fault, action: str) -> Decide:
    """Inject ``fault`` into the first n requests of ``action``."""
    return lambda request: fault if request.action == action and request.number <= n else None


class Proxy:
    """Counts and faults; may be read and set from any thread. Made by ``proxy(endpoint)``."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.endpoint = ""
        self.requests: Counter[str] = Counter()
        """Requests by action, those that got a fault included."""
        self.entries: Counter[str] = Counter()
        """Entries by action: of batches as asked, of ReceiveMessage as answered."""
        self.latency = 0.0
        """Seconds added before each request reaches the server."""
        self._serving: set[asyncio.Task[Any] | None] = set()  # asyncio forgets them once their client has gone
        self.decide: Decide | None = None
        """Asked once a request; what it returns happens to the request."""

    def reset(self) -> None:
        """Count from 0 again, without latency and faults."""
        self.requests.clear()
        self.entries.clear()
        self.latency = 0.0
        self.decide = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client connection, which stays open between requests."""
        self._serving.add(asyncio.current_task())
        try:
            while (found := await _read(reader)) is not None:
                head, body = found
                answer = await self._answer(head, body)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # one of the two went away
        except asyncio.CancelledError:
            pass  # the proxy ends; asyncio would report it as an error
        finally:
            self._serving.discard(asyncio.current_task())
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _answer(self, head: bytes, body: bytes) -> bytes | None:
        action = _header(head, b"x-amz-target").rpartition(".")[2]
        parsed = json.loads(body) if action else {}
        self.requests[action] += 1
        request = Request(action, self.requests[action], parsed)
        if "Entries" in parsed:
            self.entries[action] += request.entries
        fault = self.decide(request) if self.decide else None
        if self.latency:
            await asyncio.sleep(self.latency)
        match fault:
            case Answer(status, reply):
                return _response(status, reply)
            case Hang():
                await asyncio.Event().wait()
            case Cut(forward=False):
                return None
            case Cut():
                await self._forward(head, body)
                return None
            case After(holds):
                while not holds():
                    await asyncio.sleep(0.005)
            case FailEntries():
                return await self._fail_entries(fault, head, parsed)
            case None:
                pass
        answer = await self._forward(head, body)
        if action == "ReceiveMessage":
            with suppress(ValueError):
                self.entries[action] += len(json.loads(answer.partition(b"\r\n\r\n")[2]).get("Messages", ()))
        return answer

    async def _fail_entries(self, fault: FailEntries, head: bytes, parsed: dict[str, Any]) -> bytes:
        entries = parsed["Entries"]
        kept = [entry for position, entry in enumerate(entries) if position not in fault.positions]
        reply: dict[str, Any] = {}
        if kept:
            answer = await self._forward(head, json.dumps({**parsed, "Entries": kept}).encode())
            reply = json.loads(answer.partition(b"\r\n\r\n")[2])
        reply["Failed"] = reply.get("Failed", []) + [
            {"Id": entry["Id"], "Code": fault.code, "SenderFault": fault.sender_fault, "Message": "injected by the test"}
            for position, entry in enumerate(entries)
            if position in fault.positions
        ]
        return _response(200, reply)

    async def _forward(self, head: bytes, body: bytes) -> bytes:
        """Ask the server over a connection of its own, and return its whole answer with a length and for a kept connection."""
        reader, writer = await asyncio.open_connection(*self._upstream)
        try:
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"content-length:", b"connection:"))]
            lines += [b"Content-Length: %d" % len(body), b"Connection: close"]
            lines[0] = lines[0].replace(b"HTTP/1.1", b"HTTP/1.0")  # so that the answer comes in one piece, not in chunks
            writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            await writer.drain()
            answer_head, _, answer_body = (await reader.read(-1)).partition(b"\r\n\r\n")
        finally:
            writer.close()
        if not answer_head:
            raise ConnectionResetError("the server closed without an answer")
        dropped = (b"content-length:", b"connection:")
        kept = [line for line in answer_head.split(b"\r\n") if not line.lower().startswith(dropped)]
        kept[0] = kept[0].replace(b"HTTP/1.0", b"HTTP/1.1")
        return b"\r\n".join([*kept, b"Content-Length: %d" % len(answer_body)]) + b"\r\n\r\n" + answer_body


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, bytes] | None:
    """The next request's head and body; ``None`` at the end of the connection."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
    except asyncio.IncompleteReadError:
        return None
    return head, await reader.readexactly(int(_header(head, b"content-length") or 0))


def _header(head: bytes, name: bytes) -> str:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip().decode("latin-1")
    return ""


def _response(status: int, reply: Mapping[str, Any] | bytes) -> bytes:
    body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
    return b"HTTP/1.1 %d Injected\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body


@contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """Run a proxy in front of the endpoint ``upstream``, in a thread of its own, until the block ends."""
    it = Proxy(upstream)
    loop = asyncio.new_event_loop()
    started: asyncio.Future[asyncio.Server] = loop.create_future()

    async def start() -> None:
        started.set_result(await asyncio.start_server(it.serve, "127.0.0.1", 0, limit=1 << 22))

    async def stop() -> None:
        started.result().close()
        for task in (others := asyncio.all_tasks() - {asyncio.current_task()}):
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    loop.run_until_complete(start())
    it.endpoint = f"http://127.0.0.1:{started.result().sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever, name="test-proxy", daemon=True)
    thread.start()
    try:
        yield it
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
