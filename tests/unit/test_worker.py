"""The worker gives every slot back, settles everything once, and ends without losing anything."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudq import CloudQ, Ignore, Middleware, Reject, Retry, signals, states
from cloudq.broker import Delivery, Outgoing
from cloudq.errors import ConfigError
from cloudq.memory import Lies, LyingBroker, MemoryBroker, MemoryStore
from cloudq.outcome import Again, Dead
from cloudq.request import Request
from cloudq.worker import StopReason, Worker, WorkerOptions
from cloudq.worker import worker as module
from tests.unit.pacing import PacedClock
from tests.waiting import until

NO_WAIT = Retry(max_retries=3, delay=0)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL, "cloudq"):
        yield


@pytest.fixture
def app() -> Iterator[CloudQ]:
    app = CloudQ("work", broker=MemoryBroker(), store=None)
    yield app
    app.close()


@pytest.fixture
def stored() -> Iterator[CloudQ]:
    app = CloudQ("work", broker=MemoryBroker(), store=MemoryStore())
    yield app
    app.close()


def _worker(app: CloudQ, **options: Any) -> Worker:
    return Worker(app, WorkerOptions(**{"wait": 0.1, "grace": 30.0, **options}))


def _drain(app: CloudQ, **options: Any) -> Worker:
    worker = _worker(app, drain=True, **options)
    worker.start()
    assert worker.join(60) is StopReason.DRAINED
    return worker


def _stop(worker: Worker) -> StopReason:
    worker.stop()
    return worker.join(60)


def _all_back(worker: Worker) -> bool:
    return worker._slots.free == worker._slots.total and not worker._flights and not worker._groups._lines


def _left(app: CloudQ, queue: str = "default") -> list[Delivery]:
    return list(asyncio.run(app.broker.receive(queue, max_messages=10, wait=0)))


# ---------------------------------------------------------------------------------------------- slots

KINDS = ["done", "fail", "retry", "ignore", "reject", "exit", "adone", "afail", "acancel", "unknown", "garbage", "expired", "slow"]


@pytest.mark.parametrize("with_store", [True, False])
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=40), concurrency=st.integers(1, 6), seed=st.integers(0, 99))
def test_after_a_drain_of_random_outcomes_every_slot_is_back(with_store: bool, kinds: list[str], concurrency: int, seed: int) -> None:
    broker = MemoryBroker(lease=60)
    store = MemoryStore() if with_store else None
    app = CloudQ("random", broker=broker, store=store, unknown_task_grace=0)
    runs: Counter[str] = Counter()

    @app.task(name="t", bind=True, retry=NO_WAIT, ignore_result=True)
    def t(self: Any, kind: str) -> None:
        runs[kind] += 1
        match kind:
            case "fail":
                raise ValueError
            case "retry":
                self.retry(countdown=0)
            case "ignore":
                raise Ignore
            case "reject":
                raise Reject("no")
            case "exit":
                raise SystemExit(3)
            case "slow":
                time.sleep(0.005)
            case _:
                pass

    @app.task(name="a")
    async def a(kind: str) -> None:
        runs[kind] += 1
        if kind == "afail":
            raise ValueError
        if kind == "acancel":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(1)

    for kind in kinds:
        if kind == "garbage":
            asyncio.run(broker_of(app).send("default", [Outgoing(body="{")]))
        elif kind == "unknown":
            app.send_task("nobody.knows")
        elif kind == "expired":
            t.options(expires=0).delay(kind)
        else:
            (a if kind in ("adone", "afail", "acancel") else t).delay(kind)
    worker = _drain(app, concurrency=concurrency)
    assert _all_back(worker)
    assert _left(app) == []
    counts = Counter(kinds)
    dead = asyncio.run(app.broker.stats("default-dlq")).ready
    assert dead == sum(counts[kind] for kind in ("fail", "retry", "reject", "exit", "afail", "acancel", "unknown", "garbage"))
    for kind in ("done", "ignore", "reject", "exit", "adone", "afail", "acancel", "slow"):
        assert runs[kind] == counts[kind]
    assert runs["fail"] == 4 * counts["fail"]
    assert runs["retry"] == 4 * counts["retry"]
    assert runs["expired"] == 0
    app.close()


def broker_of(app: CloudQ) -> MemoryBroker:
    broker = app.broker
    assert isinstance(broker, MemoryBroker)
    return broker


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_lying_broker_costs_no_slot_and_no_message(seed: int) -> None:
    broker = LyingBroker(MemoryBroker(lease=1.0), seed, Lies())
    app = CloudQ("lied", broker=broker, store=MemoryStore())
    done: set[int] = set()

    @app.task(name="t", retry=NO_WAIT)
    def t(number: int) -> None:
        if number % 7 == 0 and number not in done:
            done.add(number)
            raise ValueError
        done.add(number)

    handles = app.send_many([t.s(number) for number in range(60)])
    worker = _worker(app, concurrency=5)
    worker.start()
    until(lambda: all(handle.ready() for handle in handles))
    assert _stop(worker) is StopReason.ASKED
    assert all(handle.successful() for handle in handles)
    assert worker._slots.free == worker._slots.total
    app.close()


def test_a_message_that_cannot_be_admitted_costs_itself(app: CloudQ, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    @app.task(name="t")
    def t(number: int) -> None:
        ran.append(number)

    for number in range(3):
        t.delay(number)
    worker = _worker(app, drain=True)
    admit = worker.runner.admit

    def faulty(delivery: Delivery) -> Any:
        if '"args":[1]' in delivery.body:
            raise RuntimeError("a fault of ours")
        return admit(delivery)

    monkeypatch.setattr(worker.runner, "admit", faulty)
    worker.start()
    worker.join(60)
    assert sorted(ran) == [0, 2]
    assert len(_left(app, "default-dlq")) == 1
    assert _all_back(worker)


# ---------------------------------------------------------------------------------------------- ends


def test_a_stopped_worker_begins_no_receive_and_what_is_ready_stays_untouched(app: CloudQ) -> None:
    begun, go = threading.Event(), threading.Event()

    @app.task(name="block")
    def block() -> None:
        begun.set()
        go.wait(60)

    @app.task(name="other")
    def other() -> None: ...

    block.delay()
    worker = _worker(app, concurrency=2)
    worker.start()
    assert begun.wait(30)
    worker.stop()
    until(lambda: worker._is_stopping)
    for _ in range(3):
        other.delay()
    time.sleep(0.2)  # time enough for a hundred receives
    go.set()
    assert worker.join(60) is StopReason.ASKED
    left = _left(app)
    assert [each.receives <= 2 for each in left] == [True] * 3
    assert _all_back(worker)


def test_what_has_not_started_is_given_back_at_once_when_it_stops(app: CloudQ) -> None:
    begun, go = threading.Event(), threading.Event()

    @app.task(name="block")
    def block() -> None:
        begun.set()
        go.wait(60)

    for _ in range(3):
        block.options(ordering_key="g").delay()
    worker = _worker(app, concurrency=5)
    worker.start()
    assert begun.wait(30)
    worker.stop()
    go.set()
    worker.join(60)
    assert len(_left(app)) == 2
    assert _all_back(worker)


def test_what_runs_over_the_grace_time_is_given_back(stored: CloudQ) -> None:
    begun, go = threading.Event(), threading.Event()

    @stored.task(name="block")
    def block() -> None:
        begun.set()
        go.wait(60)

    @stored.task(name="ablock")
    async def ablock() -> None:
        await asyncio.sleep(10)

    id = block.delay().id
    ablock.delay()
    worker = _worker(stored, concurrency=2, grace=0.05)
    worker.start()
    assert begun.wait(30)
    assert _stop(worker) is StopReason.ASKED
    left = _left(stored)
    assert sorted(json.loads(each.body)["task"] for each in left) == ["ablock", "block"]
    record = stored.result(id).record
    assert record is not None
    assert record["until"] == 0.0
    go.set()


def test_stopping_while_claims_are_asked_for_loses_nothing_and_releases_them() -> None:
    class Slow(MemoryStore):
        """Over a network: a claim takes its time."""

        async def put(self, kind: str, key: str, value: Any, **kwargs: Any) -> str:
            if asking.is_set() and kind == "task":
                asked.set()
                while not stopping.is_set():
                    await asyncio.sleep(0.005)
                await asyncio.sleep(0.1)
            return await super().put(kind, key, value, **kwargs)

    asking, asked, stopping = threading.Event(), threading.Event(), threading.Event()
    app = CloudQ("claims", broker=MemoryBroker(), store=Slow(), track_queued=False)
    ran: list[int] = []

    @app.task(name="t")
    def t() -> None:
        ran.append(1)

    id = t.delay().id
    asking.set()
    worker = _worker(app)
    worker.start()
    assert asked.wait(30)
    worker.stop()
    until(lambda: worker._is_stopping)
    stopping.set()
    worker.join(60)
    until(lambda: (app.result(id).record or {}).get("until") == 0.0)
    asking.clear()
    assert ran == []
    _drain(app)
    assert ran == [1]
    app.close()


def test_a_stop_before_it_is_ready_counts(app: CloudQ) -> None:
    worker = _worker(app)
    worker.stop()
    worker.start()
    assert worker.join(60) is StopReason.ASKED


def test_a_second_signal_ends_at_once_and_the_first_never_does(app: CloudQ, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(module.os, "_exit", ended.append)
    monkeypatch.setattr(module.os, "write", lambda *args: 0)
    worker = _worker(app)
    worker._ask_stop(StopReason.RECYCLE)  # it ends already, for a reason of its own
    worker._on_signal(signal.SIGTERM, None)
    assert ended == []
    worker._on_signal(signal.SIGTERM, None)
    assert ended == [128 + signal.SIGTERM]


def test_run_ends_by_a_signal_and_restores_the_handlers(app: CloudQ) -> None:
    before = signal.getsignal(signal.SIGTERM)
    worker = _worker(app)

    def end() -> None:
        while not worker._ready.done():  # before that the signal may be ours
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()
    assert worker.run() is StopReason.ASKED
    assert signal.getsignal(signal.SIGTERM) is before


def test_once_waits_for_a_batch_and_ends_after_it(app: CloudQ) -> None:
    ran: list[int] = []

    @app.task(name="t")
    def t(number: int) -> None:
        ran.append(number)

    worker = _worker(app, once=True)
    worker.start()
    time.sleep(0.05)
    assert not worker._is_stopping
    for number in range(3):
        t.delay(number)
    assert worker.join(60) is StopReason.DRAINED
    assert len(ran) >= 1
    assert len(ran) + len(_left(app)) == 3


def test_once_on_an_empty_queue_can_be_stopped(app: CloudQ) -> None:
    worker = _worker(app, once=True)
    worker.start()
    assert _stop(worker) is StopReason.ASKED


def test_max_tasks_runs_that_many_and_recycles(app: CloudQ) -> None:
    ran: list[int] = []

    @app.task(name="t")
    def t(number: int) -> None:
        ran.append(number)

    for number in range(5):
        t.delay(number)
    for count in (1, 2, 3):
        worker = _worker(app, concurrency=1, max_tasks=1)
        worker.start()
        assert worker.join(60) is StopReason.RECYCLE
        assert len(ran) == count
        assert worker.handled == 1


def test_a_drain_sees_what_the_last_task_sent(app: CloudQ) -> None:
    app.declare_queue("second")
    ran: list[int] = []

    @app.task(name="chain", queue="second")
    def chain(left: int) -> None:
        ran.append(left)
        if left:
            chain.delay(left - 1)

    @app.task(name="first", retry=Retry(max_retries=5, delay=0), bind=True)
    def first(self: Any) -> None:
        if self.request.retries < 3:
            raise ValueError
        chain.delay(5)

    first.delay()
    _drain(app)
    assert len(ran) == 6


def test_missing_queues_are_named_at_the_start() -> None:
    class Plain(MemoryBroker):
        create_queue = None  # type: ignore[assignment]

    app = CloudQ("missing", broker=Plain(), queues=["mail"])
    app._create = lambda broker, queue: None  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="'mail-dlq'"):
        _worker(app).start()
    app.close()


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"queues": {"default": 0}}, {"processes": -1}])
def test_options_that_make_no_sense_are_refused(app: CloudQ, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        _worker(app, **options)


# ---------------------------------------------------------------------------------------------- queues


def test_two_busy_queues_share_by_their_weights_and_an_idle_one_takes_nothing(app: CloudQ) -> None:
    for queue in ("heavy", "light", "idle"):
        app.declare_queue(queue)
    order: list[str] = []

    @app.task(name="t")
    def t(queue: str) -> None:
        order.append(queue)
        time.sleep(0.0005)

    for queue in ("heavy", "light"):
        app.send_many([t.options(queue=queue).s(queue) for _ in range(300)])
    worker = _worker(app, concurrency=4, queues={"heavy": 3, "light": 1, "idle": 1})
    worker.start()
    until(lambda: len(order) >= 200)
    _stop(worker)
    counts = Counter(order[:200])
    assert 1.5 <= counts["heavy"] / counts["light"] <= 8  # exactly 3 where none is ever away: that is the slots' own to prove
    assert _all_back(worker)


def test_with_a_single_slot_an_idle_queue_does_not_block_a_busy_one(app: CloudQ) -> None:
    for queue in ("busy", "idle"):
        app.declare_queue(queue)
    ran: list[int] = []

    @app.task(name="t", queue="busy")
    def t() -> None:
        ran.append(1)

    for _ in range(60):
        t.delay()
    worker = _worker(app, concurrency=1, queues={"idle": 1, "busy": 1}, wait=1.0)
    worker.start()
    until(lambda: len(ran) == 60)  # half of the time that as many receives of the idle one would wait
    _stop(worker)


# ---------------------------------------------------------------------------------------------- order


def test_a_group_keeps_its_order_under_retries(app: CloudQ) -> None:
    ran: list[tuple[str, int]] = []
    failed: set[tuple[str, int]] = set()

    @app.task(name="t", retry=Retry(max_retries=10, delay=0))
    def t(group: str, number: int) -> None:
        if number % 3 == 0 and (group, number) not in failed:
            failed.add((group, number))
            raise ValueError
        ran.append((group, number))

    for number in range(7):
        for group in "ab":
            t.options(ordering_key=group).delay(group, number)
    worker = _worker(app, concurrency=5)
    worker.start()
    until(lambda: len(ran) == 14)
    _stop(worker)
    for group in "ab":
        assert [number for each, number in ran if each == group] == list(range(7))
    assert _left(app) == []
    assert _all_back(worker)


def test_of_one_group_only_one_runs_at_a_time(app: CloudQ) -> None:
    inside, most, ran = 0, 0, 0

    @app.task(name="t")
    def t() -> None:
        nonlocal inside, most, ran
        inside += 1
        most = max(most, inside)
        time.sleep(0.002)
        inside -= 1
        ran += 1

    for _ in range(10):
        t.options(ordering_key="g").delay()
    _drain(app, concurrency=5)
    assert (most, ran) == (1, 10)


def test_a_follower_is_not_taken_for_a_crash_loop_because_its_forerunner_was_retried(stored: CloudQ) -> None:
    ran: list[str] = []

    @stored.task(name="head", retry=Retry(max_retries=9, delay=0))
    def head() -> None:
        ran.append("head")
        if len(ran) < 8:
            raise ValueError

    @stored.task(name="follower", retry=Retry(max_retries=2, delay=0))
    def follower() -> None:
        ran.append("follower")

    head.options(ordering_key="g").delay()
    result = follower.options(ordering_key="g").delay()
    worker = _worker(stored, concurrency=5)
    worker.start()
    until(result.ready)
    _stop(worker)
    assert ran == ["head"] * 8 + ["follower"]


@pytest.mark.parametrize("store", [None, "memory://"])
def test_behind_heads_that_fail_all_of_a_group_keep_their_runs(store: str | None) -> None:
    app = CloudQ("heads", broker=MemoryBroker(), store=store, default_queue="q.fifo")
    ran: list[int] = []

    @app.task(name="down", retry=Retry(max_retries=4, delay=0, jitter=False))
    def down(number: int) -> None:
        ran.append(number)
        raise ConnectionError("away")

    for number in range(6):
        down.options(ordering_key="g").delay(number)
    worker = _worker(app, concurrency=10)
    worker.start()
    until(lambda: len(ran) == 30)
    _stop(worker)
    assert ran == [number for number in range(6) for _ in range(5)]
    assert _left(app, "q-dlq.fifo") != []
    app.close()


@pytest.mark.parametrize(("store", "restarts"), [(None, 4), ("memory://", 7)])  # without one there is a cap for deliveries
def test_what_workers_give_back_at_their_ends_is_no_crash_loop(store: str | None, restarts: int) -> None:
    app = CloudQ("restarts", broker=MemoryBroker(), store=store)
    began: list[int] = []
    ran = threading.Event()

    @app.task(name="long")
    async def long() -> None:
        began.append(1)
        if len(began) <= restarts:
            await asyncio.sleep(60)
        ran.set()

    long.delay()
    for runs in range(restarts):
        worker = Worker(app, WorkerOptions(grace=0.0))
        worker.start()
        until(lambda runs=runs: len(began) > runs)  # type: ignore[misc]
        worker.stop(hurry=True)
        worker.join(60)
    worker = _worker(app)
    worker.start()
    assert ran.wait(30)
    _stop(worker)
    app.close()


# ---------------------------------------------------------------------------------------------- time limits


def test_a_sync_task_over_its_limit_is_settled_at_once_and_its_slot_comes_back_with_the_thread(stored: CloudQ) -> None:
    go, ran = threading.Event(), threading.Event()

    @stored.task(name="long", timeout=0.05)
    def long() -> str:
        go.wait(60)
        ran.set()
        return "late"

    result = long.delay()
    worker = _worker(stored, concurrency=3)
    worker.start()
    until(lambda: result.ready())
    assert result.state == states.FAILURE
    assert "time limit" in str(result.result)
    until(lambda: worker._lost_slots == 1)
    go.set()
    assert ran.wait(30)
    until(lambda: worker._lost_slots == 0)
    assert result.state == states.FAILURE
    _stop(worker)
    assert _all_back(worker)


def test_a_thread_that_returns_while_its_timeout_is_being_settled_gives_its_slot_once() -> None:
    settling, go = threading.Event(), threading.Event()

    class Slow(MemoryStore):
        async def put(self, kind: str, key: str, value: Any, **kwargs: Any) -> str:
            if value["state"] == states.FAILURE:
                settling.set()
                await asyncio.sleep(0.2)
            return await super().put(kind, key, value, **kwargs)

    app = CloudQ("late", broker=MemoryBroker(), store=Slow())

    @app.task(name="long", timeout=0.03)
    def long() -> None:
        go.wait(60)

    result = long.delay()
    worker = _worker(app, concurrency=4)
    worker.start()
    assert settling.wait(30)
    go.set()
    until(lambda: result.ready())
    _stop(worker)
    assert worker._slots.free == worker._slots.total == 4
    app.close()


def test_too_many_lost_slots_recycle_the_process(app: CloudQ) -> None:
    go = threading.Event()

    @app.task(name="hang", timeout=0.03)
    def hang() -> None:
        go.wait(60)

    hang.delay()
    hang.delay()
    worker = _worker(app, concurrency=3)
    worker.start()
    assert worker.join(60) is StopReason.RECYCLE
    go.set()
    assert len(_left(app, "default-dlq")) == 2


def test_an_async_task_over_its_limit_is_cancelled(stored: CloudQ) -> None:
    cleaned = threading.Event()

    @stored.task(name="long", timeout=0.03)
    async def long() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.set()

    result = long.delay()
    worker = _drain(stored)
    assert cleaned.is_set()
    assert result.failed()
    assert "time limit of 0.03 s" in str(result.result)
    assert _all_back(worker)


def test_an_async_task_that_swallows_its_cancellation_is_given_up(stored: CloudQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OVERRUN", 0.05)
    go = threading.Event()

    @stored.task(name="stubborn", timeout=0.03)
    async def stubborn() -> None:
        while not go.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    result = stubborn.delay()
    worker = _worker(stored, concurrency=3)
    worker.start()
    until(lambda: result.ready())
    assert result.failed()
    go.set()
    until(lambda: worker._lost_slots == 0)
    _stop(worker)
    assert _all_back(worker)


def test_an_async_task_that_cancels_itself_ends_and_holds_no_slot(stored: CloudQ) -> None:
    @stored.task(name="selfish")
    async def selfish() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(60)

    result = selfish.delay()
    worker = _drain(stored)
    assert result.failed()
    assert _all_back(worker)


# ---------------------------------------------------------------------------------------------- leases and progress


def test_a_long_task_keeps_its_lease_and_its_claim() -> None:
    clock = PacedClock()
    app = CloudQ("lease", broker=MemoryBroker(clock=clock, lease=0.3), store=MemoryStore(clock), clock=clock)
    clock.go_with(app)
    runs: list[int] = []

    @app.task(name="long")
    def long() -> int:
        runs.append(1)
        asyncio.run(clock.sleep(0.9))
        return 1

    result = long.delay()
    workers = [_worker(app, concurrency=2) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert result.get(timeout=30) == 1
    for worker in workers:
        _stop(worker)
    assert runs == [1]
    app.close()


def test_of_many_progress_reports_the_latest_is_kept_and_the_end_overwrites_it(stored: CloudQ) -> None:
    seen, go = threading.Event(), threading.Event()

    @stored.task(name="report", bind=True)
    def report(self: Any) -> str:
        for number in range(200):
            self.update_state("HALFWAY", {"number": number})
        seen.set()
        go.wait(60)
        self.update_state("LAST", {})
        return "end"

    result = report.delay()
    worker = _worker(stored)
    worker.start()
    assert seen.wait(30)
    until(lambda: result.info == {"number": 199})
    assert result.state == "HALFWAY"
    go.set()
    assert result.get(timeout=30) == "end"
    _stop(worker)
    assert result.state == states.SUCCESS


def test_a_task_revoked_before_it_starts_never_runs(stored: CloudQ) -> None:
    ran: list[int] = []

    @stored.task(name="t")
    def t() -> None:
        ran.append(1)

    result = t.delay()
    result.revoke()
    _drain(stored)
    assert ran == []
    assert result.state == states.REVOKED


# ---------------------------------------------------------------------------------------------- user code beside tasks


def test_hooks_and_signals_never_run_on_the_io_thread(app: CloudQ) -> None:
    where: dict[str, str] = {}

    class Watch(Middleware):
        def before_run(self, request: Request) -> None:
            where["before_run"] = threading.current_thread().name

        def on_retry(self, request: Request, outcome: Again) -> None:
            where["on_retry"] = threading.current_thread().name

        def on_dead(self, message: Any, queue: str, outcome: Dead) -> None:
            where["on_dead" if message else "on_dead_unread"] = threading.current_thread().name

    def ready(**kwargs: Any) -> None:
        where["ready"] = threading.current_thread().name

    def shutdown(**kwargs: Any) -> None:
        where["shutdown"] = threading.current_thread().name

    @app.task(name="t", retry=Retry(max_retries=1, delay=0))
    def t() -> None:
        raise ValueError

    app.add_middleware(Watch())
    signals.worker_ready.connect(ready)
    signals.worker_shutdown.connect(shutdown)
    try:
        t.delay()
        asyncio.run(app.broker.send("default", [Outgoing(body="{")]))
        _drain(app)
        until(lambda: len(where) == 6)
    finally:
        signals.worker_ready.disconnect(ready)
        signals.worker_shutdown.disconnect(shutdown)
    assert not [name for name, thread in where.items() if thread.startswith("cloudq-io")]


def test_the_health_file_is_touched_while_all_is_well(app: CloudQ, tmp_path: Path) -> None:
    path = tmp_path / "health"
    worker = _worker(app, health_file=path)
    worker.start()
    until(path.exists)
    _stop(worker)
