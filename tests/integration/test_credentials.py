"""Credentials of a role that are away for a moment: broker, store, callers and workers go on once they are there."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import ClientError

from cloudq import CloudQ
from cloudq.broker import Outgoing
from cloudq.errors import BrokerUnavailable, ConfigError, StoreUnavailable
from cloudq.worker import Worker, WorkerOptions
from cloudq_aws.boto import BotoClient
from cloudq_aws.dynamodb import DynamoDBStore
from cloudq_aws.errors import mapped
from cloudq_aws.server import SQSServer, serve_in_thread
from cloudq_aws.sqs import SQSBroker
from tests.servers import AWS_ENV, REGION, DynamoDBServer, free_port, unique, use
from tests.waiting import until


class Metadata(ThreadingHTTPServer):
    """A stand-in for the services that give an instance and a container its role's credentials, while it is ``up``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.up = False
        self.refused = 0
        """Requests that found it away."""


class _Answer(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        self._say("token")

    def do_GET(self) -> None:
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60))  # so soon that a container asks before each request
        keys = {"AccessKeyId": "test", "SecretAccessKey": "test", "Token": "test"}
        role = json.dumps({"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": expires, "Expiration": expires, **keys})
        self._say("role" if self.path.endswith("security-credentials/") else role)

    def _say(self, text: str) -> None:
        assert isinstance(self.server, Metadata)
        self.server.refused += not self.server.up
        self.send_response(200 if self.server.up else 503)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[SQSServer]:
    with serve_in_thread() as running:
        yield running


def without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials in the environment, in a process that has had none."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("cloudq_aws.errors._had_credentials", False)


@pytest.fixture
def metadata(server: SQSServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    use({**AWS_ENV, "AWS_ENDPOINT_URL_SQS": server.endpoint}, monkeypatch)
    without_keys(monkeypatch)
    with Metadata() as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{service.server_port}/")
        yield service
        service.shutdown()


def queue_on(server: SQSServer) -> str:
    name = unique()
    server.broker.create_queue(name)
    return name


@pytest.mark.parametrize("client", ["aiobotocore", "boto3"])
def test_a_broker_that_found_no_credentials_looks_for_them_with_the_next_request(
    server: SQSServer, metadata: Metadata, client: str
) -> None:
    queue = queue_on(server)

    async def scenario() -> None:
        broker = SQSBroker(REGION, client=client)
        with pytest.raises(ConfigError, match="AWS_PROFILE"):  # nobody said that there would be any: a person is told at once
            await broker.send(queue, [Outgoing(body="x")])
        metadata.up = True
        assert await broker.send(queue, [Outgoing(body="x")]) == [None]
        metadata.up = False
        other = SQSBroker(REGION, client=client)  # in this process credentials are known to come back
        with pytest.raises(BrokerUnavailable, match=r"credentials.*next request"):
            await other.send(queue, [Outgoing(body="x")])
        metadata.up = True
        assert await other.send(queue, [Outgoing(body="x")]) == [None]
        await broker.close()
        await other.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("client", ["aiobotocore", "boto3"])
def test_a_store_that_found_no_credentials_looks_for_them_with_the_next_request(
    dynamodb_server: DynamoDBServer, metadata: Metadata, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", dynamodb_server.endpoint)
    if client == "boto3":  # what Lambda uses, which promises a role
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "function")
    table = dynamodb_server.make_table()

    async def scenario() -> None:
        store = DynamoDBStore(table, REGION)
        with pytest.raises(StoreUnavailable if client == "boto3" else ConfigError, match="credentials"):
            await store.put("task", "a", {"n": 1})
        metadata.up = True
        await store.put("task", "a", {"n": 1})
        assert await store.get("task", "a") is not None
        await store.close()

    asyncio.run(scenario())


def test_calls_and_workers_wait_for_credentials_that_are_away_for_a_moment(
    server: SQSServer, metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{metadata.server_port}/role")
    app = CloudQ("role", broker=f"sqs://{REGION}/?wait=1", default_queue=queue_on(server))
    server.broker.create_queue(app.dead_letter_queue(app.conf.default_queue))
    ran: list[str] = []

    @app.task(name="take")
    def take(text: str) -> None:
        ran.append(text)

    metadata.up = True
    take.delay("before")
    worker = Worker(app, WorkerOptions(concurrency=1, wait=1.0, queues={app.conf.default_queue: 1}))
    worker.start()
    try:
        until(lambda: ran == ["before"], "the first task")
        metadata.up = False
        caller = threading.Thread(target=take.delay, args=("while they are away",))
        caller.start()
        before = metadata.refused
        until(lambda: metadata.refused > before + 4, "requests without credentials")
        metadata.up = True
        caller.join(60)
        until(lambda: ran == ["before", "while they are away"], "the second task")
    finally:
        metadata.up = True
        worker.stop()
        worker.join(60)
        app.close()


def test_a_container_is_promised_its_role_from_the_first_request_on(server: SQSServer, monkeypatch: pytest.MonkeyPatch) -> None:
    use({**AWS_ENV, "AWS_ENDPOINT_URL_SQS": server.endpoint}, monkeypatch)
    without_keys(monkeypatch)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{free_port()}/role")

    async def scenario() -> None:
        broker = SQSBroker(REGION)
        with pytest.raises(BrokerUnavailable, match="credentials"):
            await broker.stats("q")
        await broker.close()

    asyncio.run(scenario())


def test_the_loop_goes_on_while_a_thread_looks_for_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    use(AWS_ENV, monkeypatch)
    without_keys(monkeypatch)

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{silent.getsockname()[1]}/role")
            client = BotoClient("sqs", REGION, read_timeout=1.0)
            began = time.monotonic()
            first = asyncio.create_task(client.request("ListQueues", within=1.5))
            silent.settimeout(30)
            (await asyncio.to_thread(silent.accept))[0].close()  # it asks
            for request in (first, client.request("ListQueues", within=0.1)):
                with pytest.raises(TimeoutError):
                    await request
            await client.close()
            assert time.monotonic() - began < 5, "as long as the credentials are asked for"

    asyncio.run(scenario())


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestExpired", "RequestTimeTooSkewed", "InvalidSignatureException"])
def test_credentials_that_are_no_longer_accepted_are_waited_for_and_the_clock_is_named(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    refused = ClientError({"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "SendMessage")
    for had in (False, True):
        monkeypatch.setattr("cloudq_aws.errors._had_credentials", had)
        with pytest.raises(Exception, match="this machine's clock") as caught, mapped("SendMessage", "q"):
            raise refused
        assert isinstance(caught.value, BrokerUnavailable) is had


def test_a_role_that_sts_does_not_give_is_no_missing_permission_of_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token")
    refused = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "AssumeRoleWithWebIdentity")
    with pytest.raises(BrokerUnavailable, match=r"credentials.*AssumeRoleWithWebIdentity.*role"), mapped("SendMessage", "q"):
        raise refused


@pytest.mark.parametrize(
    "error",
    [
        ClientError({"Error": {"Code": "Throttling", "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 400}}, "AssumeRole"),
        ClientError({"Error": {"Code": "InternalFailure", "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 500}}, "AssumeRole"),
    ],
)
def test_an_sts_that_cannot_serve_now_is_asked_again_also_by_who_has_had_no_credentials(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("cloudq_aws.errors._had_credentials", False)
    with pytest.raises(BrokerUnavailable, match="AWS could not serve it now"), mapped("SendMessage", "q"):
        raise error


def test_credentials_that_were_renewed_and_are_still_expired_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudq_aws.errors._had_credentials", True)
    expired = datetime.now(UTC) - timedelta(hours=1)
    given = {"access_key": "A", "secret_key": "B", "token": "C", "expiry_time": expired.isoformat()}
    credentials = RefreshableCredentials.create_from_metadata(given, refresh_using=lambda: given, method="iam-role")
    with pytest.raises(BrokerUnavailable, match="no usable AWS credentials"), mapped("SendMessage", "q"):
        credentials.get_frozen_credentials()
