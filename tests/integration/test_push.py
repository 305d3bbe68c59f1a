"""The push service under uvicorn, with Google's Pub/Sub emulator pushing to it; and the function under functions-framework."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloudq import CloudQ
from cloudq.testing.suite import is_busy
from tests.acceptance.ledger import Ledger
from tests.gcp_servers import PROJECT, PubSubServer
from tests.push_host import ACCOUNT, AUDIENCE, Issuer, Key, Service, Way, event, functions_framework, issuer, post, push, uvicorn, way
from tests.servers import unique

ENTRY = "cloudq_gcp.entry:app"


@dataclass
class Shop:
    """A queue that is pushed to a service, and an app to call from."""

    app: CloudQ
    queue: str
    ledger: Ledger
    issuer: Issuer
    way: Way
    env: dict[str, str]
    folder: Path
    server: PubSubServer

    def run(self, *options: str, **env: str) -> Any:
        """The service under uvicorn."""
        return uvicorn(ENTRY, *options, env={**self.env, **env}, log=self.folder / "service.log")

    def until(self, holds: Callable[[], object], service: Service, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"{self.way.answers}\n{self.ledger.entries()}\n{service.wrote()}"
            time.sleep(0.02)


@pytest.fixture
def shop(pubsub: PubSubServer, tmp_path: Path) -> Iterator[Shop]:
    queue = unique("push")
    with issuer() as certs, way(lambda: certs.token()) as road:
        pubsub.make_queue(queue, dead_letter=f"{queue}-dlq", push_to=road.url)
        broker, store = f"pubsub://{PROJECT}/?hold=0", f"sqlite:///{tmp_path}/store.db"
        env = {
            **pubsub.env, "CLOUDQ_APP": "tests.integration.push_tasks:app", "CLOUDQ_BROKER": broker, "CLOUDQ_STORE": store,
            "PUSH_QUEUE": queue, "PUSH_LEDGER": str(tmp_path / "ledger"), "CLOUDQ_PUSH_AUDIENCE": AUDIENCE,
            "CLOUDQ_PUSH_SERVICE_ACCOUNT": ACCOUNT, "CLOUDQ_PUSH_CERTS": certs.url,
        }  # fmt: skip
        app = CloudQ("push", broker=broker, store=store, default_queue=queue)
        ledger = Ledger(tmp_path / "ledger")
        try:
            yield Shop(app, queue, ledger, certs, road, env, tmp_path, pubsub)
        finally:
            app.close()
            ledger.close()


def test_what_is_pushed_runs_and_is_settled_when_it_is_answered(shop: Shop) -> None:
    with shop.run() as service:
        shop.way.upstream = service.url
        results = [shop.app.send_task("note", (str(number),)) for number in range(5)]
        results += [shop.app.send_task("anote", (f"a{number}",)) for number in range(5)]
        failed = shop.app.send_task("fails", ("x",))
        shop.until(lambda: all(result.ready() for result in [*results, failed]), service)
        assert [result.get(timeout=0) for result in results] == [*"01234", *(f"a{number}" for number in range(5))]
        assert failed.state == "FAILURE"
        assert shop.ledger.counts("began")["x"] == 2
        (letter,) = shop.server.bodies(f"{shop.queue}-dlq")
        assert json.loads(letter)["dead"]["error"]["detail"] == "x"
        shop.until(lambda: len(shop.way.answers) >= 12, service)
        assert set(shop.way.answers) == {204}


def test_what_is_no_push_of_ours_is_refused_and_runs_nothing(shop: Shop) -> None:
    """Who is refused learns nothing, and stalls nothing: what is pushed meanwhile runs."""
    good, other = shop.issuer.token(), Key("first")
    call = push('{"v":1,"id":"evil","task":"note","args":["evil"]}', subscription=f"projects/{PROJECT}/subscriptions/{shop.queue}")
    bearer = {"Authorization": f"Bearer {good}"}
    with shop.run() as service:
        shop.way.upstream = service.url
        results = [shop.app.send_task("anote", (f"a{number}", 0.2)) for number in range(20)]
        for status, headers in [
            (401, {}),
            (401, {"Authorization": "Bearer x"}),
            (401, {"Authorization": f"Bearer {other.token()}"}),
            (401, {"Authorization": f"Bearer {shop.issuer.token(exp=int(time.time()) - 60)}"}),
            (401, {"Authorization": f"Bearer {shop.issuer.token(aud='https://other/')}"}),
            (403, {"Authorization": f"Bearer {shop.issuer.token(email='x@y')}"}),
        ]:
            assert post(service.url, call, headers)[0] == status
        for body in (b"", b"{}", b'{"v":1,"id":"evil","task":"note","args":["evil"]}', b"\xff" * 1000):
            assert post(service.url, body, bearer)[0] == 400
        assert post(f"{service.url}other", call, bearer)[0] == 404
        assert post(service.url, call, bearer, method="PUT")[0] == 405
        assert post(service.url, b"x" * 16_000_000, bearer)[0] in (413, 0)  # the server may close before all of it was read
        shop.until(lambda: all(result.ready() for result in results), service)
        assert not shop.ledger.counts("began")["evil"]
        assert post(service.url, call, bearer)[0] == 204
        assert shop.ledger.counts("began")["evil"] == 1


def test_an_unreadable_body_is_a_dead_letter_and_then_answered(shop: Shop) -> None:
    with shop.run() as service:
        shop.way.upstream = service.url
        bodies = (b"{no json", b"\xff\xfe", b'{"v":1,"id":"x"}', b"[" * 2000)
        for body in bodies:
            shop.server.publisher.publish(topic=shop.server.topic(shop.queue), messages=[{"data": body}])
        shop.until(lambda: len(shop.way.answers) >= len(bodies), service)
        letters = [json.loads(body) for body in shop.server.bodies(f"{shop.queue}-dlq")]
        assert len(letters) == len(bodies)
        assert all(letter["dead"]["queue"] == shop.queue for letter in letters)
        assert shop.way.answers == [204] * len(bodies)


def test_unwrapped_and_ordered_messages_are_understood(shop: Shop) -> None:
    with shop.run() as service:
        headers = {
            "Authorization": f"Bearer {shop.issuer.token()}",
            "x-goog-pubsub-subscription-name": shop.server.subscription(shop.queue),
            "x-goog-pubsub-message-id": "1",
        }
        assert post(service.url, b'{"v":1,"id":"unwrapped","task":"note","args":["raw"]}', headers)[0] == 204
        assert shop.app.result("unwrapped").get(timeout=0) == "raw"
        headers |= {"x-goog-pubsub-ordering-key": "k"}
        body = b'{"v":1,"id":"ordered","task":"fails","args":["o"]}'
        assert [post(service.url, body, headers)[0] for _ in range(2)] == [500, 204]  # it keeps its place until its last try
        assert shop.ledger.counts("began")["o"] == 2
        assert len(shop.server.bodies(f"{shop.queue}-dlq")) == 1


def test_beyond_the_concurrency_pubsub_is_told_to_slow_down_and_nothing_is_lost(shop: Shop) -> None:
    with shop.run(CLOUDQ_CONCURRENCY="1") as service:
        shop.way.upstream = service.url
        results = [shop.app.send_task("note", (str(number), 0.3)) for number in range(5)]
        shop.until(lambda: all(result.ready() for result in results), service)
        assert 429 in shop.way.answers
        assert shop.ledger.counts("done") == {str(number): 1 for number in range(5)}


def test_at_sigterm_what_runs_is_finished_and_what_does_not_end_runs_elsewhere(shop: Shop) -> None:
    with shop.run() as service:
        shop.way.upstream = service.url
        quick, slow = shop.app.send_task("note", ("quick", 1.0)), shop.app.send_task("anote", ("slow", 100.0))
        shop.until(lambda: len(shop.ledger.entries("began")) == 2, service)
        shop.way.upstream = ""
        began = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) in (0, -signal.SIGTERM)
        assert 7 < time.monotonic() - began < 40  # by itself it would take 100
        assert quick.get(timeout=0) == "quick"
        assert shop.ledger.counts("cancelled") == {"slow": 1}
    with shop.run() as service:
        shop.way.upstream = service.url
        shop.until(lambda: shop.ledger.counts("began") == {"quick": 1, "slow": 2}, service)
        assert not slow.ready()


def test_what_a_killed_service_had_taken_runs_again(shop: Shop) -> None:
    env = {"CLOUDQ_BROKER": f"pubsub://{PROJECT}/?lease=2&wait=1"}
    with shop.run(**env) as service:
        shop.way.upstream = service.url
        results = [shop.app.send_task("note", (str(number), 100.0)) for number in range(2)]  # the emulator begins with two at once
        shop.until(lambda: len(shop.ledger.entries("began")) == 2, service)
        shop.way.upstream = ""
        service.process.kill()
    with shop.run(**env) as service:
        shop.way.upstream = service.url
        shop.until(lambda: all(shop.ledger.counts("began")[each] >= 2 for each in "01"), service)
        assert not any(result.ready() for result in results)


def test_without_a_timer_what_is_early_or_unknown_waits_by_the_subscriptions_own_delays(shop: Shop) -> None:
    with shop.run() as service:
        shop.way.upstream = service.url
        for count in range(1, 4):  # where the machine is held up, it may not come early
            eta = time.time() + 2
            body = json.dumps({"v": 1, "id": f"early{count}", "task": "note", "args": ["early"], "eta": eta})
            shop.server.publisher.publish(topic=shop.server.topic(shop.queue), messages=[{"data": body.encode()}])
            shop.until(lambda: shop.ledger.counts("done")["early"] == count, service)  # noqa: B023  # it is over before the next
            assert time.time() >= eta
            assert len({each["message"]["messageId"] for each in shop.way.bodies}) == count  # it was never sent again
            if 500 in shop.way.answers:
                break
        assert 500 in shop.way.answers


# ---------------------------------------------------------------------------------------------------------------------
# events


@contextmanager
def function(shop: Shop, **env: str) -> Iterator[Service]:
    source = shop.folder / "main.py"
    source.write_text("from cloudq_gcp.entry import handler\n")
    with functions_framework(source, "handler", env={**shop.env, **env}, log=shop.folder / "function.log") as service:
        yield service


def eventarc(shop: Shop, body: str, **headers: str) -> tuple[bytes, dict[str, str]]:
    """The request that brings a message with this body."""
    message = json.loads(push(body))["message"]
    content, usual = event(message, topic=shop.server.topic(shop.queue), subscription="projects/p/subscriptions/eventarc-x-sub-1")
    return content, {**usual, **headers}


def test_an_event_is_answered_once_its_message_is_settled(shop: Shop) -> None:
    with function(shop) as service:
        for task in ("note", "anote"):
            assert post(service.url, *eventarc(shop, json.dumps({"v": 1, "id": task, "task": task, "args": [task]})))[0] == 200
            assert shop.app.result(task).get(timeout=0) == task
        assert post(service.url, *eventarc(shop, "{no json"))[0] == 200
        (letter,) = shop.server.bodies(f"{shop.queue}-dlq")
        assert json.loads(letter)["dead"]["queue"] == shop.queue  # the topic is the queue; the subscription is Eventarc's own


def test_an_event_that_is_not_settled_comes_again_and_one_of_another_kind_is_an_error(shop: Shop) -> None:
    with function(shop) as service:
        body = json.dumps({"v": 1, "id": "early", "task": "note", "args": ["early"], "eta": time.time() + 60})
        assert post(service.url, *eventarc(shop, body))[0] == 500
        assert "must come again" in service.wrote()
        assert post(service.url, *eventarc(shop, body, **{"ce-type": "google.cloud.storage.object.v1.finalized"}))[0] == 500
        assert "this is no event of a Pub/Sub topic" in service.wrote()
        assert not shop.ledger.entries()


def test_a_task_ends_before_the_functions_time_does(shop: Shop) -> None:
    with function(shop, CLOUD_RUN_TIMEOUT_SECONDS="5") as service:
        lasted: list[float] = []
        while not lasted or (lasted[-1] >= 5 and len(lasted) < 3 and is_busy()):
            id = f"long{len(lasted)}"
            body = json.dumps({"v": 1, "id": id, "task": "anote", "args": [id, 100], "ignore_result": True})
            assert post(service.url, *eventarc(shop, body))[0] == 200
            began, cancelled = (each for each in shop.ledger.entries() if each.id == id)
            assert cancelled.event == "cancelled"
            assert shop.app.result(id).state == "RETRY"
            lasted.append(cancelled.at - began.at)
        assert lasted[-1] < 5
