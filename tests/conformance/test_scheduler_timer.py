"""The EventBridge Scheduler timer against the timer conformance suite: moto keeps schedules, a stand-in fires them to each SQS server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from cloudq.clock import ManualClock
from cloudq.testing import TimerConformance
from cloudq_aws.scheduler import EventBridgeTimer
from cloudq_aws.sqs import SQSBroker
from tests.localstack import OnLocalStack
from tests.schedule_firing import Firing
from tests.servers import REGION, SQSServer, aws_client, moto, unique

ROLE = "arn:aws:iam::123456789012:role/cloudq-scheduler"


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A plain client of moto's Scheduler."""
    with moto(tmp_path_factory.mktemp("scheduler")) as server:
        client = aws_client("scheduler", server.endpoint)
        try:
            yield client
        finally:
            client.close()


class EventBridgeTimerConformance(TimerConformance):
    step = 60
    slack = 0.0
    second: ClassVar[int]
    """When within its minute a schedule fires."""

    @pytest.fixture(autouse=True)
    def _server(self, sqs: SQSServer, scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = sqs
        self.scheduler = scheduler
        monkeypatch.setenv("AWS_ENDPOINT_URL_SCHEDULER", scheduler.meta.endpoint_url)

    async def make_broker(self) -> SQSBroker:
        self.clock = ManualClock(1_800_000_017.25)  # within a minute
        return SQSBroker(REGION)

    async def make_queue(self) -> str:
        name = unique()
        self.server.make_queue(name)
        return name

    async def make_timer(self) -> EventBridgeTimer:
        assert isinstance(self.broker, SQSBroker)
        group, dead_letter = unique("group"), await self.make_queue()
        self.scheduler.create_schedule_group(Name=group)
        self.firing = Firing(self.scheduler, self.server.boto3, self.clock, group, second=self.second)
        return EventBridgeTimer(group, REGION, role=ROLE, dead_letter=dead_letter, broker=self.broker, clock=self.clock)

    def now(self) -> float:
        return self.clock.time()

    async def pass_time(self, seconds: float) -> None:
        self.firing.pass_time(seconds)


@pytest.mark.parametrize("sqs_server", ["moto"], indirect=True)
class TestEventBridgeTimerAtOnce(EventBridgeTimerConformance):
    second = 0


@pytest.mark.parametrize("sqs_server", ["ours"], indirect=True)
class TestEventBridgeTimerLate(EventBridgeTimerConformance):
    second = 59


class TestEventBridgeTimerOnLocalStack(OnLocalStack, EventBridgeTimerConformance):
    """Here LocalStack keeps the schedules, and checks their expressions."""

    second = 59

    @pytest.fixture(name="scheduler")
    def _scheduler(self, localstack: SQSServer) -> Iterator[Any]:
        client = aws_client("scheduler", localstack.endpoint)
        try:
            yield client
        finally:
            client.close()
