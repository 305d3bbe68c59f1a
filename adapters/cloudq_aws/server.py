"""SQS on loopback: the memory broker served in SQS's JSON protocol, for development, tests and benchmarks.

    python -m cloudq_aws.server --port 9324 --queue emails --queue orders.fifo

and ``AWS_ENDPOINT_URL=http://127.0.0.1:9324`` leads any AWS SDK to it. It checks no signature, and every region and account is its own.
``GET /_cloudq/health`` answers when it serves, ``GET /_cloudq/stats`` with the requests and entries by action.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import signal
import sys
import threading
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, Final, cast
from urllib.parse import urlsplit

from aiohttp import web

from cloudq.adapters import Location
from cloudq.broker import Broker
from cloudq.clock import Clock
from cloudq.errors import ConfigError
from cloudq.memory.broker import DEFAULT, MemoryBroker
from cloudq.memory.lies import LyingBroker
from cloudq_aws.sqs_protocol.request import Call, Refused
from cloudq_aws.sqs_protocol.service import Service

__all__ = ["SQSServer", "serve_in_thread"]

_TARGET: Final = "AmazonSQS."
_JSON: Final = "application/x-amz-json-1.0"
_LARGEST: Final = 16 << 20
"""Bytes of a request at most: 1 MiB of bodies, escaped as far as JSON can."""
_GRACE: Final = 0.05
"""Seconds that requests under way have when the server closes; then a poll that waits is cut off."""

_encode = json.JSONEncoder(separators=(",", ":")).encode
_log = logging.getLogger("cloudq.sqs")


class SQSServer:
    """Serves ``broker`` on ``http://host:port``, where port 0 picks a free one.

    Queues that the broker has can be used by SQS and the other way round, so that a worker in this process may use the broker itself. With
    ``lie``, a seed, what comes by SQS goes through a LyingBroker. ``latency`` (seconds) is added to every request, and every
    ``fail_every``-th entry of batches fails. ``clock`` is that of the broker made where none is given.
    """

    def __init__(
        self,
        broker: MemoryBroker | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        lie: int | None = None,
        latency: float = 0.0,
        fail_every: int = 0,
        clock: Clock | None = None,
    ) -> None:
        # A FIFO queue may have a delay of its own, and then every message of it has one.
        self.broker: Final = broker or MemoryBroker(clock=clock, limits=DEFAULT._replace(ordered_delay=True))
        self.latency = latency
        self._service: Final = Service(self.broker, None if lie is None else LyingBroker(self.broker, lie), fail_every=fail_every)
        self._host = host
        self._port = port
        self._local = _is_local(host)
        self._runner: web.ServerRunner | None = None
        self._numbers = itertools.count(1)

    @property
    def endpoint(self) -> str:
        """What AWS_ENDPOINT_URL is set to. RuntimeError before ``start``."""
        if self._runner is None:
            raise RuntimeError("the server is not started")
        host, port, *_ = self._runner.addresses[0]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def requests(self) -> Counter[str]:
        """Requests by action (``SendMessageBatch``)."""
        return self._service.requests

    @property
    def entries(self) -> Counter[str]:
        """Messages asked to be sent, deleted or changed, and messages received, by action."""
        return self._service.entries

    @property
    def stats(self) -> Mapping[str, Any]:
        """All that is counted. ``body_bytes`` is what SQS would count of the messages asked to be sent."""
        return {"requests": self.requests, "entries": self.entries, "body_bytes": self._service.body_bytes}

    async def start(self) -> None:
        """Listen. OSError where the port is taken."""
        server = web.Server(self._serve, request_factory=_make_request, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=_GRACE)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner

    async def close(self) -> None:
        """Stop listening, and cut polls off. The messages stay in the broker. Closing twice is no error."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if self._local and not _is_local(host):  # a web page whose name was made to lead here
            return _answer({"message": f"{host!r} is no name of this machine"}, 403)
        target = request.headers.get("X-Amz-Target", "")
        if not target.startswith(_TARGET):
            return self._serve_plain(request)
        if self.latency:
            await asyncio.sleep(self.latency)
        headers = {"x-amzn-RequestId": f"{next(self._numbers):08x}-0000-0000-0000-000000000000"}
        try:
            call = Call(_params(await request.read()), f"http://{host}", request.headers.get("Authorization", ""))
            return _answer(await self._service.answer(target.removeprefix(_TARGET), call), 200, headers)
        except Refused as refused:
            error = refused
        except web.HTTPRequestEntityTooLarge:
            error = Refused("BatchRequestTooLong", f"A request has at most {_LARGEST} bytes.")
        except Exception:
            _log.exception("%s failed", target)
            error = Refused("InternalFailure", "The server failed; its log says why.", fault=True)
        headers["x-amzn-query-error"] = f"{error.legacy};{'Receiver' if error.fault else 'Sender'}"
        answer = {"__type": f"com.amazonaws.sqs#{error.code}", "message": str(error)}
        return _answer(answer, 500 if error.fault else 400, headers)

    def _serve_plain(self, request: web.BaseRequest) -> web.Response:
        if request.method == "GET" and request.path == "/_cloudq/health":
            return _answer({"status": "ok"}, 200)
        if request.method == "GET" and request.path == "/_cloudq/stats":
            return _answer(self.stats, 200)
        why = "this serves SQS's JSON protocol only: a POST with X-Amz-Target: AmazonSQS.…, as SDKs of 2024 and later send it"
        return _answer({"__type": "com.amazonaws.sqs#UnsupportedOperation", "message": why}, 400)


@contextmanager
def serve_in_thread(broker: MemoryBroker | None = None, **options: Any) -> Generator[SQSServer]:
    """An SQSServer with these options on a loop in a thread of its own, until the block ends."""
    server = SQSServer(broker, **options)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="cloudq-sqs-server", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.close(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def serve_at(broker: Broker, location: Location) -> Generator[str]:
    """What ``cloudq.adapters.serve`` does for ``sqs://host:port/?lie=SEED``; ConfigError for a broker not of memory, or a taken port."""
    location.allow("lie")
    if not isinstance(broker, MemoryBroker):
        raise ConfigError("only a memory:// broker (one that does not lie itself) can be served as SQS")
    try:
        place = urlsplit(f"//{location.host}")
        lie = location.number("lie", 0) if "lie" in location.options else None
        serving = serve_in_thread(broker, host=place.hostname or "127.0.0.1", port=place.port or 0, lie=lie)
        with ExitStack() as stack:
            server = stack.enter_context(serving)
            close = stack.pop_all().close
    except (OSError, ValueError) as error:
        raise ConfigError(f"SQS cannot be served at {location.host or '127.0.0.1'}: {error}") from error
    try:
        yield server.endpoint
    finally:
        close()


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m cloudq_aws.server``: serve until SIGTERM or Ctrl-C, after printing the endpoint."""
    parser = argparse.ArgumentParser(prog="python -m cloudq_aws.server", description="SQS in memory, for any AWS SDK.")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) picks a free one")
    parser.add_argument("--lie", type=int, metavar="SEED", help="misbehave as SQS may: repeat, reorder, lose answers")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="added to every request")
    parser.add_argument("--fail-every", type=int, default=0, metavar="N", help="fail every N-th entry of batches")
    parser.add_argument("--queue", action="append", default=[], metavar="NAME", help="create this queue; repeatable")
    chosen = vars(parser.parse_args(arguments))
    queues: list[str] = chosen.pop("queue")
    server = SQSServer(**chosen)
    for name in queues:
        server.broker.create_queue(name)
    with suppress(KeyboardInterrupt):
        asyncio.run(_run(server))


async def _run(server: SQSServer) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await server.start()
    try:
        sys.stdout.write(f"{server.endpoint}\n")
        sys.stdout.flush()
        await stopped.wait()
    finally:
        await server.close()


def _make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    return web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop(), client_max_size=_LARGEST)


def _params(body: bytes) -> dict[str, Any]:
    try:
        params = json.loads(body or b"{}")
    except ValueError as error:
        raise Refused("SerializationException", "the request is no JSON") from error
    if not isinstance(params, dict):
        raise Refused("SerializationException", "the request is no JSON object")
    return cast("dict[str, Any]", params)


def _answer(body: Mapping[str, Any], status: int, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=_encode(body).encode(), status=status, headers=headers, content_type=_JSON)


@lru_cache(64)
def _is_local(host: str) -> bool:
    """Whether a Host header, or an address to listen on, names this machine only."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


if __name__ == "__main__":
    main()
