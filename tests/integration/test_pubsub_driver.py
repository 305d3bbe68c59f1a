"""The Pub/Sub driver on Google's emulator: names, errors, batches, forks; what the emulator cannot do on a scripted gRPC server."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cloudq import CloudQ, Retry
from cloudq.adapters import AdapterContext, Location
from cloudq.broker import Delivery, Outgoing
from cloudq.clock import ManualClock, SystemClock
from cloudq.errors import BrokerError, BrokerUnavailable, ConfigError, LeaseLost, QueueNotFound, SendError, TaskFailed
from cloudq.memory import MemoryStore
from cloudq.worker import Worker, WorkerOptions
from cloudq_gcp.naming import Naming
from cloudq_gcp.pubsub import PubSubBroker, adapter
from tests.gcp_servers import PROJECT, PubSubServer
from tests.grpc_proxy import grpc_proxy
from tests.servers import free_port, unique

T = TypeVar("T")


def opened(url: str) -> PubSubBroker:
    """The broker of a URL, as an app opens it."""
    assert adapter.broker is not None
    broker = adapter.broker(Location.parse(url), AdapterContext(app="test", clock=SystemClock()))
    assert isinstance(broker, PubSubBroker)
    return broker


def with_broker(use: Callable[[PubSubBroker], Awaitable[T]], options: str = "lease=60") -> T:
    """Run ``use(broker)`` on a loop of its own, and close the broker."""

    async def run() -> T:
        broker = opened(f"pubsub://{PROJECT}/?{options}")
        try:
            return await use(broker)
        finally:
            await broker.close()

    return asyncio.run(run())


async def take(broker: PubSubBroker, queue: str, count: int) -> list[Delivery]:
    """Receive ``count`` messages."""
    taken: list[Delivery] = []
    async with asyncio.timeout(60):
        while len(taken) < count:
            taken += await broker.receive(queue, max_messages=count - len(taken), wait=2)
    return taken


def path() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


# Before anything is connected.


def test_importing_the_driver_loads_no_sdk() -> None:
    code = "import sys, cloudq_gcp.pubsub; print(sorted({'google', 'grpc', 'proto'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | path())
    assert ran.stdout.strip() in ("[]", "['google']")  # 'google' alone is a namespace package that a .pth file may make


def test_making_a_broker_connects_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:9")
    assert opened("pubsub://project/").limits.batch == 1_000


@pytest.mark.parametrize(
    "url",
    [
        "pubsub://p/?prefx=a",
        "pubsub://p/topic",
        "pubsub://p/?lease=0",
        "pubsub://p/?lease=1.5",
        "pubsub://p/?lease=601",
        "pubsub://p/?lease=10&wait=10",
        "pubsub://p/?hold=1h",
        "pubsub://p/?subscription=same-for-all",
        "pubsub://p/?lease=soon",
    ],
)
def test_a_wrong_url_is_refused_when_it_is_opened(url: str) -> None:
    with pytest.raises(ConfigError):
        opened(url)


def test_the_project_is_that_of_the_environment_where_the_url_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    with pytest.raises(ConfigError, match="project"):
        opened("pubsub://")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "elsewhere")
    assert opened("pubsub://").naming.project == "elsewhere"


def test_a_url_sets_lease_wait_and_hold() -> None:
    limits = opened("pubsub://p/?lease=5m&wait=7&hold=0").limits
    assert (limits.lease, limits.wait, limits.hold) == (300, 7, 0)


@pytest.mark.parametrize(
    ("naming", "queue", "topic", "subscription"),
    [
        (Naming(project="p", prefix="shop-"), "emails", "projects/p/topics/shop-emails", "projects/p/subscriptions/shop-emails"),
        (Naming(project="p", subscription="*-sub"), "emails", "projects/p/topics/emails", "projects/p/subscriptions/emails-sub"),
        (Naming(project="p", prefix="shop-"), "projects/o/topics/mails", "projects/o/topics/mails", "projects/p/subscriptions/mails"),
    ],
)
def test_a_queue_is_a_topic_and_a_subscription(naming: Naming, queue: str, topic: str, subscription: str) -> None:
    assert (naming.topic_of(queue), naming.subscription_of(queue)) == (topic, subscription)
    assert naming.subscription_of(naming.queue_of(subscription)) == subscription


@pytest.mark.parametrize("name", ["ab", "1st", "google", "a b c", "x" * 256, ""])
def test_a_name_that_no_topic_can_have_is_no_queue(name: str) -> None:
    with pytest.raises(QueueNotFound, match="named"):
        Naming(project="p").topic_of(name)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (Outgoing(body=""), "EmptyMessage"),
        (Outgoing(body="x", delay=1), "InvalidDelay"),
        (Outgoing(body="\ud800"), "InvalidText"),
        (Outgoing(body="x" * 9_000_000), "MessageTooLong"),
        (Outgoing(body="x", group="k" * 1_025), "InvalidOrderingKey"),
        (Outgoing(body="x", group="\ud800"), "InvalidOrderingKey"),
        (Outgoing(body="x", attributes={"goog-a": "x"}), "InvalidAttributeName"),
        (Outgoing(body="x", attributes={"\udcff": "x"}), "InvalidAttributeName"),
        (Outgoing(body="x", attributes={"a": "x" * 1_025}), "InvalidAttributeValue"),
        (Outgoing(body="x", attributes={"a": "\udcff"}), "InvalidAttributeValue"),
        (Outgoing(body="x", attributes=dict.fromkeys(map(str, range(101)), "")), "TooManyAttributes"),
    ],
)
def test_what_pubsub_would_refuse_hurts_no_other_of_its_batch(pubsub: PubSubServer, message: Outgoing, code: str) -> None:
    queue = pubsub.make_queue(unique())

    async def scenario(broker: PubSubBroker) -> None:
        first, bad, last = await broker.send(queue, [Outgoing(body="a"), message, Outgoing(body="b")])
        assert (first, last) == (None, None)
        assert isinstance(bad, SendError)
        assert (bad.code, bad.retryable) == (code, False)
        assert sorted(delivery.body for delivery in await take(broker, queue, 2)) == ["a", "b"]

    with_broker(scenario)


def test_missing_credentials_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent.json")

    async def scenario(broker: PubSubBroker) -> None:
        with pytest.raises(ConfigError, match="gcloud auth application-default login"):
            await broker.send("emails", [Outgoing(body="x")])

    with_broker(scenario)


@pytest.mark.parametrize(
    ("options", "host"),
    [("", "pubsub.googleapis.com:443"), ("endpoint=europe-west1-pubsub.googleapis.com", "europe-west1-pubsub.googleapis.com:443")],
)
def test_without_an_emulator_the_default_credentials_go_to_google(monkeypatch: pytest.MonkeyPatch, options: str, host: str) -> None:
    import google.auth
    from google.auth.credentials import AnonymousCredentials

    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(google.auth, "default", lambda scopes: (AnonymousCredentials(), "project"))

    async def scenario(broker: PubSubBroker) -> None:
        clients = await broker._client._open()
        assert {name: client.sdk.transport.host for name, client in clients.items()} == {"Publisher": host, "Subscriber": host}

    with_broker(scenario, options)


# On the emulator.


def test_a_full_batch_is_one_request_each_way(pubsub: PubSubServer) -> None:
    queue = pubsub.make_queue(unique())

    async def scenario(broker: PubSubBroker) -> None:
        assert list(await broker.send(queue, [Outgoing(body=str(number)) for number in range(1_000)])) == [None] * 1_000
        taken = await take(broker, queue, 1_000)
        assert sorted(int(delivery.body) for delivery in taken) == list(range(1_000))
        assert list(await broker.extend(taken, 30)) == list(await broker.ack(taken)) == [None] * 1_000
        assert abs(taken[0].sent - time.time()) < 60 if taken[0].sent else False

    with_broker(scenario)


def test_a_body_of_the_limits_size_arrives(pubsub: PubSubServer) -> None:
    queue = pubsub.make_queue(unique())

    async def scenario(broker: PubSubBroker) -> None:
        body = "x" * broker.limits.body
        assert list(await broker.send(queue, [Outgoing(body=body)])) == [None]
        assert (await take(broker, queue, 1))[0].body == body

    with_broker(scenario)


def test_a_topic_named_in_full_and_a_subscription_of_another_name(pubsub: PubSubServer) -> None:
    name = unique()
    pubsub.publisher.create_topic(request={"name": pubsub.topic(name)})
    pubsub.subscriber.create_subscription(request={"name": pubsub.subscription(f"{name}-worker"), "topic": pubsub.topic(name)})

    async def scenario(broker: PubSubBroker) -> None:
        await broker.stats(pubsub.topic(name))
        assert list(await broker.send(pubsub.topic(name), [Outgoing(body="x")])) == [None]
        assert (await take(broker, name, 1))[0].body == "x"

    with_broker(scenario, "subscription=*-worker")


def test_stats_miss_a_topic_a_subscription_and_their_bond(pubsub: PubSubServer) -> None:
    whole, other, orphan, topic = (unique() for _ in range(4))
    for name in (whole, other, orphan):
        pubsub.make_queue(name)
    pubsub.publisher.delete_topic(request={"topic": pubsub.topic(orphan)})
    pubsub.publisher.create_topic(request={"name": pubsub.topic(topic)})
    pubsub.subscriber.create_subscription(request={"name": pubsub.subscription(topic), "topic": pubsub.topic(other)})

    async def scenario(broker: PubSubBroker) -> None:
        stats = await broker.stats(whole)
        assert (stats.ready, stats.in_flight) == (None, None)
        for name in (orphan, topic, unique()):
            with pytest.raises(QueueNotFound):
                await broker.stats(name)

    with_broker(scenario)


def test_deliveries_are_counted_where_there_is_a_dead_letter_policy(pubsub: PubSubServer) -> None:
    counted, uncounted = pubsub.make_queue(unique(), dead_letter=unique("dead")), pubsub.make_queue(unique())

    async def scenario(broker: PubSubBroker) -> None:
        for queue, expected in ((counted, [1, 2]), (uncounted, [0, 0])):
            await broker.send(queue, [Outgoing(body="x")])
            (first,) = await take(broker, queue, 1)
            await broker.extend([first], 0)
            (again,) = await take(broker, queue, 1)
            assert [first.receives, again.receives] == expected

    with_broker(scenario)


def test_nobody_there_is_said_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{free_port()}")

    async def scenario(broker: PubSubBroker) -> None:
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="PUBSUB_EMULATOR_HOST"):
            await broker.send("emails", [Outgoing(body="x")])
        assert time.monotonic() - began < 30

    with_broker(scenario)


def test_closing_ends_a_pull_under_way_with_an_error_and_no_cancellation(pubsub: PubSubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = pubsub.make_queue(unique())
    with grpc_proxy(pubsub.address) as wire:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", wire.address)

        async def scenario(broker: PubSubBroker) -> None:
            pull = asyncio.create_task(broker.receive(queue, max_messages=1, wait=20))
            while not wire.requests["Pull"]:
                await asyncio.sleep(0.01)
            await broker.close()
            with pytest.raises(BrokerUnavailable, match="closed"):
                await pull

        with_broker(scenario)


def test_two_loops_use_brokers_of_their_own_at_once(pubsub: PubSubServer) -> None:
    queue = pubsub.make_queue(unique())
    apps = [CloudQ(f"app{number}", broker=f"pubsub://{PROJECT}/") for number in range(2)]
    for app in apps * 5:
        app.send_task("nobody.knows", queue=queue)
    for app in apps:
        app.close()
    assert len(with_broker(lambda broker: take(broker, queue, 10))) == 10


FORK = """
import os, sys, time
from cloudq import CloudQ
app = CloudQ("forked", broker=sys.argv[1])
send = lambda: app.send_task("nobody.knows", queue=sys.argv[2])
send()
for generation in range(2):
    if os.fork() == 0:
        send()
        os._exit(0)
    assert os.wait()[1] == 0
    send()
app.close()
"""


def test_a_fork_leaves_both_processes_able_to_send(pubsub: PubSubServer) -> None:
    queue = pubsub.make_queue(unique())
    command = [sys.executable, "-W", "error", "-c", FORK, f"pubsub://{PROJECT}/", queue]
    subprocess.run(command, check=True, timeout=300, env=os.environ | path())
    assert len(with_broker(lambda broker: take(broker, queue, 5))) == 5


# On a scripted server: what the emulator never answers.


class Script:
    """A Pub/Sub that answers as told. ``answers``: by method, what each call in turn gets; the last one goes on."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.answers: dict[str, list[Callable[[Any, Any], Awaitable[Any]]]] = {}

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.calls)

    async def answer(self, method: str, request: Any, context: Any) -> Any:
        self.calls.append((method, request))
        steps = self.answers.get(method, [replies()])
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        return await step(request, context)


def replies(make: Callable[[Any], Any] | None = None) -> Callable[[Any, Any], Awaitable[Any]]:
    async def step(request: Any, context: Any) -> Any:
        return make(request) if make is not None else None

    return step


def fails(code: str, reasons: dict[str, str] | None = None) -> Callable[[Any, Any], Awaitable[Any]]:
    """End with a gRPC status, and with what Pub/Sub says of each ack id of an exactly-once subscription."""

    async def step(request: Any, context: Any) -> Any:
        import grpc
        from google.protobuf.any_pb2 import Any as Packed
        from google.rpc import error_details_pb2, status_pb2

        status = getattr(grpc.StatusCode, code)
        if reasons:
            detail = Packed()
            detail.Pack(error_details_pb2.ErrorInfo(reason="", domain="pubsub.googleapis.com", metadata=reasons))
            packed = status_pb2.Status(code=status.value[0], message="as told", details=[detail]).SerializeToString()
            context.set_trailing_metadata((("grpc-status-details-bin", packed),))
        await context.abort(status, "as told")

    return step


@asynccontextmanager
async def scripted(monkeypatch: pytest.MonkeyPatch, options: str = "lease=10") -> AsyncIterator[tuple[PubSubBroker, Script]]:
    """A broker whose Pub/Sub is a script: a queue with one message of ack id ``a1`` a pull, and an ack deadline of 10 s."""
    monkeypatch.setattr("cloudq_gcp.client._PATIENCE", 60.0)  # what fails is repeated, however slow the machine
    import grpc
    from google.protobuf import empty_pb2
    from google.pubsub_v1 import types

    script, empty = Script(), empty_pb2.Empty
    script.answers["Publish"] = [replies(lambda request: types.PublishResponse(message_ids=["1"] * len(request.messages)))]
    one = {"ack_id": "a1", "message": {"data": b"x", "message_id": "1"}}
    script.answers["Pull"] = [replies(lambda _: types.PullResponse(received_messages=[one]))]
    about = {"name": f"projects/{PROJECT}/subscriptions/emails", "topic": f"projects/{PROJECT}/topics/emails", "ack_deadline_seconds": 10}
    script.answers["GetSubscription"] = [replies(lambda _: types.Subscription(about))]

    def handler(method: str, request: Any, response: Any) -> Any:
        async def call(asked: Any, context: Any) -> Any:
            return await script.answer(method, asked, context)

        def encode(answer: Any) -> bytes:
            return response.serialize(answer) if response is not empty else b""

        return grpc.unary_unary_rpc_method_handler(call, request_deserializer=request.deserialize, response_serializer=encode)

    methods = {
        "Subscriber": {
            "Pull": (types.PullRequest, types.PullResponse),
            "Acknowledge": (types.AcknowledgeRequest, empty),
            "ModifyAckDeadline": (types.ModifyAckDeadlineRequest, empty),
            "GetSubscription": (types.GetSubscriptionRequest, types.Subscription),
        },
        "Publisher": {"Publish": (types.PublishRequest, types.PublishResponse)},
    }
    server = grpc.aio.server()
    for service, kinds in methods.items():
        handlers = {method: handler(method, *kind) for method, kind in kinds.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"google.pubsub.v1.{service}", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{port}")
    broker = opened(f"pubsub://{PROJECT}/?{options}")
    try:
        yield broker, script
    finally:
        await broker.close()
        await server.stop(None)


def connections(port: int) -> Iterator[socket.socket]:
    """This process's connections to a port of this machine."""
    for entry in Path("/proc/self/fd").iterdir():
        if entry.is_socket():
            with suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as found:
                if found.getpeername()[1:2] == (port,):
                    yield found


def receipts(*ids: str) -> list[Delivery]:
    """Deliveries with these ack ids."""
    from cloudq_gcp.pubsub import _Receipt

    until = time.time() + 60
    return [Delivery(queue="emails", body="x", receipt=_Receipt(id), message_id=id, lease_until=until) for id in ids]


REASONS = {"gone": "PERMANENT_FAILURE_INVALID_ACK_ID", "busy": "TRANSIENT_FAILURE_SOMETHING", "odd": "PERMANENT_FAILURE_OTHER"}


@pytest.mark.parametrize("method", ["Acknowledge", "ModifyAckDeadline"])
def test_an_exactly_once_refusal_is_mapped_for_each_ack_id(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    async def run() -> None:
        async with scripted(monkeypatch) as (broker, script):
            script.answers[method] = [fails("FAILED_PRECONDITION", REASONS)]
            deliveries = receipts("gone", "busy", "odd", "left out")
            before = [delivery.lease_until for delivery in deliveries]
            answers = await (broker.ack(deliveries) if method == "Acknowledge" else broker.extend(deliveries, 30))
            assert [isinstance(answer, LeaseLost) for answer in answers] == [True, False, False, False]
            assert [answer is not None and answer.retryable for answer in answers] == [False, True, False, True]
            assert [delivery.lease_until for delivery in deliveries] == before
            assert script.count(method) == 1  # a repetition would lose what was confirmed

    asyncio.run(run())


def test_what_was_acked_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an exactly-once subscription a second ack is answered as if the lease had ended."""

    async def run() -> None:
        async with scripted(monkeypatch) as (broker, script):
            script.answers["Acknowledge"] = [replies(), fails("FAILED_PRECONDITION", {"a": REASONS["gone"]})]
            deliveries = receipts("a")
            assert list(await broker.ack(deliveries)) == list(await broker.ack(deliveries)) == [None]
            assert script.count("Acknowledge") == 1

    asyncio.run(run())


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL", "RESOURCE_EXHAUSTED", "ABORTED"])
def test_a_passing_fault_is_repeated(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    async def run() -> None:
        async with scripted(monkeypatch) as (broker, script):
            script.answers["Publish"] = [fails(code), fails(code), *script.answers["Publish"]]
            assert list(await broker.send("emails", [Outgoing(body="x")])) == [None]
            assert script.count("Publish") == 3

    asyncio.run(run())


def test_a_batch_that_pubsub_refuses_is_sent_in_parts_until_the_bad_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with scripted(monkeypatch) as (broker, script):
            fine = script.answers["Publish"][0]
            taken: list[bytes] = []

            async def picky(request: Any, context: Any) -> Any:
                if any(message.data == b"bad" for message in request.messages):
                    return await fails("INVALID_ARGUMENT")(request, context)
                taken.extend(message.data for message in request.messages)
                return await fine(request, context)

            script.answers["Publish"] = [picky]
            bodies = ["a", "b", "bad", "c", "d"]
            answers = await broker.send("emails", [Outgoing(body=body) for body in bodies])
            assert [answer is None for answer in answers] == [True, True, False, True, True]
            assert isinstance(answers[2], SendError)
            assert not answers[2].retryable
            assert taken == [b"a", b"b", b"c", b"d"]

    asyncio.run(run())


def test_a_batch_that_pubsub_refuses_whatever_is_in_it_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with scripted(monkeypatch) as (broker, script):
            script.answers["Publish"] = [fails("FAILED_PRECONDITION")]
            answers = await broker.send("emails", [Outgoing(body=str(number)) for number in range(1_000)])
            assert {answer is not None and answer.code for answer in answers} == {"FAILED_PRECONDITION"}
            assert script.count("Publish") == 1

    asyncio.run(run())


@pytest.mark.parametrize("subscription", [[], [fails("PERMISSION_DENIED")]], ids=["ack deadline of 10 s", "not to be read"])
def test_what_comes_long_after_a_pull_began_is_leased_from_then_on(monkeypatch: pytest.MonkeyPatch, subscription: Any) -> None:
    async def run() -> None:
        async with scripted(monkeypatch, "lease=60&wait=20") as (broker, script):
            script.answers["GetSubscription"] = subscription or script.answers["GetSubscription"]
            broker._clock = clock = ManualClock(time.time())
            at_once = script.answers["Pull"][0]

            async def late(request: Any, context: Any) -> Any:
                clock.advance(12)
                return await at_once(request, context)

            script.answers["Pull"] = [late]
            (delivery,) = await broker.receive("emails", max_messages=1, wait=20)
            assert delivery.lease_until == clock.time() + 60
            assert script.count("ModifyAckDeadline") == 1

    asyncio.run(run())


def test_another_ack_deadline_is_seen_within_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with scripted(monkeypatch, "lease=60") as (broker, script):
            from google.pubsub_v1 import types

            broker._clock = clock = ManualClock(time.time())
            first, changed = script.answers["GetSubscription"][0], replies(lambda _: types.Subscription(ack_deadline_seconds=60))
            script.answers["GetSubscription"] = [first, fails("NOT_FOUND"), changed]
            for expected in (1, 2, 2):  # what cannot be asked for the moment is as it was
                await broker.receive("emails", max_messages=1, wait=0)
                assert script.count("ModifyAckDeadline") == expected
                clock.advance(600)

    asyncio.run(run())


def test_a_request_to_extend_that_hangs_is_given_up_while_there_is_time_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudq_gcp.pubsub._ANSWER", 300.0)

    async def hang(request: Any, context: Any) -> None:
        await asyncio.sleep(300)

    async def run() -> None:
        async with scripted(monkeypatch, "lease=12") as (broker, script):
            script.answers["ModifyAckDeadline"] = [hang]
            async with asyncio.timeout(60):
                with pytest.raises(BrokerUnavailable):
                    await broker.extend(receipts("a1"), 12)

    asyncio.run(run())


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux says when it gives a connection up")
def test_a_connection_dropped_without_a_word_is_given_up_while_a_request_is_still_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cloudq_gcp.client import _PATIENCE  # before the script's

    async def run() -> None:
        async with scripted(monkeypatch) as (broker, _):
            await broker.send("emails", [Outgoing(body="x")])
            port = int(os.environ["PUBSUB_EMULATOR_HOST"].rpartition(":")[2])
            (timeout,) = {each.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) for each in connections(port)}
            assert 0 < timeout < 1_000 * _PATIENCE

    asyncio.run(run())


@pytest.mark.parametrize(("options", "set_again"), [("lease=10", 0), ("lease=60", 1)])
def test_a_lease_is_set_only_where_the_subscription_has_another(monkeypatch: pytest.MonkeyPatch, options: str, set_again: int) -> None:
    async def run() -> None:
        async with scripted(monkeypatch, options) as (broker, script):
            for _ in range(2):
                before = time.time()
                (delivery,) = await broker.receive("emails", max_messages=1, wait=0)
            assert before <= delivery.lease_until - broker.limits.lease <= time.time()
            assert (script.count("GetSubscription"), script.count("ModifyAckDeadline")) == (1, 2 * set_again)

    asyncio.run(run())


def test_without_the_right_to_read_the_subscription_the_lease_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with scripted(monkeypatch) as (broker, script):
            script.answers["GetSubscription"] = [fails("PERMISSION_DENIED")]
            for _ in range(2):
                assert len(await broker.receive("emails", max_messages=1, wait=0)) == 1
            assert (script.count("GetSubscription"), script.count("ModifyAckDeadline")) == (1, 2)
            with pytest.raises(BrokerError, match=r"roles/pubsub\.viewer"):
                await broker.stats("emails")

    asyncio.run(run())


def test_a_message_that_was_lost_to_another_while_it_was_received_is_not_handed_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with scripted(monkeypatch, "lease=30") as (broker, script):
            script.answers["ModifyAckDeadline"] = [fails("FAILED_PRECONDITION", {"a1": REASONS["gone"]})]
            assert list(await broker.receive("emails", max_messages=1, wait=0)) == []
            assert "1 messages are left to be delivered again" in caplog.text

    asyncio.run(run())


# An app and its worker on the emulator.


@pytest.fixture
def shop(pubsub: PubSubServer) -> Any:
    """Calls ``run(app, queue)`` beside a worker of that queue."""

    def play(define: Callable[[CloudQ, str], Callable[[], T]], *, concurrency: int = 4, **subscription: bool) -> T:
        queue = unique()
        pubsub.make_queue(queue, dead_letter=f"{queue}-dlq", **subscription)
        app = CloudQ("shop", broker=f"pubsub://{PROJECT}/?lease=60&wait=2", store=MemoryStore())
        run = define(app, queue)
        worker = Worker(app, WorkerOptions(queues={queue: 1}, concurrency=concurrency))
        worker.start()
        try:
            return run()
        finally:
            worker.stop()
            worker.join(60)
            assert worker._slots.free == worker._slots.total
            app.close()

    return play


@pytest.mark.parametrize("exactly_once", [False, True])
def test_results_retries_delays_and_dead_letters(shop: Any, exactly_once: bool) -> None:
    def define(app: CloudQ, queue: str) -> Callable[[], None]:
        @app.task(queue=queue)
        def add(a: int, b: int) -> int:
            return a + b

        @app.task(queue=queue, bind=True, retry=Retry(max_retries=2, delay=0.5))
        def third_time(self: Any) -> int:
            if self.request.retries < 2:
                raise ConnectionError("not yet")
            return int(self.request.receives)

        @app.task(queue=queue)
        def fail() -> None:
            raise ValueError("always")

        def run() -> None:
            began = time.time()
            late = add.apply_async((1, 1), countdown=2)
            results = [add.delay(number, 1) for number in range(20)]
            retried, failed = third_time.delay(), fail.delay()
            assert [result.get(timeout=60) for result in results] == list(range(1, 21))
            assert retried.get(timeout=60) == 1  # each attempt is a message of its own
            with pytest.raises(TaskFailed, match="always"):
                failed.get(timeout=60)
            assert late.get(timeout=60) == 2
            assert time.time() - began >= 2
            (letter,) = app.io.run(app.broker.receive(app.dead_letter_queue(queue), max_messages=1, wait=2))
            assert json.loads(letter.body)["dead"]["error"]["type"] == "ValueError"

        return run

    shop(define, exactly_once=exactly_once)


def test_ordered_calls_run_one_after_another_in_order(shop: Any) -> None:
    ran: dict[str, list[int]] = {"a": [], "b": []}

    def define(app: CloudQ, queue: str) -> Callable[[], None]:
        @app.task(queue=queue)
        def note(key: str, number: int) -> None:
            ran[key].append(number)

        def run() -> None:
            results = [note.options(ordering_key=key).delay(key, number) for number in range(8) for key in ran]
            for result in results:
                result.get(timeout=60)

        return run

    shop(define, ordered=True)
    assert ran == {"a": list(range(8)), "b": list(range(8))}


def test_a_worker_says_at_its_start_which_queue_is_missing(pubsub: PubSubServer) -> None:
    queue = pubsub.make_queue(unique())  # without a dead-letter queue
    app = CloudQ("shop", broker=f"pubsub://{PROJECT}/")
    worker = Worker(app, WorkerOptions(queues={queue: 1}))
    with pytest.raises(ConfigError, match=f"{queue}-dlq"):
        worker.start()
    app.close()
