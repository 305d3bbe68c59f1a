"""The Lambda handler under AWS's own runtime client, fed by an event source mapping's rules from real queues."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.ledger import Ledger
from tests.event_source import EventSource, failed_ids, run_several
from tests.runtime_api import Environment, FunctionError, function
from tests.servers import REGION, SQSServer, missing, unique
from tests.waiting import until

VISIBILITY = 8
"""Seconds; longer than the function's time, as Lambda demands."""


class Stage:
    """A queue with its dead-letter queue, a ledger, and what the function's process needs to know of them."""

    def __init__(self, server: SQSServer, folder: Path, *, store: bool = False, fifo: bool = False) -> None:
        self.server, self.folder = server, folder
        self.queue = unique("lambda")
        self.dead_letters = f"{self.queue}-dlq"
        if fifo:
            self.queue, self.dead_letters = f"{self.queue}.fifo", f"{self.dead_letters}.fifo"
        server.make_queue(self.queue, dead_letter=self.dead_letters, max_receives=10, VisibilityTimeout=str(VISIBILITY))
        self.env = {
            **server.env,
            "CLOUDQ_APP": "tests.integration.lambda_tasks:app",
            "CLOUDQ_BROKER": f"sqs://{REGION}/",
            "TEST_QUEUE": self.queue,
            "TEST_LEDGER": str(folder / "ledger"),
            **({"CLOUDQ_STORE": f"sqlite:///{folder}/store.db"} if store else {}),
        }
        self.ledger = Ledger(folder / "ledger")

    def function(self, number: int = 0, *, timeout: float = 20.0) -> Any:
        if find_spec("awslambdaric") is None:
            missing("awslambdaric", "pip install awslambdaric")
        return function("cloudq_aws.entry.handler", env=self.env, log=self.folder / f"function-{number}.log", timeout=timeout)

    def source(self, environment: Environment) -> EventSource:
        return EventSource(self.server.boto3, self.queue, environment)

    def send(self, calls: list[tuple[str, int, str]]) -> None:
        """Publish as any program of any language would: the protocol's JSON, in batches."""
        url = self.server.boto3.get_queue_url(QueueName=self.queue)["QueueUrl"]
        name = "tests.integration.lambda_tasks"
        bodies = [{"v": 1, "id": f"{task}-{n}", "task": f"{name}.{task}", "args": [n, how]} for task, n, how in calls]
        for start in range(0, len(bodies), 10):
            entries = [{"Id": str(at), "MessageBody": json.dumps(body)} for at, body in enumerate(bodies[start : start + 10])]
            assert not self.server.boto3.send_message_batch(QueueUrl=url, Entries=entries).get("Failed")

    def dead(self) -> list[dict[str, Any]]:
        """The dead letters; they are taken out."""
        url = self.server.boto3.get_queue_url(QueueName=self.dead_letters)["QueueUrl"]
        found: list[dict[str, Any]] = []
        while messages := self.server.boto3.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
            found += [json.loads(message["Body"]) for message in messages]
        return found

    def wrote(self) -> str:
        return "\n".join(log.read_text(errors="replace")[-2000:] for log in self.folder.glob("function-*.log"))


@pytest.fixture
def stage(sqs_server: SQSServer, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(sqs_server, tmp_path)
    yield made
    made.ledger.close()


@pytest.fixture
def stored(sqs_server: SQSServer, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(sqs_server, tmp_path, store=True)
    yield made
    made.ledger.close()


def plan(total: int) -> list[tuple[str, int, str]]:
    """What each call does: most go well, some fail once, some for good, and a few take the process along or run out of its time."""
    rare = {60: "kill", 160: "hang", 260: "slow", 360: "kill", 410: "hang", 460: "slow"}
    calls: list[tuple[str, int, str]] = []
    for n in range(total):
        how = rare.get(n) or ("retry" if n % 7 == 3 else "dead" if n % 50 == 9 else "well")
        calls.append(("awork" if n % 5 == 2 and how != "dead" else "work", n, how))
    return calls


@pytest.mark.slow
def test_500_tasks_under_failures_timeouts_and_kills_are_done_exactly_as_the_ledger_says(stored: Stage) -> None:
    calls = plan(500)
    stored.send(calls)
    with stored.function(0, timeout=3) as one, stored.function(1, timeout=3) as two:
        sources = [stored.source(one), stored.source(two)]
        deadline = threading.Event()
        timer = threading.Timer(400, deadline.set)
        timer.start()
        run_several(sources, lambda: deadline.is_set() or stored.server.depth(stored.queue) == 0)
        timer.cancel()
    assert not deadline.is_set(), (stored.server.depth(stored.queue), stored.wrote())

    by_how = {how: {str(n) for _, n, each in calls if each == how} for how in ("well", "retry", "dead", "kill", "hang", "slow")}
    assert set(stored.ledger.counts("done")) == {str(n) for _, n, how in calls if how != "dead"}
    assert set(stored.ledger.counts("killed")) == by_how["kill"]
    assert set(stored.ledger.counts("hung")) == by_how["hang"]
    assert set(stored.ledger.counts("slow")) == by_how["slow"]
    assert set(stored.ledger.counts("failed")) == by_how["retry"]
    failures = Counter(failure.kind for source in sources for failure in source.failures)
    assert failures.keys() == {"Runtime.ExitError", "Sandbox.Timedout"}
    assert failures["Runtime.ExitError"] == 2
    held_up = failures["Sandbox.Timedout"] - 2  # by the machine, with up to ten messages each time
    assert 0 <= held_up <= 4
    assert 4 <= one.starts + two.starts <= 2 + 4 + held_up  # one that died last need not come back
    # What a killed process had done and could not record is all that may have been done twice.
    assert sum(count - 1 for count in stored.ledger.counts("done").values()) <= 10 * held_up
    letters = Counter(letter["id"] for letter in stored.dead())
    assert letters.keys() == {f"work-{n}" for n in by_how["dead"]}
    assert letters.total() <= len(letters) + 10 * held_up


def test_without_a_store_nothing_is_lost_either(stage: Stage) -> None:
    stage.send([("work", 0, "kill"), *(("work", n, "well") for n in range(1, 8)), ("awork", 8, "retry"), ("work", 9, "slow")])
    with stage.function(timeout=3) as environment:
        source = stage.source(environment)
        source.run(lambda: stage.server.depth(stage.queue) == 0 or source.invocations > 60)
    counts = stage.ledger.counts("done")
    assert set(counts) == {str(n) for n in range(10)}, stage.wrote()
    assert counts["0"] == counts["9"] == 1
    assert stage.dead() == []


def test_a_task_that_always_kills_its_process_ends_as_a_dead_letter_and_takes_no_neighbour_along(stage: Stage) -> None:
    stage.server.boto3.set_queue_attributes(
        QueueUrl=stage.server.boto3.get_queue_url(QueueName=stage.queue)["QueueUrl"], Attributes={"VisibilityTimeout": "2"}
    )
    stage.send([*(("work", n, "well") for n in range(9)), ("work", 9, "poison")])
    with stage.function() as environment:
        source = stage.source(environment)
        source.run(lambda: stage.server.depth(stage.queue) == 0 or source.invocations > 60)
    assert set(stage.ledger.counts("done")) == {str(n) for n in range(9)}, stage.wrote()
    letters = stage.dead()  # one, or two where the process died between the letter and the deletion
    assert {letter["id"] for letter in letters} == {"work-9"}
    assert all(letter["dead"]["reason"].startswith("crash loop") for letter in letters)


def test_a_fifo_queue_keeps_the_order_of_each_group_through_retries(sqs_server: SQSServer, tmp_path: Path) -> None:
    stage = Stage(sqs_server, tmp_path, fifo=True)
    url = sqs_server.boto3.get_queue_url(QueueName=stage.queue)["QueueUrl"]
    for n in range(24):
        body = {"v": 1, "id": f"work-{n}", "task": "tests.integration.lambda_tasks.work", "args": [n, "retry" if n in (4, 13) else "well"]}
        body["group"] = group = f"g{n % 3}"
        sqs_server.boto3.send_message(QueueUrl=url, MessageBody=json.dumps(body), MessageGroupId=group, MessageDeduplicationId=f"work-{n}")
    with stage.function() as environment:
        source = stage.source(environment)
        source.run(lambda: sqs_server.depth(stage.queue) == 0 or source.invocations > 60)
    stage.ledger.close()
    done = [int(entry.id) for entry in stage.ledger.entries("done")]
    for group in range(3):
        assert [n for n in done if n % 3 == group] == list(range(group, 24, 3)), stage.wrote()
    assert stage.ledger.counts("failed") == {"4": 2, "13": 2}
    assert source.reported


def test_tasks_that_send_tasks_are_confirmed_before_the_function_returns(stage: Stage) -> None:
    url = stage.server.boto3.get_queue_url(QueueName=stage.queue)["QueueUrl"]
    for n, task in enumerate(("parent", "aparent")):
        body = {"v": 1, "id": task, "task": f"tests.integration.lambda_tasks.{task}", "args": [n]}
        stage.server.boto3.send_message(QueueUrl=url, MessageBody=json.dumps(body))
    with stage.function() as environment:
        source = stage.source(environment)
        until(lambda: source.poll() == 0 and stage.server.depth(stage.queue) == 0, "an empty queue")
    assert stage.ledger.counts("sent") == stage.ledger.counts("done") == {"0": 1, "1": 1}, stage.wrote()


def test_a_direct_invocation_returns_the_result_or_the_error(stage: Stage) -> None:
    with stage.function() as environment:
        names = ["botocore", "aiobotocore", "aiohttp", "pydantic", "boto3"]
        assert environment.invoke({"task": "tests.integration.lambda_tasks.modules", "args": [names]}) == ["botocore"]
        assert environment.invoke({"task": "tests.integration.lambda_tasks.echo", "args": [{"a": [1]}]}) == {"a": [1]}
        assert environment.invoke({"tick": "echoed", "slot": "2026-01-15T00:00:00Z"}) == {"b": 2}  # a schedule whose target is the function
        with pytest.raises(FunctionError, match="no schedule 'gone'"):
            environment.invoke({"tick": "gone", "slot": 0})
        with pytest.raises(FunctionError) as failed:
            environment.invoke({"task": "tests.integration.lambda_tasks.fail"})
        assert failed.value.detail["errorType"] == "TaskFailed"
        assert failed.value.detail["errorMessage"].endswith("Refused: it does not work")
        with pytest.raises(FunctionError, match="neither an SQS batch nor a call"):
            environment.invoke({"neither": 1})
        assert environment.starts == 1


def test_a_function_that_cannot_load_its_app_reports_an_init_error(stage: Stage) -> None:
    stage.env["CLOUDQ_APP"] = "tests.no_such_module:app"
    with stage.function() as environment, pytest.raises(FunctionError) as failed:
        environment.invoke({"Records": []})
    assert failed.value.kind == "Runtime.InitError"
    assert "there is no module" in failed.value.detail["errorMessage"]


def test_the_example_runs_with_one_command() -> None:
    script = Path(__file__).parents[2] / "examples/aws_lambda/run_locally.py"
    ran = subprocess.run([sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    for number in range(3):
        assert lines.index(f"charged 12.50 for order-{number}") < lines.index(f"confirmed order-{number}")
    assert lines[-1] == "dead letter: tasks.refund('order-0',): refunds of order-0"


def test_the_stand_in_reads_responses_as_aws_does() -> None:
    ids = {"a", "b"}
    for success in (None, {}, {"batchItemFailures": []}, {"batchItemFailures": None}):
        assert failed_ids(success, ids) == set()
    for failure in ("text", [], {"batchItemFailure": []}, {"batchItemFailures": [{"itemIdentifier": bad} for bad in ("a", None)]}):
        assert failed_ids(failure, ids) is None
    for bad in ({"itemIdentifier": ""}, {"itemIdentifier": "c"}, {"itemIdentifer": "a"}, None):
        assert failed_ids({"batchItemFailures": [bad]}, ids) is None
    assert failed_ids({"batchItemFailures": [{"itemIdentifier": "a"}]}, ids) == {"a"}
