"""Whatever calls, deliveries, lies and crashes come in whatever order: each call ends, and finished work is not run again."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from cloudq import CloudQ, Reject, Retry, Task, states
from cloudq.broker import Broker, Delivery, QueueStats, SendError, SettleError
from cloudq.clock import ManualClock
from cloudq.errors import BrokerError, CloudQError, SendUnknown, StoreUnavailable
from cloudq.io import drive
from cloudq.memory import Lies, LyingBroker, MemoryBroker, MemoryStore
from cloudq.message import parse
from cloudq.runner import Job, Runner
from cloudq.settle import Verdict, settle
from cloudq.store import ANY, Document, Expect, Page, StoreLimits, Value

LEASE: Final = 30.0
RETRIES: Final = 2
QUEUES: Final = ("main", "other")
HONEST: Final = Lies(
    send_refused=0, send_lost=0, receive_empty=0, receive_lost=0, reorder=0, duplicate=0, expire=0,
    stale_accepted=0, ack_undone=0, settle_refused=0, settle_lost=0,
)  # fmt: skip
OFTEN: Final = replace(Lies(), duplicate=0.2, expire=0.2, ack_undone=0.2, settle_lost=0.1, send_lost=0.1, receive_lost=0.1)


class Crash(BaseException):
    """The process dies here: nothing after this happens."""


class Fuse:
    """Blows at a chosen request to a seam: before it is carried out, or just after."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.after = False

    async def guard(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        if self.left is None:
            return await call()
        self.left -= 1
        if self.left >= 0:
            return await call()
        if self.after and self.left == -1:
            await call()
        raise Crash


@dataclass
class FusedBroker:
    """The lying broker, as a process sees it that may die at any request."""

    inner: LyingBroker
    fuse: Fuse

    @property
    def limits(self) -> Any:
        return self.inner.limits

    def create_queue(self, name: str, *, dead_letter: str | None = None, max_receives: int | None = None) -> None:
        self.inner.create_queue(name, dead_letter=dead_letter, max_receives=max_receives)

    async def send(self, queue: str, messages: Any) -> list[SendError | None]:
        return await self.fuse.guard(lambda: self.inner.send(queue, messages))  # type: ignore[no-any-return]

    async def receive(self, queue: str, *, max_messages: int, wait: float) -> list[Delivery]:
        return await self.fuse.guard(lambda: self.inner.receive(queue, max_messages=max_messages, wait=wait))  # type: ignore[no-any-return]

    async def ack(self, deliveries: Any) -> list[SettleError | None]:
        return await self.fuse.guard(lambda: self.inner.ack(deliveries))  # type: ignore[no-any-return]

    async def extend(self, deliveries: Any, seconds: float) -> list[SettleError | None]:
        return await self.fuse.guard(lambda: self.inner.extend(deliveries, seconds))  # type: ignore[no-any-return]

    async def stats(self, queue: str) -> QueueStats:
        return await self.inner.stats(queue)

    async def close(self) -> None:
        await self.inner.close()


class FusedStore:
    """The memory store under the same fuse; ``fail`` requests answer StoreUnavailable, half of them after the write."""

    def __init__(self, inner: MemoryStore, fuse: Fuse) -> None:
        self.inner = inner
        self.fuse = fuse
        self.fail = 0
        self.finished: set[str] = set()
        """Ids of the tasks that were ever in a terminal state."""

    @property
    def limits(self) -> StoreLimits:
        return self.inner.limits

    async def get(self, kind: str, key: str) -> Document | None:
        return await self.fuse.guard(lambda: self.inner.get(kind, key))  # type: ignore[no-any-return]

    async def get_many(self, kind: str, keys: Any) -> Any:
        return await self.inner.get_many(kind, keys)

    async def put(self, kind: str, key: str, value: Value, *, expect: Expect = ANY, ttl: float | None = None) -> str:
        if self.fail:
            self.fail -= 1
            if self.fail % 2:
                await self.write(kind, key, value, expect, ttl)
            raise StoreUnavailable("the test says so")
        return await self.fuse.guard(lambda: self.write(kind, key, value, expect, ttl))  # type: ignore[no-any-return]

    async def write(self, kind: str, key: str, value: Value, expect: Expect, ttl: float | None) -> str:
        version = await self.inner.put(kind, key, value, expect=expect, ttl=ttl)
        if value["state"] in states.TERMINAL:
            self.finished.add(key)
        return version

    async def add_member(self, kind: str, key: str, member: str, *, ttl: float | None = None) -> int:
        return await self.inner.add_member(kind, key, member, ttl=ttl)

    async def members(self, kind: str, key: str) -> frozenset[str]:
        return await self.inner.members(kind, key)

    async def delete(self, kind: str, key: str) -> None:
        await self.inner.delete(kind, key)

    async def list(self, kind: str, *, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        return await self.inner.list(kind, prefix=prefix, limit=limit, cursor=cursor)

    async def close(self) -> None:
        await self.inner.close()


class Ledger(RuleBasedStateMachine):
    """Calls go in, hosts come and go. In the end an honest host drains the queues, and the ledger must balance."""

    with_store = True

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.fuse = Fuse()
        self.calls = 0
        self.ran: Counter[str] = Counter()
        self.rerun: list[str] = []
        """Ids of tasks that ran although the store knew them finished."""
        self.accepted: dict[str, str] = {}
        """Task id to what it must come to: SUCCESS, or dead."""
        self.links: set[str] = set()
        """Ids of the accepted calls that have a link and an error link."""
        self.linked: defaultdict[str, set[str]] = defaultdict(set)
        self.told: defaultdict[str, set[str]] = defaultdict(set)
        """Ids of the linked calls that ran, by the id of the call that they are linked to."""
        self.held: list[tuple[Runner, Job]] = []
        """Jobs that hosts have admitted and claimed, on their way."""

    @initialize(seed=st.integers(0, 2**32 - 1))
    def begin(self, seed: int) -> None:
        self.memory = MemoryBroker(clock=self.clock, lease=LEASE)
        self.lying = LyingBroker(self.memory, seed, OFTEN)
        self.documents = MemoryStore(self.clock)
        self.store = FusedStore(self.documents, self.fuse) if self.with_store else None
        broker: Broker = FusedBroker(self.lying, self.fuse)
        self.app = CloudQ("ledger", broker=broker, store=self.store, clock=self.clock, queues=QUEUES, default_queue="main")
        self.host = Runner(self.app)
        app, retry = self.app, Retry(max_retries=RETRIES, delay="10s", jitter=False)

        @app.task(bind=True, name="plain")
        def plain(task: Task[..., Any]) -> str:
            self.note(task)
            return "done"

        @app.task(bind=True, name="flaky", retry=retry)
        def flaky(task: Task[..., Any], failures: int) -> str:
            self.note(task)
            if task.request.retries < failures:
                raise ValueError("not yet")
            return "done"

        @app.task(bind=True, name="rejected")
        def rejected(task: Task[..., Any]) -> None:
            self.note(task)
            raise Reject("never")

        @app.task(bind=True, name="tell")
        def tell(task: Task[..., Any], value: str, whose: str) -> None:
            self.note(task)
            self.linked[whose].add(task.request.id)

        @app.task(bind=True, name="mourn")
        def mourn(task: Task[..., Any], what: dict[str, Any], whose: str) -> None:
            self.note(task)
            self.told[whose].add(task.request.id)

        self.plain, self.flaky, self.rejected, self.tell, self.mourn = plain, flaky, rejected, tell, mourn
        assert app.broker is broker

    def note(self, task: Task[..., Any]) -> None:
        id = task.request.id
        self.ran[id] += 1
        if self.store is not None and id in self.store.finished:
            self.rerun.append(id)

    def document(self, id: str) -> dict[str, Any]:
        found = drive(self.documents.get("task", id))
        return dict(found.value) if found is not None else {}

    # ------------------------------------------------------------------ calls

    @rule(
        kind=st.sampled_from(["plain", "flaky", "rejected"]),
        failures=st.integers(0, RETRIES + 1),
        delay=st.sampled_from([0, 0, 20, 2_000]),
        queue=st.sampled_from(QUEUES),
        link=st.booleans(),
    )
    def call(self, kind: str, failures: int, delay: float, queue: str, link: bool) -> None:
        self.calls += 1
        id = f"{kind}-{self.calls}"
        options: dict[str, Any] = {"task_id": id, "queue": queue}
        if delay:
            options["delay"] = delay
        if link:
            options |= {"link": self.tell.s(id).set(queue="other"), "link_error": self.mourn.s(id).set(queue="other")}
        args = (failures,) if kind == "flaky" else ()
        try:
            getattr(self, kind).apply_async(args, **options)
        except (BrokerError, SendUnknown):
            return  # the caller was told; whether it runs is open
        fails = kind == "rejected" or (kind == "flaky" and failures > RETRIES)
        self.accepted[id] = "dead" if fails else states.SUCCESS
        if link:
            self.links.add(id)

    # ------------------------------------------------------------------ hosts

    @rule(queue=st.sampled_from(QUEUES), most=st.integers(1, 4))
    def receive(self, queue: str, most: int) -> None:
        """A host takes messages and claims them, and is then somewhere in the middle."""
        try:
            deliveries = drive(self.app.broker.receive(queue, max_messages=most, wait=0))
        except BrokerError:
            return
        for delivery in deliveries:
            self.held.append((self.host, self.host.admit(delivery)))

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0, 9), step=st.sampled_from(["claim", "run", "all"]))
    def advance(self, at: int, step: str) -> None:
        """One job goes a step on, or to its end."""
        runner, job = self.held[at % len(self.held)]
        if step == "claim":
            if job.outcome is None and job.claim is None:
                drive(runner.claim(job))
        elif step == "run":
            self.run_one(runner, job)
        else:
            self.held.remove((runner, job))
            self.work(runner, job)

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0, 9), requests=st.integers(0, 6), after=st.booleans())
    def crash(self, at: int, requests: int, after: bool) -> None:
        """The host dies somewhere in a job, and with it all that it holds; another takes its place."""
        runner, job = self.held[at % len(self.held)]
        self.fuse.left, self.fuse.after = requests, after
        try:
            self.work(runner, job)
        except Crash:
            pass
        finally:
            self.fuse.left = None
            self.held = [(other, kept) for other, kept in self.held if other is not runner]
            self.host = Runner(self.app)

    @rule(
        queue=st.sampled_from(QUEUES), requests=st.none() | st.integers(0, 8), after=st.booleans(), wait=st.sampled_from([0, 0, LEASE + 1])
    )
    def turn(self, queue: str, requests: int | None, after: bool, wait: float) -> None:
        """A host of its own works off a batch, or dies at one of its requests."""
        self.clock.advance(wait)
        self.fuse.left, self.fuse.after = requests, after
        try:
            host = Runner(self.app)
            for delivery in drive(self.app.broker.receive(queue, max_messages=3, wait=0)):
                self.work(host, host.admit(delivery))
        except (Crash, BrokerError):
            pass
        finally:
            self.fuse.left = None

    @precondition(lambda self: self.with_store)
    @rule(requests=st.integers(1, 3))
    def store_fails(self, requests: int) -> None:
        assert self.store is not None
        self.store.fail = requests

    @rule(seconds=st.sampled_from([0.5, 5.0, LEASE + 1, 700.0, 2_500.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def run_one(self, runner: Runner, job: Job) -> None:
        if job.outcome is None and job.delivery.lease_until > self.clock.time():  # else its heartbeat has said that the lease is lost
            if self.with_store and job.claim is None:
                drive(runner.claim(job))
            if job.outcome is None:
                job.outcome = runner.run_isolated(job)

    def work(self, runner: Runner, job: Job) -> None:
        """As a host does: claim, run, make durable, then ack; what could not be made durable is left to its lease."""
        self.run_one(runner, job)
        if job.outcome is None:
            return
        try:
            if asyncio.run(settle(self.app, job, job.outcome)) is Verdict.ACK:
                drive(self.app.broker.ack([job.delivery]))
        except CloudQError:
            pass  # nothing is let go

    # ------------------------------------------------------------------ the end

    def teardown(self) -> None:
        if not hasattr(self, "app"):
            return
        self.held.clear()
        self.lying.rates = HONEST  # type: ignore[misc]
        if self.store is not None:
            self.store.fail = 0
        host, quiet = Runner(self.app), 0
        for _ in range(2_000):
            if quiet == 4:
                break
            found = False
            for queue in QUEUES:
                for delivery in drive(self.app.broker.receive(queue, max_messages=10, wait=0)):
                    self.work(host, host.admit(delivery))
                    found = True
            if found:
                quiet = 0
            else:
                quiet += 1
                self.clock.advance(1_000)
        else:
            raise AssertionError("the queues never fall quiet")
        dead = self.dead_letters()
        self.balance(dead)

    def dead_letters(self) -> dict[str, dict[str, Any]]:
        """The dead letters by task id."""
        found: dict[str, dict[str, Any]] = {}
        for queue in QUEUES:
            while batch := drive(self.memory.receive(f"{queue}-dlq", max_messages=10, wait=0)):
                found |= {fields["id"]: fields for fields in (parse(delivery.body) for delivery in batch)}
                drive(self.memory.ack(batch))
        return found

    def balance(self, dead: dict[str, dict[str, Any]]) -> None:
        looped = {id for id, fields in dead.items() if "dead" not in fields or fields["dead"]["reason"].startswith("crash loop")}
        unheard = {fields["args"][-1] for id, fields in dead.items() if id in looped and fields["task"] in ("tell", "mourn")}
        assert not self.rerun, f"finished work ran again: {self.rerun}"
        for id, wanted in self.accepted.items():
            state = self.document(id).get("state") if self.with_store else wanted if id in dead or self.ran[id] else None
            assert state in (*states.TERMINAL, "dead"), f"{id} was lost: its state is {state}"
            if wanted == "dead":
                assert id in dead, f"{id} is {state}, and not among the dead letters"
            elif state != states.SUCCESS:
                assert id in looped, f"{id} should have succeeded, is {state}, and did not crash too often: {dead.get(id)}"
            if id in self.links and id not in looped | unheard:
                heard = (self.linked if wanted == states.SUCCESS else self.told)[id]
                assert len(heard) == 1, f"the link of {id} ran under the ids {heard}"


class LedgerWithoutStore(Ledger):
    """Without a store things may run twice; nothing may be lost all the same."""

    with_store = False


LIMITS: Final = settings(max_examples=100, stateful_step_count=50, deadline=None)

TestWithAStore = Ledger.TestCase
TestWithAStore.settings = LIMITS
TestWithoutAStore = LedgerWithoutStore.TestCase
TestWithoutAStore.settings = LIMITS
