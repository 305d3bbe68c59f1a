"""Delays by Cloud Tasks, schedules by Cloud Scheduler: what is set, that a task runs once and at its time, and what is refused.

Google's clients talk to stand-ins on a clock that the tests move, and these publish to Google's Pub/Sub emulator.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest

from cloudq import CloudQ, states
from cloudq.adapters import AdapterContext, Location
from cloudq.broker import Delivery, Outgoing
from cloudq.clock import ManualClock, SystemClock
from cloudq.errors import ConfigError, MessageTooLarge, TaskRevoked, TimerError, TimerUnavailable
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.runner import Runner
from cloudq.schedules import cron, every
from cloudq.schedules.naming import cloud_scheduler_job, cloud_scheduler_note, cloud_scheduler_owner
from cloudq.settle import Verdict, settle
from cloudq.timer import Schedule, Trigger
from cloudq_gcp.naming import Naming
from cloudq_gcp.pubsub import PubSubBroker
from cloudq_gcp.timer import GoogleTimer, adapter
from tests.gcp_servers import PROJECT, PubSubServer
from tests.google_api import GoogleAPI, Refused, google_api
from tests.grpc_proxy import Refuse, first, grpc_proxy
from tests.servers import unique

T = TypeVar("T")
ACCOUNT = f"tasks@{PROJECT}.iam.gserviceaccount.com"
PLACE = f"projects/{PROJECT}/locations/europe-west1"
START = 1_800_000_001.25
HOUR, DAY = 3_600.0, 86_400.0


@dataclass
class Site:
    """An app's Pub/Sub queue ``work``, its Cloud Tasks queue, and the stand-ins that fire."""

    api: GoogleAPI
    clock: ManualClock
    pubsub: PubSubServer
    work: str
    url: str
    """The timer's."""
    ran: list[tuple[str, float]] = field(default_factory=list)
    """What ran, and when."""
    apps: list[CloudQ] = field(default_factory=list)
    held: list[Delivery] = field(default_factory=list)

    @property
    def owner(self) -> str:
        """Of its jobs."""
        return cloud_scheduler_owner("shop", urlsplit(self.url).path.rpartition("/")[2])

    def app(self, *, hold: int = 60, **options: Any) -> CloudQ:
        broker = f"pubsub://{PROJECT}/?lease=600&hold={hold}"
        app = CloudQ("shop", broker=broker, timer=self.url, clock=self.clock, default_queue=self.work, **options)
        self.apps.append(app)

        @app.task(name="note")
        def note(word: str) -> None:
            self.ran.append((word, self.clock.time()))

        return app

    def drain(self, app: CloudQ) -> None:
        """Work until nothing more can be received now: a host of the smallest kind, which looks at what it holds each time."""
        app.io.run(self._drain(app), timeout=60)

    async def _drain(self, app: CloudQ) -> None:
        runner = Runner(app)
        deliveries, self.held = self.held, []
        while deliveries := [*deliveries, *await app.broker.receive(self.work, max_messages=10, wait=0)]:
            for delivery in deliveries:
                job = runner.admit(delivery)
                if job.outcome is None:
                    await runner.claim(job)
                if await settle(app, job, job.outcome or runner.run(job)) is Verdict.ACK:
                    await app.broker.ack([delivery])
                else:
                    self.held.append(delivery)
            deliveries = []

    def pass_time(self, app: CloudQ, seconds: float) -> None:
        """Let time pass, and work."""
        self.api.pass_time(seconds)
        self.drain(app)

    def task(self) -> Any:
        """The one task that waits."""
        (found,) = self.api.tasks.values()
        return found

    def due(self) -> list[float]:
        """Seconds from the start at which tasks are due."""
        return sorted(each.schedule_time.timestamp() - START for each in self.api.tasks.values())


@pytest.fixture
def site(pubsub: PubSubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    clock, queue = ManualClock(START), unique("timer")
    with google_api(pubsub.address, clock) as api:
        for variable in ("CLOUD_TASKS_EMULATOR_HOST", "CLOUD_SCHEDULER_EMULATOR_HOST"):
            monkeypatch.setenv(variable, api.address)
        api.make_queue(f"{PLACE}/queues/{queue}")
        url = f"cloudtasks://{PROJECT}/europe-west1/{queue}?service_account={ACCOUNT}"
        site = Site(api, clock, pubsub, pubsub.make_queue(unique("work"), lease=600), url)
        try:
            yield site
        finally:
            for app in site.apps:
                app.close()


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL, "cloudq"):
        yield


def with_timer(site: Site, do: Callable[[GoogleTimer], Awaitable[T]], *, url: str = "", app: str = "shop", alone: bool = False) -> T:
    """Run ``do(timer)`` with a timer, and unless ``alone`` a broker, on a loop of its own."""

    async def run() -> T:
        broker = PubSubBroker(Naming(project=PROJECT))
        timer = opened(url or site.url, AdapterContext(app=app, clock=site.clock, broker=None if alone else broker))
        try:
            return await do(timer)
        finally:
            await timer.close()
            await broker.close()

    return asyncio.run(run())


def opened(url: str, context: AdapterContext) -> GoogleTimer:
    assert adapter.timer is not None
    timer = adapter.timer(Location.parse(url), context)
    assert isinstance(timer, GoogleTimer)
    return timer


def setting(
    site: Site, body: str = "x", *, ahead: float = HOUR, key: str = "one", **options: Any
) -> Callable[[GoogleTimer], Awaitable[None]]:
    return lambda timer: timer.at(site.clock.time() + ahead, site.work, Outgoing(body=body, **options), key=key)


# ---------------------------------------------------------------------- a delayed task


def test_a_task_delayed_by_three_days_is_one_cloud_task_that_publishes_a_second_early_and_runs_once_at_its_time(site: Site) -> None:
    app = site.app()
    due = START + 3 * DAY
    result = app["note"].options(delay="3d").delay("x")
    assert site.api.requests == {"CreateTask": 1, "DeleteTask": 3}

    found = site.task()
    queue, _, name = found.name.partition("/tasks/")
    assert queue in site.api.queues
    assert result.id not in name
    assert found.schedule_time.timestamp() == due - 1
    call = found.http_request
    assert call.url == f"https://pubsub.googleapis.com/v1/projects/{PROJECT}/topics/{site.work}:publish"
    assert call.http_method.name == "POST"
    assert dict(call.headers) == {"Content-Type": "application/json"}
    assert call.oauth_token.service_account_email == ACCOUNT
    assert call.oauth_token.scope == "https://www.googleapis.com/auth/pubsub"
    (message,) = json.loads(call.body)["messages"]
    body = json.loads(base64.b64decode(message["data"]))
    assert (body["id"], body["args"], body["eta"]) == (result.id, ["x"], due)

    site.pass_time(app, 3 * DAY - 1.001)
    assert site.api.fired == []
    site.pass_time(app, 0.001)
    assert (site.api.fired, site.api.tasks, site.ran, len(site.held)) == ([found.name], {}, [], 1)
    site.pass_time(app, 0.999)
    assert site.ran == []
    site.pass_time(app, 0.001)
    assert site.ran == [("x", due)]
    site.pass_time(app, 30 * DAY)
    assert len(site.ran) == 1


def test_a_delayed_task_that_is_cancelled_is_gone_from_cloud_tasks_and_does_not_run(site: Site) -> None:
    app = site.app()
    result, other = (app["note"].options(delay="3d").delay(word) for word in ("x", "other"))
    assert app.timer is not None
    assert app.io.run(app.timer.cancel(result.id)) is True
    assert app.io.run(app.timer.cancel(result.id)) is False
    assert other.id.encode() in base64.b64decode(json.loads(site.task().http_request.body)["messages"][0]["data"])
    site.pass_time(app, 3 * DAY)
    assert [word for word, _ in site.ran] == ["other"]


def test_a_delayed_task_that_is_revoked_does_not_run(site: Site) -> None:
    app = site.app(store=MemoryStore(clock=site.clock))
    result = app["note"].options(delay="3d").delay("x")
    result.revoke()
    site.pass_time(app, 3 * DAY)
    assert (site.ran, result.state) == ([], states.REVOKED)
    with pytest.raises(TaskRevoked):
        result.get(timeout=1)


def test_what_a_worker_can_hold_itself_needs_no_cloud_task(site: Site) -> None:
    app = site.app()
    app["note"].options(delay=60).delay("x")
    assert site.api.requests == {}
    site.drain(app)
    site.pass_time(app, 60)
    assert site.ran == [("x", START + 60)]


@pytest.mark.parametrize("late", [0.0, 0.7])
def test_where_nobody_can_hold_it_a_task_comes_when_it_is_due_and_not_before(site: Site, late: float) -> None:
    site.api.late = late
    app = site.app(hold=0)
    app["note"].options(delay=2).delay("x")
    assert site.due() == [2.0]
    site.pass_time(app, 2 + late)
    assert site.ran == [("x", START + 2 + late)]
    assert site.api.requests["CreateTask"] == 1


def test_a_task_delayed_by_ten_weeks_is_set_three_times_and_runs_once_at_its_time(site: Site) -> None:
    app = site.app(store=MemoryStore(clock=site.clock))
    due = START + 70 * DAY
    result = app["note"].options(delay="70d").delay("x")
    for hop in (29.5 * DAY, 59 * DAY):
        assert site.due() == [hop]
        site.pass_time(app, hop - (site.clock.time() - START))
    assert site.due() == [70 * DAY - 1]
    assert len(site.api.fired) == 2
    site.pass_time(app, 11 * DAY - 1)
    site.pass_time(app, 1)
    assert site.ran == [("x", due)]
    assert result.state == states.SUCCESS
    assert (len(site.api.fired), site.api.tasks) == (3, {})


def test_a_task_that_retries_again_and_again_within_a_day_comes_back_each_time(site: Site) -> None:
    app = site.app()
    tries: list[float] = []

    @app.task(name="again", bind=True, queue=site.work, max_retries=10)
    def again(self: Any) -> None:
        tries.append(site.clock.time())
        if len(tries) < 8:
            raise self.retry(countdown=HOUR)

    app["again"].delay()
    site.drain(app)
    for _ in range(8):
        site.pass_time(app, HOUR - 1)
        site.pass_time(app, 1)
    assert tries == [START + number * HOUR for number in range(8)]


# ---------------------------------------------------------------------- keys


def test_a_key_is_set_anew_while_its_names_are_blocked_and_when_they_are_free_again(site: Site) -> None:
    async def scenario(timer: GoogleTimer) -> None:
        for number in range(12):  # names are free again after a day: four are enough
            await setting(site, str(number), ahead=20 * DAY)(timer)
            assert len(site.api.tasks) == 1
            site.api.pass_time(8 * HOUR)
        assert await timer.cancel("one") is True
        assert site.api.tasks == {}

    with_timer(site, scenario)


def test_what_is_set_a_fifth_time_within_a_day_is_sent_all_the_same(site: Site) -> None:
    async def scenario(timer: GoogleTimer) -> None:
        for number in range(5):
            await setting(site, str(number), ahead=HOUR)(timer)
        assert await timer.cancel("one") is False

    with_timer(site, scenario)
    site.api.pass_time(HOUR)
    assert site.pubsub.bodies(site.work) == ["4"]


def test_many_may_set_the_same_key_at_once_and_one_is_left(site: Site) -> None:
    async def scenario(timer: GoogleTimer) -> None:
        await asyncio.gather(*(setting(site, str(number))(timer) for number in range(5)))

    with_timer(site, scenario)
    assert site.api.tasks


def test_two_that_delete_each_others_task_do_not_lose_the_message(site: Site) -> None:
    """The first sets its message, and before it looks at the other names a second has set its own there, and deleted the first's."""
    begun: list[str] = []

    def before(method: str) -> None:
        if method == "DeleteTask" and not begun:
            begun.append(method)
            mine = site.task()
            other = mine.name.removesuffix("-0") + "-1"
            made = type(mine)(mine, name=other)
            del site.api.tasks[mine.name]
            site.api.tasks[other] = made

    site.api.before = before
    with_timer(site, setting(site, "x"))
    assert site.task().name.endswith(("-0", "-2"))
    site.api.pass_time(HOUR)
    assert site.pubsub.bodies(site.work) == ["x"]


def test_apps_that_share_a_queue_keep_their_keys_apart(site: Site) -> None:
    with_timer(site, setting(site, "ours"))
    with_timer(site, setting(site, "theirs"), app="other")
    assert len(site.api.tasks) == 2
    assert with_timer(site, lambda timer: timer.cancel("one"), app="other")
    site.api.pass_time(HOUR)
    assert site.pubsub.bodies(site.work) == ["ours"]


def test_any_text_is_a_key(site: Site) -> None:
    keys = ["a" * 600, "a" * 601, "report:1800000000", "Straße", "a/b", "\udcff", ""]

    async def scenario(timer: GoogleTimer) -> None:
        for key in keys:
            await setting(site, key=key)(timer)
        assert len(site.api.tasks) == len(keys)
        for key in keys:
            assert await timer.cancel(key)

    with_timer(site, scenario)


# ---------------------------------------------------------------------- what is sent


def test_text_attributes_and_ordering_key_travel(site: Site) -> None:
    message = Outgoing(body="Grüße \udcff", attributes={"traceparent": "00-1"}, group="cart-7", dedup="d", tenant="acme", delay=5)

    async def scenario(timer: GoogleTimer) -> Delivery:
        await timer.at(site.clock.time() + HOUR, site.work, message, key="one")
        site.api.pass_time(HOUR)
        async with asyncio.timeout(60):
            broker = PubSubBroker(Naming(project=PROJECT))
            while not (found := await broker.receive(site.work, max_messages=1, wait=1)):
                pass
            await broker.ack(found)
            await broker.close()
            return found[0]

    found = with_timer(site, scenario)
    assert (found.body, dict(found.attributes), found.group) == (message.body, message.attributes, "cart-7")


def test_a_publication_that_fails_is_tried_until_it_succeeds(site: Site) -> None:
    topic = f"not-yet-{unique()}"

    async def scenario(timer: GoogleTimer) -> None:
        await timer.at(site.clock.time() + HOUR, topic, Outgoing(body="x"), key="one")

    with_timer(site, scenario)
    site.api.pass_time(HOUR + 60)
    assert {status for _, status in site.api.failed} == {404}
    site.pubsub.make_queue(topic)
    site.api.pass_time(HOUR)
    assert site.pubsub.bodies(topic) == ["x"]
    assert site.api.tasks == {}


@pytest.mark.parametrize("alone", [False, True])
def test_what_is_due_is_sent_now_and_replaces_what_its_key_had_set(site: Site, alone: bool) -> None:
    async def scenario(timer: GoogleTimer) -> None:
        await setting(site, "old")(timer)
        await setting(site, "new", ahead=-HOUR)(timer)
        assert timer.limits.late == 1.0

    with_timer(site, scenario, alone=alone)
    assert len(site.api.tasks) == int(alone)  # through the broker, where there is one
    site.api.pass_time(0)
    assert site.pubsub.bodies(site.work) == ["new"]
    site.api.pass_time(2 * HOUR)
    assert len(site.api.fired) == int(alone)


def test_nothing_is_set_to_be_early_by_less_than_cloud_tasks_can_tell(site: Site) -> None:
    when = START + 0.000_000_7
    with_timer(site, lambda timer: timer.at(when, site.work, Outgoing(body="x"), key="one"))
    assert site.task().schedule_time.timestamp() >= when


def test_a_body_for_which_a_task_has_no_room_is_refused_and_nothing_is_set(site: Site) -> None:
    with pytest.raises(MessageTooLarge, match="996,000"):
        with_timer(site, setting(site, "x" * 747_000))
    with pytest.raises(MessageTooLarge):
        with_timer(site, setting(site, "x" * 10_000_000))
    assert site.api.requests == {}
    with_timer(site, setting(site, "x" * 746_000))
    assert len(site.api.tasks) == 1


@pytest.mark.parametrize("message", [Outgoing(body=""), Outgoing(body="\ud800"), Outgoing(body="x", attributes={"googx": "1"})])
def test_what_pubsub_would_refuse_later_is_refused_now(site: Site, message: Outgoing) -> None:
    with pytest.raises(TimerError, match="cannot take a message"):
        with_timer(site, lambda timer: timer.at(START + HOUR, site.work, message, key="one"))
    assert site.api.requests == {}


def test_an_ordered_message_for_next_month_is_refused_because_it_would_block_its_group(site: Site) -> None:
    with_timer(site, setting(site, ahead=29 * DAY, group="g"))
    with pytest.raises(TimerError, match=r"at most 29\.5 days"):
        with_timer(site, setting(site, ahead=30 * DAY, group="g"))


# ---------------------------------------------------------------------- recurring schedules


@dataclass(frozen=True, slots=True)
class Cron:
    expression: str = "30 2 * * 1-5"
    zone: str = "Europe/Berlin"

    def next_after(self, instant: float) -> float | None:
        return None

    def cloud_scheduler_expression(self) -> tuple[str, str]:
        return self.expression, self.zone

    def __str__(self) -> str:
        return "as written"


def note(app: str, schedule: Schedule) -> str:
    return cloud_scheduler_note(app, schedule.name, schedule.queue, str(schedule.trigger))


def tick(site: Site, trigger: Trigger | None = None, **changes: Any) -> Schedule:
    message = Outgoing(body='{"slot":"<slot>"}', attributes={"k": "v"})
    return replace(Schedule(name="tick", queue=site.work, message=message, trigger=trigger or Cron()), **changes)


def test_a_schedule_is_a_job_that_is_read_back_as_it_was_put_and_can_be_put_again(site: Site) -> None:
    async def scenario(timer: GoogleTimer) -> None:
        await timer.put_schedule(tick(site, paused=True))
        (job,) = site.api.jobs.values()
        assert job.name == f"{PLACE}/jobs/{cloud_scheduler_job(site.owner, 'tick')}"
        assert (job.schedule, job.time_zone, job.state.name, job.retry_config.retry_count) == ("30 2 * * 1-5", "Europe/Berlin", "PAUSED", 5)
        assert job.pubsub_target.topic_name == f"projects/{PROJECT}/topics/{site.work}"
        assert (job.pubsub_target.data, dict(job.pubsub_target.attributes)) == (b'{"slot":"<slot>"}', {"k": "v"})

        (found,) = await timer.schedules()
        assert (found.name, found.queue, found.message, found.paused) == ("tick", site.work, tick(site).message, True)
        assert str(found.trigger) == "as written"
        await timer.put_schedule(found)
        assert await timer.schedules() == [found]
        with pytest.raises(TimerError, match="known to Cloud Scheduler only"):
            found.trigger.next_after(0)

        site.api.requests.clear()
        await timer.put_schedule(replace(found, paused=False))
        assert site.api.requests == {
            "CreateJob": 1,
            "UpdateJob": 1,
            "ResumeJob": 1,
            "DeleteJob": 1,
        }  # of a second part, which it might have had
        assert not (await timer.schedules())[0].paused

    with_timer(site, scenario)


@pytest.mark.parametrize(
    ("trigger", "expressions"),
    [
        (cron("0 9 * * 5-7", tz="Europe/Berlin"), ["0 9 * * 0,5,6"]),
        (cron("0 9 1 * 1"), ["0 9 1 * *", "0 9 * * 1"]),
        (every("2h"), ["0 */2 * * *"]),
    ],
    ids=str,
)
def test_a_trigger_is_kept_in_googles_words_and_read_back_in_ours(site: Site, trigger: Trigger, expressions: list[str]) -> None:
    async def scenario(timer: GoogleTimer) -> None:
        await timer.put_schedule(tick(site, every("15m")))
        await timer.put_schedule(tick(site, trigger, paused=True))
        assert sorted(job.schedule for job in site.api.jobs.values()) == sorted(expressions)
        (found,) = await timer.schedules()
        assert (found.trigger, found.paused) == (trigger, True)
        job = site.api.jobs[f"{PLACE}/jobs/{cloud_scheduler_job(site.owner, 'tick')}"]
        site.api.jobs[job.name] = type(job)(job, schedule="1 1 1 1 *")
        (found,) = await timer.schedules()
        assert "1 1 1 1 *" in str(found.trigger)  # what somebody has changed since is told as it is
        await timer.put_schedule(tick(site, every("1h")))
        (whole,) = await timer.schedules()
        assert (whole.trigger, len(site.api.jobs)) == (every("1h"), 1)  # no part of what it was is left
        await timer.put_schedule(tick(site, trigger))
        await timer.delete_schedule("tick")
        assert not site.api.jobs

    with_timer(site, scenario)


def test_what_cloud_scheduler_cannot_say_is_refused_with_the_nearest_that_it_can(site: Site) -> None:
    with pytest.raises(ConfigError, match=r"'tick'.*every 7m.*the nearest that can: every 6m"):
        with_timer(site, lambda timer: timer.put_schedule(tick(site, every("7m"))))


def test_jobs_of_others_are_neither_listed_nor_touched(site: Site) -> None:
    async def scenario(timer: GoogleTimer) -> None:
        await timer.put_schedule(tick(site))
        (job,) = site.api.jobs.values()
        for number, description in enumerate(["", "Backup", "[]", '{"app":"shop"}', note(site.owner, tick(site)), note("eu", tick(site))]):
            other = type(job)(job, name=f"{PLACE}/jobs/{number}", description=description)
            site.api.jobs[other.name] = other
        assert [schedule.name for schedule in await timer.schedules()] == ["tick"]
        await timer.delete_schedule("tick")
        assert await timer.schedules() == []
        assert len(site.api.jobs) == 6

    with_timer(site, scenario)
    with_timer(site, lambda timer: timer.put_schedule(tick(site)), app="eu")
    assert [schedule.name for schedule in with_timer(site, lambda timer: timer.schedules(), app="eu")] == ["tick"]


def test_schedules_are_listed_over_all_pages(site: Site) -> None:
    async def scenario(timer: GoogleTimer) -> int:
        await timer.put_schedule(tick(site))
        (job,) = site.api.jobs.values()
        for number in range(600):
            schedule = tick(site, name=f"tick {number}")
            name = f"{PLACE}/jobs/{cloud_scheduler_job(site.owner, schedule.name)}"
            site.api.jobs[name] = type(job)(job, name=name, description=note(site.owner, schedule))
        return len(await timer.schedules())

    assert with_timer(site, scenario) == 601
    assert site.api.requests["ListJobs"] == 2


def test_a_schedule_that_is_deleted_while_it_is_replaced_is_made_anew(site: Site) -> None:
    with_timer(site, lambda timer: timer.put_schedule(tick(site)))

    def before(method: str) -> None:
        if method == "UpdateJob":
            site.api.jobs.clear()

    site.api.before = before
    with_timer(site, lambda timer: timer.put_schedule(tick(site, message=Outgoing(body="new"))))
    (job,) = site.api.jobs.values()
    assert job.pubsub_target.data == b"new"


def test_what_a_job_cannot_keep_is_refused(site: Site) -> None:
    class Moon:
        def next_after(self, instant: float) -> float | None:
            return None

        def __str__(self) -> str:
            return "full moon"

    for refused, why in (
        (tick(site, Moon()), "full moon"),
        (tick(site, message=Outgoing(body="x", group="g")), "ordering key"),
        (tick(site, queue=f"projects/elsewhere/topics/{site.work}"), "own project"),
        (tick(site, name="x" * 500), "500"),
        (tick(site, message=Outgoing(body="")), "empty"),
        (tick(site, Cron("0 9 * * 1#1")), "Schedule or time zone is invalid"),
        (tick(site, Cron(zone="Europe/Atlantis")), "Schedule or time zone is invalid"),
    ):
        with pytest.raises((TimerError, ConfigError), match=why):
            with_timer(site, lambda timer, refused=refused: timer.put_schedule(refused))  # type: ignore[misc]
    with pytest.raises(MessageTooLarge):
        with_timer(site, lambda timer: timer.put_schedule(tick(site, message=Outgoing(body="x" * 1_000_000))))
    assert site.api.jobs == {}


def test_stages_of_an_app_in_one_project_leave_each_other_s_schedules_alone(site: Site) -> None:
    other = site.url.replace("?", "-prod?")

    async def put(timer: GoogleTimer) -> None:
        await timer.put_schedule(tick(site))

    async def named(timer: GoogleTimer) -> list[str]:
        return [each.name for each in await timer.schedules()]

    with_timer(site, put)
    assert with_timer(site, named, url=other) == []
    with_timer(site, put, url=other)
    with_timer(site, lambda timer: timer.delete_schedule("tick"))
    assert (with_timer(site, named), with_timer(site, named, url=other)) == ([], ["tick"])


def test_job_ids_are_plain_and_stay_apart() -> None:
    pairs = [("shop", "a-b"), ("shop-a", "b"), ("shop", "a b"), ("shop", "x" * 300), ("shop", "x" * 301), ("Straße", "täglich")]
    ids = [cloud_scheduler_job(*pair) for pair in pairs]
    assert len(set(ids)) == len(ids)
    assert all(set(each) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") and len(each) < 150 for each in ids)
    assert ids[0].startswith("shop-a-b-")


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("method", "code", "detail", "said"),
    [
        ("CreateTask", "PERMISSION_DENIED", "lacks actAs", rf"roles/cloudtasks.enqueuer .*serviceAccountUser on {ACCOUNT}"),
        ("DeleteTask", "PERMISSION_DENIED", "no", "roles/cloudtasks.taskDeleter"),
        ("CreateTask", "NOT_FOUND", "Queue does not exist.", "no such queue.*cloudq deploy"),
        ("DeleteTask", "NOT_FOUND", "Queue does not exist.", "no such queue"),
        ("CreateTask", "FAILED_PRECONDITION", "The queue no longer exists, though one did recently.", "no such queue"),
        ("CreateTask", "INVALID_ARGUMENT", "HttpRequest.url is bad", "HttpRequest.url is bad"),
    ],
)
def test_a_refusal_says_what_is_missing(site: Site, method: str, code: str, detail: str, said: str) -> None:
    def before(called: str) -> None:
        if called == method:
            raise Refused(code, detail)

    site.api.before = before
    with pytest.raises(TimerError, match=said):
        with_timer(site, setting(site))


def test_a_call_outlasts_cloud_tasks_that_answers_nothing_for_a_while(site: Site) -> None:
    refused: list[str] = []

    def before(called: str) -> None:
        if called == "CreateTask" and len(refused) < 2:
            refused.append(called)
            raise Refused("DEADLINE_EXCEEDED", "too late")  # which Google's client does not repeat

    site.api.before = before
    with pytest.raises(TimerUnavailable, match="DEADLINE_EXCEEDED"):
        with_timer(site, setting(site))
    refused.clear()
    site.app()["note"].options(delay="3d").delay("x")
    assert len(site.api.tasks) == 1


def test_a_queue_that_does_not_exist_is_named(site: Site) -> None:
    url = f"cloudtasks://{PROJECT}/europe-west1/nowhere?service_account={ACCOUNT}"
    for do in (setting(site), lambda timer: timer.cancel("one")):
        with pytest.raises(TimerError, match="queues/nowhere: there is no such queue"):
            with_timer(site, do, url=url)


def test_a_limit_of_googles_that_is_lower_than_ours_is_one_of_size(site: Site) -> None:
    def before(called: str) -> None:
        raise Refused("INVALID_ARGUMENT", "Task size too large")

    site.api.before = before
    with pytest.raises(MessageTooLarge):
        with_timer(site, setting(site))


@pytest.mark.parametrize("forward", [False, True], ids=["refused", "answer-lost"])
def test_a_request_that_fails_on_the_way_is_made_again_and_sets_one_task(
    site: Site, forward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with grpc_proxy(site.api.address) as proxy:
        monkeypatch.setenv("CLOUD_TASKS_EMULATOR_HOST", proxy.address)
        proxy.decide = first(1, Refuse("UNAVAILABLE", forward=forward), "CreateTask")
        with_timer(site, setting(site))
        assert site.task().name.endswith("-1" if forward else "-0")
        proxy.decide = first(2, Refuse("UNAVAILABLE", forward=forward), "DeleteTask")
        assert with_timer(site, lambda timer: timer.cancel("one"))
    assert site.api.tasks == {}


# ---------------------------------------------------------------------- before anything is connected


@pytest.mark.parametrize(
    "url",
    [
        f"cloudtasks://p/europe-west1?service_account={ACCOUNT}",
        f"cloudtasks://p/europe-west1/a/b?service_account={ACCOUNT}",
        f"cloudtasks://p/europe-west1/under_score?service_account={ACCOUNT}",
        f"cloudtasks:///europe-west1/q?service_account={ACCOUNT}",
        "cloudtasks://p/europe-west1/q",
        "cloudtasks://p/europe-west1/q?service_account=admin",
        f"cloudtasks://p/europe-west1/q?service_account={ACCOUNT}&late=1",
    ],
)
def test_a_wrong_url_is_refused_when_it_is_opened(url: str) -> None:
    with pytest.raises(ConfigError):
        opened(url, AdapterContext(app="shop", clock=SystemClock()))


def test_a_broker_that_has_no_topics_is_refused() -> None:
    with pytest.raises(ConfigError, match="pubsub://"):
        opened(
            f"cloudtasks://p/europe-west1/q?service_account={ACCOUNT}",
            AdapterContext(app="shop", clock=SystemClock(), broker=MemoryBroker()),
        )


def test_importing_the_timer_loads_no_sdk() -> None:
    code = "import sys, cloudq_gcp.timer; print(sorted({'google', 'grpc', 'proto'} & set(sys.modules)))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert ran.stdout.strip() in ("[]", "['google']")  # 'google' alone is a namespace package that a .pth file may make
