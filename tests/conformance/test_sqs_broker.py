"""The SQS driver against the broker conformance suite, on every server that speaks SQS."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloudq.broker import Broker
from cloudq.clock import ManualClock
from cloudq.memory import MemoryBroker
from cloudq.testing import BrokerConformance
from cloudq_aws.server import serve_in_thread
from cloudq_aws.sqs import SQSBroker
from tests.localstack import OnLocalStack
from tests.servers import REGION, SQSServer, unique, use


class SQSBrokerConformance(BrokerConformance):
    exact = False  # a standard queue delivers at least once; moto too, when two receives look at a message at the same time

    @pytest.fixture(autouse=True)
    def _server(self, sqs: SQSServer, request: pytest.FixtureRequest) -> None:
        self.server = sqs
        # A lease is longer than a poll, so the tests that wait for a lease to end get a short one, and those that poll a long one.
        self.polls = "wait" in request.node.name

    async def make_broker(self) -> Broker:
        return SQSBroker(REGION, lease=12, wait=6) if self.polls else SQSBroker(REGION, lease=2, wait=1)

    async def make_queue(self, *, ordered: bool = False) -> str:
        name = unique() + (".fifo" if ordered else "")
        self.server.make_queue(name)
        return name


class OnOurs:
    """Takes a test class that uses ``sqs`` to our own server, on a clock that the test moves unless a request waits on the server."""

    @pytest.fixture
    def sqs(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SQSServer]:
        self.clock = None if "wait" in request.node.name else ManualClock()
        with serve_in_thread(MemoryBroker(clock=self.clock)) as serving:
            server = SQSServer("ours", serving.endpoint)
            use(server.env, monkeypatch)
            yield server
            server.boto3.close()

    async def pass_time(self, seconds: float) -> None:
        if self.clock is None:
            await super().pass_time(seconds)  # type: ignore[misc]
        else:
            self.clock.advance(seconds)


@pytest.mark.parametrize("sqs_server", ["moto"], indirect=True)
class TestSQSBroker(SQSBrokerConformance):
    pass


class TestSQSBrokerOnOurs(OnOurs, SQSBrokerConformance):
    pass


class TestSQSBrokerOnLocalStack(OnLocalStack, SQSBrokerConformance):
    pass
