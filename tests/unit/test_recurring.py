"""What recurs: declared in code, ticked by name and slot, run once a slot."""

from __future__ import annotations

import json
import queue
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloudq import CloudQ, chain, cron, crontab, every, group, states, task
from cloudq.broker import Delivery
from cloudq.clock import ManualClock
from cloudq.errors import ArgumentsError, ConfigError
from cloudq.io import drive
from cloudq.memory.broker import MemoryBroker
from cloudq.memory.store import MemoryStore
from cloudq.outcome import Dead, Done, Dropped, Later
from cloudq.recurring import slot_of
from cloudq.runner import Job, Runner
from cloudq.settle import settle
from cloudq.timer import last_fire

NINE = int(datetime(2027, 1, 15, 9, tzinfo=UTC).timestamp())


class World:
    def __init__(self, **settings: Any) -> None:
        self.clock = ManualClock(NINE)
        self.app = CloudQ("run", broker=MemoryBroker(clock=self.clock), clock=self.clock, **settings)
        self.ran: list[Any] = []

        @self.app.task(name="note")
        def note(what: str = "ran") -> str:
            self.ran.append(what)
            return what

        @self.app.task(name="shout")
        def shout(what: str) -> str:
            self.ran.append(what.upper())
            return what.upper()

        self.note, self.shout = note, shout

    def delivery(self, sent: float | None = None, **fields: Any) -> Delivery:
        now = self.clock.time()
        body = json.dumps({"v": 1, **fields})
        return Delivery(
            queue="default", body=body, receipt=None, receives=1, sent=now if sent is None else sent, received=now, lease_until=now + 30
        )

    def admit(self, **fields: Any) -> Job:
        self.runner = Runner(self.app)
        return self.runner.admit(self.delivery(**fields))

    def work(self, **fields: Any) -> Job:
        """A tick through all that a host does with it."""
        job = self.admit(**fields)
        if job.outcome is None and self.app.store is not None:
            drive(self.runner.claim(job))
        outcome = job.outcome or self.runner.run_isolated(job)
        job.outcome = outcome
        drive(settle(self.app, job, outcome))
        return job


def test_a_tick_is_the_call_that_the_code_declares() -> None:
    world = World()
    world.app.schedule("morning", world.note.s("hi").set(queue="early", expires="1h", timeout=5, headers={"a": 1}), "0 9 * * *")
    message = world.admit(tick="morning", slot=NINE).message
    assert message is not None
    assert message.fields == {
        "v": 1, "id": f"morning@{NINE}", "task": "note", "args": ["hi"], "sent": NINE, "timeout": 5.0, "headers": {"a": 1},
        "expires": NINE + 3600,
    }  # fmt: skip
    assert "early" in world.app.queues


@pytest.mark.parametrize(
    "slot", [NINE, float(NINE), str(NINE), "2027-01-15T09:00:00Z", "2027-01-15T09:00:00+00:00", "2027-01-15T10:00:00+01:00"]
)
def test_a_slot_is_read_as_each_provider_writes_it(slot: object) -> None:
    assert slot_of({"slot": slot}, every("1d"), 0.0) == NINE


@pytest.mark.parametrize("fields", [{}, {"slot": "<slot>"}])
def test_a_tick_without_a_slot_is_for_the_last_fire_before_it_was_sent(fields: dict[str, object]) -> None:
    assert slot_of(fields, cron("0 9 * * *"), NINE + 3.5) == NINE
    assert slot_of(fields, cron("0 9 * * *"), NINE - 1) == NINE - 86_400
    assert slot_of(fields, cron("0 9 29 2 *"), NINE) == datetime(2024, 2, 29, 9, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("slot", [True, None, [], "soon", -5, 1e300, "9" * 400, "2027-13-01T00:00:00Z"])
def test_a_slot_that_is_none_makes_a_dead_letter(slot: object) -> None:
    world = World()
    world.app.schedule("morning", world.note.s(), "0 9 * * *")
    job = world.admit(tick="morning", slot=slot)
    assert isinstance(job.outcome, Dead)
    assert "slot" in job.outcome.reason


def test_the_last_fire_is_found_near_and_far() -> None:
    assert last_fire(every(1), 100.9) == 100
    assert last_fire(every("1d", anchor=NINE), NINE - 0.5) == NINE - 86_400
    assert last_fire(cron("59 23 31 12 *"), NINE) == datetime(2026, 12, 31, 23, 59, tzinfo=UTC).timestamp()


def test_two_ticks_of_a_slot_run_once_and_their_result_is_found_by_name_and_slot() -> None:
    world = World(store=MemoryStore())
    world.app.schedule("morning", world.note.s("x"), "0 9 * * *")
    assert isinstance(world.work(tick="morning", slot=NINE).outcome, Done)
    assert isinstance(world.work(tick="morning", slot="2027-01-15T09:00:00Z").outcome, Dropped)
    assert world.ran == ["x"]
    assert world.app.result(f"morning@{NINE}").get(timeout=1) == "x"


def test_an_unknown_schedule_waits_for_a_deploy_and_then_is_a_dead_letter_which_runs_when_redriven_after_it() -> None:
    world = World(unknown_task_grace=100)
    first = world.work(tick="morning", slot=NINE)
    assert isinstance(first.outcome, Later)
    world.clock.advance(101)
    assert isinstance(world.work(tick="morning", slot=NINE, **first.outcome.changes).outcome, Dead)
    (letter,) = drive(world.app.broker.receive("default-dlq", max_messages=1, wait=0))
    fields = json.loads(letter.body)
    assert (fields["tick"], fields["slot"], fields["dead"]["queue"]) == ("morning", NINE, "default")
    world.clock.advance(3 * 86_400)
    world.app.schedule("morning", world.note.s("late"), "0 9 * * *")
    assert isinstance(world.work(**fields).outcome, Done)
    assert world.ran == ["late"]


@pytest.mark.parametrize(
    ("catch_up", "late", "runs"),
    [
        ("latest", 90, True),  # late, and not missed
        ("latest", 4_000, True),  # missed, and the last of them
        ("latest", 90_000, False),  # there has been another since
        ("all", 90_000, True),
        ("none", 90, True),
        ("none", 4_000, False),
    ],
)
def test_missed_ticks_run_as_the_schedule_says(catch_up: Any, late: float, runs: bool) -> None:
    world = World()
    world.app.schedule("morning", world.note.s(), "0 9 * * *", catch_up=catch_up)
    world.clock.advance(late)
    assert isinstance(world.work(tick="morning", slot=NINE).outcome, Done if runs else Dropped)
    assert bool(world.ran) is runs


def test_what_an_app_sets_for_missed_ticks_holds_for_its_schedules() -> None:
    world = World(catch_up="none")
    assert world.app.schedule("a", world.note.s(), 60).catch_up == "none"
    assert world.app.schedule("b", world.note.s(), 60, catch_up="all").catch_up == "all"


def test_a_chain_recurs_under_one_id_a_slot() -> None:
    world = World(store=MemoryStore())
    world.app.schedule("both", chain(world.note.s("a"), world.shout.s()), every("1d"))
    world.work(tick="both", slot=NINE)
    (follow,) = drive(world.app.broker.receive("default", max_messages=10, wait=0))
    world.work(**json.loads(follow.body))
    assert world.ran == ["a", "A"]
    assert world.app.result(f"both@{NINE}").get(timeout=1) == "A"
    world.work(tick="both", slot=NINE)  # a double sends the same again, and that is known
    (again,) = drive(world.app.broker.receive("default", max_messages=10, wait=0))
    assert json.loads(again.body)["id"] == f"both@{NINE}"
    world.work(**json.loads(again.body))
    assert world.ran == ["a", "A"]


def test_a_task_says_itself_when_it_recurs() -> None:
    app = CloudQ("own", broker="memory://")

    @app.task(schedule=cron("0 9 * * 1-5", tz="Europe/Berlin"))
    def daily() -> None: ...

    @app.task(schedule=["every 5m", timedelta(hours=1), crontab(minute=0)])
    def often(what: str = "x") -> None: ...

    assert {each.name: str(each.trigger) for each in app.schedules.values()} == {
        daily.name: "0 9 * * 1-5 Europe/Berlin",
        f"{often.name}.1": "every 5m",
        f"{often.name}.2": "every 1h",
        f"{often.name}.3": "0 * * * * UTC",
    }


def test_a_task_without_an_app_brings_its_schedule_along_once() -> None:
    @task(schedule=60)
    def library() -> None: ...

    app = CloudQ("own", broker="memory://")
    app.add(library)
    app.add(library)
    assert list(app.schedules) == [library.name]


def test_celerys_beat_schedule_is_taken_as_it_is() -> None:
    app = CloudQ(
        "celery",
        broker="memory://",
        beat_schedule={
            "add-every-30-seconds": {
                "task": "tasks.add",
                "schedule": 30.0,
                "args": (16, 16),
                "options": {"queue": "sums", "expires": 15.0},
            },
            "monday morning": {"task": "tasks.mail", "schedule": crontab(hour=7, minute=30, day_of_week=1), "kwargs": {"to": "all"}},
        },
    )
    first, second = app.schedules.values()
    assert (str(first.trigger), first.steps(app)) == (
        "every 30s",
        [{"task": "tasks.add", "queue": "sums", "args": [16, 16], "immutable": True, "expires": 15.0}],
    )
    assert (str(second.trigger), second.steps(app)[0]["kwargs"]) == ("30 7 * * 1 UTC", {"to": "all"})


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"task": "x"}, "has no schedule"),
        ({"schedule": 5}, "has no task"),
        ({"task": "x", "schedule": 5, "arg": ()}, "unknown key arg"),
        ({"task": "x", "schedule": "0 9 * *"}, "five"),
        ({"task": "x", "schedule": object()}, "its trigger is"),
        ({"task": "x", "schedule": 5, "options": {"countdown": 3}}, "countdown"),
        ({"task": "x", "schedule": 5, "options": {"task_id": "a"}}, "task_id"),
    ],
)
def test_a_bad_entry_is_refused_with_its_name(entry: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        CloudQ("celery", broker="memory://", beat_schedule={"nightly": entry})
    assert "nightly" in str(refused.value)


def test_what_cannot_recur_is_refused_where_it_is_declared() -> None:
    world = World()
    app, note = world.app, world.note
    app.schedule("taken", note.s(), 60)
    for name, call, trigger, says in (
        ("taken", note.s(), 60, "two schedules"),
        ("", note.s(), 60, "a name is"),
        ("a@b", note.s(), 60, "without '@'"),
        ("x" * 101, note.s(), 60, "a name is"),
        ("new", group(note.s("a"), note.s("b")), 60, "begins with one task"),
        ("new", note.s(), "0 0 30 2 *", "never"),
        ("new", note.s(), 0.5, "whole seconds"),
        ("new", note.s().set(countdown=5), 60, "countdown"),
    ):
        with pytest.raises(ConfigError, match=says):
            app.schedule(name, call, trigger)
    with pytest.raises(ConfigError, match="catch_up"):
        app.schedule("new", note.s(), 60, catch_up="some")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"app\.schedule"):

        @app.task(schedule=60)
        def needs(what: str) -> None: ...


def test_a_call_that_does_not_fit_its_task_is_refused_when_a_host_starts() -> None:
    world = World()
    world.app.schedule("morning", world.shout.s(), "0 9 * * *")
    with pytest.raises(ArgumentsError, match="what"):
        Runner(world.app)


def test_a_tick_needs_no_signature_and_what_follows_it_has_one() -> None:
    world = World(signing="a:" + "A" * 43)
    world.app.schedule("morning", world.note.s("signed"), "0 9 * * *")
    job = world.work(tick="morning", slot=NINE)
    assert isinstance(job.outcome, Done)
    assert not job.as_is


def _beats(app: CloudQ) -> queue.SimpleQueue[str]:
    """The ids of the runs of a task that recurs each second; which second comes first is not known."""
    found: queue.SimpleQueue[str] = queue.SimpleQueue()

    @app.task(schedule=every(1), name="beat", bind=True)
    def beat(self: Any) -> None:
        assert self.request.id.startswith("beat@")
        found.put(self.request.id)

    return found


def test_the_memory_timer_fires_in_the_worker_of_its_process() -> None:
    from cloudq.worker import Worker, WorkerOptions

    app = CloudQ("fires", broker="memory://", store="memory://")

    beats = _beats(app)
    worker = Worker(app, WorkerOptions(concurrency=1, wait=0.2))
    worker.start()
    try:
        assert app.timer is not None
        assert len(drive(app.timer.schedules())) == 1
        beat = beats.get(timeout=30)
        app.result(beat).get(timeout=30)
        assert app.result(beat).state == states.SUCCESS
    finally:
        worker.stop()
        worker.join(30)


def test_dev_fires_schedules_where_no_timer_does() -> None:
    from cloudq.broker import Limits
    from cloudq.worker import Worker, WorkerOptions

    class Elsewhere(MemoryBroker):
        """As a broker in the cloud, without a timer of its own."""

    broker = Elsewhere(
        limits=Limits(
            batch=10, batch_bytes=100_000, body=100_000, receive=10, wait=0.2, delay=900.0, lease=30.0, extend=60.0, max_lease=60.0
        )
    )
    app = CloudQ("fires", broker=broker, store=MemoryStore())

    beats = _beats(app)
    worker = Worker(app, WorkerOptions(concurrency=1, wait=0.2, schedules=True))
    worker.start()
    try:
        app.result(beats.get(timeout=30)).get(timeout=30)
    finally:
        worker.stop()
        worker.join(30)
