"""A message as SQS takes it and gives it back: its checks, its size and its checksums."""

from __future__ import annotations

import hashlib
import itertools
import re
import uuid
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Mapping
from typing import Any, Final, cast

from cloudq.broker import Delivery
from cloudq_aws.sqs_protocol.request import Params, Refused, invalid, mapping, text

MIB: Final = 1 << 20
"""Bytes of one message at most, and of one batch (AWS SendMessageBatch)."""

_ATTRIBUTES: Final = 10
_NOT_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # "all but" takes 3 ms to compile
_NAME: Final = re.compile(r"(?!\.)(?!(?i:aws\.|amazon\.))(?!.*\.\.)[A-Za-z0-9_.-]{1,256}(?<!\.)")
_TYPE: Final = re.compile(r"(String|Number|Binary)(\..{1,248})?")
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_TOKEN: Final = re.compile(r"[!-~]{1,128}")


class Envelope(dict[str, str]):
    """The text attributes of a message as the broker carries them, and with them what only SQS knows of it.

    Brokers in this process hand over the very object that was sent, so whoever reads the message by SQS finds it again; whoever reads it
    by the broker sees a plain mapping.
    """

    __slots__ = ("dedup", "digest", "group", "id", "sequence", "trace", "typed", "typed_digest")

    id: str
    sequence: str | None

    def __init__(self, typed: Mapping[str, Any], digest: str) -> None:
        super().__init__((name, value["StringValue"]) for name, value in typed.items() if "StringValue" in value)
        self.typed = typed
        self.digest = digest
        self.typed_digest = attributes_digest(typed) if typed else None
        self.trace: str | None = None
        self.group: str | None = None
        self.dedup: str | None = None
        self.sequence = None


def envelope_of(delivery: Delivery) -> Envelope:
    """What SQS knows of the message; made up for one that was sent by the broker's own method."""
    known = delivery.attributes
    if isinstance(known, Envelope):
        return known
    typed = {name: {"DataType": "String", "StringValue": value} for name, value in known.items()}
    envelope = Envelope(typed, body_digest(delivery.body))
    envelope.id, envelope.group = delivery.message_id, delivery.group
    return envelope


class Ids:
    """Message ids and sequence numbers, each given once."""

    def __init__(self) -> None:
        self._start = str(uuid.uuid4())[:24]
        self._numbers = itertools.count(1)

    def next(self) -> str:
        """The next id; those of one server differ in the last digits."""
        return f"{self._start}{next(self._numbers):012x}"

    def sequence(self) -> str:
        """The next sequence number: 20 digits that leave gaps, as AWS's do."""
        return f"{1 << 64 | next(self._numbers) << 8:020d}"


def body_digest(body: str) -> str:
    """MD5OfMessageBody."""
    return hashlib.md5(body.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def attributes_digest(typed: Mapping[str, Any]) -> str:
    """MD5OfMessageAttributes (AWS, "Calculating the MD5 message digest for message attributes")."""
    digest = hashlib.md5(usedforsecurity=False)
    for name in sorted(typed):
        value = typed[name]
        plain = value.get("StringValue")
        content = plain.encode() if plain is not None else b64decode(value["BinaryValue"])
        for part in (name.encode(), value["DataType"].encode()):
            digest.update(len(part).to_bytes(4, "big") + part)
        digest.update((b"\x01" if plain is not None else b"\x02") + len(content).to_bytes(4, "big") + content)
    return digest.hexdigest()


def size(entry: Params) -> int:
    """Bytes that SQS counts: the body, and each attribute's name, type and value (AWS, "Amazon SQS message quotas")."""
    body = entry.get("MessageBody")
    total = _bytes(body) if isinstance(body, str) else 0
    if "MessageAttributes" not in entry:
        return total
    for name, value in mapping(entry, "MessageAttributes").items():
        parts = _members(value)
        total += _bytes(name) + _bytes(str(parts.get("DataType", ""))) + _bytes(str(parts.get("StringValue", "")))
        total += len(binary) * 3 // 4 - binary.count("=") if (binary := str(parts.get("BinaryValue", ""))) else 0
    return total


def check(entry: Params, *, fifo: bool, content_dedup: bool, maximum: int) -> Envelope:
    """The envelope of a message that SQS would take; raises Refused for any other. Its delay is the queue's to check."""
    body = text(entry, "MessageBody")
    if not (body.isascii() and body.isprintable()):
        _check_characters(body)
    weight = size(entry)
    if weight > maximum:
        raise Refused("InvalidParameterValue", f"One or more parameters are invalid. Reason: Message must be shorter than {maximum} bytes.")
    envelope = Envelope(_typed(entry), body_digest(body))
    envelope.trace = _trace(entry)
    envelope.group = _token(entry, "MessageGroupId")
    envelope.dedup = _token(entry, "MessageDeduplicationId")
    if not fifo:
        if envelope.dedup is not None:
            why = "The request includes a parameter that is not valid for this queue type."
            raise invalid("MessageDeduplicationId", envelope.dedup, why)
        return envelope
    if envelope.group is None:
        raise Refused("MissingParameter", "The request must contain the parameter MessageGroupId.")
    if envelope.dedup is None:
        if not content_dedup:
            raise Refused(
                "InvalidParameterValue",
                "The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly",
            )
        envelope.dedup = hashlib.sha256(body.encode()).hexdigest()
    return envelope


def _members(value: object) -> Params:
    return cast("Params", value) if isinstance(value, dict) else {}


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _check_characters(value: str) -> None:
    if bad := _NOT_XML.search(value):
        raise Refused("InvalidMessageContents", f"The message contains U+{ord(bad[0]):04X}, a character outside the allowed set.")


def _token(entry: Params, name: str) -> str | None:
    value = entry.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise invalid(name, value, f"{name} can only include alphanumeric and punctuation characters. 1 to 128 in length.")
    return value


def _typed(entry: Params) -> Mapping[str, Any]:
    given = mapping(entry, "MessageAttributes")
    if len(given) > _ATTRIBUTES:
        why = f"Number of message attributes [{len(given)}] exceeds the allowed maximum [{_ATTRIBUTES}]."
        raise Refused("InvalidParameterValue", why)
    for name, value in given.items():
        if not _NAME.fullmatch(name):
            raise Refused("InvalidParameterValue", f"The message attribute name '{name[:100]}' is invalid.")
        _check_value(name, _members(value))
    return given


def _check_value(name: str, value: Params) -> None:
    kind = _TYPE.fullmatch(str(value.get("DataType")))
    if kind is None:
        why = f"The message attribute '{name}' has an invalid type; its prefix is String, Number or Binary."
        raise Refused("InvalidParameterValue", why)
    member = "BinaryValue" if kind[1] == "Binary" else "StringValue"
    content = value.get(member)
    if not isinstance(content, str) or not content or (value.keys() & {"StringValue", "BinaryValue"}) != {member}:
        raise Refused("InvalidParameterValue", f"The message attribute '{name}' must contain a non-empty {member} and no other value.")
    if member == "StringValue":
        _check_characters(content)
        if kind[1] == "Number" and not _NUMBER.fullmatch(content):
            raise Refused("InvalidParameterValue", f"Can't cast the value of message attribute '{name}' to a number.")
        return
    try:
        b64decode(content, validate=True)
    except NotBase64 as error:
        raise Refused("SerializationException", f"the value of message attribute '{name}' is not base64") from error


def _trace(entry: Params) -> str | None:
    system = mapping(entry, "MessageSystemAttributes")
    if not system:
        return None
    value = _members(system.get("AWSTraceHeader"))
    if len(system) > 1 or value.get("DataType") != "String" or not value.get("StringValue"):
        raise Refused("InvalidParameterValue", "The only message system attribute is AWSTraceHeader, a non-empty String.")
    return str(value["StringValue"])
