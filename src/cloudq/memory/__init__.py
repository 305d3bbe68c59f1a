"""The three seams in one process, for tests, for development and for programs that need no more.

``memory://`` is a fresh broker, store or timer each time it is opened; ``memory://name`` is one of that name in the process, so that
several apps share it. A broker takes the options ``lease`` (a duration), ``batch`` and ``receive`` (messages in one request), and
``lie`` (a seed: the broker is a LyingBroker).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from cloudq.adapters import Adapter, AdapterContext, Location
from cloudq.broker import Broker
from cloudq.errors import ConfigError
from cloudq.memory.broker import DEFAULT, MemoryBroker
from cloudq.memory.lies import Lies, LyingBroker
from cloudq.memory.store import MemoryStore
from cloudq.memory.timer import MemoryTimer

__all__ = ["Lies", "LyingBroker", "MemoryBroker", "MemoryStore", "MemoryTimer", "adapter"]

_T = TypeVar("_T")

_lock = threading.Lock()
_brokers: dict[str, tuple[Location, Broker]] = {}
_stores: dict[str, tuple[Location, MemoryStore]] = {}


def _shared(location: Location, known: dict[str, tuple[Location, _T]], build: Callable[[], _T]) -> _T:
    """Build, or find what was built under the URL's name; ConfigError where it was built with other options."""
    if location.path:
        raise ConfigError(f"memory:// takes a name and no path: memory://{location.host or location.path}")
    if not location.host:
        return build()
    with _lock:
        if location.host not in known:
            known[location.host] = location, build()
        first, built = known[location.host]
    if first.options != location.options:
        raise ConfigError(f"memory://{location.host} is open in this process with other options")
    return built


def _open_broker(location: Location, context: AdapterContext) -> Broker:
    location.allow("lease", "batch", "receive", "lie")

    def build() -> Broker:
        limits = DEFAULT._replace(
            lease=location.seconds("lease", DEFAULT.lease),
            batch=location.number("batch", DEFAULT.batch),
            receive=location.number("receive", DEFAULT.receive),
        )
        if min(limits.lease, limits.batch, limits.receive) <= 0:
            raise ConfigError("lease, batch and receive of a memory:// URL are above 0")
        broker = MemoryBroker(clock=context.clock, limits=limits)
        return LyingBroker(broker, seed=location.number("lie", 0)) if "lie" in location.options else broker

    return _shared(location, _brokers, build)


def _open_store(location: Location, context: AdapterContext) -> MemoryStore:
    location.allow()
    return _shared(location, _stores, lambda: MemoryStore(clock=context.clock))


def _open_timer(location: Location, context: AdapterContext) -> MemoryTimer:
    location.allow()
    if location.host or location.path:
        raise ConfigError("a memory:// timer belongs to its app's broker and has no name")
    if context.broker is None:
        raise ConfigError("a memory:// timer sends through the app's broker; it has none in this process")
    return MemoryTimer(context.broker, context.clock)


adapter = Adapter(broker=_open_broker, store=_open_store, timer=_open_timer)
