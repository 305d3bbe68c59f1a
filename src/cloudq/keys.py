"""Keys by their ids: read from a setting, or had from a key service, whose data keys are kept for a bounded time and number of messages."""

from __future__ import annotations

import asyncio
import base64
import re
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from cloudq.errors import AdapterMissing, ConfigError, DecodeError, KeyWanted

HOW: Final = "make one with: openssl rand -base64 32"

BYTES: Final = 32
"""Bytes of a key: exactly so many to encrypt (AES-256), at least so many to sign (as HMAC-SHA256 has output: RFC 2104, section 3)."""

LIFE: Final = 300.0
"""Seconds for which a data key encrypts; one request to the key service each."""
MESSAGES: Final = 100_000
"""Messages that a data key encrypts at most; random nonces allow 2³² (NIST SP 800-38D, section 8.3)."""
KEPT: Final = 1_000
"""Data keys that are kept to decrypt, the latest used."""
KEPT_LIFE: Final = 3_600.0
"""Seconds for which one is kept; after that the key service is asked again whether it may be used."""
MAX_WRAPPED: Final = 6_144
"""Bytes of a wrapped data key at most (AWS KMS Decrypt: CiphertextBlob)."""

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")
_URL_SAFE: Final = str.maketrans("-_", "+/")


class Cipher(Protocol):
    """AES-GCM under one key; ``decrypt`` raises cryptography's InvalidTag."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes: ...


class KeyService(Protocol):
    """Makes and unwraps data keys under a master key that never leaves it. An adapter offers one under its URL's scheme.

    Safe to call many times at once on one event loop. Raises KeysUnavailable where trying again may help, else KeysError.
    """

    async def generate(self) -> tuple[bytes, bytes]:
        """A fresh key of 32 bytes, and the same wrapped."""
        ...

    async def unwrap(self, wrapped: bytes) -> bytes:
        """The key that this service's own master key has wrapped; KeysError for what any other key has."""
        ...

    async def close(self) -> None:
        """Release connections; a later call reconnects."""
        ...


class EncryptionKey(Protocol):
    """What an id among the encryption keys stands for."""

    def to_encrypt(self) -> tuple[str, Cipher]:
        """The wrapped key as it travels (empty for a key that is not), and its cipher. Raises KeyWanted."""
        ...

    def to_decrypt(self, wrapped: str) -> Cipher:
        """The cipher of what ``to_encrypt`` gave. Raises KeyWanted, and DecodeError for what cannot be a key of this kind."""
        ...

    async def close(self) -> None: ...


class FixedKey:
    """A key that a setting holds."""

    __slots__ = ("_cipher",)

    def __init__(self, secret: bytes) -> None:
        self._cipher = cipher_of(secret)

    def to_encrypt(self) -> tuple[str, Cipher]:
        return "", self._cipher

    def to_decrypt(self, wrapped: str) -> Cipher:
        if wrapped:
            raise DecodeError("its key id stands for a key of this app's own, and it brings a wrapped one")
        return self._cipher

    async def close(self) -> None:
        """Nothing is open."""


@dataclass(slots=True, repr=False)
class _DataKey:
    wrapped: str
    cipher: Cipher
    until: float
    left: int = MESSAGES


class DataKeys:
    """Data keys under one master key of a key service. Thread-safe as far as it goes: a count may be off by what runs at once."""

    def __init__(self, service: KeyService, now: Callable[[], float]) -> None:
        self._service = service
        self._now = now
        self._current: _DataKey | None = None
        self._known: OrderedDict[str, tuple[Cipher, float]] = OrderedDict()
        self._asking: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = {}

    def to_encrypt(self) -> tuple[str, Cipher]:
        key = self._current
        if key is None or key.left <= 0 or key.until <= self._now():
            raise KeyWanted(lambda: self._once("", self._generate))
        key.left -= 1
        return key.wrapped, key.cipher

    def to_decrypt(self, wrapped: str) -> Cipher:
        known = self._known.get(wrapped)
        if known is None or known[1] <= self._now():
            blob = unbase64(wrapped)
            if not blob or len(blob) > MAX_WRAPPED:
                raise DecodeError("it brings no wrapped key, and its key id stands for a key service")
            raise KeyWanted(lambda: self._once(wrapped, lambda: self._unwrap(wrapped, blob)))
        return known[0]

    async def close(self) -> None:
        await self._service.close()

    async def _generate(self) -> None:
        began = self._now()
        secret, wrapped = await self._service.generate()
        self._current = _DataKey(base64url(wrapped), cipher_of(secret), began + LIFE)

    async def _unwrap(self, wrapped: str, blob: bytes) -> None:
        secret = await self._service.unwrap(blob)
        self._known[wrapped] = cipher_of(secret), self._now() + KEPT_LIFE
        while len(self._known) > KEPT:
            self._known.popitem(last=False)

    async def _once(self, what: str, ask: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """One request for all who want the same key at once; who is cancelled does not take it from the others."""
        loop = asyncio.get_running_loop()
        home, task = self._asking.get(what, (None, None))
        if task is None or home is not loop:  # also in a forked child, where the parent's never ends
            task = loop.create_task(ask())
            self._asking[what] = loop, task
            task.add_done_callback(lambda done: self._forget(what, done))
        await asyncio.shield(task)

    def _forget(self, what: str, task: asyncio.Task[None]) -> None:
        if self._asking.get(what, (None, None))[1] is task:
            del self._asking[what]
        if not task.cancelled():
            task.exception()  # whoever waited has it


Opener: TypeAlias = Callable[[str], KeyService]
"""Opens the key service of a URL."""


def signing_keys(text: str, setting: str) -> Mapping[str, bytes]:
    """The keys of ``2026-11:BASE64,2026-05:BASE64`` by id, the first first. Raises ConfigError, which never holds a key."""
    keys = {id: _secret(value, where) for id, value, where in _entries(text, setting)}
    if short := [id for id, key in keys.items() if len(key) < BYTES]:
        raise ConfigError(f"{setting}: the key {short[0]!r} has {len(keys[short[0]])} bytes, and {BYTES} are needed; {HOW}")
    return keys


def encryption_keys(text: str, setting: str, now: Callable[[], float], open_service: Opener) -> Mapping[str, EncryptionKey]:
    """The same for keys to encrypt with; a URL (``2026-11:kms://region/alias/name``) stands for a key service."""
    keys: dict[str, EncryptionKey] = {}
    for id, value, where in _entries(text, setting):
        if "://" in value:
            cipher_of(bytes(BYTES))  # to say at once that the package is missing
            keys[id] = DataKeys(open_service(value), now)
            continue
        secret = _secret(value, where)
        if len(secret) != BYTES:
            raise ConfigError(f"{setting}: the key {id!r} has {len(secret)} bytes, and AES-256 takes {BYTES}; {HOW}")
        keys[id] = FixedKey(secret)
    return keys


def _entries(text: str, setting: str) -> list[tuple[str, str, str]]:
    """Ids, values, and for errors which entry it is: what stands before the colon may be a key whose id was forgotten."""
    found: list[tuple[str, str, str]] = []
    for number, entry in enumerate(text.split(",") if text else (), 1):
        where = f"{setting}, entry {number}"
        id, colon, value = entry.strip().partition(":")
        if not colon or not _ID.fullmatch(id) or value.startswith("//"):
            raise ConfigError(f"{where}: write it as id:key, the id of up to 40 letters, digits, _ and - (2026-11:BASE64); {HOW}")
        if any(id == known for known, _, _ in found):
            raise ConfigError(f"{where}: the id {id!r} stands there twice")
        found.append((id, value, where))
    return found


def _secret(value: str, where: str) -> bytes:
    try:
        return unbase64(value.rstrip("="))
    except DecodeError:
        raise ConfigError(f"{where}: its key is not base64; {HOW}") from None


def cipher_of(secret: bytes) -> Cipher:
    """AES-GCM under ``secret``. The package that does it loads here, once an app encrypts."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ModuleNotFoundError as error:
        raise AdapterMissing(
            f"encryption needs the package {error.name!r}, which is not installed: pip install 'cloudq-tasks[crypto]'"
        ) from error
    return AESGCM(secret)


def base64url(data: bytes) -> str:
    """URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def unbase64(text: str) -> bytes:
    """What ``text``, base64 of either alphabet without padding, stands for; raises DecodeError."""
    try:
        return base64.b64decode(text.translate(_URL_SAFE) + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise DecodeError("it is not base64") from None
