"""A proxy in front of a gRPC server that counts requests by method, and injects faults."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc


@dataclass(frozen=True, slots=True)
class Call:
    """A request as the proxy saw it. ``number`` counts the requests of its method from 1; ``body`` is its bytes."""

    method: str
    number: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Refuse:
    """End with a status. The server does not see the request, or (``forward=True``) has carried it out."""

    code: str
    detail: str = "as told"
    forward: bool = False
    answers: int = 0
    """How many of the server's answers come through first."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Never answer; the server does not see the request."""


Decide: TypeAlias = Callable[[Call], Refuse | Hang | None]


def first(count: int, fault: Refuse | Hang, method: str) -> Decide:
    """The fault for the first ``count`` requests of a method."""
    return lambda call: fault if call.method == method and call.number <= count else None


@dataclass
class GrpcProxy:
    """``requests`` counts by method (``Commit``)."""

    address: str = ""
    requests: Counter[str] = field(default_factory=lambda: Counter())
    decide: Decide = lambda _: None

    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self) -> None:
        """Count from the start."""
        with self._lock:
            self.requests.clear()

    def serve(self, upstream: Any, path: str, body: bytes, context: Any) -> Iterator[bytes]:
        method = path.rpartition("/")[2]
        with self._lock:
            self.requests[method] += 1
            call = Call(method, self.requests[method], body)
        fault = self.decide(call)
        if isinstance(fault, Hang):
            gone = threading.Event()
            context.add_callback(gone.set)
            gone.wait(30)
            return
        try:
            if fault is None:
                yield from upstream.unary_stream(path)(body, timeout=30)
            elif fault.forward or fault.answers:
                yield from list(upstream.unary_stream(path)(body, timeout=30))[: fault.answers]
        except grpc.RpcError as error:
            status: Any = error
            context.abort(status.code(), status.details())
        if fault is not None:
            context.abort(getattr(grpc.StatusCode, fault.code), fault.detail)


class _Handlers(grpc.GenericRpcHandler):
    """Every method, whatever it is called, in bytes."""

    def __init__(self, proxy: GrpcProxy, upstream: Any) -> None:
        self._proxy = proxy
        self._upstream = upstream

    def service(self, handler_call_details: Any) -> Any:
        path = handler_call_details.method

        def serve(body: bytes, context: Any) -> Iterator[bytes]:
            return self._proxy.serve(self._upstream, path, body, context)

        return grpc.unary_stream_rpc_method_handler(serve)


@contextmanager
def grpc_proxy(upstream: str) -> Iterator[GrpcProxy]:
    """A proxy before the server at ``host:port``."""
    proxy = GrpcProxy()
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with ThreadPoolExecutor(32) as pool, grpc.insecure_channel(upstream, options=options) as channel:
        server = grpc.server(pool, handlers=[_Handlers(proxy, channel)], options=options)
        proxy.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield proxy
        finally:
            server.stop(None).wait(5)
