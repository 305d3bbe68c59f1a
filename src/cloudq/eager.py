"""The host of tests: runs calls and workflows here and now, through codec and runner, never around them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from cloudq import calls, chords, states
from cloudq.broker import Delivery
from cloudq.launch import Launch, handle, plan
from cloudq.message import Message, derived_id
from cloudq.outcome import Again, Dead, Done, Dropped, Later, Outcome
from cloudq.result import AsyncResult, EagerGroupResult, EagerResult, GroupResult
from cloudq.runner import Job, Runner
from cloudq.signature import CallOptions, Canvas

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.task import Task

MAX_RUNS: Final = 1_000
"""Runs of one call at most: a task that retries for ever would never return."""


def run(app: CloudQ, task: Task[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: CallOptions) -> AsyncResult[Any]:
    """Send the call to nobody but the runner, retries at once, links too; returns its result, which needs no store.

    Raises what the call itself would: ArgumentsError, MessageTooLarge, DelayError. Delays and time limits of sync tasks are not kept.
    """
    prepared = calls.prepare(app, task.name, task, args, kwargs, options)
    place = _Place(app)
    place.waiting.append((prepared.queue, prepared.outgoing.body))
    place.work()
    return EagerResult(prepared.id, app, place.documents[prepared.id])


def run_canvas(app: CloudQ, canvas: Canvas[Any]) -> AsyncResult[Any]:
    """The same for a chain, group or chord; it needs no store either."""
    id, launch = plan(app, canvas, stored=False)
    place = _Place(app)
    place.perform(launch)
    place.work()
    return place.result(handle(app, canvas, id))


class _Place:
    """Broker and store of one eager call: what is sent waits here, and what ended is known here."""

    def __init__(self, app: CloudQ) -> None:
        self.app = app
        self.runner = Runner(app, eager=True)
        self.waiting: deque[tuple[str, str]] = deque()
        self.documents: dict[str, dict[str, Any]] = {}
        self.chords: dict[str, dict[str, Any]] = {}
        self.arrived: dict[str, int] = {}

    def work(self) -> None:
        while self.waiting:
            self._run(*self.waiting.popleft())

    def result(self, handle: AsyncResult[Any]) -> AsyncResult[Any]:
        """The handle and those before it, with what their tasks came to."""
        handles = [handle]
        while (before := handles[-1].parent) is not None:
            handles.append(before)
        last: AsyncResult[Any] | None = None
        for each in reversed(handles):
            made = self._ended(each)
            made.parent, last = last, made
        assert last is not None
        return last

    def _ended(self, handle: AsyncResult[Any]) -> AsyncResult[Any]:
        if isinstance(handle, GroupResult):
            members = cast("Any", handle).children
            children: list[AsyncResult[Any]] = [self.result(child) for child in members]
            return EagerGroupResult(handle.id, self.app, children)
        missing = {"state": states.FAILURE, "reason": "a step before it ended without a result"}
        return EagerResult(handle.id, self.app, self.documents.get(handle.id, missing))

    def perform(self, launch: Launch) -> None:
        self.chords.update(launch.chords)
        self.waiting.extend((call.queue, call.outgoing.body) for call in launch.calls)
        for join in launch.ended:
            self._arrive(join)

    def _run(self, queue: str, body: str) -> None:
        app, runner, runs = self.app, self.runner, 0
        while True:
            job = runner.admit(Delivery(queue=queue, body=body, receipt=None, receives=1, received=app.clock.time()))
            outcome = self._outcome(job)
            if not isinstance(outcome, Again):
                break
            runs += 1
            if runs == MAX_RUNS:
                outcome = Dead(f"it was still retrying after {MAX_RUNS} runs", outcome.error, states.FAILURE)
                break
            assert job.message is not None
            body = job.message.next_attempt().encode()
        message = job.message
        assert message is not None
        document: dict[str, Any] = {"task": message.task, "attempt": message.attempt, "queue": queue, "finished": app.clock.time()}
        if message.each:
            document["each"] = True
        match outcome:
            case Done(value):
                document.update(state=states.SUCCESS, value=value)
            case Dead(reason, error, state):
                document.update(state=state, reason=reason, error=error.as_json() if error else {})
            case Dropped(why, state):
                document.update(state=state or states.REVOKED, reason=why)
            case Later(_, why):
                document.update(state=states.DEAD, reason=why)
        self.documents[message.id] = document
        if isinstance(outcome, Done) and outcome.kept:
            self._succeeded(message, outcome.value)
        elif not isinstance(outcome, Done):
            self._failed(message, document)

    def _outcome(self, job: Job) -> Outcome:
        runner = self.runner
        if isinstance(job.outcome, Later) and job.message is not None and job.message.eta is not None:
            job = runner.admit(Delivery(queue=job.delivery.queue, body=job.message.copy(eta=None).encode(), receipt=None, receives=1))
        if job.outcome is not None:
            return job.outcome
        message = job.message
        assert message is not None and job.task is not None
        if message.results is not None:
            job.given = (self._results(message.results["chord"]),)
        assert job.request is not None
        job.request.is_eager = job.recorded = True
        if not job.task.is_async:
            return runner.run_isolated(job)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(runner.arun(job))
        return _in_a_thread(runner, job)

    def _succeeded(self, message: Message, value: Any) -> None:
        launch = Launch(self.app, parent=message, flow=message.flow)
        for index, link in enumerate(message.link):
            launch.start(calls.link_steps(link), derived_id(message.id, "link", index), value=value)
        if message.next:
            launch.start(message.next, message.next[-1]["id"], value=value, join=message.join)
        self.perform(launch)
        if message.join is not None and not message.next:
            self._arrive(message.join)

    def _arrive(self, join: Mapping[str, Any]) -> None:
        id: str = join["chord"]
        self.arrived[id] = self.arrived.get(id, 0) + 1
        if self.arrived[id] < join["of"]:
            return
        chord = self.chords[id]
        if steps := chord.get("next"):
            launch = Launch(self.app, parent=Message({"id": id, "task": "group"}), flow=chord.get("flow"))
            launch.start(steps, steps[-1]["id"], results={"chord": id}, join=chord.get("join"))
            self.perform(launch)
        elif outer := chord.get("join"):
            self._arrive(outer)

    def _results(self, chord: str) -> list[Any]:
        ids = chords.members(chord, self.chords[chord])
        return [self.documents[id].get("value") if id in self.documents else self._results(id) for id in ids]

    def _failed(self, message: Message, document: Mapping[str, Any]) -> None:
        """Later steps will not come; a chord's body tells its error links."""
        told = {"id": message.id, "task": message.task, "queue": document["queue"], "reason": document["reason"]}
        told["error"] = document.get("error") or None
        launch = Launch(self.app, parent=message)
        for index, link in enumerate(message.link_error):
            launch.start(calls.link_steps(link), derived_id(message.id, "link_error", index), value=told)
        steps, join = message.next, message.join
        while True:
            for step in steps:
                self.documents[step["id"]] = {**document, "task": step.get("task", "group"), "state": states.FAILURE}
            if join is None:
                break
            chord = self.chords[join["chord"]]
            if chord.setdefault("failed", join["index"]) != join["index"]:
                break
            steps, join = chord.get("next", ()), chord.get("join")
            for index, link in enumerate(steps[0].get("link_error", ()) if steps else ()):
                body = {**told, "id": steps[0]["id"], "task": steps[0]["task"], "queue": steps[0]["queue"]}
                launch.start(calls.link_steps(link), derived_id(steps[0]["id"], "link_error", index), value=body)
        self.perform(launch)


def _in_a_thread(runner: Runner, job: Job) -> Outcome:
    """An async task called eagerly from a running loop: that loop cannot run it while it waits for it."""
    answer: list[Outcome] = []
    thread = threading.Thread(target=lambda: answer.append(asyncio.run(runner.arun(job))), name="cloudq-eager")
    thread.start()
    thread.join()
    return answer[0]
