"""The SQS broker: cloudq's broker seam over aiobotocore, always in batches."""

from __future__ import annotations

import hashlib
import math
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any

from cloudq import claimcheck
from cloudq.adapters import Adapter, AdapterContext, Location
from cloudq.broker import Broker, Delivery, Limits, Outgoing, QueueStats
from cloudq.claimcheck import ClaimChecks
from cloudq.clock import Clock, SystemClock
from cloudq.errors import (
    BrokerError,
    BrokerUnavailable,
    ConfigError,
    EntryTooLarge,
    LeaseLost,
    QueueNotFound,
    SendError,
    SettleError,
)
from cloudq_aws import undelivered
from cloudq_aws.client import client_for, open_now
from cloudq_aws.errors import THROTTLED, RequestRefused, mapped, short_code
from cloudq_aws.s3 import Bodies

__all__ = ["SQSBroker", "adapter"]

# AWS SQS, "Amazon SQS message quotas": 10 entries and 1 MiB a request, 1 MiB a message, 900 s delay, 20 s poll, 12 h visibility.
_BATCH = 10
_MIB = 1024 * 1024
_DELAY = 900
_WAIT = 20
_HOLD = 12 * 3600
_RESTING = 2 * 14 * 86_400.0
"""Seconds that a message may lie in a queue and then in a dead-letter queue: 14 days of retention each (AWS SetQueueAttributes)."""

_ANSWER = 15.0
"""Seconds that a request with its SDK retries may take, beyond the wait that it asks for."""
_SILENCE = 4.0
"""Seconds without an answer after which the SDK tries again: three tries fit, where a connection has gone silent."""

# Compiled at their first use, which a cold start has no time for.
_NAME = r"(?=.{1,80}\Z)[A-Za-z0-9_-]+(?:\.fifo)?"
_ARN = r"arn:[a-z0-9-]+:sqs:([a-z0-9-]+):(\d+):([A-Za-z0-9_.-]+)"
_ID = r"[!-~]{1,128}"
_NOT_XML = "[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]"
_SYSTEM = ["ApproximateReceiveCount", "SentTimestamp", "MessageGroupId"]
_COUNTS = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"]

# A visibility that cannot be changed any more (AWS ChangeMessageVisibility): not in flight, past the handle's life, or past 12 h in all.
_LOST = frozenset({"MessageNotInflight", "ReceiptHandleIsInvalid", "InvalidParameterValue"})

# What may mean, among other things, that a message is over its queue's own MaximumMessageSize (AWS SendMessageBatch, common errors).
_TOO_LARGE = frozenset({"InvalidParameterValue", "MessageTooLong", "BatchRequestTooLong"})


class SQSBroker:
    """SQS as a Broker. Queue names become ``prefix + name``; full queue URLs and ARNs are taken as they are.

    ``region`` ``None`` leaves it to the SDK, as are credentials and endpoint (``AWS_PROFILE``, ``AWS_ENDPOINT_URL`` …). ``lease`` (whole
    seconds, 1 to 12 h) is asked for with every receive, whatever the queue's own visibility timeout says; ``wait`` is the longest poll
    (up to 20 s, by default no more than half the lease, because a lease is counted from before its poll began). ``client`` is ``boto3`` or
    ``aiobotocore``; by default the former inside Lambda.

    ``claim_checks`` says where bodies lie that their queue does not take (``bodies=s3://bucket/prefix`` in the URL). With it a queue's own
    MaximumMessageSize is asked for once, before its first message over 1 KiB; without sqs:GetQueueAttributes it counts as 1 MiB.

    Queues whose names end in ``.fifo`` are ordered: they take messages with a group, without a delay; other queues take none with a group.
    A queue's URL is asked for once. Needs sqs:GetQueueUrl, SendMessage, ReceiveMessage, DeleteMessage, ChangeMessageVisibility and
    GetQueueAttributes on the queues that it uses; it never lists, creates or deletes queues.

    Delays, leases and waits are whole seconds on SQS: a fraction is rounded up. ``receive(wait=0)`` asks a sample of SQS's servers, and may
    miss a message that is there (AWS, "short polling").
    """

    def __init__(
        self,
        region: str | None = None,
        *,
        prefix: str = "",
        lease: float = 60.0,
        wait: float | None = None,
        client: str | None = None,
        claim_checks: ClaimChecks | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not 1 <= lease <= _HOLD or lease != int(lease):
            raise ConfigError(f"sqs:// needs a lease of whole seconds from 1 to {_HOLD} (12 h), not {lease:g}")
        poll = min(_WAIT, lease // 2) if wait is None else wait
        if not 0 <= poll <= _WAIT or poll >= lease:
            raise ConfigError(f"sqs:// needs a wait from 0 to {_WAIT} s that is less than the lease of {lease:g} s, not {poll:g}")
        self._limits = Limits(
            batch=_BATCH,
            batch_bytes=_MIB,
            body=_MIB,
            receive=_BATCH,
            wait=float(poll),
            delay=float(_DELAY),
            lease=float(lease),
            extend=float(_HOLD),
            max_lease=float(_HOLD),
            ordering=True,
        )
        self._prefix = prefix
        self._clock = clock or SystemClock()
        self._client = client_for("sqs", region, read_timeout=_SILENCE, poll_timeout=poll + 10, sdk=client)
        self._checks = claim_checks
        self._urls: dict[str, str] = {}
        self._sizes: dict[str, int] = {}

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def claim_checks(self) -> ClaimChecks | None:
        return self._checks

    async def body_limit(self, queue: str) -> int:
        """The queue's MaximumMessageSize, which is asked for once; 1 MiB where we may not know it."""
        size = self._sizes.get(queue)
        if size is None:
            size = _MIB
            try:
                reply = await self._call("GetQueueAttributes", queue, AttributeNames=["MaximumMessageSize"])
                size = min(int(reply.get("Attributes", {}).get("MaximumMessageSize", _MIB)), _MIB)
            except (BrokerUnavailable, QueueNotFound):
                raise
            except BrokerError:
                pass  # not allowed: what is too large is then refused by SQS, in its own words
            self._sizes[queue] = size
        return size

    async def send(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
        answers: list[SendError | None] = [refusal(queue, message) for message in messages]
        entries = [{"Id": str(index), **entry(queue, message)} for index, message in enumerate(messages) if answers[index] is None]
        if entries:
            for index, error in (await self._send(queue, entries)).items():
                answers[index] = await self._explained(queue, messages[index], error)
        return answers

    async def _explained(self, queue: str, message: Outgoing, error: SendError) -> SendError:
        """The error of an entry; where the queue's own limit is why, one that says so."""
        if error.code in _TOO_LARGE and (size := size_of(message)) > claimcheck.SMALL:
            try:
                limit = await self.body_limit(queue)
            except BrokerError:
                return error
            if size > limit:
                larger = too_large(queue, size, limit)
                larger.__cause__ = error
                return larger
        return error

    async def _send(self, queue: str, entries: Sequence[Mapping[str, Any]]) -> dict[int, SendError]:
        """Send and return the entries that failed. Where SQS refuses a whole request for one bad entry, each is sent alone."""
        try:
            reply = await self._call("SendMessageBatch", queue, Entries=entries)
        except RequestRefused as error:
            if len(entries) > 1:
                alone = [await self._send(queue, [entry]) for entry in entries]  # one after another, to keep the order
                return {index: failure for failed in alone for index, failure in failed.items()}
            refused = SendError(str(error), code=error.code)
            refused.__cause__ = error
            return {int(entries[0]["Id"]): refused}
        return {
            index: SendError(f"queue {queue!r} did not take a message: {reason}", retryable=retryable, code=code)
            for index, reason, retryable, code in _failures(reply, entries)
        }

    async def receive(self, queue: str, *, max_messages: int, wait: float) -> Sequence[Delivery]:
        ordered = _ordered(queue)
        # With an attempt id of its own, a receive that the SDK repeats after a lost answer gets the same messages again.
        attempt = {"ReceiveRequestAttemptId": uuid.uuid4().hex} if ordered else {}
        started = self._clock.time()  # before the request: the lease ends no earlier than we think
        reply = await self._call(
            "ReceiveMessage",
            queue,
            wait=wait,
            polling=True,
            MaxNumberOfMessages=min(max_messages, _BATCH),
            WaitTimeSeconds=min(math.ceil(wait), _WAIT),
            VisibilityTimeout=int(self._limits.lease),
            MessageSystemAttributeNames=_SYSTEM,
            MessageAttributeNames=["All"],
            **attempt,
        )
        return [self._delivery(queue, message, started, ordered) for message in reply.get("Messages", ())]

    def _delivery(self, queue: str, message: Mapping[str, Any], started: float, ordered: bool) -> Delivery:
        system = message.get("Attributes", {})
        sent = system.get("SentTimestamp")
        attributes = {name: value["StringValue"] for name, value in message.get("MessageAttributes", {}).items() if "StringValue" in value}
        delivery = Delivery(
            queue=queue,
            body=message["Body"],
            receipt=message["ReceiptHandle"],
            receives=int(system.get("ApproximateReceiveCount", 0)),
            message_id=message["MessageId"],
            sent=int(sent) / 1000 if sent else None,
            received=started,
            lease_until=started + self._limits.lease,
            group=system.get("MessageGroupId") if ordered else None,  # on a standard queue it is the tenant
            attributes=attributes,
        )
        return undelivered.read(delivery, self.queue_of) if attributes else delivery

    async def ack(self, deliveries: Sequence[Delivery]) -> Sequence[SettleError | None]:
        entries = [{"Id": str(index), "ReceiptHandle": delivery.receipt} for index, delivery in enumerate(deliveries)]
        return await self._settle("DeleteMessageBatch", deliveries, entries)

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[SettleError | None]:
        visibility = math.ceil(seconds)
        now = self._clock.time()
        # SQS would move the visibility of a message that another consumer holds by now (standard queues take an old handle), and answers
        # an extension beyond 12 h in all with an error: neither is asked.
        lost: list[SettleError | None] = [_past(delivery, now, visibility) for delivery in deliveries]
        entries = [
            {"Id": str(index), "ReceiptHandle": delivery.receipt, "VisibilityTimeout": visibility}
            for index, delivery in enumerate(deliveries)
            if lost[index] is None
        ]
        answers = await self._settle("ChangeMessageVisibilityBatch", deliveries, entries)
        for delivery, before, answer in zip(deliveries, lost, answers, strict=True):
            if before is None and answer is None:
                delivery.lease_until = now + visibility
        return [before or answer for before, answer in zip(lost, answers, strict=True)]

    async def _settle(
        self, action: str, deliveries: Sequence[Delivery], entries: Sequence[Mapping[str, Any]]
    ) -> Sequence[SettleError | None]:
        answers: list[SettleError | None] = [None] * len(deliveries)
        if entries:
            queue = deliveries[0].queue
            reply = await self._call(action, queue, Entries=entries)
            for index, reason, retryable, code in _failures(reply, entries):
                text = f"{action} on queue {queue!r}, message {deliveries[index].message_id}: {reason}"
                answers[index] = LeaseLost(text, code=code) if code in _LOST else SettleError(text, retryable=retryable, code=code)
        return answers

    async def stats(self, queue: str) -> QueueStats:
        counts = (await self._call("GetQueueAttributes", queue, AttributeNames=_COUNTS)).get("Attributes", {})
        ready, in_flight, delayed = (int(counts.get(name, 0)) for name in _COUNTS)
        return QueueStats(ready=ready, in_flight=in_flight, delayed=delayed)

    def queue_of(self, arn: str) -> str:
        """The queue that this broker knows under an ARN or a URL: its name without the prefix, or ``arn`` where that has none."""
        found = re.fullmatch(_ARN, arn)
        name = found[3] if found else arn.rpartition("/")[2]
        return name.removeprefix(self._prefix) if name.startswith(self._prefix) and name != self._prefix else arn

    def open(self) -> None:
        """As ``cloudq_aws.client.Opens``."""
        open_now(self._client)

    async def close(self) -> None:
        await self._client.close()
        if self._checks is not None:
            await self._checks.bodies.close()

    async def url(self, queue: str) -> str:
        """The URL of a queue, which is asked for once; raises QueueNotFound."""
        return self._urls.get(queue) or await self._find(queue)

    async def _call(self, action: str, queue: str, *, wait: float = 0.0, **parameters: Any) -> Mapping[str, Any]:
        """Make one request about ``queue``."""
        url = await self.url(queue)
        with mapped(action, queue):
            return await self._client.request(action, within=_ANSWER + wait, QueueUrl=url, **parameters)

    async def _find(self, queue: str) -> str:
        """Learn the URL of a name or an ARN. Asked by several at once, it asks as often; the answer is the same."""
        if queue.startswith(("https://", "http://")):
            url = queue
        else:
            with mapped("GetQueueUrl", queue):
                where = _where(queue, self._prefix, await self._client.region())
                url = (await self._client.request("GetQueueUrl", within=_ANSWER, **where))["QueueUrl"]
        self._urls[queue] = url
        return url


def _where(queue: str, prefix: str, region: str) -> dict[str, Any]:
    """What GetQueueUrl is asked for a name or an ARN."""
    if arn := re.fullmatch(_ARN, queue):
        if arn[1] != region:
            raise QueueNotFound(f"queue {queue!r} is in {arn[1]}, and this broker in {region}; use a broker of its region")
        return {"QueueName": arn[3], "QueueOwnerAWSAccountId": arn[2]}
    name = prefix + queue
    if not re.fullmatch(_NAME, name):
        raise QueueNotFound(f"SQS can have no queue named {name!r}: a name is 1 to 80 letters, digits, - and _, with .fifo where ordered")
    return {"QueueName": name}


def _ordered(queue: str) -> bool:
    return queue.endswith(".fifo")  # by name, URL and ARN: AWS CreateQueue demands the suffix of FIFO queues, and of no other


def refusal(queue: str, message: Outgoing) -> SendError | None:
    """Why SQS would refuse ``message``, found before the request because SQS may refuse the whole batch for it."""
    if not message.body:
        return _refused(queue, "its body is empty", "EmptyMessage")
    for text in (message.body, *message.attributes.values()):
        if not (text.isascii() and text.isprintable()) and (bad := re.search(_NOT_XML, text)):
            return _refused(queue, f"it holds U+{ord(bad[0]):04X}, which XML 1.0 does not allow; encode it", "InvalidMessageContents")
    if (size := size_of(message)) > _MIB:
        return too_large(queue, size, _MIB)
    if message.delay > _DELAY:
        return _refused(queue, f"its delay of {message.delay:g} s is over the {_DELAY} s of SQS", "InvalidDelay")
    if not all(message.attributes.values()):
        return _refused(queue, "an attribute is empty", "InvalidAttributeValue")
    if not _ordered(queue):
        return (
            _refused(queue, "it has a group, and only queues named *.fifo keep an order", "NotOrdered")
            if message.group is not None
            else None
        )
    if message.group is None:
        return _refused(queue, "it has no group, which an ordered queue needs", "MissingParameter")
    if message.delay > 0:
        return _refused(queue, "ordered queues take no delay for one message", "InvalidDelay")
    return None


def too_large(queue: str, size: int, limit: int) -> EntryTooLarge:
    """What is answered for a message of ``size`` bytes to a queue that takes ``limit``."""
    way_out = "; raise the queue's MaximumMessageSize, or" if limit < _MIB else ":"
    return EntryTooLarge(
        f"queue {queue!r} cannot take a message: it has {size:,} bytes, and the queue takes {limit:,}{way_out} "
        "name a place for large bodies in the broker's URL (bodies=s3://bucket/prefix), or pass a reference instead",
        code="MessageTooLong",
    )


def _refused(queue: str, why: str, code: str) -> SendError:
    return SendError(f"queue {queue!r} cannot take a message: {why}", code=code)


def size_of(message: Outgoing) -> int:
    """Bytes that SQS counts: the body, and each attribute's name, type and value (AWS, "Amazon SQS message quotas")."""
    if not message.attributes and message.body.isascii():
        return len(message.body)
    texts: Iterable[str] = (message.body, *(part for pair in message.attributes.items() for part in (*pair, "String")))
    return sum(len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass")) for text in texts)


def entry(queue: str, message: Outgoing) -> dict[str, Any]:
    """What SendMessage is asked beside the queue, and what an entry of SendMessageBatch holds beside its Id."""
    fields: dict[str, Any] = {"MessageBody": message.body}
    if message.delay > 0:
        fields["DelaySeconds"] = math.ceil(message.delay)
    if message.attributes:
        fields["MessageAttributes"] = {name: {"DataType": "String", "StringValue": value} for name, value in message.attributes.items()}
    if _ordered(queue):
        # Never left to content-based deduplication: equal calls within 5 minutes would vanish.
        fields |= {"MessageGroupId": _plain(message.group or ""), "MessageDeduplicationId": _plain(message.dedup or uuid.uuid4().hex)}
    elif message.tenant:
        fields["MessageGroupId"] = _plain(message.tenant)
    return fields


def _plain(name: str) -> str:
    """The id as SQS takes it (1 to 128 of printable ASCII); of another, its SHA-256: only equality counts."""
    return name if re.fullmatch(_ID, name) else hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def _past(delivery: Delivery, now: float, visibility: int) -> LeaseLost | None:
    """Why this lease can be extended no more."""
    if now >= delivery.lease_until:
        why = f"its lease ended {now - delivery.lease_until:.1f} s ago"
    elif now + visibility > delivery.received + _HOLD:
        why = f"SQS lets nobody hold a message for more than {_HOLD // 3600} h"
    else:
        return None
    return LeaseLost(f"queue {delivery.queue!r}, message {delivery.message_id}: {why}")


def _failures(reply: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str, bool, str]]:
    """Index, reason, retryable and code of each entry that ``reply`` does not confirm."""
    confirmed = {entry["Id"] for entry in reply.get("Successful", ())}
    failed = {entry["Id"]: entry for entry in reply.get("Failed", ())}
    for entry in entries:
        if entry["Id"] in confirmed:
            continue
        failure = failed.get(entry["Id"], {})
        code = short_code(failure.get("Code", ""))
        retryable = code in THROTTLED or not failure.get("SenderFault", False)
        yield int(entry["Id"]), f"{code or 'no answer'}: {failure.get('Message') or 'no reason given'}", retryable, code


def _open(location: Location, context: AdapterContext) -> SQSBroker:
    location.allow("prefix", "lease", "wait", "client", *claimcheck.OPTIONS)
    if location.path:
        raise ConfigError(f"sqs:// takes a region and options, no path like {location.path!r}: sqs://eu-west-1/?prefix=shop-")
    region, client = location.host or None, location.options.get("client")
    return SQSBroker(
        region,
        prefix=location.options.get("prefix", ""),
        lease=location.seconds("lease", 60.0),
        wait=location.seconds("wait", 0.0) if "wait" in location.options else None,
        client=client,
        claim_checks=claimcheck.configured(location, lambda url: Bodies(url, region, client=client), resting=_RESTING),
        clock=context.clock,
    )


def _serve(broker: Broker, location: Location) -> AbstractContextManager[str]:
    with mapped("serving", location.host):
        server = import_module("cloudq_aws.server")  # by name: its web library is for those who serve
    context: AbstractContextManager[str] = server.serve_at(broker, location)
    return context


adapter = Adapter(broker=_open, serve=_serve)
"""``sqs://eu-west-1/?prefix=shop-&lease=60&wait=20&client=boto3``, or without the region for the SDK's own.

Large bodies: ``bodies=s3://bucket/prefix``, ``bodies_over=`` (bytes) and ``bodies_days=``, as ``cloudq.claimcheck.configured`` says.
"""
