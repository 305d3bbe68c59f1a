"""The Firestore store: cloudq's store seam in one collection, by preconditions, queries over names and reads at a commit's own time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, TypeAlias, cast

from cloudq.adapters import Adapter, AdapterContext, Location
from cloudq.clock import Clock, SystemClock
from cloudq.errors import CloudQError, ConfigError, Conflict, DocumentTooLarge, StoreError, StoreUnavailable
from cloudq.store import ANY, MISSING, Document, Expect, Page, StoreLimits, Value
from cloudq_gcp.client import Api, Client
from cloudq_gcp.errors import Refusal, Service, mapped_to
from cloudq_gcp.gcs import Bodies

__all__ = ["DEFAULT", "TTL", "FirestoreStore", "adapter"]

TTL: Final = "expires"
"""The field for the TTL policy of the collection group."""
DEFAULT: Final = "(default)"
"""The database of a project that has one only."""

# Google Cloud, Firestore "Quotas and limits": 1 MiB (1,048,576 bytes) a document, name and field names included.
_VALUE = 1_000_000
_MEMBERS = 10_000
"""No limit of Firestore's: what ``members`` may want in memory."""
_LARGE = 16 << 20
"""Bytes of a value with overflow: one request's worth of GCS, and no more than a reader may want in memory."""
_BATCH = 500
"""Documents in one BatchGetDocuments or Commit."""

_ANSWER = 10.0
"""Seconds that a request with its repetitions may take."""
_ROUNDS = 10
"""How often what others changed meanwhile is looked at again."""

_COLLECTION = re.compile(r"(?!__.*__\Z)[A-Za-z0-9_-]{1,100}")
_FAR: Final = 253_402_300_799
"""The last second of a Firestore timestamp, at the end of the year 9999."""

_FIRESTORE_API: Final = Api(package="google.cloud.firestore_v1.services.firestore", name="Firestore")

_Write: TypeAlias = Mapping[str, Any]
"""A Write of Firestore's API, as a mapping."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A document as Firestore has it. Times are in microseconds, as precise as Firestore's."""

    name: str
    texts: Mapping[str, str]
    updated: int
    expires: int | None

    def gone(self, now: float) -> bool:
        return self.expires is not None and self.expires <= now * 1e6

    @property
    def version(self) -> str:
        return _version(self.updated, self.expires)


class FirestoreStore:
    """A Store in the collection ``collection`` of a Firestore database in native mode, which must exist.

    ``overflow`` (``gs://bucket/prefix``) takes the JSON of values over 1,000,000 bytes, up to 16 MiB; without it they are
    DocumentTooLarge. Nothing deletes these objects but the bucket's lifecycle rule, which must keep them for longer than the longest
    ``ttl`` in use. Credentials are the application default ones; FIRESTORE_EMULATOR_HOST and STORAGE_EMULATOR_HOST are honoured.

    A cloudq document is one Firestore document (``docs/decisions/firestore-names.md``): a get reads one, a put writes one under a
    precondition, and only a put that is refused reads. Listings follow names, for which Firestore needs no index of ours; all fields of
    the collection group should be exempt from indexing, and its TTL policy be on ``expires``. What has expired is gone for every method,
    although Firestore deletes it up to a day later. Everything is strongly consistent.

    A member of a set is a document too: an add costs one write, one read, and a count of the set (one read a thousand members), and no
    document is written twice. Two adds that Firestore commits in one microsecond both get the later one's size, which may be
    the last one's.

    Needs roles/datastore.user on the database, and with overflow what ``cloudq_gcp.gcs.Bodies`` needs.
    """

    def __init__(
        self,
        project: str,
        collection: str,
        *,
        database: str = DEFAULT,
        overflow: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not _COLLECTION.fullmatch(collection):
            raise ConfigError(
                f"cloudq takes no Firestore collection named {collection!r}: write 1 to 100 letters, digits, _ and - "
                "(firestore://project-id/cloudq)"
            )
        self._database = f"projects/{project}/databases/{database}"
        self._documents = f"{self._database}/documents"
        self._collection = collection
        self._clock = clock or SystemClock()
        self._client = Client(_FIRESTORE_API, emulator="FIRESTORE_EMULATOR_HOST")
        self._bodies = None if overflow is None else Bodies(overflow)
        self._limits = StoreLimits(value=_LARGE if self._bodies else _VALUE, members=_MEMBERS, metered=True)

    @property
    def limits(self) -> StoreLimits:
        return self._limits

    async def get(self, kind: str, key: str) -> Document | None:
        return (await self.get_many(kind, (key,)))[0]

    async def get_many(self, kind: str, keys: Sequence[str]) -> Sequence[Document | None]:
        names = {key: self._name(kind, key) for key in keys}
        documents: dict[str, Document] = {}
        for start in range(0, len(names), _BATCH):
            now = self._clock.time()
            for found in await self._read([*names.values()][start : start + _BATCH]):
                if not found.gone(now):
                    documents[found.name] = await self._document(found)
        return [documents.get(names[key]) for key in keys]

    async def put(self, kind: str, key: str, value: Value, *, expect: Expect = ANY, ttl: float | None = None) -> str:
        token = secrets.token_urlsafe(12)
        now = self._clock.time()
        expires = _expiry(now, ttl)
        name, fields = self._name(kind, key), await self._encode(kind, key, value, token)
        condition = _condition(expect, now)
        for _ in range(_ROUNDS):
            if condition is not None:
                try:
                    return _version(await self._commit(_write(name, fields, expires, condition)), expires)
                except _Unmet:
                    if expect is ANY:
                        raise
            found = await self._find(name)
            if found is not None and found.texts["token"] == token:
                return found.version  # an earlier try of this very request was carried out, and its answer was lost
            current = None if found is None or found.gone(now) else await self._document(found)
            if expect is not MISSING or current is not None:
                wanted = "none" if expect is MISSING else "the version that was read"
                raise Conflict(f"{kind} {key} is not as expected: {wanted}", current=current)
            condition = _unchanged(found)  # it has expired: replace it, unless another has by now
        raise _restless(kind, key)

    async def add_member(self, kind: str, key: str, member: str, *, ttl: float | None = None) -> int:
        if len(member.encode()) > _VALUE:
            raise DocumentTooLarge(f"a member of {kind} {key} is over {_VALUE} bytes, and a Firestore document takes 1 MiB")
        token = secrets.token_urlsafe(12)
        root = self._set(kind, key)
        for _ in range(_ROUNDS):
            now = self._clock.time()
            found = await self._find(root)
            if found is None or found.gone(now):  # start it (anew, with a token that parts its members from those before)
                expires = _expiry(now, ttl)
                try:
                    await self._commit(
                        _write(root, {"token": token}, expires, _unchanged(found)), self._member(root, token, member, token, expires)
                    )
                except _Unmet:
                    continue  # another has started it; or an earlier try of ours has, whose answer was lost
                return 1
            ours = self._member(root, found.texts["token"], member, token, found.expires)
            try:
                added: int | None = await self._commit(ours)
            except _Unmet:
                present = await self._find(ours["update"]["name"])
                if present is None:
                    continue  # the whole set was deleted meanwhile
                added = present.updated if present.texts["token"] == token else None
            return await self._count(root, found.texts["token"], at=added)
        raise _restless(kind, key)

    async def members(self, kind: str, key: str) -> frozenset[str]:
        root = self._set(kind, key)
        found = await self._find(root)
        if found is None or found.gone(self._clock.time()):
            return frozenset()
        return frozenset([member.texts["member"] for member in await self._query(*self._range(root, found.texts["token"]))])

    async def delete(self, kind: str, key: str) -> None:
        root = self._set(kind, key)
        found = await self._find(root)
        await self._commit({"delete": self._name(kind, key)}, {"delete": root})
        while found is not None:  # the set is gone; its members' documents take their place in vain
            members = await self._query(*self._range(root, found.texts["token"]), limit=_BATCH, fields=("__name__",))
            if not members:
                break
            await self._commit(*({"delete": member.name} for member in members))

    async def list(self, kind: str, *, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        # Keys are printable ASCII: the next key after one is that key and a space, and \x7f comes after all that begin with a prefix.
        first = self._name(kind, prefix if cursor is None else cursor + " ")
        last = self._name(kind, prefix + "\x7f")
        now = self._clock.time()
        ready: list[_Found] = []
        while (wanted := limit + 1 - len(ready)) > 0:
            found = await self._query(self._documents, first, last, limit=wanted)
            ready += [each for each in found if not each.gone(now)]
            if len(found) < wanted:
                break
            first = found[-1].name + " "
        start = len(self._name(kind, ""))
        documents = [(_unescaped(each.name[start:]), await self._document(each)) for each in ready[:limit]]
        return Page(documents, documents[-1][0] if len(ready) > limit else None)

    async def close(self) -> None:
        await self._client.close()
        if self._bodies:
            await self._bodies.close()

    # Names

    def _name(self, kind: str, key: str) -> str:
        return f"{self._documents}/{self._collection}/{_escaped(kind)}:{_escaped(key)}"

    def _set(self, kind: str, key: str) -> str:
        """The document that stands for a set: who started it, and when it expires. Written once in the life of the set."""
        return self._name(f"{kind}#set", key)

    def _member(self, root: str, generation: str, member: str, token: str, expires: int | None) -> _Write:
        """The write that adds a member of a generation of a set. All lie in collections of one name: a TTL policy is for a name."""
        name = f"{root}/{self._collection}/{generation}{hashlib.sha256(member.encode()).hexdigest()}"
        return _write(name, {"member": member, "token": token}, expires, _ABSENT)

    def _range(self, root: str, generation: str) -> tuple[str, str, str]:
        """Parent, first name and end of a generation's members."""
        return root, f"{root}/{self._collection}/{generation}", f"{root}/{self._collection}/{generation}~"

    # Requests

    async def _request(self, action: str, request: str, **fields: Any) -> Any:
        """Make one request about the database."""
        with mapped_to(_FIRESTORE, action, f"{action} on collection {self._collection!r} of {self._database}"):
            return await self._client.request(
                "Firestore",
                action,
                lambda: getattr(import_module("google.cloud.firestore_v1.types"), request)(fields),
                within=_ANSWER,
                streamed=action != "commit",
            )

    async def _commit(self, *writes: _Write) -> int:
        """Carry out all writes or, where a precondition does not hold, none and raise _Unmet; the time of the last document's update."""
        reply = _plain(await self._request("commit", "CommitRequest", database=self._database, writes=writes))
        return _micros(reply.write_results[-1].update_time)

    async def _read(self, names: Sequence[str]) -> Sequence[_Found]:
        """Those documents that are there, in any order."""
        replies = await self._request("batch_get_documents", "BatchGetDocumentsRequest", database=self._database, documents=names)
        return [_found(reply.found) for reply in map(_plain, replies) if reply.HasField("found")]

    async def _find(self, name: str) -> _Found | None:
        return next(iter(await self._read((name,))), None)

    async def _query(self, parent: str, first: str, end: str, *, limit: int | None = None, fields: Sequence[str] = ()) -> Sequence[_Found]:
        """The documents from the name ``first`` to before ``end``, in order."""
        query = self._names(first, end)
        if limit is not None:
            query["limit"] = limit
        if fields:
            query["select"] = {"fields": [{"field_path": field} for field in fields]}
        replies = await self._request("run_query", "RunQueryRequest", parent=parent, structured_query=query)
        return [_found(reply.document) for reply in map(_plain, replies) if reply.HasField("document")]

    async def _count(self, root: str, generation: str, *, at: int | None) -> int:
        """How many members a generation of a set has, or had just after the commit at the time ``at``.

        Every commit up to that time is in it and none after: so each of many concurrent adds gets its own place in their order.
        """
        parent, first, end = self._range(root, generation)
        replies = await self._request(
            "run_aggregation_query",
            "RunAggregationQueryRequest",
            parent=parent,
            structured_aggregation_query={"structured_query": self._names(first, end), "aggregations": [{"alias": "size", "count": {}}]},
            **({} if at is None else {"read_time": _timestamp(at)}),
        )
        return sum(_plain(reply).result.aggregate_fields["size"].integer_value for reply in replies)

    def _names(self, first: str, end: str) -> dict[str, Any]:
        return {
            "from_": [{"collection_id": self._collection}],
            "order_by": [{"field": {"field_path": "__name__"}, "direction": "ASCENDING"}],
            "start_at": {"values": [{"reference_value": first}], "before": True},
            "end_at": {"values": [{"reference_value": end}], "before": True},
        }

    # Values

    async def _encode(self, kind: str, key: str, value: Value, token: str) -> Mapping[str, str]:
        """The fields that hold a value: as JSON text, because Firestore's maps have names of their own that a value must not use."""
        text = json.dumps(value if isinstance(value, dict) else dict(value), allow_nan=False, separators=(",", ":"))
        if len(text) > self._limits.value:  # ASCII: as many bytes as characters
            advice = "" if self._bodies else "; with overflow=gs://bucket/prefix in its URL it takes more"
            raise DocumentTooLarge(f"{kind} {key} is {len(text)} bytes as JSON; this store takes {self._limits.value}{advice}")
        if self._bodies is None or len(text) <= _VALUE:
            return {"value": text, "token": token}
        name, digest = await self._bodies.put(f"{kind}/{token}", text.encode())
        return {"body": name, "sha256": digest, "token": token}

    async def _document(self, found: _Found) -> Document:
        texts = found.texts
        if "value" in texts:
            text: str | bytes = texts["value"]
        elif self._bodies is None:
            raise StoreError(
                f"the value of {found.name} is in GCS: open collection {self._collection!r} with the overflow= that it was written with"
            )
        else:
            text = await self._bodies.get(texts["body"], texts["sha256"])
        return Document(json.loads(text), found.version, None if found.expires is None else found.expires / 1e6)


_ABSENT: Final[Mapping[str, Any]] = {"exists": False}


def _condition(expect: Expect, now: float) -> Mapping[str, Any] | None:
    """The precondition of a put; ``None`` where it cannot hold. Expiry is part of it, and of a version: Firestore deletes late."""
    if expect is ANY:
        return {}
    if expect is MISSING:
        return _ABSENT
    try:
        updated, _, expires = expect.partition("-")
        if expires and int(expires, 16) <= now * 1e6:
            return None
        return {"update_time": _timestamp(int(updated, 16))}
    except ValueError:  # no version of ours
        return None


def _unchanged(found: _Found | None) -> Mapping[str, Any]:
    """The precondition that a document is still as it was found."""
    return _ABSENT if found is None else {"update_time": _timestamp(found.updated)}


def _restless(kind: str, key: str) -> StoreUnavailable:
    return StoreUnavailable(f"{kind} {key}: others changed it {_ROUNDS} times while it was being written; try again")


def _version(updated: int, expires: int | None) -> str:
    """The time of the last change, which Firestore never gives a document twice, and what a precondition does not look at."""
    return f"{updated:x}" if expires is None else f"{updated:x}-{expires:x}"


def _write(name: str, texts: Mapping[str, str], expires: int | None, condition: Mapping[str, Any]) -> _Write:
    fields: dict[str, Any] = {field: {"string_value": text} for field, text in texts.items()}
    if expires is not None:
        fields[TTL] = {"timestamp_value": _timestamp(expires)}
    return {"update": {"name": name, "fields": fields}, **({"current_document": condition} if condition else {})}


def _found(document: Any) -> _Found:
    fields = document.fields
    return _Found(
        document.name,
        {field: value.string_value for field, value in fields.items() if field != TTL},
        _micros(document.update_time),
        _micros(fields[TTL].timestamp_value) if TTL in fields else None,
    )


def _plain(message: Any) -> Any:
    """Google's message without the wrapper that makes each access slow."""
    return cast("Any", type(message)).pb(message)


def _expiry(now: float, ttl: float | None) -> int | None:
    return None if ttl is None else round(min(now + ttl, _FAR) * 1e6)


def _timestamp(micros: int) -> dict[str, int]:
    seconds, rest = divmod(micros, 1_000_000)
    return {"seconds": seconds, "nanos": rest * 1000}


def _micros(timestamp: Any) -> int:
    micros: int = timestamp.seconds * 1_000_000 + timestamp.nanos // 1000
    return micros


def _escaped(text: str) -> str:
    """A part of a document's name, which must have no slash: in the order of the text, and prefix for prefix."""
    return text.replace(".", ".0").replace("/", ".1")


def _unescaped(name: str) -> str:
    return name.replace(".1", "/").replace(".0", ".")


class _Unmet(StoreError):
    """A precondition of a commit did not hold."""


def _refused(refusal: Refusal) -> CloudQError | None:
    tried, status, detail = refusal.tried, refusal.status, refusal.detail
    if status == "NOT_FOUND" and (refusal.action != "commit" or "database" in detail.partition("projects/")[0]):
        return StoreError(
            f"{tried}: there is no such database; create it ('cloudq deploy' writes the template), "
            f"or correct the project or database= in the store's URL ({detail})"
        )
    if refusal.action == "commit" and status in ("ALREADY_EXISTS", "FAILED_PRECONDITION", "NOT_FOUND"):
        return _Unmet(f"{tried}: Firestore refused it ({status}: {detail})")
    if status == "PERMISSION_DENIED":
        return StoreError(f"{tried}: access denied; allow roles/datastore.user on it ({detail})")
    return None


_FIRESTORE: Final = Service(
    name="Firestore", emulator="FIRESTORE_EMULATOR_HOST", error=StoreError, unavailable=StoreUnavailable, refused=_refused
)


def _open(location: Location, context: AdapterContext) -> FirestoreStore:
    location.allow("database", "overflow")
    project = location.host or os.environ.get("GOOGLE_CLOUD_PROJECT")
    if not project:
        raise ConfigError("no Google Cloud project: write it in the URL (firestore://project-id/collection), or set GOOGLE_CLOUD_PROJECT")
    options = location.options
    return FirestoreStore(
        project,
        location.path,
        database=options.get("database", DEFAULT),
        overflow=options.get("overflow"),
        clock=context.clock,
    )


adapter = Adapter(store=_open)
"""``firestore://project-id/collection``; options ``database=`` and ``overflow=gs://bucket/prefix``."""
