"""Large messages on SQS with their bodies in S3: from the call to the run, in every host, and when the body is gone."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from cloudq import CloudQ, Retry, letters, runner
from cloudq.broker import Outgoing
from cloudq.claimcheck import SMALL
from cloudq.errors import EntryTooLarge, MessageTooLarge, SendError
from cloudq.letters import Match
from cloudq.worker import Worker, WorkerOptions
from cloudq_aws.handler import lambda_handler
from tests.event_source import event
from tests.proxy import proxy
from tests.servers import AWS_ENV, REGION, SQSServer, aws_client, free_port, moto, unique, use
from tests.waiting import until

BIG = "x" * 1_200_000
"""More than SQS takes."""


@dataclass
class Site:
    """A queue, a bucket, and an app that uses both."""

    sqs: SQSServer
    s3: Any
    endpoint: str
    """Of S3."""
    bucket: str
    queue: str
    apps: list[CloudQ] = field(default_factory=lambda: [])
    ran: list[tuple[str, int]] = field(default_factory=lambda: [])
    """First characters and length of what ran, in order."""
    failing: bool = False

    def app(self, options: str = "", *, place: bool = True, **settings: Any) -> CloudQ:
        bodies = f"&bodies=s3://{self.bucket}/shop/bodies" if place else ""
        broker = f"sqs://{REGION}/?lease=60&wait=1{bodies}{options}"
        app = CloudQ("claims", **{"broker": broker, "default_queue": self.queue, **settings})
        self.apps.append(app)

        @app.task(name="take", retry=Retry(max_retries=1, delay=0))
        def take(text: str) -> None:
            self.ran.append((text[:6], len(text)))
            if self.failing:
                raise ValueError("not today")

        return app

    def work(self, app: CloudQ, count: int) -> None:
        """Run a worker until ``count`` messages have been handled."""
        worker = Worker(app, WorkerOptions(concurrency=10, wait=1.0, queues={self.queue: 1}))
        worker.start()
        try:
            until(lambda: worker.handled >= count, f"{count} messages")
        finally:
            worker.stop()
            worker.join(60)

    def bodies(self) -> dict[str, bytes]:
        """What lies in the bucket."""
        found = self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {each["Key"]: self.s3.get_object(Bucket=self.bucket, Key=each["Key"])["Body"].read() for each in found}

    def receive(self, queue: str | None = None) -> list[Any]:
        """What can be received now, as it travels."""
        url = self.sqs.boto3.get_queue_url(QueueName=queue or self.queue)["QueueUrl"]
        reply = self.sqs.boto3.receive_message(QueueUrl=url, MaxNumberOfMessages=10, MessageSystemAttributeNames=["All"], WaitTimeSeconds=1)
        return list(reply.get("Messages", []))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    """A client of moto's S3, and its endpoint."""
    with moto(tmp_path_factory.mktemp("s3")) as server:
        client = aws_client("s3", server.endpoint)
        yield client, server.endpoint
        client.close()


@pytest.fixture
def site(sqs: SQSServer, s3: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    client, endpoint = s3
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    bucket, queue = unique("bodies"), unique()
    client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    sqs.make_queue(queue, dead_letter=f"{queue}-dlq")
    site = Site(sqs, client, endpoint, bucket, queue)
    yield site
    for app in site.apps:
        app.close()


def test_large_and_small_calls_run_and_only_the_large_ones_use_the_bucket(site: Site) -> None:
    app = site.app()
    app.send_many([app["take"].s(f"{number:06}{BIG if number % 4 == 0 else ''}") for number in range(12)])
    site.work(app, 12)
    assert sorted(site.ran) == [(f"{number:06}", 6 + (len(BIG) if number % 4 == 0 else 0)) for number in range(12)]
    assert len(site.bodies()) == 3
    assert all(key.startswith("shop/bodies/") for key in site.bodies())


def test_a_large_call_is_retried_dead_looked_at_and_redriven(site: Site) -> None:
    app = site.app()
    site.failing = True
    id = app["take"].delay(f"again {BIG}").id
    site.work(app, 2)  # the call and its retry
    dead_letters = app.dead_letter_queue(site.queue)
    found = app.io.run(letters.scan(app, dead_letters))
    (letter,) = found.letters
    assert (letter.id, letter.task, letter.error["detail"], letter.attempt) == (id, "take", "not today", 1)
    assert len(letter.delivery.body) < SMALL
    site.failing = False
    done = app.io.run(letters.redrive(app, dead_letters, Match(task="take")))
    assert [(each.id, target) for each, target in done.sent] == [(id, site.queue)]
    site.work(app, 1)
    assert site.ran == [("again ", 6 + len(BIG))] * 3
    assert site.sqs.depth(dead_letters) == 0


def test_a_body_that_is_gone_dead_letters_its_claim_only_and_runs_once_it_is_restored(site: Site) -> None:
    app = site.app()
    app["take"].delay(f"lost  {BIG}")
    ((key, lost),) = site.bodies().items()
    site.s3.delete_object(Bucket=site.bucket, Key=key)
    app.send_many([app["take"].s("small"), app["take"].s(f"large {BIG}")])
    site.work(app, 3)
    assert sorted(site.ran) == [("large ", 6 + len(BIG)), ("small", 5)]
    dead_letters = app.dead_letter_queue(site.queue)
    (letter,) = app.io.run(letters.scan(app, dead_letters)).letters
    assert f"s3://{site.bucket}/{key}" in letter.reason
    assert "gone" in letter.reason
    site.s3.put_object(Bucket=site.bucket, Key=key, Body=lost)
    (letter,) = app.io.run(letters.scan(app, dead_letters)).letters
    assert (letter.task, letter.queue) == ("take", site.queue)
    app.io.run(letters.redrive(app, dead_letters, Match(ids=frozenset({letter.id}))))
    site.work(app, 1)
    assert ("lost  ", 6 + len(BIG)) in site.ran


def test_a_forged_body_is_not_run_and_a_bucket_that_is_absent_is_named(site: Site) -> None:
    app = site.app()
    app["take"].delay(BIG)
    ((key, body),) = site.bodies().items()
    site.s3.put_object(Bucket=site.bucket, Key=key, Body=body.replace(b"xxx", b"yyy"))
    site.work(app, 1)
    assert site.ran == []
    (letter,) = app.io.run(letters.scan(app, app.dead_letter_queue(site.queue))).letters
    assert "not what was written there" in letter.reason
    absent = site.app(place=False, broker=f"sqs://{REGION}/?bodies=s3://{site.bucket}-absent")
    with pytest.raises(SendError, match=f"s3://{site.bucket}-absent/.*no such bucket"):
        absent["take"].delay(BIG)


@pytest.mark.parametrize("client", ["aiobotocore", "boto3"])
def test_a_connection_that_is_cut_inside_a_body_makes_its_claim_wait(site: Site, monkeypatch: pytest.MonkeyPatch, client: str) -> None:
    site.app()["take"].delay(f"waits {BIG}")
    monkeypatch.setattr(runner, "BODY_DELAY", 1.0)

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1200000\r\n\r\n" + b"x" * 9000)
        await writer.drain()
        writer.close()

    app = site.app(f"&client={client}")
    s3 = app.io.run(_serve(cut))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{s3.sockets[0].getsockname()[1]}")
    site.work(app, 1)
    app.io.run(_end(s3))
    assert site.sqs.depth(f"{site.queue}-dlq") == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", site.endpoint)
    site.work(site.app(), 1)
    assert site.ran == [("waits ", 6 + len(BIG))]


async def _serve(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> asyncio.Server:
    return await asyncio.start_server(answer, "127.0.0.1", 0)


async def _end(server: asyncio.Server) -> None:
    server.close()


def test_while_s3_is_away_a_claim_waits_and_others_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.app()["take"].delay(f"waits {BIG}")
    monkeypatch.setattr(runner, "BODY_DELAY", 1.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
    cut_off = site.app()
    cut_off["take"].delay("small")
    site.work(cut_off, 2)
    assert site.ran == [("small", 5)]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", site.endpoint)
    site.work(site.app(), 1)
    assert site.ran[1:] == [("waits ", 6 + len(BIG))]
    assert site.sqs.depth(f"{site.queue}-dlq") == 0


def test_a_queue_with_a_small_limit_of_its_own_gets_claims_or_an_error_that_names_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    url = site.sqs.boto3.get_queue_url(QueueName=site.queue)["QueueUrl"]
    site.sqs.boto3.set_queue_attributes(QueueUrl=url, Attributes={"MaximumMessageSize": "2048"})
    without = site.app(place=False)
    with pytest.raises(EntryTooLarge, match=r"takes 2,048; raise the queue's MaximumMessageSize.*bodies=s3://") as caught:
        without["take"].delay("x" * 3000)
    assert isinstance(caught.value, MessageTooLarge)
    with proxy(site.sqs.endpoint) as wire:
        monkeypatch.setenv("AWS_ENDPOINT_URL", wire.endpoint)
        app = site.app()
        for size in (3000, 500, 4000):
            app["take"].delay("x" * size)
        assert wire.requests == {"GetQueueUrl": 1, "GetQueueAttributes": 1, "SendMessageBatch": 3}
    monkeypatch.setenv("AWS_ENDPOINT_URL", site.sqs.endpoint)
    site.work(site.app(), 3)
    assert sorted(size for _, size in site.ran) == [500, 3000, 4000]


def test_without_a_place_a_large_call_is_refused_before_anything_is_sent(site: Site) -> None:
    app = site.app(place=False)
    with pytest.raises(MessageTooLarge, match=r"task 'take'.*1,048,576.*bodies="):
        app["take"].delay(BIG)
    assert site.sqs.depth(site.queue) == 0


def test_large_calls_of_a_group_keep_their_order(site: Site) -> None:
    site.queue = f"{site.queue}.fifo"
    site.sqs.make_queue(site.queue, dead_letter=site.queue.replace(".fifo", "-dlq.fifo"))
    app = site.app()
    texts = [f"{number:06}{BIG if number % 2 == 0 else ''}" for number in range(6)]
    app.send_many([app["take"].s(text).set(ordering_key="one") for text in texts])
    site.work(app, 6)
    assert [head for head, _ in site.ran] == [f"{number:06}" for number in range(6)]


def test_lambda_runs_large_messages_beside_small_ones_warm_too(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    app = site.app("&client=boto3")
    handler = lambda_handler(app)
    arn = f"arn:aws:sqs:{REGION}:123456789012:{site.queue}"
    for round in range(2):
        app.send_many([app["take"].s(f"{round}{number:05}{BIG if number else ''}") for number in range(3)])
        lost = app["take"].delay(f"lost  {BIG}").id
        for key, body in site.bodies().items():
            if json.loads(body)["id"] == lost:
                site.s3.delete_object(Bucket=site.bucket, Key=key)
        messages: list[Any] = []
        while len(messages) < 4 and (some := site.receive()):
            messages += some
        with caplog.at_level(logging.CRITICAL):
            assert handler(event(arn, messages)) == {"batchItemFailures": []}
    assert sorted(site.ran) == [(f"{round}{number:05}", 6 + (len(BIG) if number else 0)) for round in range(2) for number in range(3)]
    dead = [json.loads(message["Body"]) for message in site.receive(f"{site.queue}-dlq")]
    assert [letter.keys() for letter in dead] == [{"v", "claim_check", "dead"}] * 2


def test_a_large_call_for_much_later_is_set_as_a_claim(s3: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """EventBridge Scheduler takes 256 KB, a quarter of what SQS takes."""
    client, endpoint = s3
    use({**AWS_ENV, "AWS_ENDPOINT_URL": endpoint}, monkeypatch)
    bucket, group = unique("bodies"), unique("group")
    client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    sqs, scheduler = aws_client("sqs", endpoint), aws_client("scheduler", endpoint)
    sqs.create_queue(QueueName=f"{group}-work")
    scheduler.create_schedule_group(Name=group)
    role = "arn:aws:iam::123456789012:role/cloudq-scheduler"
    app = CloudQ(
        "claims",
        broker=f"sqs://{REGION}/?prefix={group}-&bodies=s3://{bucket}",
        timer=f"eventbridge://{REGION}/{group}?role={role}&dead_letter=late",
        default_queue="work",
    )
    sqs.create_queue(QueueName=f"{group}-late")
    try:
        app.send_task("any", ["x" * 300_000], delay="3d")
        app.send_task("any", ["x" * 200_000], delay="3d")
        names = [each["Name"] for each in scheduler.list_schedules(GroupName=group)["Schedules"]]
        inputs = [scheduler.get_schedule(GroupName=group, Name=name)["Target"]["Input"] for name in names]
        claims = [found for found in map(json.loads, inputs) if "claim_check" in found]
        assert (len(inputs), len(claims)) == (2, 1)
        body = client.get_object(Bucket=bucket, Key=claims[0]["claim_check"]["key"])["Body"].read()
        assert json.loads(body)["args"] == ["x" * 300_000]
    finally:
        app.close()
        sqs.close()
        scheduler.close()


def test_a_claim_may_be_written_by_anybody(site: Site) -> None:
    """As docs/protocol.md says it, with no cloudq on the sending side."""
    import hashlib

    body = json.dumps({"v": 1, "id": "theirs", "task": "take", "args": [f"theirs{BIG}"]}).encode()
    site.s3.put_object(Bucket=site.bucket, Key="shop/bodies/2027/theirs.json", Body=body)
    claim = {"key": "2027/theirs.json", "size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    app = site.app()
    app.io.run(app.broker.send(site.queue, [Outgoing(body=json.dumps({"v": 1, "claim_check": claim}))]))
    site.work(app, 1)
    assert site.ran == [("theirs", 6 + len(BIG))]
