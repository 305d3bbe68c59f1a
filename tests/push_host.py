"""A push service in a process of its own, an issuer of tokens, and the way from the Pub/Sub emulator there, which adds a token."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.gcp_servers import PubSubServer
from tests.servers import free_port, missing

_ROOT = Path(__file__).parents[1]
AUDIENCE = "https://shop-abc.a.run.app/"
ACCOUNT = "push@shop.iam.gserviceaccount.com"


def _part(value: bytes | Mapping[str, Any]) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Key:
    """An RSA key with its certificate, and tokens signed with it."""

    def __init__(self, id: str) -> None:
        self.id = id
        self._key = rsa.generate_private_key(65537, 2048)

    @cached_property
    def certificate(self) -> str:
        """In PEM."""
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
        now = datetime.now(UTC)
        made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(self._key.public_key()).serial_number(1)
        made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        return made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def token(self, *, header: Mapping[str, Any] | None = None, **claims: Any) -> str:
        """A token as Pub/Sub's; claims of ``None`` are left out."""
        now = int(time.time())
        usual = {
            "iss": "https://accounts.google.com", "aud": AUDIENCE, "azp": "1", "sub": "1", "email": ACCOUNT, "email_verified": True,
            "iat": now - 5, "exp": now + 3600,
        }  # fmt: skip
        payload = {name: value for name, value in {**usual, **claims}.items() if value is not None}
        signed = f"{_part({'alg': 'RS256', 'kid': self.id, 'typ': 'JWT', **(header or {})})}.{_part(payload)}"
        return f"{signed}.{_part(self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def _serving(handler: type[_Quiet]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@dataclass
class Issuer:
    """What Google's certificate server says; ``keys`` may be changed."""

    keys: list[Key]
    url: str = ""
    fetches: int = 0
    status: int = 200
    cache_control: str = "public, max-age=19000, must-revalidate, no-transform"

    def token(self, **claims: Any) -> str:
        """A good token, but for ``claims``."""
        return self.keys[0].token(**claims)


@contextmanager
def issuer(*keys: Key) -> Iterator[Issuer]:
    """Serve certificates on this machine."""
    it = Issuer(list(keys) or [Key("first")])

    class Handler(_Quiet):
        def do_GET(self) -> None:
            it.fetches += 1
            body = json.dumps({key.id: key.certificate for key in it.keys}).encode()
            self.answer(it.status, body, {"Cache-Control": it.cache_control, "Content-Type": "application/json"})

    with _serving(Handler) as url:
        it.url = f"{url}/oauth2/v1/certs"
        yield it


@dataclass
class Way:
    """From the emulator to the service. ``token()`` makes the token that Pub/Sub would send; what was answered is in ``answers``."""

    token: Callable[[], str | None]
    url: str = ""
    upstream: str = ""
    answers: list[int] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def way(token: Callable[[], str | None]) -> Iterator[Way]:
    """Forward pushes to ``upstream``; while there is none, they are refused."""
    it = Way(token)

    class Handler(_Quiet):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            it.bodies.append(json.loads(body))
            made = it.token()
            status = post(it.upstream, body, {} if made is None else {"Authorization": f"Bearer {made}"})[0] if it.upstream else 503
            it.answers.append(status)
            with suppress(OSError):
                self.answer(status, b"")

    with _serving(Handler) as url:
        it.url = f"{url}/"
        yield it


def post(url: str, body: bytes, headers: Mapping[str, str] | None = None, *, method: str = "POST") -> tuple[int, str]:
    """Status and text of an answer; status 0 where there was none."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **(headers or {})}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def push(data: bytes | str, *, subscription: str = "projects/p/subscriptions/orders", **fields: Any) -> bytes:
    """The body of a wrapped push, as Google documents it; ``deliveryAttempt`` beside the message, other fields in it."""
    raw = data.encode() if isinstance(data, str) else data
    outer = {"deliveryAttempt": fields.pop("deliveryAttempt")} if "deliveryAttempt" in fields else {}
    message = {
        "data": base64.b64encode(raw).decode(), "messageId": "136969346945", "message_id": "136969346945",
        "publishTime": "2026-11-21T09:00:00.533Z", "publish_time": "2026-11-21T09:00:00.533Z", **fields,
    }  # fmt: skip
    return json.dumps({"message": message, "subscription": subscription, **outer}).encode()


@dataclass
class Service:
    """A service under way."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def wrote(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-6000:]


@contextmanager
def _process(command: list[str], package: str, port: int, env: Mapping[str, str], log: Path) -> Iterator[Service]:
    if find_spec(package.replace("-", "_")) is None:
        missing(package, f"pip install {package}")
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", *command],
            cwd=_ROOT,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    service = Service(process, f"http://127.0.0.1:{port}/", log)
    try:
        deadline = time.monotonic() + 120
        while post(service.url, b"", method="GET")[0] == 0:
            assert process.poll() is None, f"it did not start:\n{service.wrote()}"
            assert time.monotonic() < deadline, f"it does not answer:\n{service.wrote()}"
            time.sleep(0.05)
        yield service
    finally:
        process.kill()
        process.wait(30)


@contextmanager
def uvicorn(app: str, *options: str, env: Mapping[str, str], log: Path) -> Iterator[Service]:
    """The ASGI app ``module:attribute`` under uvicorn."""
    port = free_port()
    with _process(["-m", "uvicorn", app, f"--port={port}", "--no-access-log", *options], "uvicorn", port, env, log) as service:
        yield service


@contextmanager
def functions_framework(source: Path, target: str, *, env: Mapping[str, str], log: Path) -> Iterator[Service]:
    """A function of Google's that takes CloudEvents, under functions-framework."""
    port = free_port()
    command = ["-m", "functions_framework", f"--source={source}", f"--target={target}", "--signature-type=cloudevent"]
    with _process([*command, "--host=127.0.0.1", f"--port={port}"], "functions-framework", port, env, log) as service:
        yield service


def event(message: Mapping[str, Any], *, topic: str, subscription: str) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the request that Eventarc makes of a message (CloudEvents, HTTP binding, binary mode)."""
    headers = {
        "ce-id": str(message["messageId"]), "ce-specversion": "1.0", "ce-type": "google.cloud.pubsub.topic.v1.messagePublished",
        "ce-source": f"//pubsub.googleapis.com/{topic}", "ce-time": str(message["publishTime"]),
    }  # fmt: skip
    return json.dumps({"message": message, "subscription": subscription}).encode(), headers


@contextmanager
def feeding(server: PubSubServer, queue: str, url: str, *, threads: int = 4) -> Iterator[list[int]]:
    """Bring a queue's messages to a function, as Eventarc does, until the end of the block; yields the statuses answered."""
    ended, statuses = threading.Event(), list[int]()
    subscription = server.subscription(queue)

    def feed() -> None:
        busy: list[Any] = []
        while not ended.wait(0 if busy else 0.05):
            busy = server.pull_now(subscription, 1)
            for each in busy:
                message = {
                    "data": base64.b64encode(each.message.data).decode(), "attributes": dict(each.message.attributes),
                    "messageId": each.message.message_id, "publishTime": each.message.publish_time.isoformat().replace("+00:00", "Z"),
                }  # fmt: skip
                status = post(url, *event(message, topic=server.topic(queue), subscription=f"{server.subscription('eventarc')}-sub-1"))[0]
                statuses.append(status)
                if 200 <= status < 300:
                    server.subscriber.acknowledge(subscription=subscription, ack_ids=[each.ack_id])
                else:
                    server.subscriber.modify_ack_deadline(subscription=subscription, ack_ids=[each.ack_id], ack_deadline_seconds=0)

    feeders = [threading.Thread(target=feed, daemon=True) for _ in range(threads)]
    for feeder in feeders:
        feeder.start()
    try:
        yield statuses
    finally:
        ended.set()
        for feeder in feeders:
            feeder.join(30)
