"""The host of tests: runs a call here and now, through codec and runner, never around them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from cloudq import calls, states
from cloudq.broker import Delivery
from cloudq.message import derived_id
from cloudq.outcome import Again, Dead, Done, Dropped, Later, Outcome
from cloudq.result import AsyncResult, EagerResult
from cloudq.runner import Job, Runner
from cloudq.signature import CallOptions

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
    return _run(app, prepared.queue, prepared.outgoing.body)


def _run(app: CloudQ, queue: str, body: str) -> AsyncResult[Any]:
    runner = Runner(app)
    runs = 0
    while True:
        job = runner.admit(Delivery(queue=queue, body=body, receipt=None, receives=1, received=app.clock.time()))
        outcome = _outcome(runner, job)
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
    match outcome:
        case Done(value):
            document.update(state=states.SUCCESS, value=value)
            if outcome.kept:
                _links(app, job, "link", value)
        case Dead(reason, error, state):
            document.update(state=state, reason=reason, error=error.as_json() if error else {})
            told = {"id": message.id, "task": message.task, "queue": queue, "reason": reason, "error": error.as_json() if error else None}
            _links(app, job, "link_error", told)
        case Dropped(why, state):
            document.update(state=state or states.REVOKED, reason=why)
        case Later(_, why):
            document.update(state=states.DEAD, reason=why)
    return EagerResult(message.id, app, document)


def _outcome(runner: Runner, job: Job) -> Outcome:
    if isinstance(job.outcome, Later) and job.message is not None and job.message.eta is not None:
        job = runner.admit(Delivery(queue=job.delivery.queue, body=job.message.copy(eta=None).encode(), receipt=None, receives=1))
    if job.outcome is not None:
        return job.outcome
    assert job.request is not None and job.task is not None
    job.request.is_eager = job.recorded = True
    if not job.task.is_async:
        return runner.run_isolated(job)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(runner.arun(job))
    return _in_a_thread(runner, job)


def _in_a_thread(runner: Runner, job: Job) -> Outcome:
    """An async task called eagerly from a running loop: that loop cannot run it while it waits for it."""
    answer: list[Outcome] = []
    thread = threading.Thread(target=lambda: answer.append(asyncio.run(runner.arun(job))), name="cloudq-eager")
    thread.start()
    thread.join()
    return answer[0]


def _links(app: CloudQ, job: Job, kind: str, value: Any) -> None:
    message = job.message
    assert message is not None
    for index, link in enumerate(message.link if kind == "link" else message.link_error):
        call = calls.linked_message(app, link, id=derived_id(message.id, kind, index), parent=message, value=value)
        _run(app, call.queue, call.outgoing.body)
