"""Turns a URL into a broker, store or timer: adapters join by entry point, and the URL's scheme picks one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from cloudq.durations import seconds
from cloudq.errors import AdapterMissing, ConfigError

if TYPE_CHECKING:
    from cloudq.broker import Broker
    from cloudq.clock import Clock
    from cloudq.keys import KeyService
    from cloudq.store import Store
    from cloudq.timer import Timer

GROUP = "cloudq.adapters"
"""The entry point group; an entry's name is a URL scheme, its object an Adapter."""

_SHIPPED = {
    "memory": "cloudq.memory:adapter",
    "sqlite": "cloudq.sqlite:adapter",
    "sqs": "cloudq_aws.sqs:adapter",
    "dynamodb": "cloudq_aws.dynamodb:adapter",
    "eventbridge": "cloudq_aws.scheduler:adapter",
    "kms": "cloudq_aws.kms:adapter",
    "pubsub": "cloudq_gcp.pubsub:adapter",
    "firestore": "cloudq_gcp.firestore:adapter",
    "cloudtasks": "cloudq_gcp.timer:adapter",
}
"""The entry points of this distribution: known here, because a cold start should not read every installed package's metadata."""

_EXTRAS = {"cloudq_aws": "aws", "cloudq_gcp": "gcp"}

T = TypeVar("T")


class Location(NamedTuple):
    """A parsed adapter URL: ``scheme://host/path?option=value``."""

    scheme: str
    host: str
    path: str
    """Without its first slash: ``sqlite:///queue.db`` has ``queue.db``, ``sqlite:////var/queue.db`` has ``/var/queue.db``."""
    options: Mapping[str, str]

    @classmethod
    def parse(cls, url: str) -> Location:
        """Parse ``url``; raises ConfigError where it has no scheme or an option twice."""
        parts = urlsplit(url)
        if not parts.scheme or "://" not in url:
            raise ConfigError(f"{url!r} is no adapter URL; write one like memory://, sqlite:///queue.db or sqs://eu-west-1/")
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        options = dict(pairs)
        if len(options) != len(pairs):
            raise ConfigError(f"an option stands twice in the {parts.scheme}:// URL")
        return cls(scheme=parts.scheme, host=parts.netloc, path=unquote(parts.path.removeprefix("/")), options=options)

    def allow(self, *names: str) -> None:
        """Raise ConfigError for an option whose name is not among ``names``."""
        unknown = sorted(self.options.keys() - set(names))
        if unknown:
            known = f"it takes {', '.join(names)}" if names else "it takes none"
            raise ConfigError(f"{self.scheme}:// has no option {', '.join(unknown)}; {known}")

    def seconds(self, name: str, default: float) -> float:
        """The option as a duration in seconds, ``default`` where it is absent."""
        return self._convert(name, default, lambda text: float(text) if text.replace(".", "", 1).isdigit() else seconds(text))

    def number(self, name: str, default: int) -> int:
        """The option as a whole number, ``default`` where it is absent."""
        return self._convert(name, default, int)

    def _convert(self, name: str, default: T, convert: Callable[[str], T]) -> T:
        text = self.options.get(name)
        if text is None:
            return default
        try:
            return convert(text)
        except ValueError as error:
            raise ConfigError(f"option {name} of the {self.scheme}:// URL: {error}") from error


class AdapterContext(NamedTuple):
    """What an adapter is told beside the URL."""

    app: str
    """The app's name: timers keep an app's schedules apart by it."""
    clock: Clock
    broker: Broker | None = None
    """For a timer: the app's broker, where it is open in this process."""


class Adapter(NamedTuple):
    """What a provider offers under one scheme. The functions only build; nothing connects until the first call."""

    broker: Callable[[Location, AdapterContext], Broker] | None = None
    store: Callable[[Location, AdapterContext], Store] | None = None
    timer: Callable[[Location, AdapterContext], Timer] | None = None
    keys: Callable[[Location], KeyService] | None = None
    """For encryption: the master key that the Location names."""
    serve: Callable[[Broker, Location], AbstractContextManager[str]] | None = None
    """Serve a broker of this process at the Location's host and port, in the provider's own protocol; the context is the endpoint."""


def find(scheme: str) -> Adapter:
    """Load the adapter of a scheme; raises AdapterMissing with the pip command where none is installed."""
    where = _SHIPPED.get(scheme) or _joined().get(scheme)
    if where is None:
        known = ", ".join(sorted({*_SHIPPED, *_joined()}))
        raise AdapterMissing(f"no adapter serves {scheme}:// (there are {known}); pip install the distribution that provides it")
    module, _, attribute = where.partition(":")
    try:
        loaded = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(module.partition(".")[0])
        install = f"pip install 'cloudq-tasks[{extra}]'" if extra else "pip install what provides it"
        raise AdapterMissing(f"{scheme}:// needs the package {error.name!r}, which is not installed: {install}") from error
    if not isinstance(loaded, Adapter):
        raise ConfigError(f"the entry point {where} for {scheme}:// is no cloudq.adapters.Adapter")
    return loaded


def _joined() -> dict[str, str]:
    """The entry points of all that is installed, by scheme."""
    from importlib.metadata import entry_points  # with what it imports, 10 ms

    return {entry.name: entry.value for entry in entry_points(group=GROUP)}


def open_broker(url: str, context: AdapterContext) -> Broker:
    """Build the broker of a URL."""
    return _open(url, context, "broker", lambda adapter: adapter.broker)


def open_store(url: str, context: AdapterContext) -> Store:
    """Build the store of a URL."""
    return _open(url, context, "store", lambda adapter: adapter.store)


def open_timer(url: str, context: AdapterContext) -> Timer:
    """Build the timer of a URL."""
    return _open(url, context, "timer", lambda adapter: adapter.timer)


def open_keys(url: str) -> KeyService:
    """Build the key service of a URL."""
    location = Location.parse(url)
    build = find(location.scheme).keys
    if build is None:
        raise ConfigError(f"{location.scheme}:// is no key service; use kms://region/alias/name, or a key itself")
    return build(location)


def serve(url: str, broker: Broker) -> AbstractContextManager[str]:
    """Serve ``broker`` as the provider of a URL would (``sqs://127.0.0.1:9324/?lie=7``), so that its client in other processes reaches it.

    The context's value is the endpoint that clients are given. Entering it raises ConfigError where nobody can listen there.
    """
    location = Location.parse(url)
    build = find(location.scheme).serve
    if build is None:
        raise ConfigError(f"{location.scheme}:// is nothing that cloudq can serve; it serves sqs://")
    return build(broker, location)


def _open(
    url: str,
    context: AdapterContext,
    seam: str,
    pick: Callable[[Adapter], Callable[[Location, AdapterContext], T] | None],
) -> T:
    location = Location.parse(url)
    build = pick(find(location.scheme))
    if build is None:
        raise ConfigError(f"{location.scheme}:// is no {seam}; use another URL for the {seam}")
    return build(location, context)
