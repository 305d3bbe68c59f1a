"""What could go wrong with a workflow and does not: crashes, duplicates that come late, forged messages, options, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloudq import CloudQ, Retry, TaskFailed, TaskRevoked, chain, group, states
from cloudq.broker import Delivery, Outgoing
from cloudq.clock import ManualClock
from cloudq.errors import ArgumentsError, DecodeError, DelayError, MessageTooLarge, StoreRequired
from cloudq.io import drive
from cloudq.letters import ALL, redrive
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.message import MAX_MEMBERS, decode, derived_id, parse
from cloudq.result import AsyncResult, GroupResult
from cloudq.runner import Runner
from cloudq.settle import settle
from cloudq.signature import Canvas, Signature
from cloudq.values import dumps
from cloudq.worker import Worker, WorkerOptions
from tests.unit.test_workflow import Shop


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL, "cloudq"):
        yield


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    yield shop
    shop.app.close()


@pytest.fixture
def slow() -> Iterator[Shop]:
    """A shop whose time passes only as the test says."""
    clock = ManualClock()
    shop = SlowShop(clock=clock, broker=MemoryBroker(clock=clock), store=MemoryStore(clock))
    yield shop
    shop.app.close()


class SlowShop(Shop):
    def drain(self) -> None:
        """Deliver what is due."""
        while found := take(self):
            for delivery in found:
                drive(self.app.broker.ack([delivery]))
                deliver(self, delivery.body)


def take(shop: Shop, queue: str = "default") -> list[Delivery]:
    return list(drive(shop.app.broker.receive(queue, max_messages=10, wait=0)))


def deliver(shop: Shop, body: str, *, receives: int = 1) -> None:
    """One delivery of a message, from claim to settling, with its copy staying wherever it is."""
    runner, now = Runner(shop.app), shop.app.clock.time()
    delivery = Delivery(queue="default", body=body, receipt=None, receives=receives, received=now, lease_until=now + 30)
    job = runner.admit(delivery)

    async def whole() -> None:
        if job.outcome is None:
            await runner.claim(job)
        await settle(shop.app, job, job.outcome or runner.run_isolated(job))

    shop.app.io.run(whole())


def letters(shop: Shop) -> list[dict[str, Any]]:
    return [parse(delivery.body) for delivery in take(shop, "default-dlq")]


# ---------------------------------------------------------------------- options


def test_an_error_link_is_called_once_also_where_one_signature_stands_in_many_places(shop: Shop) -> None:
    bad = shop.flaky.s(1)
    chain(bad, shop.flaky.s(), shop.flaky.s()).on_error(shop.tell.s()).delay()
    shop.drain()
    assert len(shop.told) == 1
    assert not bad.options, "what is added to a canvas is not added to the signatures that it was made of"
    group([bad] * 3).on_error(shop.tell.s()).delay()
    shop.drain()
    assert len(shop.told) == 4


def test_a_link_of_a_chain_is_called_with_its_end_only(shop: Shop) -> None:
    step = shop.quiet.s()
    chain(shop.quiet.s(1), step, step).link(shop.tell.si({"end": "reached"})).delay()
    shop.drain()
    assert shop.told == [{"end": "reached"}]


def test_an_error_link_of_a_chord_is_called_once_however_many_members_fail(shop: Shop) -> None:
    (group(shop.flaky.s(1), shop.add.s(1, 1), shop.flaky.s(2)) | shop.tsum.s()).on_error(shop.tell.s()).delay()
    shop.drain()
    assert [info["task"] for info in shop.told] == ["tsum"]
    assert "flaky" in shop.told[0]["reason"]


def test_links_given_to_a_call_of_a_canvas_are_added_to_those_it_has(shop: Shop) -> None:
    canvas = shop.add.s(1, 1) | shop.flaky.s().on_error(shop.tell.s())
    canvas.apply_async(link_error=shop.tell.s())
    shop.drain()
    assert len(shop.told) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda s: s.add.s(1, 1) | s.add.s(1),
        lambda s: group(s.add.s(1, 1), s.add.s(2, 2)),
        lambda s: group(s.add.s(1, 1), s.add.s(2, 2)) | s.tsum.s(),
    ],
)
def test_a_canvas_waits_for_the_commit_as_a_whole(make: Callable[[Shop], Canvas[Any]]) -> None:
    waiting: list[Callable[[], object]] = []
    shop = Shop(after_commit=waiting.append)
    result = make(shop).apply_async(after_commit=True)
    shop.drain()
    assert not shop.runs
    (send,) = waiting
    send()
    shop.drain()
    assert result.get(timeout=5)
    shop.app.close()


def test_a_batch_sends_canvases_at_its_end_and_not_at_all_after_an_error(shop: Shop) -> None:
    with shop.app.batch():
        result = (group(shop.add.s(1, 1), shop.add.s(2, 2)) | shop.tsum.s()).delay()
        assert not take(shop)
    with pytest.raises(ZeroDivisionError):
        _fail_in_a_batch(shop)
    shop.drain()
    assert result.get(timeout=5) == 6
    assert shop.runs == ["add", "add", "tsum"]


def _fail_in_a_batch(shop: Shop) -> None:
    with shop.app.batch():
        (shop.add.s(5, 5) | shop.add.s(1)).delay()
        raise ZeroDivisionError


def test_ids_that_the_caller_chose_are_those_of_the_results(shop: Shop) -> None:
    result = (shop.add.s(1, 1) | shop.add.s(2).set(task_id="end")).delay()
    members = group(shop.add.s(1, 1).set(task_id="one"), shop.add.s(2, 2), shop.add.s(0, 1) | shop.add.s(1).set(task_id="three"))
    plain = members.delay()
    body = (group(shop.add.s(1, 1).set(task_id="1"), shop.add.s(2, 2).set(task_id="2")).set(task_id="g") | shop.tsum.s()).delay()
    inner = ((shop.add.s(1, 1) | shop.add.s(1)).set(task_id="inner") | shop.add.s(1)).delay()
    shop.drain()
    assert result.id == "end"
    assert result.get(timeout=5) == 4
    assert isinstance(plain, GroupResult)
    assert [child.id for child in plain][::2] == ["one", "three"]
    assert plain.get(timeout=5) == [2, 4, 2]
    assert body.get(timeout=5) == 6
    assert inner.parent is not None
    assert (inner.parent.id, inner.parent.get(timeout=5), inner.get(timeout=5)) == ("inner", 3, 4)
    assert (group(shop.add.s(1, 1).set(task_id="x"), shop.add.s(1, 1)) | shop.tsum.s()).apply().get() == 4
    with pytest.raises(ArgumentsError, match="task_id"):
        group(shop.add.s(1, 1)).apply_async(task_id="not an id")


def test_expires_countdown_and_eta_of_steps_are_kept(slow: Shop) -> None:
    clock = slow.app.clock
    assert isinstance(clock, ManualClock)
    result = (slow.add.s(1, 1).set(countdown=60) | slow.add.s(1).set(countdown=100) | slow.add.s(1).set(expires=50)).delay()
    slow.drain()
    assert not slow.runs
    clock.advance(61)
    slow.drain()
    assert slow.runs == ["add"]
    clock.advance(101)
    late = (slow.add.s(1, 1) | slow.add.s(1).set(expires=0)).delay()
    slow.drain()
    assert result.get(timeout=5) == 4
    with pytest.raises(TaskFailed):
        late.get(timeout=5)


# ---------------------------------------------------------------------- duplicates and crashes


def _expired(slow: Shop, body: str) -> None:
    assert isinstance(slow.app.clock, ManualClock)
    slow.app.clock.advance(100)
    deliver(slow, body)


def _delivered_too_often(slow: Shop, body: str) -> None:
    deliver(slow, body, receives=50)


@pytest.mark.parametrize("late", [_expired, _delivered_too_often])
def test_a_late_copy_of_a_step_that_is_done_calls_no_error_link_and_ends_no_chain(slow: Shop, late: Callable[[Shop, str], None]) -> None:
    canvas = slow.add.s(1, 1).set(expires=60, link_error=slow.tell.s()) | slow.add.s(2).on_error(slow.tell.s())
    result = canvas.delay()
    (first,) = take(slow)
    drive(slow.app.broker.ack([first]))
    deliver(slow, first.body)
    (lost,) = take(slow)  # a worker has the next step, and nothing is known of it yet
    late(slow, first.body)
    assert result.state == states.PENDING
    slow.drain()
    assert result.get(timeout=5) == 4
    assert not slow.told
    assert not letters(slow)
    deliver(slow, lost.body)


@pytest.mark.parametrize(
    "make",
    [
        lambda s: s.add.s(1, 1) | s.add.s(1),
        lambda s: group(s.add.s(1, 1)) | s.tsum.s(),
        lambda s: s.flaky.s(1).on_error(s.tell.s()),
    ],
)
def test_what_follows_is_sent_once_more_for_a_copy_of_a_finished_step_and_not_for_each(
    slow: Shop, make: Callable[[Shop], Canvas[Any]]
) -> None:
    make(slow).delay()
    (first,) = take(slow)
    drive(slow.app.broker.ack([first]))
    for _ in range(5):
        deliver(slow, first.body)
    assert 1 <= len(take(slow)) <= 2


def test_a_late_copy_of_a_step_that_another_worker_runs_waits_for_its_end(slow: Shop) -> None:
    (slow.add.s(1, 1).set(expires=10, link_error=slow.tell.s()) | slow.add.s(2)).delay()
    (first,) = take(slow)
    runner, now = Runner(slow.app), slow.app.clock.time()
    job = runner.admit(Delivery(queue="default", body=first.body, receipt=None, receives=1, received=now, lease_until=now + 300))
    drive(runner.claim(job))
    _expired(slow, first.body)
    slow.drain()
    assert not slow.told


def test_a_crash_after_a_task_asked_to_be_ignored_leaves_nobody_waiting(shop: Shop) -> None:
    result = (shop.ignores.s(1) | shop.add.s(1)).delay()
    (first,) = take(shop)
    runner = Runner(shop.app)
    job = runner.admit(first)

    async def dies() -> None:
        await runner.claim(job)
        assert job.claim is not None
        await job.claim.finish(states.SUCCESS, at=1.0, reason="the task raised Ignore")

    shop.app.io.run(dies())
    drive(shop.app.broker.extend([first], 0))
    shop.drain()
    assert result.failed()


# ---------------------------------------------------------------------- what cannot be sent


def test_a_result_that_is_too_large_for_the_next_step_ends_the_chain_with_a_dead_letter_that_takes_it_on() -> None:
    shop = Shop(store=MemoryStore(value=8 << 20))

    @shop.app.task(name="big")
    def big(size: int) -> str:
        return "x" * size

    @shop.app.task(name="long")
    def long(text: str) -> int:
        return len(text)

    for canvas in (big.s(1 << 20) | long.s(), group(big.s(1 << 20) | long.s()) | shop.tsum.s()):
        result = canvas.delay()
        shop.drain()
        with pytest.raises(TaskFailed, match="cannot be sent"):
            result.get(timeout=5)
    assert [letter["task"] for letter in letters(shop)] == ["big", "big"]
    shop.app.close()


def test_a_next_step_whose_queue_is_missing_goes_on_once_it_is_there(shop: Shop) -> None:
    for number, canvas in enumerate((shop.add.s(1, 1) | shop.add.s(1), group(shop.add.s(1, 1), shop.add.s(0, 1)) | shop.tsum.s())):
        result = canvas.set(task_id=f"r{number}")
        (result | shop.add.s(0).set(queue=f"new{number}", task_id=f"q{number}")).delay()
        shop.drain()
        assert shop.app.result(f"q{number}").failed()
        shop.app.declare_queue(f"new{number}")
        shop.app.io.run(redrive(shop.app, "default-dlq", ALL))
        shop.drain()
        assert shop.app.result(f"q{number}").get(timeout=5) == 3
    body = group(shop.add.s(1, 1), shop.add.s(0, 1)) | shop.tsum.s().set(queue="new")
    result2 = body.delay()
    shop.drain()
    assert result2.failed()
    shop.app.declare_queue("new")
    shop.app.io.run(redrive(shop.app, "default-dlq", ALL))
    shop.drain()
    assert shop.app.result(result2.id).get(timeout=5) == 3


def test_a_result_that_the_store_does_not_take_is_a_dead_letter() -> None:
    shop = Shop(store=MemoryStore(value=10_000))

    @shop.app.task(name="big")
    def big() -> str:
        shop.runs.append("big")
        return "x" * 20_000

    result = big.delay()
    shop.drain()
    with pytest.raises(TaskFailed, match="cannot be kept"):
        result.get(timeout=5)
    assert shop.runs == ["big"]
    shop.app.close()


def test_chords_hidden_in_links_and_branches_need_a_store_at_the_call() -> None:
    shop = Shop(store=None)
    hidden = group(shop.add.s(1)) | shop.tsum.s()
    for call in (
        lambda: shop.add.apply_async((1, 1), link=hidden),
        lambda: shop.add.s(1, 1).on_error(shop.tell.s().set(link=hidden)).delay(),
        lambda: (shop.add.s(1, 1) | group(group(shop.add.s(1)) | shop.tsum.s(), shop.add.s(1))).delay(),
        lambda: (shop.add.s(1, 1) | shop.add.s(1).link(hidden)).delay(),
    ):
        with pytest.raises(StoreRequired, match="chord"):
            call()
    assert not take(shop)
    shop.app.close()


def test_a_worker_without_a_store_gives_up_what_leads_to_a_chord_before_it_runs() -> None:
    shop = Shop(store=None)
    step = {"task": "add", "queue": "default", "args": [1]}
    steps = [{"members": [[step]], "id": "g"}, {**step, "id": "end"}]
    drive(shop.app.broker.send("default", [Outgoing(body=dumps({"v": 1, "id": "a", "task": "add", "args": [1, 1], "next": steps}))]))
    shop.drain()
    assert not shop.runs
    assert "no store" in letters(shop)[0]["dead"]["reason"]
    shop.app.close()


def test_a_chord_that_is_linked_to_a_plain_call_gets_its_results(shop: Shop) -> None:
    shop.add.apply_async((1, 1), link=group(shop.add.s(1), shop.add.s(2)) | shop.tsum.s() | shop.add.s(0).set(task_id="end"))
    shop.flaky.apply_async((1,), link_error=shop.tell.s().set(link=group(shop.add.si(1, 1)) | shop.tsum.s().set(task_id="told")))
    shop.drain()
    assert shop.app.result("end").get(timeout=5) == 7
    assert shop.app.result("told").get(timeout=5) == 2


def test_delays_that_a_chord_cannot_outlive_are_refused_at_the_call(shop: Shop) -> None:
    member = shop.add.s(1).set(delay="10d")
    assert (member | shop.add.s(1).set(delay="10d")).delay(1).id
    assert (member | group(shop.add.s(1)) | shop.tsum.s()).delay(1).id
    for canvas in (
        group(member | shop.add.s(1).set(delay="10d")) | shop.tsum.s(),
        group(member) | shop.tsum.s().set(delay="10d"),
        shop.add.s(1) | group(group(member) | shop.tsum.s().set(delay="6d")) | shop.tsum.s(),
    ):
        with pytest.raises(DelayError, match="15 days"):
            canvas.delay(1)


def test_what_a_step_could_not_send_on_once_it_is_done_is_refused_at_the_call(shop: Shop) -> None:
    large = group(shop.add.s(number) for number in range(10_000))
    (shop.add.s(1, 1) | large).delay()  # it travels with the step before it
    for canvas, why in (
        (chain([shop.add.s(1, 1), *[shop.add.s(1)] * 20_000]), "add.*the broker takes"),
        (shop.add.s(1, 1) | group(shop.add.s(1)) | shop.tsum.s() | large, "follows a group of 1 .* the store"),
        (group(shop.add.s(1, 1) | group(shop.add.s(1)) | shop.tsum.s() | large), "follows a group of 1 .* the store"),
    ):
        with pytest.raises(MessageTooLarge, match=why):
            canvas.delay()
    assert len(take(shop)) == 1
    with pytest.raises(ArgumentsError, match=r"unheard.* JSON"):
        (group(shop.add.s(1, 1)) | Signature("unheard", [object()], app=shop.app)).delay()


def test_what_is_nested_a_hundred_deep_works_and_what_is_deeper_is_refused_at_the_call(shop: Shop) -> None:
    canvas: Canvas[Any] = shop.add.s(2)
    for _ in range(40):
        canvas = group(canvas) | shop.tsum.s()
    first = (shop.add.s(0, 0) | group(canvas) | shop.tsum.s()).delay()
    shop.drain()
    assert first.get(timeout=60) == 2
    linked = shop.add.s(1)
    for _ in range(90):
        linked = shop.add.s(1).link(linked)
    shop.add.s(1, 1).link(linked).delay()
    shop.drain()
    assert len(letters(shop)) == 0
    for _ in range(60):
        linked = shop.add.s(1).link(linked)
    with pytest.raises(ArgumentsError, match="nested"):
        shop.add.s(1, 1).link(linked).delay()
    with pytest.raises(ArgumentsError, match="nested"):
        (group(shop.add.s(1, 1)) | shop.tsum.s().link(linked)).delay()
    shop.add.s(1).link(linked.link(linked))
    with pytest.raises(ArgumentsError, match="nested"):
        linked.delay(1)
    for _ in range(60):
        canvas = group(canvas)
    canvas.delay(1)
    with pytest.raises(ArgumentsError, match="nested"):
        group(canvas)


# ---------------------------------------------------------------------- what others may send


BARE = {"v": 1, "id": "a", "task": "add", "args": [1, 2], "sent": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"join": {"chord": "c", "of": 2}},
        {"join": {"chord": "c", "index": 2, "of": 2}},
        {"join": {"chord": "c", "index": True, "of": 2}},
        {"join": {"chord": "c", "index": -1, "of": 2}},
        {"join": {"chord": "c", "index": 0, "of": 0}},
        {"join": {"chord": "c", "index": 0, "of": MAX_MEMBERS + 1}},
        {"join": {"chord": "", "index": 0, "of": 1}},
        {"join": []},
        {"results": {"chord": 5}},
        {"results": "c"},
        {"each": True},
        {"next": []},
        {"next": [{"task": "add", "queue": "default"}]},
        {"next": [{"members": [[]], "id": "x"}]},
        {"next": [{"members": [{}], "id": "x"}]},
        {"next": [{"task": "", "queue": "default", "id": "x"}]},
        {"link": [{"members": [[{"task": "add"}]]}]},
        {"link": [{"task": "add", "queue": "default", "next": [5]}]},
        {"link": [{"task": "add", "queue": "default", "each": True, "args": [5]}]},
    ],
)
def test_a_message_whose_workflow_is_malformed_is_not_read(fields: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        decode({**BARE, **fields})


def test_links_nested_without_end_are_refused_and_not_a_crash() -> None:
    link: dict[str, Any] = {"task": "add", "queue": "default"}
    for _ in range(20_000):
        link = {"task": "add", "queue": "default", "link": [link]}
    with pytest.raises(DecodeError, match="link"):
        decode({**BARE, "link": [link]})


def test_a_member_that_lies_about_how_many_there_are_does_not_start_the_body(shop: Shop) -> None:
    (group(shop.add.s(1, 1), shop.add.s(2, 2)) | shop.tsum.s()).apply_async(task_id="whole")
    chord = derived_id("whole", "step", 0)
    forgery = {"v": 1, "id": "x", "task": "add", "args": [5, 5], "join": {"chord": chord, "index": 0, "of": 1}}
    drive(shop.app.broker.send("default", [Outgoing(body=dumps(forgery))]))
    (*members, forged) = take(shop)
    drive(shop.app.broker.extend(members, 100))
    deliver(shop, forged.body)
    assert not take(shop)
    for member in members:
        deliver(shop, member.body)
    shop.drain()
    assert shop.app.result("whole").get(timeout=5) == 6


def test_each_that_is_false_is_an_ordinary_call(shop: Shop) -> None:
    drive(shop.app.broker.send("default", [Outgoing(body='{"v":1,"id":"x","task":"add","args":[5,5],"each":false}')]))
    shop.drain()
    assert shop.app.result("x").get(timeout=5) == 10


# ---------------------------------------------------------------------- results


def test_a_group_with_a_failed_member_is_ready_once_the_others_have_ended(shop: Shop) -> None:
    shop.app.declare_queue("later")
    result = group(shop.flaky.s(1), shop.add.s(1, 1).set(queue="later")).delay()
    assert isinstance(result, GroupResult)
    worker = Worker(shop.app, WorkerOptions(drain=True, wait=0.1, queues={"default": 1}))
    worker.start()
    worker.join(60)
    assert (result.ready(), result.failed(), result.waiting()) == (False, True, True)
    with pytest.raises(TaskFailed):
        result.get(timeout=5)
    shop.drain()
    first, second = result.get(timeout=5, propagate=False)
    assert isinstance(first, TaskFailed)
    assert second == 2
    assert result.ready()


def test_members_of_a_group_that_was_never_begun_say_so_and_succeed_once_it_is(shop: Shop) -> None:
    result = (shop.flaky.s(1) | group(shop.add.s(1), group(shop.add.s(2)))).apply_async(task_id="whole")
    shop.drain()
    assert isinstance(result, GroupResult)
    for each in (result, *result.children):
        assert each.ready()
        with pytest.raises(TaskFailed, match="not today"):
            each.get(timeout=5)
    assert len(result.get(timeout=5, propagate=False)) == 2
    shop.broken = False
    shop.app.io.run(redrive(shop.app, "default-dlq", ALL))
    shop.drain()
    canvas = shop.flaky.s(1) | group(shop.add.s(1), group(shop.add.s(2)))
    again = _handle(shop, canvas, "whole")
    assert again.get(timeout=5) == [2, [3]]


def _handle(shop: Shop, canvas: Canvas[Any], id: str) -> AsyncResult[Any]:
    from cloudq.launch import handle

    return handle(shop.app, canvas, id)


def test_a_revoked_workflow_is_revoked_and_is_taken_out_of_the_timer(slow: Shop) -> None:
    clock, timer = slow.app.clock, slow.app.timer
    assert isinstance(clock, ManualClock)
    assert timer is not None
    for canvas in (
        slow.add.s(1, 1).set(delay="3d") | slow.add.s(1),
        group(slow.add.s(1, 1), slow.add.s(2, 2)).set(delay="3d"),
        group(slow.add.s(1, 1).set(delay="3d"), slow.add.s(2, 2)) | slow.tsum.s(),
    ):
        result = canvas.delay()
        result.revoke()
        begun = (derived_id(result.id, "step", 0), derived_id(result.id, 0), derived_id(result.id, 1))
        assert not any(drive(timer.cancel(id)) for id in begun)
        slow.drain()
        with pytest.raises(TaskRevoked):
            result.get(timeout=5)
    assert not slow.runs


def test_a_step_that_comes_weeks_later_still_finds_its_workflow_revoked(slow: Shop) -> None:
    clock = slow.app.clock
    assert isinstance(clock, ManualClock)
    result = (slow.add.s(1, 1) | slow.add.s(1).set(delay="20d")).delay()
    slow.drain()
    assert slow.runs == ["add"]
    slow.app.revoke(result.id)
    clock.advance(21 * 86400)
    slow.drain()
    assert slow.runs == ["add"]


def test_an_eager_group_can_be_revoked_and_forgotten_without_a_store() -> None:
    shop = Shop(store=None)
    result = group(shop.add.s(1, 1), group(shop.add.s(2, 2))).apply()
    result.revoke()
    result.forget()
    assert result.get() == [2, [4]]
    shop.app.close()


def test_a_retry_of_a_member_and_of_a_body_changes_nothing() -> None:
    shop = Shop()
    tries: list[str] = []

    @shop.app.task(name="second", retry=Retry(max_retries=3, delay=0))
    def second(value: Any) -> Any:
        tries.append("try")
        if len(tries) % 2:
            raise ValueError("once more")
        return value

    result = (group(second.s(5), shop.add.s(1, 1)) | second.s() | shop.tsum.s()).delay()
    shop.drain()
    assert result.get(timeout=5) == 7
    assert len(tries) == 4
    shop.app.close()


def test_ten_thousand_members_come_to_their_list(shop: Shop) -> None:
    app: CloudQ = shop.app
    result = (group(shop.quiet.s(number) for number in range(10_000)) | shop.tsum.s()).delay()
    shop.drain()
    assert result.get(timeout=5) == sum(range(10_000))
    assert app.store is not None
