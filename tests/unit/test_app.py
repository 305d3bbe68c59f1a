"""The app registers tasks, routes and sends calls, and opens its seams on first use."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cloudq import CloudQ, Middleware, Queue, shared_task, states
from cloudq.broker import Delivery, Outgoing, SendError
from cloudq.clock import ManualClock
from cloudq.errors import (
    ArgumentsError,
    BatchSendError,
    BrokerUnavailable,
    ConfigError,
    DuplicateTask,
    NotBound,
    StoreRequired,
    StoreUnavailable,
    UnknownTask,
)
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.message import Message
from cloudq.store import StoreLimits


def _app(**settings: Any) -> CloudQ:
    return CloudQ("shop", **{"broker": MemoryBroker(), "clock": ManualClock(), **settings})


def _bodies(app: CloudQ, queue: str = "default") -> list[dict[str, Any]]:
    found: list[Delivery] = []
    while batch := asyncio.run(app.broker.receive(queue, max_messages=10, wait=0)):
        found += batch
    return [json.loads(each.body) for each in found]


def _add(app: CloudQ, **options: Any) -> Any:
    @app.task(name="add", **options)
    def add(x: int, y: int) -> int:
        return x + y

    return add


# ---------------------------------------------------------------------------------------------- registry


def test_a_call_that_returned_is_in_its_queue() -> None:
    app = _app()
    result = _add(app).delay(1, 2)
    (body,) = _bodies(app)
    assert (body["id"], body["task"], body["args"]) == (result.id, "add", [1, 2])


def test_nothing_connects_before_the_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDQ_BROKER", "nosuch://here")
    app = CloudQ("lazy")
    _add(app)
    with pytest.raises(ConfigError, match="nosuch"):
        _ = app.broker


def test_settings_come_from_the_environment_and_the_code_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDQ_BROKER", "nosuch://")
    monkeypatch.setenv("CLOUDQ_STORE", "memory://")
    app = CloudQ("env", broker="memory://")
    assert isinstance(app.broker, MemoryBroker)
    assert isinstance(app.store, MemoryStore)


def test_two_functions_with_one_name_are_refused_naming_both() -> None:
    app = _app()
    _add(app)

    def other() -> None: ...

    with pytest.raises(DuplicateTask, match=r"_add.*other"):
        app.task(name="add")(other)


def test_the_same_definition_may_be_imported_twice() -> None:
    app = _app()
    assert _add(app).name == _add(app).name == "add"


def test_an_unknown_task_is_named_with_the_way_out() -> None:
    with pytest.raises(UnknownTask, match="include"):
        _app()["nope"]


def test_an_unknown_setting_is_refused_naming_the_known() -> None:
    with pytest.raises(ConfigError, match=r"no setting brokr.*default_queue"):
        _app(brokr="x")
    with pytest.raises(ConfigError):
        CloudQ("")


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    return module


def test_a_shared_task_is_bound_by_include_and_copied_for_a_second_app() -> None:
    @shared_task(name="library.work")
    def work() -> int:
        return 1

    with pytest.raises(NotBound, match="include"):
        work.delay()
    first, second = _app(), _app()
    module = _module("library", work=work, other=3)
    first.include(module)
    first.include(module)
    second.include(module)
    assert first["library.work"].app is first
    assert second["library.work"].app is second
    second["library.work"].delay()
    assert len(_bodies(second)) == 1
    assert _bodies(first) == []


def test_include_and_autodiscover_import_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, content in (("cq_one", "from cloudq import task\n@task\ndef one(): pass\n"), ("cq_two", None)):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        if content:
            (tmp_path / package / "tasks.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    app = CloudQ("found", broker=MemoryBroker(), include=["cq_one.tasks"])
    assert not app.tasks
    app.load()
    assert list(app.tasks) == ["cq_one.tasks.one"]
    other = _app()
    other.autodiscover_tasks(["cq_one", "cq_two"])
    assert list(other.tasks) == ["cq_one.tasks.one"]
    with pytest.raises(ConfigError, match="cq_three"):
        other.autodiscover_tasks(["cq_three"])
    for name in ("cq_one", "cq_one.tasks", "cq_two"):
        sys.modules.pop(name, None)


# ---------------------------------------------------------------------------------------------- queues and routes


def test_queues_are_declared_by_tasks_routes_and_names_with_their_dead_letter_queues() -> None:
    app = _app(queues=["a", Queue(name="b", dead_letter="b-graveyard")], task_routes={"x.*": "routed", "y": {"queue": "other"}})
    _add(app, queue="own")
    assert {"default", "a", "b", "routed", "other", "own"} == set(app.queues)
    assert app.dead_letter_queue("b") == "b-graveyard"
    assert app.dead_letter_queue("a") == "a-dlq"
    assert app.dead_letter_queue("orders.fifo") == "orders-dlq.fifo"
    broker = app.broker
    assert isinstance(broker, MemoryBroker)
    assert {"own", "own-dlq", "b-graveyard"} <= set(broker.queues())
    app.declare_queue("later")
    assert "later-dlq" in broker.queues()


def test_the_calls_queue_wins_over_the_tasks_the_tasks_over_the_routes() -> None:
    app = _app(task_routes={"add": "routed"}, queues=["call", "own"])
    plain = _add(app)
    plain.delay(1, 1)
    plain.options(queue="call").delay(2, 2)

    @app.task(name="add.own", queue="own")
    def own() -> None: ...

    own.delay()
    assert [len(_bodies(app, queue)) for queue in ("routed", "call", "own", "default")] == [1, 1, 1, 0]


# ---------------------------------------------------------------------------------------------- many at once


def test_send_many_checks_every_call_before_it_sends_the_first() -> None:
    app = _app()
    add = _add(app)
    with pytest.raises(ArgumentsError):
        app.send_many([add.s(1, 2), add.s("x", 2)])
    assert _bodies(app) == []
    assert [type(each).__name__ for each in app.send_many(add.s(i, i) for i in range(25))] == ["AsyncResult"] * 25
    assert [body["args"][0] for body in _bodies(app)] == list(range(25))


def test_a_batch_sends_at_its_end_and_nothing_when_it_is_left_by_an_error() -> None:
    app = _app()
    add = _add(app)
    with app.batch():
        result = add.delay(1, 1)
        with app.batch():
            add.delay(2, 2)
        app.send_many([add.s(3, 3)])
        assert asyncio.run(app.broker.stats("default")).ready == 0
    bodies = _bodies(app)
    assert [body["args"][0] for body in bodies] == [1, 2, 3]
    assert bodies[0]["id"] == result.id

    def left_by_an_error() -> None:
        with app.batch():
            add.delay(1, 1)
            app.send_many([add.s(2, 2)])
            raise KeyError

    with pytest.raises(KeyError):
        left_by_an_error()
    assert _bodies(app) == []


def test_an_async_batch_does_the_same() -> None:
    app = _app()
    add = _add(app)

    async def left_by_an_error() -> None:
        async with app.abatch():
            await add.adelay(1, 1)
            raise KeyError

    async def scenario() -> None:
        async with app.abatch():
            await asyncio.gather(*(add.adelay(i, i) for i in range(3)))
            await app.asend_many([add.s(3, 3)])
            assert (await app.broker.stats("default")).ready == 0
        assert (await app.broker.stats("default")).ready == 4
        with pytest.raises(KeyError):
            await left_by_an_error()
        assert (await app.broker.stats("default")).ready == 4

    asyncio.run(scenario())


def test_a_call_after_the_batch_by_a_task_that_inherited_it_is_sent_all_the_same() -> None:
    app = _app()
    add = _add(app)

    async def scenario() -> None:
        over = asyncio.Event()

        async def later() -> None:
            await over.wait()
            await add.adelay(9, 9)
            async with app.abatch():
                await add.adelay(10, 10)

        async with app.abatch():
            task = asyncio.create_task(later())
        over.set()
        await task

    asyncio.run(scenario())
    assert [body["args"][0] for body in _bodies(app)] == [9, 10]


class Refusing(MemoryBroker):
    async def send(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
        refused = [SendError("no") if '"args":[13' in message.body else None for message in messages]
        accepted = [message for message, error in zip(messages, refused, strict=True) if error is None]
        if accepted:
            await super().send(queue, accepted)
        return refused


def test_refused_messages_are_reported_by_their_index_with_a_result_for_each() -> None:
    app = _app(broker=Refusing(), store=MemoryStore())
    add = _add(app)
    with pytest.raises(BatchSendError, match="1 of 20") as caught:
        app.send_many([add.s(i, i) for i in range(20)])
    assert set(caught.value.failed) == {13}
    assert len(caught.value.results) == 20
    assert len(_bodies(app)) == 19
    assert caught.value.results[12].state == states.QUEUED
    assert caught.value.results[13].state == states.PENDING
    with pytest.raises(BatchSendError), app.batch():
        add.delay(13, 1)


def test_a_local_batch_repeats_only_the_entries_that_failed() -> None:
    class Flaky(MemoryBroker):
        faults = 1

        async def send(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
            if self.faults and len(messages) > 1:
                self.faults -= 1
                await super().send(queue, messages[1:])
                return [SendError("slow down", retryable=True), *[None] * (len(messages) - 1)]
            return await super().send(queue, messages)

    app = _app(broker=Flaky())
    add = _add(app)
    app.send_many([add.s(i, i) for i in range(5)])
    assert sorted(body["args"][0] for body in _bodies(app)) == list(range(5))


# ---------------------------------------------------------------------------------------------- after commit


class Transaction:
    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def on_commit(self, call: Callable[[], None]) -> None:
        self.waiting.append(call)

    def commit(self) -> None:
        for call in self.waiting:
            call()
        self.waiting = []


def test_after_commit_sends_at_the_commit_and_never_after_a_rollback() -> None:
    transaction = Transaction()
    app = _app(after_commit=transaction.on_commit)
    add = _add(app)
    result = add.delay_on_commit(1, 2)
    with pytest.raises(ArgumentsError):
        add.delay_on_commit("x", 2)
    assert _bodies(app) == []
    transaction.commit()
    assert [body["id"] for body in _bodies(app)] == [result.id]
    add.options(after_commit=True).delay(1, 2)
    transaction.waiting = []  # rolled back
    assert _bodies(app) == []


def test_after_commit_holds_back_also_within_send_many() -> None:
    transaction = Transaction()
    app = _app(after_commit=transaction.on_commit)
    add = _add(app)
    app.send_many([add.s(1, 1).set(after_commit=True), add.s(2, 2)])
    assert [body["args"][0] for body in _bodies(app)] == [2]
    transaction.commit()
    assert [body["args"][0] for body in _bodies(app)] == [1]


def test_many_calls_after_a_commit_are_sent_together() -> None:
    hooks: list[Callable[[], None]] = []
    app = _app(after_commit=hooks.append)
    add = _add(app)
    app.send_many(add.s(n, n).set(after_commit=True) for n in range(20))
    assert len(hooks) == 1
    assert _bodies(app) == []
    hooks[0]()
    assert [body["args"][0] for body in _bodies(app)] == [*range(20)]


def test_after_commit_without_its_hook_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match="on_commit"):
        _add(_app()).delay_on_commit(1, 2)


# ---------------------------------------------------------------------------------------------- what is recorded


class Down(MemoryStore):
    async def put(self, *args: Any, **kwargs: Any) -> str:
        raise StoreUnavailable("down")


def test_a_store_that_is_down_does_not_fail_an_accepted_call() -> None:
    app = _app(store=Down())
    add = _add(app)
    add.delay(1, 1)
    asyncio.run(add.adelay(2, 2))
    app.send_many([add.s(3, 3), add.s(4, 4)])
    assert len(_bodies(app)) == 4


def test_a_store_that_is_slow_does_not_fail_an_accepted_batch() -> None:
    class Slow(MemoryStore):
        @property
        def limits(self) -> StoreLimits:
            return super().limits._replace(local=False)

        async def put(self, *args: Any, **kwargs: Any) -> str:
            await asyncio.sleep(60)
            raise AssertionError

    app = _app(store=Slow(), send_timeout=0.05)
    add = _add(app)
    app.send_many([add.s(1, 1), add.s(2, 2)])
    add.delay(3, 3)
    assert len(_bodies(app)) == 3
    app.close()


def test_queued_is_noted_unless_the_result_is_ignored() -> None:
    app = _app(store=MemoryStore())
    add = _add(app)
    assert add.delay(1, 1).state == states.QUEUED
    assert add.options(ignore_result=True).delay(1, 1).state == states.PENDING
    assert all(each.state == states.QUEUED for each in app.send_many([add.s(1, 1), add.s(2, 2)]))
    untracked = _app(store=MemoryStore(), track_queued=False)
    assert _add(untracked).delay(1, 1).state == states.PENDING


def test_what_needs_a_store_says_so() -> None:
    app = _app()
    result = _add(app).delay(1, 1)
    with pytest.raises(StoreRequired, match="CLOUDQ_STORE"):
        _ = result.state


# ---------------------------------------------------------------------------------------------- hooks, ends


def test_before_send_may_change_a_message_and_after_send_sees_it_accepted() -> None:
    seen: list[str] = []

    class Stamp(Middleware):
        def before_send(self, message: Message, queue: str) -> Message:
            return message.copy(headers={**message.headers, "stamp": queue})

        def after_send(self, message: Message, queue: str) -> None:
            seen.append(message.headers["stamp"])
            raise ValueError("goes no further")

    app = _app(middleware=[Stamp()])
    add = _add(app)
    add.delay(1, 1)
    app.send_many([add.s(2, 2)])
    asyncio.run(add.adelay(3, 3))
    assert seen == ["default"] * 3
    assert all(body["headers"] == {"stamp": "default"} for body in _bodies(app))


def test_a_call_that_was_not_accepted_calls_no_after_send() -> None:
    seen: list[str] = []

    class Watch(Middleware):
        def after_send(self, message: Message, queue: str) -> None:
            seen.append(message.id)

    class Gone(MemoryBroker):
        async def send(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
            raise BrokerUnavailable("gone")

    app = _app(broker=Gone(), middleware=[Watch()])
    with pytest.raises(BrokerUnavailable):
        _add(app).delay(1, 1)
    assert seen == []


def test_send_task_needs_no_code_and_checks_that_values_are_json() -> None:
    app = _app()
    app.send_task("far.away", [1], {"k": "v"}, task_id="mine")
    (body,) = _bodies(app)
    assert (body["id"], body["task"], body["args"], body["kwargs"]) == ("mine", "far.away", [1], {"k": "v"})
    with pytest.raises(ArgumentsError, match="JSON"):
        app.send_task("far.away", [object()])


def test_an_app_can_be_used_again_after_close() -> None:
    app = _app(store=MemoryStore())
    add = _add(app)
    add.delay(1, 1)
    app.close()
    app.close()
    add.delay(2, 2)
    assert app.use_broker(lambda broker: broker.stats("default")).ready == 2
    app.close()
    add.delay(3, 3)
    assert len(_bodies(app)) == 3


@pytest.fixture
def many_threads() -> Callable[[Callable[[], object]], None]:
    def run(call: Callable[[], object]) -> None:
        errors: list[BaseException] = []
        gate = threading.Barrier(8)

        def one() -> None:
            gate.wait()
            try:
                call()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors

    return run


def test_the_first_use_by_many_threads_at_once_opens_one_of_each(many_threads: Callable[[Callable[[], object]], None]) -> None:
    app = CloudQ("threads", broker="memory://", store="memory://")
    add = _add(app)
    seams: set[int] = set()

    def use() -> None:
        add.delay(1, 1)
        seams.add(id(app.broker))
        seams.add(id(app.store))

    many_threads(use)
    assert len(seams) == 2
    assert len(_bodies(app)) == 8
    app.close()
