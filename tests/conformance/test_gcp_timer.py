"""The Google timer against the timer conformance suite: stand-ins of Cloud Tasks and Cloud Scheduler fire to Google's Pub/Sub emulator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloudq.clock import ManualClock
from cloudq.testing import TimerConformance
from cloudq_gcp.naming import Naming
from cloudq_gcp.pubsub import PubSubBroker
from cloudq_gcp.timer import GoogleTimer
from tests.gcp_servers import PROJECT, PubSubServer
from tests.google_api import google_api
from tests.servers import unique


class TestGoogleTimer(TimerConformance):
    step = 60
    slack = 0.0

    @pytest.fixture(autouse=True, params=[0.0, 1.0], ids=["at-once", "late"])
    def _server(self, request: pytest.FixtureRequest, pubsub: PubSubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        self.server = pubsub
        self.clock = ManualClock(1_800_000_017.25)  # within a minute
        with google_api(pubsub.address, self.clock, late=request.param) as self.api:
            monkeypatch.setenv("CLOUD_TASKS_EMULATOR_HOST", self.api.address)
            monkeypatch.setenv("CLOUD_SCHEDULER_EMULATOR_HOST", self.api.address)
            yield

    async def make_broker(self) -> PubSubBroker:
        return PubSubBroker(Naming(project=PROJECT))

    async def make_queue(self) -> str:
        return self.server.make_queue(unique())

    async def make_timer(self) -> GoogleTimer:
        assert isinstance(self.broker, PubSubBroker)
        queue = unique("timer")
        self.api.make_queue(f"projects/{PROJECT}/locations/europe-west1/queues/{queue}")
        return GoogleTimer(
            PROJECT,
            "europe-west1",
            queue,
            service_account=f"tasks@{PROJECT}.iam.gserviceaccount.com",
            app="shop",
            broker=self.broker,
            clock=self.clock,
        )

    def now(self) -> float:
        return self.clock.time()

    async def pass_time(self, seconds: float) -> None:
        self.api.pass_time(seconds)
