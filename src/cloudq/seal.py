"""Signs and encrypts messages as they leave, and opens them as they come: what is not what a holder of the keys wrote never runs.

Both are written behind the text that they cover, byte for byte, so that any language can write and check them without a canonical form:
``TEXT,"enc":"id.…"`` and then ``,"sig":"id.…"`` (docs/protocol.md).
"""

from __future__ import annotations

import hmac
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from cloudq import adapters
from cloudq.errors import ConfigError, DecodeError, KeyWanted
from cloudq.keys import EncryptionKey, KeyService, base64url, encryption_keys, signing_keys, unbase64
from cloudq.message import parse
from cloudq.values import dumps

logger = logging.getLogger("cloudq.runner")

SIGNING_KEYS: Final = "CLOUDQ_SIGNING_KEYS"
ENCRYPTION_KEYS: Final = "CLOUDQ_ENCRYPTION_KEYS"
ACCEPT_UNSIGNED: Final = "CLOUDQ_ACCEPT_UNSIGNED"

HIDDEN: Final = ("args", "kwargs", "headers", "link", "link_error", "next")
"""The fields that encryption hides: all that a caller fills with data. The rest routes the message, and stays readable."""

_NONCE: Final = 12
_TAG: Final = 16
_MARKS: Final = {"enc": ',"enc":"', "sig": ',"sig":"'}
_AFTER: Final = {"enc": frozenset({"enc", "sig", "dead"}), "sig": frozenset({"sig", "dead"})}
"""What may stand behind the covered text: a dead letter's note, so that whoever has no keys can still say why it is one."""
_WITHHELD: Final = "(encrypted)"


class Sealing:
    """What an app does to its messages before they leave, and what it asks of those that come. ``None`` in its place: nothing."""

    def __init__(
        self, signing: Mapping[str, bytes], encryption: Mapping[str, EncryptionKey] | None = None, *, accept_unsigned: bool = False
    ) -> None:
        self._signing = dict(signing)
        self._encryption = dict(encryption or {})
        self._lenient = accept_unsigned

    def __repr__(self) -> str:  # ids, never keys
        return f"<Sealing signing={list(self._signing)} encryption={list(self._encryption)}>"

    # ------------------------------------------------------------------ out

    def seal(self, body: str) -> str:
        """The text of a message, a compact ASCII object, as it travels. Raises KeyWanted where its key must be fetched first."""
        if self._encryption:
            body = self._encrypted(body)
        if self._signing:
            text = body[:-1]
            id, secret = next(iter(self._signing.items()))
            body = f'{text}{_MARKS["sig"]}{_signature(id, secret, text)}"}}'
        return body

    def most(self, size: int) -> int:
        """Bytes at most that ``size`` bytes become."""
        return (size * 4 // 3 + 2_000 if self._encryption else size) + (120 if self._signing else 0)

    def _encrypted(self, body: str) -> str:
        fields = parse(body)
        hidden: dict[str, Any] = {name: fields.pop(name) for name in HIDDEN if name in fields}
        dead = fields.get("dead")
        if dead is not None and "error" in dead:  # what an exception says may hold an argument
            hidden["error"] = dead["error"]
            fields["dead"] = {**dead, "error": {"type": dead["error"].get("type", ""), "detail": _WITHHELD, "traceback": _WITHHELD}}
        text = dumps(fields)[:-1]
        id, key = next(iter(self._encryption.items()))
        wrapped, cipher = key.to_encrypt()
        nonce = os.urandom(_NONCE)
        sealed = base64url(nonce + cipher.encrypt(nonce, dumps(hidden).encode(), text.encode()))
        return f'{text}{_MARKS["enc"]}{id}.{f"{wrapped}." if wrapped else ""}{sealed}"}}'

    # ------------------------------------------------------------------ in

    def open(self, body: str, fields: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """What a body, parsed as ``fields``, says in the clear; and whether a key's holder wrote its ``dead`` too.

        Raises DecodeError with the reason where it must not run, and KeyWanted.
        """
        signed, encrypted, vouched = "sig" in fields, "enc" in fields, True
        if not signed and not encrypted and not self._lenient:
            raise DecodeError("it is not signed" if self._signing else "it is not encrypted, and nothing else says who wrote it")
        if self._signing and signed:
            vouched = self._check_signature(body)
        elif self._signing and not self._lenient:
            raise DecodeError("it is not signed")
        elif not encrypted:
            if not self._lenient:
                raise DecodeError("it is not encrypted, and this process has no key to check its signature")
            logger.info("%s is neither signed nor encrypted, and accept_unsigned lets it run", fields.get("id"))
        clear, own = self._clear(body, fields)
        return clear, vouched and own

    async def reveal(self, body: str, fields: dict[str, Any]) -> dict[str, Any]:
        """The same for a person who looks at it, whoever wrote it. Raises DecodeError, and what fetching its key raises."""
        while True:
            try:
                return self._clear(body, fields)[0]
            except KeyWanted as wanted:
                fetch = wanted.fetch
            await fetch()

    def _clear(self, body: str, fields: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        clear = {name: value for name, value in fields.items() if name not in _MARKS}
        if "enc" not in fields:
            return clear, True
        hidden, own = self._decrypted(body)
        error = hidden.pop("error", None)
        if error is not None and own:
            hidden["dead"] = {**clear.get("dead", {}), "error": error}
        return clear | hidden, own

    def _check_signature(self, body: str) -> bool:
        text, value, rest = _cut(body, "sig")
        id = value.partition(".")[0]
        secret = self._signing.get(id)
        if secret is None:
            raise DecodeError(f"it is signed with a key that this process does not have: {id[:40]!r} is not among {SIGNING_KEYS}")
        if not hmac.compare_digest(_signature(id, secret, text).encode(), value.encode("utf-8", "surrogatepass")):
            raise DecodeError("its signature does not fit: it was changed on its way, or written with another key of the same id")
        return "dead" not in rest

    def _decrypted(self, body: str) -> tuple[dict[str, Any], bool]:
        text, value, rest = _cut(body, "enc")
        id, _, sealed = value.partition(".")
        wrapped, _, sealed = sealed.rpartition(".")
        key = self._encryption.get(id)
        if key is None:
            raise DecodeError(f"it is encrypted with a key that this process does not have: {id[:40]!r} is not among {ENCRYPTION_KEYS}")
        data = unbase64(sealed)
        if len(data) < _NONCE + _TAG:
            raise DecodeError("what is encrypted in it is cut off")
        cipher = key.to_decrypt(wrapped)
        try:
            plain = cipher.decrypt(data[:_NONCE], data[_NONCE:], _bytes(text))
        except Exception as error:  # InvalidTag, of a package that is not loaded by name here
            raise DecodeError(
                f"it could not be decrypted ({type(error).__name__}): it was changed on its way, or written with another key of the same id"
            ) from None
        return parse(plain.decode("utf-8", "replace")), "dead" not in rest

    async def close(self) -> None:
        """Release the key services' connections."""
        for key in self._encryption.values():
            await key.close()


def is_sealed(fields: Mapping[str, Any]) -> bool:
    """Whether a parsed body is signed or encrypted."""
    return "sig" in fields or "enc" in fields


def noted(body: str, dead: Mapping[str, Any]) -> str:
    """A sealed body as a dead letter, with ``dead`` behind what is covered, which stays as it is. For who cannot open it, or need not.

    Raises DecodeError where it cannot be cut there: its seal is not where it must be.
    """
    name = "sig" if body.rfind(_MARKS["sig"]) > body.rfind(_MARKS["enc"]) else "enc"
    text, value, _ = _cut(body, name)
    return f'{text}{_MARKS[name]}{value}","dead":{dumps(dead)}}}'


def configured(signing: str | None, encryption: str | None, accept_unsigned: bool | None, now: Callable[[], float]) -> Sealing | None:
    """What an app's settings say, or the environment in their place; ``None`` without keys. Raises ConfigError."""
    signing, encryption = signing or os.environ.get(SIGNING_KEYS), encryption or os.environ.get(ENCRYPTION_KEYS)
    if not signing and not encryption:
        return None
    signers = signing_keys(signing or "", SIGNING_KEYS)
    ciphers = encryption_keys(encryption or "", ENCRYPTION_KEYS, now, _service)
    if accept_unsigned is None:
        said = os.environ.get(ACCEPT_UNSIGNED, "").lower()
        if said not in ("", "0", "1", "false", "true"):
            raise ConfigError(f"{ACCEPT_UNSIGNED} is 1 or 0")
        accept_unsigned = said in ("1", "true")
    return Sealing(signers, ciphers, accept_unsigned=accept_unsigned)


def _service(url: str) -> KeyService:
    return adapters.open_keys(url)


def _signature(id: str, secret: bytes, text: str) -> str:
    return f"{id}.{base64url(hmac.digest(secret, _bytes(text), 'sha256'))}"


def _cut(body: str, name: str) -> tuple[str, str, dict[str, Any]]:
    """The text that ``enc`` or ``sig`` covers, its value, and what stands from there on.

    The last place is the right one: an object inside the arguments may have such a field too, and comes before.
    """
    at = body.rfind(_MARKS[name])
    if at < 0:
        raise DecodeError(f'"{name}" must stand behind the fields that it covers, as {_MARKS[name]}…"')
    rest = parse("{" + body[at + 1 :])
    if stray := sorted(rest.keys() - _AFTER[name]):
        raise DecodeError(f'fields stand behind "{name}", which it does not cover: {", ".join(stray)[:100]}')
    value: object = rest[name]
    if not isinstance(value, str):
        raise DecodeError(f'"{name}" stands there twice')
    return body[:at], value, rest


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
