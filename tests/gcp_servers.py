"""Emulators of Pub/Sub, Firestore and Cloud Storage as session fixtures; the processes of one pytest-xdist run share them."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import quote

import pytest

from tests.servers import free_port, missing, unique

_FOREIGN = (
    "CLOUDSDK_CONFIG",
    "CLOUDSDK_CORE_PROJECT",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_CLOUD_PROJECT",
    "GCLOUD_PROJECT",
    "grpc_proxy",
    "http_proxy",
    "https_proxy",
)
"""What would lead Google's libraries to the settings of the person who runs the tests, or past the emulator."""

PROJECT = "cloudq-test"

_JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""A server for tests starts often, shares two cores, and lives for minutes."""


@dataclass(frozen=True)
class Emulator:
    """A running emulator of Google's. ``address`` is ``host:port``."""

    variable: str
    address: str

    @property
    def env(self) -> dict[str, str]:
        """The environment that leads Google's libraries to it."""
        return {self.variable: self.address, "GOOGLE_CLOUD_PROJECT": PROJECT}


class PubSubServer(Emulator):
    """The Pub/Sub emulator, with what tests do beside cloudq: making topics and subscriptions, and looking into them."""

    @cached_property
    def publisher(self) -> Any:
        """A plain client."""
        return self._client("PublisherGrpcTransport", "PublisherClient")

    @cached_property
    def subscriber(self) -> Any:
        """A plain client."""
        return self._client("SubscriberGrpcTransport", "SubscriberClient")

    def _client(self, transport: str, client: str) -> Any:
        import grpc
        from google.pubsub_v1.services import publisher, subscriber

        service: Any = publisher if client.startswith("Publisher") else subscriber
        channel = grpc.insecure_channel(self.address, options=[("grpc.enable_http_proxy", 0)])
        return getattr(service, client)(transport=getattr(service.transports, transport)(channel=channel))

    def make_queue(
        self,
        name: str,
        *,
        lease: int = 10,
        ordered: bool = False,
        exactly_once: bool = False,
        dead_letter: str | None = None,
        max_receives: int = 100,
        push_to: str | None = None,
    ) -> str:
        """Create a topic and a subscription of one name, and the dead-letter pair that it names; return the name."""
        topic, subscription = self.topic(name), self.subscription(name)
        request: dict[str, Any] = {
            "name": subscription,
            "topic": topic,
            "ack_deadline_seconds": lease,
            "enable_message_ordering": ordered,
            "enable_exactly_once_delivery": exactly_once,
        }
        if push_to is not None:
            request["push_config"] = {"push_endpoint": push_to}
        if dead_letter is not None:
            self.make_queue(dead_letter, lease=lease)
            request["dead_letter_policy"] = {"dead_letter_topic": self.topic(dead_letter), "max_delivery_attempts": max_receives}
        self.publisher.create_topic(request={"name": topic})
        self.subscriber.create_subscription(request=request)
        return name

    def bodies(self, name: str) -> list[str]:
        """What can be received from the queue now, acked."""
        subscription, found = self.subscription(name), list[str]()
        while received := self.pull_now(subscription, 1000):
            found += [each.message.data.decode() for each in received]
            self.subscriber.acknowledge(subscription=subscription, ack_ids=[each.ack_id for each in received])
        return found

    def pull_now(self, subscription: str, most: int) -> list[Any]:
        """What can be received from a subscription now; a pull that waits could be given up with its answer on the way."""
        from google.pubsub_v1 import types

        request = types.PullRequest(subscription=subscription, max_messages=most, return_immediately=True)
        return list(self.subscriber.transport.pull(request, timeout=60).received_messages)

    def topic(self, name: str) -> str:
        """The full name of a topic."""
        return f"projects/{PROJECT}/topics/{name}"

    def subscription(self, name: str) -> str:
        """The full name of a subscription."""
        return f"projects/{PROJECT}/subscriptions/{name}"

    def close(self) -> None:
        """Close the plain clients."""
        for client in ("publisher", "subscriber"):
            if client in self.__dict__:
                self.__dict__.pop(client).transport.close()


class StorageServer(Emulator):
    """An emulator of Google Cloud Storage, with what tests do beside cloudq. ``address`` is a URL: so Google's libraries want it."""

    def make_bucket(self) -> str:
        """Create a bucket; return its name."""
        name = unique("bodies")
        self._ask("POST", f"/storage/v1/b?project={PROJECT}", json.dumps({"name": name}).encode())
        return name

    def set_bucket(self, name: str, *, days: int | None) -> None:
        """Create a bucket of that name anew, which deletes what is in it after ``days``."""
        with suppress(urllib.error.HTTPError):  # there was none
            self._ask("DELETE", f"/storage/v1/b/{name}")
        self._ask("POST", f"/storage/v1/b?project={PROJECT}", json.dumps({"name": name}).encode())
        if days is not None:
            rule = {"action": {"type": "Delete"}, "condition": {"age": days}}
            self._ask("PATCH", f"/storage/v1/b/{name}", json.dumps({"lifecycle": {"rule": [rule]}}).encode())

    def objects(self, bucket: str) -> list[str]:
        """The names of what is in a bucket."""
        return [found["name"] for found in json.loads(self._ask("GET", f"/storage/v1/b/{bucket}/o")).get("items", ())]

    def read(self, bucket: str, name: str) -> bytes:
        """What an object holds."""
        return self._ask("GET", f"/download/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media")

    def write(self, bucket: str, name: str, body: bytes) -> None:
        """Put something else there."""
        self._ask("POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name, safe='')}", body)

    def delete(self, bucket: str, name: str) -> None:
        """Take an object away."""
        self._ask("DELETE", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}")

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        kind = "application/octet-stream" if path.startswith("/upload/") else "application/json"  # a JSON upload it takes for a request
        request = urllib.request.Request(self.address + path, body, {"Content-Type": kind}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: bytes = answer.read()
            return found


def _sdk() -> Path:
    gcloud = which("gcloud")
    roots = [Path(gcloud).resolve().parents[1]] if gcloud else []
    return next((root for root in [*roots, Path("/usr/lib/google-cloud-sdk")] if (root / "platform").is_dir()), Path("/nonexistent"))


def _command(component: str, jar: str, *main: str) -> list[str]:
    """How an emulator is started; without gcloud's wrapper, which leaves its Java behind when it is killed."""
    package = f"google-cloud-cli-{component.removeprefix('cloud-')}"
    jars = sorted((_sdk() / "platform" / component).glob(jar))
    if not jars or which("java") is None:
        missing(f"the {component}", f"install Java, and {package} from Google's Debian repository")
    return ["java", *_JVM, *(["-cp", str(jars[-1]), *main] if main else ["-jar", str(jars[-1])])]


@contextmanager
def shared(name: str, command: Sequence[str], tmp_path_factory: pytest.TempPathFactory, *, health: str = "") -> Iterator[str]:
    """The ``host:port`` of a server that all processes of this run share, from when its path ``health`` answers.

    ``command`` is given ``--host`` and ``--port``.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    ready = folder / "ready"
    with (folder / "users").open("ab") as users:
        with (folder / "starting").open("ab") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            fcntl.flock(users, fcntl.LOCK_SH)
            if not ready.exists():
                port = free_port()
                keep = [sys.executable, str(Path(__file__).with_name("keeper.py")), str(folder), f"http://127.0.0.1:{port}{health}"]
                keep += [*command, "--host=127.0.0.1", f"--port={port}"]
                subprocess.run(keep, stdin=subprocess.DEVNULL, start_new_session=True, check=False)
        if not ready.exists():
            pytest.fail(f"{name} did not start; it wrote:\n{(folder / 'log').read_text(errors='replace')[-2000:]}")
        yield ready.read_text().removeprefix("http://").removesuffix(health)


@pytest.fixture(scope="session")
def pubsub_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PubSubServer]:
    """Google's Pub/Sub emulator."""
    if find_spec("google") is None or find_spec("google.pubsub_v1") is None:
        missing("Google's Pub/Sub client", "pip install google-cloud-pubsub")
    command = _command("pubsub-emulator", "lib/cloud-pubsub-emulator-*-all.jar")
    with shared("pubsub", command, tmp_path_factory) as address:
        server = PubSubServer("PUBSUB_EMULATOR_HOST", address)
        try:
            yield server
        finally:
            server.close()


@pytest.fixture(scope="session")
def firestore_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """Google's Firestore emulator."""
    main = ("com.google.cloud.datastore.emulator.firestore.CloudFirestore", "start")
    command = _command("cloud-firestore-emulator", "cloud-firestore-emulator.jar", *main)
    with shared("firestore", command, tmp_path_factory) as address:
        yield Emulator("FIRESTORE_EMULATOR_HOST", address)


@pytest.fixture(scope="session")
def storage_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageServer]:
    """An emulator of Google Cloud Storage, of which Google has none."""
    if find_spec("gcp_storage_emulator") is None:
        missing("a Cloud Storage emulator", "pip install gcp-storage-emulator")
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory", "--quiet"]
    with shared("storage", command, tmp_path_factory) as address:
        yield StorageServer("STORAGE_EMULATOR_HOST", f"http://{address}")


@pytest.fixture
def storage(storage_emulator: StorageServer, monkeypatch: pytest.MonkeyPatch) -> StorageServer:
    """The Cloud Storage emulator, with this process's environment leading to it."""
    lead(storage_emulator.env, monkeypatch)
    return storage_emulator


@pytest.fixture
def pubsub(pubsub_emulator: PubSubServer, monkeypatch: pytest.MonkeyPatch) -> PubSubServer:
    """The Pub/Sub emulator, with this process's environment leading to it."""
    lead(pubsub_emulator.env, monkeypatch)
    return pubsub_emulator


@pytest.fixture
def firestore(firestore_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """The Firestore emulator, with this process's environment leading to it."""
    lead(firestore_emulator.env, monkeypatch)
    return firestore_emulator


def lead(env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``env`` the Google settings of this process until the test ends; two emulators may be in use at once."""
    for name in _FOREIGN:
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
