"""The DynamoDB driver on real servers: items, requests, errors, faults on the wire, and large values in S3."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest

from cloudq import records, states
from cloudq.adapters import AdapterContext, Location
from cloudq.clock import ManualClock, SystemClock
from cloudq.errors import ConfigError, Conflict, DocumentTooLarge, StoreError, StoreUnavailable
from cloudq.message import Message, new_id
from cloudq.records import Claim
from cloudq.store import KINDS, MISSING
from cloudq_aws.dynamodb import DynamoDBStore, adapter
from tests.proxy import After, Answer, Cut, Fault, Hang, Proxy, Request, first, proxy
from tests.servers import REGION, DynamoDBServer, free_port, unique

T = TypeVar("T")


@pytest.fixture
def wire(dynamodb: DynamoDBServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy between the driver and the server, whose requests are counted: none is repeated because the machine is slow."""
    monkeypatch.setattr("cloudq_aws.dynamodb._SILENCE", 60.0)
    monkeypatch.setattr("cloudq_aws.dynamodb._ANSWER", 120.0)
    with proxy(dynamodb.endpoint) as it:
        monkeypatch.setenv("AWS_ENDPOINT_URL", it.endpoint)
        yield it


@pytest.fixture
def bucket(dynamodb: DynamoDBServer) -> str:
    """A new bucket of the server's S3."""
    if dynamodb.s3 is None:
        pytest.skip(f"{dynamodb.kind} has no S3")
    name = unique("bodies")
    dynamodb.s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    return name


def opened(url: str) -> DynamoDBStore:
    """The store of a URL, as an app opens it."""
    assert adapter.store is not None
    store = adapter.store(Location.parse(url), AdapterContext(app="test", clock=SystemClock()))
    assert isinstance(store, DynamoDBStore)
    return store


def with_store(use: Callable[[DynamoDBStore], Awaitable[T]], store: DynamoDBStore | str) -> T:
    """Run ``use(store)`` on a loop of its own, and close the store."""

    async def run() -> T:
        it = store if isinstance(store, DynamoDBStore) else DynamoDBStore(store, REGION)
        try:
            return await use(it)
        finally:
            await it.close()

    return asyncio.run(run())


def test_importing_the_driver_loads_no_sdk() -> None:
    code = "import sys, cloudq_aws.dynamodb; print(sorted({'aiobotocore', 'botocore', 'boto3', 'aiohttp'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | path())
    assert ran.stdout.strip() == "[]"


def path() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def test_making_a_store_connects_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert opened("dynamodb://eu-west-1/cloudq").limits.value == 400_000
    assert opened("dynamodb:///cloudq?overflow=s3://bucket/prefix").limits.value == 16 * 1024 * 1024


@pytest.mark.parametrize(
    "url",
    [
        "dynamodb://eu-west-1",
        "dynamodb://eu-west-1/",
        "dynamodb://eu-west-1/ab",
        "dynamodb://eu-west-1/a/b/c",
        "dynamodb:///table?overflw=s3://b",
        "dynamodb:///table?overflow=bucket",
        "dynamodb:///table?overflow=s3:///prefix",
    ],
)
def test_a_wrong_url_is_refused_when_it_is_opened(url: str) -> None:
    with pytest.raises(ConfigError):
        opened(url)


# Items


def test_a_document_is_one_item_whose_value_is_json_text_and_whose_ttl_is_whole_seconds(dynamodb: DynamoDBServer) -> None:
    clock = ManualClock(1_800_000_000.25)
    key = unique("task")

    async def scenario(store: DynamoDBStore) -> str:
        return await store.put("task", key, {"n": 3.0, "text": "ü"}, ttl=60)

    version = with_store(scenario, DynamoDBStore(dynamodb.table, REGION, clock=clock))
    items = [item for item in dynamodb.boto3.scan(TableName=dynamodb.table)["Items"] if item["sk"]["S"] == key]
    assert len(items) == 1
    assert items[0].pop("pk")["S"].startswith("task#")
    assert items[0] == {
        "sk": {"S": key},
        "value": {"S": '{"n":3.0,"text":"\\u00fc"}'},
        "version": {"S": version},
        "expires": {"N": "1800000060.25"},
        "ttl": {"N": "1800000061"},
    }


@pytest.mark.parametrize(
    ("kind", "key", "partition"), [("task", "a", "task#3"), ("task", "b", "task#9"), ("event", "a", "event#3"), ("worker", "a", "worker")]
)
def test_where_a_document_lies_never_changes_between_versions_of_cloudq(
    dynamodb: DynamoDBServer, kind: str, key: str, partition: str
) -> None:
    async def scenario(store: DynamoDBStore) -> None:
        await store.put(kind, key, {})

    with_store(scenario, dynamodb.table)
    assert "Item" in dynamodb.boto3.get_item(TableName=dynamodb.table, Key={"pk": {"S": partition}, "sk": {"S": key}})


def test_a_set_that_never_expires_keeps_that_when_members_come_with_a_ttl(dynamodb: DynamoDBServer) -> None:
    clock = ManualClock()
    key = unique()

    async def scenario(store: DynamoDBStore) -> None:
        await store.add_member("chord", key, "a")
        assert await store.add_member("chord", key, "b", ttl=5) == 2
        clock.advance(10)
        assert await store.members("chord", key) == {"a", "b"}
        assert await store.add_member("chord", key, "c") == 3

    with_store(scenario, DynamoDBStore(dynamodb.table, REGION, clock=clock))


def test_of_many_that_find_a_set_expired_one_starts_it_anew(dynamodb: DynamoDBServer) -> None:
    clock = ManualClock()
    key = unique()

    async def scenario(store: DynamoDBStore) -> None:
        await store.add_member("chord", key, "old", ttl=5)
        clock.advance(5)
        sizes = await asyncio.gather(*(store.add_member("chord", key, f"{number}", ttl=5) for number in range(16)))
        assert sorted(sizes) == list(range(1, 17))
        assert await store.members("chord", key) == {f"{number}" for number in range(16)}

    with_store(scenario, DynamoDBStore(dynamodb.table, REGION, clock=clock))


def test_a_set_over_the_size_of_an_item_is_refused(dynamodb: DynamoDBServer) -> None:
    key = unique()

    async def scenario(store: DynamoDBStore) -> None:
        await store.add_member("chord", key, "a" * 250_000)
        with pytest.raises(DocumentTooLarge, match="400 KB"):
            await store.add_member("chord", key, "b" * 250_000)

    with_store(scenario, dynamodb.table)


# Requests


def test_a_task_takes_two_writes_and_no_read(dynamodb: DynamoDBServer, wire: Proxy) -> None:
    message = Message({"id": new_id(), "task": "add", "args": [2, 3]})

    async def scenario(store: DynamoDBStore) -> None:
        claim = await records.claim(store, message, "q", owner="w", now=time.time(), until=time.time() + 60, ttl=3600)
        assert isinstance(claim, Claim)
        await claim.finish(states.SUCCESS, at=time.time(), value=5)

    with_store(scenario, dynamodb.table)
    assert wire.requests == {"PutItem": 2}


def test_sixteen_writers_of_one_key_lose_nothing_and_read_nothing(dynamodb: DynamoDBServer, wire: Proxy) -> None:
    key = unique()
    rounds = 3

    async def scenario(store: DynamoDBStore) -> None:
        first_version = await store.put("task", key, {"count": 0})

        async def increment() -> None:
            count, version = 0, first_version
            for _ in range(rounds):
                while True:
                    try:
                        version = await store.put("task", key, {"count": count + 1}, expect=version)
                    except Conflict as conflict:
                        current = conflict.current or pytest.fail("a conflict with nothing, though nobody deletes")
                        count, version = current.value["count"], current.version
                    else:
                        count += 1
                        break

        await asyncio.gather(*(increment() for _ in range(16)))
        if dynamodb.tells:
            assert set(wire.requests) == {"PutItem"}
        document = await store.get("task", key)
        assert document is not None
        assert document.value == {"count": 16 * rounds}

    with_store(scenario, dynamodb.table)


def test_a_big_read_asks_for_a_hundred_keys_at_a_time_and_for_each_once(dynamodb: DynamoDBServer, wire: Proxy) -> None:
    asked: list[int] = []
    wire.decide = lambda request: asked.append(len(request.body["RequestItems"][dynamodb.table]["Keys"]))
    keys = [f"{number}" for number in range(250)]
    assert with_store(lambda store: store.get_many("chord", [*keys, *keys]), dynamodb.table) == [None] * 500
    assert asked == [100, 100, 50]


def test_keys_that_are_left_out_of_a_big_read_are_asked_for_again(dynamodb: DynamoDBServer, wire: Proxy) -> None:
    start = unique()

    def leave_out(request: Request) -> Fault | None:
        if request.action == "BatchGetItem" and request.number <= 2:
            return Answer(200, {"Responses": {dynamodb.table: []}, "UnprocessedKeys": request.body["RequestItems"]})
        return None

    async def scenario(store: DynamoDBStore) -> None:
        for number in range(3):
            await store.put("task", f"{start}{number}", {"n": number})
        wire.decide = leave_out
        found = await store.get_many("task", [f"{start}{number}" for number in range(3)])
        assert [document and document.value["n"] for document in found] == [0, 1, 2]
        wire.decide = lambda request: leave_out(Request(request.action, 1, request.body))
        with pytest.raises(StoreUnavailable, match="3 keys stayed unprocessed"):
            await store.get_many("task", [f"{start}{number}" for number in range(3)])

    with_store(scenario, dynamodb.table)


@pytest.mark.parametrize("kind", KINDS)
def test_a_listing_takes_one_query_a_partition_and_no_scan(dynamodb: DynamoDBServer, wire: Proxy, kind: str) -> None:
    with_store(lambda store: store.list(kind, prefix=unique()), dynamodb.table)
    assert wire.requests == {"Query": 1 if kind in ("limit", "pause", "worker", "schedule") else 16}


def test_a_page_of_a_long_listing_reads_little_more_than_it_holds(dynamodb: DynamoDBServer, wire: Proxy) -> None:
    start = unique()

    async def scenario(store: DynamoDBStore) -> None:
        for begin in range(0, 400, 40):
            await asyncio.gather(*(store.put("task", f"{start}{number:03}", {}) for number in range(begin, begin + 40)))
        wire.reset()
        page = await store.list("task", prefix=start, limit=50)
        assert [key for key, _ in page.items] == [f"{start}{number:03}" for number in range(50)]
        assert wire.requests["Query"] <= 24

    with_store(scenario, dynamodb.table)


# Faults


def test_a_put_whose_answer_is_lost_does_not_conflict_with_itself(dynamodb: DynamoDBServer, wire: Proxy) -> None:
    key = unique()

    async def scenario(store: DynamoDBStore) -> None:
        for number in (1, 2):
            document = await store.get("task", key)
            wire.reset()
            wire.decide = first(1, Cut(), "PutItem")
            version = await store.put("task", key, {"n": number}, expect=document.version if document else MISSING, ttl=60)
            assert wire.requests["PutItem"] == 2
            document = await store.get("task", key)
            assert document is not None
            assert (document.value, document.version) == ({"n": number}, version)

    with_store(scenario, dynamodb.table)


def test_a_put_that_hangs_is_tried_again_within_the_call(dynamodb: DynamoDBServer, wire: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudq_aws.dynamodb._SILENCE", 1.0)
    wire.decide = first(1, Hang(), "PutItem")
    with_store(lambda store: store.put("task", unique(), {}, expect=MISSING), dynamodb.table)
    assert wire.requests["PutItem"] >= 2


def test_a_put_that_never_arrived_is_made_once(dynamodb: DynamoDBServer, wire: Proxy) -> None:
    wire.decide = first(1, Cut(forward=False), "PutItem")
    with_store(lambda store: store.put("task", unique(), {}, expect=MISSING), dynamodb.table)
    assert wire.requests["PutItem"] == 2


def test_a_conflict_after_a_lost_answer_is_with_the_writer_that_came_between(dynamodb: DynamoDBServer, wire: Proxy) -> None:
    key, between = unique(), asyncio.Event()

    def lose_first(request: Request) -> Fault | None:
        if request.action != "PutItem" or "late" not in json.dumps(request.body):
            return None
        return Cut(forward=False) if request.number == 1 else After(between.is_set)

    async def scenario(store: DynamoDBStore) -> None:
        wire.decide = lose_first
        late = asyncio.create_task(store.put("task", key, {"by": "late"}, expect=MISSING))
        while not wire.requests["PutItem"]:
            await asyncio.sleep(0.001)
        await store.put("task", key, {"by": "other"})
        between.set()
        with pytest.raises(Conflict) as caught:
            await late
        assert caught.value.current is not None
        assert caught.value.current.value == {"by": "other"}

    with_store(scenario, dynamodb.table)


def test_a_member_whose_answer_is_lost_is_counted_once(dynamodb: DynamoDBServer, wire: Proxy) -> None:
    clock = ManualClock()
    key = unique()

    async def scenario(store: DynamoDBStore) -> None:
        wire.decide = first(1, Cut(), "UpdateItem")
        assert await store.add_member("chord", key, "a", ttl=5) == 1
        clock.advance(5)
        wire.decide = first(1, Cut(), "PutItem")  # which starts it anew
        assert await store.add_member("chord", key, "b", ttl=5) == 1
        assert await store.add_member("chord", key, "c", ttl=5) == 2

    with_store(scenario, DynamoDBStore(dynamodb.table, REGION, clock=clock))


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (Answer(400, {"__type": "x#ProvisionedThroughputExceededException", "message": "slow down"}), StoreUnavailable, "try again"),
        (Answer(400, {"__type": "x#ThrottlingException", "message": "slow down"}), StoreUnavailable, "try again"),
        (Answer(400, {"__type": "x#RequestLimitExceeded", "message": "slow down"}), StoreUnavailable, "try again"),
        (Answer(500, {"__type": "x#InternalServerError", "message": "oh"}), StoreUnavailable, "InternalServerError"),
        (Answer(400, {"__type": "x#AccessDeniedException", "message": "no"}), StoreError, "dynamodb:GetItem"),
        (Answer(400, {"__type": "x#UnrecognizedClientException", "message": "no"}), StoreError, "credentials"),
        (Answer(400, {"__type": "x#ValidationException", "message": "odd"}), StoreError, "odd"),
    ],
)
def test_an_error_of_aws_becomes_ours(
    dynamodb: DynamoDBServer, wire: Proxy, monkeypatch: pytest.MonkeyPatch, answer: Answer, error: type[StoreError], text: str
) -> None:
    monkeypatch.setattr("cloudq_aws.errors._had_credentials", False)
    wire.decide = lambda request: answer
    with pytest.raises(StoreError, match=text) as caught:
        with_store(lambda store: store.get("task", "a"), dynamodb.table)
    assert type(caught.value) is error
    assert dynamodb.table in str(caught.value)


def test_a_missing_table_is_named_with_what_makes_it(dynamodb: DynamoDBServer) -> None:
    name = unique("absent")

    async def scenario(store: DynamoDBStore) -> None:
        for call in (
            store.get("task", "a"),
            store.get_many("task", ["a"]),
            store.put("task", "a", {}),
            store.add_member("chord", "a", "b"),
            store.members("chord", "a"),
            store.delete("task", "a"),
            store.list("task"),
        ):
            with pytest.raises(StoreError, match=f"{name}.*no such table.*cloudq deploy"):
                await call

    with_store(scenario, name)
    assert name not in dynamodb.boto3.list_tables()["TableNames"]


def test_a_server_that_is_down_is_unavailable_within_a_few_seconds(dynamodb: DynamoDBServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="could not be reached"):
        with_store(lambda store: store.list("task"), dynamodb.table)
    assert time.monotonic() - began < 20


def test_a_server_that_never_answers_is_unavailable_in_time(dynamodb: DynamoDBServer, wire: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudq_aws.dynamodb._ANSWER", 0.5)
    wire.decide = lambda request: Hang()
    with pytest.raises(StoreUnavailable, match="in time"):
        with_store(lambda store: store.get("task", "a"), dynamodb.table)


def test_missing_settings_are_named(dynamodb: DynamoDBServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(ConfigError, match="dynamodb://eu-west-1/table"):
        with_store(lambda store: store.get("task", "a"), opened(f"dynamodb:///{dynamodb.table}"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setattr("cloudq_aws.errors._had_credentials", False)
    with pytest.raises(ConfigError, match="credentials"):
        with_store(lambda store: store.get("task", "a"), dynamodb.table)


# The life of a store


def test_one_store_serves_one_loop_after_another(dynamodb: DynamoDBServer) -> None:
    store = opened(f"dynamodb:///{dynamodb.table}")
    key = unique()
    with_store(lambda store: store.put("task", key, {"n": 1}), store)
    document = with_store(lambda store: store.get("task", key), store)
    assert document is not None
    assert document.value == {"n": 1}


def test_a_forked_child_uses_a_client_of_its_own_and_leaves_the_parents_alone(dynamodb: DynamoDBServer) -> None:
    command = [sys.executable, "-W", "error", "-c", _FORK, dynamodb.table, unique()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | path(), check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "child True, then 3\n", "")


_FORK = """
import asyncio, os, sys
from cloudq_aws.dynamodb import DynamoDBStore

store = DynamoDBStore(sys.argv[1])

async def add(member):
    return await store.add_member("chord", sys.argv[2], member)

async def child():
    size = await add("b")
    await store.close()
    return size

async def main():
    assert await add("a") == 1
    pid = os.fork()
    if pid == 0:
        return None
    _, status = os.waitpid(pid, 0)
    size = await add("c")
    await store.close()
    return status == 0, size

loop = asyncio.new_event_loop()
answer = loop.run_until_complete(main())
if answer is None:
    asyncio.set_event_loop(None)
    size = asyncio.new_event_loop().run_until_complete(child())
    os._exit(0 if size == 2 else 1)
print(f"child {answer[0]}, then {answer[1]}")
loop.close()
"""


# Overflow

LARGE = {"text": "x" * 500_000}


def test_a_large_value_is_refused_with_the_option_that_takes_it(dynamodb: DynamoDBServer) -> None:
    with pytest.raises(DocumentTooLarge, match="overflow=s3://"):
        with_store(lambda store: store.put("task", "a", LARGE), dynamodb.table)


def test_a_large_value_lies_in_s3_and_comes_back_by_every_read(dynamodb: DynamoDBServer, bucket: str) -> None:
    key, table = unique(), dynamodb.make_table()

    async def scenario(store: DynamoDBStore) -> None:
        version = await store.put("task", key, LARGE, expect=MISSING)
        await store.put("task", f"{key}-small", {"n": 1})
        document = await store.get("task", key)
        assert document is not None
        assert (document.value, document.version) == (LARGE, version)
        assert await store.get_many("task", [key]) == [document]
        assert dict((await store.list("task", prefix=key)).items)[key] == document
        with pytest.raises(Conflict) as caught:
            await store.put("task", key, {}, expect=MISSING)
        assert caught.value.current == document
        with pytest.raises(DocumentTooLarge, match="16777216"):
            await store.put("task", key, {"text": "x" * store.limits.value})

    with_store(scenario, opened(f"dynamodb:///{table}?overflow=s3://{bucket}/results"))
    (written,) = dynamodb.s3.list_objects_v2(Bucket=bucket)["Contents"]
    assert written["Key"].startswith("results/task/")
    assert json.loads(dynamodb.s3.get_object(Bucket=bucket, Key=written["Key"])["Body"].read()) == LARGE
    with pytest.raises(StoreError, match="overflow="):
        with_store(lambda store: store.get("task", key), table)


def test_a_large_value_that_was_changed_or_deleted_is_an_error_and_never_a_value(dynamodb: DynamoDBServer, bucket: str) -> None:
    key = unique()

    async def scenario(store: DynamoDBStore) -> None:
        await store.put("task", key, LARGE)
        (written,) = dynamodb.s3.list_objects_v2(Bucket=bucket)["Contents"]
        dynamodb.s3.put_object(Bucket=bucket, Key=written["Key"], Body=b'{"text":"forged"}')
        with pytest.raises(StoreError, match="SHA-256"):
            await store.get("task", key)
        dynamodb.s3.delete_object(Bucket=bucket, Key=written["Key"])
        with pytest.raises(StoreError, match="lifecycle"):
            await store.get("task", key)

    with_store(scenario, opened(f"dynamodb:///{dynamodb.make_table()}?overflow=s3://{bucket}"))


def test_a_missing_bucket_fails_the_put_before_the_item_is_written(dynamodb: DynamoDBServer, bucket: str) -> None:
    key = unique()

    async def scenario(store: DynamoDBStore) -> None:
        with pytest.raises(StoreError, match="no such bucket"):
            await store.put("task", key, LARGE)
        assert await store.get("task", key) is None

    with_store(scenario, opened(f"dynamodb:///{dynamodb.table}?overflow=s3://{bucket}-absent"))
