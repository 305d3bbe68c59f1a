"""The SQS driver over boto3 in threads, as inside Lambda, against the broker conformance suite."""

from __future__ import annotations

import pytest

from cloudq.broker import Broker
from cloudq_aws.sqs import SQSBroker
from tests.conformance.test_sqs_broker import OnOurs, SQSBrokerConformance
from tests.localstack import OnLocalStack
from tests.servers import REGION


class WithoutTime:
    """Over this client; over the other one every server is waited for."""

    async def pass_time(self, seconds: float) -> None:
        pytest.skip("what needs time to pass is proved on ours over this client, and over aiobotocore on every server")


class OverBoto3(SQSBrokerConformance):
    async def make_broker(self) -> Broker:
        if self.polls:
            return SQSBroker(REGION, lease=12, wait=6, client="boto3")
        return SQSBroker(REGION, lease=2, wait=1, client="boto3")


@pytest.mark.parametrize("sqs_server", ["moto"], indirect=True)
class TestSQSBrokerOverBoto3(WithoutTime, OverBoto3):
    pass


class TestSQSBrokerOverBoto3OnOurs(OnOurs, OverBoto3):
    pass


class TestSQSBrokerOverBoto3OnLocalStack(OnLocalStack, WithoutTime, OverBoto3):
    pass
