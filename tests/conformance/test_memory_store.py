"""The memory store keeps the store contract, and its memory is bounded."""

from __future__ import annotations

import asyncio
import gc
from collections import OrderedDict

from cloudq.clock import ManualClock
from cloudq.memory.store import MemoryStore
from cloudq.testing.store import StoreConformance


class TestMemoryStore(StoreConformance):
    def make_store(self) -> MemoryStore:
        self.clock = ManualClock()
        return MemoryStore(self.clock)

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)


def test_expired_documents_and_sets_are_forgotten() -> None:
    async def scenario() -> int:
        clock = ManualClock()
        store = MemoryStore(clock)
        for number in range(20_000):
            await store.put("task", f"{number}", {"marker": "forgotten"}, ttl=1)
            await store.add_member("chord", f"{number}", "forgotten", ttl=1)
            clock.advance(0.001)
        gc.collect()
        return sum(isinstance(held, tuple) and len(held) == 2 and held[0] == {"forgotten"} for held in gc.get_objects())

    assert asyncio.run(scenario()) < 5_000


def test_any_mapping_is_stored_as_json_would_have_it() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        await store.put("task", "a", OrderedDict(pair=OrderedDict(x=1)))
        document = await store.get("task", "a")
        assert document is not None
        assert document.value == {"pair": {"x": 1}}
        assert type(document.value["pair"]) is dict

    asyncio.run(scenario())
