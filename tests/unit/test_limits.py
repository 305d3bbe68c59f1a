"""Limits over all workers: turns are as far apart as the rate says, seats are as many as may run, whoever asks and however often."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudq import CloudQ, limits
from cloudq.clock import ManualClock
from cloudq.errors import ConfigError, StoreRequired
from cloudq.limits import Rate, Turns, rate, sit
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.outcome import Dead, Done, Later
from cloudq.runner import Job, Runner
from cloudq.settle import settle
from cloudq.sqlite import SQLiteStore
from cloudq.store import Store, StoreLimits
from cloudq.worker import Worker, WorkerOptions

TEN = Rate(10, 1.0)


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[ManualClock], Store]:
    def make(clock: ManualClock) -> Store:
        return MemoryStore(clock=clock) if request.param == "memory" else SQLiteStore(tmp_path / "limits.db", clock=clock)

    return make


def most_in(window: float, instants: list[float]) -> int:
    """The most of them in any half-open window of that length."""
    ordered = sorted(instants)
    return max(sum(begin <= each < begin + window - 1e-6 for each in ordered) for begin in ordered)


# ---------------------------------------------------------------------- what is written


@pytest.mark.parametrize(
    ("text", "interval"),
    [("10/s", 0.1), ("10/m", 6.0), ("10/h", 360.0), ("1/d", 86_400.0), ("100/5m", 3.0), (4, 0.25), (0.5, 2.0), ("0.5/m", 120.0)],
)
def test_a_rate_is_read_as_celery_writes_it(text: str | float, interval: float) -> None:
    assert rate(text, "t").interval == pytest.approx(interval)


@pytest.mark.parametrize("wrong", ["", "ten/m", "10/x", "0/s", "-1/s", 0, "1.5/s", "10/", "nan", None, "10/0s"])
def test_what_is_no_rate_is_refused_with_what_to_write(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="'10/m'"):
        rate(wrong, "t")


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "3", 201])
def test_max_running_is_a_whole_number(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="max_running"):
        CloudQ("x", broker="memory://").task(max_running=wrong)(print)


def test_limits_need_a_store_and_a_key_needs_a_limit() -> None:
    app = CloudQ("x", broker="memory://")

    @app.task(rate_limit="1/s")
    def t(tenant: str) -> None: ...

    with pytest.raises(StoreRequired, match="rate_limit"):
        Runner(app)
    with pytest.raises(ConfigError, match="limit_key= belongs"):
        app.task(limit_key="{x}")(lambda x: None)
    with pytest.raises(ConfigError, match=r"limit_key=.*names .y."):
        app.task(limit_key="{y}", max_running=1)(lambda x: None)


# ---------------------------------------------------------------------- turns


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 6), st.floats(0.001, 3.0))
def test_interleaved_workers_are_granted_at_most_ten_in_any_second(seed: int, workers: int, pace: float) -> None:
    dice, clock, store = random.Random(seed), ManualClock(1_000_000.0), MemoryStore()
    processes = [Turns() for _ in range(workers)]
    granted: list[float] = []

    async def scenario() -> None:
        for _ in range(150):
            turn = await dice.choice(processes).take(store, "p", TEN, clock.time())
            assert turn is not None
            assert turn >= clock.time() - 1e-6
            granted.append(turn)
            clock.advance(dice.expovariate(10 / pace))

    asyncio.run(scenario())
    assert most_in(1.0, granted) <= 10


def test_workers_on_each_store_are_granted_ten_in_any_second_and_none_is_left_out(make_store: Callable[[ManualClock], Store]) -> None:
    clock = ManualClock(1_000_000.0)
    store = make_store(clock)
    granted: list[float] = []

    async def worker() -> None:
        turns = Turns()
        for _ in range(25):
            turn = await turns.take(store, "p", TEN, clock.time())
            assert turn is not None
            granted.append(turn)

    async def scenario() -> None:
        await asyncio.gather(*(worker() for _ in range(4)))
        await store.close()

    asyncio.run(scenario())
    assert most_in(1.0, granted) <= 10
    assert max(granted) - min(granted) == pytest.approx(9.9, abs=4 * limits.BLOCK)  # what blocks lose is little


def test_a_process_that_needs_many_turns_writes_seldom() -> None:
    clock, store, turns = ManualClock(1_000_000.0), MemoryStore(), Turns()
    fast = Rate(1_000, 1.0)
    writes = 0
    put = store.put

    async def counted(*args: Any, **options: Any) -> str:
        nonlocal writes
        writes += 1
        return await put(*args, **options)

    store.put = counted  # type: ignore[method-assign]

    async def scenario() -> None:
        for _ in range(2_000):
            assert await turns.take(store, "p", fast, clock.time()) is not None

    asyncio.run(scenario())
    assert writes < 20


def test_a_store_that_is_paid_by_the_write_is_written_to_once_a_second_or_so() -> None:
    class Metered(MemoryStore):
        writes = 0

        @property
        def limits(self) -> StoreLimits:
            return super().limits._replace(metered=True, local=False)

        async def put(self, *args: Any, **options: Any) -> str:
            self.writes += 1
            return await super().put(*args, **options)

    clock = ManualClock(1_000_000.0)
    store, processes, granted = Metered(clock=clock), [Turns() for _ in range(2)], list[float]()

    async def scenario() -> None:
        for _ in range(150):  # 15 seconds' turns
            for turns in processes:
                turn = await turns.take(store, "p", Rate(20, 1.0), clock.time())
                assert turn is not None
                granted.append(turn)

    asyncio.run(scenario())
    assert most_in(1.0, granted) <= 20
    assert store.writes < 20


def test_turns_are_not_given_out_for_ever_ahead() -> None:
    clock, store, turns = ManualClock(1_000_000.0), MemoryStore(), Turns()

    async def scenario() -> None:
        slow = Rate(1, 60.0)
        given = [await turns.take(store, "p", slow, clock.time(), ahead=300) for _ in range(20)]
        assert [turn for turn in given if turn is not None] == [1_000_000.0 + 60 * number for number in range(6)]
        clock.advance(61)
        assert await turns.take(store, "p", slow, clock.time(), ahead=300) == 1_000_360.0

    asyncio.run(scenario())


# ---------------------------------------------------------------------- seats


def test_seats_are_as_many_as_there_are_and_free_again_when_they_are_left_or_their_time_is_over(
    make_store: Callable[[ManualClock], Store],
) -> None:
    clock = ManualClock(1_000_000.0)
    store = make_store(clock)

    async def scenario() -> None:
        async def ask(id: str) -> limits.Seat | None:
            return await sit(store, "p", 3, id, now=clock.time(), until=clock.time() + 30)

        asked = await asyncio.gather(*(ask(f"t{number}") for number in range(10)))
        taken = [seat for seat in asked if seat is not None]
        assert 1 <= len(taken) <= 3
        while len(taken) < 3:
            more = await ask(f"more-{len(taken)}")
            assert more is not None
            taken.append(more)
        assert await ask("late") is None
        again = await ask(taken[0].id)  # its own, when it is delivered again
        assert again is not None
        assert again.key == taken[0].key
        await again.leave()
        assert (await ask("late")) is not None
        clock.advance(20)
        await taken[1].renew(clock.time() + 30)
        clock.advance(11)
        assert (await ask("after a death")) is not None  # taken[2] was killed: nobody renewed it
        assert (await ask("x")) is not None  # nor what "late" had
        assert await ask("y") is None
        await store.close()

    asyncio.run(scenario())


def test_a_seat_is_left_though_its_renewal_was_cut_short(
    make_store: Callable[[ManualClock], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock(1_000_000.0)
    store = make_store(clock)

    async def scenario() -> None:
        seat = await sit(store, "p", 1, "a", now=clock.time(), until=clock.time() + 30)
        assert seat is not None
        put = store.put

        async def cut_short(*args: Any, **kwargs: Any) -> str:
            await put(*args, **kwargs)
            raise asyncio.CancelledError  # written, and nobody heard of it

        monkeypatch.setattr(store, "put", cut_short)
        with pytest.raises(asyncio.CancelledError):
            await seat.renew(clock.time() + 60)
        monkeypatch.undo()
        await seat.leave()
        other = await sit(store, "p", 1, "b", now=clock.time(), until=clock.time() + 30)
        assert other is not None
        await seat.leave()
        assert await sit(store, "p", 1, "c", now=clock.time(), until=clock.time() + 30) is None, "what another has is not left"
        await store.close()

    asyncio.run(scenario())


# ---------------------------------------------------------------------- through the runner


class World:
    def __init__(self, **options: Any) -> None:
        self.clock = ManualClock(1_000_000.0)
        self.app = CloudQ("limited", broker=MemoryBroker(clock=self.clock), store=MemoryStore(clock=self.clock), clock=self.clock)
        self.ran: list[str] = []

        @self.app.task(name="t", **options)
        def t(tenant: str = "a") -> str:
            self.ran.append(tenant)
            return tenant

        self.runner = Runner(self.app)

    async def receive(self) -> list[Job]:
        jobs = []
        for delivery in await self.app.broker.receive("default", max_messages=10, wait=0):
            job = self.runner.admit(delivery)
            if job.outcome is None:
                await self.runner.claim(job)
            jobs.append(job)
        return jobs

    async def settle(self, job: Job) -> None:
        outcome = job.outcome or self.runner.run_isolated(job)
        job.outcome = outcome
        await settle(self.app, job, outcome)
        await self.app.broker.ack([job.delivery])


def test_over_the_rate_a_message_is_deferred_once_with_its_turn_and_keeps_its_attempt() -> None:
    world = World(rate_limit="1/m")
    for _ in range(3):
        world.app["t"].delay()

    async def scenario() -> None:
        jobs = await world.receive()
        for job in jobs:
            await world.settle(job)
        assert [type(job.outcome) for job in jobs] == [Done, Later, Later]
        for number in (1, 2):
            assert await world.receive() == []
            world.clock.advance(60)
            (job,) = await world.receive()
            assert job.message is not None
            assert (job.message.attempt, job.message.deferrals) == (0, 1)
            assert job.message.turn == pytest.approx(1_000_000.0 + 60 * number, abs=0.01)
            await world.settle(job)
            assert isinstance(job.outcome, Done)

    asyncio.run(scenario())
    assert len(world.ran) == 3


def test_a_turn_that_is_long_over_is_none() -> None:
    world = World(rate_limit="1/s")
    for _ in range(8):
        world.app["t"].delay()

    async def scenario() -> None:
        for job in await world.receive():
            await world.settle(job)
        assert len(world.ran) == 1
        world.clock.advance(600)  # nobody was there
        jobs = await world.receive()
        for job in jobs:
            await world.settle(job)
        assert len(jobs) == 7
        assert len(world.ran) == 2  # and not all at once

    asyncio.run(scenario())


def test_each_key_has_a_limit_of_its_own() -> None:
    world = World(max_running=1, limit_key="{tenant}")
    for tenant in ("a", "a", "b"):
        world.app["t"].delay(tenant)

    async def scenario() -> None:
        jobs = await world.receive()
        assert [type(job.outcome) for job in jobs] == [type(None), Later, type(None)]
        for job in jobs:
            await world.settle(job)
        assert world.ran == ["a", "b"]
        world.clock.advance(2)
        (job,) = await world.receive()
        await world.settle(job)
        assert world.ran == ["a", "b", "a"]

    asyncio.run(scenario())


@pytest.mark.parametrize("end", ["raises", "returns"])
def test_a_seat_is_left_however_the_run_ends(end: str) -> None:
    world = World(max_running=1)

    @world.app.task(name="other", max_running=1)
    def other() -> None:
        if end == "raises":
            raise ValueError

    async def scenario() -> None:
        for _ in range(2):
            await world.app["other"].adelay()
            (job,) = await world.receive()
            assert job.outcome is None
            await world.settle(job)
            assert isinstance(job.outcome, Dead if end == "raises" else Done)

    asyncio.run(scenario())


def test_a_seat_is_kept_by_the_heartbeat_and_free_when_its_worker_is_killed() -> None:
    world = World(max_running=1)

    async def scenario() -> None:
        await world.app["t"].adelay("first")
        (job,) = await world.receive()
        assert job.outcome is None
        await world.app["t"].adelay("second")
        for _ in range(3):
            world.clock.advance(20)
            await world.runner.renew(job, world.clock.time() + 30)
            await world.app.broker.extend([job.delivery], 30)
            waiting = await world.receive()
            assert all(isinstance(each.outcome, Later) for each in waiting)
            for each in waiting:
                await world.settle(each)
        world.clock.advance(31)  # killed
        jobs = await world.receive()
        assert sum(each.outcome is None for each in jobs) == 1

    asyncio.run(scenario())


def test_a_key_that_cannot_be_made_is_a_dead_letter() -> None:
    def broken(tenant: str = "a") -> str:
        raise RuntimeError("no key")

    world = World(max_running=1, limit_key=broken)
    world.app["t"].delay()

    async def scenario() -> None:
        (job,) = await world.receive()
        assert isinstance(job.outcome, Dead)
        assert "limit_key" in job.outcome.reason

    asyncio.run(scenario())


# ---------------------------------------------------------------------- in real time


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_in_real_time_workers_together_keep_the_rate(kind: str, tmp_path: Path) -> None:
    store = "memory://" if kind == "memory" else f"sqlite:///{tmp_path / 'real.db'}"
    app = CloudQ("real", broker="memory://", store=store)
    began: list[float] = []

    @app.task(name="t", rate_limit="20/s", ignore_result=True)
    def t() -> None:
        began.append(time.time())

    app.send_many(app["t"].s() for _ in range(40))
    before = time.time()
    workers = [Worker(app, WorkerOptions(concurrency=5, wait=0.2)) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        deadline = time.monotonic() + 60
        while len(began) < 40 and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join(60)
    assert len(began) == 40
    assert 39 / (max(began) - before) <= 20 * 1.1  # not from the first that began: a busy machine may have begun it late
