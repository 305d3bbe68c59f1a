"""The Google timer: cloudq's timer seam by Cloud Tasks (once) and Cloud Scheduler (again and again), which publish to Pub/Sub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol, runtime_checkable

from cloudq.adapters import Adapter, AdapterContext, Location
from cloudq.broker import Broker, Outgoing
from cloudq.clock import Clock, SystemClock
from cloudq.errors import ConfigError, TimerError
from cloudq.schedules.naming import cloud_scheduler_owner
from cloudq.timer import Schedule, TimerLimits
from cloudq_gcp.cloud_scheduler import CloudScheduler
from cloudq_gcp.cloud_tasks import AHEAD, CloudTasks
from cloudq_gcp.naming import Naming

__all__ = ["GoogleTimer", "adapter"]

_HORIZON: Final = 3650 * 86_400.0
"""Our own: what is beyond Cloud Tasks' 30 days goes in hops."""
_HOP: Final = AHEAD - 43_200.0
_LATE: Final = 1.0
"""Seconds. Google names no precision."""


@runtime_checkable
class PubSubQueues(Broker, Protocol):
    """A broker whose queues are Pub/Sub's topics."""

    @property
    def naming(self) -> Naming:
        """Which topic a queue is."""
        ...


class GoogleTimer:
    """A Timer of the Cloud Tasks queue ``queue`` in ``project`` and ``location``, and of Cloud Scheduler there; it creates no queue.

    Tasks publish as ``service_account``, an email, which needs roles/pubsub.publisher on the topics. Queues are named as ``broker`` names
    them; without a broker by their topics in full, or by a topic's plain name in ``project``. Names of tasks and jobs have ``app`` in them,
    and those of jobs ``queue``, so that several apps can share a queue, and stages a project.

    A task fires at its time or soon after. Where workers can hold a message (``broker.limits.hold``) it is set a second earlier, which is
    ``limits.late``; where not, being early would cost another task, so it may be about that late. What is due goes through ``broker`` at
    once. What is more than 29.5 days ahead comes early and is set again (``limits.hop``), because Cloud Tasks takes 30 days; with an
    ordering key it would block its group, and is refused. Cloud Tasks has no dead letters: its queue should try without end
    (``max_attempts=-1``; it gives up after 31 days), and deserves an alarm on its depth.

    Cloud Scheduler substitutes nothing: ``<slot>`` in a schedule's body arrives as it is. A job publishes in its own project only, and
    without an ordering key; what cannot be published is tried again five times.

    Who calls ``at`` needs roles/cloudtasks.enqueuer, taskDeleter and viewer on the queue, and roles/iam.serviceAccountUser on the account;
    who syncs schedules roles/cloudscheduler.admin. There is no emulator of Google's: ``CLOUD_TASKS_EMULATOR_HOST`` and
    ``CLOUD_SCHEDULER_EMULATOR_HOST`` (``host:port``) lead to those of others, which are asked in plain text and without credentials.
    """

    def __init__(
        self,
        project: str,
        location: str,
        queue: str,
        *,
        service_account: str,
        app: str,
        broker: PubSubQueues | None = None,
        clock: Clock | None = None,
    ) -> None:
        place = f"projects/{project}/locations/{location}"
        self._tasks = CloudTasks(f"{place}/queues/{queue}", service_account=service_account, app=app)
        self._jobs = CloudScheduler(place, owner=cloud_scheduler_owner(app, queue))
        self._broker = broker
        self._naming = Naming(project=project) if broker is None else broker.naming
        self._limits = TimerLimits(horizon=_HORIZON, late=_LATE if broker is None else min(_LATE, broker.limits.hold), hop=_HOP)
        self._clock = clock or SystemClock()

    @property
    def limits(self) -> TimerLimits:
        return self._limits

    async def at(self, when: float, queue: str, message: Outgoing, *, key: str) -> None:
        now = self._clock.time()
        most = _HORIZON if message.group is None else _HOP  # who receives an ordered message early keeps it, and its group waits
        if not when - now <= most:
            raise TimerError(f"this timer is set at most {most / 86_400:g} days ahead, not {(when - now) / 86_400:g}")
        topic = self._naming.topic_of(queue)
        if when > now or self._broker is None:
            await self._tasks.set(min(when, now + _HOP), topic, message, key=key)
            return
        (answer,) = await self._broker.send(queue, [replace(message, delay=0.0)])
        if answer is not None:
            raise answer
        await self.cancel(key)  # what the key had set, if anything

    async def cancel(self, key: str) -> bool:
        return await self._tasks.cancel(key)

    async def schedules(self) -> Sequence[Schedule]:
        return await self._jobs.read()

    async def put_schedule(self, schedule: Schedule) -> None:
        await self._jobs.put(schedule, self._naming.topic_of(schedule.queue))

    async def delete_schedule(self, name: str) -> None:
        await self._jobs.delete(name)

    async def close(self) -> None:
        await self._tasks.close()
        await self._jobs.close()


def _open(location: Location, context: AdapterContext) -> GoogleTimer:
    location.allow("service_account")
    broker = context.broker
    if broker is not None and not isinstance(broker, PubSubQueues):
        raise ConfigError(
            "cloudtasks:// sends to Pub/Sub topics; use it with a broker of pubsub://, or the timer that belongs to your broker"
        )
    place, _, queue = location.path.partition("/")
    return GoogleTimer(
        location.host,
        place,
        queue,
        service_account=location.options.get("service_account", ""),
        app=context.app,
        broker=broker,
        clock=context.clock,
    )


adapter = Adapter(timer=_open)
"""``cloudtasks://project-id/europe-west1/queue?service_account=tasks@project-id.iam.gserviceaccount.com``"""
