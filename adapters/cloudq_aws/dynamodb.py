"""The DynamoDB store: cloudq's store seam in one table, by conditional writes and consistent reads."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import secrets
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from cloudq.adapters import Adapter, AdapterContext, Location
from cloudq.clock import Clock, SystemClock
from cloudq.errors import CloudQError, ConfigError, Conflict, DocumentTooLarge, StoreError, StoreUnavailable
from cloudq.store import ANY, MISSING, Document, Expect, Page, StoreLimits, Value
from cloudq_aws.client import client_for, open_now
from cloudq_aws.errors import DENIED, Refusal, Service, mapped_to
from cloudq_aws.s3 import Bodies

__all__ = ["KEYS", "TTL", "DynamoDBStore", "adapter"]

KEYS: Final = ("pk", "sk")
"""The table's partition key and sort key, both strings."""
TTL: Final = "ttl"
"""The attribute for the table's TTL setting."""

# AWS DynamoDB, "Quotas": 400 KB (409,600 bytes) an item, names and keys included; BatchGetItem: 100 keys, 16 MB an answer.
_VALUE = 400_000
_BATCH = 100
_MEMBERS = 1_000
"""What fits in an item with 400 bytes a member."""
_LARGE = 16 << 20
"""Bytes of a value with overflow: one request's worth of S3, and no more than a reader may want in memory."""

_ANSWER = 10.0
"""Seconds that a request with its SDK retries may take."""
_SILENCE = 3.0
"""Seconds without an answer after which the SDK tries again: DynamoDB answers in milliseconds, and a put knows its own earlier try."""
_ROUNDS = 8
"""How often what a BatchGetItem left out is asked for again."""

_SMALL: Final = frozenset({"limit", "pause", "worker", "schedule"})
"""Kinds whose documents do not grow with the work: one partition each, which one query lists. Never change it, nor:"""
_SHARDS = 16
"""Partitions of any other kind."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{3,255}")

_Item: TypeAlias = Mapping[str, Mapping[str, Any]]


class DynamoDBStore:
    """A Store in the DynamoDB table ``table``, which must exist: partition key ``pk`` and sort key ``sk`` (strings), TTL on ``ttl``.

    ``region`` ``None`` leaves it to the SDK, as are credentials and endpoint (``AWS_PROFILE``, ``AWS_ENDPOINT_URL`` …). ``overflow``
    (``s3://bucket/prefix``) takes the JSON of values over 400,000 bytes, up to 16 MiB; without it they are DocumentTooLarge. Nothing
    deletes these objects but the bucket's lifecycle rule, which must keep them for longer than the longest ``ttl`` in use.

    A document is one item (``docs/decisions/dynamodb-keys.md``), a put one PutItem and a get one GetItem; a Conflict carries the
    document found without a read. All reads are consistent, listings too. An expired item is gone for every method although TTL deletes
    it up to days later. A listing of a kind that grows with the work (``task``, ``claim``, ``chord``, ``event``) takes 16 small queries.

    Needs dynamodb:GetItem, BatchGetItem, PutItem, UpdateItem, DeleteItem and Query on the table, and with overflow s3:PutObject and
    s3:GetObject on ``bucket/prefix*``. It never scans, and never lists, creates or deletes tables.
    """

    def __init__(self, table: str, region: str | None = None, *, overflow: str | None = None, clock: Clock | None = None) -> None:
        if not _NAME.fullmatch(table):
            raise ConfigError(
                f"DynamoDB can have no table named {table!r}: a name is 3 to 255 letters, digits, _, - and . (dynamodb://eu-west-1/cloudq)"
            )
        self._table = table
        self._clock = clock or SystemClock()
        self._client = client_for("dynamodb", region, read_timeout=_SILENCE)
        self._bodies = None if overflow is None else Bodies(overflow, region)
        self._limits = StoreLimits(value=_LARGE if self._bodies else _VALUE, members=_MEMBERS, metered=True)

    @property
    def limits(self) -> StoreLimits:
        return self._limits

    async def get(self, kind: str, key: str) -> Document | None:
        reply = await self._call("GetItem", Key=_document_key(kind, key), ConsistentRead=True)
        return await self._document(reply.get("Item"), self._clock.time())

    async def get_many(self, kind: str, keys: Sequence[str]) -> Sequence[Document | None]:
        distinct = [*dict.fromkeys(keys)]
        found: dict[str, Document | None] = {}
        for start in range(0, len(distinct), _BATCH):
            now = self._clock.time()
            for item in await self._get_batch([_document_key(kind, key) for key in distinct[start : start + _BATCH]]):
                found[item["sk"]["S"]] = await self._document(item, now)
        return [found.get(key) for key in keys]

    async def put(self, kind: str, key: str, value: Value, *, expect: Expect = ANY, ttl: float | None = None) -> str:
        version = secrets.token_urlsafe(12)
        now = self._clock.time()
        item = {
            **_document_key(kind, key),
            **await self._encode(kind, key, value, version),
            "version": {"S": version},
            **({} if ttl is None else _expiry(now + ttl)),
        }
        try:
            await self._call("PutItem", Item=item, **_requirement(expect, now))
        except _ConditionFailed as failure:
            found = failure.item
            if found is None:  # there is none, or a server that does not say (older than ReturnValuesOnConditionCheckFailure)
                found = (await self._call("GetItem", Key=_document_key(kind, key), ConsistentRead=True)).get("Item")
            if found is not None and found["version"]["S"] == version:
                return version  # an earlier try of this very request was carried out, and its answer was lost
            wanted = "none" if expect is MISSING else "the version that was read"
            current = await self._document(found, now)
            raise Conflict(f"{kind} {key} is not as expected: {wanted}", current=current) from None
        return version

    async def add_member(self, kind: str, key: str, member: str, *, ttl: float | None = None) -> int:
        where, members = _set_key(kind, key), {"SS": [member]}
        while True:
            now = self._clock.time()
            # A set that never expires says so by a null: only a set that is new takes the expiry of this call.
            expiry = {"expires": {"NULL": True}, TTL: {"NULL": True}} if ttl is None else _expiry(now + ttl)
            values = {":member": members, ":now": _number(now), ":null": {"S": "NULL"}}
            try:
                reply = await self._call(
                    "UpdateItem",
                    Key=where,
                    UpdateExpression="ADD #members :member "
                    "SET #expires = if_not_exists(#expires, :expires), #ttl = if_not_exists(#ttl, :ttl)",
                    ConditionExpression="attribute_not_exists(#expires) OR attribute_type(#expires, :null) OR #expires > :now",
                    ExpressionAttributeNames={"#members": "members", "#expires": "expires", "#ttl": TTL},
                    ExpressionAttributeValues={**values, ":expires": expiry["expires"], ":ttl": expiry[TTL]},
                    ReturnValues="ALL_NEW",
                )
                # (Repeated by the SDK after a lost answer, this may count members that came between: two callers then see one size,
                # and both of them the last.)
                return len(reply["Attributes"]["members"]["SS"])
            except _ConditionFailed:
                pass
            try:  # it has expired: start anew, unless another has by now
                await self._call("PutItem", Item={**where, "members": members, **expiry}, **_requirement(MISSING, now))
                return 1
            except _ConditionFailed:
                continue

    async def members(self, kind: str, key: str) -> frozenset[str]:
        item = (await self._call("GetItem", Key=_set_key(kind, key), ConsistentRead=True)).get("Item")
        return frozenset() if item is None or _gone(item, self._clock.time()) else frozenset(item["members"]["SS"])

    async def delete(self, kind: str, key: str) -> None:
        for where in (_document_key(kind, key), _set_key(kind, key)):
            await self._call("DeleteItem", Key=where)

    async def list(self, kind: str, *, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        # Keys are printable ASCII: the next key after one is that key and a space, and \x7f comes after all that begin with a prefix.
        last = prefix + "\x7f"
        going = dict.fromkeys(_partitions(kind), prefix or " " if cursor is None else cursor + " ")  # where each partition goes on
        size = limit // len(going) + 8  # a partition's share, and enough that few need a second query
        found: dict[str, _Item] = {}
        ready: Sequence[str] = ()
        now = self._clock.time()
        while going and len(ready) <= limit:
            behind = min(going.values())
            asked = [partition for partition, start in going.items() if start == behind]
            for partition, reply in zip(asked, await asyncio.gather(*(self._query(p, behind, last, size) for p in asked)), strict=True):
                found.update((item["sk"]["S"], item) for item in reply["Items"] if not _gone(item, now))
                if end := reply.get("LastEvaluatedKey"):
                    going[partition] = end["sk"]["S"] + " "
                else:
                    del going[partition]
            complete = min(going.values(), default=last)  # below it nothing is missing
            ready = sorted(key for key in found if key < complete)
        documents = [(key, await self._read(found[key])) for key in ready[:limit]]
        return Page(documents, ready[limit - 1] if len(ready) > limit else None)

    def open(self) -> None:
        """As ``cloudq_aws.client.Opens``."""
        open_now(self._client)

    async def close(self) -> None:
        await self._client.close()
        if self._bodies:
            await self._bodies.close()

    async def _call(self, action: str, **parameters: Any) -> Mapping[str, Any]:
        """Make one request about the table."""
        return await self._request(action, TableName=self._table, **parameters)

    async def _request(self, action: str, **parameters: Any) -> Mapping[str, Any]:
        with mapped_to(_DYNAMODB, action, f"{action} on table {self._table!r}"):
            return await self._client.request(action, within=_ANSWER, **parameters)

    async def _get_batch(self, keys: Sequence[_Item]) -> Sequence[_Item]:
        """The items of up to 100 keys, in any order."""
        items: list[_Item] = []
        for again in range(_ROUNDS):
            reply = await self._request("BatchGetItem", RequestItems={self._table: {"Keys": keys, "ConsistentRead": True}})
            items += reply["Responses"].get(self._table, ())
            keys = reply.get("UnprocessedKeys", {}).get(self._table, {}).get("Keys", ())
            if not keys:
                return items
            await asyncio.sleep(random.uniform(0, min(0.05 * 2**again, 1.0)))  # AWS BatchGetItem asks for a back-off, also past 16 MB
        raise StoreUnavailable(f"BatchGetItem on table {self._table!r}: {len(keys)} keys stayed unprocessed; try again later")

    async def _query(self, partition: str, first: str, last: str, size: int) -> Mapping[str, Any]:
        return await self._call(
            "Query",
            KeyConditionExpression="pk = :pk AND sk BETWEEN :first AND :last",
            ExpressionAttributeValues={":pk": {"S": partition}, ":first": {"S": first}, ":last": {"S": last}},
            ConsistentRead=True,
            Limit=size,
        )

    async def _encode(self, kind: str, key: str, value: Value, version: str) -> _Item:
        """The attributes that hold a value: as JSON text, because a DynamoDB map knows neither 3.0 beside 3 nor -0.0 nor 1e300."""
        text = json.dumps(value if isinstance(value, dict) else dict(value), allow_nan=False, separators=(",", ":"))
        if len(text) > self._limits.value:  # ASCII: as many bytes as characters
            advice = "" if self._bodies else "; with overflow=s3://bucket/prefix in its URL it takes more"
            raise DocumentTooLarge(f"{kind} {key} is {len(text)} bytes as JSON; this store takes {self._limits.value}{advice}")
        if self._bodies is None or len(text) <= _VALUE:
            return {"value": {"S": text}}
        name, digest = await self._bodies.put(f"{kind}/{version}", text.encode())
        return {"body": {"S": name}, "sha256": {"S": digest}}

    async def _document(self, item: _Item | None, now: float) -> Document | None:
        return None if item is None or _gone(item, now) else await self._read(item)

    async def _read(self, item: _Item) -> Document:
        if "value" in item:
            text: str | bytes = item["value"]["S"]
        elif self._bodies is None:
            raise StoreError(
                f"the value of {item['sk']['S']} is in S3: open table {self._table!r} with the overflow= that it was written with"
            )
        else:
            text = await self._bodies.get(item["body"]["S"], item["sha256"]["S"])
        expires = float(item["expires"]["N"]) if "expires" in item else None
        return Document(json.loads(text), item["version"]["S"], expires)


def _partitions(kind: str) -> Sequence[str]:
    """The values of the partition key that hold the documents of a kind."""
    return [kind] if kind in _SMALL else [f"{kind}#{shard:x}" for shard in range(_SHARDS)]


def _document_key(kind: str, key: str) -> dict[str, Any]:
    partitions = _partitions(kind)
    return {"pk": {"S": partitions[zlib.crc32(key.encode()) % len(partitions)]}, "sk": {"S": key}}


def _set_key(kind: str, key: str) -> dict[str, Any]:
    return {"pk": {"S": f"{kind}#set#{key}"}, "sk": {"S": "set"}}


def _requirement(expect: Expect, now: float) -> dict[str, Any]:
    """The condition of a PutItem. Expiry is part of it: TTL deletes late."""
    if expect is ANY:
        return {}
    names, values = {"#expires": "expires"}, {":now": _number(now)}
    if expect is MISSING:
        condition = "attribute_not_exists(pk) OR #expires <= :now"
    else:
        condition = "#version = :version AND (attribute_not_exists(#expires) OR #expires > :now)"
        names["#version"], values[":version"] = "version", {"S": expect}
    return {
        "ConditionExpression": condition,
        "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": values,
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def _expiry(expires: float) -> dict[str, Any]:
    """``expires`` is what we compare; TTL wants whole seconds (AWS, "Using time to live")."""
    return {"expires": _number(expires), TTL: {"N": str(math.ceil(expires))}}


def _number(number: float) -> dict[str, str]:
    return {"N": repr(float(number))}


def _gone(item: _Item, now: float) -> bool:
    expires = item.get("expires", {}).get("N")
    return expires is not None and float(expires) <= now


class _ConditionFailed(CloudQError):
    """A condition did not hold. ``item`` is what was found, where the server says it."""

    def __init__(self, item: _Item | None) -> None:
        super().__init__("the condition of a write did not hold")
        self.item = item


def _refused(refusal: Refusal) -> CloudQError | None:
    tried, code = refusal.tried, refusal.code
    if code == "ConditionalCheckFailedException":
        return _ConditionFailed(refusal.response.get("Item"))
    if code == "ResourceNotFoundException":
        return StoreError(
            f"{tried}: there is no such table in this account and region; create it ('cloudq deploy' writes the template), "
            "or correct the table or the region in the store's URL"
        )
    if code in DENIED:
        return StoreError(f"{tried}: access denied; allow dynamodb:{refusal.action} on it ({refusal.detail})")
    if code == "ValidationException" and "maximum allowed size" in refusal.detail:
        return DocumentTooLarge(f"{tried}: the item is over the 400 KB of DynamoDB")
    return None


_DYNAMODB = Service(name="DynamoDB", url="dynamodb://eu-west-1/table", error=StoreError, unavailable=StoreUnavailable, refused=_refused)


def _open(location: Location, context: AdapterContext) -> DynamoDBStore:
    location.allow("overflow")
    return DynamoDBStore(location.path, location.host or None, overflow=location.options.get("overflow"), clock=context.clock)


adapter = Adapter(store=_open)
"""``dynamodb://eu-west-1/table``, ``dynamodb:///table`` for the SDK's own region; option ``overflow=s3://bucket/prefix``."""
