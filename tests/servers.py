"""Real servers as session fixtures: started once on free ports of 127.0.0.1, killed with their process group at the end."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import pytest

_READY = 120.0
"""Seconds that a server may take to answer its first request, however slow the machine."""

REGION = "eu-west-1"

AWS_ENV: Mapping[str, str] = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What keeps an AWS SDK away from the settings of the person who runs the tests."""

_FOREIGN = (
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_DYNAMODB",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_SQS",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
)


@dataclass(frozen=True)
class SQSServer:
    """A server that speaks SQS. ``kind`` is for messages only: a test asks for what a server does, never for its name."""

    kind: str
    endpoint: str

    @property
    def env(self) -> dict[str, str]:
        """The environment that leads an AWS SDK to it."""
        return {**AWS_ENV, "AWS_ENDPOINT_URL": self.endpoint}

    @cached_property
    def boto3(self) -> Any:
        """A plain client, for what tests do beside cloudq: making queues and looking into them."""
        return aws_client("sqs", self.endpoint)

    def make_queue(self, name: str, *, dead_letter: str | None = None, max_receives: int = 10, **attributes: str) -> str:
        """Create a queue, and the dead-letter queue that it names; return its URL. A name ending in ``.fifo`` makes an ordered one."""
        if dead_letter is not None:
            url = self.make_queue(dead_letter)
            arn = self.boto3.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
            attributes["RedrivePolicy"] = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": max_receives})
        if name.endswith(".fifo"):
            attributes["FifoQueue"] = "true"
        return str(self.boto3.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"])

    def depth(self, name: str) -> int:
        """Messages in the queue, whether they can be received, are in flight or delayed."""
        url = self.boto3.get_queue_url(QueueName=name)["QueueUrl"]
        return sum(int(count) for count in self.boto3.get_queue_attributes(QueueUrl=url, AttributeNames=_COUNTS)["Attributes"].values())


_COUNTS = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"]


@dataclass(frozen=True)
class DynamoDBServer:
    """A server that speaks DynamoDB. ``kind`` is for messages only."""

    kind: str
    endpoint: str
    tells: bool
    """Whether it honours ReturnValuesOnConditionCheckFailure, as AWS does."""
    s3: Any = None
    """A plain client of its S3, where it has one."""

    @property
    def env(self) -> dict[str, str]:
        """The environment that leads an AWS SDK to it."""
        return {**AWS_ENV, "AWS_ENDPOINT_URL": self.endpoint}

    @cached_property
    def boto3(self) -> Any:
        """A plain client, for what tests do beside cloudq."""
        return aws_client("dynamodb", self.endpoint)

    @cached_property
    def table(self) -> str:
        """A table for all tests together."""
        return self.make_table()

    def make_table(self) -> str:
        """Create a table as ``cloudq deploy`` does; return its name."""
        name = unique("cloudq")
        self.boto3.create_table(
            TableName=name,
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
        )
        self.boto3.get_waiter("table_exists").wait(TableName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        return name


def aws_client(service: str, endpoint: str) -> Any:
    """A plain boto3 client of a server of ours."""
    import boto3

    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=AWS_ENV["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=AWS_ENV["AWS_SECRET_ACCESS_KEY"],
    )


@dataclass
class Running:
    """A server process under way; ``log`` is what it wrote."""

    process: subprocess.Popen[bytes]
    log: Path
    command: Sequence[str] = field(default_factory=list)

    def stop(self) -> None:
        """End the whole process group: some servers have children."""
        for number, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0)):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(patience)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self.process.wait(30.0)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, kept for this process until it ends.

    The system gives it to no outgoing connection, as it would one of its own choice (Linux: from 32768 on; others: from 49152 on). What
    keeps it from the other processes of the run is a UDP socket of the same number.
    """
    for _ in range(1_000):
        port, keeper = random.SystemRandom().randrange(20_000, 32_000), socket.socket(type=socket.SOCK_DGRAM)
        try:
            keeper.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            keeper.close()
        else:
            keeper.detach()  # it stays open
            return port
    raise OSError("no port is free")


@contextmanager
def running(command: Sequence[str], *, ready: str, log: Path, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Run a server in a process group of its own, from when the URL ``ready`` answers until the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **(env or {})}, start_new_session=True
        )
    server = Running(process, log, command)
    try:
        _await_ready(server, ready)
        yield server
    finally:
        server.stop()


def _await_ready(server: Running, url: str) -> None:
    deadline = time.monotonic() + _READY
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError as error:
            error.close()
            return  # it answers
        except OSError:
            time.sleep(0.05)
    pytest.fail(f"{' '.join(server.command)} did not answer on {url}; it wrote:\n{server.log.read_text(errors='replace')[-2000:]}")


def missing(what: str, install: str) -> NoReturn:
    """Skip for want of a server; with CLOUDQ_REQUIRE=all (CI sets it) fail."""
    message = f"{what} is not installed: {install}"
    if os.environ.get("CLOUDQ_REQUIRE") == "all":
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def moto(folder: Path) -> Iterator[SQSServer]:
    """moto's server: SQS in memory. It closes each connection."""
    with _moto(folder) as endpoint:
        yield SQSServer("moto", endpoint)


@contextmanager
def moto_dynamodb(folder: Path) -> Iterator[DynamoDBServer]:
    """moto's server: DynamoDB and S3 in memory."""
    with _moto(folder) as endpoint:
        s3 = aws_client("s3", endpoint)
        try:
            yield DynamoDBServer("moto", endpoint, tells=True, s3=s3)
        finally:
            s3.close()


@contextmanager
def moto_cloudformation(folder: Path, tools: Path) -> Iterator[str]:
    """The endpoint of a moto whose CloudFormation makes all of our templates; ``tools`` is the folder of infrastructure tools."""
    with _moto(folder, "moto_cloudformation.py", str(tools)) as endpoint:
        yield endpoint


@contextmanager
def _moto(folder: Path, script: str = "moto_server.py", *arguments: str) -> Iterator[str]:
    if find_spec("moto") is None or find_spec("flask") is None:
        missing("moto", "pip install 'moto[server]'")
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments, "-H", "127.0.0.1", "-p", str(port)]
    endpoint = f"http://127.0.0.1:{port}"
    with running(command, ready=f"{endpoint}/moto-api/", log=folder / "moto.log", env=AWS_ENV):
        yield endpoint


_DYNALITE = "dynalite@4.0.0"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudq-tests"
"""Where servers are installed: outside the checkout, so that each clone, and the suite on the wheel, finds them there."""


@contextmanager
def dynalite(folder: Path) -> Iterator[DynamoDBServer]:
    """dynalite: DynamoDB in memory, from npm. It knows no ReturnValuesOnConditionCheckFailure, no transactions and no TTL."""
    cli = _npm(_DYNALITE) / "node_modules" / "dynalite" / "cli.js"
    endpoint = f"http://127.0.0.1:{(port := free_port())}"
    command = ["node", str(cli), "--host", "127.0.0.1", "--port", str(port), "--createTableMs", "20"]
    with running(command, ready=endpoint, log=folder / "dynalite.log"):
        yield DynamoDBServer("dynalite", endpoint, tells=False)


def _npm(package: str) -> Path:
    """The folder that holds an npm package, installed there once."""
    home = CACHE / package
    if not home.exists():
        if which("npm") is None or which("node") is None:
            missing(package, "install Node.js with npm")
        CACHE.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=CACHE) as fresh:
            command = ["npm", "install", "--prefix", fresh, "--no-audit", "--no-fund", "--ignore-scripts", package]
            ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500, check=False)
            if ran.returncode:
                missing(package, f"{' '.join(command)} failed: {ran.stderr[-500:]}")
            with suppress(OSError):  # another run was quicker
                Path(fresh).rename(home)
                Path(fresh).mkdir()
    return home


@contextmanager
def ours(folder: Path) -> Iterator[SQSServer]:
    """Our own: the memory broker in SQS's protocol."""
    endpoint = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-W", "error", "-m", "cloudq_aws.server", "--port", str(port)]
    with running(command, ready=f"{endpoint}/_cloudq/health", log=folder / "ours.log"):
        yield SQSServer("ours", endpoint)


SQS_SERVERS = {"moto": moto, "ours": ours}
"""Every server that the SQS driver is tested on: a context manager each, given a folder for its log."""


@pytest.fixture(scope="session", params=sorted(SQS_SERVERS))
def sqs_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SQSServer]:
    """Each server that speaks SQS, one after another."""
    with SQS_SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as server:
        try:
            yield server
        finally:
            server.boto3.close()


@pytest.fixture
def sqs(sqs_server: SQSServer, monkeypatch: pytest.MonkeyPatch) -> SQSServer:
    """The server, with this process's environment leading to it."""
    use(sqs_server.env, monkeypatch)
    return sqs_server


DYNAMODB_SERVERS = {"dynalite": dynalite, "moto": moto_dynamodb}
"""Every server that the DynamoDB driver is tested on, as above."""


@pytest.fixture(scope="session", params=sorted(DYNAMODB_SERVERS))
def dynamodb_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DynamoDBServer]:
    """Each server that speaks DynamoDB, one after another."""
    with DYNAMODB_SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as server:
        try:
            yield server
        finally:
            server.boto3.close()


@pytest.fixture
def dynamodb(dynamodb_server: DynamoDBServer, monkeypatch: pytest.MonkeyPatch) -> DynamoDBServer:
    """The server, with this process's environment leading to it."""
    use(dynamodb_server.env, monkeypatch)
    return dynamodb_server


def use(env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``env`` the AWS settings of this process until the test ends."""
    for name in _FOREIGN:
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)


def unique(name: str = "q") -> str:
    """A queue name of the test's own."""
    return f"{name}-{uuid.uuid4().hex[:12]}"
