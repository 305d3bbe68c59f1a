"""The SQS driver over boto3 in threads, as inside Lambda, against the broker conformance suite."""

from __future__ import annotations

import pytest

from cloudq.broker import Broker
from cloudq_aws.sqs import SQSBroker
from tests.conformance import test_sqs_broker
from tests.localstack import OnLocalStack
from tests.servers import REGION


class TestSQSBrokerOverBoto3(test_sqs_broker.TestSQSBroker):
    async def make_broker(self) -> Broker:
        if self.polls:
            return SQSBroker(REGION, lease=12, wait=6, client="boto3")
        return SQSBroker(REGION, lease=2, wait=1, client="boto3")


class TestSQSBrokerOverBoto3OnLocalStack(OnLocalStack, TestSQSBrokerOverBoto3):
    async def pass_time(self, seconds: float) -> None:
        pytest.skip("what needs time to pass is LocalStack's to prove, and it does so over the other client")
