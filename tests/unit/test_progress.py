"""How far a task is: what it says, what is recorded of that, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cloudq import CloudQ
from cloudq.cli.output import counts, progress
from cloudq.errors import StoreRequired
from cloudq.io import drive
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.records import Claim
from cloudq.worker import Worker, WorkerOptions


@pytest.fixture
def app() -> Iterator[CloudQ]:
    app = CloudQ("work", broker=MemoryBroker(), store=MemoryStore())
    yield app
    app.close()


def _drain(app: CloudQ) -> None:
    worker = Worker(app, WorkerOptions(wait=0.1, drain=True))
    worker.start()
    worker.join(60)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is written of progress."""
    found: list[Any] = []
    report = Claim.report

    async def note(claim: Claim, state: str, meta: Any) -> None:
        found.append((state, meta))
        await report(claim, state, meta)

    monkeypatch.setattr(Claim, "report", note)
    return found


def test_a_loop_may_say_how_far_it_is_in_each_round_and_is_recorded_now_and_then(app: CloudQ, recorded: list[Any]) -> None:
    said: list[Any] = []

    @app.task(bind=True)
    def counts_to(self: Any, total: int) -> None:
        report = self.request.report

        def tell(state: str, meta: Any) -> None:
            said.append((state, meta))
            report(state, meta)

        self.request.report = tell
        for done in range(total):
            self.progress(done, total)
        app.progress(total, total)

    counts_to.delay(10_000)
    _drain(app)
    assert (said[0], said[-1]) == (("PROGRESS", {"done": 0, "total": 10_000}), ("PROGRESS", {"done": 10_000, "total": 10_000}))
    assert len(said) < 100  # one for each half second, on whatever machine
    assert set(map(str, recorded)) <= set(map(str, said))


def test_code_that_a_task_calls_reports_for_it(app: CloudQ) -> None:
    seen: list[Any] = []

    def deep() -> None:
        app.progress(3)

    @app.task(bind=True)
    def work(self: Any) -> None:
        self.request.report = lambda state, meta: seen.append((state, meta))
        deep()

    work.delay()
    _drain(app)
    assert seen == [("PROGRESS", {"done": 3, "total": None})]


def test_outside_of_a_task_and_without_a_store_it_says_what_is_wrong(app: CloudQ) -> None:
    with pytest.raises(RuntimeError, match="while a task runs"):
        app.progress(1, 2)
    bare = CloudQ("bare", broker=MemoryBroker())
    raised: list[Exception] = []

    @bare.task
    def work() -> None:
        try:
            bare.progress(1, 2)
        except StoreRequired as error:
            raised.append(error)

    work.delay()
    _drain(bare)
    bare.close()
    assert len(raised) == 1


def test_a_call_that_waits_is_recorded_with_the_instant_until_which_it_does(app: CloudQ) -> None:
    @app.task
    def work() -> None: ...

    began = app.clock.time()
    later = work.options(delay=60).delay()
    now = work.delay()
    assert app.store is not None
    known = {key: document.value for key, document in drive(app.store.list("task")).items}
    assert began + 59.99 < known[later.id]["due"] < app.clock.time() + 60.01
    assert "due" not in known[now.id]


@pytest.mark.parametrize(
    ("meta", "shown"),
    [
        ({"done": 3, "total": 4}, "━" * 18 + "─" * 6 + " 3/4 (75%)"),
        ({"done": 5, "total": 4}, "━" * 24 + " 5/4"),
        ({"done": 3, "total": None}, 'PROGRESS {"done": 3, "total": null}'),
        ({"done": 0, "total": 0}, 'PROGRESS {"done": 0, "total": 0}'),
        ("half", 'PROGRESS "half"'),
        (None, "PROGRESS"),
    ],
)
def test_what_counts_is_shown_as_a_bar_and_the_rest_as_it_is(meta: object, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudq.cli.output.out", lambda: type("Console", (), {"encoding": "utf-8"}))
    assert progress("PROGRESS", meta).plain == shown


def test_counts_are_taken_from_what_looks_like_them() -> None:
    assert counts({"done": 1.5, "total": 3}) == (1.5, 3)
    assert counts({"done": "1", "total": 3}) == (None, None)
    assert counts(["done"]) == (None, None)
