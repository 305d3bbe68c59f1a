"""The push service under uvicorn, with Google's Pub/Sub emulator pushing to it; and the function under functions-framework."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloudq import CloudQ
from tests.acceptance.ledger import Ledger
from tests.gcp_servers import PROJECT, PubSubServer
from tests.push_host import ACCOUNT, AUDIENCE, Issuer, Service, Way, issuer, uvicorn, way
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

    def until(self, holds: Callable[[], object], service: Service, seconds: float = 20.0) -> None:
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
        assert [result.get(timeout=1) for result in results] == [*"01234", *(f"a{number}" for number in range(5))]
        assert failed.state == "FAILURE"
        assert shop.ledger.counts("began")["x"] == 2
        (letter,) = shop.server.bodies(f"{shop.queue}-dlq")
        assert json.loads(letter)["dead"]["error"]["detail"] == "x"
        shop.until(lambda: len(shop.way.answers) >= 12, service)
        assert set(shop.way.answers) == {204}
