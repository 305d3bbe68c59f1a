"""Large bodies in Google Cloud Storage, of messages and of results: checked when read, deleted by the bucket's lifecycle alone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final
from urllib.parse import quote, urlsplit

from cloudq.errors import CloudQError, ConfigError, StoreError, StoreUnavailable
from cloudq_gcp.errors import Service, mapped_to

__all__ = ["Bodies"]

# Two requests of the JSON API are all that is wanted, so Google's own authorized HTTP session makes them, in threads: it comes with
# google-auth, which every Google library needs, and google-cloud-storage would add an import of its own for nothing.
_ENDPOINT: Final = "https://storage.googleapis.com"
_SCOPES: Final = ("https://www.googleapis.com/auth/devstorage.read_write",)

_ANSWER = 30.0
"""Seconds that a request with its repetitions may take."""
_TIMEOUT = (3.0, 8.0)
"""Seconds for one connect, and without an answer after which it is tried again."""
_ATTEMPTS = 3

_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP answers that a later try may not have (Google Cloud Storage, "Retry strategy")."""


class Bodies:
    """Bytes under ``gs://bucket/prefix``, by application default credentials; STORAGE_EMULATOR_HOST is honoured. It deletes nothing.

    Needs roles/storage.objectUser on the bucket, or storage.objects.get and .create and, because writing the same again replaces
    it, .delete.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "gs" or not parts.netloc or parts.query or parts.fragment:
            raise ConfigError(f"{url!r} names no place in Google Cloud Storage; write gs://bucket, or gs://bucket/prefix")
        self._bucket = parts.netloc
        path = parts.path.strip("/")
        self._prefix = f"{path}/" if path else ""
        self._sessions: _Sessions | None = None

    @property
    def place(self) -> str:
        return f"gs://{self._bucket}/{self._prefix}"

    async def write(self, key: str, body: bytes) -> None:
        """Keep ``body`` under the prefix and ``key``."""
        name = self._prefix + key
        path = f"/upload/storage/v1/b/{quote(self._bucket, safe='')}/o?uploadType=media&name={quote(name, safe='')}"
        await self._call("POST", name, path, body=body, headers={"Content-Type": "application/octet-stream"})

    async def read(self, key: str, *, most: int) -> bytes:
        """What is under the prefix and ``key``, up to one byte more than ``most``."""
        return await self._get(self._prefix + key, {"Range": f"bytes=0-{most}"})

    async def put(self, name: str, body: bytes) -> tuple[str, str]:
        """Write ``body`` under the prefix and a name that nobody else uses; returns the object's name and its SHA-256 in hex."""
        await self.write(name, body)
        return self._prefix + name, hashlib.sha256(body).hexdigest()

    async def get(self, key: str, sha256: str) -> bytes:
        """Read what ``put`` wrote; raises StoreError where it is gone, or is not what was written."""
        body = await self._get(key, {})
        if hashlib.sha256(body).hexdigest() != sha256:
            raise StoreError(f"gs://{self._bucket}/{key} is not what was written there: its SHA-256 differs")
        return body

    async def lifecycle(self) -> Sequence[Mapping[str, Any]] | None:
        """The bucket's lifecycle rules; ``None`` where there is no such bucket. Needs storage.buckets.get, and is for the doctor."""
        tried, path = f"reading about gs://{self._bucket}", f"/storage/v1/b/{quote(self._bucket, safe='')}?fields=lifecycle"
        with mapped_to(_GCS, "GET", tried):
            async with asyncio.timeout(_ANSWER):
                status, answer = await asyncio.to_thread(self._open().request, "GET", path, {}, None)
        if status == 404:
            return None
        if status == 403:
            raise StoreError(f"{tried}: access denied; allow storage.buckets.get")
        found: dict[str, Any] = json.loads(_body(tried, status, answer))
        rules: Sequence[Mapping[str, Any]] = found.get("lifecycle", {}).get("rule", ())
        return rules

    async def close(self) -> None:
        """Close the connections. What is under way ends by itself, within its time."""
        sessions, self._sessions = self._sessions, None
        if sessions is not None and sessions.pid == os.getpid():
            sessions.close()

    async def _get(self, name: str, headers: Mapping[str, str]) -> bytes:
        path = f"/download/storage/v1/b/{quote(self._bucket, safe='')}/o/{quote(name, safe='')}?alt=media"
        return await self._call("GET", name, path, headers=headers)

    async def _call(self, method: str, name: str, path: str, *, headers: Mapping[str, str], body: bytes | None = None) -> bytes:
        tried = f"{'writing' if body is not None else 'reading'} gs://{self._bucket}/{name}"
        with mapped_to(_GCS, method, tried):
            async with asyncio.timeout(_ANSWER):
                return await self._repeated(tried, method, path, headers, body)

    async def _repeated(self, tried: str, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
        """Both requests may be repeated: an object is written whole or not at all, and the same again is the same."""
        attempt = 0
        while True:
            attempt += 1
            try:
                status, answer = await asyncio.to_thread(self._open().request, method, path, headers, body)
            except ConnectionError:
                if attempt == _ATTEMPTS:
                    raise
            else:
                if status not in _PASSING or attempt == _ATTEMPTS:
                    return _body(tried, status, answer)
            await asyncio.sleep(random.uniform(0.1, 0.3 * 2**attempt))

    def _open(self) -> _Sessions:
        if self._sessions is None or self._sessions.pid != os.getpid():
            if self._sessions is not None:
                _abandoned.append(self._sessions)
            self._sessions = _Sessions()
        return self._sessions


class _Sessions:
    """HTTP sessions of this process, each used by one thread at a time: ``requests`` promises no more."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._resting: list[Any] = []
        self._closed = False
        self._credentials: Any = None

    def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> tuple[int, bytes]:
        """Make one request and wait for its answer; ConnectionError where there is none."""
        emulator = os.environ.get("STORAGE_EMULATOR_HOST")
        session = self._take(anonymous=bool(emulator))
        try:
            answer = session.request(method, _endpoint(emulator) + path, data=body, headers=headers, timeout=_TIMEOUT)
            return int(answer.status_code), bytes(answer.content)
        except OSError as error:  # what requests raises is one
            raise ConnectionError(f"Google Cloud Storage could not be reached ({error})") from error
        finally:
            self._give(session)

    def close(self) -> None:
        """Close what rests; what is in use is closed at its end."""
        with self._lock:
            self._closed = True
            while self._resting:
                self._resting.pop().close()

    def _take(self, *, anonymous: bool) -> Any:
        with self._lock:
            if self._resting:
                return self._resting.pop()
            if anonymous:
                session: Any = import_module("requests").Session()
                session.trust_env = False  # no proxy lies before an emulator
                return session
            if self._credentials is None:
                self._credentials = import_module("google.auth").default(scopes=_SCOPES)[0]
            return import_module("google.auth.transport.requests").AuthorizedSession(self._credentials)

    def _give(self, session: Any) -> None:
        with self._lock:
            if self._closed:
                session.close()
            else:
                self._resting.append(session)


_abandoned: list[_Sessions] = []
"""Those of a parent process. Kept: closing them is its own affair."""


def _endpoint(emulator: str | None) -> str:
    if not emulator:
        return _ENDPOINT
    return emulator.rstrip("/") if "://" in emulator else f"http://{emulator}"


def _body(tried: str, status: int, answer: bytes) -> bytes:
    if status < 300:
        return answer
    if status == 416:  # of an empty object there is no first byte
        return b""
    raise _refused(tried, status, answer.decode(errors="replace")[:300].strip())


def _refused(tried: str, status: int, detail: str) -> CloudQError:
    if status in _PASSING:
        return StoreUnavailable(f"{tried}: Google could not serve it now ({status}: {detail}); try again later")
    if status == 404 and (tried.startswith("writing") or "bucket does not exist" in detail):
        return StoreError(f"{tried}: there is no such bucket; create it ('cloudq deploy' writes the template), or correct its name")
    if status == 404:
        return StoreError(f"{tried}: it is gone; the bucket's lifecycle must keep objects for longer than what refers to them lives")
    if status == 401:
        return StoreError(f"{tried}: Google does not accept the credentials ({detail})")
    if status == 403:
        return StoreError(f"{tried}: access denied, or it is gone; allow roles/storage.objectUser on the bucket ({detail})")
    return StoreError(f"{tried}: Google refused it ({status}: {detail})")


_GCS: Final = Service(
    name="Google Cloud Storage",
    emulator="STORAGE_EMULATOR_HOST",
    error=StoreError,
    unavailable=StoreUnavailable,
    refused=lambda _: None,  # HTTP has no gRPC status
)
