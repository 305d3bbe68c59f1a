"""The Lambda host: SQS batches, and calls made by invoking the function, through the same runner as every other host."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, cast

from cloudq.app import CloudQ
from cloudq.broker import Delivery
from cloudq.calls import queue_of
from cloudq.errors import CloudQError, ConfigError, TaskFailed
from cloudq.message import VERSION, new_id
from cloudq.outcome import Again, Dead, Done, Dropped, Failure, Later, Outcome
from cloudq.runner import Job
from cloudq.settle import is_settled, settle
from cloudq.values import dumps
from cloudq_aws.client import Opens
from cloudq_aws.function.batch import Batch
from cloudq_aws.function.execution import Execution
from cloudq_aws.function.limits import LambdaContext, TimeLeft
from cloudq_aws.sqs import SQSBroker

__all__ = ["Handler", "lambda_handler"]


def lambda_handler(app: CloudQ, *, concurrency: int = 1) -> Handler:
    """The function that Lambda calls: ``handler = lambda_handler(app)``, at module level, so that warm invocations find it ready.

    Sync tasks of a batch run one after another on the main thread, or with ``concurrency`` above 1 on so many threads; async tasks run
    concurrently, on a loop that lives as long as the execution environment.
    """
    return Handler(app, concurrency=concurrency)


class Handler:
    """An app inside Lambda. Called with an event, it answers what Lambda wants to hear of it.

    SQS batches: the partial failure response, always (the event source mapping must have ReportBatchItemFailures). A record is
    reported only if its outcome could not be made durable, if the time ran out before it could start (it is visible again at once),
    or if it keeps its place in a FIFO queue; then those behind it in its group are too. All else, retries and dead letters, has been sent
    when the handler returns.

    Direct invocations: ``{"task": name, "args": […], "kwargs": {…}}``, a message of the protocol, or a schedule's tick ``{"tick": name,
    "slot": "<aws.scheduler.scheduled-time>"}``: runs it once and returns its result, or raises; retries are the invoker's.

    Time limits of sync tasks hold on the main thread (TimeLimitExceeded is raised inside the task) and on threads (the task is given up).
    """

    def __init__(self, app: CloudQ, *, concurrency: int = 1) -> None:
        if concurrency < 1:
            raise ConfigError("lambda_handler needs a concurrency of 1 or more")
        app.load()
        if app.broker.limits.local:
            raise ConfigError("in Lambda retries and dead letters need a broker that outlives the process: set CLOUDQ_BROKER=sqs://region/")
        self.app = app
        self.concurrency = concurrency
        self._execution = Execution(app)
        self._queues: dict[str, str] = {}
        if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
            for seam in (app.broker, app.store, app.timer):
                if isinstance(seam, Opens):
                    seam.open()  # now: a function starts with more CPU than most run with

    def __call__(self, event: object, context: LambdaContext | None = None) -> Any:
        """Handle one event. Raises ConfigError for one that is neither an SQS batch nor a call."""
        time_left = TimeLeft.of(context)
        fields = _object(event)
        if isinstance(records := fields.get("Records"), list):
            batch = Batch(self._execution, lambda arn: self._queue_of(arn, context), time_left, concurrency=self.concurrency)
            failed = batch.run(cast("list[dict[str, Any]]", records))
            return {"batchItemFailures": [{"itemIdentifier": id} for id in failed]}
        if isinstance(fields.get("task"), str) or isinstance(fields.get("tick"), str):
            return self._call(fields, time_left)
        shape = f"an object with {', '.join(sorted(fields)) or 'nothing in it'}" if isinstance(event, dict) else f"a {type(event).__name__}"
        raise ConfigError(f'this is neither an SQS batch nor a call {{"task": name, "args": […]}}: {shape}')  # names, never values

    def _queue_of(self, arn: str, context: LambdaContext | None) -> str:
        """The app's name of the queue with this ARN."""
        queue = self._queues.get(arn)
        if queue is None:
            broker, account = self.app.broker, arn.split(":")[4:5]
            foreign = account != getattr(context, "invoked_function_arn", arn).split(":")[4:5]
            if arn in self.app.queues or foreign:
                queue = arn
            else:
                queue = broker.queue_of(arn) if isinstance(broker, SQSBroker) else arn.rpartition(":")[2]
            self._queues[arn] = queue
        return queue

    # ------------------------------------------------------------------ a call by invocation

    def _call(self, event: dict[str, Any], time_left: TimeLeft) -> Any:
        now = self.app.clock.time()
        if "task" in event:
            task = self.app[event["task"]]
            fields = event if "v" in event else {"v": VERSION, "id": new_id(), "sent": round(now, 3), **event}
            queue = queue_of(self.app, task.name, task, None)
        else:
            fields, queue = {"v": VERSION, **event}, self.app.required_schedule(event["tick"]).queue(self.app)
        delivery = Delivery(
            queue=queue, body=dumps(fields), receipt=None, receives=1, received=now, lease_until=now + min(time_left.seconds, 900.0)
        )
        job = self._execution.runner.admit(delivery, trusted=True)  # by IAM: lambda:InvokeFunction
        job.recorded = True  # its value is wanted: the invoker gets it
        if job.outcome is None and self.app.store is not None:
            self.app.io.run(self._execution.runner.claim(job))
            self._execution.watch_progress(job)
        outcome = job.outcome or self._execution.run_alone(job, time_left)
        value = _value(outcome)
        if value is None:  # the invoker decides what becomes of it: no dead letter, and no result that would refuse its next try
            if job.claim is not None:
                with suppress(CloudQError, TimeoutError):
                    self.app.io.run(job.claim.release(), timeout=5.0)
        elif not is_settled(job, outcome):
            self.app.io.run(settle(self.app, job, outcome))
        self._execution.flush(time_left)
        if value is None:
            raise _failure(job, outcome)
        return value[0]


def _value(outcome: Outcome) -> tuple[Any] | None:
    """What a call returns, where it has ended well now or before."""
    match outcome:
        case Done(value) | Dropped(state=None, value=value, follow_ups=True, ended=None):
            return (value,)
        case _:
            return None


def _failure(job: Job, outcome: Outcome) -> TaskFailed:
    id = job.message.id if job.message is not None else ""
    match outcome:
        case Again(_, error) | Dead(_, Failure() as error):
            return TaskFailed(error.type, error.detail, task_id=id, traceback=error.traceback)
        case Dead(why) | Later(_, why) | Dropped(why):
            return TaskFailed(f"cloudq.{type(outcome).__name__}", why, task_id=id)
        case Done():
            raise AssertionError(outcome)


def _object(event: object) -> dict[str, Any]:
    return cast("dict[str, Any]", event) if isinstance(event, dict) else {}
