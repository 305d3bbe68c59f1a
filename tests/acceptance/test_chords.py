"""Chords count right whatever lies and dies: each body has its effect once, with the right list, and its chain comes to its end.

All of them over the memory broker and store, with hosts that end at any request; some over SQS and SQLite, with processes that are killed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, cast

import pytest

from cloudq import AsyncResult, CloudQ, Signature, Task, TaskFailed, chain, group, states
from cloudq.broker import Delivery
from cloudq.clock import ManualClock
from cloudq.errors import BrokerError, CloudQError
from cloudq.memory import Lies, LyingBroker, MemoryBroker, MemoryStore
from cloudq.runner import Runner
from cloudq.settle import Verdict, settle
from cloudq.signature import Canvas
from tests.acceptance import processes
from tests.acceptance.ledger import Ledger
from tests.servers import SQSServer, unique
from tests.waiting import until

CHORDS: Final = 1_000
MEMBERS: Final = 10
BROKEN: Final = 100
"""As many chords more have a member that fails."""
HOSTS: Final = 4
LEASE: Final = 30.0
TICK: Final = 0.05
"""Seconds that pass while a host takes a batch."""
DEATHS: Final = 1 / 250
"""How often a request is a host's last."""
PROCESSES: Final = 3
KILLS: Final = 6
LIES: Final = Lies(duplicate=0.2, reorder=0.5, expire=0.1)


class Death(BaseException):
    """The process ends here: nothing after this happens."""


class Life:
    """One process between its start and its end."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.over = False

    async def request(self, carry_out: Callable[[], Any]) -> Any:
        """Let others go on, and then carry a request out; or die before it, or once it is done and before its answer is there."""
        await asyncio.sleep(0)
        dies = self._dice.random() < DEATHS
        if self.over or (dies and self._dice.random() < 0.5):
            self.over = True
            raise Death
        answer = await carry_out()
        if dies:
            self.over = True
            raise Death
        return answer


LIVED: Final[ContextVar[Life | None]] = ContextVar("life", default=None)


class Mortal:
    """A broker or store as those see it who may die at any request."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def request(*args: Any, **kwargs: Any) -> Any:
            life = LIVED.get()
            return await (found(*args, **kwargs) if life is None else life.request(lambda: found(*args, **kwargs)))

        return request


class World:
    """Some hosts that die and come back, over one broker that lies and one store."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.clock = ManualClock()
        self.memory = MemoryBroker(clock=self.clock, lease=LEASE)
        self.app = app = CloudQ(
            "chords",
            broker=Mortal(LyingBroker(self.memory, seed, LIES)),
            store=Mortal(MemoryStore(self.clock)),
            clock=self.clock,
            crash_cap=1_000,  # each lie about a lease looks like a crash
        )
        self.deaths = 0
        self.deliveries = 0
        self.runs: Counter[str] = Counter()
        self.effects: dict[str, tuple[int, list[int]]] = {}
        """What bodies did, by task id: to do it again changes nothing."""
        self.told: dict[str, int] = {}
        """What error links did, in the same way."""

        @app.task(name="member", bind=True, ignore_result=True)
        def member(task: Task[..., Any], chord: int, index: int) -> int:
            self.runs[task.request.id] += 1
            if chord >= CHORDS and index == chord % MEMBERS:
                raise ValueError("a member that fails")
            return chord * MEMBERS + index

        @app.task(name="body", bind=True)
        def body(task: Task[..., Any], values: list[int], chord: int) -> list[int]:
            self.runs[task.request.id] += 1
            assert self.effects.setdefault(task.request.id, (chord, values)) == (chord, values)
            return values

        @app.task(name="sum")
        def sum_(value: object) -> int:
            return value if isinstance(value, int) else sum(map(sum_, cast("list[object]", value)))

        @app.task(name="fail")
        def fail(value: object) -> int:
            raise ValueError(f"it fails with {value}")

        @app.task(name="next")
        def next_(value: int) -> int:
            return value + 1

        @app.task(name="end")
        def end(values: list[int]) -> int:
            return len(values)

        @app.task(name="tell", bind=True)
        def tell(task: Task[..., Any], what: dict[str, Any], chord: int) -> None:
            assert "a member that fails" in what["reason"]
            self.told[task.request.id] = chord

        self.member, self.body, self.end, self.tell, self.next, self.sum, self.fail = member, body, end, tell, next_, sum_, fail

    def call(self, number: int) -> AsyncResult[int]:
        members = group(self.member.s(number, index) for index in range(MEMBERS))
        return (members | self.body.s(number).on_error(self.tell.s(number)) | self.end.s()).delay()

    async def work_all_off(self) -> None:
        """Hosts work until nothing is left, in the queue or with those that died."""
        await asyncio.gather(*(self._host() for _ in range(HOSTS)))

    async def _host(self) -> None:
        while await self._left():
            life = Life(self.dice)
            LIVED.set(life)
            runner = Runner(self.app)
            try:
                while not life.over and await self._left():
                    await self._batch(runner)
            except (Death, BrokerError):
                pass
            self.deaths += life.over

    async def _left(self) -> bool:
        stats = await self.memory.stats("default")
        return bool(stats.ready or stats.in_flight or stats.delayed)

    async def _batch(self, runner: Runner) -> None:
        deliveries = await self.app.broker.receive("default", max_messages=10, wait=0)
        self.deliveries += len(deliveries)
        self.clock.advance(TICK if deliveries else 1.0)
        await asyncio.gather(*(self._one(runner, delivery) for delivery in deliveries), return_exceptions=True)

    async def _one(self, runner: Runner, delivery: Delivery) -> None:
        job = runner.admit(delivery)
        try:
            if job.outcome is None:
                await runner.claim(job)
            outcome = job.outcome or runner.run_isolated(job)
            if await settle(self.app, job, outcome) is Verdict.ACK:
                await self.app.broker.ack([delivery])
        except CloudQError:
            pass  # nothing is let go


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL, "cloudq"):
        yield


def test_1000_chords_of_10_run_their_body_once_and_end_with_the_right_list_under_lies_and_deaths() -> None:
    world = World(seed=2026)
    began = world.clock.time()
    results, broken = [world.call(number) for number in range(CHORDS)], [world.call(CHORDS + number) for number in range(BROKEN)]
    asyncio.run(world.work_all_off())
    bodies = [result.parent for result in results]
    again = sum(runs > 1 for runs in world.runs.values())
    print(f"{world.deaths} deaths in {world.clock.time() - began:.0f} s; {again} of {len(world.runs)} tasks ran more than once")
    assert world.deaths > 100
    assert {result.state for result in results} == {states.SUCCESS}
    expected = [list(range(number * MEMBERS, (number + 1) * MEMBERS)) for number in range(CHORDS)]
    assert world.effects == {body.id: (number, expected[number]) for number, body in enumerate(bodies) if body is not None}
    assert [body and body.get(timeout=0) for body in bodies] == expected
    assert [result.get(timeout=0) for result in results] == [MEMBERS] * CHORDS
    assert len(world.runs) == CHORDS * (MEMBERS + 1) + BROKEN * MEMBERS
    assert {result.state for result in broken} == {states.FAILURE}
    assert sorted(world.told.values()) == [CHORDS + number for number in range(BROKEN)]
    world.app.close()


def test_workflows_of_any_shape_come_to_what_they_come_to_in_place() -> None:
    world, dice = World(seed=11), random.Random(11)
    canvases = [world.sum.s(1) | _shape(world, dice, 3) | world.sum.s() for _ in range(100)]
    expected = [_come_to(canvas.apply()) for canvas in canvases]
    results = [canvas.delay() for canvas in canvases]
    asyncio.run(world.work_all_off())
    assert [_come_to(result) for result in results] == expected
    assert 0 < expected.count(None) < len(expected) / 2


def _shape(world: World, dice: random.Random, depth: int) -> Canvas[Any]:
    """A chain of sums, of groups of such chains, and now and then of what fails."""
    steps: list[Canvas[Any]] = []
    for _ in range(dice.choice([1, 1, 2, 3, 4])):
        kind = dice.random() if depth else 1.0
        if kind < 0.3:
            steps.append(group(_shape(world, dice, depth - 1) for _ in range(dice.choice([0, 1, 2, 3, 12]))))
        else:
            steps.append(world.fail.s() if kind < 0.31 else world.sum.s())
    return chain(steps)


def _come_to(result: AsyncResult[int]) -> int | None:
    try:
        return result.get(timeout=0)
    except TaskFailed:
        return None


def test_copies_do_not_multiply_along_a_chain() -> None:
    world, chains, steps = World(seed=7), 20, 200
    results = [chain(world.member.s(0, number), *[world.next.s()] * (steps - 1)).delay() for number in range(chains)]
    asyncio.run(world.work_all_off())
    print(f"{world.deliveries / chains / steps:.1f} deliveries a step, {world.deaths} deaths")
    assert [result.get(timeout=0) for result in results] == [number + steps - 1 for number in range(chains)]
    assert world.deliveries <= 8 * chains * steps


@pytest.mark.parametrize("sqs_server", ["ours"], indirect=True)
def test_chords_run_their_body_once_while_worker_processes_are_killed(sqs: SQSServer, tmp_path: Path) -> None:
    queue, effects, ledger = unique(), tmp_path / "effects", Ledger(tmp_path / "ledger")
    effects.mkdir()
    sqs.make_queue(queue, dead_letter=f"{queue}-dlq", max_receives=1_000)
    urls = {"CLOUDQ_BROKER": "sqs://?lease=2", "CLOUDQ_STORE": f"sqlite:///{tmp_path}/store.db"}
    env = {**sqs.env, **urls, "LEDGER": str(ledger.path), "EFFECTS": str(effects)}
    app = CloudQ("sender", broker=urls["CLOUDQ_BROKER"], store=urls["CLOUDQ_STORE"], default_queue=queue)
    values = [list(range(number, number + MEMBERS)) for number in range(CHORDS // 10)]
    with app.batch():
        results = [(group(_call(app, "member", value) for value in each) | _call(app, "body")).delay() for each in values]
    dice, began = random.Random(2026), time.monotonic()
    with ExitStack() as stack:
        workers = [_start(stack, queue, env, tmp_path / f"{number}.log") for number in range(PROCESSES)]
        for number in range(KILLS):
            ledger.wait("member", (number + 1) * len(values) * MEMBERS // (KILLS + 1), 180)
            victim = dice.randrange(PROCESSES)
            workers[victim].signal(signal.SIGKILL)
            assert workers[victim].wait() == -signal.SIGKILL
            workers[victim] = _start(stack, queue, env, tmp_path / f"again-{number}.log")
        assert [result.get(timeout=180) for result in results] == values
        until(lambda: sqs.depth(queue) == 0, "an empty queue", 180)  # no more copies are on their way
    members, bodies = ledger.counts("member"), ledger.counts("body")
    ran = f"{members.total()} runs of {len(members)} members, {bodies.total()} of {len(bodies)} bodies"
    print(f"{KILLS} kills in {time.monotonic() - began:.1f} s; {ran}")
    assert {path.name: path.read_text() for path in effects.iterdir()} == {
        result.id: repr(each) for result, each in zip(results, values, strict=True)
    }
    assert len(members) == len(values) * MEMBERS
    assert sqs.depth(f"{queue}-dlq") == 0
    app.close()


def _call(app: CloudQ, task: str, *args: Any) -> Signature[Any]:
    return Signature(task, args, app=app)


def _start(stack: ExitStack, queue: str, env: dict[str, str], log: Path) -> processes.WorkerProcess:
    return stack.enter_context(processes.start("tests.acceptance.chorded", "--concurrency", "8", queues=[queue], env=env, log=log))
