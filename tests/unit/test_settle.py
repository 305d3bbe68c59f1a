"""Settling writes in an order whose interruption leads to a repetition, and never to a loss."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cloudq import CloudQ, Ignore, Reject, Retry, records, states
from cloudq import settle as module
from cloudq.broker import Delivery, LeaseLost, Outgoing, SendError, SettleError
from cloudq.clock import ManualClock
from cloudq.errors import BrokerUnavailable, StoreUnavailable
from cloudq.io import drive
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.outcome import Again, Done, Later
from cloudq.runner import Job, Runner
from cloudq.settle import Verdict, settle, settle_repeatedly


class Crash(BaseException):
    """The process dies here."""


class Steps:
    """Records each writing call to a seam; dies after the ``dies``-th, which has been done."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.dies: int | None = None

    def __call__(self, step: str) -> None:
        self.taken.append(step)
        if self.dies is not None and len(self.taken) > self.dies:
            raise Crash


class SteppedBroker(MemoryBroker):
    steps: Steps

    async def send(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
        answers = await super().send(queue, messages)
        self.steps(f"send {queue}")
        return answers

    async def ack(self, deliveries: Sequence[Delivery]) -> Sequence[SettleError | None]:
        answers = await super().ack(deliveries)
        self.steps("ack")
        return answers

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[SettleError | None]:
        answers = await super().extend(deliveries, seconds)
        self.steps(f"extend {seconds:g}")
        return answers


class SteppedStore(MemoryStore):
    steps: Steps

    async def put(self, kind: str, key: str, value: Any, **kwargs: Any) -> str:
        version = await super().put(kind, key, value, **kwargs)
        self.steps(f"put {value['state']}")
        return version


class World:
    """An app on recorded seams, and a host that takes one delivery at a time."""

    def __init__(self, *, store: bool = True) -> None:
        self.clock = ManualClock()
        self.steps = Steps()
        self.broker = SteppedBroker(clock=self.clock)
        self.store = SteppedStore(clock=self.clock)
        self.broker.steps = self.store.steps = self.steps
        self.runs: Counter[str] = Counter()
        self.told: list[Any] = []
        self.app = CloudQ(
            "settle",
            broker=self.broker,
            store=self.store if store else None,
            clock=self.clock,
            queues=["q", "after"],
            default_queue="q",
            track_queued=False,
        )

        @self.app.task(name="after", queue="after")
        def after(value: Any) -> None:
            self.runs["after"] += 1
            self.told.append(value)

        self.after = after
        assert self.app.broker is self.broker  # opened: its queues are there

    def take(self, queue: str = "q") -> tuple[Job, Runner] | None:
        found = drive(self.broker.receive(queue, max_messages=1, wait=0))
        if not found:
            return None
        runner = Runner(self.app)
        return runner.admit(found[0]), runner

    def host(self, queue: str = "q") -> bool:
        """Handle one delivery as a host does; false where there is none."""
        taken = self.take(queue)
        if taken is None:
            return False
        job, runner = taken
        if job.outcome is None:
            drive(runner.claim(job))
        outcome = job.outcome if job.outcome is not None else runner.run_isolated(job)
        if asyncio.run(settle(self.app, job, outcome)) is Verdict.ACK:
            drive(self.broker.ack([job.delivery]))
        return True

    def until_quiet(self) -> None:
        """Other processes take over, for as long as messages come back."""
        for _ in range(200):
            if not any([self.host("q"), self.host("after")]):
                stats = [drive(self.broker.stats(queue)) for queue in ("q", "after")]
                if not any(each.ready or each.in_flight or each.delayed for each in stats):
                    return
                self.clock.advance(31)
        raise AssertionError("it never became quiet")

    def dead(self, queue: str = "q-dlq") -> list[dict[str, Any]]:
        found = drive(self.broker.receive(queue, max_messages=10, wait=0))
        return [json.loads(each.body) for each in found]

    def state(self, id: str) -> str:
        return self.app.result(id).state


def _succeed(world: World) -> str:
    @world.app.task(name="t")
    def t() -> int:
        world.runs["t"] += 1
        return 7

    return t.options(task_id="id", link=world.after.s()).delay().id


def _retry_then_succeed(world: World) -> str:
    @world.app.task(name="t", retry=Retry(max_retries=3, delay=5, jitter=False))
    def t() -> int:
        world.runs["t"] += 1
        if world.runs["t"] == 1:
            raise ValueError("once")
        return 7

    return t.options(task_id="id", link=world.after.s()).delay().id


def _fail(world: World) -> str:
    @world.app.task(name="t")
    def t() -> int:
        world.runs["t"] += 1
        raise ValueError("always")

    return t.options(task_id="id", link_error=world.after.s()).delay().id


def _reject(world: World) -> str:
    @world.app.task(name="t")
    def t() -> None:
        world.runs["t"] += 1
        raise Reject("not mine")

    return t.options(task_id="id", link_error=world.after.s()).delay().id


def _ignore(world: World) -> str:
    @world.app.task(name="t")
    def t() -> None:
        world.runs["t"] += 1
        raise Ignore

    return t.options(task_id="id", link=world.after.s()).delay().id


def _expire(world: World) -> str:
    @world.app.task(name="t")
    def t() -> None:
        world.runs["t"] += 1

    id = t.options(task_id="id", expires=1, link_error=world.after.s()).delay().id
    world.clock.advance(2)
    return id


def _revoke(world: World) -> str:
    id = _succeed(world)
    world.app.result(id).revoke()
    return id


ORDER: list[tuple[Callable[[World], str], list[str], str]] = [
    (_succeed, ["put STARTED", "put SUCCESS", "send after", "ack"], states.SUCCESS),
    (_retry_then_succeed, ["put STARTED", "send q", "put RETRY", "ack"], states.RETRY),
    (_fail, ["put STARTED", "send q-dlq", "put FAILURE", "send after", "ack"], states.FAILURE),
    (_reject, ["put STARTED", "send q-dlq", "put DEAD", "send after", "ack"], states.DEAD),
    (_ignore, ["put STARTED", "put SUCCESS", "ack"], states.SUCCESS),
    (_expire, ["put EXPIRED", "send after", "ack"], states.EXPIRED),
    (_revoke, ["put REVOKED", "ack"], states.REVOKED),
]


@pytest.mark.parametrize(("scenario", "steps", "state"), ORDER, ids=lambda each: getattr(each, "__name__", ""))
def test_each_outcome_is_made_durable_in_its_order(scenario: Callable[[World], str], steps: list[str], state: str) -> None:
    world = World()
    id = scenario(world)
    world.steps.taken.clear()
    assert world.host()
    assert world.steps.taken == steps
    assert world.state(id) == state


CRASHES = [(scenario, dies) for scenario, steps, _ in ORDER for dies in range(len(steps))]


@pytest.mark.parametrize(("scenario", "dies"), CRASHES, ids=lambda each: getattr(each, "__name__", str(each)))
def test_a_crash_after_any_step_loses_nothing(scenario: Callable[[World], str], dies: int) -> None:
    world = World()
    id = scenario(world)
    world.steps.taken.clear()
    world.steps.dies = dies
    with pytest.raises(Crash):
        world.host()
    world.steps.dies = None
    world.until_quiet()
    expected = {_ignore: states.SUCCESS, _expire: states.EXPIRED, _revoke: states.REVOKED, _fail: states.FAILURE, _reject: states.DEAD}
    assert world.state(id) == expected.get(scenario, states.SUCCESS)
    linked = 0 if scenario in (_ignore, _revoke) else 1
    assert world.runs["after"] == linked, "a link is called once, however often it is sent"
    assert len(world.dead()) >= (1 if scenario in (_fail, _reject) else 0)
    assert world.runs["t"] <= 3
    if scenario is _expire:
        assert world.runs["t"] == 0


@pytest.mark.parametrize("dies", range(4))
def test_work_known_finished_is_not_run_again_after_a_crash(dies: int) -> None:
    world = World()
    _succeed(world)
    world.steps.taken.clear()
    world.steps.dies = dies
    with pytest.raises(Crash):
        world.host()
    world.steps.dies = None
    world.until_quiet()
    assert world.runs["t"] == 1
    assert world.told == [7]


def test_a_duplicate_of_finished_work_sends_the_same_follow_ups_again() -> None:
    world = World()
    _succeed(world)
    (body,) = [drive(world.broker.receive("q", max_messages=1, wait=0))[0].body]
    drive(world.broker.send("q", [Outgoing(body=body), Outgoing(body=body)]))
    assert world.host()
    assert world.host()
    sent = drive(world.broker.receive("after", max_messages=10, wait=0))
    assert len(sent) == 2
    assert len({json.loads(each.body)["id"] for each in sent}) == 1
    assert world.runs["t"] == 1


@pytest.mark.parametrize(("scenario", "queue"), [(_retry_then_succeed, "q"), (_fail, "q-dlq")], ids=["again", "dead"])
def test_while_the_store_is_away_nothing_is_sent_twice(
    scenario: Callable[[World], str], queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_PAUSE", 0.001)
    world = World()
    id = scenario(world)
    taken = world.take()
    assert taken is not None
    job, runner = taken
    drive(runner.claim(job))
    outcome = runner.run_isolated(job)
    put, away = world.store.put, [3]

    async def fails(*args: Any, **kwargs: Any) -> str:
        if away[0]:
            away[0] -= 1
            raise StoreUnavailable("it is away")
        return await put(*args, **kwargs)

    monkeypatch.setattr(world.store, "put", fails)
    world.steps.taken.clear()
    assert asyncio.run(settle_repeatedly(world.app, job, outcome, tries=5)) is Verdict.ACK
    assert world.steps.taken.count(f"send {queue}") == 1
    assert world.state(id) in (states.RETRY, states.FAILURE)


def test_an_ordered_message_whose_lease_cannot_be_set_just_now_loses_one_attempt_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PAUSE", 0.001)
    world = World()

    @world.app.task(name="t", retry=Retry(max_retries=3, delay=5, jitter=False))
    def t() -> None:
        raise ValueError("once")

    t.options(task_id="id", ordering_key="k").delay()
    taken = world.take()
    assert taken is not None
    job, runner = taken
    drive(runner.claim(job))
    outcome = runner.run_isolated(job)
    extend, away = world.broker.extend, [3]

    async def fails(deliveries: Sequence[Delivery], seconds: float) -> Sequence[SettleError | None]:
        if away[0]:
            away[0] -= 1
            raise BrokerUnavailable("it is away")
        return await extend(deliveries, seconds)

    monkeypatch.setattr(world.broker, "extend", fails)
    assert asyncio.run(settle_repeatedly(world.app, job, outcome, tries=5)) is Verdict.KEEP
    found = drive(world.store.get(records.KIND, "id"))
    assert found is not None
    assert found.value["attempt"] == 1


def test_a_next_attempt_that_began_before_the_note_of_it_costs_no_further_delivery() -> None:
    world = World()
    _retry_then_succeed(world)
    taken = world.take()
    assert taken is not None
    job, runner = taken
    drive(runner.claim(job))
    assert job.message is not None
    second = Runner(world.app).admit(
        Delivery(queue="q", body=job.message.next_attempt().encode(), receipt=None, lease_until=world.clock.time() + 30)
    )
    drive(runner.claim(second))
    assert second.claim is not None
    assert asyncio.run(settle(world.app, job, runner.run_isolated(job))) is Verdict.ACK
    assert world.state("id") == states.STARTED


def test_what_lost_its_claim_is_discarded_and_its_delivery_is_kept() -> None:
    world = World()
    _succeed(world)
    taken = world.take()
    assert taken is not None
    job, runner = taken
    drive(runner.claim(job))
    outcome = runner.run_isolated(job)
    world.clock.advance(31)
    assert world.host()  # another process has taken over and finished
    world.steps.taken.clear()
    assert asyncio.run(settle(world.app, job, outcome)) is Verdict.KEEP
    assert world.steps.taken == []


def test_a_dead_letter_holds_the_message_its_reason_and_its_error() -> None:
    world = World()
    _fail(world)
    world.host()
    (letter,) = world.dead()
    assert (letter["id"], letter["task"]) == ("id", "t")
    dead = letter["dead"]
    assert dead["queue"] == "q"
    assert dead["receives"] == 1
    assert dead["error"]["type"] == "ValueError"
    assert "always" in dead["error"]["traceback"]


def test_an_unreadable_body_is_kept_byte_for_byte_in_the_dead_letter_queue() -> None:
    world = World()
    drive(world.broker.send("q", [Outgoing(body="{not json")]))
    world.host()
    (letter,) = world.dead()
    drive(world.broker.send("q", [Outgoing(body=json.dumps(letter))]))  # a console's redrive
    world.clock.advance(1)
    world.host()
    (again,) = world.dead()
    assert again["dead"]["reason"] == letter["dead"]["reason"]


def test_a_letter_too_large_for_its_note_gives_up_the_traceback_first() -> None:
    world = World()

    @world.app.task(name="big")
    def big(text: str) -> None:
        raise ValueError("x" * 2_000)

    size = world.broker.limits.body
    big.delay("y" * (size - 3_000))
    world.host()
    (letter,) = world.dead()
    assert letter["dead"]["error"]["traceback"].startswith("(left out")
    assert letter["dead"]["error"]["type"] == "ValueError"
    assert len(letter["args"][0]) == size - 3_000


def test_a_letter_with_no_room_at_all_travels_as_it_is_with_the_reason_beside_it() -> None:
    world = World()

    @world.app.task(name="big")
    def big(text: str) -> None:
        raise ValueError("x")

    message = big.options(task_id="z")
    room = world.broker.limits.body - 130
    message.delay("y" * room)
    world.host()
    (delivery,) = drive(world.broker.receive("q-dlq", max_messages=1, wait=0))
    assert "it raised " in delivery.attributes["cloudq-dead"]
    assert json.loads(delivery.body)["id"] == "z"


def test_a_revived_dead_letter_runs_with_a_fresh_budget_and_may_end_well() -> None:
    world = World()
    good = False

    @world.app.task(name="t")
    def t() -> int:
        if not good:
            raise ValueError("down")
        return 1

    id = t.delay().id
    world.host()
    assert world.state(id) == states.FAILURE
    good = True
    (letter,) = world.dead()
    drive(world.broker.send("q", [Outgoing(body=json.dumps(letter))]))
    world.host()
    assert world.state(id) == states.SUCCESS


def test_a_deferred_message_goes_back_as_the_same_attempt_with_one_deferral_more() -> None:
    world = World()
    drive(world.broker.send("q", [Outgoing(body='{"v":1,"id":"u","task":"nobody.knows","args":[]}')]))
    world.host()
    world.clock.advance(2)
    (delivery,) = drive(world.broker.receive("q", max_messages=1, wait=0))
    body = json.loads(delivery.body)
    assert (body.get("attempt", 0), body["deferrals"]) == (0, 1)
    assert delivery.receives == 1


def test_an_ordered_delivery_is_never_sent_again_but_held_by_its_lease() -> None:
    world = World()
    drive(world.broker.send("q", [Outgoing(body='{"v":1,"id":"g","task":"nobody.knows","args":[],"group":"k"}', group="k")]))
    taken = world.take()
    assert taken is not None
    job, _ = taken
    world.steps.taken.clear()
    assert isinstance(job.outcome, Later)
    assert asyncio.run(settle(world.app, job, job.outcome)) is Verdict.KEEP
    assert world.steps.taken == ["extend 4"]
    assert asyncio.run(settle(world.app, job, Again(7.0, _failure()))) is Verdict.KEEP
    assert world.steps.taken == ["extend 4", "extend 7"]


def test_a_wait_beyond_the_longest_lease_asks_for_what_is_left_of_it() -> None:
    world = World()
    drive(world.broker.send("q", [Outgoing(body='{"v":1,"id":"g","task":"t","args":[],"group":"k"}', group="k")]))
    taken = world.take()
    assert taken is not None
    job, _ = taken
    world.clock.advance(5)
    assert asyncio.run(settle(world.app, job, Again(86_400.0, _failure()))) is Verdict.KEEP
    left = job.delivery.lease_until - world.clock.time()
    assert world.broker.limits.max_lease - 60 < left < world.broker.limits.max_lease - 5


def _failure() -> Any:
    from cloudq.outcome import Failure

    return Failure("X", "y")


def test_a_hold_whose_lease_is_lost_is_left_and_one_that_is_refused_is_an_error() -> None:
    world = World()
    drive(world.broker.send("q", [Outgoing(body='{"v":1,"id":"g","task":"t","args":[],"group":"k"}', group="k")]))

    class Refusing(SteppedBroker):
        async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[SettleError | None]:
            return [SettleError("no", retryable=True)]

    taken = world.take()
    assert taken is not None
    job, _ = taken
    world.clock.advance(31)
    assert asyncio.run(settle(world.app, job, Again(7.0, _failure()))) is Verdict.KEEP
    world.broker.__class__ = Refusing
    with pytest.raises(SettleError):
        asyncio.run(settle(world.app, job, Again(7.0, _failure())))


def test_a_broker_that_takes_no_dead_letter_keeps_the_delivery() -> None:
    world = World()
    _fail(world)

    class Down(SteppedBroker):
        async def send(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
            raise BrokerUnavailable("down")

    world.broker.__class__ = Down
    with pytest.raises(BrokerUnavailable):
        world.host()
    assert world.state("id") == states.STARTED
    world.broker.__class__ = SteppedBroker
    world.until_quiet()
    assert len(world.dead()) == 1


def test_without_a_store_the_same_order_holds_without_its_writes() -> None:
    world = World(store=False)
    _fail(world)
    world.steps.taken.clear()
    world.host()
    assert world.steps.taken == ["send q-dlq", "send after", "ack"]


def test_ignored_results_are_not_stored_and_linked_ones_are() -> None:
    world = World()

    @world.app.task(name="quiet", ignore_result=True)
    def quiet() -> str:
        return "x" * 100

    plain, linked = quiet.delay().id, quiet.options(link=world.after.s()).delay().id
    world.until_quiet()
    for id, value in ((plain, None), (linked, "x" * 100)):
        document = drive(world.store.get(records.KIND, id))
        assert document is not None
        assert document.value.get("value") == value
        assert document.value["state"] == states.SUCCESS
    assert world.told == ["x" * 100]


def test_lease_lost_is_the_claims_and_says_keep() -> None:
    world = World()
    _succeed(world)
    taken = world.take()
    assert taken is not None
    job, runner = taken
    drive(runner.claim(job))
    assert job.claim is not None
    drive(world.store.put(records.KIND, "id", {**job.claim.value, "owner": "another"}))

    async def scenario() -> Verdict:
        return await settle(world.app, job, Done(1))

    assert asyncio.run(scenario()) is Verdict.KEEP
    with pytest.raises(LeaseLost):
        drive(job.claim.renew(0.0))
