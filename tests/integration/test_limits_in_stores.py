"""Limits hold where the store is a cloud's: turns and seats, with workers that ask at once."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from cloudq.clock import ManualClock
from cloudq.limits import Rate, Turns, sit
from cloudq.store import Store
from cloudq_aws.dynamodb import DynamoDBStore
from cloudq_gcp.firestore import FirestoreStore
from tests.gcp_servers import PROJECT, Emulator
from tests.servers import REGION, DynamoDBServer, unique

START = 1_000_000.0
WORKERS, EACH = 3, 6


async def check(store: Store, clock: ManualClock) -> None:
    granted: list[float] = []
    name = unique("limit")

    async def worker() -> None:
        turns = Turns()
        for _ in range(EACH):
            turn = await turns.take(store, name, Rate(10, 1.0), clock.time())
            assert turn is not None
            granted.append(turn)

    await asyncio.gather(*(worker() for _ in range(WORKERS)))
    granted.sort()
    assert all(later - sooner > 0.0999 for sooner, later in pairwise(granted))  # so at most ten in any second

    async def ask(id: str) -> bool:
        return await sit(store, f"{name}-seat", 2, id, now=clock.time(), until=clock.time() + 30) is not None

    taken = await asyncio.gather(*(ask(f"t{number}") for number in range(4)))
    assert 1 <= sum(taken) <= 2
    clock.advance(31)
    assert await ask("after a death")
    await store.close()


def test_they_hold_on_dynamodb(dynamodb: DynamoDBServer) -> None:
    clock = ManualClock(START)
    asyncio.run(check(DynamoDBStore(dynamodb.table, REGION, clock=clock), clock))


def test_they_hold_on_firestore(firestore: Emulator) -> None:
    clock = ManualClock(START)
    asyncio.run(check(FirestoreStore(PROJECT, unique("limits"), clock=clock), clock))
