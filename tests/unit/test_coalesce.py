"""The coalescer merges single items into full requests, and neither loses one nor keeps one waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudq.coalesce import Coalescer


class Recorder:
    """Performs requests and remembers them; ``gate`` holds them open."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[object]] = []
        self.gate = asyncio.Event()
        self.open = 0
        self.most_open = 0
        if not held:
            self.gate.set()

    async def __call__(self, batch: Sequence[object]) -> None:
        self.batches.append(list(batch))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        await self.gate.wait()
        self.open -= 1


class _Time:
    """The running loop's, which stands still but for ``pass_``: else a busy machine's lingers would be over too soon."""

    def __init__(self) -> None:
        self.now = (loop := asyncio.get_running_loop()).time()
        loop.time = lambda: self.now  # type: ignore[method-assign]

    async def pass_(self, seconds: float) -> None:
        self.now += seconds
        await _turns()


async def _turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_an_idle_lane_sends_at_once_with_what_was_added_in_the_same_turn() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        lane = Coalescer[object](recorder, count=10, linger=60)
        for item in "abc":
            lane.add(item)
        await _turns()
        assert recorder.batches == [["a", "b", "c"]]

    asyncio.run(scenario())


def test_a_full_batch_goes_at_once_while_a_request_is_in_flight() -> None:
    async def scenario() -> None:
        recorder = Recorder(held=True)
        lane = Coalescer[object](recorder, count=3, linger=60)
        lane.add(0)
        await _turns()
        for item in (1, 2, 3):
            lane.add(item)
        await _turns()
        assert recorder.batches == [[0], [1, 2, 3]]
        recorder.gate.set()
        await lane.drain()

    asyncio.run(scenario())


def test_a_partial_batch_waits_while_a_request_is_in_flight_and_goes_after_its_linger() -> None:
    async def scenario() -> None:
        time = _Time()
        recorder = Recorder(held=True)
        lane = Coalescer[object](recorder, count=10, linger=0.01)
        lane.add(0)
        await _turns()
        lane.add(1)
        await _turns()
        lane.add(2)
        assert recorder.batches == [[0]]
        assert lane.pending == [1, 2]
        await time.pass_(0.05)
        assert recorder.batches == [[0], [1, 2]]
        recorder.gate.set()
        await lane.drain()
        assert not lane.busy

    asyncio.run(scenario())


def test_a_lane_that_is_not_eager_lingers_also_when_idle() -> None:
    async def scenario() -> None:
        time = _Time()
        recorder = Recorder()
        lane = Coalescer[object](recorder, count=10, linger=0.01, eager=False)
        lane.add(0)
        await _turns(5)
        lane.add(1)
        assert recorder.batches == []
        await time.pass_(0.05)
        assert recorder.batches == [[0, 1]]

    asyncio.run(scenario())


def test_flush_sends_what_waits_without_lingering() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        lane = Coalescer[object](recorder, count=10, linger=60, eager=False)
        lane.add(0)
        lane.flush()
        await _turns()
        assert recorder.batches == [[0]]

    asyncio.run(scenario())


def test_an_item_heavier_than_the_limit_travels_alone() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        lane = Coalescer[object](recorder, count=10, weight=100, linger=60)
        lane.add("light", 1)
        lane.add("heavy", 1000)
        lane.add("light too", 1)
        await lane.drain()
        assert recorder.batches == [["light"], ["heavy"], ["light too"]]

    asyncio.run(scenario())


def test_a_request_that_raises_is_reported_and_stops_nothing() -> None:
    async def scenario() -> None:
        told: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        done: list[object] = []

        async def perform(batch: Sequence[object]) -> None:
            if "bad" in batch:
                raise ValueError("bad")
            done.extend(batch)

        lane = Coalescer[object](perform, count=1, linger=60, in_flight=1)
        lane.add("bad")
        lane.add("good")
        await lane.drain()
        assert done == ["good"]
        assert len(told) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("eager", [True, False])
@settings(max_examples=30)
@given(
    weights=st.lists(st.integers(0, 60), max_size=60),
    count=st.integers(1, 10),
    in_flight=st.integers(1, 3),
    pauses=st.sets(st.integers(0, 60)),
)
def test_every_item_goes_once_in_order_within_every_limit(
    eager: bool, weights: list[int], count: int, in_flight: int, pauses: set[int]
) -> None:
    async def scenario() -> None:
        recorder = Recorder()

        async def perform(batch: Sequence[object]) -> None:
            await asyncio.sleep(0)
            await recorder(batch)

        lane = Coalescer[object](perform, count=count, weight=50, linger=0.0005, in_flight=in_flight, eager=eager)
        for index, weight in enumerate(weights):
            lane.add((index, weight), weight)
            if index in pauses:
                await asyncio.sleep(0)
        await lane.drain()
        sent = [item for batch in recorder.batches for item in batch]
        assert sent == list(enumerate(weights))
        assert all(len(batch) <= count for batch in recorder.batches)
        assert all(len(batch) == 1 or sum(item[1] for item in batch) <= 50 for batch in recorder.batches)  # type: ignore[index]
        assert recorder.most_open <= in_flight
        assert not lane.busy

    asyncio.run(scenario())


def test_drain_returns_only_when_what_is_in_flight_has_ended() -> None:
    async def scenario() -> None:
        recorder = Recorder(held=True)
        lane = Coalescer[object](recorder, count=10)
        lane.add(0)
        draining = asyncio.create_task(lane.drain())
        await _turns(5)
        assert not draining.done()
        recorder.gate.set()
        await draining
        assert recorder.open == 0

    asyncio.run(scenario())


def test_those_just_answered_are_waited_for_and_nobody_else() -> None:
    async def scenario() -> None:
        batches: list[list[object]] = []
        gates: list[asyncio.Event] = []

        async def perform(batch: Sequence[object]) -> None:
            batches.append(list(batch))
            gates.append(asyncio.Event())
            if batch != ["stranger"]:
                await gates[-1].wait()

        lane = Coalescer[object](perform, count=4, linger=60)
        lane.add("a1")
        await _turns()
        for item in ("b1", "b2", "b3", "b4"):
            lane.add(item)
        lane.add("c")
        await _turns()
        assert batches == [["a1"], ["b1", "b2", "b3", "b4"]]  # c waits for company
        gates[0].set()
        await _turns()
        assert len(batches) == 2
        lane.add("a1 again")  # whoever may come has come, but for strangers
        await _turns()
        assert batches[2:] == [["c", "a1 again"]]
        lane.add("stranger")
        await _turns()
        assert len(batches) == 3
        for gate in gates[1:]:
            gate.set()
        await lane.drain()
        assert batches[3:] == [["stranger"]]

    asyncio.run(scenario())
