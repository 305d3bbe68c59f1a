"""What the store keeps of a group that is waited for: its document, who of it has arrived, and its results.

A member is an index. Members arrive in buckets of at most 100, and a full bucket arrives at the root: so no set grows over 100 up to
10,000 members, and no document is written more often than a store allows. Arriving twice changes nothing and says the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from cloudq import records, states
from cloudq.errors import Conflict, TaskFailed
from cloudq.message import derived_id
from cloudq.store import MISSING, Store

KIND: Final = "chord"
BUCKET: Final = 100
KEPT: Final = records.JOINED

# The fields of the document. A member's result is the task document at its derived id, or, where it is a group, again a chord.
#   of             how many members there are
#   ids            of those whose id the caller chose, by index
#   next           the steps that follow, the first of which is the chord's body; absent for a group at the end of a branch
#   join           of which chord it is itself a member
#   flow, root, parent   what it belongs to
#   called         true: its body was sent
#   failed         the first member that ended without a result: index, why


async def put(store: Store, id: str, document: Mapping[str, Any]) -> None:
    """Note a group before its members are sent; one that is known stays as it is."""
    try:
        await store.put(KIND, id, document, expect=MISSING, ttl=KEPT)
    except Conflict:
        return


async def get(store: Store, id: str) -> Mapping[str, Any] | None:
    """The document, or ``None`` where it has expired."""
    found = await store.get(KIND, id)
    return None if found is None else found.value


async def arrive(store: Store, join: Mapping[str, Any]) -> bool:
    """Note that a member has its result; true where all have, also when that was known before."""
    chord, index, of = cast("str", join["chord"]), cast("int", join["index"]), cast("int", join["of"])
    bucket = index // BUCKET
    if await store.add_member(KIND, f"{chord}/{bucket}", str(index), ttl=KEPT) < min(BUCKET, of - bucket * BUCKET):
        return False
    buckets = -(-of // BUCKET)
    return buckets == 1 or await store.add_member(KIND, chord, str(bucket), ttl=KEPT) == buckets


async def note_called(store: Store, chord: str) -> None:
    """Note that the body was sent, so that members which are delivered again do not send it again."""
    found = await store.get(KIND, chord)
    if found is None or found.value.get("called"):
        return
    try:
        await store.put(KIND, chord, {**found.value, "called": True}, expect=found.version, ttl=KEPT)
    except Conflict:
        return  # then it is sent once more at worst


async def fail(store: Store, join: Mapping[str, Any], why: str) -> Mapping[str, Any] | None:
    """Note that a member has ended without a result; the document, or ``None`` where another member had failed before it."""
    while True:
        found = await store.get(KIND, join["chord"])
        if found is None:
            return None
        failed = found.value.get("failed")
        if failed is not None:
            return found.value if failed["index"] == join["index"] else None
        value = {**found.value, "failed": {"index": join["index"], "why": why}}
        try:
            await store.put(KIND, join["chord"], value, expect=found.version, ttl=KEPT)
        except Conflict:
            continue
        return value


def members(chord: str, document: Mapping[str, Any]) -> list[str]:
    """The ids of a group's members."""
    chosen = document.get("ids", {})
    return [chosen.get(str(index)) or derived_id(chord, index) for index in range(document["of"])]


async def results(store: Store, chord: str) -> list[Any]:
    """The members' results in order, JSON values; groups among them are lists. Raises TaskFailed where one is not there."""
    document = await get(store, chord)
    if document is None:
        raise TaskFailed("cloudq.ResultMissing", f"nothing is known of the group {chord}", task_id=chord)
    ids = members(chord, document)
    values: list[Any] = []
    for id, found in zip(ids, await store.get_many(records.KIND, ids), strict=True):
        if found is not None and found.value["state"] == states.SUCCESS:
            values.append(found.value.get("value"))
            continue
        try:
            values.append(await results(store, id))
        except TaskFailed as missing:
            if missing.task_id != id:
                raise
            state = states.PENDING if found is None else found.value["state"]
            why = f"the result of member {len(values)} ({id}) is not there: {state}"
            raise TaskFailed("cloudq.ResultMissing", why, task_id=id) from None
    return values
