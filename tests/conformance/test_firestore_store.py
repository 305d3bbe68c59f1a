"""The Firestore store against the store conformance suite, on Google's emulator."""

from __future__ import annotations

import pytest

from cloudq.clock import ManualClock
from cloudq.testing.store import StoreConformance
from cloudq_gcp.firestore import FirestoreStore
from tests.gcp_servers import PROJECT, Emulator


class TestFirestoreStore(StoreConformance):
    TASKS = 12
    ROUNDS = 4

    @pytest.fixture(autouse=True)
    def _server(self, firestore: Emulator) -> None:
        pass

    def make_store(self) -> FirestoreStore:
        self.clock = ManualClock()
        return FirestoreStore(PROJECT, "conformance", clock=self.clock)

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
