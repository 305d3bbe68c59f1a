"""Signed and encrypted messages on an SQS server: workers, the Lambda host, commands, and data keys of a KMS."""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudq import CloudQ, letters
from cloudq.errors import ConfigError, KeysError, KeysUnavailable
from cloudq.letters import Match
from cloudq.worker import Worker, WorkerOptions
from cloudq_aws.handler import lambda_handler
from cloudq_aws.kms import KMSKeys
from tests.event_source import event
from tests.proxy import Answer, first, proxy
from tests.servers import AWS_ENV, REGION, SQSServer, aws_client, free_port, moto, ours, unique, use
from tests.waiting import until

OLD, NEW, WRONG = (f"{id}:{base64.b64encode(seed * 32).decode()}" for id, seed in (("old", b"o"), ("new", b"n"), ("new", b"w")))

TASKS = """
import os
from cloudq import CloudQ

app = CloudQ("sealed", default_queue=os.environ["QUEUE"])

@app.task(name="take")
def take(text: str) -> None:
    with open("ran", "a") as file:
        file.write(text + "\\n")
    if text.startswith("fail"):
        raise ValueError(text)
"""


class Site:
    """A queue, and apps with different keys that use it."""

    def __init__(self, server: SQSServer) -> None:
        self.server = server
        self.queue = unique("sealed")
        self.ran: list[str] = []
        self.apps: list[CloudQ] = []
        server.make_queue(self.queue, dead_letter=f"{self.queue}-dlq")

    def app(self, *, options: str = "", **keys: Any) -> CloudQ:
        app = CloudQ("sealed", broker=f"sqs://{REGION}/?lease=60&wait=1{options}", default_queue=self.queue, **keys)
        self.apps.append(app)

        @app.task(name="take")
        def take(text: str) -> None:
            self.ran.append(text)
            if text.startswith("fail"):
                raise ValueError(text)

        return app

    def work(self, app: CloudQ, count: int) -> None:
        """Run a worker until ``count`` messages have been handled."""
        worker = Worker(app, WorkerOptions(concurrency=4, wait=1.0, queues={self.queue: 1}))
        worker.start()
        try:
            until(lambda: worker.handled >= count, f"{count} messages")
        finally:
            worker.stop()
            worker.join(60)

    def receive(self, queue: str | None = None) -> list[Any]:
        url = self.server.boto3.get_queue_url(QueueName=queue or self.queue)["QueueUrl"]
        reply = self.server.boto3.receive_message(QueueUrl=url, MaxNumberOfMessages=10, MessageSystemAttributeNames=["All"])
        return list(reply.get("Messages", []))

    def reasons(self, app: CloudQ) -> list[str]:
        found = app.io.run(letters.scan(app, f"{self.queue}-dlq"))
        return sorted(letter.reason for letter in found.letters)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SQSServer]:
    with ours(tmp_path_factory.mktemp("ours")) as server:
        yield server
        server.boto3.close()


@pytest.fixture
def site(server: SQSServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Site]:
    use(server.env, monkeypatch)
    caplog.set_level(logging.CRITICAL)
    site = Site(server)
    yield site
    for app in site.apps:
        app.close()


@pytest.mark.parametrize("host", ["worker", "lambda"])
def test_only_who_has_a_key_is_heard(site: Site, host: str) -> None:
    producers = {
        "signed": site.app(signing=NEW),
        "signed with the old key": site.app(signing=OLD),
        "signed and encrypted": site.app(signing=NEW, encryption=NEW),
        "unsigned": site.app(),
        "of a wrong key": site.app(signing=WRONG),
        "only encrypted": site.app(encryption=NEW),
        "fail": site.app(signing=OLD, encryption=NEW),
    }
    for text, app in producers.items():
        app["take"].delay(text)
    host_app = site.app(options="&client=boto3" if host == "lambda" else "", signing=f"{NEW},{OLD}", encryption=NEW)
    if host == "worker":
        site.work(host_app, 7)
    else:
        messages: list[Any] = []
        while len(messages) < 7 and (some := site.receive()):
            messages += some
        assert lambda_handler(host_app)(event(f"arn:aws:sqs:{REGION}:123456789012:{site.queue}", messages)) == {"batchItemFailures": []}
    assert sorted(site.ran) == ["fail", "signed", "signed and encrypted", "signed with the old key"]
    fits = "its signature does not fit: it was changed on its way, or written with another key of the same id"
    assert site.reasons(host_app) == ["it is not signed", "it is not signed", "it raised ValueError", fits]
    done = host_app.io.run(letters.redrive(host_app, f"{site.queue}-dlq", Match(error="ValueError")))
    assert len(done.sent) == 1
    if host == "worker":
        site.work(host_app, 1)
        assert site.ran.count("fail") == 2


def test_a_direct_invocation_is_allowed_by_iam_and_needs_no_signature(site: Site) -> None:
    handler = lambda_handler(site.app(options="&client=boto3", signing=NEW))
    assert handler({"task": "take", "args": ["direct"]}) is None
    assert site.ran == ["direct"]


def test_child_processes_run_what_their_parent_has_opened_and_commands_show_what_they_have_keys_for(site: Site, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    keys = {"CLOUDQ_SIGNING_KEYS": NEW, "CLOUDQ_ENCRYPTION_KEYS": OLD}

    def run(*args: str, **env: str) -> str:
        command = [sys.executable, "-m", "cloudq", "-A", "tasks:app", *args]
        environment = {**os.environ, "QUEUE": site.queue, "CLOUDQ_BROKER": f"sqs://{REGION}/?lease=60", **env}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout + ("" if "--json" in args or "export" in args else done.stderr)

    for text in ("well", "fail hunter2"):
        run("call", "take", text, **keys)
    assert "hunter2" not in json.dumps(site.server.boto3.receive_message(QueueUrl=_url(site), VisibilityTimeout=0))
    run("worker", "--drain", "--processes", "1", **keys)
    assert sorted((tmp_path / "ran").read_text().split("\n")) == ["", "fail hunter2", "well"]
    (letter,) = site.app(encryption=OLD).io.run(letters.scan(site.apps[-1], f"{site.queue}-dlq")).letters
    shown = json.loads(run("dlq", "show", site.queue, letter.id, "--payload", "--json", **keys))
    assert (shown["encrypted"], shown["message"]["args"], shown["error"]["detail"]) == (False, ["fail hunter2"], "fail hunter2")
    blind = run("dlq", "show", site.queue, letter.id, "--payload", "--json")
    assert json.loads(blind)["encrypted"]
    assert "hunter2" not in blind
    assert "no key that opens it" in run("dlq", "show", site.queue, letter.id)
    exported = json.loads(run("dlq", "export", site.queue))
    assert base64.b64decode(exported["raw"]).decode() == letter.text  # nothing that could be opened later is lost


def _url(site: Site) -> str:
    return str(site.server.boto3.get_queue_url(QueueName=site.queue)["QueueUrl"])


# ---------------------------------------------------------------------- data keys of a KMS


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str, str]]:
    """A client of moto's KMS, its endpoint, and the ARN of a key that also is ``alias/cloudq``."""
    with moto(tmp_path_factory.mktemp("kms")) as server:
        client = aws_client("kms", server.endpoint)
        arn = client.create_key()["KeyMetadata"]["Arn"]
        client.create_alias(AliasName="alias/cloudq", TargetKeyId=arn)
        yield client, server.endpoint, arn
        client.close()


@pytest.mark.parametrize("client", ["aiobotocore", "boto3"])
def test_messages_are_encrypted_under_a_kms_key(
    site: Site, kms: tuple[Any, str, str], client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, endpoint, arn = kms
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", endpoint)
    sender = site.app(encryption=f"2026:kms://{REGION}/alias/cloudq?client={client}")
    sender.send_many([sender["take"].s(f"hidden {number}") for number in range(12)])
    sender["take"].delay("fail hidden")
    bodies = json.dumps(site.server.boto3.receive_message(QueueUrl=_url(site), MaxNumberOfMessages=10, VisibilityTimeout=0))
    assert "2026" in bodies
    assert "hidden" not in bodies
    host = site.app(options="&client=boto3", encryption=f"local:{NEW.partition(':')[2]},2026:kms:///{arn}?client={client}")
    if client == "boto3":
        messages: list[Any] = []
        while len(messages) < 13 and (some := site.receive()):
            messages += some
        assert lambda_handler(host)(event(f"arn:aws:sqs:{REGION}:123456789012:{site.queue}", messages)) == {"batchItemFailures": []}
    else:
        site.work(host, 13)
    assert sorted(site.ran) == sorted(["fail hidden", *(f"hidden {number}" for number in range(12))])
    assert json.loads(site.receive(f"{site.queue}-dlq")[0]["Body"])["enc"].startswith("local.")


@pytest.mark.parametrize("code", ["DisabledException", "KMSInvalidStateException", "AccessDeniedException", "NotFoundException"])
def test_messages_wait_while_their_key_is_switched_off(
    site: Site, kms: tuple[Any, str, str], code: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cloudq.runner.BODY_DELAY", 1.0)
    caplog.set_level(logging.ERROR, "cloudq.kms")
    with proxy(kms[1]) as wire:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", wire.endpoint)
        keys = f"2026:kms://{REGION}/alias/cloudq"
        site.app(encryption=keys)["take"].delay("hidden")
        wire.decide = lambda request: Answer(400, {"__type": code, "message": "no"}) if request.action == "Decrypt" else None
        host = site.app(encryption=keys)
        site.work(host, 2)
        wire.decide = None
        site.work(host, 1)
    assert site.ran == ["hidden"]
    assert site.server.depth(f"{site.queue}-dlq") == 0
    (said,) = [record.getMessage() for record in caplog.records if record.name == "cloudq.kms"]
    assert "messages wait for their key" in said
    assert "alias/cloudq" in said


def test_a_key_that_was_not_wrapped_by_ours_makes_a_dead_letter(
    site: Site, kms: tuple[Any, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy(kms[1]) as wire:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", wire.endpoint)
        app = site.app(encryption=f"2026:kms://{REGION}/alias/cloudq")
        for wrong in (
            {"__type": "InvalidCiphertextException"},
            {
                "__type": "ValidationException",
                "message": "1 validation error detected: Value at 'ciphertextBlob' failed to satisfy constraint",
            },
        ):
            app["take"].delay("hidden")
            wire.decide = first(99, Answer(400, wrong), "Decrypt")
            site.work(site.app(encryption=f"2026:kms://{REGION}/alias/cloudq"), 1)
    assert site.ran == []
    assert [reason.partition(":")[0] for reason in site.reasons(app)] == ["it could not be decrypted"] * 2


def test_what_kms_refuses_is_said_with_what_to_do(kms: tuple[Any, str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    client, endpoint, arn = kms
    use({**AWS_ENV, "AWS_ENDPOINT_URL": endpoint}, monkeypatch)
    app = CloudQ("kms", broker="memory://")
    ours, other = KMSKeys("alias/cloudq", REGION), KMSKeys(client.create_key()["KeyMetadata"]["KeyId"], REGION)

    async def ask() -> None:
        secret, wrapped = await ours.generate()
        assert await KMSKeys(arn, REGION, client="boto3").unwrap(wrapped) == secret
        with pytest.raises(KeysError, match=r"did not wrap it|access denied"):  # moto says the latter
            await other.unwrap(wrapped)  # nobody can bring a key of their own
        with pytest.raises(KeysError, match=r"did not wrap it|access denied"):
            await ours.unwrap(b"x" * 150)
        with pytest.raises(KeysError, match="alias/missing"):
            await KMSKeys("alias/missing", REGION, client="boto3").generate()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        with pytest.raises(KeysUnavailable, match="could not be reached"):
            await KMSKeys("alias/cloudq", REGION, client="boto3").generate()
        await ours.close()
        await other.close()

    app.io.run(ask())
    app.close()
    with pytest.raises(ConfigError, match="names no key"):
        CloudQ("kms", encryption=f"a:kms://{REGION}/")
