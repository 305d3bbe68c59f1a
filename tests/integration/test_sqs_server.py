"""Our SQS server under the SDKs that people use: boto3, aiobotocore and AWS's JavaScript SDK."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.exceptions import HTTPClientError

from cloudq import CloudQ, adapters
from cloudq.broker import Delivery, Outgoing
from cloudq.clock import ManualClock
from cloudq.errors import ConfigError
from cloudq.memory.broker import DEFAULT, MemoryBroker
from cloudq.memory.lies import LyingBroker
from cloudq_aws.server import SQSServer, serve_in_thread
from cloudq_aws.sqs import SQSBroker
from cloudq_aws.sqs_protocol.queue import Queue
from tests.acceptance.ledger import Ledger
from tests.servers import AWS_ENV, REGION, free_port, missing, running, unique, use
from tests.servers import SQSServer as Client

URL = "http://127.0.0.1/000000000000/"
MIB = 1 << 20


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def server(clock: ManualClock) -> Iterator[SQSServer]:
    with serve_in_thread(clock=clock) as it:
        yield it


@pytest.fixture
def sqs(server: SQSServer) -> Iterator[Any]:
    with client_of(server) as it:
        yield it


@contextmanager
def client_of(server: SQSServer) -> Iterator[Any]:
    """A boto3 client of the server that repeats nothing."""
    import boto3
    from botocore.config import Config

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    config = Config(retries={"total_max_attempts": 1}, parameter_validation=False)
    client = boto3.client("sqs", endpoint_url=server.endpoint, region_name=REGION, config=config, **keys)
    try:
        yield client
    finally:
        client.close()


def receive(sqs: Any, url: str, **parameters: Any) -> list[dict[str, Any]]:
    """What can be received now, up to ten, with all that is known of it."""
    parameters = {"MaxNumberOfMessages": 10, "AttributeNames": ["All"], "MessageAttributeNames": ["All"], **parameters}
    found: list[dict[str, Any]] = sqs.receive_message(QueueUrl=url, **parameters).get("Messages", [])
    return found


def receive_one(sqs: Any, url: str, **parameters: Any) -> dict[str, Any]:
    (message,) = receive(sqs, url, **parameters)
    return message


def batch(*bodies: str, **parameters: Any) -> list[dict[str, Any]]:
    return [{"Id": str(index), "MessageBody": body, **parameters} for index, body in enumerate(bodies)]


def fifo(sqs: Any, **attributes: str) -> str:
    return str(sqs.create_queue(QueueName=f"{unique()}.fifo", Attributes={"FifoQueue": "true", **attributes})["QueueUrl"])


def standard(sqs: Any, **attributes: str) -> str:
    return str(sqs.create_queue(QueueName=unique(), Attributes=attributes)["QueueUrl"])


def arn_of(sqs: Any, url: str) -> str:
    return str(sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"])


def counts(sqs: Any, url: str) -> tuple[int, int, int]:
    """Messages that can be received, in flight and delayed."""
    names = [f"ApproximateNumberOfMessages{which}" for which in ("", "NotVisible", "Delayed")]
    found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return int(found[names[0]]), int(found[names[1]]), int(found[names[2]])


def with_dead_letters(sqs: Any, receives: int) -> tuple[str, str]:
    """URLs of a queue and of its dead-letter queue."""
    dead = standard(sqs)
    policy = json.dumps({"deadLetterTargetArn": arn_of(sqs, dead), "maxReceiveCount": str(receives)})
    return standard(sqs, RedrivePolicy=policy), dead


# Messages.


def test_a_message_comes_as_it_was_sent_with_all_that_sqs_tells(sqs: Any, clock: ManualClock) -> None:
    url = standard(sqs)
    attributes = {
        "text": {"DataType": "String.custom", "StringValue": "grün"},
        "count": {"DataType": "Number", "StringValue": "-1.5e3"},
        "bytes": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
    }
    trace = {"AWSTraceHeader": {"DataType": "String", "StringValue": "Root=1-5759e988-bd862e3fe1be46a994272793"}}
    sent = sqs.send_message(QueueUrl=url, MessageBody="Grüße \U0001f600", MessageAttributes=attributes, MessageSystemAttributes=trace)
    then = clock.time()
    clock.advance(3)
    message = receive_one(sqs, url)
    assert message["Body"] == "Grüße \U0001f600"
    assert message["MessageId"] == sent["MessageId"]
    assert message["MD5OfBody"] == sent["MD5OfMessageBody"]
    assert message["MessageAttributes"] == attributes
    assert message["MD5OfMessageAttributes"] == sent["MD5OfMessageAttributes"]
    assert message["Attributes"] == {
        "ApproximateFirstReceiveTimestamp": str(int(then + 3) * 1000),
        "ApproximateReceiveCount": "1",
        "AWSTraceHeader": "Root=1-5759e988-bd862e3fe1be46a994272793",
        "SenderId": "000000000000",
        "SentTimestamp": str(int(then) * 1000),
    }
    clock.advance(31)
    again = receive_one(sqs, url)["Attributes"]
    assert (again["ApproximateReceiveCount"], again["ApproximateFirstReceiveTimestamp"]) == ("2", str(int(then + 3) * 1000))


def test_checksums_are_those_of_aws(sqs: Any) -> None:
    attributes = {"timestamp": {"DataType": "Number", "StringValue": "1493147359900"}}
    sent = sqs.send_message(QueueUrl=standard(sqs), MessageBody="derp", MessageAttributes=attributes)
    assert sent["MD5OfMessageBody"] == "58fd9edd83341c29f1aebba81c31e257"
    assert sent["MD5OfMessageAttributes"] == "235c5c510d26fb653d073faed50ae77c"


def test_only_the_attributes_asked_for_come(sqs: Any) -> None:
    url = standard(sqs, VisibilityTimeout="0")
    named = {name: {"DataType": "String", "StringValue": "x"} for name in ("a", "b.one", "b.two")}
    sqs.send_message(QueueUrl=url, MessageBody="x", MessageAttributes=named)
    bare = sqs.receive_message(QueueUrl=url)["Messages"][0]
    assert not {"Attributes", "MessageAttributes", "MD5OfMessageAttributes"} & bare.keys()
    some = receive_one(sqs, url, AttributeNames=["SenderId"], MessageAttributeNames=["b.*"])
    assert some["Attributes"].keys() == {"SenderId"}
    assert some["MessageAttributes"].keys() == {"b.one", "b.two"}
    assert receive_one(sqs, url, MessageAttributeNames=["a", "c"])["MessageAttributes"].keys() == {"a"}


def test_a_batch_tells_of_each_entry_and_takes_the_good_ones(sqs: Any) -> None:
    url = standard(sqs, MaximumMessageSize="1024")
    entries = [
        *batch("good"),
        {"Id": "chars", "MessageBody": "\x00"},
        {"Id": "empty", "MessageBody": ""},
        {"Id": "long", "MessageBody": "é" * 513},
        {"Id": "late", "MessageBody": "x", "DelaySeconds": 901},
        {"Id": "dedup", "MessageBody": "x", "MessageDeduplicationId": "d"},
        {"Id": "group", "MessageBody": "x", "MessageGroupId": "a b"},
        {"Id": "name", "MessageBody": "x", "MessageAttributes": {"AWS.x": {"DataType": "String", "StringValue": "x"}}},
        {"Id": "type", "MessageBody": "x", "MessageAttributes": {"x": {"DataType": "Text", "StringValue": "x"}}},
        {"Id": "value", "MessageBody": "x", "MessageAttributes": {"x": {"DataType": "String", "StringValue": ""}}},
    ]
    answer = sqs.send_message_batch(QueueUrl=url, Entries=entries)
    assert [entry["Id"] for entry in answer["Successful"]] == ["0"]
    assert {entry["Id"]: entry["Code"] for entry in answer["Failed"]} == {
        "chars": "InvalidMessageContents",
        "empty": "MissingParameter",
    } | dict.fromkeys(("long", "late", "dedup", "group", "name", "type", "value"), "InvalidParameterValue")
    assert all(entry["SenderFault"] for entry in answer["Failed"])
    assert [message["Body"] for message in receive(sqs, url)] == ["good"]


def test_a_message_and_a_batch_hold_a_mebibyte_and_no_byte_more(sqs: Any) -> None:
    url = standard(sqs)
    sqs.send_message(QueueUrl=url, MessageBody="x" * MIB)
    with pytest.raises(sqs.exceptions.ClientError, match="InvalidParameterValue"):
        sqs.send_message(QueueUrl=url, MessageBody="x" * (MIB + 1))
    with pytest.raises(sqs.exceptions.ClientError, match="InvalidParameterValue"):
        sqs.send_message(QueueUrl=url, MessageBody="x" * MIB, MessageAttributes={"a": {"DataType": "String", "StringValue": "x"}})
    half = "\u00e9" * (MIB // 4)
    assert len(sqs.send_message_batch(QueueUrl=url, Entries=batch(half, half))["Successful"]) == 2
    with pytest.raises(sqs.exceptions.BatchRequestTooLong):
        sqs.send_message_batch(QueueUrl=url, Entries=batch(half, half + "x"))
    assert counts(sqs, url) == (3, 0, 0)


def test_delays_are_the_messages_or_the_queues(sqs: Any, clock: ManualClock) -> None:
    url = standard(sqs, DelaySeconds="10")
    sqs.send_message_batch(QueueUrl=url, Entries=[*batch("queue"), {"Id": "own", "MessageBody": "own", "DelaySeconds": 0}])
    assert [message["Body"] for message in receive(sqs, url)] == ["own"]
    assert counts(sqs, url) == (0, 1, 1)
    clock.advance(10)
    assert [message["Body"] for message in receive(sqs, url)] == ["queue"]


def test_a_poll_waits_for_a_message_of_whoever_sends_it(server: SQSServer, sqs: Any) -> None:
    url = standard(sqs, ReceiveMessageWaitTimeSeconds="20")
    found: list[str] = []
    poll = threading.Thread(target=lambda: found.append(receive_one(sqs, url)["Body"]))
    poll.start()
    while not server.requests["ReceiveMessage"]:
        poll.join(0.01)
    asyncio.run(server.broker.send(url.rpartition("/")[2], [Outgoing(body="from this process")]))
    poll.join(60)
    assert found == ["from this process"]


def test_a_poll_ends_empty_when_its_time_is_over(server: SQSServer, sqs: Any, clock: ManualClock) -> None:
    url = standard(sqs)
    found: list[list[Any]] = []
    poll = threading.Thread(target=lambda: found.append(receive(sqs, url, WaitTimeSeconds=20)))
    poll.start()
    while clock.next_alarm() is None:
        poll.join(0.01)
    clock.advance(19)
    assert not found
    clock.advance(1)
    poll.join(60)
    assert found == [[]]


def test_what_one_side_sends_the_other_receives(server: SQSServer, sqs: Any) -> None:
    server.broker.create_queue("shared")
    url = sqs.get_queue_url(QueueName="shared")["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="by SQS", MessageAttributes={"a": {"DataType": "String", "StringValue": "1"}})

    async def by_broker() -> None:
        (delivery,) = await server.broker.receive("shared", max_messages=1, wait=0)
        assert (delivery.body, dict(delivery.attributes)) == ("by SQS", {"a": "1"})
        await server.broker.ack([delivery])
        await server.broker.send("shared", [Outgoing(body="by the broker", group="g", attributes={"b": "2"})])

    asyncio.run(by_broker())
    message = receive_one(sqs, url)
    assert (message["Body"], message["MessageAttributes"]["b"]["StringValue"]) == ("by the broker", "2")
    assert (message["Attributes"]["MessageGroupId"], message["Attributes"]["ApproximateReceiveCount"]) == ("g", "1")
    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    assert counts(sqs, url) == (0, 0, 0)


# Leases.


@pytest.mark.parametrize("kind", [standard, fifo])
def test_a_stale_receipt_deletes_nothing(sqs: Any, clock: ManualClock, kind: Any) -> None:
    url = kind(sqs)
    group = {"MessageGroupId": "g", "MessageDeduplicationId": "d"} if kind is fifo else {}
    sqs.send_message(QueueUrl=url, MessageBody="x", **group)
    stale = receive_one(sqs, url)["ReceiptHandle"]
    clock.advance(31)
    for received in (False, True):
        if received:
            held = receive_one(sqs, url)["ReceiptHandle"]
            assert held != stale
        if kind is fifo:
            with pytest.raises(sqs.exceptions.ClientError, match=r"InvalidParameterValue.*expired"):
                sqs.delete_message(QueueUrl=url, ReceiptHandle=stale)
        else:
            sqs.delete_message(QueueUrl=url, ReceiptHandle=stale)
        with pytest.raises(sqs.exceptions.MessageNotInflight):
            sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=stale, VisibilityTimeout=5)
        assert counts(sqs, url) == ((0, 1, 0) if received else (1, 0, 0))


@pytest.mark.parametrize("kind", [standard, fifo])
def test_deleting_twice_is_no_error(sqs: Any, kind: Any) -> None:
    url = kind(sqs)
    sqs.send_message(QueueUrl=url, MessageBody="x", **({"MessageGroupId": "g", "MessageDeduplicationId": "d"} if kind is fifo else {}))
    handle = receive_one(sqs, url)["ReceiptHandle"]
    for _ in range(2):
        sqs.delete_message(QueueUrl=url, ReceiptHandle=handle)
    assert counts(sqs, url) == (0, 0, 0)


def test_visibility_is_the_receives_then_the_queues_and_can_be_changed(sqs: Any, clock: ManualClock) -> None:
    url = standard(sqs, VisibilityTimeout="60")
    sqs.send_message(QueueUrl=url, MessageBody="x")
    receive_one(sqs, url, VisibilityTimeout=5)
    clock.advance(5)
    handle = receive_one(sqs, url)["ReceiptHandle"]
    clock.advance(59)
    assert receive(sqs, url) == []
    sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=100)
    clock.advance(99)
    assert receive(sqs, url) == []
    sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=0)
    assert receive_one(sqs, url)["Attributes"]["ApproximateReceiveCount"] == "3"


def test_no_message_is_held_for_more_than_twelve_hours_in_all(sqs: Any, clock: ManualClock) -> None:
    url = standard(sqs)
    sqs.send_message(QueueUrl=url, MessageBody="x")
    handle = receive_one(sqs, url)["ReceiptHandle"]
    clock.advance(10)
    with pytest.raises(sqs.exceptions.ClientError, match=r"InvalidParameterValue.*43200"):
        sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=43_191)
    sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=43_190)


def test_batches_of_deletes_and_visibilities_tell_of_each_entry(sqs: Any, clock: ManualClock) -> None:
    url = standard(sqs)
    sqs.send_message_batch(QueueUrl=url, Entries=batch("a", "b", "c"))
    a, b, c = (message["ReceiptHandle"] for message in receive(sqs, url))
    changes = [(a, 0), (b, 60), (c, 43_201), ("garbage", 1)]
    answer = sqs.change_message_visibility_batch(
        QueueUrl=url,
        Entries=[{"Id": str(n), "ReceiptHandle": handle, "VisibilityTimeout": to} for n, (handle, to) in enumerate(changes)],
    )
    assert [entry["Id"] for entry in answer["Successful"]] == ["0", "1"]
    assert [(entry["Id"], entry["Code"]) for entry in answer["Failed"]] == [("2", "InvalidParameterValue"), ("3", "ReceiptHandleIsInvalid")]
    clock.advance(31)
    assert counts(sqs, url) == (2, 1, 0)
    answer = sqs.delete_message_batch(QueueUrl=url, Entries=[{"Id": str(n), "ReceiptHandle": h} for n, h in enumerate([a, b, "garbage"])])
    assert [entry["Id"] for entry in answer["Successful"]] == ["0", "1"]
    assert [entry["Code"] for entry in answer["Failed"]] == ["ReceiptHandleIsInvalid"]
    assert counts(sqs, url) == (2, 0, 0)


def test_receipt_handles_of_ended_leases_are_not_kept_for_ever() -> None:
    queue = Queue("q", lease=1, now=0)
    for now in range(5000):
        queue.hold(Delivery(queue="q", body="x", receipt=now, lease_until=now + 1), now)
    assert len(queue.held) <= 1000


def test_messages_that_are_given_back_as_they_are_received_come_again_and_again(sqs: Any) -> None:
    url = standard(sqs, VisibilityTimeout="0")
    sqs.send_message_batch(QueueUrl=url, Entries=batch("a", "b", "c"))
    for _ in range(340):  # more than a thousand handles, each of them dead at once
        assert len(sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]) == 3


# Ordered queues.


def test_a_fifo_queue_keeps_the_order_of_a_group_and_numbers_its_messages(sqs: Any) -> None:
    url = fifo(sqs)
    entries = [{**entry, "MessageGroupId": "g", "MessageDeduplicationId": f"d{entry['Id']}"} for entry in batch("1", "2", "3")]
    sent = sqs.send_message_batch(QueueUrl=url, Entries=entries)["Successful"]
    numbers = [entry["SequenceNumber"] for entry in sent]
    assert numbers == sorted(set(numbers))
    assert {len(each) for each in numbers} == {20}
    first = receive_one(sqs, url, MaxNumberOfMessages=1)
    assert (first["Body"], first["Attributes"]["MessageGroupId"], first["Attributes"]["MessageDeduplicationId"]) == ("1", "g", "d0")
    assert first["Attributes"]["SequenceNumber"] == numbers[0]
    assert receive(sqs, url) == []
    sqs.delete_message(QueueUrl=url, ReceiptHandle=first["ReceiptHandle"])
    assert [message["Body"] for message in receive(sqs, url)] == ["2", "3"]


def test_a_repeated_message_is_taken_once_in_five_minutes_and_answered_alike(sqs: Any, clock: ManualClock) -> None:
    url = fifo(sqs, ContentBasedDeduplication="true")
    first = sqs.send_message(QueueUrl=url, MessageBody="x", MessageGroupId="g")
    again = sqs.send_message(QueueUrl=url, MessageBody="x", MessageGroupId="other")
    assert (again["MessageId"], again["SequenceNumber"]) == (first["MessageId"], first["SequenceNumber"])
    twice = [{**entry, "MessageGroupId": "g", "MessageDeduplicationId": "same"} for entry in batch("y", "z")]
    assert len({entry["MessageId"] for entry in sqs.send_message_batch(QueueUrl=url, Entries=twice)["Successful"]}) == 1
    assert counts(sqs, url) == (2, 0, 0)
    clock.advance(301)
    assert sqs.send_message(QueueUrl=url, MessageBody="x", MessageGroupId="g")["MessageId"] != first["MessageId"]
    assert counts(sqs, url) == (3, 0, 0)


def test_with_the_scope_of_a_group_another_group_may_repeat(sqs: Any) -> None:
    url = fifo(sqs, DeduplicationScope="messageGroup", FifoThroughputLimit="perMessageGroupId")
    for group in ("a", "b", "a"):
        sqs.send_message(QueueUrl=url, MessageBody="x", MessageGroupId=group, MessageDeduplicationId="d")
    assert counts(sqs, url) == (2, 0, 0)


def test_a_receive_that_is_repeated_gets_the_same_messages_until_one_is_settled(sqs: Any) -> None:
    url = fifo(sqs, ContentBasedDeduplication="true")
    for group in "ab":
        sqs.send_message(QueueUrl=url, MessageBody=group, MessageGroupId=group)
    first = receive(sqs, url, ReceiveRequestAttemptId="once")
    assert [message["Body"] for message in first] == ["a", "b"]
    assert receive(sqs, url, ReceiveRequestAttemptId="another") == []
    assert [message["ReceiptHandle"] for message in receive(sqs, url, ReceiveRequestAttemptId="once")] == [
        message["ReceiptHandle"] for message in first
    ]
    sqs.delete_message(QueueUrl=url, ReceiptHandle=first[0]["ReceiptHandle"])
    assert receive(sqs, url, ReceiveRequestAttemptId="once") == []


def test_a_group_on_a_standard_queue_is_a_tenant_and_orders_nothing(sqs: Any) -> None:
    url = standard(sqs)
    sqs.send_message_batch(QueueUrl=url, Entries=batch("1", "2", MessageGroupId="tenant"))
    assert receive_one(sqs, url, MaxNumberOfMessages=1)["Attributes"]["MessageGroupId"] == "tenant"
    assert receive_one(sqs, url)["Body"] == "2"


def test_a_fifo_queue_may_delay_all_its_messages(sqs: Any, clock: ManualClock) -> None:
    url = fifo(sqs, DelaySeconds="5", ContentBasedDeduplication="true")
    sqs.send_message(QueueUrl=url, MessageBody="1", MessageGroupId="g")
    clock.advance(1)
    sqs.send_message(QueueUrl=url, MessageBody="2", MessageGroupId="g")
    assert receive(sqs, url) == []
    clock.advance(5)
    assert [message["Body"] for message in receive(sqs, url)] == ["1", "2"]


# Dead letters.


def test_after_its_receives_a_message_is_a_dead_letter_and_can_be_moved_back(sqs: Any, clock: ManualClock) -> None:
    url, dead = with_dead_letters(sqs, 2)
    sqs.send_message(QueueUrl=url, MessageBody="x", MessageAttributes={"a": {"DataType": "Number", "StringValue": "1"}})
    for _ in range(2):
        assert len(receive(sqs, url)) == 1
        clock.advance(31)
    assert receive(sqs, url) == []
    assert receive_one(sqs, dead, VisibilityTimeout=0)["Attributes"]["DeadLetterQueueSourceArn"] == arn_of(sqs, url)
    assert sqs.list_dead_letter_source_queues(QueueUrl=dead)["queueUrls"] == [url]
    assert sqs.start_message_move_task(SourceArn=arn_of(sqs, dead))["TaskHandle"]
    (task,) = sqs.list_message_move_tasks(SourceArn=arn_of(sqs, dead))["Results"]
    assert (task["Status"], task["ApproximateNumberOfMessagesMoved"]) == ("COMPLETED", 1)
    back = receive_one(sqs, url)
    assert (back["Body"], back["MessageAttributes"]["a"]["StringValue"]) == ("x", "1")
    assert back["Attributes"]["ApproximateReceiveCount"] == "1"
    assert counts(sqs, dead) == (0, 0, 0)


def test_what_was_sent_to_a_dead_letter_queue_moves_only_where_it_is_told_to(sqs: Any) -> None:
    url, dead = with_dead_letters(sqs, 2)
    sqs.send_message_batch(QueueUrl=dead, Entries=batch("a", "b"))
    sqs.start_message_move_task(SourceArn=arn_of(sqs, dead))
    (task,) = sqs.list_message_move_tasks(SourceArn=arn_of(sqs, dead))["Results"]
    assert (task["Status"], task["FailureReason"]) == ("FAILED", "CouldNotDetermineMessageSource")
    assert counts(sqs, dead) == (2, 0, 0)
    sqs.start_message_move_task(SourceArn=arn_of(sqs, dead), DestinationArn=arn_of(sqs, url))
    assert [task["Status"] for task in sqs.list_message_move_tasks(SourceArn=arn_of(sqs, dead), MaxResults=10)["Results"]] == [
        "COMPLETED",
        "FAILED",
    ]
    assert sorted(message["Body"] for message in receive(sqs, url)) == ["a", "b"]


def test_only_a_dead_letter_queue_can_be_moved_from(sqs: Any) -> None:
    url, dead = with_dead_letters(sqs, 2)
    with pytest.raises(sqs.exceptions.ClientError, match="InvalidParameterValue"):
        sqs.start_message_move_task(SourceArn=arn_of(sqs, url))
    with pytest.raises(sqs.exceptions.ResourceNotFoundException):
        sqs.start_message_move_task(SourceArn=arn_of(sqs, dead) + "x")


def test_the_redrive_policy_is_the_brokers_and_can_be_taken_away(server: SQSServer, sqs: Any) -> None:
    server.broker.create_queue("q", dead_letter="q-dlq", max_receives=3)
    url = sqs.get_queue_url(QueueName="q")["QueueUrl"]
    asked = {"QueueUrl": url, "AttributeNames": ["RedrivePolicy"]}
    policy = json.loads(sqs.get_queue_attributes(**asked)["Attributes"]["RedrivePolicy"])
    assert policy == {"deadLetterTargetArn": f"arn:aws:sqs:{REGION}:000000000000:q-dlq", "maxReceiveCount": 3}
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": ""})
    assert "Attributes" not in sqs.get_queue_attributes(**asked)
    assert server.broker.redrive("q") is None


# Queues.


def test_a_queue_is_made_found_listed_tagged_purged_and_deleted(sqs: Any, clock: ManualClock) -> None:
    names = sorted(unique("life") for _ in range(3))
    urls = [sqs.create_queue(QueueName=name, tags={"team": "a"})["QueueUrl"] for name in names]
    assert sqs.get_queue_url(QueueName=names[0])["QueueUrl"] == urls[0]
    page = sqs.list_queues(QueueNamePrefix="life-", MaxResults=2)
    rest = sqs.list_queues(QueueNamePrefix="life-", MaxResults=2, NextToken=page["NextToken"])
    assert page["QueueUrls"] + rest["QueueUrls"] == urls
    assert "NextToken" not in rest
    sqs.tag_queue(QueueUrl=urls[0], Tags={"cost": "1"})
    sqs.untag_queue(QueueUrl=urls[0], TagKeys=["team"])
    assert sqs.list_queue_tags(QueueUrl=urls[0])["Tags"] == {"cost": "1"}
    sqs.send_message_batch(QueueUrl=urls[0], Entries=[*batch("a", "b"), {"Id": "c", "MessageBody": "c", "DelaySeconds": 9}])
    held = receive_one(sqs, urls[0], MaxNumberOfMessages=1)["ReceiptHandle"]
    sqs.purge_queue(QueueUrl=urls[0])
    assert counts(sqs, urls[0]) == (0, 0, 0)
    sqs.delete_message(QueueUrl=urls[0], ReceiptHandle=held)
    with pytest.raises(sqs.exceptions.PurgeQueueInProgress):
        sqs.purge_queue(QueueUrl=urls[0])
    clock.advance(60)
    sqs.purge_queue(QueueUrl=urls[0])
    sqs.delete_queue(QueueUrl=urls[0])
    with pytest.raises(sqs.exceptions.QueueDoesNotExist):
        sqs.get_queue_url(QueueName=names[0])
    with pytest.raises(sqs.exceptions.QueueDoesNotExist):
        sqs.send_message(QueueUrl=urls[0], MessageBody="x")


def test_a_purge_leaves_an_ordered_queue_usable(sqs: Any) -> None:
    url = fifo(sqs, ContentBasedDeduplication="true")
    sqs.send_message(QueueUrl=url, MessageBody="1", MessageGroupId="g")
    held = receive_one(sqs, url)["ReceiptHandle"]
    sqs.purge_queue(QueueUrl=url)
    sqs.send_message(QueueUrl=url, MessageBody="2", MessageGroupId="g")
    sqs.delete_message(QueueUrl=url, ReceiptHandle=held)
    assert receive_one(sqs, url)["Body"] == "2"


def test_deleting_a_queue_ends_the_polls_on_it(server: SQSServer, sqs: Any, clock: ManualClock) -> None:
    url = standard(sqs)
    found: list[type[Exception]] = []

    def poll() -> None:
        with pytest.raises(sqs.exceptions.QueueDoesNotExist) as raised:
            receive(sqs, url, WaitTimeSeconds=20)
        found.append(raised.type)

    polls = threading.Thread(target=poll)
    polls.start()
    while clock.next_alarm() is None:
        polls.join(0.01)
    sqs.delete_queue(QueueUrl=url)
    polls.join(60)
    assert found == [sqs.exceptions.QueueDoesNotExist]


def test_creating_a_queue_again_is_the_same_queue_only_with_the_same_attributes(sqs: Any) -> None:
    name, dead = unique(), standard(sqs)
    policy = json.dumps({"deadLetterTargetArn": arn_of(sqs, dead), "maxReceiveCount": 3})
    attributes = {"VisibilityTimeout": "5", "RedrivePolicy": policy}
    url = sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
    assert sqs.create_queue(QueueName=name, Attributes={**attributes, "DelaySeconds": "0"})["QueueUrl"] == url
    assert sqs.create_queue(QueueName=name)["QueueUrl"] == url
    with pytest.raises(sqs.exceptions.QueueNameExists):
        sqs.create_queue(QueueName=name, Attributes={"VisibilityTimeout": "6"})


def test_attributes_are_set_read_and_checked(sqs: Any) -> None:
    url = standard(sqs)
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "7", "Policy": "{}"})
    found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert (found["VisibilityTimeout"], found["Policy"], found["MaximumMessageSize"]) == ("7", "{}", str(MIB))
    assert found["QueueArn"] == f"arn:aws:sqs:{REGION}:000000000000:{url.rpartition('/')[2]}"
    assert sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["DelaySeconds"])["Attributes"] == {"DelaySeconds": "0"}
    with pytest.raises(sqs.exceptions.InvalidAttributeName):
        sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["Colour"])
    for wrong in ({"Colour": "1"}, {"FifoQueue": "true"}, {"ContentBasedDeduplication": "true"}):
        with pytest.raises(sqs.exceptions.InvalidAttributeName):
            sqs.set_queue_attributes(QueueUrl=url, Attributes=wrong)
    for wrong in (
        {"VisibilityTimeout": "43201"},
        {"DelaySeconds": "901"},
        {"MaximumMessageSize": str(MIB + 1)},
        {"ReceiveMessageWaitTimeSeconds": "-1"},
        {"SqsManagedSseEnabled": "yes"},
    ):
        with pytest.raises(sqs.exceptions.InvalidAttributeValue):
            sqs.set_queue_attributes(QueueUrl=url, Attributes=wrong)
    for policy in ("{", '{"maxReceiveCount": 1}', json.dumps({"deadLetterTargetArn": arn_of(sqs, url) + "x", "maxReceiveCount": 1})):
        with pytest.raises(sqs.exceptions.ClientError, match="InvalidParameterValue"):
            sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": policy})


# Errors.

ID = {"Id": "a", "ReceiptHandle": "x"}
LETTER = {"Id": "a", "MessageBody": "x"}


@pytest.mark.parametrize(
    ("action", "parameters", "name", "code"),
    [
        ("get_queue_url", {"QueueName": "none"}, "QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue"),
        ("send_message", {"QueueUrl": URL + "none", "MessageBody": "x"}, "QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue"),
        ("send_message", {"MessageBody": "\ufffe"}, "InvalidMessageContents", "InvalidMessageContents"),
        ("send_message", {"MessageBody": ""}, None, "MissingParameter"),
        ("send_message", {"MessageBody": "x", "DelaySeconds": 901}, None, "InvalidParameterValue"),
        ("send_message", {"MessageBody": "x", "DelaySeconds": "soon"}, None, "SerializationException"),
        ("send_message_batch", {"Entries": []}, "EmptyBatchRequest", "AWS.SimpleQueueService.EmptyBatchRequest"),
        (
            "send_message_batch",
            {"Entries": batch(*"abcdefghijk")},
            "TooManyEntriesInBatchRequest",
            "AWS.SimpleQueueService.TooManyEntriesInBatchRequest",
        ),
        (
            "send_message_batch",
            {"Entries": [LETTER, LETTER]},
            "BatchEntryIdsNotDistinct",
            "AWS.SimpleQueueService.BatchEntryIdsNotDistinct",
        ),
        ("send_message_batch", {"Entries": [{**LETTER, "Id": "a b"}]}, "InvalidBatchEntryId", "AWS.SimpleQueueService.InvalidBatchEntryId"),
        ("delete_message_batch", {"Entries": [ID, ID]}, "BatchEntryIdsNotDistinct", "AWS.SimpleQueueService.BatchEntryIdsNotDistinct"),
        ("change_message_visibility_batch", {"Entries": []}, "EmptyBatchRequest", "AWS.SimpleQueueService.EmptyBatchRequest"),
        ("delete_message", {"ReceiptHandle": "garbage"}, "ReceiptHandleIsInvalid", "ReceiptHandleIsInvalid"),
        ("delete_message", {}, None, "MissingParameter"),
        (
            "change_message_visibility",
            {"ReceiptHandle": "garbage", "VisibilityTimeout": 1},
            "ReceiptHandleIsInvalid",
            "ReceiptHandleIsInvalid",
        ),
        ("receive_message", {"MaxNumberOfMessages": 11}, None, "InvalidParameterValue"),
        ("receive_message", {"MaxNumberOfMessages": 0}, None, "InvalidParameterValue"),
        ("receive_message", {"WaitTimeSeconds": 21}, None, "InvalidParameterValue"),
        ("receive_message", {"VisibilityTimeout": 43_201}, None, "InvalidParameterValue"),
        ("create_queue", {"QueueName": "a.b"}, None, "InvalidParameterValue"),
        ("create_queue", {"QueueName": "a" * 81}, None, "InvalidParameterValue"),
        ("create_queue", {"QueueName": "a.fifo"}, None, "InvalidParameterValue"),
        ("create_queue", {"QueueName": "a", "Attributes": {"FifoQueue": "false"}}, None, "InvalidParameterValue"),
        ("add_permission", {"Label": "x", "AWSAccountIds": [], "Actions": []}, None, "UnknownOperationException"),
    ],
)
def test_an_error_has_the_code_of_aws(sqs: Any, action: str, parameters: Mapping[str, Any], name: str | None, code: str) -> None:
    where = {} if "QueueName" in parameters else {"QueueUrl": standard(sqs)}
    with pytest.raises(sqs.exceptions.ClientError) as raised:
        getattr(sqs, action)(**{**where, **parameters})
    assert raised.value.response["Error"]["Code"] == code
    assert raised.value.response["Error"]["Message"]
    assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    if name is not None:
        assert type(raised.value) is getattr(sqs.exceptions, name)


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"MessageDeduplicationId": "d"}, "MissingParameter"),
        ({"MessageGroupId": "g"}, "InvalidParameterValue"),
        ({"MessageGroupId": "g", "MessageDeduplicationId": "d", "DelaySeconds": 1}, "InvalidParameterValue"),
        ({"MessageGroupId": "g" * 129, "MessageDeduplicationId": "d"}, "InvalidParameterValue"),
    ],
)
def test_a_fifo_queue_takes_no_message_without_group_and_id_or_with_a_delay(sqs: Any, parameters: Mapping[str, Any], code: str) -> None:
    with pytest.raises(sqs.exceptions.ClientError, match=code):
        sqs.send_message(QueueUrl=fifo(sqs), MessageBody="x", **parameters)


def test_ten_attributes_are_taken_and_eleven_are_not(sqs: Any) -> None:
    named = {f"a{number}": {"DataType": "String", "StringValue": "x"} for number in range(11)}
    url = standard(sqs)
    with pytest.raises(sqs.exceptions.ClientError, match="InvalidParameterValue"):
        sqs.send_message(QueueUrl=url, MessageBody="x", MessageAttributes=named)
    del named["a0"]
    sqs.send_message(QueueUrl=url, MessageBody="x", MessageAttributes=named)


def test_a_receipt_handle_is_for_its_own_queue(sqs: Any) -> None:
    one, other = standard(sqs), standard(sqs)
    sqs.send_message(QueueUrl=one, MessageBody="x")
    with pytest.raises(sqs.exceptions.ReceiptHandleIsInvalid):
        sqs.delete_message(QueueUrl=other, ReceiptHandle=receive_one(sqs, one)["ReceiptHandle"])


# The server.


def ask(server: SQSServer, path: str = "/", body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON of a plain HTTP request."""
    request = urllib.request.Request(server.endpoint + path, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_what_is_no_request_of_sqs_is_refused_with_the_reason(server: SQSServer) -> None:
    target = {"X-Amz-Target": "AmazonSQS.ListQueues"}
    assert ask(server, "/_cloudq/health") == (200, {"status": "ok"})
    assert ask(server)[0] == 400
    assert ask(server, body=b"Action=ListQueues")[1]["__type"] == "com.amazonaws.sqs#UnsupportedOperation"
    assert ask(server, body=b"{", **target)[1]["__type"] == "com.amazonaws.sqs#SerializationException"
    assert ask(server, body=b"[]", **target)[1]["__type"] == "com.amazonaws.sqs#SerializationException"
    assert ask(server, body=b"{}", **target) == (200, {})
    large = json.dumps({"QueueNamePrefix": "x" * (17 << 20)}).encode()
    assert ask(server, body=large, **target)[1]["__type"] == "com.amazonaws.sqs#BatchRequestTooLong"


def test_a_page_whose_name_was_made_to_lead_here_is_refused(server: SQSServer) -> None:
    target = {"X-Amz-Target": "AmazonSQS.ListQueues"}
    for name, status in (("evil.example", 403), ("127.evil.example:80", 403), ("localhost:80", 200), ("[::1]:80", 200)):
        assert ask(server, body=b"{}", Host=name, **target)[0] == status


def test_requests_entries_and_bytes_are_counted(server: SQSServer, sqs: Any) -> None:
    url = standard(sqs)
    sqs.send_message_batch(QueueUrl=url, Entries=batch("one", "two", "three"))
    sqs.send_message(QueueUrl=url, MessageBody="four")
    found = receive(sqs, url)
    sqs.delete_message_batch(QueueUrl=url, Entries=[{"Id": m["MessageId"], "ReceiptHandle": m["ReceiptHandle"]} for m in found])
    requests = {"CreateQueue": 1, "SendMessageBatch": 1, "SendMessage": 1, "ReceiveMessage": 1, "DeleteMessageBatch": 1}
    entries = {"SendMessageBatch": 3, "SendMessage": 1, "ReceiveMessage": 4, "DeleteMessageBatch": 4}
    assert (server.requests, server.entries) == (Counter(requests), Counter(entries))
    assert ask(server, "/_cloudq/stats") == (200, {"requests": requests, "entries": entries, "body_bytes": 15})


def test_every_nth_entry_of_batches_can_be_made_to_fail() -> None:
    with serve_in_thread(fail_every=3) as server, client_of(server) as sqs:
        url = standard(sqs)
        answer = sqs.send_message_batch(QueueUrl=url, Entries=batch(*"abcdefgh"))
        assert [(entry["Id"], entry["Code"], entry["SenderFault"]) for entry in answer["Failed"]] == [
            ("2", "InternalError", False),
            ("5", "InternalError", False),
        ]
        assert counts(sqs, url) == (6, 0, 0)
        assert server.entries["SendMessageBatch"] == 8


def test_under_lies_nothing_is_lost(clock: ManualClock) -> None:
    done: Counter[str] = Counter()
    sent = [f"{number}" for number in range(100)]
    with serve_in_thread(lie=7, clock=clock) as server, client_of(server) as sqs:
        url = standard(sqs, VisibilityTimeout="1")
        for body in sent:
            retried(sqs, "send_message", QueueUrl=url, MessageBody=body)
        for _ in range(500):
            for message in retried(sqs, "receive_message", QueueUrl=url, MaxNumberOfMessages=10).get("Messages", []):
                done[message["Body"]] += 1
                retried(sqs, "delete_message", QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            clock.advance(1)
            if counts(sqs, url) == (0, 0, 0):
                break
        assert counts(sqs, url) == (0, 0, 0)
    assert done.keys() == set(sent)
    assert sum(done.values()) > len(sent)


def retried(sqs: Any, action: str, **parameters: Any) -> Any:
    """What SQS answers, once it answers: an SDK repeats what failed inside AWS."""
    for _ in range(50):
        try:
            return getattr(sqs, action)(**parameters)
        except sqs.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 500:
                raise
    raise AssertionError("fifty failures in a row")


def test_a_client_that_goes_away_while_it_polls_takes_no_message_along(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_in_thread() as server:
        use({**AWS_ENV, "AWS_ENDPOINT_URL": server.endpoint}, monkeypatch)
        server.broker.create_queue("q")

        async def scenario() -> None:
            gone, broker = SQSBroker(REGION), SQSBroker(REGION)
            poll = asyncio.create_task(_poll(gone))
            while not server.requests["ReceiveMessage"]:
                await asyncio.sleep(0.01)
            poll.cancel()
            await asyncio.wait([poll])
            await gone.close()
            while server._runner.server.connections:  # until the server has seen the connection end
                await asyncio.sleep(0.01)
            await broker.send("q", [Outgoing(body="x")])
            assert [delivery.body for delivery in await broker.receive("q", max_messages=1, wait=5)] == ["x"]
            await broker.close()

        asyncio.run(scenario())


async def _poll(broker: SQSBroker) -> None:
    await broker.receive("q", max_messages=1, wait=20)


def test_closing_cuts_polls_off_and_keeps_the_messages() -> None:
    broker = MemoryBroker()
    broker.create_queue("q")

    async def scenario() -> None:
        server = SQSServer(broker, port=free_port())
        await server.start()
        endpoint = server.endpoint
        await server.close()
        await server.close()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", int(endpoint.rpartition(":")[2]))
        await server.start()
        await server.close()
        with pytest.raises(RuntimeError):
            _ = server.endpoint

    asyncio.run(scenario())
    with serve_in_thread(broker) as server, client_of(server) as sqs:
        sqs.send_message(QueueUrl=sqs.get_queue_url(QueueName="q")["QueueUrl"], MessageBody="x")
        poll = threading.Thread(target=_poll_and_fail, args=(sqs, standard(sqs)))
        poll.start()
        while not server.requests["ReceiveMessage"]:
            poll.join(0.01)
    poll.join(60)
    assert not poll.is_alive()
    assert asyncio.run(broker.stats("q")).ready == 1


def _poll_and_fail(sqs: Any, url: str) -> None:
    with pytest.raises((HTTPClientError, BotoConnectionError)):
        receive(sqs, url, WaitTimeSeconds=20)


def test_a_port_that_is_taken_is_said() -> None:
    with serve_in_thread() as server, pytest.raises(OSError), serve_in_thread(port=int(server.endpoint.rpartition(":")[2])):
        pass


def test_a_broker_of_smaller_batches_cannot_be_served() -> None:
    with pytest.raises(ConfigError):
        SQSServer(MemoryBroker(limits=DEFAULT._replace(batch=3)))


def test_the_command_prints_the_endpoint_makes_queues_and_ends_on_sigterm() -> None:
    command = [sys.executable, "-W", "error", "-m", "cloudq_aws.server", "--port", str(free_port()), "--queue", "a", "--queue", "b.fifo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        client = Client("ours", process.stdout.readline().strip())
        assert client.endpoint.startswith("http://127.0.0.1:")
        assert [url.rpartition("/")[2] for url in client.boto3.list_queues()["QueueUrls"]] == ["a", "b.fifo"]
        client.boto3.close()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")


def test_a_broker_is_served_at_a_url() -> None:
    broker = MemoryBroker()
    with adapters.serve("sqs://?lie=3", broker) as endpoint:
        assert endpoint.startswith("http://127.0.0.1:")
        place = endpoint.removeprefix("http://")
        with pytest.raises(ConfigError, match=place), adapters.serve(f"sqs://{place}", broker):
            pass
    place = f"127.0.0.1:{free_port()}"
    for _ in range(2):
        with adapters.serve(f"sqs://{place}", broker) as endpoint:
            assert endpoint == f"http://{place}"


@pytest.mark.parametrize("url", ["memory://", "sqs://?lei=3", "sqs://127.0.0.1:99999/", "sqs://127.0.0.1:port/"])
def test_what_cannot_be_served_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError), adapters.serve(url, MemoryBroker()):
        pass


def test_a_broker_that_is_not_in_memory_or_that_lies_cannot_be_served() -> None:
    for broker in (SQSBroker(REGION), LyingBroker(MemoryBroker())):
        with pytest.raises(ConfigError), adapters.serve("sqs://", broker):
            pass


def test_a_program_beside_cloudq_dev_sends_to_it_by_sqs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "ledger")
    endpoint = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "cloudq.cli", "-A", "tests.acceptance.counted:app", "dev", "--no-reload", "--sqs-port", str(port)]
    env = {"LEDGER": str(ledger.path), "CLOUDQ_BROKER": "memory://", "CLOUDQ_STORE": "memory://"}
    with running(command, ready=f"{endpoint}/_cloudq/health", log=tmp_path / "dev.log", env=env) as dev:
        use({**AWS_ENV, "AWS_ENDPOINT_URL": endpoint}, monkeypatch)
        app = CloudQ("beside", broker="sqs://")
        for number in range(25):
            app.send_task("count", (number,))
        app.close()
        ledger.wait("run", 25)
        assert ledger.counts("run") == Counter(map(str, range(25))), dev.log.read_text()
    ledger.close()


# AWS's JavaScript SDK.

JS = Path(__file__).with_name("js")


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest) -> Path:
    """A folder with the script and the SDK that it imports, installed once and kept in pytest's cache."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        missing("Node.js", "install nodejs 20 or later with npm")
    cache = request.config.cache
    assert cache is not None
    folder = Path(cache.mkdir("cloudq-js"))
    wanted = (JS / "package.json").read_bytes()
    installed = folder / "installed"
    if not installed.exists() or installed.read_bytes() != wanted:
        shutil.copy(JS / "package.json", folder)
        install = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
        ran = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        if ran.returncode:
            missing("@aws-sdk/client-sqs", f"npm install failed: {ran.stderr[-500:]}")
        installed.write_bytes(wanted)
    shutil.copy(JS / "client.js", folder)
    return folder


def test_the_javascript_sdk_sends_receives_settles_and_reads_the_errors(node: Path) -> None:
    with serve_in_thread() as server:
        server.broker.create_queue("made-here")
        env = {**os.environ, **AWS_ENV, "AWS_REGION": REGION, "AWS_ENDPOINT_URL": server.endpoint}
        command = ["node", "--unhandled-rejections=strict", "client.js"]
        ran = subprocess.run(command, cwd=node, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        "queues": ["js", "js.fifo", "made-here"],
        "attribute": ["grün", "000102"],
        "waited": True,
        "hidden": 0,
        "receives": ["1", "2"],
        "batch": [["a", "c"], [["b", "InvalidMessageContents", True]]],
        "bodies": ["a", "c"],
        "changed": [["0"], [["1", "ReceiptHandleIsInvalid"]]],
        "deleted": 2,
        "left": "0",
        "fifo": ["1", "2", "3"],
        "repeated": True,
        "errors": [
            ["QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue", 400],
            ["ReceiptHandleIsInvalid", "ReceiptHandleIsInvalid", 400],
            ["InvalidMessageContents", "InvalidMessageContents", 400],
            ["EmptyBatchRequest", "AWS.SimpleQueueService.EmptyBatchRequest", 400],
            ["QueueNameExists", "QueueAlreadyExists", 400],
        ],
    }
