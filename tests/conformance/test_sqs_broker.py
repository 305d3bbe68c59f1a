"""The SQS driver against the broker conformance suite, on every server that speaks SQS."""

from __future__ import annotations

import pytest

from cloudq.broker import Broker
from cloudq.testing import BrokerConformance
from cloudq_aws.sqs import SQSBroker
from tests.localstack import OnLocalStack
from tests.servers import REGION, SQSServer, unique


class TestSQSBroker(BrokerConformance):
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


class TestSQSBrokerOnLocalStack(OnLocalStack, TestSQSBroker):
    pass
