"""The store conformance suite: what every Store promises, as tests for a driver to subclass."""

from __future__ import annotations

import asyncio
import json
import math
import string
import threading
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cloudq.store import ANY, KINDS, MISSING, Conflict, DocumentTooLarge, Expect, Store, Value
from cloudq.testing.suite import Suite

KIND = KINDS[0]
OTHER_KIND = KINDS[1]

VALUES: dict[str, Value] = {
    "an empty object": {},
    "constants": {"none": None, "true": True, "false": False},
    "floats": {"half": 0.5, "tenth": 0.1, "whole": 3.0, "tiny": 5e-324, "huge": 1.7976931348623157e308, "minus zero": -0.0, "pi": math.pi},
    "integers": {"zero": 0, "one": 1, "minus": -1, "most": 2**53, "least": -(2**53)},
    "text": {"": "empty key", "empty": "", "umlaut": "Grüße", "emoji": "🦆", "control": "\x00\x1f\x7f\n", "quote": "\"\\'", "ключ": "ключ"},
    "text that looks like something else": {"number": "1", "null": "null", "bytes": "b''", "date": "2026-01-01T00:00:00Z"},
    "nesting": {"list": [1, [2, [3, []]], {}], "object": {"a": {"b": {"c": [None, {"d": False}]}}}},
    "keys with a meaning elsewhere": {"a.b": 1, "$set": 2, "__name__": 3, "`": 4, "version": 5, "expires": 6, "a/b": 7},
}


class StoreConformance(Suite):
    """Subclass it in a test module as ``class TestMyStore(StoreConformance)``, and define ``make_store``; where a test can
    move the store's clock, also ``pass_time``.

    Every test makes a store of its own and uses keys of its own, so that all may share one server. Redefine no test: a driver that
    cannot keep a promise marks it as an expected failure, with the reason. The class attributes scale the suite for slow servers.
    """

    TTL = 2.0
    """Seconds that an expiring document lives in these tests; with a real clock longer than a dozen calls take."""
    TASKS = 20
    """How many callers compete in the tests of concurrency."""
    ROUNDS = 10
    """How often each of them writes."""
    MANY = 120
    """How many documents the tests of big reads make: more than any provider's batch."""
    LARGEST = 2_000_000
    """A limit over this many bytes is not tried out."""

    def make_store(self) -> Store:
        """A new store, connected to nothing yet; each test closes its own. Called inside the event loop that uses it."""
        raise NotImplementedError

    def run(self, scenario: Callable[[Store], Awaitable[None]]) -> None:
        """Run a scenario against a new store in a new event loop."""

        async def main() -> None:
            store = self.make_store()
            try:
                await self.play(lambda: scenario(store))
            finally:
                await store.close()

        asyncio.run(main())

    # Documents

    def test_it_is_a_store_and_knows_its_limits_before_any_request(self) -> None:
        async def scenario(store: Store) -> None:
            assert isinstance(store, Store)
            assert store.limits.value >= 100_000
            assert store.limits.members >= 100
            assert store.limits == store.limits

        self.run(scenario)

    def test_what_was_never_put_is_none(self) -> None:
        async def scenario(store: Store) -> None:
            assert await store.get(KIND, unique()) is None

        self.run(scenario)

    @pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
    def test_a_value_comes_back_exactly(self, value: Value) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            version = await store.put(KIND, key, value)
            document = await store.get(KIND, key)
            assert document is not None
            assert exact(document.value) == exact(value)
            assert document.version == version
            assert document.expires is None

        self.run(scenario)

    def test_a_lone_surrogate_is_kept_or_refused_but_never_changed(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            value = {"text": "a\ud800b"}
            try:
                await store.put(KIND, key, value)
            except ValueError:
                assert await store.get(KIND, key) is None
            else:
                assert await read(store, key) == value

        self.run(scenario)

    def test_every_printable_ascii_character_and_512_of_them_make_a_key(self) -> None:
        async def scenario(store: Store) -> None:
            printable = "".join(map(chr, range(0x20, 0x7F)))
            start = unique()
            keys = [start + printable, (start + string.ascii_letters * 10)[:512], start + "/", start + "/../", start + "."]
            for number, key in enumerate(keys):
                await store.put(KIND, key, {"number": number})
                await store.add_member(KIND, key, printable)
            assert [document and document.value for document in await store.get_many(KIND, keys)] == [{"number": n} for n in range(5)]
            assert await store.members(KIND, keys[0]) == {printable}

        self.run(scenario)

    def test_a_put_replaces_the_whole_document(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            await store.put(KIND, key, {"a": 1, "b": {"c": 2}})
            await store.put(KIND, key, {"b": {"d": 3}})
            assert await read(store, key) == {"b": {"d": 3}}

        self.run(scenario)

    def test_kinds_keep_the_same_key_apart(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            await store.put(KIND, key, {"kind": 1})
            await store.put(OTHER_KIND, key, {"kind": 2})
            await store.delete(KIND, key)
            assert await store.get(KIND, key) is None
            assert await read(store, key, OTHER_KIND) == {"kind": 2}

        self.run(scenario)

    def test_a_value_is_isolated_from_its_writer_and_from_its_readers(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            shared: list[int] = [1]
            value: dict[str, Any] = {"a": shared, "b": shared}
            await store.put(KIND, key, value)
            shared.append(2)
            first = await read(store, key)
            assert first == {"a": [1], "b": [1]}
            first["a"].append(3)
            assert await read(store, key) == {"a": [1], "b": [1]}
            assert first["b"] == [1]

        self.run(scenario)

    def test_a_value_over_the_limit_is_refused_and_changes_nothing(self) -> None:
        async def scenario(store: Store) -> None:
            if store.limits.value > self.LARGEST:
                pytest.skip(f"the store takes {store.limits.value} bytes, more than LARGEST")
            key = unique()
            await store.put(KIND, key, {"small": True})
            with pytest.raises(DocumentTooLarge):
                await store.put(KIND, key, {"text": "x" * store.limits.value})
            assert await read(store, key) == {"small": True}
            fits = {"text": "x" * (store.limits.value - 20)}
            await store.put(KIND, key, fits)
            assert await read(store, key) == fits

        self.run(scenario)

    def test_a_deleted_document_is_gone_and_deleting_again_is_no_error(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            await store.put(KIND, key, {"a": 1})
            await store.delete(KIND, key)
            assert await store.get(KIND, key) is None
            await store.delete(KIND, key)

        self.run(scenario)

    def test_get_many_answers_in_order_with_gaps_and_repeats(self) -> None:
        async def scenario(store: Store) -> None:
            start = unique()
            keys = [f"{start}{number:04}" for number in range(self.MANY)]
            await asyncio.gather(*(store.put(KIND, key, {"key": key}) for key in keys[::2]))
            asked = [*reversed(keys), keys[0], keys[1], keys[0]]
            found = await store.get_many(KIND, asked)
            present = set(keys[::2])
            assert [document and document.value for document in found] == [{"key": key} if key in present else None for key in asked]
            assert list(await store.get_many(KIND, [])) == []

        self.run(scenario)

    # Compare-and-set

    def test_every_put_makes_a_version_that_the_key_never_had(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            versions: list[str] = []
            for _ in range(3):
                versions.append(await store.put(KIND, key, {"same": True}))
                versions.append(await store.put(KIND, key, {"same": True}, expect=versions[-1]))
                await store.delete(KIND, key)
                versions.append(await store.put(KIND, key, {"same": True}, expect=MISSING))
            assert len(set(versions)) == len(versions)

        self.run(scenario)

    def test_any_is_met_by_what_is_there_and_by_nothing(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            await store.put(KIND, key, {"n": 1}, expect=ANY)
            await store.put(KIND, key, {"n": 2}, expect=ANY)
            assert await read(store, key) == {"n": 2}

        self.run(scenario)

    def test_missing_is_met_once_and_again_after_a_delete(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            await store.put(KIND, key, {"n": 1}, expect=MISSING)
            await self.refused(store, key, MISSING)
            await store.delete(KIND, key)
            await store.put(KIND, key, {"n": 2}, expect=MISSING)
            assert await read(store, key) == {"n": 2}

        self.run(scenario)

    def test_a_version_is_met_only_while_it_is_the_present_one(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            first = await store.put(KIND, key, {"n": 1})
            second = await store.put(KIND, key, {"n": 2}, expect=first)
            await self.refused(store, key, first)
            await store.delete(KIND, key)
            await self.refused(store, key, second)
            await store.put(KIND, key, {"n": 3})
            await self.refused(store, key, second)

        self.run(scenario)

    def test_a_version_of_one_key_is_not_met_by_another(self) -> None:
        async def scenario(store: Store) -> None:
            version = await store.put(KIND, unique(), {"n": 1})
            await self.refused(store, unique(), version)

        self.run(scenario)

    def test_concurrent_increments_lose_none(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            await store.put(KIND, key, {"count": 0})

            async def increment() -> None:
                for _ in range(self.ROUNDS):
                    while True:
                        document = await store.get(KIND, key)
                        assert document is not None
                        try:
                            await store.put(KIND, key, {"count": document.value["count"] + 1}, expect=document.version)
                            break
                        except Conflict:
                            continue

            await asyncio.gather(*(increment() for _ in range(self.TASKS)))
            assert await read(store, key) == {"count": self.TASKS * self.ROUNDS}

        self.run(scenario)

    def test_of_concurrent_creations_one_succeeds_and_the_others_are_told_its_value(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            puts = (store.put(KIND, key, {"by": number}, expect=MISSING) for number in range(self.TASKS))
            answers = await asyncio.gather(*puts, return_exceptions=True)
            winners = [number for number, answer in enumerate(answers) if isinstance(answer, str)]
            assert len(winners) == 1
            assert await read(store, key) == {"by": winners[0]}
            losers = [answer for answer in answers if not isinstance(answer, str)]
            assert [isinstance(loser, Conflict) and loser.current and loser.current.value for loser in losers] == (
                [{"by": winners[0]}] * (self.TASKS - 1)
            )

        self.run(scenario)

    # Expiry

    def test_a_document_says_when_it_expires_and_is_gone_then(self) -> None:
        async def scenario(store: Store) -> None:
            key, lasting = unique(), unique()
            version = await store.put(KIND, key, {"n": 1}, ttl=self.TTL)
            await store.put(KIND, lasting, {"n": 2}, ttl=None)
            document = await store.get(KIND, key)
            assert document is not None and document.expires is not None
            await self.pass_time(self.TTL + 0.1)
            assert await store.get(KIND, key) is None
            assert [found and found.value for found in await store.get_many(KIND, [key, lasting])] == [None, {"n": 2}]
            with pytest.raises(Conflict) as caught:
                await store.put(KIND, key, {"n": 3}, expect=version)
            assert caught.value.current is None
            await store.put(KIND, key, {"n": 4}, expect=MISSING)
            assert await read(store, key) == {"n": 4}

        self.run(scenario)

    def test_the_last_put_decides_about_expiry(self) -> None:
        async def scenario(store: Store) -> None:
            lasting, passing = unique(), unique()
            version = await store.put(KIND, lasting, {"n": 1}, ttl=self.TTL)
            await store.put(KIND, lasting, {"n": 2}, expect=version)
            await store.put(KIND, passing, {"n": 3})
            await store.put(KIND, passing, {"n": 4}, ttl=self.TTL)
            await self.pass_time(self.TTL + 0.1)
            document = await store.get(KIND, lasting)
            assert document is not None and document.expires is None
            assert await store.get(KIND, passing) is None

        self.run(scenario)

    def test_a_listing_leaves_out_what_has_expired(self) -> None:
        async def scenario(store: Store) -> None:
            start = unique()
            for number in range(6):
                await store.put(KIND, f"{start}{number}", {}, ttl=self.TTL if number % 2 else None)
            await self.pass_time(self.TTL + 0.1)
            assert await listed(store, start, limit=2) == [f"{start}{number}" for number in (0, 2, 4)]

        self.run(scenario)

    def test_a_set_expires_counted_from_its_first_member(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            assert await store.add_member(KIND, key, "a", ttl=self.TTL) == 1
            await self.pass_time(self.TTL * 0.6)
            assert await store.add_member(KIND, key, "b", ttl=self.TTL) == 2
            await self.pass_time(self.TTL * 0.6)
            assert await store.members(KIND, key) == frozenset()
            assert await store.add_member(KIND, key, "c") == 1
            assert await store.members(KIND, key) == {"c"}

        self.run(scenario)

    # Sets

    def test_adding_says_the_size_and_adding_again_changes_nothing(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            assert await store.members(KIND, key) == frozenset()
            assert [await store.add_member(KIND, key, member) for member in ("a", "b", "a", "c", "b")] == [1, 2, 2, 3, 3]
            assert await store.members(KIND, key) == {"a", "b", "c"}

        self.run(scenario)

    def test_concurrent_adds_see_each_size_once(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            count = min(self.TASKS * 2, store.limits.members)
            sizes = await asyncio.gather(*(store.add_member(KIND, key, f"member {number}") for number in range(count)))
            assert len(set(sizes)) == count
            assert max(sizes) == count
            assert len(await store.members(KIND, key)) == count

        self.run(scenario)

    def test_concurrent_adds_of_one_member_count_it_once(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            assert set(await asyncio.gather(*(store.add_member(KIND, key, "same") for _ in range(self.TASKS)))) == {1}
            assert await store.members(KIND, key) == {"same"}

        self.run(scenario)

    def test_a_document_and_a_set_share_a_key_and_a_delete_takes_both(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            await store.add_member(KIND, key, "a")
            await store.put(KIND, key, {"n": 1}, expect=MISSING)
            assert await store.add_member(KIND, key, "b") == 2
            await store.put(KIND, key, {"n": 2})
            assert await read(store, key) == {"n": 2}
            assert await store.members(KIND, key) == {"a", "b"}
            await store.delete(KIND, key)
            assert await store.get(KIND, key) is None
            assert await store.members(KIND, key) == frozenset()
            assert await store.add_member(KIND, key, "c") == 1

        self.run(scenario)

    def test_a_set_alone_is_no_document(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            await store.add_member(KIND, key, "a")
            assert await store.get(KIND, key) is None
            assert await listed(store, key) == []
            await store.put(KIND, key, {}, expect=MISSING)

        self.run(scenario)

    # Listings

    def test_a_listing_is_in_code_point_order_with_versions_and_values(self) -> None:
        async def scenario(store: Store) -> None:
            start = unique()
            keys = [start + end for end in ("b", "a", "B", "/", "~", "10", "9", "a/b", "a b", "_", "%", "ab")]
            versions = {key: await store.put(KIND, key, {"key": key}) for key in keys}
            page = await store.list(KIND, prefix=start)
            assert [key for key, _ in page.items] == sorted(keys)
            assert all(document.value == {"key": key} and document.version == versions[key] for key, document in page.items)
            assert page.cursor is None

        self.run(scenario)

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_of_the_core_can_be_listed(self, kind: str) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            await store.put(kind, key, {"kind": kind})
            page = await store.list(kind, prefix=key)
            assert [(found, document.value) for found, document in page.items] == [(key, {"kind": kind})]

        self.run(scenario)

    def test_a_prefix_selects_just_its_own_keys(self) -> None:
        async def scenario(store: Store) -> None:
            start = unique()
            for end in ("", "a", "a~", "a~~", "a_1", "ab", "b", "A"):
                await store.put(KIND, start + end, {})
            assert await listed(store, start + "a") == [start + end for end in ("a", "a_1", "ab", "a~", "a~~")]
            assert await listed(store, start + "a~") == [start + "a~", start + "a~~"]
            assert await listed(store, start + "c") == []

        self.run(scenario)

    def test_without_a_prefix_the_whole_kind_is_listed_in_order(self) -> None:
        async def scenario(store: Store) -> None:
            mine = {unique() for _ in range(3)}
            for key in mine:
                await store.put(KIND, key, {})
            found = await listed(store, "")
            assert found == sorted(found)
            assert mine <= set(found)

        self.run(scenario)

    def test_pages_hold_at_most_the_limit_and_together_everything_once(self) -> None:
        async def scenario(store: Store) -> None:
            start = unique()
            keys = [f"{start}{number:04}" for number in range(self.MANY)]
            await asyncio.gather(*(store.put(KIND, key, {}) for key in keys))
            assert len((await store.list(KIND, prefix=start)).items) <= 100
            assert await listed(store, start, limit=self.MANY // 5) == keys
            assert await listed(store, start, limit=self.MANY) == keys

        self.run(scenario)

    def test_a_cursor_keeps_its_place_while_documents_come_and_go(self) -> None:
        async def scenario(store: Store) -> None:
            start = unique()
            for number in range(6):
                await store.put(KIND, f"{start}{number}", {})
            page = await store.list(KIND, prefix=start, limit=3)
            assert page.cursor is not None
            await store.put(KIND, f"{start}0a", {})
            await store.put(KIND, f"{start}4", {"new": True})
            await store.put(KIND, f"{start}4a", {})
            await store.delete(KIND, f"{start}2")
            rest = await store.list(KIND, prefix=start, limit=10, cursor=page.cursor)
            assert [key for key, _ in rest.items] == [f"{start}{end}" for end in ("3", "4", "4a", "5")]
            assert dict(rest.items)[f"{start}4"].value == {"new": True}
            assert rest.cursor is None

        self.run(scenario)

    def test_a_listing_goes_on_after_any_key_also_one_that_never_was(self) -> None:
        async def scenario(store: Store) -> None:
            start = unique()
            for end in ("a", "b", "c"):
                await store.put(KIND, start + end, {})
            page = await store.list(KIND, prefix=start, limit=1, cursor=start + "a0")
            assert ([key for key, _ in page.items], page.cursor) == ([start + "b"], start + "b")
            page = await store.list(KIND, prefix=start, cursor=start + "b~")
            assert ([key for key, _ in page.items], page.cursor) == ([start + "c"], None)

        self.run(scenario)

    # The life of a store

    def test_a_cancelled_call_leaves_the_store_usable(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            await store.put(KIND, key, {"n": 0})
            for steps in range(5):
                calls = [asyncio.create_task(store.put(KIND, key, {"n": number})) for number in range(5)]
                for _ in range(steps):
                    await asyncio.sleep(0)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
                assert (await read(store, key))["n"] in range(5)
            await store.put(KIND, other := unique(), {"n": 7})
            assert await read(store, other) == {"n": 7}

        self.run(scenario)

    def test_closing_twice_is_no_error_and_a_later_call_reconnects(self) -> None:
        async def scenario(store: Store) -> None:
            key = unique()
            await store.put(KIND, key, {"n": 1})
            await store.close()
            await store.close()
            assert await read(store, key) == {"n": 1}
            await store.put(KIND, key, {"n": 2})
            assert await read(store, key) == {"n": 2}

        self.run(scenario)

    def test_a_store_that_was_never_used_can_be_closed(self) -> None:
        async def scenario(store: Store) -> None:
            await store.close()

        self.run(scenario)

    def test_a_local_store_serves_every_thread_and_never_suspends(self) -> None:
        store = self.make_store()
        if not store.limits.local:
            pytest.skip("the store is not local")
        key, failures = unique(), list[BaseException]()

        def work(name: int) -> None:
            try:
                for number in range(self.ROUNDS * 10):
                    unsuspended(store.add_member(KIND, key, f"{name} {number}"))
                    while True:
                        document = unsuspended(store.get(KIND, key))
                        count, expect = (document.value["count"], document.version) if document else (0, MISSING)
                        try:
                            unsuspended(store.put(KIND, key, {"count": count + 1}, expect=expect))
                            break
                        except Conflict:
                            continue
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        document = unsuspended(store.get(KIND, key))
        assert document is not None
        assert document.value == {"count": 4 * self.ROUNDS * 10}
        assert len(unsuspended(store.members(KIND, key))) == 4 * self.ROUNDS * 10
        unsuspended(store.close())

    async def refused(self, store: Store, key: str, expect: Expect) -> None:
        """Assert that a put is refused, tells what is there, and changes nothing."""
        before = await store.get(KIND, key)
        with pytest.raises(Conflict) as caught:
            await store.put(KIND, key, {"refused": True}, expect=expect)
        assert caught.value.current == before
        assert await store.get(KIND, key) == before


def unique() -> str:
    """A key that no other test has."""
    return f"t-{uuid.uuid4().hex}-"


def exact(value: Any) -> str:
    """Text that differs where ``==`` is too kind: 3 and 3.0, 1 and true, 0.0 and -0.0."""
    return json.dumps(value, sort_keys=True)


async def read(store: Store, key: str, kind: str = KIND) -> dict[str, Any]:
    """The value that must be there."""
    document = await store.get(kind, key)
    assert document is not None, f"no document under {key}"
    return dict(document.value)


async def listed(store: Store, prefix: str, *, limit: int = 100) -> list[str]:
    """Every key of KIND with the prefix, page by page."""
    keys: list[str] = []
    cursor: str | None = None
    while True:
        page = await store.list(KIND, prefix=prefix, limit=limit, cursor=cursor)
        assert len(page.items) <= limit
        keys += [key for key, _ in page.items]
        if page.cursor is None:
            return keys
        cursor = page.cursor


def unsuspended(call: Any) -> Any:
    """Run a coroutine that must end without ever waiting."""
    try:
        call.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the call suspended, though the store says that it is local")
