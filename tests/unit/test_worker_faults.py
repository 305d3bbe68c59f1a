"""What goes wrong around a worker costs it no slot, no lease and no message, and does not keep it from its end."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cloudq import CloudQ, Middleware, every, records, runner, settle, states
from cloudq.broker import Delivery, Limits, SettleError
from cloudq.clock import ManualClock
from cloudq.errors import BrokerUnavailable, ConfigError, LeaseLost, StoreError, StoreUnavailable
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.outcome import Dead, Done, Outcome
from cloudq.runner import Job, Runner
from cloudq.settle import Verdict, settle_repeatedly
from cloudq.worker import StopReason, Worker, WorkerOptions
from cloudq.worker import worker as module
from cloudq.worker.firing import fire
from cloudq.worker.flight import Flight
from cloudq.worker.leases import Leases
from cloudq.worker.processes import ProcessExecutor
from tests.unit.pacing import PacedClock
from tests.waiting import until

CREDENTIALS = ConfigError("no usable credentials")


class Broker(MemoryBroker):
    """One that others reach too; what it is asked to do fails as often as the test says."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.fails: Counter[str] = Counter()
        self.error: Exception = CREDENTIALS
        self.tried: Counter[str] = Counter()
        self.extended: list[tuple[str, float]] = []
        self.limits: Limits = self.limits._replace(local=False)

    def _try(self, what: str) -> None:
        self.tried[what] += 1
        if self.fails[what] > 0:
            self.fails[what] -= 1
            raise self.error

    async def ack(self, deliveries: Sequence[Delivery]) -> Sequence[SettleError | None]:
        self._try("ack")
        return await super().ack(deliveries)

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[SettleError | None]:
        self._try("extend")
        self.extended += [(each.message_id, seconds) for each in deliveries]
        return await super().extend(deliveries, seconds)


class Store(MemoryStore):
    """A write of a task in some state fails as often as the test says, or waits."""

    def __init__(self, clock: Any = None) -> None:
        super().__init__(clock) if clock is not None else super().__init__()
        self._limits = self._limits._replace(local=False)
        self.fails: Counter[str] = Counter()
        self.error: Exception = CREDENTIALS
        self.tried: Counter[str] = Counter()
        self.hangs: Callable[[str, dict[str, Any]], bool] = lambda key, value: False
        self.hanging = 0

    async def put(self, kind: str, key: str, value: Any, **more: Any) -> str:
        if kind == records.KIND:
            self.tried[value["state"]] += 1
            if self.fails[value["state"]] > 0:
                self.fails[value["state"]] -= 1
                raise self.error
            if self.hangs(key, value):
                self.hanging += 1
                await asyncio.sleep(600)
        return await super().put(kind, key, value, **more)


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL, "cloudq"):
        yield


@pytest.fixture
def make() -> Iterator[Callable[..., CloudQ]]:
    apps: list[CloudQ] = []

    def make(broker: MemoryBroker | None = None, store: Any = None, **settings: Any) -> CloudQ:
        apps.append(CloudQ("faults", broker=broker or Broker(), store=store, **settings))
        return apps[-1]

    yield make
    for app in apps:
        app.close()


def _worker(app: CloudQ, **options: Any) -> Worker:
    worker = Worker(app, WorkerOptions(**{"wait": 0.1, "grace": 30.0, **options}))
    worker.start()
    return worker


def _drain(app: CloudQ, **options: Any) -> Worker:
    worker = _worker(app, drain=True, **options)
    assert worker.join(60) is StopReason.DRAINED
    return worker


def _job(app: CloudQ) -> Job:
    (delivery,) = app.io.run(app.broker.receive("default", max_messages=1, wait=0.1))
    return Runner(app).admit(delivery)


# ---------------------------------------------------------------------- no slot and no message is lost


@pytest.mark.parametrize("error", [CREDENTIALS, RuntimeError("a fault in a driver")], ids=["foreseen", "unforeseen"])
@pytest.mark.parametrize("state", [states.STARTED, states.SUCCESS])
def test_a_write_that_fails_in_whatever_way_costs_no_slot_and_no_message(
    state: str, error: Exception, make: Callable[..., CloudQ], quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "growing_pause", lambda deferrals: 0.0)
    store = Store()
    app = make(Broker(lease=2.0), store)
    store.fails[state], store.error = 1, error
    ran: list[int] = []

    @app.task
    def note(number: int) -> None:
        ran.append(number)

    results = [note.delay(number) for number in range(3)]
    worker = _worker(app, concurrency=1)
    for result in results:
        result.get(timeout=60)
    until(lambda: not worker._flights)
    assert set(ran) == {0, 1, 2}
    assert len(ran) == 3 or isinstance(error, RuntimeError)  # what failed in an unforeseen way may run again
    worker.stop()
    worker.join(60)


def test_an_ack_and_an_extension_that_fail_in_whatever_way_are_tried_again(make: Callable[..., CloudQ], quiet: None) -> None:
    broker = Broker(lease=3.0)
    app = make(broker, Store())
    broker.fails.update(ack=2, extend=2)
    ran: list[int] = []

    @app.task
    def lasts() -> None:
        ran.append(1)
        until(lambda: broker.tried["extend"] > 2)

    lasts.delay()
    _drain(app)
    assert ran == [1]
    assert broker.tried["ack"] == 3


def test_an_ack_goes_on_for_as_long_as_the_lease_is_kept(make: Callable[..., CloudQ], quiet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PAUSE", 0.01)
    broker = Broker()
    broker.fails["ack"], broker.error = 20, BrokerUnavailable("it is away")
    app = make(broker)
    ran: list[int] = []

    @app.task
    def note() -> None:
        ran.append(1)

    note.delay()
    _drain(app)
    assert (ran, broker.tried["ack"]) == ([1], 21)


def test_what_has_run_is_settled_for_as_long_as_its_lease_is_kept(
    make: Callable[..., CloudQ], quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "MOST_PAUSE", 0.01)
    store = Store()
    store.fails[states.SUCCESS], store.error = 20, StoreUnavailable("it is away")
    app = make(Broker(), store)
    ran: list[int] = []

    @app.task
    def charge() -> str:
        ran.append(1)
        return "charged"

    result = charge.delay()
    _drain(app)
    assert (ran, result.get(timeout=1), store.tried[states.SUCCESS]) == ([1], "charged", 21)


def test_what_can_never_be_settled_keeps_its_slot_for_a_while_only(
    make: Callable[..., CloudQ], quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "MOST_PAUSE", 0.01)
    store = Store()
    store.error = StoreError("it does not like this value")
    app = make(Broker(), store, send_timeout=0.5)

    @app.task
    def note() -> None: ...

    note.delay()
    job = _job(app)
    app.io.run(Runner(app).claim(job))
    store.fails[states.SUCCESS] = 1_000_000
    call = settle_repeatedly(app, job, Done(1), tries=2, is_ours=lambda: True)
    assert app.io.run(call, timeout=60) is Verdict.LEFT
    assert store.tried[states.SUCCESS] >= 2


def test_a_fault_in_starting_one_of_a_batch_costs_the_others_nothing(
    make: Callable[..., CloudQ], quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make(Broker(lease=2.0))
    ran: list[int] = []

    @app.task
    def note(number: int) -> None:
        ran.append(number)

    execute, failed = Worker._execute, [False]

    def fails_once(self: Worker, flight: Flight) -> None:
        if not failed[0]:
            failed[0] = True
            raise RuntimeError("a fault of ours")
        execute(self, flight)

    monkeypatch.setattr(Worker, "_execute", fails_once)
    for number in range(5):
        note.delay(number)
    worker = _worker(app, concurrency=5)
    until(lambda: sorted(ran) == [0, 1, 2, 3, 4])  # the one that failed came back when its lease had ended
    until(lambda: not worker._flights)
    worker.stop()
    worker.join(60)
    assert worker._slots.free == worker._slots.total


def test_what_cannot_be_written_for_a_child_process_is_dead_and_the_child_gets_the_next(make: Callable[..., CloudQ]) -> None:
    app = make()

    @app.task
    def note(number: float) -> None: ...

    for number in (1.0, 2.0):
        note.delay(number)
    bad, good = _job(app), _job(app)
    assert bad.message is not None
    bad.message = bad.message.copy(args=[float("inf")])
    came: list[tuple[Flight, Outcome]] = []
    written: list[bytes] = []

    class Child:
        run, flight, begun, limit = 0, None, False, None

        class writer:
            write = written.append

    async def hand_out() -> None:
        executor = ProcessExecutor(Runner(app), 1, lambda flight, outcome: came.append((flight, outcome)))
        executor._idle.append(Child())  # type: ignore[arg-type]  # no process
        executor.submit(first := Flight(bad))
        executor.submit(Flight(good))
        while not came:
            await asyncio.sleep(0.001)
        assert came[0][0] is first
        assert isinstance(came[0][1], Dead)

    asyncio.run(asyncio.wait_for(hand_out(), 30))
    assert len(written) == 1


# ---------------------------------------------------------------------- leases and claims


def test_a_renewal_that_hangs_keeps_no_lease_from_its_heartbeat(make: Callable[..., CloudQ], quiet: None) -> None:
    clock = PacedClock(20.0)
    broker, store = Broker(clock=clock, lease=60.0), Store(clock)
    app = make(broker, store, clock=clock)
    clock.go_with(app)
    first: dict[str, float] = {}
    store.hangs = lambda key, value: (
        key == "slow" and value["state"] == states.STARTED and first.setdefault(key, value["until"]) != value["until"]
    )
    go = threading.Event()

    @app.task
    def lasts() -> None:
        go.wait(60)

    lasts.options(task_id="slow").delay()
    lasts.delay()
    worker = _worker(app, concurrency=4)
    until(lambda: store.hanging == 1)
    until(lambda: len({id for id, seconds in broker.extended}) == 2)
    so_far = len(broker.extended)
    until(lambda: len(broker.extended) >= so_far + 6)  # both of them, again and again
    assert store.hanging == 1, "no second renewal while one is out"
    go.set()
    worker.stop()
    worker.join(60)


def test_a_claim_is_not_renewed_once_its_delivery_was_given_back(make: Callable[..., CloudQ]) -> None:
    broker, store = Broker(), Store()
    app = make(broker, store)

    @app.task
    def note() -> None: ...

    note.options(task_id="id").delay()
    job, runner = _job(app), Runner(app)
    flights: set[Flight] = {(flight := Flight(job))}
    leases = Leases(app, runner, flights, begin=asyncio.ensure_future, revoked=lambda flight: None)

    async def given_back_meanwhile() -> None:
        await runner.claim(job)
        extend = broker.extend

        async def slow(deliveries: Sequence[Delivery], seconds: float) -> Sequence[SettleError | None]:
            answers = await extend(deliveries, seconds)
            flights.clear()
            await leases.release(flight)
            return answers

        broker.extend = slow  # type: ignore[method-assign]
        await leases._extend([flight], 30.0)
        if flight.renewal is not None:
            await flight.renewal
        found = await store.get(records.KIND, "id")
        assert found is not None
        assert (found.value["state"], found.value["until"]) == (states.QUEUED, 0.0)

    app.io.run(given_back_meanwhile(), timeout=60)


def test_that_a_claim_has_ended_with_its_task_is_no_loss(make: Callable[..., CloudQ], caplog: pytest.LogCaptureFixture) -> None:
    app = make(store=Store())

    @app.task
    def note() -> None: ...

    note.delay()
    flight = Flight(_job(app))
    worker = Worker(app)
    app.io.run(worker.runner.claim(flight.job))

    async def ended(job: Job, until: float) -> None:
        flight.concluded = True
        raise LeaseLost("its state is SUCCESS")

    worker.runner.renew = ended  # type: ignore[method-assign]
    app.io.run(worker._leases.renew(flight))
    assert not flight.lost
    assert "lost" not in caplog.text


# ---------------------------------------------------------------------- code that ends the process


def _sub_task(app: CloudQ) -> Any:
    @app.task
    async def ends() -> None:
        async def child() -> None:
            sys.exit(3)

        beside = asyncio.create_task(child())
        while not beside.done():
            await asyncio.sleep(0.005)

    return ends


def _key(app: CloudQ) -> Any:
    @app.task(idempotency_key=lambda: sys.exit(3))
    def ends() -> None: ...

    return ends


def _policy(app: CloudQ) -> Any:
    from cloudq import Retry

    @app.task(retry=Retry(decide=lambda error, retries: sys.exit(3)))
    def ends() -> None:
        raise ValueError

    return ends


@pytest.mark.parametrize("kind", [_sub_task, _key, _policy])
def test_code_that_ends_the_process_from_beside_a_run_does_not(
    kind: Callable[[CloudQ], Any], make: Callable[..., CloudQ], quiet: None
) -> None:
    app = make(store=Store())
    ends = kind(app)

    @app.task
    async def other() -> str:
        return "ran"

    worker = _worker(app, concurrency=2)
    ended = [ends.delay() for _ in range(3)]  # more than there are slots
    until(lambda: all(each.ready() for each in ended))
    assert other.delay().get(timeout=30) == "ran"
    worker.stop()
    assert worker.join(60) is StopReason.ASKED


def test_a_hook_that_ends_the_process_ends_no_thread(make: Callable[..., CloudQ], quiet: None) -> None:
    class Ends(Middleware):
        def after_run(self, request: Any, outcome: Any) -> None:
            sys.exit(3)

    app = make(middleware=[Ends()])
    ran: list[int] = []

    @app.task
    def note(number: int) -> None:
        ran.append(number)

    for number in range(5):
        note.delay(number)
    _drain(app, concurrency=2)
    assert sorted(ran) == [0, 1, 2, 3, 4]


# ---------------------------------------------------------------------- the start and the end


def test_a_stop_does_not_wait_for_a_store_that_does_not_answer(make: Callable[..., CloudQ], quiet: None) -> None:
    broker, store = Broker(), Store()
    app = make(broker, store)
    go = threading.Event()

    @app.task
    def lasts() -> None:
        go.wait(120)

    for _ in range(20):
        lasts.delay()
    worker = _worker(app, concurrency=20, grace=0.1)
    until(lambda: sum(flight.started for flight in worker._flights) == 20)
    store.hangs = lambda key, value: value["state"] == states.QUEUED
    worker.stop()
    worker.join(30)  # a twentieth of the time that it would wait for them one by one
    go.set()
    assert store.hanging == 20
    assert sum(seconds == 0 for id, seconds in broker.extended) == 20


def test_what_arrives_after_a_stop_is_not_handed_to_the_next_that_stops(make: Callable[..., CloudQ]) -> None:
    broker = Broker()
    app = make(broker)

    @app.task
    def note() -> None: ...

    workers = [_worker(app, wait=20.0, concurrency=1) for _ in range(3)]
    for worker in workers:
        worker.stop()
    until(lambda: all(worker._is_stopping for worker in workers))
    for number in range(3):  # each of them has a receive out
        note.delay()
        until(lambda number=number: len(broker.extended) > number)  # type: ignore[misc]
    for worker in workers:
        worker.join(60)
    assert len({id for id, seconds in broker.extended}) == len(broker.extended) == 3
    assert all(0 < seconds <= 20 for id, seconds in broker.extended)


def test_a_worker_that_is_starting_hears_the_stop(make: Callable[..., CloudQ]) -> None:
    asked = threading.Event()

    class Silent(Broker):
        async def stats(self, queue: str) -> Any:
            asked.set()
            await asyncio.sleep(600)

    worker = Worker(make(Silent(), default_queue="work"), WorkerOptions())
    starting = threading.Thread(target=worker.start)
    starting.start()
    assert asked.wait(30)
    worker.stop()
    starting.join(30)
    assert worker.join(1) is StopReason.ASKED


def test_queues_are_checked_at_once(make: Callable[..., CloudQ]) -> None:
    class Slow(Broker):
        async def stats(self, queue: str) -> Any:
            self.tried["stats"] += 1
            while self.tried["stats"] < 2:
                await asyncio.sleep(0.005)
            return await super().stats(queue)

    app = make(Slow())
    for queue in ("one", "two"):
        app.task(name=queue, queue=queue)(lambda: None)
    worker = _worker(app)
    worker.stop()
    worker.join(60)


# ---------------------------------------------------------------------- schedules and health


def test_a_slot_is_fired_once_though_the_sleep_ends_early(make: Callable[..., CloudQ], monkeypatch: pytest.MonkeyPatch) -> None:
    class Early(ManualClock):
        async def sleep(self, seconds: float) -> None:
            self.advance(max(seconds - 0.003, 0.0))
            await asyncio.sleep(0)

    app = make(clock=Early())

    @app.task(name="tick", schedule=every("1s"))
    def tick() -> None: ...

    fired: list[str] = []

    async def send(queue: str, message: Any, id: str, **more: Any) -> None:
        fired.append(id)
        if len(fired) == 2:
            raise RuntimeError("in an unforeseen way")
        if len(fired) == 6:
            raise asyncio.CancelledError

    monkeypatch.setattr(type(app.sender), "asend", staticmethod(send))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(fire(app, next(iter(app.schedules.values()))))
    assert len(set(fired)) == len(fired) == 6


def test_a_health_file_that_cannot_be_made_is_refused_or_said_once(
    make: Callable[..., CloudQ], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = make()
    app.task(name="note")(lambda: None)
    with pytest.raises(ConfigError, match="no directory"):
        Worker(app, WorkerOptions(health_file=tmp_path / "none" / "alive"))
    (tmp_path / "there").mkdir()
    worker = Worker(app, WorkerOptions(wait=0.1, drain=True, health_file=tmp_path / "there" / "alive"))
    (tmp_path / "there").rmdir()
    worker.start()
    assert worker.join(60) is StopReason.DRAINED  # what ends a drain is the same task
    assert caplog.text.count("the health file could not be touched") == 1


def test_a_worker_whose_slots_all_wait_for_nothing_is_ill_and_one_that_runs_is_not(
    make: Callable[..., CloudQ], quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STUCK", 0.0)
    store, go = Store(), threading.Event()
    app = make(Broker(), store)

    @app.task
    def lasts() -> None:
        go.wait(60)

    worker = _worker(app, concurrency=1, grace=0.1)
    assert worker.healthy
    lasts.delay()
    until(lambda: any(flight.started for flight in worker._flights))
    assert worker.healthy
    go.set()
    until(lambda: not worker._flights)
    store.hangs = lambda key, value: value["state"] == states.STARTED
    lasts.delay()
    until(lambda: store.hanging)
    until(lambda: not worker.healthy)
    worker.stop(hurry=True)
    worker.join(60)
