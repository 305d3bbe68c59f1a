"""The Pub/Sub broker: cloudq's broker seam over Google's generated asynchronous clients and unary pulls."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from cloudq import claimcheck
from cloudq.adapters import Adapter, AdapterContext, Location
from cloudq.broker import EMPTY, Delivery, Limits, Outgoing, QueueStats
from cloudq.claimcheck import ClaimChecks
from cloudq.clock import Clock, SystemClock
from cloudq.errors import BrokerError, ConfigError, EntryTooLarge, LeaseLost, QueueNotFound, SendError, SettleError
from cloudq_gcp.client import Api, Client
from cloudq_gcp.errors import AccessDenied, RequestRefused, mapped, per_id, status_of
from cloudq_gcp.gcs import Bodies
from cloudq_gcp.naming import ANY, Naming

__all__ = ["PubSubBroker", "adapter"]

logger = logging.getLogger("cloudq.pubsub")

# Google Cloud, "Pub/Sub quotas and limits": 10 MB and 1,000 messages a publish request, 100 attributes with keys of 256 and values of
# 1,024 bytes, ordering keys of 1 KB, 512 KiB a request of ack ids (some 200 bytes each). ModifyAckDeadline: 0 to 600 s.
_BATCH: Final = 1_000
_RECEIVE: Final = 100  # of 1,000: a worker with more slots has several pulls on their way, and runs what one brought during the others
_REQUEST: Final = 10_000_000
_BYTES: Final = _REQUEST - _BATCH * 1_100  # what ordering keys and framing may take
_KEY: Final = 1_024
_ATTRIBUTES: Final = 100
_ATTRIBUTE_NAME: Final = 256
_ATTRIBUTE_VALUE: Final = 1_024
_EXTEND: Final = 600
_RETENTION: Final = 7 * 24 * 3600.0  # a subscription's default: what is older goes, leased or not
_RESTING: Final = 2 * 31 * 24 * 3600.0  # what the subscriptions of a queue and of its dead letters may be set to
_LEAST: Final = 10
"""Seconds of the shortest ack deadline that a subscription can have."""

_WAIT: Final = 20.0
_POLL: Final = 1.0
"""Seconds of the shortest pull that waits: what comes while a pull is given up is leased to nobody, so short ones only ask."""
_EARLY: Final = 1.0
"""Seconds before its deadline that a pull is answered which finds nothing (measured)."""
_LATE: Final = 2.0
"""Seconds that a pull's answer may have been on its way: Pub/Sub counts a lease from when it sends that."""
_KNOWN: Final = 600.0
"""Seconds after which a subscription's ack deadline is asked for again."""
_HOLD: Final = 60.0
_ANSWER: Final = 15.0
"""Seconds that a request with its repetitions may take, beyond the wait that it asks for."""
_BEAT: Final = 2.0
"""The same of the shortest that renews a lease."""

_PUBLISHER = Api(package="google.pubsub_v1.services.publisher", name="Publisher")
_SUBSCRIBER = Api(package="google.pubsub_v1.services.subscriber", name="Subscriber")


@dataclass(slots=True)
class _Receipt:
    ack_id: str
    acked: bool = False


class PubSubBroker:
    """Pub/Sub as a Broker. ``naming`` says which topic and subscription a queue is; ``endpoint`` may be a regional one.

    ``lease`` (whole seconds, 1 to 600) is what a received message is ours for: the subscription's own ack deadline where that is the
    same (then it costs no request), else set when messages have been received. ``wait`` is the longest pull, by default 20 s and no more
    than half the lease, so that even an answer that was long on its way brings no lease that is over. ``hold`` is how long a worker may
    hold a message that is not due, as Pub/Sub has no delays; 0 where queues are pushed: then every delay is the timer's.

    ``claim_checks`` says where bodies lie that Pub/Sub does not take (``bodies=gs://bucket/prefix`` in the URL).

    A subscription with message ordering keeps the order of groups. A subscription without a dead-letter policy counts no
    deliveries (``receives`` is 0), so crash loops cannot be told from first deliveries. With exactly-once delivery LeaseLost is what
    Pub/Sub says; without, an ack or extension after the lease is not answered with an error, and only our own clock tells.

    Needs pubsub.topics.publish on topics and pubsub.subscriptions.consume on subscriptions; pubsub.subscriptions.get (roles/pubsub.viewer)
    lets it learn a subscription's deadline, and ``stats`` needs it. It never lists, creates or deletes any.

    ``receive`` with a wait under a second asks once at its beginning and once at its end; Pub/Sub may then answer nothing although there is
    something.
    """

    def __init__(
        self,
        naming: Naming,
        *,
        lease: float = 60.0,
        wait: float | None = None,
        hold: float = _HOLD,
        endpoint: str | None = None,
        claim_checks: ClaimChecks | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not 1 <= lease <= _EXTEND or lease != int(lease):
            raise ConfigError(f"pubsub:// needs a lease of whole seconds from 1 to {_EXTEND}, not {lease:g}")
        poll = min(_WAIT, lease / 2) if wait is None else wait
        if not 0 <= poll < lease:
            raise ConfigError(f"pubsub:// needs a wait from 0 s to less than the lease of {lease:g} s, not {poll:g}")
        if not 0 <= hold <= _EXTEND:
            raise ConfigError(f"pubsub:// can hold messages for 0 to {_EXTEND} s, not {hold:g}")
        self.naming = naming
        self._limits = Limits(
            batch=_BATCH,
            batch_bytes=_BYTES,
            body=_BYTES,
            receive=_RECEIVE,
            wait=float(poll),
            delay=0.0,
            hold=float(hold),
            lease=float(lease),
            extend=float(_EXTEND),
            max_lease=_RETENTION,
            ordering=True,
            counts=False,
        )
        self._clock = clock or SystemClock()
        self._client = Client(_PUBLISHER, _SUBSCRIBER, emulator="PUBSUB_EMULATOR_HOST", endpoint=endpoint)
        self._checks = claim_checks
        self._deadlines: dict[str, tuple[int | None, float]] = {}
        """By queue: the ack deadline of its subscription, ``None`` where we may not read it, and until when we believe that."""

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def claim_checks(self) -> ClaimChecks | None:
        return self._checks

    async def body_limit(self, queue: str) -> int:
        """The same for each topic."""
        return self._limits.body

    def hold_nothing(self) -> None:
        """For a host that is pushed to, which can hold no message: from here on every delay is the timer's, as with ``hold`` 0."""
        self._limits = self._limits._replace(hold=0.0)

    # ------------------------------------------------------------------ sending

    async def send(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
        answers = [None if _is_plain(message) else refusal(queue, message) for message in messages]
        entries = [index for index, answer in enumerate(answers) if answer is None]
        if entries:
            await self._publish(queue, messages, entries, answers)
        return answers

    async def _publish(self, queue: str, messages: Sequence[Outgoing], entries: Sequence[int], answers: list[SendError | None]) -> None:
        """Publish some of the messages. Where what Pub/Sub refuses may be one of them, halves are sent one after another, in order."""
        topic = self.naming.topic_of(queue)

        def request() -> Any:
            types: Any = import_module("google.pubsub_v1.types")
            make = types.PubsubMessage.pb()
            made = [
                make(data=_bytes(message.body), attributes=message.attributes or None, ordering_key=message.group)  # empty ones cost 2 µs
                for message in map(messages.__getitem__, entries)
            ]
            return types.PublishRequest.wrap(types.PublishRequest.pb()(topic=topic, messages=made))

        try:
            with mapped("publish", queue):
                reply = await self._client.request("Publisher", "publish", request, within=_ANSWER, routed_by="topic")
        except RequestRefused as error:
            if len(entries) > 1 and error.code == "INVALID_ARGUMENT":
                half = len(entries) // 2
                await self._publish(queue, messages, entries[:half], answers)
                await self._publish(queue, messages, entries[half:], answers)
                return
            for index in entries:
                answers[index] = refused = SendError(str(error), code=error.code)
                refused.__cause__ = error
            return
        for index in entries[len(reply.message_ids) :]:
            answers[index] = SendError(f"queue {queue!r}: Pub/Sub gave a message no id", retryable=True)

    # ------------------------------------------------------------------ receiving

    async def receive(self, queue: str, *, max_messages: int, wait: float) -> Sequence[Delivery]:
        subscription, most = self.naming.subscription_of(queue), min(max_messages, _BATCH)
        deadline = await self._deadline(queue)
        started = self._clock.time()
        if wait >= _POLL:
            received = await self._pull(queue, subscription, most, wait=min(wait, self._limits.wait))
        else:
            received = await self._pull(queue, subscription, most)
            if not received and wait > 0:
                await asyncio.sleep(wait)
                received = await self._pull(queue, subscription, most)
        leased = max(started, self._clock.time() - _LATE)  # no earlier than we think: a pull may have waited longer than a lease is
        deliveries = [_delivery(queue, each, leased, deadline or _LEAST) for each in received]
        if deliveries and deadline != self._limits.lease:
            deliveries = await self._lease(deliveries)
        return deliveries

    async def _pull(self, queue: str, subscription: str, most: int, *, wait: float = 0.0) -> Sequence[Any]:
        def request() -> Any:
            types: Any = import_module("google.pubsub_v1.types")
            return types.PullRequest(subscription=subscription, max_messages=most, return_immediately=not wait)

        with mapped("pull", queue):
            try:
                reply = await self._client.request(
                    "Subscriber", "pull", request, within=wait + _EARLY if wait else _ANSWER, routed_by="subscription"
                )
            except Exception as error:
                if wait and status_of(error) == "DEADLINE_EXCEEDED":  # how a pull that found nothing ends
                    return ()
                raise
            types: Any = import_module("google.pubsub_v1.types")
            received: Sequence[Any] = types.PullResponse.pb(reply).received_messages
            return received

    async def _lease(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Give what has been received the lease that we promise."""
        try:
            answers = await self.extend(deliveries, self._limits.lease)
        except BrokerError as error:
            logger.warning("%d leases stay as short as their subscription's ack deadline: %s", len(deliveries), error)
            return deliveries
        lost = [answer for answer in answers if isinstance(answer, LeaseLost)]
        if lost:
            logger.warning("%d messages are left to be delivered again: their leases were over as they came: %s", len(lost), lost[0])
        return [delivery for delivery, answer in zip(deliveries, answers, strict=True) if not isinstance(answer, LeaseLost)]

    async def _deadline(self, queue: str) -> int | None:
        """The ack deadline of a queue's subscription, in seconds, which is asked for now and then; ``None`` where we may not know."""
        now, (known, until) = self._clock.time(), self._deadlines.get(queue, (None, 0.0))
        if now < until:
            return known
        if until:
            self._deadlines[queue] = (known, now + _KNOWN)  # one asks for all
        try:
            found = await self._look(queue)
        except AccessDenied as error:
            self._deadlines[queue] = (None, now + _KNOWN)
            if not until:
                logger.info("leases are set at each receive, as nobody says what they are: %s", error)
        except BrokerError:
            if not until:
                raise
        else:
            if not until and not found.dead_letter_policy.dead_letter_topic:
                logger.info("%s has no dead-letter policy, so Pub/Sub does not count deliveries: crash loops go unseen", found.name)
        return self._deadlines[queue][0]

    async def _look(self, queue: str) -> Any:
        """Read a queue's subscription and remember its deadline."""
        name = self.naming.subscription_of(queue)

        def request() -> Any:
            return import_module("google.pubsub_v1.types").GetSubscriptionRequest(subscription=name)

        with mapped("get_subscription", queue):
            found = await self._client.request("Subscriber", "get_subscription", request, within=_ANSWER)
        self._deadlines[queue] = (int(found.ack_deadline_seconds), self._clock.time() + _KNOWN)
        return found

    # ------------------------------------------------------------------ settling

    async def ack(self, deliveries: Sequence[Delivery]) -> Sequence[SettleError | None]:
        receipts = [_receipt(delivery) for delivery in deliveries]
        todo = [index for index, receipt in enumerate(receipts) if not receipt.acked]
        answers = await self._settle("acknowledge", deliveries, todo)
        for index in todo:
            receipts[index].acked = answers[index] is None
        return answers

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[SettleError | None]:
        deadline, now = math.ceil(seconds), self._clock.time()
        # Pub/Sub would move the deadline of a message that another consumer holds by now, or say nothing: it is not asked.
        todo = [index for index, delivery in enumerate(deliveries) if now < delivery.lease_until]
        within = min(_ANSWER, max(_BEAT, self._limits.lease / 6))  # what hangs is given up while there is time for another try
        answers = await self._settle("modify_ack_deadline", deliveries, todo, within, ack_deadline_seconds=deadline)
        for index in todo:
            if answers[index] is None:
                deliveries[index].lease_until = now + deadline
        for index in set(range(len(deliveries))) - set(todo):
            delivery = deliveries[index]
            answers[index] = LeaseLost(
                f"queue {delivery.queue!r}, message {delivery.message_id}: its lease ended {now - delivery.lease_until:.1f} s ago"
            )
        return answers

    async def _settle(
        self, action: str, deliveries: Sequence[Delivery], todo: Sequence[int], within: float = _ANSWER, **parameters: Any
    ) -> list[SettleError | None]:
        answers: list[SettleError | None] = [None] * len(deliveries)
        if not todo:
            return answers
        queue = deliveries[0].queue
        name, ids = self.naming.subscription_of(queue), [_receipt(deliveries[index]).ack_id for index in todo]

        def request() -> Any:
            types: Any = import_module("google.pubsub_v1.types")
            kind = types.AcknowledgeRequest if action == "acknowledge" else types.ModifyAckDeadlineRequest
            return kind.wrap(kind.pb()(subscription=name, ack_ids=ids, **parameters))  # the wrapper looks at each id

        with mapped(action, queue):
            try:
                await self._client.request("Subscriber", action, request, within=within, routed_by="subscription")
            except Exception as error:
                reasons = per_id(error)
                if not reasons:
                    raise
                for index, ack_id in zip(todo, ids, strict=True):
                    answers[index] = _failure(f"{action} on queue {queue!r}, message {deliveries[index].message_id}", reasons.get(ack_id))
        return answers

    async def stats(self, queue: str) -> QueueStats:
        """Pub/Sub counts messages in Cloud Monitoring only: this says that the queue is there, whole, or raises QueueNotFound."""
        topic, found = self.naming.topic_of(queue), await self._look(queue)
        if found.topic != topic:
            raise QueueNotFound(f"queue {queue!r}: {found.name} is a subscription of {found.topic}, and messages are sent to {topic}")
        return QueueStats(ready=None, in_flight=None)

    async def close(self) -> None:
        await self._client.close()
        if self._checks is not None:
            await self._checks.bodies.close()


def _delivery(queue: str, received: Any, leased: float, deadline: int) -> Delivery:
    message = received.message
    published, attributes = message.publish_time, message.attributes
    return Delivery(
        queue=queue,
        body=message.data.decode("utf-8", "surrogateescape"),
        receipt=_Receipt(received.ack_id),
        receives=received.delivery_attempt,
        message_id=message.message_id,
        sent=published.seconds + published.nanos / 1e9,
        received=leased,
        lease_until=leased + deadline,
        group=message.ordering_key or None,
        attributes=dict(attributes) if attributes else EMPTY,
    )


def _receipt(delivery: Delivery) -> _Receipt:
    assert isinstance(delivery.receipt, _Receipt)
    return delivery.receipt


def _failure(tried: str, reason: str | None) -> SettleError:
    """Why one entry of a refused request failed. One that the answer leaves out may be done: it is safe to try again."""
    if reason is None:
        return SettleError(f"{tried}: not confirmed", retryable=True)
    if reason == "PERMANENT_FAILURE_INVALID_ACK_ID":
        return LeaseLost(f"{tried}: its lease has ended ({reason})", code=reason)
    return SettleError(f"{tried}: {reason}", retryable=reason.startswith("TRANSIENT_FAILURE_"), code=reason)


def refusal(queue: str, message: Outgoing) -> SendError | None:
    """Why Pub/Sub would refuse ``message``, found before the request because it would refuse the whole batch for it."""
    if not message.body:
        return _refused(queue, "its body is empty", "EmptyMessage")
    if message.delay > 0:
        return _refused(queue, "Pub/Sub has no delays", "InvalidDelay")
    try:
        size = len(message.body) if message.body.isascii() else len(_bytes(message.body))
    except UnicodeEncodeError:
        return _refused(queue, "its body holds lone surrogates, which are no text; encode it", "InvalidText")
    if size > _BYTES:
        return EntryTooLarge(
            f"queue {queue!r} cannot take a message: it has {size:,} bytes, and Pub/Sub takes {_BYTES:,}: "
            "name a place for large bodies in the broker's URL (bodies=gs://bucket/prefix), or pass a reference instead",
            code="MessageTooLong",
        )
    if message.group is not None and not 0 < _size(message.group) <= _KEY:
        return _refused(queue, f"its ordering key must be text of 1 to {_KEY:,} bytes", "InvalidOrderingKey")
    return _refused_attributes(queue, message.attributes) if message.attributes else None


def _is_plain(message: Outgoing) -> bool:
    """Whether it is a small ASCII body and nothing else, as most are: then there is nothing to refuse."""
    body = message.body
    return 0 < len(body) <= _BYTES and body.isascii() and not message.delay and message.group is None and not message.attributes


def _refused_attributes(queue: str, attributes: Mapping[str, str]) -> SendError | None:
    if len(attributes) > _ATTRIBUTES:
        return _refused(queue, f"it has {len(attributes)} attributes, and Pub/Sub takes {_ATTRIBUTES}", "TooManyAttributes")
    for name, value in attributes.items():
        if not 0 < _size(name) <= _ATTRIBUTE_NAME or name.startswith("goog"):
            why = f"an attribute's name must be text of 1 to {_ATTRIBUTE_NAME} bytes and not begin with goog"
            return _refused(queue, why, "InvalidAttributeName")
        if not 0 <= _size(value) <= _ATTRIBUTE_VALUE:
            return _refused(queue, f"an attribute must be text of up to {_ATTRIBUTE_VALUE:,} bytes", "InvalidAttributeValue")
    return None


def _refused(queue: str, why: str, code: str) -> SendError:
    return SendError(f"queue {queue!r} cannot take a message: {why}", code=code)


def _size(text: str) -> int:
    """Bytes of what must be text; -1 where lone surrogates make it none."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return -1


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _open(location: Location, context: AdapterContext) -> PubSubBroker:
    location.allow("prefix", "lease", "wait", "hold", "subscription", "endpoint", *claimcheck.OPTIONS)
    if location.path:
        raise ConfigError(f"pubsub:// takes a project and options, no path like {location.path!r}: pubsub://project-id/?prefix=shop-")
    project = location.host or os.environ.get("GOOGLE_CLOUD_PROJECT")
    if not project:
        raise ConfigError("no Google Cloud project: write it in the URL (pubsub://project-id/), or set GOOGLE_CLOUD_PROJECT")
    options = location.options
    return PubSubBroker(
        Naming(project=project, prefix=options.get("prefix", ""), subscription=options.get("subscription", ANY)),
        lease=location.seconds("lease", 60.0),
        wait=location.seconds("wait", 0.0) if "wait" in options else None,
        hold=location.seconds("hold", _HOLD),
        endpoint=options.get("endpoint"),
        claim_checks=claimcheck.configured(location, Bodies, resting=_RESTING),
        clock=context.clock,
    )


adapter = Adapter(broker=_open)
"""``pubsub://project-id/?prefix=shop-&lease=60&wait=20&hold=60``, or without the project for GOOGLE_CLOUD_PROJECT.

Large bodies: ``bodies=gs://bucket/prefix``, ``bodies_over=`` (bytes) and ``bodies_days=``, as ``cloudq.claimcheck.configured`` says.
"""
