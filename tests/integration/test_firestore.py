"""The Firestore driver on Google's emulator: documents, requests, errors, faults on the wire, large values in GCS, and an app on it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import pytest

from cloudq import CloudQ, chord, records, states
from cloudq.adapters import AdapterContext, Location
from cloudq.clock import ManualClock, SystemClock
from cloudq.errors import ConfigError, Conflict, DocumentTooLarge, StoreError, StoreUnavailable
from cloudq.memory import Lies, LyingBroker, MemoryBroker
from cloudq.message import Message, new_id
from cloudq.records import Claim
from cloudq.store import KINDS, MISSING
from cloudq.worker import Worker, WorkerOptions
from cloudq_gcp.firestore import FirestoreStore, adapter
from tests.gcp_servers import PROJECT, Emulator, StorageServer
from tests.grpc_proxy import Call, GrpcProxy, Hang, Refuse, first, grpc_proxy
from tests.servers import free_port, unique
from tests.waiting import until

T = TypeVar("T")

COLLECTION = "driver"
LOST = Refuse("UNAVAILABLE", forward=True)
"""Carried out, and its answer lost."""


@pytest.fixture
def wire(firestore: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[GrpcProxy]:
    """A proxy between the driver and the emulator, whose requests are counted: none is given up because the machine is slow."""
    monkeypatch.setattr("cloudq_gcp.firestore._ANSWER", 60.0)
    with grpc_proxy(firestore.address) as it:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", it.address)
        yield it


def opened(url: str) -> FirestoreStore:
    """The store of a URL, as an app opens it."""
    assert adapter.store is not None
    store = adapter.store(Location.parse(url), AdapterContext(app="test", clock=SystemClock()))
    assert isinstance(store, FirestoreStore)
    return store


def with_store(use: Callable[[FirestoreStore], Awaitable[T]], store: FirestoreStore | None = None) -> T:
    """Run ``use(store)`` on a loop of its own, and close the store."""

    async def run() -> T:
        it = store or FirestoreStore(PROJECT, COLLECTION)
        try:
            return await use(it)
        finally:
            await it.close()

    return asyncio.run(run())


def on(clock: ManualClock) -> FirestoreStore:
    return FirestoreStore(PROJECT, COLLECTION, clock=clock)


def look(emulator: Emulator, path: str) -> Any:
    """What the emulator itself says of a document or a collection."""
    url = f"http://{emulator.address}/v1/projects/{PROJECT}/databases/(default)/documents/{quote(path)}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.loads(answer.read())


def test_importing_the_driver_loads_no_sdk() -> None:
    code = "import sys, cloudq_gcp.firestore; print(sorted({'google', 'grpc', 'proto', 'requests'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | path())
    assert ran.stdout.strip() in ("[]", "['google']")  # 'google' alone is a namespace package that a .pth file may make


def path() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def test_making_a_store_connects_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:9")
    assert opened("firestore://project/cloudq").limits.value == 1_000_000
    assert opened("firestore://project/cloudq?overflow=gs://bucket/prefix&database=tasks").limits.value == 16 * 1024 * 1024


@pytest.mark.parametrize(
    "url",
    [
        "firestore://p",
        "firestore://p/",
        "firestore://p/a/b/c",
        "firestore://p/__a__",
        "firestore://p/a.b",
        "firestore://p/c?overflw=gs://b",
        "firestore://p/c?overflow=bucket",
        "firestore://p/c?overflow=s3://bucket",
        "firestore://p/c?overflow=gs:///prefix",
    ],
)
def test_a_wrong_url_is_refused_when_it_is_opened(url: str) -> None:
    with pytest.raises(ConfigError):
        opened(url)


def test_the_project_is_that_of_the_environment_where_the_url_names_none(firestore: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    key = unique()
    with_store(lambda store: store.put("pause", key, {}), opened(f"firestore:///{COLLECTION}"))
    assert "createTime" in look(firestore, f"{COLLECTION}/pause:{key}")
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT")
    with pytest.raises(ConfigError, match="project"):
        opened("firestore:///cloudq")


def test_databases_of_a_project_are_kept_apart(firestore: Emulator) -> None:
    key = unique()
    with_store(lambda store: store.put("task", key, {}), opened(f"firestore:///{COLLECTION}"))
    assert with_store(lambda store: store.get("task", key), opened(f"firestore:///{COLLECTION}?database=tasks")) is None


# Documents


def test_a_document_is_json_text_with_a_timestamp_for_the_ttl_policy(firestore: Emulator) -> None:
    key = unique("task")
    with_store(lambda store: store.put("task", key, {"n": 3.0, "text": "ü"}, ttl=60), on(ManualClock(1_800_000_000.25)))
    fields = look(firestore, f"{COLLECTION}/task:{key}")["fields"]
    assert fields.pop("token")["stringValue"]
    assert fields == {
        "value": {"stringValue": '{"n":3.0,"text":"\\u00fc"}'},
        "expires": {"timestampValue": "2027-01-15T08:01:00.250Z"},
    }


@pytest.mark.parametrize(
    ("key", "name"), [("a", "task:a"), ("a/b", "task:a.1b"), ("../x", "task:.0.0.1x"), ("__a__", "task:__a__"), ("~ %", "task:~ %")]
)
def test_where_a_document_lies_never_changes_between_versions_of_cloudq(firestore: Emulator, key: str, name: str) -> None:
    with_store(lambda store: store.put("task", key, {}))
    assert look(firestore, f"{COLLECTION}/{name}")["fields"]["value"] == {"stringValue": "{}"}


def test_a_member_is_a_document_and_none_is_written_twice(firestore: Emulator) -> None:
    key = unique()

    async def scenario(store: FirestoreStore) -> None:
        sizes = await asyncio.gather(*(store.add_member("chord", key, f"{number % 8}", ttl=60) for number in range(16)))
        assert max(sizes) == 8

    with_store(scenario)
    root = look(firestore, f"{COLLECTION}/chord#set:{key}")
    members = look(firestore, f"{COLLECTION}/chord#set:{key}/{COLLECTION}")["documents"]
    assert len(members) == 8
    for document in (root, *members):
        assert document["createTime"] == document["updateTime"]
        assert document["fields"]["expires"] == root["fields"]["expires"]


def test_deleting_a_set_leaves_no_member_behind(firestore: Emulator) -> None:
    key = unique()

    async def scenario(store: FirestoreStore) -> None:
        await asyncio.gather(*(store.add_member("chord", key, f"{number}") for number in range(5)))
        await store.delete("chord", key)

    with_store(scenario)
    assert look(firestore, f"{COLLECTION}/chord#set:{key}/{COLLECTION}") == {}


def test_a_set_that_never_expires_keeps_that_when_members_come_with_a_ttl(firestore: Emulator) -> None:
    clock = ManualClock()
    key = unique()

    async def scenario(store: FirestoreStore) -> None:
        await store.add_member("chord", key, "a")
        assert await store.add_member("chord", key, "b", ttl=5) == 2
        clock.advance(10)
        assert await store.members("chord", key) == {"a", "b"}
        assert await store.add_member("chord", key, "c") == 3

    with_store(scenario, on(clock))


def test_of_many_that_find_a_set_expired_one_starts_it_anew(firestore: Emulator) -> None:
    clock = ManualClock()
    key = unique()

    async def scenario(store: FirestoreStore) -> None:
        await store.add_member("chord", key, "0", ttl=5)
        clock.advance(5)
        sizes = await asyncio.gather(*(store.add_member("chord", key, f"{number}", ttl=5) for number in range(16)))
        assert sorted(sizes) == list(range(1, 17))
        assert await store.members("chord", key) == {f"{number}" for number in range(16)}

    with_store(scenario, on(clock))


def test_a_member_over_the_size_of_a_document_is_refused(firestore: Emulator) -> None:
    with pytest.raises(DocumentTooLarge, match="1 MiB"):
        with_store(lambda store: store.add_member("chord", unique(), "a" * 1_100_000))


@pytest.mark.parametrize("expect", ["", "x", "-", "5-", "abc-zz"])
def test_a_version_of_another_store_is_never_met(firestore: Emulator, expect: str) -> None:
    async def scenario(store: FirestoreStore) -> None:
        key = unique()
        await store.put("task", key, {"n": 1})
        with pytest.raises(Conflict) as caught:
            await store.put("task", key, {"n": 2}, expect=expect)
        assert caught.value.current is not None
        assert caught.value.current.value == {"n": 1}

    with_store(scenario)


# Requests


def test_a_task_takes_two_writes_and_no_read(wire: GrpcProxy) -> None:
    message = Message({"id": new_id(), "task": "add", "args": [2, 3]})

    async def scenario(store: FirestoreStore) -> None:
        claim = await records.claim(store, message, "q", owner="w", now=time.time(), until=time.time() + 60, ttl=3600)
        assert isinstance(claim, Claim)
        await claim.finish(states.SUCCESS, at=time.time(), value=5)

    with_store(scenario)
    assert wire.requests == {"Commit": 2}


def test_a_member_takes_a_read_a_write_and_a_count(wire: GrpcProxy) -> None:
    key = unique()

    async def scenario(store: FirestoreStore) -> None:
        assert await store.add_member("chord", key, "a") == 1
        assert wire.requests == {"BatchGetDocuments": 1, "Commit": 1}
        wire.reset()
        assert await store.add_member("chord", key, "b") == 2
        assert wire.requests == {"BatchGetDocuments": 1, "Commit": 1, "RunAggregationQuery": 1}

    with_store(scenario)


def test_a_big_read_asks_for_five_hundred_keys_at_a_time_and_for_each_once(wire: GrpcProxy) -> None:
    asked: list[int] = []

    def count(call: Call) -> None:
        from google.cloud.firestore_v1 import types

        asked.append(len(types.BatchGetDocumentsRequest.deserialize(call.body).documents))

    wire.decide = count
    keys = [f"{number}" for number in range(1100)]
    assert with_store(lambda store: store.get_many("chord", [*keys, *keys])) == [None] * 2200
    assert asked == [500, 500, 100]


@pytest.mark.parametrize("kind", KINDS)
def test_a_listing_is_one_query_of_a_page_and_what_has_expired_costs_another(wire: GrpcProxy, kind: str) -> None:
    start, clock = unique(), ManualClock()

    async def scenario(store: FirestoreStore) -> None:
        await asyncio.gather(*(store.put(kind, f"{start}{number}", {}, ttl=5 if number < 3 else None) for number in range(8)))
        wire.reset()
        page = await store.list(kind, prefix=start, limit=4)
        assert [key for key, _ in page.items] == [f"{start}{number}" for number in range(4)]
        assert wire.requests == {"RunQuery": 1}
        clock.advance(5)
        wire.reset()
        page = await store.list(kind, prefix=start, limit=4)
        assert [key for key, _ in page.items] == [f"{start}{number}" for number in range(3, 7)]
        assert wire.requests == {"RunQuery": 2}

    with_store(scenario, on(clock))


# Faults


def test_a_put_whose_answer_is_lost_does_not_conflict_with_itself(wire: GrpcProxy) -> None:
    key = unique()

    async def scenario(store: FirestoreStore) -> None:
        for number in (1, 2):
            document = await store.get("task", key)
            wire.reset()
            wire.decide = first(1, LOST, "Commit")
            version = await store.put("task", key, {"n": number}, expect=document.version if document else MISSING, ttl=60)
            assert wire.requests["Commit"] == 2
            document = await store.get("task", key)
            assert document is not None
            assert (document.value, document.version) == ({"n": number}, version)

    with_store(scenario)


def test_a_put_that_never_arrived_is_made_once(wire: GrpcProxy) -> None:
    wire.decide = first(1, Refuse("UNAVAILABLE"), "Commit")
    with_store(lambda store: store.put("task", unique(), {}, expect=MISSING))
    assert wire.requests == {"Commit": 2}


def test_a_conflict_after_a_lost_answer_is_with_the_writer_that_came_between(wire: GrpcProxy) -> None:
    key, between = unique(), threading.Event()

    def lose_first(call: Call) -> Refuse | None:
        if call.method == "Commit" and b"late" in call.body:
            if call.number == 1:
                return Refuse("UNAVAILABLE")
            between.wait(30)
        return None

    async def scenario(store: FirestoreStore) -> None:
        wire.decide = lose_first
        late = asyncio.create_task(store.put("task", key, {"by": "late"}, expect=MISSING))
        while not wire.requests["Commit"]:
            await asyncio.sleep(0.001)
        await store.put("task", key, {"by": "other"})
        between.set()
        with pytest.raises(Conflict) as caught:
            await late
        assert caught.value.current is not None
        assert caught.value.current.value == {"by": "other"}

    with_store(scenario)


def test_a_put_over_an_expired_document_that_firestore_deletes_just_then_succeeds(firestore: Emulator, wire: GrpcProxy) -> None:
    clock, key = ManualClock(), unique()

    def delete(call: Call) -> None:
        if call.method == "Commit" and call.number == 2:
            url = f"http://{firestore.address}/v1/projects/{PROJECT}/databases/(default)/documents/{COLLECTION}/task:{key}"
            urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=60).close()

    async def scenario(store: FirestoreStore) -> None:
        await store.put("task", key, {"n": 1}, ttl=5)
        clock.advance(5)
        wire.reset()
        wire.decide = delete
        await store.put("task", key, {"n": 2}, expect=MISSING)
        assert wire.requests["Commit"] == 3

    with_store(scenario, on(clock))


def test_a_precondition_that_never_holds_is_given_up(wire: GrpcProxy) -> None:
    wire.decide = lambda call: Refuse("FAILED_PRECONDITION") if call.method == "Commit" else None

    async def scenario(store: FirestoreStore) -> None:
        for call in (store.put("task", unique(), {}, expect=MISSING), store.add_member("chord", unique(), "a")):
            wire.reset()
            with pytest.raises(StoreUnavailable, match="try again"):
                await call
            assert wire.requests["Commit"] == 10

    with_store(scenario)


def test_a_member_whose_answer_is_lost_is_counted_once(wire: GrpcProxy) -> None:
    clock = ManualClock()
    key = unique()

    async def scenario(store: FirestoreStore) -> None:
        for _ in range(2):  # a set that is new, and one that has expired
            wire.reset()
            wire.decide = first(1, LOST, "Commit")
            assert await store.add_member("chord", key, "a", ttl=5) == 1
            wire.reset()
            assert await store.add_member("chord", key, "b", ttl=5) == 2
            assert await store.add_member("chord", key, "a", ttl=5) == 2
            assert await store.members("chord", key) == {"a", "b"}
            clock.advance(5)

    with_store(scenario, on(clock))


def test_a_read_that_breaks_in_the_middle_is_made_again_from_the_start(wire: GrpcProxy) -> None:
    start = unique()
    keys = [f"{start}{number}" for number in range(3)]

    async def scenario(store: FirestoreStore) -> None:
        for key in keys:
            await store.put("task", key, {})
        wire.reset()
        wire.decide = lambda call: Refuse("UNAVAILABLE", answers=2) if call.number == 1 else None
        found = await store.get_many("task", keys)
        assert len([document for document in found if document]) == 3
        assert [key for key, _ in (await store.list("task", prefix=start)).items] == keys
        assert wire.requests == {"BatchGetDocuments": 2, "RunQuery": 2}

    with_store(scenario)


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        (Refuse("NOT_FOUND", "The database (default) does not exist for project p"), StoreError, "no such database.*cloudq deploy"),
        (Refuse("PERMISSION_DENIED"), StoreError, "roles/datastore.user"),
        (Refuse("UNAUTHENTICATED"), StoreError, "credentials"),
        (Refuse("FAILED_PRECONDITION", "this is a database in Datastore mode"), StoreError, "Datastore mode"),
        (Refuse("INVALID_ARGUMENT", "odd"), StoreError, "odd"),
        (Refuse("DEADLINE_EXCEEDED"), StoreUnavailable, "DEADLINE_EXCEEDED"),
    ],
)
def test_an_error_of_google_becomes_ours_for_every_call(wire: GrpcProxy, fault: Refuse, error: type[StoreError], text: str) -> None:
    wire.decide = lambda call: fault

    async def scenario(store: FirestoreStore) -> None:
        calls: Sequence[Awaitable[Any]] = (
            store.get("task", "a"),
            store.get_many("task", ["a"]),
            store.put("task", "a", {}),
            store.put("task", "a", {}, expect=MISSING),
            store.add_member("chord", "a", "b"),
            store.members("chord", "a"),
            store.delete("task", "a"),
            store.list("task"),
        )
        for call in calls:
            with pytest.raises(StoreError, match=text) as caught:
                await call
            assert isinstance(caught.value, StoreUnavailable) == (error is StoreUnavailable)
            assert not isinstance(caught.value, Conflict)
            assert COLLECTION in str(caught.value)

    with_store(scenario)


def test_a_busy_firestore_is_asked_again_and_given_up_in_a_few_seconds(wire: GrpcProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    wire.decide = lambda call: Refuse("ABORTED", "too much contention")
    for patience in (0.5, 5.0, 20.0):
        monkeypatch.setattr("cloudq_gcp.client._PATIENCE", patience)
        with pytest.raises(StoreUnavailable, match="contention"):
            with_store(lambda store: store.put("task", "a", {}))
        if wire.requests["Commit"] >= 2:
            return
        wire.reset()  # the machine was held up for so long
    pytest.fail("it was never asked again")


def test_a_server_that_is_down_is_unavailable_within_a_few_seconds(firestore: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"127.0.0.1:{free_port()}")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="FIRESTORE_EMULATOR_HOST"):
        with_store(lambda store: store.list("task"))
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("method", ["Commit", "BatchGetDocuments"])
def test_a_server_that_never_answers_is_unavailable_in_time(wire: GrpcProxy, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr("cloudq_gcp.firestore._ANSWER", 0.5)
    wire.decide = lambda call: Hang()
    with pytest.raises(StoreUnavailable, match="DEADLINE_EXCEEDED"):
        with_store(lambda store: store.put("task", "a", {}) if method == "Commit" else store.get("task", "a"))
    assert wire.requests.keys() <= {method}  # where the machine is held up, the time may be over before it is asked
    assert wire.requests[method] <= 1


def test_missing_credentials_are_named(firestore: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIRESTORE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/key.json")
    with pytest.raises(ConfigError, match="credentials"):
        with_store(lambda store: store.get("task", "a"))


# The life of a store


def test_one_store_serves_one_loop_after_another(firestore: Emulator) -> None:
    store = opened(f"firestore:///{COLLECTION}")
    key = unique()
    with_store(lambda store: store.put("task", key, {"n": 1}), store)
    document = with_store(lambda store: store.get("task", key), store)
    assert document is not None
    assert document.value == {"n": 1}


def test_an_apps_child_after_a_fork_uses_a_client_of_its_own(firestore: Emulator) -> None:
    command = [sys.executable, "-W", "error", "-c", _FORK, f"firestore:///{COLLECTION}", unique()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | path(), check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "child True, then 3\n", "")


_FORK = """
import os, sys
from cloudq import CloudQ

app = CloudQ("forks", broker="memory://", store=sys.argv[1])

def add(member):
    return app.use_store(lambda store: store.add_member("chord", sys.argv[2], member))

assert add("a") == 1
pid = os.fork()
if pid == 0:
    size = add("b")
    app.close()
    os._exit(0 if size == 2 else 1)
_, status = os.waitpid(pid, 0)
print(f"child {status == 0}, then {add('c')}")
app.close()
"""


# Overflow

LARGE = {"text": "x" * 1_100_000}


def test_a_large_value_is_refused_with_the_option_that_takes_it(firestore: Emulator) -> None:
    with pytest.raises(DocumentTooLarge, match="overflow=gs://"):
        with_store(lambda store: store.put("task", "a", LARGE))


def test_the_largest_value_with_the_longest_key_fits(firestore: Emulator) -> None:
    key = "/" * 512
    value = {"text": "x" * (1_000_000 - len('{"text":""}'))}

    async def scenario(store: FirestoreStore) -> None:
        await store.put("schedule", key, value, ttl=60)
        document = await store.get("schedule", key)
        assert document is not None
        assert document.value == value

    with_store(scenario)


def test_a_large_value_lies_in_gcs_and_comes_back_by_every_read(firestore: Emulator, storage: StorageServer) -> None:
    key, bucket = unique(), storage.make_bucket()

    async def scenario(store: FirestoreStore) -> None:
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

    with_store(scenario, opened(f"firestore:///{COLLECTION}?overflow=gs://{bucket}/results"))
    (name,) = storage.objects(bucket)
    assert name.startswith("results/task/")
    assert json.loads(storage.read(bucket, name)) == LARGE
    with pytest.raises(StoreError, match="overflow="):
        with_store(lambda store: store.get("task", key))


def test_a_large_value_that_was_changed_or_deleted_is_an_error_and_never_a_value(firestore: Emulator, storage: StorageServer) -> None:
    key, bucket = unique(), storage.make_bucket()

    async def scenario(store: FirestoreStore) -> None:
        await store.put("task", key, LARGE)
        (name,) = storage.objects(bucket)
        storage.write(bucket, name, b'{"text":"forged"}')
        with pytest.raises(StoreError, match="SHA-256"):
            await store.get("task", key)
        storage.delete(bucket, name)
        with pytest.raises(StoreError, match="lifecycle"):
            await store.get("task", key)

    with_store(scenario, opened(f"firestore:///{COLLECTION}?overflow=gs://{bucket}"))


def test_a_missing_bucket_fails_the_put_before_the_document_is_written(firestore: Emulator, storage: StorageServer) -> None:
    key = unique()

    async def scenario(store: FirestoreStore) -> None:
        with pytest.raises(StoreError, match="no such bucket"):
            await store.put("task", key, LARGE)
        assert await store.get("task", key) is None

    with_store(scenario, opened(f"firestore:///{COLLECTION}?overflow=gs://{unique('absent')}"))


# An app


def test_an_app_over_a_lying_broker_runs_each_call_once_and_a_chords_body_once(firestore: Emulator) -> None:
    lies = Lies(**{**dict.fromkeys(Lies.__slots__, 0.0), "duplicate": 0.3, "ack_undone": 0.3})
    app = CloudQ("shop", broker=LyingBroker(MemoryBroker(), 7, lies), store=f"firestore:///{COLLECTION}")
    ran: list[str] = []

    @app.task
    def square(number: int) -> int:
        ran.append(f"square {number}")
        return number * number

    @app.task
    def total(numbers: list[int]) -> int:
        ran.append(f"total {len(numbers)}")
        return sum(numbers)

    @app.task
    def fail() -> None:
        ran.append("fail")
        raise ValueError("always")

    try:
        sum_of_squares = chord([square.s(number) for number in range(20)], total.s()).delay()
        failing = fail.delay()
        singles = [square.delay(number) for number in range(100, 110)]
        worker = Worker(app, WorkerOptions(concurrency=8, wait=0.2))
        worker.start()
        assert sum_of_squares.get(timeout=60) == sum(number * number for number in range(20))
        assert [single.get(timeout=60) for single in singles] == [number * number for number in range(100, 110)]
        until(lambda: failing.state == states.FAILURE, "the failure")
        until(lambda: worker.handled > 32, "more deliveries than calls")
        worker.stop()
        worker.join(60)
    finally:
        app.close()
    assert sorted(ran) == sorted(["total 20", "fail", *(f"square {number}" for number in [*range(20), *range(100, 110)])])
