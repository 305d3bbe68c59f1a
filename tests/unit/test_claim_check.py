"""Claim-checks in the core: which bodies are left, in what order messages go, and what becomes of a claim that cannot be collected."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudq import CloudQ, letters
from cloudq.adapters import Location
from cloudq.broker import Delivery, Outgoing, SendError
from cloudq.claimcheck import MOST, ClaimChecks, configured
from cloudq.clock import ManualClock
from cloudq.errors import BrokerUnavailable, ConfigError, DecodeError, DelayError, MessageTooLarge, StoreError, StoreUnavailable
from cloudq.io import drive
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.outcome import Dead, Later
from cloudq.runner import Job, Runner
from cloudq.settle import settle
from cloudq.timer import Timer, TimerLimits
from tests.unit.test_protocol import VALIDATOR

LIMIT = 20_000
"""Bytes that the broker takes."""
SMALLER = 4_000
"""Bytes that the queue ``narrow`` takes."""
DAY = 86_400.0


class Shelf:
    """Bodies in memory. ``broken``: what each of the next calls raises."""

    place = "shelf://here/"

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.broken: list[Exception] = []
        self.writes = 0
        self.slow: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def write(self, key: str, body: bytes) -> None:
        self.writes += 1
        await self.slow(0)
        if self.broken:
            raise self.broken.pop(0)
        self.kept[key] = body

    async def read(self, key: str, *, most: int) -> bytes:
        if self.broken:
            raise self.broken.pop(0)
        if key not in self.kept:
            raise StoreError(f"{self.place}{key}: it is gone")
        return self.kept[key][: most + 1]

    async def close(self) -> None: ...


class Narrow(MemoryBroker):
    """A memory broker with small messages that counts requests, reached like one in a cloud."""

    def __init__(self, clock: ManualClock, checks: ClaimChecks | None) -> None:
        super().__init__(clock=clock, limits=MemoryBroker().limits._replace(local=False, body=LIMIT, batch_bytes=LIMIT, batch=10))
        self.claim_checks = checks
        self.asked: list[str] = []
        self.sent: list[list[Outgoing]] = []

    async def body_limit(self, queue: str) -> int:
        self.asked.append(queue)
        return SMALLER if queue == "narrow" else LIMIT

    async def send(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
        self.sent.append(list(messages))
        for message in messages:
            VALIDATOR.validate(json.loads(message.body))
        return await super().send(queue, messages)


class Strict(Timer):
    """A timer that takes less than the broker's queues."""

    limits = TimerLimits(horizon=100 * DAY, late=120.0)

    def __init__(self) -> None:
        self.given: list[tuple[float, Outgoing]] = []

    async def at(self, when: float, queue: str, message: Outgoing, *, key: str) -> None:
        if len(message.body) > 10_000:
            raise MessageTooLarge("the timer takes 10,000")
        self.given.append((when, message))

    async def close(self) -> None: ...


class World:
    def __init__(self, *, place: bool = True, store: bool = False, over: int = MOST, **settings: Any) -> None:
        self.clock = ManualClock()
        self.shelf = Shelf()
        checks = ClaimChecks(bodies=self.shelf, over=over) if place else None
        self.broker = Narrow(self.clock, checks)
        self.timer = Strict()
        self.app = CloudQ(
            "claims",
            broker=self.broker,
            clock=self.clock,
            timer=self.timer,
            store=MemoryStore(clock=self.clock) if store else None,
            queues=["narrow", "other"],
            **settings,
        )
        self.runner = Runner(self.app)
        self.ran: list[str] = []

        @self.app.task(name="take")
        def take(text: str) -> int:
            self.ran.append(text)
            return len(text)

        self.take = take

    def receive(self, queue: str = "default") -> list[Delivery]:
        return list(drive(self.broker.receive(queue, max_messages=10, wait=0)))

    def bodies(self, queue: str = "default") -> list[dict[str, Any]]:
        """What lies in the queue, taken out."""
        found = self.receive(queue)
        if found:
            drive(self.broker.ack(found))
        return [json.loads(delivery.body) for delivery in found]

    def admit(self, body: str | dict[str, Any], *, receives: int = 1) -> Job:
        """A delivery with this body, as a host takes it over."""
        now = self.clock.time()
        text = body if isinstance(body, str) else json.dumps(body)
        delivery = Delivery(queue="default", body=text, receipt=None, receives=receives, sent=now, received=now, lease_until=now + 30)
        job = self.runner.admit(delivery)
        if job.elsewhere:
            asyncio.run(self.runner.fetch(job))
        return job

    def work(self) -> None:
        """A host of the smallest kind: what can be received runs and is settled."""
        for delivery in self.receive():
            job = self.runner.admit(delivery)
            if job.elsewhere:
                asyncio.run(self.runner.fetch(job))
            if job.outcome is None:
                drive(self.runner.claim(job))
            self.app.io.run(settle(self.app, job, job.outcome or self.runner.run_isolated(job)))
            drive(self.broker.ack([delivery]))


@pytest.fixture
def make() -> Iterator[Any]:
    worlds: list[World] = []

    def make(**settings: Any) -> World:
        worlds.append(World(**settings))
        return worlds[-1]

    yield make
    for world in worlds:
        world.app.close()


BIG = "x" * (LIMIT + 1)


def claim(text: str = "body", **changes: Any) -> dict[str, Any]:
    data = text.encode()
    digest = hashlib.sha256(data).hexdigest()
    return {"v": 1, "claim_check": {"key": digest, "size": len(data), "sha256": digest, **changes}}


# ---------------------------------------------------------------------------------------------- out


def test_a_large_body_is_left_and_a_claim_of_a_few_bytes_travels(make: Any) -> None:
    world = make()
    world.take.delay(BIG)
    (delivery,) = world.receive()
    assert len(delivery.body) < 250
    assert delivery.body.isascii()
    fields = json.loads(delivery.body)
    (key,) = world.shelf.kept
    assert fields == claim(world.shelf.kept[key].decode())
    assert json.loads(world.shelf.kept[key])["args"] == [BIG]


def test_a_small_message_asks_nothing_and_leaves_nothing(make: Any) -> None:
    world = make()
    world.take.delay("x" * 800)
    assert (world.broker.asked, world.shelf.writes) == ([], 0)


def test_a_queue_is_asked_once_for_the_limit_of_its_own(make: Any) -> None:
    world = make()
    for _ in range(3):
        world.take.options(queue="narrow").delay("x" * SMALLER)
        world.take.delay("x" * SMALLER)
    assert sorted(world.broker.asked) == ["default", "narrow"]
    assert ["claim_check" in body for body in world.bodies("narrow")] == [True] * 3
    assert ["claim_check" in body for body in world.bodies()] == [False] * 3


def test_a_burst_asks_for_the_limit_of_its_queue_once_and_leaves_few_bodies_at_a_time(make: Any) -> None:
    world = make()
    open_now: set[int] = set()
    most: list[int] = []

    async def slow(_: float) -> None:
        me = world.shelf.writes
        open_now.add(me)
        most.append(len(open_now))
        await asyncio.sleep(0.002)
        open_now.discard(me)

    world.shelf.slow = slow
    world.app.send_many([world.take.s(f"{number}{BIG}") for number in range(60)])
    assert world.broker.asked == ["default"]
    assert max(most) == 16
    assert len(world.shelf.kept) == 60


def test_bodies_may_be_left_from_fewer_bytes_on_than_the_queue_takes(make: Any) -> None:
    world = make(over=2_000)
    world.take.delay("x" * 2_000)
    assert "claim_check" in world.bodies()[0]


def test_claims_are_packed_by_their_own_size_and_hold_up_no_small_message(make: Any) -> None:
    world = make()
    world.take.delay(BIG)  # so that the queue's limit is known
    world.broker.sent.clear()
    world.app.send_many([world.take.s(f"{number}{BIG}" if number % 2 else "small") for number in range(10)])
    assert sum(map(len, world.broker.sent)) == 10
    assert len(world.broker.sent) <= 3
    assert not any("claim_check" in message.body for message in world.broker.sent[0])


def test_messages_of_a_group_keep_their_order_although_the_first_is_left_elsewhere(make: Any) -> None:
    world = make()
    world.shelf.slow = lambda _: asyncio.sleep(0.05)
    world.shelf.broken = [StoreUnavailable("not now")]
    texts = [BIG, "second", f"3{BIG}", "fourth"]
    world.app.send_many([world.take.s(text).set(ordering_key="one", queue="other") for text in texts])
    order = ["claim_check" in message.body for batch in world.broker.sent for message in batch]
    assert order == [True, False, True, False]


def test_a_body_that_cannot_be_left_in_an_ordered_batch_costs_itself_only(make: Any) -> None:
    world = make(over=2_000)  # so that both share a batch
    world.shelf.broken = [StoreError("denied"), StoreUnavailable("not now"), StoreError("denied")]
    with pytest.raises(Exception, match="1 of 2 messages") as caught:
        world.app.send_many([world.take.s(text).set(ordering_key="one") for text in ("1" * 3_000, "2" * 3_000)])
    assert list(caught.value.failed) == [0]
    assert "denied" in str(caught.value.failed[0])
    assert len(world.bodies()) == len(world.shelf.kept) == 1


def test_leaving_a_body_is_tried_again_for_as_long_as_the_caller_waits(make: Any) -> None:
    world = make()
    world.shelf.broken = [StoreUnavailable("not now"), StoreUnavailable("not now")]
    world.take.delay(BIG)
    assert world.shelf.writes == 3
    assert "claim_check" in world.bodies()[0]
    hasty = make(send_timeout=0.2)
    hasty.shelf.broken = [StoreUnavailable("not now")] * 99
    with pytest.raises((BrokerUnavailable, TimeoutError)):
        hasty.take.delay(BIG)
    assert hasty.bodies() == []


def test_a_body_that_may_not_be_left_is_an_error_at_the_call(make: Any) -> None:
    world = make()
    world.shelf.broken = [StoreError("access denied")]
    with pytest.raises(SendError, match="could not be left: access denied"):
        world.take.delay(BIG)
    assert world.bodies() == []


def test_without_a_place_the_call_is_refused_and_the_parameter_named(make: Any) -> None:
    with pytest.raises(MessageTooLarge, match=r"task 'take'.*20,000.*bodies="):
        make(place=False).take.delay(BIG)


def test_what_is_too_large_for_any_reader_is_refused_too(make: Any) -> None:
    with pytest.raises(MessageTooLarge, match="16,777,216"):
        make().take.delay("x" * MOST)


def test_a_delay_through_which_no_body_is_kept_is_refused_at_the_call(make: Any) -> None:
    world = make()
    for size in (len(BIG), SMALLER):
        with pytest.raises(DelayError, match=r"shelf://here/.*90 days.*bodies_days="):
            world.take.options(delay="90d", queue="narrow").delay("x" * size)
    world.take.options(delay="90d", queue="narrow").delay("small")
    assert world.shelf.writes == 0


def test_a_timer_that_takes_less_than_its_queue_gets_a_claim(make: Any) -> None:
    world = make()
    world.take.options(delay="3d").delay("x" * 15_000)
    world.take.options(delay="3d").delay("x" * 9_000)
    assert ["claim_check" in message.body for _, message in world.timer.given] == [True, False]
    assert [when for when, _ in world.timer.given] == [world.clock.time() + 3 * DAY - 120] * 2


# ---------------------------------------------------------------------------------------------- in


def test_a_claim_becomes_the_message_that_was_left(make: Any) -> None:
    world = make()
    world.take.delay(BIG)
    world.work()
    assert world.ran == [BIG]


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "../other/secret"},
        {"key": "a//b"},
        {"key": "/etc"},
        {"key": "s3://other/key"},
        {"key": ""},
        {"key": "a" * 201},
        {"key": 1},
        {"size": 0},
        {"size": True},
        {"size": 5.0},
        {"size": MOST + 1},
        {"sha256": "0" * 63},
        {"sha256": None},
    ],
)
def test_a_forged_claim_reads_nothing_and_is_dead(make: Any, changes: dict[str, Any]) -> None:
    world = make()
    world.shelf.broken = [AssertionError("nothing may be read")]
    job = world.admit(claim(**changes))
    assert isinstance(job.outcome, Dead)
    assert '"claim_check" must have a' in job.outcome.reason


@pytest.mark.parametrize("found", [None, b"", b"other", b"body and more", b"bod"])
def test_a_body_that_is_gone_or_is_another_is_dead_and_its_reason_says_where(make: Any, found: bytes | None) -> None:
    world = make()
    fields = claim()
    if found is not None:
        world.shelf.kept[fields["claim_check"]["key"]] = found
    job = world.admit(fields)
    assert isinstance(job.outcome, Dead)
    assert "could not be fetched: shelf://here/" + fields["claim_check"]["key"] in job.outcome.reason


def test_a_claim_for_a_claim_is_dead(make: Any) -> None:
    world = make()
    inner = json.dumps(claim())
    fields = claim(inner)
    world.shelf.kept[fields["claim_check"]["key"]] = inner.encode()
    job = world.admit(fields)
    assert isinstance(job.outcome, Dead)
    assert not job.elsewhere


@pytest.mark.parametrize("fault", [StoreUnavailable("not now"), ConfigError("no credentials"), RuntimeError("a fault of ours")])
def test_where_the_place_cannot_be_reached_the_claim_is_sent_again(make: Any, fault: Exception) -> None:
    world = make()
    world.take.delay(BIG)
    world.shelf.broken = [fault]
    world.work()
    assert (world.receive(), world.ran) == ([], [])  # it waits
    world.clock.advance(60)
    world.work()
    assert world.ran == [BIG]
    assert world.bodies("default-dlq") == []


def test_a_dead_claim_keeps_its_claim_and_runs_once_its_body_is_back(make: Any) -> None:
    world = make(store=True)
    result = world.take.delay(BIG)
    shelved, world.shelf.kept = world.shelf.kept, {}
    world.work()
    (letter,) = world.bodies("default-dlq")
    assert letter.keys() == {"v", "claim_check", "dead"}
    for _ in range(2):  # redriven too early it dies again, and is as good as before
        drive(world.broker.send("default", [Outgoing(body=json.dumps(letter))]))
        world.work()
        (letter,) = world.bodies("default-dlq")
        assert letter.keys() == {"v", "claim_check", "dead"}
    world.shelf.kept = shelved
    drive(world.broker.send("default", [Outgoing(body=json.dumps(letter))]))
    world.work()
    assert world.ran == [BIG]
    assert result.get(timeout=1) == len(BIG)


def test_a_claim_that_the_broker_itself_moved_is_shown_and_redriven_afresh(make: Any) -> None:
    world = make()
    world.take.delay(BIG)
    (sent,) = world.bodies()
    drive(world.broker.send("default-dlq", [Outgoing(body=json.dumps(sent))]))
    done = world.app.io.run(letters.redrive(world.app, "default-dlq", letters.Match(task="take")))
    assert [letter.fields["args"] for letter, _ in done.sent] == [[BIG]]
    world.work()
    assert world.ran == [BIG]
    assert len(world.shelf.kept) == 2


def test_a_worker_without_the_place_waits_for_its_deploy_and_then_says_what_it_lacks(make: Any) -> None:
    world = make(place=False, unknown_task_grace=100)
    first = world.admit(claim()).outcome
    assert isinstance(first, Later)
    last = world.admit({**claim(), **first.changes, "unknown_since": world.clock.time() - 101}).outcome
    assert isinstance(last, Dead)
    assert "bodies=" in last.reason


def test_a_body_that_takes_every_reader_along_is_given_up_unread(make: Any) -> None:
    world = make()
    world.shelf.broken = [AssertionError("nothing may be read")]
    job = world.admit(claim(), receives=10)
    assert isinstance(job.outcome, Dead)
    assert "crash loop" in job.outcome.reason


def test_a_claim_of_a_newer_protocol_waits_for_a_deploy(make: Any) -> None:
    job = make().admit({**claim(), "v": 2})
    assert isinstance(job.outcome, Later)
    assert "protocol version 2" in job.outcome.why


_KEY = st.text("aZ9_-./", max_size=6)
_PARTS = {
    "key": _KEY | st.none(),
    "size": st.integers(-1, MOST + 1) | st.booleans() | st.none(),
    "sha256": st.sampled_from(["0" * 64, "g" * 64, "0" * 63, ""]) | st.none(),
}


@given(st.fixed_dictionaries({}, optional=_PARTS) | st.none() | st.just([]))
def test_a_claim_is_read_where_the_schema_allows_it(claim: object) -> None:
    fields = {"v": 1, "claim_check": claim}
    shelf = Shelf()
    shelf.broken = [StoreUnavailable("it was asked")]
    with pytest.raises((DecodeError, StoreUnavailable)) as caught:
        asyncio.run(ClaimChecks(bodies=shelf).collect(fields))
    assert (caught.type is StoreUnavailable) == VALIDATOR.is_valid(fields)


# ---------------------------------------------------------------------------------------------- the URL


def at(options: str, resting: float = 28 * DAY) -> ClaimChecks | None:
    return configured(Location.parse(f"x://here/?{options}"), lambda url: Shelf(), resting=resting)


def test_the_url_names_the_place_the_size_and_the_days() -> None:
    assert at("other=1") is None
    plain = at("bodies=shelf://here")
    assert plain is not None
    assert (plain.over, plain.delay) == (MOST, 32 * DAY)
    chosen = at("bodies=shelf://here&bodies_over=200000&bodies_days=28")
    assert chosen is not None
    assert (chosen.over, chosen.delay) == (200_000, 0)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("bodies_over=5000", "needs bodies="),
        ("bodies_days=50", "needs bodies="),
        ("bodies=shelf://here&bodies_over=1000", "from 1,024"),
        ("bodies=shelf://here&bodies_over=many", "bodies_over"),
        ("bodies=shelf://here&bodies_days=27", "28 or more"),
    ],
)
def test_a_place_that_cannot_be_right_is_refused(options: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        at(options)
