"""Google's asynchronous clients: loaded and opened at the first request, opened again after close, and closed around a fork."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from cloudq.errors import ConfigError
from cloudq_gcp.errors import PASSING, per_id, status_of

_OPEN: Final = 20.0
"""Seconds for loading the libraries and finding credentials (Google's metadata server is tried for several seconds)."""
_PATIENCE: Final = 5.0
"""Seconds within which a failing request is repeated."""
_FORK: Final = 3.0
"""Seconds that a fork waits for open connections to close."""
_HELD: Final = PASSING - {"CANCELLED", "DEADLINE_EXCEEDED"}

# Google's own options. A connection that is gone without a word is given up when what was sent has not been confirmed for 3 s (gRPC sets
# TCP_USER_TIMEOUT so; its default of 20 s is longer than requests are repeated), and tried again after 5 s at most (its default: 2 min).
_OPTIONS: Final[Sequence[tuple[str, int]]] = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)

_SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """A generated client: ``package`` ``google.pubsub_v1.services.publisher``, ``name`` ``Publisher``."""

    package: str
    name: str


class Client:
    """Requests to one or several APIs of a service, over Google's generated asynchronous clients.

    ``emulator`` is the environment variable with the address of the service's emulator, which is asked without credentials; else they
    are the application default ones. ``endpoint`` overrides the service's own, as a regional one does. Exceptions come out as Google's.

    The clients belong to the loop of the first request, and are made anew after ``close``, on another loop and in a forked child. gRPC
    keeps threads that a child lacks, so a fork first closes what is open; requests under way then fail with ConnectionError. Where
    that cannot be (a fork on the I/O loop itself), requests in the child raise ConfigError at once, instead of waiting for ever.
    """

    def __init__(self, *apis: Api, emulator: str, endpoint: str | None = None) -> None:
        self._apis = apis
        self._emulator = emulator
        self._endpoint = endpoint
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._thread = 0
        self._opening: asyncio.Task[dict[str, _Opened]] | None = None
        _clients.add(self)

    async def request(
        self,
        api: str,
        method: str,
        request: Callable[[], Any],
        *,
        within: float,
        routed_by: str = "",
        streamed: bool = False,
    ) -> Any:
        """Call ``method`` (``publish``) of ``api`` (``Publisher``) with ``request()``, made once the library is loaded.

        Passing faults are repeated for up to 5 s; the whole ends after ``within`` seconds. ``routed_by`` leaves out the generated method
        with its warnings, and names the field that Google routes the request by. A method that answers ``streamed`` gives the list of
        its answers, and is repeated from the start where the stream breaks.
        """
        client = (await self._open())[api]
        core = import_module("google.api_core.retry_async")
        retry = core.AsyncRetry(predicate=_passes, initial=0.1, maximum=1.0, multiplier=2.0, timeout=min(_PATIENCE, within))
        call = client.plainly(method, routed_by) if routed_by else getattr(client.sdk, method)
        if streamed:
            call = _gathered(call)
        try:
            return await call(request(), retry=retry, timeout=within)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ConnectionAbortedError("the connection was closed while the request was under way") from None

    async def close(self) -> None:
        """Close the connections; requests under way fail."""
        opening, self._opening = self._opening, None
        if opening is None:
            return
        if self._home != _here():
            _abandoned.append(opening)
            return
        opening.cancel()  # does nothing to one that is done
        await asyncio.wait([opening])
        if not opening.cancelled() and opening.exception() is None:
            for opened in opening.result().values():
                await opened.sdk.transport.close()

    async def _open(self) -> dict[str, _Opened]:
        if _poisoned:
            raise ConfigError(
                "this process was forked while its parent's gRPC was at work, and gRPC cannot be used in it: "
                "fork before the first call or from another thread than the I/O loop's, or start processes by 'spawn'"
            )
        here = _here()
        if self._opening is not None and self._home != here:
            _abandoned.append(self._opening)
            self._opening = None
        if self._opening is None:
            self._home, self._thread = here, threading.get_ident()
            self._opening = here[1].create_task(self._create())
            self._opening.add_done_callback(self._forget_failure)
        return await asyncio.shield(self._opening)  # one for all who ask at once: who is cancelled does not take it from the others

    def _forget_failure(self, opening: asyncio.Task[Any]) -> None:
        if (opening.cancelled() or opening.exception() is not None) and self._opening is opening:
            self._opening = None

    async def _create(self) -> dict[str, _Opened]:
        address = os.environ.get(self._emulator)
        async with asyncio.timeout(_OPEN):  # in a thread: it takes a good part of a second, and may ask the metadata server
            credentials = await asyncio.to_thread(self._load, address)
        return {api.name: _Opened(api, credentials, address, self._endpoint) for api in self._apis}

    def _load(self, address: str | None) -> Any:
        for api in self._apis:
            import_module(api.package)
        return None if address else import_module("google.auth").default(scopes=_SCOPES)[0]

    def forking(self) -> None:
        """The process is about to fork: close what is open."""
        if self._opening is None or self._home is None:
            return
        pid, loop = self._home
        if pid != os.getpid() or not loop.is_running() or self._thread == threading.get_ident():
            return
        with suppress(Exception):
            asyncio.run_coroutine_threadsafe(self.close(), loop).result(_FORK)


class _Opened:
    """One generated client with its channel."""

    def __init__(self, api: Api, credentials: Any, address: str | None, endpoint: str | None) -> None:
        client: Any = getattr(import_module(api.package), f"{api.name}AsyncClient")
        transport: Any = getattr(import_module(f"{api.package}.transports"), f"{api.name}GrpcAsyncIOTransport")

        def channel(host: str, **settings: Any) -> Any:
            made: Any = transport.create_channel(host, **{**settings, "options": _OPTIONS})
            _channels.add(made)
            return made

        self._plain: dict[str, Callable[..., Any]] = {}
        self.sdk: Any
        if address:
            emulator: Any = import_module("grpc.aio").insecure_channel(address, options=[*_OPTIONS, ("grpc.enable_http_proxy", 0)])
            _channels.add(emulator)
            self.sdk = client(transport=transport(channel=emulator))
        else:
            options = {"api_endpoint": endpoint} if endpoint else None
            made = functools.partial(transport, channel=channel)
            self.sdk = client(credentials=credentials, transport=made, client_options=options)

    def plainly(self, method: str, routed_by: str) -> Callable[..., Any]:
        """What the generated method calls in the end, with the same errors; it checks and copies nothing before."""
        if method in self._plain:
            return self._plain[method]
        gapic: Any = import_module("google.api_core.gapic_v1")
        wrapped = gapic.method_async.wrap_method(getattr(self.sdk.transport, method))

        def call(request: Any, **settings: Any) -> Any:
            route = gapic.routing_header.to_grpc_metadata([(routed_by, getattr(request, routed_by))])
            return wrapped(request, metadata=[route], **settings)

        self._plain[method] = call
        return call


def _gathered(call: Callable[..., Any]) -> Callable[..., Any]:
    """A streaming method as one that answers all at once: Google's retries end where a stream begins."""

    async def gathered(request: Any, *, retry: Any, timeout: float) -> list[Any]:
        async def once() -> list[Any]:
            return [answer async for answer in await call(request, retry=None, timeout=timeout)]

        answers: list[Any] = await retry(once)()
        return answers

    return gathered


def _passes(error: Exception) -> bool:
    """Whether the same request may be answered at another try."""
    return status_of(error) in _HELD and not per_id(error)  # of those with a reason for each id some were carried out


def _here() -> tuple[int, asyncio.AbstractEventLoop]:
    return os.getpid(), asyncio.get_running_loop()


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_channels: weakref.WeakSet[Any] = weakref.WeakSet()
_abandoned: list[object] = []
"""Clients of a loop that is gone: closing them would need it."""
_poisoned = False


def _before_fork() -> None:
    if _channels:
        for client in list(_clients):
            client.forking()
        gc.collect()  # gRPC ends its threads with the last channel object


def _in_child() -> None:
    global _poisoned
    _poisoned = len(_channels) > 0


os.register_at_fork(before=_before_fork, after_in_child=_in_child)
