"""The Lambda handler: what it makes of each event, and that it lets go of a record only once its outcome is durable."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudq import ArgumentsError, CloudQ, Retry, TaskFailed
from cloudq.errors import ConfigError, UnknownTask
from cloudq.middleware import Middleware
from cloudq_aws.function import batch, execution, limits
from cloudq_aws.handler import lambda_handler
from cloudq_aws.server import SQSServer, serve_in_thread
from tests.event_source import event, failed_ids
from tests.runtime_api import ARN
from tests.servers import AWS_ENV, REGION, aws_client, unique, use
from tests.waiting import until

EVENTS = Path(__file__).parents[1] / "events"


class Context:
    """A context with ``seconds`` left."""

    invoked_function_arn = ARN

    def __init__(self, seconds: float = 30.0) -> None:
        self._end = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int((self._end - time.monotonic()) * 1000)


def read(name: str) -> Any:
    return json.loads((EVENTS / f"{name}.json").read_text())


class Shop:
    """An app on a real queue, and the queue's boto3 client."""

    def __init__(self, server: SQSServer, *, fifo: bool = False, dead_letters: bool = True, **settings: Any) -> None:
        self.sqs = aws_client("sqs", server.endpoint)
        self.prefix = f"{unique()}-"
        self.queue = "orders.fifo" if fifo else "orders"
        self.app = CloudQ("shop", broker=f"sqs://{REGION}/?client=boto3&prefix={self.prefix}", default_queue=self.queue, **settings)
        for name in (self.queue, self.app.dead_letter_queue(self.queue))[: 2 if dead_letters else 1]:
            self.create(name)
        self.ran: list[Any] = []
        self.note = self.app.task(name="note")(self._note)
        self.anote = self.app.task(name="anote")(self._anote)

    def _note(self, value: int) -> int:
        self.ran.append(value)
        return value

    async def _anote(self, value: int) -> int:
        self.ran.append(value)
        return value

    def create(self, name: str) -> str:
        attributes = {"VisibilityTimeout": "60", **({"FifoQueue": "true"} if name.endswith(".fifo") else {})}
        return str(self.sqs.create_queue(QueueName=self.prefix + name, Attributes=attributes)["QueueUrl"])

    def receive(self, name: str | None = None, *, most: int = 10) -> list[Any]:
        """What can be received right now."""
        url = self.sqs.get_queue_url(QueueName=self.prefix + (name or self.queue))["QueueUrl"]
        reply = self.sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=most, MessageSystemAttributeNames=["All"], MessageAttributeNames=["All"]
        )
        return list(reply.get("Messages", []))

    def bodies(self, name: str | None = None) -> list[Any]:
        return [json.loads(message["Body"]) for message in self.receive(name)]

    def batch(self, name: str | None = None, messages: list[Any] | None = None) -> dict[str, Any]:
        """The event that Lambda makes of what can be received."""
        arn = f"arn:aws:sqs:{REGION}:123456789012:{self.prefix}{name or self.queue}"
        return event(arn, self.receive(name) if messages is None else messages)

    def handle(self, event: Any, *, seconds: float = 60.0, **options: Any) -> Any:
        """Handle the event; of a batch, return the ids reported and delete the others, as Lambda does."""
        answer = lambda_handler(self.app, **options)(event, Context(seconds))
        if "Records" not in event:
            return answer
        reported = [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]
        for record in event["Records"]:
            if record["messageId"] not in reported:
                url = self.sqs.get_queue_url(QueueName=record["eventSourceARN"].rpartition(":")[2])["QueueUrl"]
                self.sqs.delete_message(QueueUrl=url, ReceiptHandle=record["receiptHandle"])
        return reported

    def close(self) -> None:
        self.app.close()
        self.sqs.close()


@pytest.fixture(scope="module")
def server() -> Iterator[SQSServer]:
    with serve_in_thread() as running:
        yield running


@pytest.fixture
def make(server: SQSServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    use({**AWS_ENV, "AWS_ENDPOINT_URL": server.endpoint}, monkeypatch)
    shops: list[Shop] = []

    def make(**settings: Any) -> Shop:
        shops.append(Shop(server, **settings))
        return shops[-1]

    yield make
    for shop in shops:
        shop.close()


@pytest.fixture
def shop(make: Any) -> Shop:
    made: Shop = make()
    return made


@pytest.fixture
def local() -> Iterator[CloudQ]:
    """An app without a network: for what is only run, never settled."""
    app = CloudQ("local", broker=f"sqs://{REGION}/?client=boto3&prefix=shop-", queues=["orders.fifo"])
    yield app
    app.close()


# ---------------------------------------------------------------------------------------------------------------------
# what events look like


@pytest.mark.parametrize(("name", "values"), [("sqs_standard", {1, 2}), ("sqs_fifo", {1})])
def test_a_batch_as_aws_documents_it_runs_and_needs_no_request_and_no_thread(local: CloudQ, name: str, values: set[int]) -> None:
    ran: list[tuple[int, str, str | None]] = []

    @local.task(name="note", bind=True)
    def note(self: Any, value: int) -> None:
        ran.append((value, self.request.queue, self.request.message.group))

    @local.task(name="anote", bind=True)
    async def anote(self: Any, value: int) -> None:
        ran.append((value, self.request.queue, self.request.message.group))

    before = {*threading.enumerate()}
    assert lambda_handler(local)(read(name), Context()) == {"batchItemFailures": []}
    assert {value for value, _, _ in ran} == values
    assert {queue for _, queue, _ in ran} == {"orders.fifo" if "fifo" in name else "default"}
    assert not local.io.running
    assert {*threading.enumerate()} <= before


def test_a_broker_that_ends_with_the_process_is_refused() -> None:
    with pytest.raises(ConfigError, match="CLOUDQ_BROKER"):
        lambda_handler(CloudQ("forgetful", broker="memory://"))


def test_an_empty_batch_is_a_success_said_aloud(local: CloudQ) -> None:
    assert lambda_handler(local)({"Records": []}, Context()) == {"batchItemFailures": []}


@pytest.mark.parametrize("given", [read("s3_put"), read("eventbridge_rule"), {"v": 1}, {"Records": None}, {}, [], None, "secret"])
def test_an_event_of_another_kind_is_refused_by_the_names_in_it_and_never_by_its_values(local: CloudQ, given: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        lambda_handler(local)(given, Context())
    assert "secret" not in str(refused.value)


def test_a_call_by_invocation_returns_the_result(local: CloudQ) -> None:
    @local.task(name="note")
    def note(value: int) -> dict[str, int]:
        return {"value": value}

    @local.task(name="anote")
    async def anote(value: int) -> int:
        return value

    handler = lambda_handler(local)
    assert handler(read("scheduler_call"), Context()) == {"value": 3}
    assert handler(read("scheduler_message"), None) == 4
    assert not local.io.running


def test_a_call_by_invocation_that_fails_raises_and_sends_nothing(shop: Shop) -> None:
    @shop.app.task(name="fail", retry=Retry(max_retries=3))
    def fail() -> None:
        raise LookupError("gone")

    with pytest.raises(TaskFailed, match="LookupError: gone") as failed:
        shop.handle({"task": "fail"})
    assert 'raise LookupError("gone")' in failed.value.traceback
    assert shop.receive() == []
    assert shop.receive("orders-dlq") == []


def test_a_call_by_invocation_of_what_is_not_there_or_does_not_fit_says_so(local: CloudQ) -> None:
    @local.task(name="note")
    def note(value: int) -> None: ...

    with pytest.raises(UnknownTask, match="nothing"):
        lambda_handler(local)({"task": "nothing"}, Context())
    with pytest.raises(TaskFailed, match=ArgumentsError.__name__):
        lambda_handler(local)({"task": "note", "args": ["x"]}, Context())


# ---------------------------------------------------------------------------------------------------------------------
# what becomes of records


def test_a_retry_is_sent_again_and_its_record_is_done(shop: Shop) -> None:
    @shop.app.task(name="flaky", retry=Retry(max_retries=3, delay=0, jitter=False))
    def flaky() -> None:
        raise ConnectionError

    flaky.delay()
    shop.note.delay(1)
    assert shop.handle(shop.batch()) == []
    (again,) = shop.bodies()
    assert (again["task"], again["attempt"]) == ("flaky", 1)


def test_what_has_failed_for_good_or_cannot_be_read_is_in_the_dead_letter_queue_when_the_handler_returns(shop: Shop) -> None:
    @shop.app.task(name="fail")
    async def fail() -> None:
        raise LookupError

    fail.delay()
    messages = shop.receive()
    messages += [{**messages[0], "MessageId": "odd", "Body": "no JSON"}]
    assert shop.handle(shop.batch(messages=messages)) == []
    dead = shop.bodies("orders-dlq")
    assert sorted(each.get("task", "unreadable") for each in dead) == ["fail", "unreadable"]
    assert all(each["dead"]["queue"] == "orders" for each in dead)


def test_only_the_record_whose_settling_failed_is_reported(make: Any) -> None:
    shop = make(dead_letters=False)

    @shop.app.task(name="fail")
    def fail() -> None:
        raise LookupError

    fail.delay()
    shop.note.delay(1)
    given = shop.batch()
    (reported,) = shop.handle(given)
    assert [json.loads(each["body"])["task"] for each in given["Records"] if each["messageId"] == reported] == ["fail"]
    assert failed_ids({"batchItemFailures": [{"itemIdentifier": reported}]}, {each["messageId"] for each in given["Records"]}) == {reported}


@pytest.mark.parametrize("receives", [1, 3])
def test_what_could_not_be_settled_comes_again_long_before_the_queues_own_timeout(
    make: Any, monkeypatch: pytest.MonkeyPatch, receives: int
) -> None:
    shop = make(dead_letters=False)
    monkeypatch.setattr(batch, "SOON", 2.0 / 2 ** (receives - 1))  # doubled with each delivery

    @shop.app.task(name="fail")
    def fail() -> None:
        raise LookupError

    fail.delay()
    (message,) = shop.receive()
    message["Attributes"]["ApproximateReceiveCount"] = str(receives)
    assert shop.handle(shop.batch(messages=[message])) == [message["MessageId"]]
    assert shop.receive() == []  # not at once: what failed for a moment would count as a crash loop
    until(shop.receive, "the message", timeout=30.0)


def test_a_record_without_its_fields_costs_itself(shop: Shop) -> None:
    shop.note.delay(1)
    given = shop.batch()
    given["Records"].append({"messageId": "broken", "eventSource": "aws:sqs"})
    assert shop.handle(given) == ["broken"]
    assert shop.ran == [1]


def test_the_same_message_or_the_same_attempt_twice_in_a_batch_runs_once(shop: Shop) -> None:
    shop.note.delay(1)
    (message,) = shop.receive()
    twice = [message, message, {**message, "MessageId": "sent-twice"}]
    assert shop.handle(shop.batch(messages=twice)) == []
    assert shop.ran == [1]


def test_a_duplicate_shares_the_fate_of_the_first(make: Any) -> None:
    shop = make(dead_letters=False)
    runs = itertools.count()

    @shop.app.task(name="fail")
    def fail() -> None:
        next(runs)
        raise LookupError

    fail.delay()
    (message,) = shop.receive()
    assert shop.handle(shop.batch(messages=[message, {**message, "MessageId": "copy"}])) == [message["MessageId"], "copy"]
    assert next(runs) == 1


def test_records_of_several_queues_are_settled_each_in_its_own(shop: Shop) -> None:
    for name in ("slow", "slow-dlq"):
        shop.create(name)

    @shop.app.task(name="flaky", retry=Retry(max_retries=3, delay=0, jitter=False))
    def flaky() -> None:
        raise ConnectionError

    flaky.delay()
    flaky.options(queue="slow").delay()
    both = {"Records": shop.batch()["Records"] + shop.batch("slow")["Records"]}
    assert shop.handle(both) == []
    assert len(shop.receive()) == len(shop.receive("slow")) == 1


def test_tasks_send_from_the_main_thread_and_from_the_loop(shop: Shop) -> None:
    @shop.app.task(name="parent")
    def parent() -> None:
        shop.note.delay(1)

    @shop.app.task(name="aparent")
    async def aparent() -> None:
        await shop.anote.adelay(2)

    parent.delay()
    aparent.delay()
    assert shop.handle(shop.batch()) == []
    assert shop.handle(shop.batch()) == []
    assert sorted(shop.ran) == [1, 2]


def test_async_tasks_of_a_batch_run_at_once_on_one_loop_for_all_invocations(shop: Shop) -> None:
    loops: list[asyncio.AbstractEventLoop] = []
    here: list[int] = []

    @shop.app.task(name="meet")
    async def meet() -> None:
        here.append(1)
        while len(here) % 5:
            await asyncio.sleep(0.001)
        loops.append(asyncio.get_running_loop())

    handler = lambda_handler(shop.app)
    for _ in range(2):
        shop.app.send_many(meet.s() for _ in range(5))
        assert handler(shop.batch(), Context()) == {"batchItemFailures": []}
    assert len(loops) == 10
    assert len(set(loops)) == 1


def test_sync_tasks_run_one_after_another_on_the_main_thread_or_at_once_on_threads(shop: Shop) -> None:
    gate = threading.Barrier(3, timeout=30)
    threads: list[threading.Thread] = []

    @shop.app.task(name="meet")
    def meet() -> None:
        gate.wait()

    @shop.app.task(name="where")
    def where() -> None:
        threads.append(threading.current_thread())

    shop.app.send_many(where.s() for _ in range(3))
    assert shop.handle(shop.batch()) == []
    assert set(threads) == {threading.main_thread()}
    shop.app.send_many(meet.s() for _ in range(3))
    assert shop.handle(shop.batch(), concurrency=3) == []
    assert gate.n_waiting == 0
    assert not gate.broken
    assert shop.receive("orders-dlq") == []


def test_results_are_in_the_store_when_the_handler_returns_and_finished_work_does_not_run_again(make: Any) -> None:
    shop = make(store="memory://")
    result = shop.note.delay(7)
    given = shop.batch()
    assert shop.handle(given) == []
    assert result.get(timeout=1) == 7
    assert shop.handle(given) == []
    assert shop.ran == [7]


def test_progress_is_recorded_while_the_task_runs(make: Any) -> None:
    shop = make(store="memory://")
    seen: list[Any] = []

    @shop.app.task(name="work", bind=True)
    def work(self: Any) -> None:
        self.update_state(meta={"done": 1})
        seen.append(shop.app.result(self.request.id).info)

    work.delay()
    assert shop.handle(shop.batch()) == []
    assert seen == [{"done": 1}]


# ---------------------------------------------------------------------------------------------------------------------
# ordered queues


def test_in_a_fifo_queue_what_is_behind_a_failure_of_its_group_stays_in_order_and_other_groups_go_on(make: Any) -> None:
    shop = make(fifo=True)
    fails = {1}

    @shop.app.task(name="ordered", retry=Retry(max_retries=3, delay=50, jitter=False))
    def ordered(value: int) -> None:
        shop.ran.append(value)
        if value in fails:
            raise ConnectionError

    for value, key in ((0, "a"), (1, "a"), (2, "a"), (10, "b"), (11, "b")):
        ordered.options(ordering_key=key).delay(value)
    given = shop.batch()
    values = {each["messageId"]: json.loads(each["body"])["args"][0] for each in given["Records"]}
    assert [values[id] for id in shop.handle(given)] == [1, 2]
    assert [value for value in shop.ran if value < 10] == [0, 1]
    assert [value for value in shop.ran if value >= 10] == [10, 11]
    assert shop.receive() == []  # the group waits out the retry's delay
    fails.clear()
    for record in given["Records"]:
        if values[record["messageId"]] == 1:  # it is over
            url = shop.sqs.get_queue_url(QueueName=shop.prefix + shop.queue)["QueueUrl"]
            shop.sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=record["receiptHandle"], VisibilityTimeout=0)
    for _ in range(2):  # a server may give the group's messages one by one
        shop.handle(shop.batch())
    assert shop.ran[-2:] == [1, 2]


# ---------------------------------------------------------------------------------------------------------------------
# the function's time


class Watch:
    """The handler's time, which passes in tasks only."""

    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    made = Watch()
    for module in (batch, execution, limits):
        monkeypatch.setattr(module, "time", made)
    return made


def test_what_cannot_start_in_time_is_visible_again_at_once_and_reported(shop: Shop, watch: Watch) -> None:
    @shop.app.task(name="slow", timeout=150)
    def slow(value: int) -> None:
        shop.ran.append(value)
        watch.now += 100

    shop.app.send_many(slow.s(value) for value in range(5))
    given = shop.batch()
    reported = shop.handle(given, seconds=250)  # a run is known to take 100 s
    assert len(shop.ran) == 2
    assert len(reported) == 3
    assert {message["MessageId"] for message in shop.receive()} == set(reported)


@pytest.mark.parametrize("receives", [2, 5])
def test_what_was_handed_back_before_is_sent_anew_lest_it_look_like_a_crash_loop(shop: Shop, watch: Watch, receives: int) -> None:
    @shop.app.task(name="slow")
    def slow(value: int) -> None:
        watch.now += 100

    shop.app.send_many(slow.s(value) for value in range(2))
    messages = shop.receive()
    for message in messages:
        message["Attributes"]["ApproximateReceiveCount"] = str(receives)
    assert shop.handle(shop.batch(messages=messages), seconds=150) == []
    (anew,) = shop.receive()
    assert json.loads(anew["Body"])["deferrals"] == 1
    assert json.loads(anew["Body"])["crashes"] < receives  # what it had, and none for this
    assert anew["Attributes"]["ApproximateReceiveCount"] == "1"


@pytest.mark.parametrize(("settings", "size"), [({}, 1), ({"store": "memory://"}, 10)], ids=["one by one", "with a store"])
def test_behind_heads_that_fail_all_of_a_group_keep_their_runs(make: Any, settings: dict[str, Any], size: int) -> None:
    shop = make(fifo=True, **settings)

    @shop.app.task(name="down", retry=Retry(max_retries=4, delay=0, jitter=False))
    def down(value: int) -> None:
        shop.ran.append(value)
        raise ConnectionError("away")

    for value in range(4):
        down.options(ordering_key="g").delay(value)
    for _ in range(40):
        if messages := shop.receive(most=size):
            shop.handle(shop.batch(messages=messages))
    assert shop.ran == [value for value in range(4) for _ in range(5)]
    letters = {body["args"][0]: body["dead"]["reason"] for body in shop.bodies("orders-dlq.fifo")}
    assert letters == dict.fromkeys(range(4), "out of retries (4): it raised ConnectionError")


@pytest.mark.parametrize("settings", [{}, {"store": "memory://"}], ids=["without a store", "with a store"])
def test_deliveries_that_were_throttled_make_no_dead_letters(make: Any, settings: dict[str, Any]) -> None:
    shop = make(**settings)
    shop.app.send_many(shop.note.s(value) for value in range(5))
    url = shop.sqs.get_queue_url(QueueName=shop.prefix + "orders")["QueueUrl"]
    for _ in range(8):
        for message in shop.receive():
            shop.sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0)
    for _ in range(3):
        if messages := shop.receive():
            shop.handle(shop.batch(messages=messages))
    assert sorted(shop.ran) == [0, 1, 2, 3, 4]
    assert shop.bodies("orders-dlq") == []


@pytest.mark.parametrize("options", [{}, {"concurrency": 2}], ids=["main-thread", "threads"])
def test_a_sync_task_ends_at_its_time_limit(shop: Shop, options: dict[str, int]) -> None:
    over = threading.Event()

    @shop.app.task(name="endless", timeout=0.2)
    def endless() -> None:
        over.wait(60)

    endless.delay()
    shop.note.delay(1)
    began = time.monotonic()
    assert shop.handle(shop.batch(), **options) == []
    assert time.monotonic() - began < 50
    over.set()
    (dead,) = shop.bodies("orders-dlq")
    assert dead["dead"]["error"]["type"] == "cloudq.errors.TimeLimitExceeded"
    assert shop.ran == [1]


def test_a_task_that_swallows_the_time_limit_meets_it_again(shop: Shop) -> None:
    swallowed: list[str] = []

    @shop.app.task(name="stubborn", timeout=0.1)
    def stubborn() -> None:
        for _ in range(2):
            try:
                time.sleep(60)
            except Exception as error:
                swallowed.append(type(error).__name__)
        time.sleep(60)

    stubborn.delay()
    began = time.monotonic()
    assert shop.handle(shop.batch()) == []
    assert time.monotonic() - began < 50
    assert swallowed == ["TimeLimitExceeded"] * 2
    assert len(shop.receive("orders-dlq")) == 1


@pytest.mark.parametrize("kind", ["sync", "async", "thread"])
def test_a_task_that_runs_when_the_functions_time_is_over_is_sent_again_as_a_crash(
    shop: Shop, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits.TimeLeft, "until", lambda left, now: 0.3)  # counted from the start of a task
    over = threading.Event()

    @shop.app.task(name="sync")
    def sync() -> None:
        try:
            over.wait(60)
        except Exception:  # does not catch the end
            over.wait(60)

    @shop.app.task(name="async")
    async def endless() -> None:
        await asyncio.sleep(60)

    (endless if kind == "async" else sync).delay()
    if kind == "thread":  # a single task needs no thread
        shop.note.delay(1)
    given = shop.batch()
    began = time.monotonic()
    assert shop.handle(given, concurrency=2 if kind == "thread" else 1) == []
    assert time.monotonic() - began < 50
    over.set()
    end = time.monotonic() + 30
    while not (found := shop.bodies()) and time.monotonic() < end:  # there is a pause after a crash
        time.sleep(0.05)
    assert [(each["task"], each["crashes"]) for each in found] == [("async" if kind == "async" else "sync", 1)]


def test_the_alarm_of_the_process_is_left_as_it_was(local: CloudQ) -> None:
    @local.task(name="note")
    def note(value: int) -> None: ...

    heard: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))
    timer = signal.setitimer(signal.ITIMER_REAL, 0.15)
    try:
        lambda_handler(local)(read("scheduler_call"), Context())
        end = time.monotonic() + 30
        while not heard and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGALRM, previous)
        signal.setitimer(signal.ITIMER_REAL, *timer)
    assert heard == [signal.SIGALRM]


def test_what_is_done_is_out_of_the_queue_before_a_record_runs_that_may_have_killed_the_process_before(shop: Shop) -> None:
    left: list[int] = []

    @shop.app.task(name="suspect")
    def suspect() -> None:
        counts = shop.app.use_broker(lambda broker: broker.stats("orders"))
        left.append(counts.in_flight)

    shop.note.delay(1)
    shop.note.delay(2)
    suspect.delay()
    messages = shop.receive()
    for message in messages:
        message["Attributes"]["ApproximateReceiveCount"] = "1" if "note" in message["Body"] else "2"
    assert shop.handle(shop.batch(messages=messages)) == []
    assert left == [1]


def test_of_several_records_on_their_last_chance_one_runs_and_the_others_are_sent_anew_before(shop: Shop) -> None:
    waiting: list[list[Any]] = []

    @shop.app.task(name="poison")
    def poison() -> None:
        waiting.append(shop.bodies())

    shop.app.send_many(poison.s() for _ in range(3))
    shop.note.delay(1)
    messages = shop.receive()
    for message in messages:
        message["Attributes"]["ApproximateReceiveCount"] = "1" if "note" in message["Body"] else str(2 * shop.app.conf.crash_cap - 1)
    assert shop.handle(shop.batch(messages=messages)) == []
    assert [[each["crashes"] for each in bodies] for bodies in waiting] == [[shop.app.conf.crash_cap - 2] * 2]
    assert shop.ran == [1]


def test_hooks_hear_of_what_never_ran(make: Any) -> None:
    dead: list[str] = []

    class Ears(Middleware):
        def on_dead(self, message: Any, queue: str, outcome: Any) -> None:
            dead.append(queue)

    shop = make(middleware=[Ears()])
    shop.note.delay(1)
    (message,) = shop.receive()
    assert shop.handle(shop.batch(messages=[{**message, "Body": "[]"}])) == []
    assert dead == ["orders"]


# ---------------------------------------------------------------------------------------------------------------------
# the entry


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env={**AWS_ENV, **env}, cwd=EVENTS.parents[1], capture_output=True, text=True, timeout=60)


PLAIN_TASKS = """
from cloudq import CloudQ

app = CloudQ("plain")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task(queue="texts")
async def shout(text: str) -> str:
    return text.upper()
"""


def test_the_entry_loads_no_validation_async_sdk_cli_or_web_library(tmp_path: Path) -> None:
    code = "import sys, cloudq_aws.entry; print(*{name.partition('.')[0] for name in sys.modules})"
    (tmp_path / "plain_tasks.py").write_text(PLAIN_TASKS)
    env = {"CLOUDQ_APP": "plain_tasks:app", "CLOUDQ_BROKER": "sqs://eu-west-1/", "PYTHONPATH": str(tmp_path)}
    loaded = run(code, **env, AWS_LAMBDA_FUNCTION_NAME="f")
    assert loaded.returncode == 0, loaded.stderr
    modules = set(loaded.stdout.split())
    assert "botocore" in modules
    assert not modules & {"pydantic", "aiobotocore", "aiohttp", "typer", "click", "rich", "boto3", "cloudq_gcp", "sqlite3"}


def test_the_entry_makes_the_clients_of_broker_store_and_timer_while_it_starts(tmp_path: Path) -> None:
    code = """
import botocore.session

made, create = [], botocore.session.Session.create_client
botocore.session.Session.create_client = lambda self, name, **options: made.append(name) or create(self, name, **options)
import cloudq_aws.entry
print(*made)
"""
    (tmp_path / "plain_tasks.py").write_text(PLAIN_TASKS)
    timer = f"eventbridge://{REGION}/group?role=arn:aws:iam::123456789012:role/timer&dead_letter=late"
    env = {"CLOUDQ_BROKER": f"sqs://{REGION}/", "CLOUDQ_STORE": f"dynamodb://{REGION}/table", "CLOUDQ_TIMER": timer}
    ran = run(code, CLOUDQ_APP="plain_tasks:app", PYTHONPATH=str(tmp_path), AWS_LAMBDA_FUNCTION_NAME="f", **env)
    assert ran.stdout.split() == ["sqs", "dynamodb", "scheduler"], ran.stderr


@pytest.mark.parametrize(
    ("env", "said"), [({}, "set CLOUDQ_APP"), ({"CLOUDQ_APP": "json:loads"}, "no CloudQ app"), ({"CLOUDQ_APP": "nothing"}, "no module")]
)
def test_the_entry_says_what_is_missing(env: dict[str, str], said: str) -> None:
    ran = run("import cloudq_aws.entry", **env)
    assert ran.returncode
    assert said in ran.stderr.splitlines()[-1]
