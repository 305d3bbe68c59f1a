"""Large messages on Pub/Sub with their bodies in Cloud Storage: from the call to the run, and when the body is gone or forged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from cloudq import CloudQ, Retry, letters, runner
from cloudq.adapters import AdapterContext, Location
from cloudq.broker import Outgoing
from cloudq.claimcheck import SMALL, ChecksBodies
from cloudq.clock import ManualClock, SystemClock
from cloudq.errors import ConfigError, EntryTooLarge, MessageTooLarge, SendError
from cloudq.letters import Match
from cloudq.worker import Worker, WorkerOptions
from cloudq_gcp.pubsub import adapter
from tests.gcp_servers import PROJECT, PubSubServer, StorageServer
from tests.google_api import google_api
from tests.servers import free_port, unique
from tests.waiting import until

BIG = "x" * 200_000
"""More than what the apps of most tests leave to Pub/Sub."""
OVER = "&bodies_over=100000"


@dataclass
class Site:
    """A queue, a bucket, and an app that uses both."""

    pubsub: PubSubServer
    storage: StorageServer
    bucket: str
    queue: str
    apps: list[CloudQ] = field(default_factory=lambda: [])
    ran: list[tuple[str, int]] = field(default_factory=lambda: [])
    """First characters and length of what ran, in order."""
    failing: bool = False

    def app(self, options: str = OVER, *, place: bool = True, **settings: Any) -> CloudQ:
        bodies = f"&bodies=gs://{self.bucket}/shop/bodies{options}" if place else ""
        broker = f"pubsub://{PROJECT}/?lease=60&wait=1{bodies}"
        given: dict[str, Any] = {"broker": broker, "default_queue": self.queue, **settings}
        app = CloudQ("claims", **given)
        self.apps.append(app)

        @app.task(name="take", retry=Retry(max_retries=1, delay=0))
        def take(text: str) -> None:
            self.ran.append((text[:6], len(text)))
            if self.failing:
                raise ValueError("not today")

        return app

    def work(self, app: CloudQ, count: int, also: Callable[[], bool] = lambda: True) -> None:
        """Run a worker until ``count`` messages have been handled, and ``also()`` is true."""
        worker = Worker(app, WorkerOptions(concurrency=10, wait=1.0, queues={self.queue: 1}))
        worker.start()
        try:
            until(lambda: worker.handled >= count and also(), f"{count} messages")
        finally:
            worker.stop()
            worker.join(60)


@pytest.fixture
def site(pubsub: PubSubServer, storage: StorageServer) -> Iterator[Site]:
    queue = unique()
    pubsub.make_queue(queue, dead_letter=f"{queue}-dlq")
    site = Site(pubsub, storage, storage.make_bucket(), queue)
    yield site
    for app in site.apps:
        app.close()


def test_what_is_over_10_mb_runs_and_what_pubsub_takes_does_not_use_the_bucket(site: Site) -> None:
    app = site.app("")
    texts = ["small", "fits  " + "x" * 8_000_000, "large " + "x" * 10_000_000]
    app.send_many([app["take"].s(text) for text in texts])
    site.work(app, 3)
    assert sorted(site.ran) == sorted((text[:6], len(text)) for text in texts)
    (name,) = site.storage.objects(site.bucket)
    assert name.startswith("shop/bodies/")
    with pytest.raises(MessageTooLarge, match="16,777,216"):
        app["take"].delay("x" * (17 << 20))


def test_a_large_call_is_retried_dead_looked_at_and_redriven(site: Site) -> None:
    app = site.app()
    site.failing = True
    id = app["take"].delay(f"again {BIG}").id
    site.work(app, 2)  # the call and its retry
    dead_letters = app.dead_letter_queue(site.queue)
    (letter,) = app.io.run(letters.scan(app, dead_letters)).letters
    assert (letter.id, letter.task, letter.error["detail"], letter.attempt) == (id, "take", "not today", 1)
    assert len(letter.delivery.body) < SMALL
    site.failing = False
    done = app.io.run(letters.redrive(app, dead_letters, Match(task="take")))
    assert [(each.id, target) for each, target in done.sent] == [(id, site.queue)]
    site.work(app, 1)
    assert site.ran == [("again ", 6 + len(BIG))] * 3
    assert site.pubsub.bodies(dead_letters) == []


def test_a_body_that_is_gone_or_forged_dead_letters_its_claim_only_and_runs_once_it_is_restored(site: Site) -> None:
    app = site.app()
    kept: dict[str, bytes] = {}
    for word in ("lost  ", "forged"):
        app["take"].delay(word + BIG)
        (name,) = set(site.storage.objects(site.bucket)) - kept.keys()
        kept[name] = site.storage.read(site.bucket, name)
    lost, forged = kept
    site.storage.delete(site.bucket, lost)
    site.storage.write(site.bucket, forged, kept[forged].replace(b"xxx", b"yyy"))
    app.send_many([app["take"].s("small"), app["take"].s(f"large {BIG}")])
    site.work(app, 4)
    assert sorted(site.ran) == [("large ", 6 + len(BIG)), ("small", 5)]
    dead_letters = app.dead_letter_queue(site.queue)
    found = app.io.run(letters.scan(app, dead_letters)).letters
    reasons = sorted(letter.reason for letter in found)
    assert len(reasons) == 2
    assert any(f"gs://{site.bucket}/{lost}: it is gone" in reason for reason in reasons)
    assert any(f"gs://{site.bucket}/{forged} is not what was written there" in reason for reason in reasons)
    for name, body in kept.items():
        site.storage.write(site.bucket, name, body)
    app.io.run(letters.redrive(app, dead_letters, Match(task="take")))
    site.work(app, 2)
    assert sorted(site.ran[2:]) == [("forged", 6 + len(BIG)), ("lost  ", 6 + len(BIG))]


def test_while_storage_is_away_a_claim_waits_and_others_run(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site.app()["take"].delay(f"waits {BIG}")
    monkeypatch.setattr(runner, "BODY_DELAY", 1.0)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"127.0.0.1:{free_port()}")
    cut_off = site.app()
    cut_off["take"].delay("small")
    with caplog.at_level(logging.WARNING, "cloudq.runner"):
        site.work(cut_off, 1, also=lambda: " waits: reading gs://" in caplog.text)
    assert site.ran == [("small", 5)]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", site.storage.address)
    site.work(site.app(), 1)
    assert site.ran[1:] == [("waits ", 6 + len(BIG))]
    assert site.pubsub.bodies(f"{site.queue}-dlq") == []


def test_without_a_place_a_large_call_is_refused_before_anything_is_sent(site: Site) -> None:
    app = site.app(place=False)
    with pytest.raises(MessageTooLarge, match=r"task 'take'.*the broker takes 8,900,000.*bodies="):
        app["take"].delay("x" * 9_000_000)
    (answer,) = app.use_broker(lambda broker: broker.send(site.queue, [Outgoing(body="x" * 9_000_000)]))
    assert isinstance(answer, EntryTooLarge)
    assert "bodies=gs://bucket/prefix" in str(answer)
    absent = site.app(place=False, broker=f"pubsub://{PROJECT}/?bodies=gs://{site.bucket}-absent{OVER}")
    with pytest.raises(SendError, match=f"gs://{site.bucket}-absent/.*no such bucket"):
        absent["take"].delay(BIG)
    assert site.pubsub.bodies(site.queue) == []


def test_large_calls_of_a_group_keep_their_order(site: Site) -> None:
    site.queue = unique()
    site.pubsub.make_queue(site.queue, ordered=True, dead_letter=f"{site.queue}-dlq")
    app = site.app()
    texts = [f"{number:06}{BIG if number % 2 == 0 else ''}" for number in range(6)]
    app.send_many([app["take"].s(text).set(ordering_key="one") for text in texts])
    site.work(app, 6)
    assert [head for head, _ in site.ran] == [f"{number:06}" for number in range(6)]


def test_a_large_call_for_much_later_is_set_as_a_claim_and_runs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cloud Tasks takes 1 MiB with the body in base64, a tenth of what Pub/Sub takes."""
    clock, tasks = ManualClock(1_800_000_000.0), f"projects/{PROJECT}/locations/europe-west1/queues/{unique('late')}"
    with google_api(site.pubsub.address, clock) as api:
        monkeypatch.setenv("CLOUD_TASKS_EMULATOR_HOST", api.address)
        api.make_queue(tasks)
        timer = f"cloudtasks://{PROJECT}/europe-west1/{tasks.rpartition('/')[2]}?service_account=tasks@{PROJECT}.iam.gserviceaccount.com"
        app = site.app("", timer=timer, clock=clock)
        app.send_task("take", [f"later {'x' * 1_200_000}"], delay="3d")
        app.send_task("take", ["sooner"], delay="2d")
        assert len(site.storage.objects(site.bucket)) == 1
        api.pass_time(3 * 86_400)
        site.work(app, 2)
    assert sorted(site.ran) == [("later ", 1_200_006), ("sooner", 6)]


def test_the_url_says_where_bodies_lie_and_how_long() -> None:
    def opened(options: str) -> ChecksBodies:
        assert adapter.broker is not None
        broker = adapter.broker(Location.parse(f"pubsub://project/?{options}"), AdapterContext(app="test", clock=SystemClock()))
        assert isinstance(broker, ChecksBodies)
        return broker

    assert opened("").claim_checks is None
    checks = opened("bodies=gs://bucket/prefix").claim_checks
    assert checks is not None
    assert (checks.bodies.place, checks.delay) == ("gs://bucket/prefix/", 32 * 86_400)
    for wrong, says in (
        ("bodies=s3://bucket", "gs://bucket"),
        ("bodies=gs://b&bodies_days=60", "62 or more"),
        ("bodies_over=9", "bodies="),
    ):
        with pytest.raises(ConfigError, match=says):
            opened(wrong)
