"""One document a task: at most one owner at a time, the first terminal state wins, attempts never fall."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cloudq import records, states
from cloudq.clock import ManualClock
from cloudq.errors import LeaseLost
from cloudq.io import drive
from cloudq.memory import MemoryStore
from cloudq.message import Message
from cloudq.outcome import Dropped, Failure, Later
from cloudq.records import Claim

LEASE = 30.0
TTL = 10_000.0
FAILURE = Failure("ValueError", "no")


def _message(attempt: int = 0, **fields: Any) -> Message:
    return Message({"v": 1, "id": "t", "task": "x", "sent": 5.0, **({"attempt": attempt} if attempt else {}), **fields})


class Yielding(MemoryStore):
    """Lets others in before each write, as a store over a network does."""

    async def put(self, *args: Any, **kwargs: Any) -> str:
        await asyncio.sleep(0)
        return await super().put(*args, **kwargs)


class World:
    def __init__(self) -> None:
        self.clock = ManualClock(1_000.0)
        self.store = MemoryStore(clock=self.clock)

    def claim(self, owner: str, message: Message | None = None) -> Claim | Later | Dropped:
        now = self.clock.time()
        return drive(records.claim(self.store, message or _message(), "q", owner=owner, now=now, until=now + LEASE, ttl=TTL))

    def claimed(self, owner: str, message: Message | None = None) -> Claim:
        claim = self.claim(owner, message)
        assert isinstance(claim, Claim)
        return claim

    def document(self) -> dict[str, Any]:
        found = drive(self.store.get(records.KIND, "t"))
        assert found is not None
        return dict(found.value)

    def revoke(self) -> None:
        drive(records.revoke(self.store, "t", now=self.clock.time(), ttl=TTL))


def test_a_second_owner_waits_while_the_first_holds_its_claim() -> None:
    world = World()
    world.claimed("a")
    refused = world.claim("b")
    assert isinstance(refused, Later)
    assert 0 < refused.delay <= 60.1


def test_a_claim_that_has_run_out_passes_to_the_next_and_its_old_owner_is_told() -> None:
    world = World()
    first = world.claimed("a")
    world.clock.advance(LEASE + 1)
    second = world.claimed("b")
    with pytest.raises(LeaseLost):
        drive(first.finish(states.SUCCESS, at=world.clock.time(), value=1))
    with pytest.raises(LeaseLost):
        drive(first.renew(world.clock.time() + LEASE))
    drive(second.finish(states.SUCCESS, at=world.clock.time(), value=2))
    assert world.document()["value"] == 2


def test_a_renewed_claim_holds_on() -> None:
    world = World()
    first = world.claimed("a")
    world.clock.advance(LEASE - 1)
    drive(first.renew(world.clock.time() + LEASE))
    world.clock.advance(2)
    assert isinstance(world.claim("b"), Later)


def test_a_released_claim_can_be_taken_at_once() -> None:
    world = World()
    drive(world.claimed("a").release())
    world.claimed("b")


def test_finished_work_is_not_run_again_and_its_follow_ups_are_sent_again_with_its_value() -> None:
    world = World()
    drive(world.claimed("a").finish(states.SUCCESS, at=1.0, value=[1]))
    again = world.claim("b")
    assert isinstance(again, Dropped)
    assert again.follow_ups
    assert again.value == [1]
    assert again.state is None


def test_a_duplicate_of_what_ended_by_ignore_starts_nothing_and_tells_again_what_waits_for_it() -> None:
    world = World()
    drive(world.claimed("a").finish(states.SUCCESS, at=1.0, reason=records.IGNORED))
    again = world.claim("b")
    assert isinstance(again, Dropped)
    assert again.ended is not None
    assert again.ended["reason"] == records.IGNORED


def test_a_duplicate_of_failed_work_tells_the_error_links_again() -> None:
    world = World()
    drive(world.claimed("a").finish(states.FAILURE, at=1.0, reason="why", error=FAILURE))
    again = world.claim("b")
    assert isinstance(again, Dropped)
    assert again.ended is not None
    assert again.ended["reason"] == "why"
    assert again.ended["error"]["type"] == "ValueError"


@pytest.mark.parametrize("state", sorted(states.TERMINAL))
def test_the_first_terminal_state_wins(state: str) -> None:
    world = World()
    stale = world.claimed("a")
    world.clock.advance(LEASE + 1)
    drive(world.claimed("b").finish(state, at=1.0))
    before = world.document()
    for call in (stale.finish(states.SUCCESS, at=2.0, value=9), stale.retry(FAILURE), stale.report("P", 1), stale.release()):
        with pytest.raises(LeaseLost):
            drive(call)
    for other in (states.DEAD, states.EXPIRED):
        drive(records.finish_unclaimed(world.store, _message(), "q", other, at=3.0, ttl=TTL, reason="late"))
    world.revoke()
    drive(records.record_queued(world.store, _message(), "q", ttl=TTL))
    assert world.document() == before


def test_an_attempt_below_the_documents_is_superseded() -> None:
    world = World()
    drive(world.claimed("a").retry(FAILURE))
    dropped = world.claim("b", _message(0))
    assert isinstance(dropped, Dropped)
    assert "superseded" in dropped.why
    assert dropped.state is None
    world.claimed("b", _message(1))


def test_the_next_attempt_may_start_before_the_last_ones_note_is_written() -> None:
    world = World()
    first = world.claimed("a")  # it has sent attempt 1, and dies before it says so
    world.claimed("b", _message(1))
    with pytest.raises(LeaseLost):
        drive(first.retry(FAILURE))
    assert world.document()["attempt"] == 1


@pytest.mark.parametrize("state", sorted(states.TERMINAL))
def test_only_a_redrive_reopens_what_ended_badly_and_nothing_reopens_what_ended_well(state: str) -> None:
    world = World()
    drive(world.claimed("a", _message(2)).finish(state, at=1.0))
    assert isinstance(world.claim("b", _message(3)), Dropped)  # a later attempt of the same budget
    assert isinstance(world.claim("b", _message(2, first=2)), Dropped)  # a redrive that is older than the document
    revived = world.claim("b", _message(3, first=3))
    assert isinstance(revived, Claim) == (state in states.REOPENED_BY_REDRIVE)


def test_what_is_revoked_before_it_starts_does_not_start() -> None:
    world = World()
    world.revoke()
    assert world.document()["state"] == states.PENDING
    dropped = world.claim("a")
    assert isinstance(dropped, Dropped)
    assert dropped.state == states.REVOKED


def test_a_revoke_while_it_runs_lets_it_finish_and_stops_its_retry() -> None:
    world = World()
    claim = world.claimed("a")
    world.revoke()
    assert drive(claim.renew(world.clock.time() + LEASE)) is True
    drive(claim.retry(FAILURE))
    dropped = world.claim("b", _message(1))
    assert isinstance(dropped, Dropped)
    assert dropped.state == states.REVOKED


def test_progress_shows_the_latest_and_ends_with_the_task() -> None:
    world = World()
    claim = world.claimed("a")
    drive(claim.report("PROGRESS", {"done": 1}))
    drive(claim.report("UPLOADING", {"done": 2}))
    assert (world.document()["progress"], world.document()["meta"]) == ("UPLOADING", {"done": 2})
    drive(claim.finish(states.SUCCESS, at=1.0, value=1))
    assert "progress" not in world.document()


@pytest.mark.parametrize("report_first", [True, False])
def test_progress_that_races_with_the_end_overwrites_nothing(report_first: bool) -> None:
    async def scenario() -> None:
        store = Yielding(clock=ManualClock(1_000.0))
        claim = await records.claim(store, _message(), "q", owner="a", now=1_000.0, until=1_030.0, ttl=TTL)
        assert isinstance(claim, Claim)
        calls = [claim.report("HALF", 50), claim.finish(states.SUCCESS, at=1.0, value=7)]
        await asyncio.gather(*(calls if report_first else calls[::-1]), return_exceptions=True)
        found = await store.get(records.KIND, "t")
        assert found is not None
        assert (found.value["state"], found.value["value"], "progress" in found.value) == (states.SUCCESS, 7, False)

    asyncio.run(scenario())


def test_finishing_again_is_no_error_for_the_one_who_finished() -> None:
    world = World()
    claim = world.claimed("a")
    for _ in range(2):  # settling is repeated when what comes after the result fails
        drive(claim.finish(states.SUCCESS, at=1.0, value=1))
    assert world.document()["value"] == 1


def test_queued_never_overwrites_what_a_worker_has_noted() -> None:
    world = World()
    world.claimed("a")
    drive(records.record_queued(world.store, _message(), "q", ttl=TTL))
    assert world.document()["state"] == states.STARTED


def test_a_result_that_is_forgotten_while_its_task_runs_is_written_anew_and_the_task_not_run_again() -> None:
    world = World()
    claim = world.claimed("a")
    drive(world.store.delete(records.KIND, "t"))
    drive(claim.renew(world.clock.time() + LEASE))
    assert isinstance(world.claim("b"), Later)
    drive(world.store.delete(records.KIND, "t"))
    drive(claim.finish(states.SUCCESS, at=1.0))
    assert isinstance(world.claim("b"), Dropped)


def test_a_claim_whose_document_another_wrote_after_it_was_forgotten_is_lost() -> None:
    world = World()
    claim = world.claimed("a")
    drive(world.store.delete(records.KIND, "t"))
    world.claimed("b")
    with pytest.raises(LeaseLost):
        drive(claim.finish(states.SUCCESS, at=1.0))


def test_claims_that_run_out_are_counted_and_a_release_a_retry_and_a_redrive_are_not() -> None:
    world = World()
    world.claimed("a")
    for owner in "bc":
        world.clock.advance(LEASE + 1)
        last = world.claimed(owner)
    assert last.crashes == 2
    drive(last.release())
    last = world.claimed("d")
    assert last.crashes == 2  # nor forgotten
    drive(last.retry(FAILURE))
    last = world.claimed("e", _message(attempt=1))
    assert last.crashes == 0
    world.clock.advance(LEASE + 1)
    last = world.claimed("f", _message(attempt=1))
    drive(last.finish(states.DEAD, at=1.0))
    assert world.claimed("g", _message(attempt=2, first=2)).crashes == 0


def test_an_ordered_attempt_that_comes_before_its_time_waits_for_it() -> None:
    world = World()

    def take(owner: str) -> Claim | Later | Dropped:
        now = world.clock.time()
        return drive(records.claim(world.store, _message(), "q", owner=owner, now=now, until=now + LEASE, ttl=TTL, ordered=True))

    first = take("a")
    assert isinstance(first, Claim)
    drive(first.retry(FAILURE, world.clock.time() + 100))
    world.clock.advance(40)
    early = take("b")
    assert isinstance(early, Later)
    assert early.delay == pytest.approx(60)
    world.clock.advance(59.5)
    assert isinstance(take("c"), Claim)


def test_many_owners_at_once_get_one_claim() -> None:
    async def scenario() -> None:
        clock = ManualClock(1_000.0)
        store = Yielding(clock=clock)
        await records.record_queued(store, _message(), "q", ttl=TTL)
        answers = await asyncio.gather(
            *(
                records.claim(store, _message(), "q", owner=f"o{i}", now=clock.time(), until=clock.time() + LEASE, ttl=TTL)
                for i in range(20)
            )
        )
        assert sum(isinstance(answer, Claim) for answer in answers) == 1

    asyncio.run(scenario())


def test_changes_by_one_owner_at_once_are_all_kept() -> None:
    async def scenario() -> None:
        store = Yielding(clock=ManualClock(1_000.0))
        claim = await records.claim(store, _message(), "q", owner="a", now=1_000.0, until=1_030.0, ttl=TTL)
        assert isinstance(claim, Claim)
        await asyncio.gather(claim.renew(2_000.0), claim.report("HALF", 50), records.revoke(store, "t", now=1.0, ttl=TTL))
        found = await store.get(records.KIND, "t")
        assert found is not None
        assert (found.value["until"], found.value["meta"], found.value["revoked"]) == (2_000.0, 50, True)

    asyncio.run(scenario())


class Claims(RuleBasedStateMachine):
    """Two workers and a redriver get in each other's way at will; the document is judged after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.held: dict[str, tuple[Claim, Message]] = {}
        self.until: dict[str, float] = {}
        self.sent: list[Message] = [_message()]
        self.ended: dict[str, Any] | None = None
        self.highest = 0

    @initialize()
    def queued(self) -> None:
        drive(records.record_queued(self.world.store, _message(), "q", ttl=TTL))

    def _note(self) -> None:
        document = self.world.document()
        assert document["attempt"] >= self.highest
        self.highest = document["attempt"]

    @rule(owner=st.sampled_from("ab"), which=st.integers(0, 5))
    def claim(self, owner: str, which: int) -> None:
        message = self.sent[which % len(self.sent)]
        now = self.world.clock.time()
        answer = self.world.claim(owner, message)
        if isinstance(answer, Claim):
            for other, (_, theirs) in self.held.items():
                # of one attempt only one owner at a time
                assert other == owner or theirs.attempt != message.attempt or self.until[other] <= now
            if self.ended is not None:
                assert self.ended["state"] in states.REOPENED_BY_REDRIVE
                assert message.first > self.ended["attempt"]
                self.ended = None
            self.held[owner] = (answer, message)
            self.until[owner] = now + LEASE
        self._note()

    def _change(self, owner: str, call: Any) -> bool:
        """Whether the change was let through; it must be exactly where the document is this owner's and open."""
        claim, _ = self.held[owner]
        before = self.world.document()
        mine = before.get("owner") == owner and before["state"] not in states.TERMINAL
        try:
            drive(call(claim))
        except LeaseLost:
            assert not mine
            del self.held[owner]
            self.until.pop(owner)
            assert self.world.document() == before
            return False
        assert mine
        self._note()
        return True

    @precondition(lambda self: self.held)
    @rule(data=st.data(), kind=st.sampled_from(["renew", "finish", "retry", "release", "report"]))
    def change(self, data: st.DataObject, kind: str) -> None:
        owner = data.draw(st.sampled_from(sorted(self.held)))
        now = self.world.clock.time()
        message = self.held[owner][1]
        match kind:
            case "renew":
                if self._change(owner, lambda claim: claim.renew(now + LEASE)):
                    self.until[owner] = now + LEASE
            case "report":
                self._change(owner, lambda claim: claim.report("P", 1))
            case "release":
                if self._change(owner, lambda claim: claim.release()):
                    self.until[owner] = 0.0
            case "retry":
                self.sent.append(message.next_attempt())
                if self._change(owner, lambda claim: claim.retry(FAILURE)):
                    del self.held[owner]
            case _:
                state = data.draw(st.sampled_from([states.SUCCESS, states.FAILURE]))
                if self._change(owner, lambda claim: claim.finish(state, at=now)):
                    del self.held[owner]
                    self.ended = self.world.document()
                    if state == states.FAILURE:
                        self.sent.append(message.revived())

    @rule()
    def revoke(self) -> None:
        self.world.revoke()
        self._note()

    @rule(seconds=st.sampled_from([1.0, LEASE / 2, LEASE + 1]))
    def wait(self, seconds: float) -> None:
        self.world.clock.advance(seconds)

    @invariant()
    def what_has_ended_stays_as_it_is(self) -> None:
        if self.ended is not None:
            assert self.world.document() == self.ended


Claims.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
TestClaims = Claims.TestCase
