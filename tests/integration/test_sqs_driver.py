"""The SQS driver on a real server: names, errors, faults on the wire, and what SQS's own rules ask of it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

import pytest

from cloudq.adapters import AdapterContext, Location
from cloudq.broker import Broker, Delivery, Outgoing
from cloudq.clock import SystemClock
from cloudq.errors import BrokerError, BrokerUnavailable, ConfigError, LeaseLost, QueueNotFound, SendError
from cloudq_aws.sqs import SQSBroker, adapter
from tests.proxy import Answer, Cut, FailEntries, Fault, Hang, Proxy, Request, first, proxy
from tests.servers import REGION, SQSServer, free_port, unique

T = TypeVar("T")


@pytest.fixture
def wire(sqs: SQSServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy between the driver and the server."""
    with proxy(sqs.endpoint) as it:
        monkeypatch.setenv("AWS_ENDPOINT_URL", it.endpoint)
        yield it


def opened(url: str) -> SQSBroker:
    """The broker of a URL, as an app opens it."""
    assert adapter.broker is not None
    broker = adapter.broker(Location.parse(url), AdapterContext(app="test", clock=SystemClock()))
    assert isinstance(broker, SQSBroker)
    return broker


def with_broker(use: Callable[[SQSBroker], Awaitable[T]], url: str = f"sqs://{REGION}/?lease=30") -> T:
    """Run ``use(broker)`` on a loop of its own, and close the broker."""

    async def run() -> T:
        broker = opened(url)
        try:
            return await use(broker)
        finally:
            await broker.close()

    return asyncio.run(run())


async def bodies(broker: Broker, queue: str) -> Sequence[str]:
    """The bodies of what can be received now, in order; acked."""
    found: list[Delivery] = []
    while batch := await broker.receive(queue, max_messages=10, wait=0):
        await broker.ack(batch)
        found += batch
    return [delivery.body for delivery in found]


def test_importing_the_driver_loads_no_sdk() -> None:
    code = "import sys, cloudq_aws.sqs; print(sorted({'aiobotocore', 'botocore', 'boto3', 'aiohttp'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | path())
    assert ran.stdout.strip() == "[]"


def path() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def test_making_a_broker_connects_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert opened("sqs://eu-west-1/").limits.batch == 10


@pytest.mark.parametrize(
    "url",
    [
        "sqs:///?prefx=a",
        "sqs://eu-west-1/queue",
        "sqs:///?lease=0",
        "sqs:///?lease=1.5",
        "sqs:///?lease=13h",
        "sqs:///?wait=21",
        "sqs:///?lease=10&wait=10",
        "sqs:///?lease=soon",
    ],
)
def test_a_wrong_url_is_refused_when_it_is_opened(url: str) -> None:
    with pytest.raises(ConfigError):
        opened(url)


def test_a_url_sets_lease_and_wait() -> None:
    limits = opened("sqs:///?lease=5m&wait=7").limits
    assert (limits.lease, limits.wait) == (300, 7)


def test_the_poll_is_at_most_half_of_a_short_lease() -> None:
    assert SQSBroker(lease=10).limits.wait == 5


def test_a_queue_is_found_by_prefixed_name_by_url_and_by_arn(sqs: SQSServer) -> None:
    name = unique()
    url = sqs.make_queue(f"shop-{name}")
    arn = sqs.boto3.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]

    async def scenario(broker: SQSBroker) -> None:
        for queue in (name, url, arn):
            assert await broker.send(queue, [Outgoing(body=queue)]) == [None]
        assert sorted(await bodies(broker, name)) == sorted([name, url, arn])

    with_broker(scenario, f"sqs://{REGION}/?prefix=shop-")


def test_the_url_of_a_queue_is_asked_for_once(sqs: SQSServer, wire: Proxy) -> None:
    name = unique()
    sqs.make_queue(name)

    async def scenario(broker: SQSBroker) -> None:
        for _ in range(3):
            await broker.send(name, [Outgoing(body="x")])
        await bodies(broker, name)

    with_broker(scenario)
    assert wire.requests == {"GetQueueUrl": 1, "SendMessageBatch": 3, "ReceiveMessage": 2, "DeleteMessageBatch": 1}


def test_without_a_region_in_the_url_the_sdk_decides(sqs: SQSServer, monkeypatch: pytest.MonkeyPatch) -> None:
    name = unique()
    sqs.make_queue(name)
    assert with_broker(lambda broker: broker.send(name, [Outgoing(body="x")]), "sqs:///") == [None]
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(ConfigError, match="region"):
        with_broker(lambda broker: broker.stats(name), "sqs:///")


def test_an_arn_of_another_region_is_no_queue_of_ours(sqs: SQSServer) -> None:
    with pytest.raises(QueueNotFound, match="us-east-1"):
        with_broker(lambda broker: broker.stats("arn:aws:sqs:us-east-1:123456789012:q"))


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_ENDPOINT_URL", "localhost:4566"), ("AWS_PROFILE", "nobody"), ("AWS_DEFAULT_REGION", "a/b")]
)
def test_settings_that_the_sdk_cannot_use_are_a_configuration_error(
    sqs: SQSServer, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=value):
        with_broker(lambda broker: broker.stats("q"), "sqs:///")


def test_missing_credentials_are_named(sqs: SQSServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setattr("cloudq_aws.errors._had_credentials", False)
    with pytest.raises(ConfigError, match="credentials"):
        with_broker(lambda broker: broker.stats("q"))


@pytest.mark.parametrize("queue", ["no such name", "x" * 81, "a.b", ""])
def test_a_name_that_sqs_cannot_have_is_not_found(sqs: SQSServer, queue: str) -> None:
    with pytest.raises(QueueNotFound, match="named"):
        with_broker(lambda broker: broker.stats(queue))


def test_a_queue_that_is_missing_is_named_by_every_method_and_not_created(sqs: SQSServer) -> None:
    name = unique("absent")

    async def scenario(broker: SQSBroker) -> None:
        stray = Delivery(queue=name, body="x", receipt="r", received=time.time(), lease_until=time.time() + 60)
        for call in (
            broker.send(name, [Outgoing(body="x")]),
            broker.receive(name, max_messages=1, wait=0),
            broker.ack([stray]),
            broker.extend([stray], 30),
            broker.stats(name),
        ):
            with pytest.raises(QueueNotFound, match=name):
                await call

    with_broker(scenario)
    assert "QueueUrls" not in sqs.boto3.list_queues(QueueNamePrefix=name)


def test_a_queue_that_vanishes_is_not_found_and_served_again_once_it_is_back(sqs: SQSServer) -> None:
    name = unique()
    url = sqs.make_queue(name)

    async def scenario(broker: SQSBroker) -> None:
        await broker.stats(name)
        sqs.boto3.delete_queue(QueueUrl=url)
        with pytest.raises(QueueNotFound, match=name):
            await broker.send(name, [Outgoing(body="x")])
        sqs.make_queue(name)
        assert await broker.send(name, [Outgoing(body="x")]) == [None]

    with_broker(scenario)


def test_a_server_that_is_down_is_unavailable_within_a_few_seconds(sqs: SQSServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="could not be reached") as raised:
        with_broker(lambda broker: broker.send("q", [Outgoing(body="x")]))
    assert time.monotonic() - began < 20
    assert raised.value.__cause__ is not None


def test_a_server_that_comes_back_is_used_again(sqs: SQSServer, wire: Proxy) -> None:
    name = unique()
    sqs.make_queue(name)
    wire.decide = lambda request: Cut(forward=False)

    async def scenario(broker: SQSBroker) -> None:
        with pytest.raises(BrokerUnavailable):
            await broker.send(name, [Outgoing(body="x")])
        wire.decide = None
        assert await broker.send(name, [Outgoing(body="x")]) == [None]
        assert await bodies(broker, name) == ["x"]

    with_broker(scenario)


def test_a_send_whose_answer_is_lost_is_taken(sqs: SQSServer, wire: Proxy) -> None:
    name = unique()
    sqs.make_queue(name)
    wire.decide = first(1, Cut(), "SendMessageBatch")

    async def scenario(broker: SQSBroker) -> None:
        assert await broker.send(name, [Outgoing(body="x")]) == [None]
        assert set(await bodies(broker, name)) == {"x"}  # twice, perhaps: the repeat cannot know

    with_broker(scenario)
    assert wire.requests["SendMessageBatch"] == 2


def test_an_ordered_send_whose_answer_is_lost_is_taken_once(sqs: SQSServer, wire: Proxy) -> None:
    name = unique() + ".fifo"
    sqs.make_queue(name)
    wire.decide = first(1, Cut(), "SendMessageBatch")

    async def scenario(broker: SQSBroker) -> None:
        assert await broker.send(name, [Outgoing(body="x", group="g")]) == [None]
        assert await bodies(broker, name) == ["x"]

    with_broker(scenario)
    assert wire.requests["SendMessageBatch"] == 2


def test_an_ordered_receive_that_the_sdk_repeats_is_one_attempt(sqs: SQSServer, wire: Proxy) -> None:
    name = unique() + ".fifo"
    sqs.make_queue(name)
    attempts: list[str] = []

    def cut_first(request: Request) -> Fault | None:
        if request.action != "ReceiveMessage":
            return None
        attempts.append(request.body["ReceiveRequestAttemptId"])
        return Cut() if request.number == 1 else None

    wire.decide = cut_first

    async def scenario(broker: SQSBroker) -> None:
        await broker.receive(name, max_messages=1, wait=0)
        await broker.receive(name, max_messages=1, wait=0)

    with_broker(scenario)
    assert attempts[0] == attempts[1] != attempts[2]


def test_a_server_that_never_answers_is_unavailable_in_time(sqs: SQSServer, wire: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudq_aws.sqs._ANSWER", 0.5)
    wire.decide = lambda request: Hang()
    with pytest.raises(BrokerUnavailable, match="in time"):
        with_broker(lambda broker: broker.stats("q"))


@pytest.mark.parametrize("client", ["aiobotocore", "boto3"])
def test_a_connection_that_went_silent_is_given_up_for_another_within_the_call(
    sqs: SQSServer, wire: Proxy, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    name = unique()
    sqs.make_queue(name)
    monkeypatch.setattr("cloudq_aws.sqs._SILENCE", 1.0)

    async def scenario(broker: SQSBroker) -> None:
        assert await broker.send(name, [Outgoing(body="x")]) == [None]
        assert len(await broker.receive(name, max_messages=1, wait=2)) == 1
        assert await broker.receive(name, max_messages=1, wait=2) == []  # a poll may be silent for longer
        wire.decide = lambda request: Hang() if request.number == 2 and request.action == "SendMessageBatch" else None
        assert await broker.send(name, [Outgoing(body="x")]) == [None]

    with_broker(scenario, f"sqs://{REGION}/?wait=2&client={client}")
    assert (wire.requests["SendMessageBatch"], wire.requests["ReceiveMessage"]) == (3, 2)


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (Answer(400, {"__type": "com.amazonaws.sqs#RequestThrottled", "message": "slow down"}), BrokerUnavailable, "RequestThrottled"),
        (Answer(400, {"__type": "com.amazonaws.sqs#OverLimit", "message": "too many"}), BrokerUnavailable, "OverLimit"),
        (Answer(503), BrokerUnavailable, "503"),
        (Answer(400, {"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "none"}), QueueNotFound, "cloudq deploy"),
        (Answer(403, {"__type": "AccessDeniedException", "message": "no"}), BrokerError, "sqs:ReceiveMessage"),
        (Answer(403, {"__type": "InvalidClientTokenId", "message": "no"}), BrokerError, "credentials"),
        (Answer(400, {"__type": "com.amazonaws.sqs#UnsupportedOperation", "message": "no"}), BrokerError, "refused"),
    ],
)
def test_what_aws_answers_becomes_an_error_of_ours(
    sqs: SQSServer, wire: Proxy, answer: Answer, error: type[BrokerError], text: str
) -> None:
    name = unique()
    sqs.make_queue(name)
    wire.decide = first(9, answer, "ReceiveMessage")
    with pytest.raises(error, match=text) as raised:
        with_broker(lambda broker: broker.receive(name, max_messages=1, wait=0))
    assert raised.value.__cause__ is not None


def test_a_queue_that_we_may_not_look_up_is_not_found(sqs: SQSServer, wire: Proxy) -> None:
    wire.decide = first(9, Answer(403, {"__type": "AccessDeniedException", "message": "no"}), "GetQueueUrl")
    with pytest.raises(QueueNotFound, match="sqs:GetQueueUrl"):
        with_broker(lambda broker: broker.stats("q"))


def test_an_answer_that_is_no_sqs_is_an_error_of_ours(sqs: SQSServer, wire: Proxy) -> None:
    wire.decide = first(9, Answer(200, b"<html>somebody's login page</html>"), "GetQueueUrl")
    with pytest.raises(BrokerError, match="GetQueueUrl"):
        with_broker(lambda broker: broker.stats("q"))


def test_entries_that_fail_are_reported_and_the_others_taken(sqs: SQSServer, wire: Proxy) -> None:
    name = unique()
    sqs.make_queue(name)
    messages = [Outgoing(body=f"m{index}") for index in range(4)]

    async def scenario(broker: SQSBroker) -> None:
        wire.decide = first(1, FailEntries(frozenset({1})), "SendMessageBatch")
        answers = await broker.send(name, messages)
        assert [index for index, error in enumerate(answers) if error] == [1]
        assert answers[1] is not None
        assert (answers[1].retryable, answers[1].code) == (True, "InternalError")
        wire.decide = lambda request: FailEntries(frozenset({0, 2}), code="InvalidMessageContents", sender_fault=True)
        answers = await broker.send(name, messages[:3])
        assert [error.retryable if error else None for error in answers] == [False, None, False]
        wire.decide = lambda request: FailEntries(frozenset({0}), code="RequestThrottled", sender_fault=True)
        (throttled,) = await broker.send(name, messages[:1])
        assert throttled is not None
        assert throttled.retryable
        wire.decide = None
        assert sorted(await bodies(broker, name)) == ["m0", "m1", "m2", "m3"]

    with_broker(scenario)


def test_an_entry_that_the_answer_passes_over_counts_as_not_taken(sqs: SQSServer, wire: Proxy) -> None:
    name = unique()
    sqs.make_queue(name)
    wire.decide = first(1, Answer(200, {"Successful": [{"Id": "0", "MessageId": "m", "MD5OfMessageBody": "x"}]}), "SendMessageBatch")
    taken, unknown = with_broker(lambda broker: broker.send(name, [Outgoing(body="a"), Outgoing(body="b")]))
    assert taken is None
    assert unknown is not None
    assert unknown.retryable


def test_one_bad_message_costs_itself(sqs: SQSServer) -> None:
    name = unique()
    sqs.make_queue(name)
    bad = [
        Outgoing(body="a\x00b"),
        Outgoing(body="\udc80"),
        Outgoing(body="\ufffe"),
        Outgoing(body=""),
        Outgoing(body="x", delay=901),
        Outgoing(body="x", group="g"),
        Outgoing(body="x" * (1 << 20), attributes={"k": "v"}),
        Outgoing(body="x", attributes={"k": "\x01"}),
    ]

    async def scenario(broker: SQSBroker) -> None:
        answers = await broker.send(name, [*bad, Outgoing(body="good"), Outgoing(body="\t\r\n é € \U0001f600")])
        assert [error is None for error in answers] == [False] * 8 + [True] * 2
        assert not any(error.retryable for error in answers if error)
        assert set(await bodies(broker, name)) == {"good", "\t\r\n é € \U0001f600"}

    with_broker(scenario)


def test_what_cannot_be_sent_at_all_makes_no_request(sqs: SQSServer, wire: Proxy) -> None:
    (error,) = with_broker(lambda broker: broker.send("q", [Outgoing(body="secret \x00")]))
    assert error is not None
    assert "U+0000" in str(error)
    assert "secret" not in str(error)
    assert wire.requests == {}


def test_where_the_server_refuses_a_whole_batch_for_one_entry_the_others_are_taken(sqs: SQSServer, wire: Proxy) -> None:
    name = unique()
    sqs.make_queue(name)
    refused = Answer(400, {"__type": "com.amazonaws.sqs#InvalidParameterValue", "message": "message must be shorter"})
    wire.decide = lambda request: (
        refused if request.action == "SendMessageBatch" and any(e["MessageBody"] == "bad" for e in request.body["Entries"]) else None
    )

    async def scenario(broker: SQSBroker) -> None:
        answers = await broker.send(name, [Outgoing(body="one"), Outgoing(body="bad"), Outgoing(body="two")])
        assert [error and (error.code, error.retryable) for error in answers] == [None, ("InvalidParameterValue", False), None]
        assert sorted(await bodies(broker, name)) == ["one", "two"]

    with_broker(scenario)


@pytest.mark.parametrize("refused", [(400, "KmsDisabled"), (403, "OptInRequired"), (403, "InvalidSignatureException")])
def test_what_the_server_refuses_whatever_it_holds_is_asked_once(sqs: SQSServer, wire: Proxy, refused: tuple[int, str]) -> None:
    name = unique()
    sqs.make_queue(name)
    wire.decide = first(99, Answer(refused[0], {"__type": f"com.amazonaws.sqs#{refused[1]}", "message": "no"}), "SendMessageBatch")
    with pytest.raises(BrokerError, match=refused[1]):
        with_broker(lambda broker: broker.send(name, [Outgoing(body=f"m{number}") for number in range(10)]))
    assert wire.requests["SendMessageBatch"] == 1


def test_a_message_of_exactly_the_limit_is_taken(sqs: SQSServer) -> None:
    name = unique()
    sqs.make_queue(name)

    async def scenario(broker: SQSBroker) -> None:
        body = "x" * broker.limits.body
        assert await broker.send(name, [Outgoing(body=body)]) == [None]
        (over,) = await broker.send(name, [Outgoing(body=body + "x")])
        assert isinstance(over, SendError)
        assert over.code == "MessageTooLong"
        assert await bodies(broker, name) == [body]

    with_broker(scenario)


def test_an_ordered_queue_keeps_the_order_and_tells_the_group(sqs: SQSServer) -> None:
    name = unique() + ".fifo"
    sqs.make_queue(name)

    async def scenario(broker: SQSBroker) -> None:
        for start in (0, 10):
            assert await broker.send(name, [Outgoing(body=str(n), group="g") for n in range(start, start + 10)]) == [None] * 10
        batch = await broker.receive(name, max_messages=10, wait=1)
        assert [delivery.body for delivery in batch] == [str(n) for n in range(10)]
        assert {delivery.group for delivery in batch} == {"g"}
        assert not await broker.receive(name, max_messages=10, wait=0)  # the group is held
        await broker.ack(batch)
        assert await bodies(broker, name) == [str(n) for n in range(10, 20)]

    with_broker(scenario)


def test_equal_messages_of_an_ordered_queue_are_all_kept_and_a_repeated_dedup_id_is_not(sqs: SQSServer) -> None:
    name = unique() + ".fifo"
    sqs.make_queue(name, ContentBasedDeduplication="true")

    async def scenario(broker: SQSBroker) -> None:
        same = [Outgoing(body="same", group="g"), Outgoing(body="same", group="g")]
        assert await broker.send(name, same) == [None, None]
        long = "task " * 40  # over 128 characters, and not of SQS's alphabet
        assert await broker.send(name, [Outgoing(body="first", group="g", dedup=long)]) == [None]
        assert await broker.send(name, [Outgoing(body="second", group="g", dedup=long)]) == [None]
        assert await bodies(broker, name) == ["same", "same", "first"]

    with_broker(scenario)


@pytest.mark.parametrize("message", [Outgoing(body="x"), Outgoing(body="x", group="g", delay=1)])
def test_an_ordered_queue_takes_no_message_without_a_group_or_with_a_delay(sqs: SQSServer, message: Outgoing) -> None:
    name = unique() + ".fifo"
    sqs.make_queue(name)

    async def scenario(broker: SQSBroker) -> None:
        refused, taken = await broker.send(name, [message, Outgoing(body="y", group="g")])
        assert refused is not None
        assert not refused.retryable
        assert taken is None

    with_broker(scenario)


def test_a_tenant_is_a_message_group_on_a_standard_queue(sqs: SQSServer, wire: Proxy) -> None:
    name = unique()
    sqs.make_queue(name)
    seen: list[object] = []
    wire.decide = lambda request: seen.extend(entry.get("MessageGroupId") for entry in request.body.get("Entries", ()))

    async def scenario(broker: SQSBroker) -> None:
        assert await broker.send(name, [Outgoing(body="x", tenant="acme"), Outgoing(body="y")]) == [None, None]
        assert {delivery.group for delivery in await broker.receive(name, max_messages=10, wait=0)} == {None}

    with_broker(scenario)
    assert seen == ["acme", None]


def test_a_lease_is_the_brokers_own_and_begins_before_the_request(sqs: SQSServer, wire: Proxy) -> None:
    name = unique()
    sqs.make_queue(name, VisibilityTimeout="1")
    asked: list[float] = []
    wire.decide = lambda request: asked.append(time.time()) if request.action == "ReceiveMessage" else None

    async def scenario(broker: SQSBroker) -> None:
        began = time.time()
        await broker.send(name, [Outgoing(body="x", attributes={"traceparent": "00-1"})])
        before = time.time()
        (delivery,) = await broker.receive(name, max_messages=1, wait=0)
        assert before <= delivery.received <= asked[0]
        assert delivery.lease_until == delivery.received + 30
        assert (delivery.receives, delivery.queue, delivery.attributes) == (1, name, {"traceparent": "00-1"})
        assert delivery.message_id
        assert delivery.sent is not None
        assert began - 1 < delivery.sent < before + 1
        await asyncio.sleep(1.2)
        assert not await broker.receive(name, max_messages=1, wait=0)  # the queue's own second is over, our lease is not
        stats = await broker.stats(name)
        assert (stats.ready, stats.in_flight, stats.delayed, stats.oldest) == (0, 1, 0, None)

    with_broker(scenario)


def test_what_was_given_back_comes_at_once(sqs: SQSServer) -> None:
    name = unique()
    sqs.make_queue(name)

    async def scenario(broker: SQSBroker) -> None:
        await broker.send(name, [Outgoing(body="x")])
        deliveries = await broker.receive(name, max_messages=1, wait=1)
        assert await broker.extend(deliveries, 0) == [None]
        (again,) = await broker.receive(name, max_messages=1, wait=1)
        assert again.receives == 2

    with_broker(scenario)


def test_a_lease_that_ended_or_would_pass_twelve_hours_is_not_asked_to_be_extended(sqs: SQSServer, wire: Proxy) -> None:
    name = unique()
    sqs.make_queue(name)

    async def scenario(broker: SQSBroker) -> None:
        await broker.send(name, [Outgoing(body=body) for body in "abc"])
        ended, old, good = await broker.receive(name, max_messages=10, wait=1)
        ended.lease_until = time.time() - 1
        old.received -= 11.9 * 3600
        until = [ended.lease_until, old.lease_until]
        answers = await broker.extend([ended, old, good], 600)
        assert [type(answer) for answer in answers] == [LeaseLost, LeaseLost, type(None)]
        assert [ended.lease_until, old.lease_until] == until
        assert 500 < good.lease_until - time.time() <= 600

    with_broker(scenario)
    assert wire.entries["ChangeMessageVisibilityBatch"] == 1


@pytest.mark.parametrize(
    "code", ["MessageNotInflight", "AWS.SimpleQueueService.MessageNotInflight", "ReceiptHandleIsInvalid", "InvalidParameterValue"]
)
def test_a_handle_that_sqs_takes_no_more_is_a_lost_lease(sqs: SQSServer, wire: Proxy, code: str) -> None:
    name = unique()
    sqs.make_queue(name)

    async def scenario(broker: SQSBroker) -> None:
        await broker.send(name, [Outgoing(body="a"), Outgoing(body="b")])
        deliveries = await broker.receive(name, max_messages=10, wait=1)
        wire.decide = lambda request: FailEntries(frozenset({1}), code=code, sender_fault=True)
        for answers in (await broker.extend(deliveries, 10), await broker.ack(deliveries)):
            assert [type(answer) for answer in answers] == [type(None), LeaseLost]
        assert deliveries[1].lease_until == deliveries[1].received + 30

    with_broker(scenario)


def test_a_settling_that_fails_inside_aws_may_be_tried_again(sqs: SQSServer, wire: Proxy) -> None:
    name = unique()
    sqs.make_queue(name)

    async def scenario(broker: SQSBroker) -> None:
        await broker.send(name, [Outgoing(body="a")])
        deliveries = await broker.receive(name, max_messages=10, wait=1)
        wire.decide = lambda request: FailEntries(frozenset({0}))
        (error,) = await broker.ack(deliveries)
        assert error is not None
        assert error.retryable
        assert not isinstance(error, LeaseLost)

    with_broker(scenario)


def test_a_receive_waits_for_a_message_and_returns_with_it(sqs: SQSServer) -> None:
    name = unique()
    sqs.make_queue(name)

    async def scenario(broker: SQSBroker) -> None:
        waiting = asyncio.create_task(broker.receive(name, max_messages=10, wait=15))
        await asyncio.sleep(0.3)
        await broker.send(name, [Outgoing(body="x")])
        async with asyncio.timeout(10):
            assert [delivery.body for delivery in await waiting] == ["x"]

    with_broker(scenario)


def test_a_cancelled_receive_leaves_the_broker_usable(sqs: SQSServer) -> None:
    name = unique()
    sqs.make_queue(name)

    async def scenario(broker: SQSBroker) -> None:
        first_use = asyncio.create_task(broker.stats(name))
        others = [asyncio.create_task(broker.stats(name)) for _ in range(3)]
        await asyncio.sleep(0)  # the first has begun to open the client, which the others need too
        first_use.cancel()
        assert [stats.ready for stats in await asyncio.gather(*others)] == [0, 0, 0]
        assert first_use.cancelled()
        waiting = asyncio.create_task(broker.receive(name, max_messages=1, wait=10))
        await asyncio.sleep(0.2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await broker.stats(name)).ready == 0

    with_broker(scenario)


def test_closing_ends_a_poll_with_an_error_of_ours_and_a_later_call_reconnects(sqs: SQSServer, wire: Proxy) -> None:
    name = unique()
    sqs.make_queue(name)

    async def scenario(broker: SQSBroker) -> None:
        waiting = asyncio.create_task(broker.receive(name, max_messages=1, wait=15))
        while not wire.requests["ReceiveMessage"]:
            await asyncio.sleep(0.01)
        await broker.close()
        await broker.close()
        with pytest.raises(BrokerError):
            await waiting
        assert (await broker.stats(name)).ready == 0

    with_broker(scenario)


def test_one_broker_serves_one_loop_after_another(sqs: SQSServer) -> None:
    name = unique()
    sqs.make_queue(name)
    broker = opened("sqs:///")

    async def once() -> None:
        assert await broker.send(name, [Outgoing(body="x")]) == [None]
        await broker.close()

    asyncio.run(once())
    asyncio.run(once())
    assert sqs.depth(name) == 2


def test_a_forked_child_uses_a_client_of_its_own_and_leaves_the_parents_alone(sqs: SQSServer, wire: Proxy) -> None:
    name = unique()
    sqs.make_queue(name)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", _FORK, name],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | path(),
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "child True parent True\n", "")
    assert sqs.depth(name) == 3


_FORK = """
import asyncio, os, sys
from cloudq.broker import Outgoing
from cloudq_aws.sqs import SQSBroker

broker = SQSBroker()

async def send():
    return await broker.send(sys.argv[1], [Outgoing(body="x")]) == [None]

async def child():
    ok = await send()
    await broker.close()
    return ok

async def main():
    assert await send()
    pid = os.fork()
    if pid == 0:
        return None
    _, status = os.waitpid(pid, 0)
    ok = await send()
    await broker.close()
    return status == 0, ok

loop = asyncio.new_event_loop()
answer = loop.run_until_complete(main())
if answer is None:
    asyncio.set_event_loop(None)
    ok = asyncio.new_event_loop().run_until_complete(child())
    os._exit(0 if ok else 1)
print("child", answer[0], "parent", answer[1])
loop.close()
"""
