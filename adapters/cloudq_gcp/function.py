"""The function host: a CloudEvent handler for functions-framework, whose events are Pub/Sub messages that Eventarc brings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, cast

from cloudq.app import CloudQ
from cloudq.errors import CloudQError, ConfigError
from cloudq.worker.serving import Answer, Serving
from cloudq_gcp.pubsub import PubSubBroker
from cloudq_gcp.push import prepare
from cloudq_gcp.pushed import NoPush, of_object

__all__ = ["CloudEvent", "NotSettled", "cloud_event"]

_TYPE: Final = "google.cloud.pubsub.topic.v1.messagePublished"
_SOURCE: Final = "//pubsub.googleapis.com/"
_TIMEOUT: Final = 60.0
"""Seconds: Cloud Run functions' default timeout."""
_THREADS: Final = 1000
"""Messages at once: functions-framework has a thread for each, and decides how many."""


class NotSettled(CloudQError):
    """The event must come again: its message's outcome could not be made durable, or it waits for its turn or its time."""


class CloudEvent(Protocol):
    """What is used of the event that functions-framework passes."""

    @property
    def data(self) -> Any: ...
    def __getitem__(self, name: str) -> Any: ...


def cloud_event(app: CloudQ, *, queues: Mapping[str, str] | None = None, timeout: float | None = None) -> Callable[[CloudEvent], None]:
    """The function that functions-framework calls: ``handler = cloud_event(app)``, at module level.

    It returns once the message's outcome is durable, and raises where it must come again, which happens only where the function was
    deployed with retries (``--retry``): else Eventarc drops what fails. Who may send events is IAM's to say (run.invoker).
    ``queues`` names queues by topic (its plain name), where the broker's naming rule does not. ``timeout`` is the function's, in seconds
    (``CLOUD_RUN_TIMEOUT_SECONDS`` or 60 unless set): a task that will not have ended by then is given up before.

    SIGTERM is not heard: functions-framework loads the function before its server forks and takes the signals. What then runs is killed
    with the instance, and its event comes again.
    """
    host = _Host(app, queues or {}, float(os.environ.get("CLOUD_RUN_TIMEOUT_SECONDS") or _TIMEOUT) if timeout is None else timeout)

    def handle(event: CloudEvent) -> None:  # a function: functions-framework takes no other callable
        host.handle(event)

    return handle


class _Host:
    """An app as a function; each event is one message."""

    def __init__(self, app: CloudQ, queues: Mapping[str, str], seconds: float) -> None:
        prepare(app, _THREADS, seconds)
        self.app = app
        self._queues = queues
        self._seconds = seconds
        self._serving = Serving(app, concurrency=_THREADS)

    def handle(self, event: CloudEvent) -> None:
        """Work off one event. Raises NotSettled, and ConfigError for an event of another kind."""
        try:
            source = str(event["source"])
            if event["type"] != _TYPE:
                raise NoPush(f"its type is {event['type']}")
            pushed = of_object(cast("object", event.data), subscription="")
        except (KeyError, NoPush) as error:
            raise ConfigError(f"this is no event of a Pub/Sub topic ({_TYPE}): {error}") from None
        now = self.app.clock.time()
        lease = min(self._seconds, self.app.broker.limits.lease)
        delivery = pushed.delivery(self._queue_of(source.removeprefix(_SOURCE)), now, now + lease)
        answer = self.app.io.run(self._serving.serve(delivery, self._seconds))
        if answer is not Answer.DONE:
            raise NotSettled(f"message {pushed.id} must come again: {answer.value}")

    def _queue_of(self, topic: str) -> str:
        """The subscription is Eventarc's own, and its name says nothing."""
        name = topic.rpartition("/")[2]
        broker = self.app.broker
        return self._queues.get(name) or (broker.naming.queue_of_topic(topic) if isinstance(broker, PubSubBroker) else name)
