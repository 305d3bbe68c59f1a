"""The push host before its first message: what it loads, and what it refuses to start with."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import cloudq_gcp
from cloudq import CloudQ
from cloudq.errors import ConfigError
from cloudq_gcp.function import cloud_event
from cloudq_gcp.push import push_app

HEAVY = {"grpc", "google.pubsub_v1", "google.cloud", "google.api_core", "google.protobuf", "requests", "pydantic", "cloudq.worker.worker"}

SERVED = """
import asyncio, base64, json, sys
from pathlib import Path
from cloudq import CloudQ
from cloudq_gcp.push import push_app
from tests.push_host import ACCOUNT, AUDIENCE, issuer, push

app = CloudQ("shop", broker="pubsub://p/", timer="cloudtasks://p/europe-west1/later?service_account=tasks@p.iam.gserviceaccount.com")
ran = []

@app.task(name="note", bind=True)
def note(self, value: int) -> None:
    ran.append((self.request.queue, value))

@app.task(name="anote")
async def anote(value: int) -> None:
    ran.append(("anote", value))

async def request(asgi, body, token):
    sent = []
    headers = [(b"Authorization", f"Bearer {token}".encode())]
    scope = {"type": "http", "path": "/", "method": "POST", "headers": headers}
    parts = [{"type": "http.request", "body": body[:10], "more_body": True}, {"type": "http.request", "body": body[10:]}]
    async def receive():
        return parts.pop(0)
    async def send(message):
        sent.append(message)
    await asgi(scope, receive, send)
    return sent[0]["status"]

async def main(google):
    asgi = push_app(app, audience=AUDIENCE, service_account=ACCOUNT, certs_url=google.url, queues={"old-name": "invoices"})
    for task, subscription in (("note", "orders"), ("anote", "orders"), ("note", "old-name")):
        body = push(json.dumps({"v": 1, "id": task, "task": task, "args": [7]}), subscription=f"projects/p/subscriptions/{subscription}")
        assert await request(asgi, body, google.token()) == 204
    assert ran == [("orders", 7), ("anote", 7), ("invoices", 7)]

with issuer() as google:
    asyncio.run(main(google))
app.close()
"""


@pytest.mark.parametrize("code", ["import cloudq_gcp.push, cloudq_gcp.function", SERVED], ids=["import", "served"])
def test_a_push_service_loads_no_client_before_something_is_sent(code: str) -> None:
    ending = "import sys\nprint('loaded', *sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{textwrap.dedent(code)}\n{ending}"], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    loaded = set(ran.stdout.split())
    namespaces = {"google.cloud"}  # made at the interpreter's start by a file of a Google package, and empty
    assert "cloudq_gcp.push" in loaded
    assert not (HEAVY - namespaces) & loaded
    assert not [name for name in loaded if name.startswith("google.cloud.")]


def test_without_an_audience_and_an_account_it_does_not_start_but_for_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    app = CloudQ("shop", broker="pubsub://p/")
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    for given in ({}, {"audience": "https://x/"}, {"service_account": "x@y"}, {"audience": "", "service_account": ""}):
        with pytest.raises(ConfigError, match="audience"):
            push_app(app, **given)  # type: ignore[arg-type]
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    assert push_app(app)
    with pytest.raises(ConfigError, match="audience"):
        push_app(app, audience="https://x/")


def test_a_broker_of_this_process_and_nonsense_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    with pytest.raises(ConfigError, match="outlives the process"):
        push_app(CloudQ("shop", broker="memory://"))
    app = CloudQ("shop", broker="pubsub://p/")
    with pytest.raises(ConfigError, match="concurrency"):
        push_app(app, concurrency=0)
    with pytest.raises(ConfigError, match="3600"):
        cloud_event(app, timeout=0)


def test_pushed_queues_hold_nothing_so_delays_are_the_timers() -> None:
    app = CloudQ("shop", broker="pubsub://p/?hold=60")
    cloud_event(app)
    assert app.broker.limits.hold == 0


def test_the_package_offers_its_hosts() -> None:
    assert cloudq_gcp.push_app is push_app
    assert cloudq_gcp.cloud_event is cloud_event
