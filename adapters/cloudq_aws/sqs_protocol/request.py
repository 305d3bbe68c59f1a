"""A request as it comes in, its parameters read with the checks on them, and refusals with the codes that AWS answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

Params: TypeAlias = Mapping[str, Any]
"""A request's members, or a batch entry's, as JSON gave them."""

Answer: TypeAlias = dict[str, Any]
"""What an action answers, to be written as JSON."""

ACCOUNT: Final = "000000000000"
BATCH: Final = 10
"""Entries of one batch at most."""

_ENTRY_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")
_REGION: Final = re.compile(r"Credential=[^/]*/\d+/([a-z0-9-]+)/")

_LEGACY: Final = {
    "QueueDoesNotExist": "AWS.SimpleQueueService.NonExistentQueue",
    "QueueNameExists": "QueueAlreadyExists",
} | {
    name: f"AWS.SimpleQueueService.{name}"
    for name in (
        "BatchEntryIdsNotDistinct", "BatchRequestTooLong", "EmptyBatchRequest", "InvalidBatchEntryId", "MessageNotInflight",
        "PurgeQueueInProgress", "TooManyEntriesInBatchRequest", "UnsupportedOperation",
    )
}  # fmt: skip
"""The codes of the query protocol where they differ; SDKs that came from it still show these (AWS, ``x-amzn-query-error``)."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request: its parameters, and what it says of the place that it was sent to."""

    params: Params
    base: str = "http://127.0.0.1"
    """The server's address as the client sees it."""
    authorization: str = ""
    """The signature header: nobody checks it, and it tells the region."""

    def url(self, name: str) -> str:
        """The URL of a queue."""
        return f"{self.base}/{ACCOUNT}/{name}"

    def arn(self, name: str) -> str:
        """The ARN of a queue, in the region that the request was signed for."""
        region = _REGION.search(self.authorization)
        return f"arn:aws:sqs:{region[1] if region else 'us-east-1'}:{ACCOUNT}:{name}"


class Refused(Exception):
    """What SQS answers in place of a result. ``code`` is the shape's name in AWS's service model, ``fault`` whether it is SQS's own."""

    def __init__(self, code: str, message: str, *, fault: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.fault = fault

    @property
    def legacy(self) -> str:
        """The code as the query protocol had it."""
        return _LEGACY.get(self.code, self.code)


def invalid(name: str, value: object, why: str) -> Refused:
    """InvalidParameterValue in AWS's wording."""
    return Refused("InvalidParameterValue", f"Value {str(value)[:100]} for parameter {name} is invalid. Reason: {why}")


def text(params: Params, name: str) -> str:
    """A text that must be there and not be empty."""
    value = params.get(name)
    if value is None or value == "":
        raise Refused("MissingParameter", f"The request must contain the parameter {name}.")
    if not isinstance(value, str):
        raise Refused("SerializationException", f"{name} is not a string")
    return value


def number(params: Params, name: str, low: int, high: int, default: int | None = None) -> int:
    """A whole number from ``low`` to ``high``; MissingParameter where there is neither one nor a default."""
    value = params.get(name)
    if value is None:
        if default is None:
            raise Refused("MissingParameter", f"The request must contain the parameter {name}.")
        return default
    if not isinstance(value, int):
        raise Refused("SerializationException", f"{name} is not an integer")
    if not low <= value <= high:
        raise invalid(name, value, f"Must be between {low} and {high}, if provided.")
    return value


def names(params: Params, *members: str) -> frozenset[str]:
    """The strings of the lists ``members`` together."""
    found: list[Any] = []
    for member in members:
        value: Any = params.get(member) or ()
        if not isinstance(value, list | tuple):
            raise Refused("SerializationException", f"{member} is not a list")
        found += value
    return frozenset(map(str, found))


def mapping(params: Params, name: str) -> Mapping[str, Any]:
    """An object; empty where it is absent."""
    value: Any = params.get(name) or {}
    if not isinstance(value, dict):
        raise Refused("SerializationException", f"{name} is not an object")
    return cast("Params", value)


def entries(call: Call) -> Sequence[Params]:
    """The entries of a batch, where the batch as a whole is one that SQS takes."""
    given: Any = call.params.get("Entries")
    if not given:
        raise Refused("EmptyBatchRequest", "There should be at least one entry in the request.")
    if not isinstance(given, list):
        raise Refused("SerializationException", "Entries is not a list")
    listed = [_entry(entry) for entry in cast("list[object]", given)]
    if len(listed) > BATCH:
        raise Refused("TooManyEntriesInBatchRequest", f"Maximum number of entries per request are {BATCH}. You have sent {len(listed)}.")
    ids = [entry.get("Id") for entry in listed]
    for each in ids:
        if not isinstance(each, str) or not _ENTRY_ID.fullmatch(each):
            why = "A batch entry id can only contain alphanumeric characters, hyphens and underscores. It can be at most 80 letters long."
            raise Refused("InvalidBatchEntryId", why)
    if len(set(ids)) < len(ids):
        twice = next(each for each in ids if ids.count(each) > 1)
        raise Refused("BatchEntryIdsNotDistinct", f"Id {twice} repeated.")
    return listed


def _entry(given: object) -> Params:
    if not isinstance(given, dict):
        raise Refused("SerializationException", "an entry is not an object")
    return cast("Params", given)
