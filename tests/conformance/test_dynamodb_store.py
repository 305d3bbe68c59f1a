"""The DynamoDB store against the store conformance suite, on every server that speaks DynamoDB."""

from __future__ import annotations

import pytest

from cloudq.clock import ManualClock
from cloudq.testing.store import StoreConformance
from cloudq_aws.dynamodb import DynamoDBStore
from tests.servers import REGION, DynamoDBServer


class TestDynamoDBStore(StoreConformance):
    TASKS = 12
    ROUNDS = 4

    @pytest.fixture(autouse=True)
    def _server(self, dynamodb: DynamoDBServer) -> None:
        self.table = dynamodb.table

    def make_store(self) -> DynamoDBStore:
        self.clock = ManualClock()
        return DynamoDBStore(self.table, REGION, clock=self.clock)

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
