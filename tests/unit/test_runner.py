"""One message in, one outcome out: what may run, and what an exception means."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import pytest

from cloudq import CloudQ, Ignore, Reject, Retry, states
from cloudq.broker import Delivery
from cloudq.clock import ManualClock
from cloudq.errors import ArgumentsError, StoreUnavailable, TimeLimitExceeded
from cloudq.io import drive
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.outcome import Again, Dead, Done, Dropped, Later, Outcome
from cloudq.runner import Job, Runner
from cloudq.settle import settle


class World:
    def __init__(self, **settings: Any) -> None:
        self.clock = ManualClock()
        self.app = CloudQ("run", **{"broker": MemoryBroker(clock=self.clock), "clock": self.clock, **settings})
        self.runner = Runner(self.app)

    def delivery(self, body: str | None = None, *, receives: int = 1, group: str | None = None, **fields: Any) -> Delivery:
        text = json.dumps({"v": 1, "id": "i", "task": "t", "args": [], **fields}) if body is None else body
        now = self.clock.time()
        return Delivery(
            queue="default", body=text, receipt=None, receives=receives, group=group, sent=now, received=now, lease_until=now + 30
        )

    def admit(self, body: str | None = None, **fields: Any) -> Job:
        return self.runner.admit(self.delivery(body, **fields))

    def run(self, **fields: Any) -> Outcome:
        job = self.admit(**fields)
        assert job.outcome is None
        return self.runner.run_isolated(job)

    def task(self, function: Any, **options: Any) -> Any:
        return self.app.task(name="t", **options)(function)


def _raises(error: BaseException) -> Any:
    def function() -> None:
        raise error

    return function


# ---------------------------------------------------------------------------------------------- may it run?


@pytest.mark.parametrize("body", ["{", "[]", "nonsense", '{"v":1}', '{"v":0,"id":"i","task":"t"}', '{"v":1,"id":"i","task":"t","args":{}}'])
def test_what_cannot_be_read_is_dead_and_never_run(body: str) -> None:
    job = World().admit(body)
    assert isinstance(job.outcome, Dead)
    assert job.outcome.state == states.DEAD


def test_a_newer_protocol_and_an_unknown_task_wait_for_a_deploy_and_then_are_dead() -> None:
    for fields in ({"v": 2}, {"task": "not.here.yet"}):
        world = World(unknown_task_grace=100)
        outcome = world.admit(**fields).outcome
        assert isinstance(outcome, Later)
        since = outcome.changes["unknown_since"]
        world.clock.advance(60)
        later = world.admit(**fields, unknown_since=since).outcome
        assert isinstance(later, Later)
        assert later.changes["unknown_since"] == since
        world.clock.advance(41)
        assert isinstance(world.admit(**fields, unknown_since=since).outcome, Dead)


def test_what_expired_is_dropped_and_what_is_early_waits_the_exact_rest() -> None:
    world = World()
    world.task(lambda: None)
    now = world.clock.time()
    expired = world.admit(expires=now, sent=now).outcome
    assert isinstance(expired, Dropped)
    assert expired.state == states.EXPIRED
    assert world.admit(expires=now + 1, sent=now).outcome is None
    early = world.admit(eta=now + 100, sent=now).outcome
    assert isinstance(early, Later)
    assert early.delay == pytest.approx(100)
    assert world.admit(eta=now, sent=now).outcome is None


def test_without_a_store_a_message_that_crashes_its_workers_is_dead_after_twice_as_many_deliveries_as_the_cap() -> None:
    world = World(crash_cap=3)
    world.task(lambda: None)
    assert world.admit(receives=5).outcome is None
    dead = world.admit(receives=6).outcome
    assert isinstance(dead, Dead)
    assert dead.reason == "crash loop: delivered 6 times without an outcome"
    assert isinstance(world.admit(receives=1, crashes=3, sent=1.0).outcome, Dead)
    assert isinstance(world.admit(receives=5, crashes=1, sent=1.0).outcome, Dead)
    assert world.admit(receives=4, crashes=1, sent=1.0).outcome is None
    assert world.admit(receives=0).outcome is None


def test_with_a_store_runs_that_ended_without_an_outcome_count_and_deliveries_do_not() -> None:
    world = World(crash_cap=3, store="memory://")
    world.task(lambda: None)
    for receives in range(1, 50):  # throttled, given back, put off
        job = world.admit(receives=receives)
        drive(world.runner.claim(job))
        assert job.outcome is None
        assert job.claim is not None
        drive(job.claim.release())
    outcomes: list[Outcome | None] = []
    for _ in range(4):  # it takes its process along
        job = world.admit(receives=1)
        drive(world.runner.claim(job))
        outcomes.append(job.outcome)
        world.clock.advance(31)
    assert outcomes[:3] == [None, None, None]
    assert outcomes[3] == Dead("crash loop: 3 runs ended without an outcome")


@pytest.mark.parametrize("group", [None, "g"])
def test_crashes_that_the_host_saw_and_claims_that_ran_out_are_one_count(group: str | None) -> None:
    world = World(crash_cap=3, store="memory://")
    world.task(lambda: None)

    def next_job(**fields: Any) -> Job:
        job = world.admit(group=group, **fields)
        drive(world.runner.claim(job))
        return job

    next_job()
    world.clock.advance(31)
    job = next_job()
    assert job.crashes == 1
    again = world.runner.crashed(job, "killed by signal 9")
    assert isinstance(again, Again)
    asyncio.run(settle(world.app, job, again))
    world.clock.advance(31)
    fields: dict[str, Any] = {} if group else {"attempt": 1, "crashes": 1, "sent": 1.0}
    job = next_job(**fields)
    assert job.outcome is None
    assert job.crashes == 2
    assert isinstance(world.runner.crashed(job, "killed by signal 9"), Dead)


def test_each_claim_has_an_owner_of_its_own_also_in_copies_of_one_process() -> None:
    world = World(store="memory://")
    world.task(lambda: None)
    twins = [copy.deepcopy(world.runner, {id(world.app): world.app}) for _ in range(2)]
    jobs = [twin.admit(world.delivery()) for twin in twins]
    for twin, job in zip(twins, jobs, strict=True):
        drive(twin.claim(job))
    assert jobs[0].outcome is None
    assert isinstance(jobs[1].outcome, Later)


@pytest.mark.parametrize("group", [None, "g"])
def test_what_waits_for_a_deploy_is_no_crash_however_often_it_comes(group: str | None) -> None:
    world = World()
    job = world.admit(receives=60, group=group)
    assert isinstance(job.outcome, Later)
    assert (world.admit(receives=1, group="g").outcome or job.outcome).delay < 5  # type: ignore[union-attr]
    looks, receives = 0.0, 1
    while looks < world.app.conf.unknown_task_grace:  # each look at an ordered message is a delivery
        outcome = world.admit(receives=receives, group="g").outcome
        assert isinstance(outcome, Later)
        looks, receives = looks + outcome.delay, receives + 1
    assert receives <= 2 * world.app.conf.crash_cap


def test_a_long_backlog_takes_nothing_of_the_time_that_an_ordered_message_has_for_a_deploy() -> None:
    world = World()
    delivery = world.delivery(group="g")
    delivery.sent = world.clock.time() - 3_600
    assert isinstance(world.runner.admit(delivery).outcome, Later)


def test_a_result_is_what_it_was_when_the_task_returned() -> None:
    world = World(store="memory://")
    seen: list[int] = [1]
    world.task(lambda: seen)
    job = world.admit()
    drive(world.runner.claim(job))
    outcome = world.runner.run_isolated(job)
    seen.append(2)
    assert outcome == Done([1])


def test_a_coroutine_that_nobody_awaits_is_no_result() -> None:
    async def work() -> None:
        raise AssertionError("nobody awaits it")

    world = World()
    world.task(lambda: work())
    outcome = world.run()
    assert isinstance(outcome, Dead)
    assert outcome.reason.startswith("it returned a coroutine")
    assert outcome.state == states.FAILURE


def test_what_could_be_awaited_and_nobody_wants_is_no_fault() -> None:
    class Handle:
        def __await__(self) -> Any:
            raise AssertionError("nobody awaits it")

    world = World()
    made = iter([Handle(), (each for each in "ab")])
    world.task(lambda: next(made))
    assert [world.run(), world.run()] == [Done(), Done()]


def test_a_store_that_stays_away_is_asked_more_and_more_rarely() -> None:
    class Down(MemoryStore):
        async def put(self, *args: Any, **kwargs: Any) -> str:
            raise StoreUnavailable("no")

    world = World(store=Down())
    world.task(lambda: None)
    delays: list[float] = []
    for deferrals in range(8):
        job = world.admit(deferrals=deferrals, sent=1.0)
        drive(world.runner.claim(job))
        assert isinstance(job.outcome, Later)
        delays.append(job.outcome.delay)
    assert delays[0] <= 4
    assert delays[-1] >= 15


def test_the_cap_for_ordered_queues_leaves_room_for_retries() -> None:
    world = World(crash_cap=3)
    world.task(lambda: None, retry=Retry(max_retries=4))
    job = world.admit(receives=5, group="g")
    assert job.outcome is None
    assert job.message is not None
    assert job.message.attempt == 4
    redriven = world.admit(receives=2, group="g", attempt=5, first=5, sent=1.0).message
    assert redriven is not None
    assert redriven.retries == 1
    assert world.admit(receives=9, group="g").outcome is None
    assert isinstance(world.admit(receives=10, group="g").outcome, Dead)


def test_a_revived_letter_has_a_fresh_budget_and_keeps_its_id() -> None:
    world = World()
    world.task(lambda: None)
    job = world.admit(dead={"reason": "x"}, attempt=3, crashes=9, sent=1.0, expires=2.0)
    assert job.outcome is None
    assert job.message is not None
    assert (job.message.id, job.message.attempt, job.message.retries, job.message.crashes) == ("i", 4, 0, 0)


def test_time_limits_count_from_the_call_then_the_task_then_the_app() -> None:
    world = World(timeout="7s")
    world.task(lambda: None)
    assert world.admit().timeout == 7
    world.app.task(name="own", timeout=5)(lambda: None)
    assert world.admit(task="own").timeout == 5
    assert world.admit(task="own", timeout=2, sent=1.0).timeout == 2


def test_a_store_that_is_down_puts_the_run_off() -> None:
    class Down(MemoryStore):
        async def put(self, *args: Any, **kwargs: Any) -> str:
            raise StoreUnavailable("down")

    world = World(store=Down())
    world.task(lambda: None)
    job = world.admit()
    drive(world.runner.claim(job))
    assert isinstance(job.outcome, Later)
    assert job.claim is None


def test_a_second_delivery_to_the_same_process_is_refused_like_any_other() -> None:
    world = World()
    world = World(store=MemoryStore(clock=world.clock), clock=world.clock)
    world.task(lambda: None)
    first, second = world.admit(), world.admit()
    drive(world.runner.claim(first))
    drive(world.runner.claim(second))
    assert first.claim is not None
    assert isinstance(second.outcome, Later)


# ---------------------------------------------------------------------------------------------- what it came to


def test_what_an_exception_means() -> None:
    cases: list[tuple[BaseException, dict[str, Any], Any]] = [
        (ValueError("x"), {}, (Dead, states.FAILURE)),
        (ValueError("x"), {"retry": Retry(delay=4, jitter=False)}, (Again, 4)),
        (KeyError("x"), {"retry": Retry(on=(ValueError,))}, (Dead, states.FAILURE)),
        (Reject("x"), {"retry": Retry()}, (Dead, states.DEAD)),
        (SystemExit(1), {"retry": Retry()}, (Dead, states.FAILURE)),
        (KeyboardInterrupt(), {}, (Dead, states.FAILURE)),
        (asyncio.CancelledError(), {}, (Dead, states.FAILURE)),
        (ValueError("x"), {"retry": Retry(decide=lambda error, retries: 1 / 0)}, (Dead, states.FAILURE)),
        (TimeLimitExceeded("x"), {"retry": Retry(delay=1, jitter=False)}, (Again, 1)),
    ]
    for error, options, (kind, value) in cases:
        world = World()
        world.task(_raises(error), **options)
        outcome = world.run()
        assert type(outcome) is kind, error
        assert (outcome.delay if isinstance(outcome, Again) else outcome.state) == value  # type: ignore[union-attr]


def test_ignore_ends_without_a_result() -> None:
    world = World()
    world.task(_raises(Ignore()))
    outcome = world.run()
    assert outcome == Done(None, kept=False)


def test_arguments_that_do_not_fit_are_dead_at_once_and_a_bad_call_inside_is_the_tasks_error() -> None:
    world = World()

    def t(x: int = 0, inner: bool = False) -> None:
        if inner:
            task.delay("not a number")

    task = world.task(t, retry=Retry(delay=0))
    outcome = world.run(args=["x"])
    assert isinstance(outcome, Dead)
    assert outcome.state == states.DEAD
    assert outcome.error is not None
    assert outcome.error.type.endswith(ArgumentsError.__name__)
    assert isinstance(world.run(args=[1, True]), Again)


def test_the_last_retry_is_the_last_and_says_how_many_there_were() -> None:
    world = World()
    world.task(_raises(ValueError("x")), retry=Retry(max_retries=2, delay=0))
    assert isinstance(world.run(attempt=1, sent=1.0), Again)
    outcome = world.run(attempt=2, sent=1.0)
    assert isinstance(outcome, Dead)
    assert "out of retries (2)" in outcome.reason
    assert isinstance(world.run(attempt=5, first=4, sent=1.0), Again)


def test_a_result_that_cannot_travel_is_dead_and_not_run_again() -> None:
    world = World(store=MemoryStore())
    world.task(lambda: object(), retry=Retry())
    job = world.admit()
    drive(world.runner.claim(job))
    outcome = world.runner.run_isolated(job)
    assert isinstance(outcome, Dead)
    assert "cannot travel" in outcome.reason


def test_what_a_task_sets_in_context_ends_with_it() -> None:
    from contextvars import ContextVar

    spot: ContextVar[str] = ContextVar("spot", default="clean")
    seen: list[str] = []
    world = World()

    def t() -> None:
        seen.append(spot.get())
        spot.set("dirty")

    world.task(t)
    world.run()
    world.run()
    assert seen == ["clean", "clean"]


def test_an_async_task_over_its_limit_is_timed_out_and_one_cancelled_by_its_host_raises() -> None:
    world = World()

    async def t() -> None:
        await asyncio.sleep(60)

    world.task(t, timeout=0.01)
    outcome = asyncio.run(world.runner.arun(world.admit()))
    assert isinstance(outcome, Dead)
    assert "time limit" in outcome.reason

    async def cancelled() -> None:
        running = asyncio.create_task(world.runner.arun(world.admit(timeout=60, sent=1.0)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancelled())


def test_a_crash_counts_and_is_dead_at_the_cap() -> None:
    world = World(crash_cap=2)
    world.task(lambda: None)
    outcome = world.runner.crashed(world.admit(), "killed by signal 9")
    assert isinstance(outcome, Again)
    assert outcome.crashed
    job = world.admit()
    assert job.message is not None
    job.message = job.message.next_attempt(crashed=True)
    assert isinstance(world.runner.crashed(job, "killed by signal 9"), Dead)


@pytest.mark.parametrize("broken", [True, False])
def test_an_error_that_cannot_be_printed_hides_nothing(broken: bool) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            if broken:
                raise ValueError
            return "\udc80 lone"

    world = World()
    world.task(_raises(Odd()))
    outcome = world.run()
    assert isinstance(outcome, Dead)
    assert outcome.error is not None
    json.dumps(outcome.error.as_json()).encode()
    outcome.error.detail.encode()
