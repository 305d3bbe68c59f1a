"""Bodies in Google Cloud Storage, on an emulator of it and on a server that fails."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from cloudq.claimcheck import Bodies as Place
from cloudq.claimcheck import ClaimChecks
from cloudq.errors import ConfigError, StoreError, StoreUnavailable
from cloudq_gcp.gcs import Bodies
from tests.gcp_servers import StorageServer
from tests.servers import free_port, unique

T = TypeVar("T")


def with_bodies(url: str, use: Callable[[Bodies], Awaitable[T]]) -> T:
    """Run ``use(bodies)`` on a loop of its own, and close them."""

    async def run() -> T:
        bodies = Bodies(url)
        try:
            return await use(bodies)
        finally:
            await bodies.close()

    return asyncio.run(run())


@pytest.mark.parametrize("url", ["bucket", "s3://bucket", "gs://", "gs:///prefix", "gs://bucket/prefix?a=1", "gs://bucket#part"])
def test_a_url_that_names_no_place_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="gs://bucket"):
        Bodies(url)


def test_what_is_written_is_read_and_the_same_again_replaces_it(storage: StorageServer) -> None:
    bucket = storage.make_bucket()
    body = bytes(range(256)) * 5_000

    async def scenario(bodies: Bodies) -> None:
        assert bodies.place == f"gs://{bucket}/a/b/"
        key = hashlib.sha256(body).hexdigest()
        await bodies.write(key, body)
        await bodies.write(key, body)
        assert await bodies.read(key, most=len(body)) == body
        assert await bodies.read(key, most=99) == body[:100]
        name, digest = await bodies.put("task/x y+%ü", body)
        assert name == "a/b/task/x y+%ü"
        assert await bodies.get(name, digest) == body

    with_bodies(f"gs://{bucket}/a/b/", scenario)
    assert len(storage.objects(bucket)) == 2


def test_many_at_once_are_each_their_own(storage: StorageServer) -> None:
    async def scenario(bodies: Bodies) -> None:
        texts = [f"{number}" * 1000 for number in range(40)]
        await asyncio.gather(*(bodies.write(f"{number}", text.encode()) for number, text in enumerate(texts)))
        found = await asyncio.gather(*(bodies.read(f"{number}", most=9_999) for number in range(40)))
        assert [body.decode() for body in found] == texts

    with_bodies(f"gs://{storage.make_bucket()}", scenario)


def test_claim_checks_can_lie_there(storage: StorageServer) -> None:
    async def scenario(bodies: Bodies) -> None:
        place: Place = bodies
        checks = ClaimChecks(bodies=place)
        claim = json.loads(await checks.leave("x" * 100_000))
        assert await checks.collect(claim) == "x" * 100_000

    with_bodies(f"gs://{storage.make_bucket()}/claims", scenario)


def test_a_body_that_is_gone_and_a_bucket_that_is_missing_are_told_apart(storage: StorageServer) -> None:
    async def gone(bodies: Bodies) -> None:
        with pytest.raises(StoreError, match="lifecycle"):
            await bodies.read("absent", most=9)

    async def missing(bodies: Bodies) -> None:
        with pytest.raises(StoreError, match="no such bucket"):
            await bodies.write("a", b"b")

    with_bodies(f"gs://{storage.make_bucket()}", gone)
    with_bodies(f"gs://{unique('absent')}", missing)


def test_closed_bodies_open_again_and_one_serves_one_loop_after_another(storage: StorageServer) -> None:
    bodies = Bodies(f"gs://{storage.make_bucket()}")

    async def write_and_close() -> None:
        await bodies.write("a", b"a")
        await bodies.close()
        await bodies.close()
        assert await bodies.read("a", most=9) == b"a"
        await bodies.close()

    asyncio.run(write_and_close())
    asyncio.run(write_and_close())


def test_a_forked_child_uses_connections_of_its_own(storage: StorageServer) -> None:
    command = [sys.executable, "-W", "error", "-c", _FORK, f"gs://{storage.make_bucket()}"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "child True\n", "")


_FORK = """
import asyncio, os, sys
from cloudq_gcp.gcs import Bodies

bodies = Bodies(sys.argv[1])
asyncio.run(bodies.write("a", b"parent"))
pid = os.fork()
if pid == 0:
    found = asyncio.run(bodies.read("a", most=9))
    asyncio.run(bodies.close())
    os._exit(0 if found == b"parent" else 1)
print("child", os.waitpid(pid, 0)[1] == 0)
assert asyncio.run(bodies.read("a", most=9)) == b"parent"
asyncio.run(bodies.close())
"""


# Faults


class Script:
    """What a server answers, request by request: a status, or ``None`` for a connection that is cut. The last one goes on for ever."""

    def __init__(self) -> None:
        self.answers: list[int | None] = [200]
        self.asked: list[str] = []
        self.authorized: list[str | None] = []
        self.address = ""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """A server that answers as told."""
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            script.asked.append(f"{self.command} {self.path}")
            script.authorized.append(self.headers.get("Authorization"))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status = script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
            if status is None:
                self.close_connection = True
                return
            body = json.dumps({"access_token": "t", "expires_in": 3600}).encode() if self.path == "/token" else b"as told"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    script.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", script.address)
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


@pytest.mark.parametrize("fault", [408, 429, 500, 503, None])
def test_a_passing_fault_is_tried_again(script: Script, fault: int | None) -> None:
    script.answers = [fault, 200]
    with_bodies("gs://bucket", lambda bodies: bodies.write("a", b"b"))
    assert script.asked == ["POST /upload/storage/v1/b/bucket/o?uploadType=media&name=a"] * 2


@pytest.mark.parametrize("fault", [429, 503, None])
def test_a_fault_that_stays_is_unavailable_after_three_tries(script: Script, fault: int | None) -> None:
    script.answers = [fault]
    with pytest.raises(StoreUnavailable, match="gs://bucket/a"):
        with_bodies("gs://bucket", lambda bodies: bodies.read("a", most=9))
    assert len(script.asked) == 3


@pytest.mark.parametrize(
    ("status", "text"), [(400, "as told"), (401, "credentials"), (403, "roles/storage.objectUser"), (404, "lifecycle"), (412, "412")]
)
def test_a_refusal_is_final_and_says_what_to_do(script: Script, status: int, text: str) -> None:
    script.answers = [status]
    with pytest.raises(StoreError, match=f"gs://bucket/a.*{text}") as caught:
        with_bodies("gs://bucket", lambda bodies: bodies.read("a", most=9))
    assert not isinstance(caught.value, StoreUnavailable)
    assert len(script.asked) == 1


def test_an_object_without_a_first_byte_is_empty(script: Script) -> None:
    script.answers = [416]
    assert with_bodies("gs://bucket", lambda bodies: bodies.read("a", most=9)) == b""


def test_requests_carry_a_token_of_the_default_credentials_that_is_fetched_once(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    account = {
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "1",
        "private_key": pem.decode(),
        "client_email": "a@p.iam.gserviceaccount.com",
        "token_uri": f"{script.address}/token",
    }
    (tmp_path / "key.json").write_text(json.dumps(account))
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    monkeypatch.setattr("cloudq_gcp.gcs._ENDPOINT", script.address)

    async def scenario(bodies: Bodies) -> None:
        await bodies.write("a", b"b")
        assert await bodies.read("a", most=9) == b"as told"

    with_bodies("gs://bucket", scenario)
    paths = ["/token", "/upload/storage/v1/b/bucket/o?uploadType=media&name=a", "/download/storage/v1/b/bucket/o/a?alt=media"]
    assert [asked.partition(" ")[2] for asked in script.asked] == paths
    assert script.authorized == [None, "Bearer t", "Bearer t"]


def test_nobody_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"127.0.0.1:{free_port()}")
    with pytest.raises(StoreUnavailable, match="could not be reached"):
        with_bodies("gs://bucket", lambda bodies: bodies.read("a", most=9))


def test_missing_credentials_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/key.json")
    with pytest.raises(ConfigError, match="credentials"):
        with_bodies("gs://bucket", lambda bodies: bodies.read("a", most=9))
