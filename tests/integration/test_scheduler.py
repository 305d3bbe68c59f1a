"""Delays by EventBridge Scheduler: what is set, that a task runs once and at its time, or not at all, and what is said when it is refused.

Schedules are kept by moto and fired by a stand-in; SQS is our own server on a clock that the tests move.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cloudq import CloudQ, Queue, letters, states, syncing
from cloudq.adapters import AdapterContext, Location
from cloudq.broker import Outgoing
from cloudq.clock import ManualClock, SystemClock
from cloudq.errors import ConfigError, MessageTooLarge, TaskRevoked, TimerError, TimerUnavailable
from cloudq.letters import Match
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.runner import Runner
from cloudq.schedules import cron, every
from cloudq.schedules.naming import eventbridge_schedule
from cloudq.settle import Verdict, settle
from cloudq.syncing import Step
from cloudq.testing.suite import is_busy
from cloudq.timer import Schedule, Trigger
from cloudq_aws.scheduler import EventBridgeTimer, adapter
from cloudq_aws.server import serve_in_thread
from cloudq_aws.sqs import SQSBroker
from tests.proxy import Answer, Cut, Proxy, first, proxy
from tests.schedule_firing import SEND, Firing
from tests.servers import AWS_ENV, REGION, aws_client, moto, unique, use

T = TypeVar("T")
ROLE = "arn:aws:iam::123456789012:role/cloudq-scheduler"
START = 1_800_000_001.0
"""A second after a whole minute."""
DAY = 86_400.0


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A plain client of moto's Scheduler."""
    with moto(tmp_path_factory.mktemp("scheduler")) as server:
        client = aws_client("scheduler", server.endpoint)
        try:
            yield client
        finally:
            client.close()


@dataclass
class Site:
    """An app's queues, its schedule group, and the stand-in that fires it."""

    firing: Firing
    clock: ManualClock
    sqs: Any
    counts: Mapping[str, int]
    """SQS requests by action."""
    group: str
    url: str
    """The timer's."""
    ran: list[tuple[str, float]] = field(default_factory=list)
    """What ran, and when."""
    apps: list[CloudQ] = field(default_factory=list)

    def app(self, **options: Any) -> CloudQ:
        app = CloudQ("shop", broker=f"sqs://{REGION}/", timer=self.url, clock=self.clock, default_queue="work", **options)
        self.apps.append(app)

        @app.task(name="note")
        def note(word: str) -> None:
            self.ran.append((word, self.clock.time()))

        @app.task(name="in_order", queue="ordered.fifo")
        def in_order(word: str) -> None:
            self.ran.append((word, self.clock.time()))

        return app

    def drain(self, app: CloudQ) -> None:
        """Work until nothing more can be received now: a host of the smallest kind, whose polls do not wait on a clock that stands."""
        app.io.run(self._drain(app), timeout=60)

    async def _drain(self, app: CloudQ) -> None:
        runner = Runner(app)
        for queue in ("work", "ordered.fifo"):
            while deliveries := await app.broker.receive(queue, max_messages=10, wait=0):
                for delivery in deliveries:
                    job = runner.admit(delivery)
                    if job.outcome is None:
                        await runner.claim(job)
                    if await settle(app, job, job.outcome or runner.run(job)) is Verdict.ACK:
                        await app.broker.ack([delivery])

    def pass_time(self, app: CloudQ, seconds: float) -> None:
        """Let time pass, and work."""
        self.firing.pass_time(seconds)
        self.drain(app)

    def count(self, attribute: str, queue: str = "work") -> int:
        url = self.sqs.get_queue_url(QueueName=queue)["QueueUrl"]
        found = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        return int(found[f"ApproximateNumberOfMessages{attribute}"])


@pytest.fixture
def site(scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    clock = ManualClock(START)
    with serve_in_thread(clock=clock) as server:
        use({**AWS_ENV, "AWS_ENDPOINT_URL": server.endpoint, "AWS_ENDPOINT_URL_SCHEDULER": scheduler.meta.endpoint_url}, monkeypatch)
        sqs = aws_client("sqs", server.endpoint)
        for name in ("work", "work-dlq", "undelivered"):
            sqs.create_queue(QueueName=name)
        for name in ("ordered.fifo", "ordered-dlq.fifo"):
            sqs.create_queue(QueueName=name, Attributes={"FifoQueue": "true"})
        group = unique("shop")
        scheduler.create_schedule_group(Name=group)
        # 59: with START, what is set 61 s ahead of its due fires 2 s ahead.
        firing = Firing(scheduler, sqs, clock, group, second=59)
        url = f"eventbridge://{REGION}/{group}?role={ROLE}&dead_letter=undelivered"
        site = Site(firing, clock, sqs, server.requests, group, url)
        try:
            yield site
        finally:
            for app in site.apps:
                app.close()
            sqs.close()


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL, "cloudq"):
        yield


def with_timer(site: Site, do: Callable[[EventBridgeTimer], Awaitable[T]], url: str = "") -> T:
    """Run ``do(timer)`` with a broker and a timer on a loop of its own."""

    async def run() -> T:
        broker = SQSBroker(REGION, clock=site.clock)
        timer = opened(url or site.url, AdapterContext(app="shop", clock=site.clock, broker=broker))
        try:
            return await do(timer)
        finally:
            await timer.close()
            await broker.close()

    return asyncio.run(run())


def opened(url: str, context: AdapterContext) -> EventBridgeTimer:
    assert adapter.timer is not None
    timer = adapter.timer(Location.parse(url), context)
    assert isinstance(timer, EventBridgeTimer)
    return timer


# ---------------------------------------------------------------------- a delayed task


def test_a_task_delayed_by_three_days_is_set_a_minute_or_two_early_and_runs_once_at_its_time(site: Site) -> None:
    app = site.app()
    due = START + 3 * DAY
    result = app["note"].options(delay="3d").delay("x")
    (found,) = site.firing.read()
    assert found["Name"] == f"at-{result.id}"
    assert found["ScheduleExpression"] == "at(2027-01-18T07:59:00)"  # due at 08:00:01
    assert found["ScheduleExpressionTimezone"] == "UTC"
    assert found["ActionAfterCompletion"] == "DELETE"
    target = found["Target"]
    assert target["Arn"] == f"arn:aws:sqs:{REGION}:000000000000:work"
    assert target["RoleArn"] == ROLE
    assert target["DeadLetterConfig"]["Arn"] == f"arn:aws:sqs:{REGION}:000000000000:undelivered"
    assert target["RetryPolicy"] == {"MaximumRetryAttempts": 185, "MaximumEventAgeInSeconds": 86_400}
    body = json.loads(target["Input"])
    assert (body["id"], body["args"], body["eta"]) == (result.id, ["x"], due)
    assert site.counts["SendMessageBatch"] == 0

    site.pass_time(app, 3 * DAY - 2.5)
    assert site.firing.fired == []
    site.pass_time(app, 1)  # fires 2 s ahead
    assert site.firing.fired == [f"at-{result.id}"]
    assert site.firing.read() == []
    assert site.ran == []
    assert site.count("Delayed") == 1  # the remainder is the queue's
    site.pass_time(app, 1.4)
    assert site.ran == []
    site.pass_time(app, 0.1 + 1)  # DelaySeconds counts whole seconds from when the worker saw it
    assert [word for word, _ in site.ran] == ["x"]
    assert due <= site.ran[0][1] <= due + 1
    site.pass_time(app, DAY)
    assert len(site.ran) == 1


@pytest.mark.parametrize("delay", [2, 14 * 60])
def test_a_task_delayed_by_up_to_a_quarter_of_an_hour_runs_once_at_its_time_and_needs_no_schedule(site: Site, delay: int) -> None:
    app = site.app()
    app["note"].options(delay=delay).delay("x")
    assert site.firing.read() == []
    site.pass_time(app, delay - 0.5)
    assert site.ran == []
    site.pass_time(app, 0.5)
    assert site.ran == [("x", START + delay)]
    site.pass_time(app, DAY)
    assert len(site.ran) == 1


@pytest.mark.parametrize("delay", [2, 14 * 60, 3 * DAY])
def test_a_delayed_task_that_is_revoked_does_not_run(site: Site, delay: float) -> None:
    app = site.app(store=MemoryStore(clock=site.clock))
    result = app["note"].options(delay=delay).delay("x")
    result.revoke()
    assert site.firing.read() == [], "it is gone from the group at once"
    site.pass_time(app, delay + 120)
    assert site.ran == []
    assert result.state == states.REVOKED
    with pytest.raises(TaskRevoked):
        result.get(timeout=1)


def test_a_schedule_is_cancelled_by_the_tasks_id(site: Site) -> None:
    app = site.app()
    result, other = (app["note"].options(delay="3d").delay(word) for word in ("x", "other"))
    assert app.timer is not None
    assert app.io.run(app.timer.cancel(result.id)) is True
    assert app.io.run(app.timer.cancel(result.id)) is False
    assert [found["Name"] for found in site.firing.read()] == [f"at-{other.id}"]
    site.pass_time(app, 3 * DAY)
    site.pass_time(app, 10)
    assert [word for word, _ in site.ran] == ["other"]


def test_a_task_that_a_worker_puts_off_for_days_comes_back_by_a_schedule(site: Site) -> None:
    app = site.app()
    tries: list[float] = []

    @app.task(name="again", bind=True)
    def again(self: Any) -> None:
        tries.append(site.clock.time())
        if len(tries) == 1:
            raise self.retry(countdown=2 * DAY)

    app["again"].delay()
    site.drain(app)
    (found,) = site.firing.read()
    assert json.loads(found["Target"]["Input"])["attempt"] == 1
    site.pass_time(app, 2 * DAY)
    site.pass_time(app, 120)
    assert len(tries) == 2


# ---------------------------------------------------------------------- ordered queues


def test_an_ordered_task_is_set_with_its_group_and_a_deduplication_id_of_its_own(site: Site) -> None:
    app = site.app()
    result = app["in_order"].options(delay="10m", ordering_key="cart-7").delay("x")
    (found,) = site.firing.read()
    request = json.loads(found["Target"]["Input"])
    assert found["Target"]["Arn"] == SEND
    assert request["QueueUrl"].endswith("/000000000000/ordered.fifo")
    assert (request["MessageGroupId"], request["MessageDeduplicationId"]) == ("cart-7", result.id)
    site.pass_time(app, 599.5)
    assert not site.firing.fired
    site.pass_time(app, 120.5)
    assert [word for word, _ in site.ran] == ["x"]
    site.pass_time(app, DAY)
    assert len(site.ran) == 1


def test_an_ordered_task_that_waits_for_its_time_holds_up_nothing_of_its_group(site: Site) -> None:
    app = site.app()
    app["in_order"].options(delay="10m", ordering_key="cart-7").delay("later")
    site.pass_time(app, 599)
    app["in_order"].options(ordering_key="cart-7").delay("now")
    site.drain(app)
    assert [word for word, _ in site.ran] == ["now"]
    site.pass_time(app, 121)
    assert [word for word, _ in site.ran] == ["now", "later"]


def test_an_ordered_task_that_is_due_before_a_schedule_could_fire_is_sent_and_held_in_its_group(site: Site) -> None:
    app = site.app()
    app["in_order"].options(delay=2, ordering_key="cart-7").delay("x")
    assert site.firing.read() == []
    site.drain(app)
    assert site.ran == []
    site.pass_time(app, 2.5)
    assert [word for word, _ in site.ran] == ["x"]


# ---------------------------------------------------------------------- what is set


async def body_of(timer: EventBridgeTimer, site: Site, message: Outgoing, queue: str = "work") -> Any:
    """Set the message, let it fire, and return it as SQS has it."""
    await timer.at(site.clock.time() + 120, queue, message, key="one")
    site.firing.pass_time(240)
    url = site.sqs.get_queue_url(QueueName=queue)["QueueUrl"]
    answer = site.sqs.receive_message(QueueUrl=url, MessageAttributeNames=["All"], MessageSystemAttributeNames=["All"])
    (found,) = answer["Messages"]
    return found


def test_the_text_of_a_message_is_never_taken_for_a_keyword_of_scheduler(site: Site) -> None:
    body = '{"args":["<aws.scheduler.execution-id> and <slot>"]}'
    assert with_timer(site, lambda timer: body_of(timer, site, Outgoing(body=body)))["Body"] == body


def test_attributes_and_tenant_travel(site: Site) -> None:
    message = Outgoing(body="x", attributes={"traceparent": "00-1"}, tenant="acme")
    found = with_timer(site, lambda timer: body_of(timer, site, message))
    assert found["MessageAttributes"]["traceparent"]["StringValue"] == "00-1"
    assert found["Attributes"]["MessageGroupId"] == "acme"


@pytest.mark.parametrize(("task", "queue"), [("note", "work"), ("in_order", "ordered.fifo")])
def test_what_cannot_be_delivered_is_a_dead_letter_that_can_be_redriven(site: Site, task: str, queue: str) -> None:
    app = site.app(queues=[Queue(name="work", dead_letter="undelivered"), Queue(name="ordered.fifo", dead_letter="undelivered")])
    options = {"ordering_key": "g"} if queue.endswith(".fifo") else {}
    result = app[task].options(delay="3d", **options).delay("x")
    attributes = {"FifoQueue": "true"} if options else {}
    url = site.sqs.get_queue_url(QueueName=queue)["QueueUrl"]
    (schedule,) = site.firing.read()
    site.sqs.delete_queue(QueueUrl=url)
    site.clock.advance(3 * DAY)
    site.firing.fire(schedule, site.clock.time())
    site.sqs.create_queue(QueueName=queue, Attributes=attributes)

    (letter,) = app.io.run(letters.scan(app, "undelivered")).letters
    assert (letter.id, letter.task, letter.queue, letter.delivery.queue) == (result.id, task, queue, "undelivered")
    assert letter.reason == "EventBridge Scheduler could not send it"
    assert "NonExistentQueue" in letter.error["type"]
    assert "does not exist" in letter.error["detail"]
    done = app.io.run(letters.redrive(app, "undelivered", Match(error="nonexistentqueue")))
    assert [target for _, target in done.sent] == [queue]
    site.drain(app)
    assert [word for word, _ in site.ran] == ["x"]
    assert site.count("", "undelivered") == site.count("NotVisible", "undelivered") == 0


def test_what_scheduler_cut_is_kept_as_it_came(site: Site) -> None:
    app = site.app()
    why = {"SCHEDULE_ARN": "arn", "TARGET_ARN": "arn:aws:scheduler:::aws-sdk:sqs:sendMessage", "ERROR_CODE": "Throttled"}
    cut = '{"QueueUrl":"http://x/1/work","MessageBody":"{\\"v\\":1,\\"ta'
    site.sqs.send_message(
        QueueUrl=site.sqs.get_queue_url(QueueName="work-dlq")["QueueUrl"],
        MessageBody=cut,
        MessageAttributes={name: {"DataType": "String", "StringValue": value} for name, value in why.items()},
    )
    (letter,) = app.io.run(letters.scan(app, "work-dlq")).letters
    assert (letter.raw, letter.task, letter.error["type"]) == (cut, None, "Throttled")


def test_in_other_partitions_a_whole_request_goes_to_the_target_of_theirs(site: Site) -> None:
    daily = Schedule(name="daily", queue="work", message=Outgoing(body="{}", tenant="a"), trigger=every("1h"))

    async def put(timer: EventBridgeTimer) -> Sequence[Schedule]:
        await timer.put_schedule(daily)
        return await timer.schedules()

    (read,) = with_timer(site, put, url=site.url.replace("arn:aws:", "arn:aws-cn:"))
    client = site.firing.scheduler  # the stand-in knows one partition only
    (found,) = client.list_schedules()["Schedules"]
    assert found["Target"]["Arn"] == "arn:aws-cn:scheduler:::aws-sdk:sqs:sendMessage"
    assert read.message.tenant == "a"


def test_names_keep_to_64_plain_characters_and_stay_apart(site: Site) -> None:
    keys = ["a" * 61, "a" * 62, "a" * 62 + "b", "report@1800000000", "report:1800000000", "Straße", ".", "A" * 61]

    async def scenario(timer: EventBridgeTimer) -> None:
        for key in keys:
            await timer.at(site.clock.time() + 3600, "work", Outgoing(body="x"), key=key)
        names = [found["Name"] for found in site.firing.read()]
        assert len(set(names)) == len(keys)
        for key in keys:
            assert await timer.cancel(key)

    with_timer(site, scenario)
    assert eventbridge_schedule("daily") == "every-daily"
    assert eventbridge_schedule("x" * 100) == eventbridge_schedule("x" * 100) != eventbridge_schedule("x" * 101)


def test_a_queue_by_its_arn_or_url_needs_no_broker(site: Site) -> None:
    arn = f"arn:aws:sqs:{REGION}:000000000000:work"
    url = site.sqs.get_queue_url(QueueName="work")["QueueUrl"]

    async def scenario() -> None:
        for account in ("", "&account=000000000000"):
            timer = opened(f"{site.url}{account}".replace("=undelivered", f"={arn}"), AdapterContext(app="shop", clock=site.clock))
            for queue in (arn, url, *(("work",) if account else ())):
                await timer.at(site.clock.time(), queue, Outgoing(body="x"), key=queue)
            await timer.close()

    asyncio.run(scenario())
    found = site.firing.read()
    assert [schedule["Target"]["Arn"] for schedule in found] == [arn] * 3
    assert {schedule["ScheduleExpression"] for schedule in found} == {"at(2027-01-15T08:01:00)"}


def test_many_may_set_the_same_key_at_once(site: Site) -> None:
    async def scenario(timer: EventBridgeTimer) -> None:
        when = site.clock.time() + 3600
        await asyncio.gather(*(timer.at(when, "work", Outgoing(body=str(number)), key="one") for number in range(5)))
        assert len(site.firing.read()) == 1

    with_timer(site, scenario)


@pytest.mark.parametrize("ahead", [-3600, 5])
def test_what_is_due_within_seconds_is_sent_at_its_second_and_replaces_what_its_key_had_set(site: Site, ahead: float) -> None:
    async def scenario(timer: EventBridgeTimer) -> None:
        await timer.at(START + 3600, "work", Outgoing(body="old"), key="one")
        await timer.at(START + ahead, "work", Outgoing(body="new"), key="one")

    with_timer(site, scenario)
    assert site.firing.read() == []
    assert (site.count(""), site.count("Delayed")) == ((1, 0) if ahead < 0 else (0, 1))
    site.firing.pass_time(5)
    assert site.count("") == 1


def test_an_ordered_message_due_within_seconds_waits_for_them(site: Site) -> None:
    async def scenario(timer: EventBridgeTimer) -> None:
        setting = asyncio.create_task(timer.at(START + 5, "ordered.fifo", Outgoing(body="x", group="g"), key="one"))
        while site.clock.next_alarm() is None:
            await asyncio.sleep(0.01)
        site.clock.advance(4.9)
        assert (setting.done(), site.count("", "ordered.fifo")) == (False, 0)
        site.clock.advance(0.1)
        await setting

    with_timer(site, scenario)
    assert site.count("", "ordered.fifo") == 1


# ---------------------------------------------------------------------- recurring schedules


@dataclass(frozen=True, slots=True)
class Rate:
    expression: str

    def next_after(self, instant: float) -> float | None:
        return None

    def eventbridge_expression(self) -> tuple[str, str]:
        return self.expression, "Europe/Berlin"

    def __str__(self) -> str:
        return "a rate"


def tick(trigger: Trigger, **changes: Any) -> Schedule:
    return replace(Schedule(name="tick", queue="work", message=Outgoing(body='{"slot":"<slot>"}'), trigger=trigger), **changes)


def test_a_schedule_is_read_back_as_it_was_put_and_can_be_put_again(site: Site) -> None:
    message = Outgoing(body='{"slot":"<slot>"}', attributes={"k": "v"}, tenant="acme")

    async def scenario(timer: EventBridgeTimer) -> None:
        await timer.put_schedule(tick(Rate("cron(0/5 * * * ? *)"), message=message, paused=True))
        (found,) = await timer.schedules()
        assert (found.name, found.queue, found.message, found.paused, str(found.trigger)) == ("tick", "work", message, True, "a rate")
        await timer.put_schedule(found)
        assert await timer.schedules() == [found]
        with pytest.raises(TimerError, match="known to EventBridge Scheduler only"):
            found.trigger.next_after(0)
        (raw,) = site.firing.read()
        assert (raw["ScheduleExpressionTimezone"], raw["State"]) == ("Europe/Berlin", "DISABLED")

    with_timer(site, scenario)


def test_ticks_of_an_ordered_queue_are_no_duplicates_of_each_other(site: Site) -> None:
    message = Outgoing(body="<slot>", group="g", dedup="the same")

    async def scenario(timer: EventBridgeTimer) -> None:
        await timer.put_schedule(tick(Rate("cron(* * * * ? *)"), message=message, queue="ordered.fifo"))

    with_timer(site, scenario)
    site.firing.pass_time(180)
    assert site.count("", "ordered.fifo") == 3


def test_schedules_are_listed_over_all_pages_and_one_time_schedules_are_not_among_them(site: Site) -> None:
    async def scenario(timer: EventBridgeTimer) -> None:
        await timer.at(site.clock.time() + 3600, "work", Outgoing(body="x"), key="one")
        await timer.put_schedule(tick(Rate("cron(* * * * ? *)")))
        (target,) = [found["Target"] for found in site.firing.read() if found["Name"] == "every-tick"]
        for number in range(105):
            site.firing.scheduler.create_schedule(
                GroupName=site.group,
                Name=f"every-{number}",
                Description=["", "Backup", "[1]", '{"name":"tick"}'][number % 4],
                ScheduleExpression="rate(1 day)",
                FlexibleTimeWindow={"Mode": "OFF"},
                Target=target,
            )
        found = await timer.schedules()
        assert [str(schedule.trigger) for schedule in found] == ["a rate"]  # those without our note are somebody else's

    with_timer(site, scenario)


@pytest.mark.parametrize(
    ("trigger", "expressions"),
    [
        (cron("30 2 * * 1-5", tz="Europe/Berlin"), {"every-tick": "cron(30 2 ? * 2-6 *)"}),
        (cron("0 9 1 * 1"), {"every-tick": "cron(0 9 1 * ? *)", "every2-tick": "cron(0 9 ? * 2 *)"}),
        (every("90m"), {"every-tick": "rate(90 minutes)"}),
    ],
    ids=str,
)
def test_a_trigger_is_kept_in_awss_words_and_read_back_in_ours(site: Site, trigger: Trigger, expressions: dict[str, str]) -> None:
    async def scenario(timer: EventBridgeTimer) -> None:
        await timer.put_schedule(tick(every("7m")))
        await timer.put_schedule(tick(trigger, paused=True))
        raw = {found["Name"]: found for found in site.firing.read()}
        assert {name: found["ScheduleExpression"] for name, found in raw.items()} == expressions
        if trigger == every("90m"):
            assert raw["every-tick"]["StartDate"].timestamp() == trigger.next_after(site.clock.time())
        (found,) = await timer.schedules()
        assert (found.trigger, found.paused) == (trigger, True)
        site.firing.scheduler.update_schedule(
            GroupName=site.group,
            Name="every-tick",
            ScheduleExpression="cron(1 1 1 1 ? *)",
            FlexibleTimeWindow={"Mode": "OFF"},
            Target=raw["every-tick"]["Target"],
            Description=raw["every-tick"]["Description"],
        )
        (found,) = await timer.schedules()
        assert "cron(1 1 1 1 ? *)" in str(found.trigger)  # what somebody has changed since is told as it is
        await timer.put_schedule(tick(every("1h")))
        (whole,) = await timer.schedules()
        assert (whole.trigger, len(site.firing.read())) == (every("1h"), 1)  # no part of what it was is left
        await timer.put_schedule(tick(trigger))
        await timer.delete_schedule("tick")
        assert site.firing.read() == []

    with_timer(site, scenario)


@pytest.mark.parametrize("name", ["bill", "x" * 58])
def test_a_schedule_in_two_parts_of_which_one_is_paused_shows_as_different_and_is_mended(site: Site, name: str) -> None:
    declared = tick(cron("0 9 1 * 1"), name=name)

    async def scenario(timer: EventBridgeTimer) -> None:
        async def step() -> Step:
            (change,) = syncing.changes([declared], await timer.schedules())
            await syncing.apply(timer, change)
            return change.step

        assert [await step(), await step()] == [Step.CREATE, Step.KEEP]
        raw = site.firing.read()[0]
        kept = {key: raw[key] for key in ("GroupName", "Name", "ScheduleExpression", "FlexibleTimeWindow", "Target", "Description")}
        site.firing.scheduler.update_schedule(**kept, State="DISABLED")
        assert [await step(), await step()] == [Step.UPDATE, Step.KEEP]
        assert {each["State"] for each in site.firing.read()} == {"ENABLED"}

    with_timer(site, scenario)


def test_what_eventbridge_cannot_say_is_refused_with_the_nearest_that_it_can(site: Site) -> None:
    with pytest.raises(ConfigError, match=r"'tick'.*every 45s.*the nearest that can: every 1m"):
        with_timer(site, lambda timer: timer.put_schedule(tick(every(45))))


def test_a_trigger_that_cannot_be_translated_is_refused(site: Site) -> None:
    class Moon:
        def next_after(self, instant: float) -> float | None:
            return None

        def __str__(self) -> str:
            return "full moon"

    with pytest.raises(ConfigError, match="full moon"):
        with_timer(site, lambda timer: timer.put_schedule(tick(Moon())))
    with pytest.raises(TimerError, match="512"):
        with_timer(site, lambda timer: timer.put_schedule(tick(Rate("rate(1 day)"), name="x" * 600)))
    assert site.firing.read() == []


# ---------------------------------------------------------------------- schedules of an app


def test_what_an_app_declares_fires_in_the_cloud_and_runs_once_a_slot(site: Site) -> None:
    app = site.app(store=MemoryStore(clock=site.clock))
    app.schedule("by word", app["note"].s("a").set(tenant="acme"), cron("*/2 * * * *"))
    app.schedule("ordered", app["in_order"].s("b").set(ordering_key="g"), every("3m"))

    async def sync() -> None:
        timer = app.timer
        assert timer is not None
        declared = [each.schedule(app) for each in app.schedules.values()]
        steps = syncing.changes(declared, await timer.schedules())
        assert {change.step for change in steps} == {Step.CREATE}
        for change in steps:
            await syncing.apply(timer, change)
        assert {change.step for change in syncing.changes(declared, await timer.schedules())} == {Step.KEEP}

    app.io.run(sync(), timeout=60)
    for _ in range(6):
        site.pass_time(app, 60)
    first = int(START // 120 + 1) * 120
    assert [word for word, _ in site.ran].count("a") == 3
    assert [word for word, _ in site.ran].count("b") == 2
    assert app.result(f"by word@{first}").state == states.SUCCESS
    schedule = next(each for each in site.firing.read() if "by word" in each["Description"])
    site.firing.fire(schedule, first)  # Scheduler sends at least once
    site.drain(app)
    assert [word for word, _ in site.ran].count("a") == 3


def test_the_commands_bring_the_scheduler_to_the_code(site: Site, tmp_path: Path) -> None:
    code = tmp_path / "shop.py"
    env = {**os.environ, "CLOUDQ_APP": "shop:app", "CLOUDQ_BROKER": f"sqs://{REGION}/", "CLOUDQ_TIMER": site.url}

    def declare(lines: str) -> None:
        task = "@app.task(name='t')\ndef t(n: int = 0): ..."
        code.write_text(f"from cloudq import *\napp = CloudQ('shop', default_queue='work')\n{task}\n{lines}\n")

    def run(*args: str, exits: int = 0) -> Any:
        command = [sys.executable, "-m", "cloudq.cli", "schedule", *args]
        for _ in range(3):
            done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180)
            if done.returncode != 3 or not is_busy():  # moto was not held up for longer than a request may take
                break
        assert done.returncode == exits, done.stderr
        return json.loads(done.stdout) if "--json" in args else done.stdout + done.stderr

    def steps(*args: str) -> dict[str, str]:
        return {each["schedule"]: each["step"] for each in run("sync", "--json", *args)["changes"]}

    declare("app.schedule('a', t.s(1), every('5m'))\napp.schedule('b', t.s(), '0 9 1 * 1')")
    assert steps("--dry-run") == {"a": "create", "b": "create"}
    assert site.firing.read() == []
    assert "+ a  every 5m → work" in run("sync")
    assert steps() == {"a": "keep", "b": "keep"}
    assert len(site.firing.read()) == 3

    run("pause", "b")
    assert "was paused already" in run("pause", "b")
    declare("app.schedule('a', t.s(2), every('5m'))\napp.schedule('b', t.s(), '0 8 1 * 1')")
    found = {each["schedule"]: each for each in run("list", "--json")["schedules"]}
    assert (found["a"]["state"], found["b"]["state"], found["b"]["paused"]) == ("keep", "update", True)  # arguments are not in a tick
    assert "~ b  0 9 1 * 1 UTC → 0 8 1 * 1 UTC" in run("sync")
    assert {each["State"] for each in site.firing.read() if "0 8" in each["Description"]} == {"DISABLED"}
    run("resume", "b")
    assert {each["State"] for each in site.firing.read()} == {"ENABLED"}

    declare("app.schedule('c', t.s(), every(45))")
    assert "nobody is there to be asked" in run("sync", exits=2)
    assert steps("--keep", "--dry-run") == {"c": "create"}
    assert "the nearest that can: every 1m" in run("sync", "--yes", exits=2)
    assert len(site.firing.read()) == 3, "nothing is deleted before all else is in place"
    declare("")
    assert steps("--yes") == {"a": "delete", "b": "delete"}
    assert site.firing.read() == []
    assert "no schedule 'a'" in run("pause", "a", exits=2)

    declare("app.schedule('a', t.s(1), every('5m'))")
    id = run("trigger", "a").strip()
    assert id.startswith("a@")
    assert site.count("") == 1


# ---------------------------------------------------------------------- what goes wrong


def set_one(queue: str = "work", body: str = "x", **options: Any) -> Callable[[EventBridgeTimer], Awaitable[None]]:
    return lambda timer: timer.at(START + 3600, queue, Outgoing(body=body, **options), key="one")


@pytest.mark.parametrize(("body", "options"), [("x" * 262_145, {}), ('"' * 140_000, {"tenant": "acme"})], ids=["plain", "quoted"])
def test_a_message_over_256_kb_is_refused_and_nothing_is_set(site: Site, body: str, options: dict[str, str]) -> None:
    with pytest.raises(MessageTooLarge, match="262,144"):
        with_timer(site, set_one(body=body, **options))
    assert site.firing.read() == []


def test_a_message_of_256_kb_is_taken(site: Site) -> None:
    with_timer(site, set_one(body="x" * 262_144))
    assert len(site.firing.read()) == 1


@pytest.mark.parametrize(
    ("queue", "options"), [("work", {"group": "g"}), ("ordered.fifo", {}), ("work", {"body": "\x00"}), ("work", {"body": ""})]
)
def test_what_sqs_would_refuse_later_is_refused_now(site: Site, queue: str, options: dict[str, str]) -> None:
    with pytest.raises(TimerError, match="cannot take a message"):
        with_timer(site, set_one(queue, **options))
    assert site.firing.read() == []


def test_a_queue_of_another_region_is_refused(site: Site) -> None:
    for queue in ("arn:aws:sqs:us-east-1:000000000000:work", "https://sqs.us-east-1.amazonaws.com/000000000000/work"):
        with pytest.raises(TimerError, match="is in us-east-1, and this timer in eu-west-1"):
            with_timer(site, set_one(queue))


def test_a_group_that_does_not_exist_is_named(site: Site) -> None:
    url = site.url.replace(f"/{site.group}", "/nowhere")
    with pytest.raises(TimerError, match="'nowhere': there is no such group"):
        with_timer(site, lambda timer: timer.cancel("one"), url)


@pytest.fixture
def wire(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy between the timer and Scheduler."""
    with proxy(site.firing.scheduler.meta.endpoint_url) as it:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SCHEDULER", it.endpoint)
        yield it


@pytest.mark.parametrize(
    ("status", "code", "detail", "said"),
    [
        (
            403,
            "AccessDeniedException",
            "not authorized",
            r"allow scheduler:CreateSchedule on .*/shop-.*/\*, and iam:PassRole on arn:aws:iam::",
        ),
        (404, "ResourceNotFoundException", "Schedule group shop does not exist.", r"no such group.*cloudq deploy"),
        (
            400,
            "ValidationException",
            "The execution role you provide must allow AWS EventBridge Scheduler to assume the role.",
            "trust policy",
        ),
        (402, "ServiceQuotaExceededException", "The quota is 1.", "quota"),
        (400, "ValidationException", "Invalid Schedule Expression.", "Invalid Schedule Expression"),
    ],
)
def test_a_refusal_says_what_is_missing(site: Site, wire: Proxy, status: int, code: str, detail: str, said: str) -> None:
    wire.decide = first(1, Answer(status, {"__type": code, "message": detail}), "")
    with pytest.raises(TimerError, match=said):
        with_timer(site, set_one())


def test_a_throttled_request_is_made_again(site: Site, wire: Proxy) -> None:
    wire.decide = first(1, Answer(429, {"__type": "ThrottlingException", "message": "Rate exceeded"}), "")
    with_timer(site, set_one())
    assert len(site.firing.read()) == 1


@pytest.mark.parametrize(("status", "code"), [(429, "ThrottlingException"), (503, "ServiceUnavailable")])
def test_a_call_outlasts_a_scheduler_that_takes_nothing_for_a_while(site: Site, wire: Proxy, status: int, code: str) -> None:
    refusal = Answer(status, {"__type": code, "message": "Rate exceeded"})
    wire.decide = lambda request: refusal
    with pytest.raises(TimerUnavailable, match="try again later"):
        with_timer(site, set_one())
    wire.decide = first(3 * wire.requests.total(), refusal, "")  # twice as many again as the SDK made of one
    app = site.app()
    result = app["note"].options(delay="3d").delay("x")
    assert [found["Name"] for found in site.firing.read()] == [f"at-{result.id}"]


def test_a_request_whose_answer_was_lost_is_made_again(site: Site, wire: Proxy) -> None:
    wire.decide = first(1, Cut(), "")
    with_timer(site, set_one())
    assert len(site.firing.read()) == 1


def test_a_schedule_that_fires_while_it_is_replaced_is_set_anew(site: Site, wire: Proxy) -> None:
    with_timer(site, set_one())
    gone = Answer(404, {"__type": "ResourceNotFoundException", "message": "Schedule at-one does not exist."})
    wire.requests.clear()
    wire.decide = lambda request: gone if request.number == 2 else None  # CreateSchedule, then UpdateSchedule
    with_timer(site, set_one(body="new"))
    (found,) = site.firing.read()
    assert found["Target"]["Input"] == "new"


@pytest.mark.parametrize(
    "url",
    [
        f"eventbridge:///?role={ROLE}&dead_letter=d",
        f"eventbridge:///a/b?role={ROLE}&dead_letter=d",
        "eventbridge:///group?dead_letter=d",
        "eventbridge:///group?role=admin&dead_letter=d",
        f"eventbridge:///group?role={ROLE}",
        f"eventbridge:///group?role={ROLE}&dead_letter=d.fifo",
        f"eventbridge:///group?role={ROLE}&dead_letter=d&late=1",
    ],
)
def test_a_wrong_url_is_refused_when_it_is_opened(url: str) -> None:
    with pytest.raises(ConfigError):
        opened(url, AdapterContext(app="shop", clock=SystemClock()))


def test_a_broker_that_has_no_sqs_queues_is_refused() -> None:
    with pytest.raises(ConfigError, match="sqs://"):
        opened(f"eventbridge:///g?role={ROLE}&dead_letter=d", AdapterContext(app="shop", clock=SystemClock(), broker=MemoryBroker()))


def test_importing_the_timer_loads_no_sdk() -> None:
    code = "import sys, cloudq_aws.scheduler; print(sorted({'aiobotocore', 'botocore', 'boto3', 'aiohttp'} & set(sys.modules)))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert ran.stdout.strip() == "[]"
