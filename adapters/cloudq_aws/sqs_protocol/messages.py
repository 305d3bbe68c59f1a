"""SQS's actions on messages: sending, receiving, deleting, changing visibility, one by one and in batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeAlias

from cloudq.broker import Broker, Delivery, Outgoing
from cloudq.errors import LeaseLost, SendError, SettleError
from cloudq.memory.broker import MemoryBroker
from cloudq_aws.sqs_protocol import message, queue
from cloudq_aws.sqs_protocol.message import MIB, Envelope, Ids, envelope_of
from cloudq_aws.sqs_protocol.queue import Queue
from cloudq_aws.sqs_protocol.queues import Queues
from cloudq_aws.sqs_protocol.request import ACCOUNT, BATCH, Answer, Call, Params, Refused, entries, invalid, names, number, text

_Entries: TypeAlias = Sequence[Params]
_Results: TypeAlias = Sequence[Answer | Refused]

_IN_FLIGHT: Final = 120_000
_DONE: Final[Answer] = {}
_MADE_TO_FAIL: Final = Refused("InternalError", "Made to fail.", fault=True)


class Messages:
    """Moves messages through ``front``, which is ``broker`` or a LyingBroker around it; see Service."""

    def __init__(self, broker: MemoryBroker, front: Broker, queues: Queues, ids: Ids, *, fail_every: int) -> None:
        self.body_bytes = 0
        self._broker = broker
        self._front = front
        self._queues = queues
        self._ids = ids
        self._fail_every = fail_every
        self._batched = 0
        self.actions: Final[Mapping[str, Callable[[Call], Awaitable[Answer]]]] = {
            "ChangeMessageVisibility": self._change_one,
            "ChangeMessageVisibilityBatch": self._change_batch,
            "DeleteMessage": self._delete_one,
            "DeleteMessageBatch": self._delete_batch,
            "ReceiveMessage": self._receive,
            "SendMessage": self._send_one,
            "SendMessageBatch": self._send_batch,
        }

    # Sending.

    async def _send_one(self, call: Call) -> Answer:
        return _only(await self._send(self._queues.asked(call), [call.params]))

    async def _send_batch(self, call: Call) -> Answer:
        target, batch = self._queues.asked(call), entries(call)
        if sum(map(message.size, batch)) > MIB:
            raise Refused("BatchRequestTooLong", f"Batch requests cannot be longer than {MIB} bytes.")
        return await self._each(batch, lambda live: self._send(target, live))

    async def _send(self, target: Queue, batch: _Entries) -> _Results:
        now = self._broker.clock.time()
        results: list[Envelope | Refused] = []
        outgoing: list[Outgoing] = []
        fresh: dict[tuple[str, ...], Envelope] = {}
        for entry in batch:
            self.body_bytes += message.size(entry)
            try:
                sent, envelope = self._accept(target, entry)
            except Refused as refused:
                results.append(refused)
                continue
            if target.fifo:
                key = target.dedup_key(envelope)
                known = fresh.get(key) if (old := target.seen(key, now)) is None else old
                if known is not None:
                    results.append(known)
                    continue
                fresh[key] = envelope
            results.append(envelope)
            outgoing.append(sent)
        answers = await self._front.send(target.name, outgoing) if outgoing else ()
        failed = {id(sent.attributes): why for sent, why in zip(outgoing, answers, strict=True) if why is not None}
        for key, envelope in fresh.items():
            if id(envelope) not in failed:
                target.remember(key, envelope, now)
        return [_sent(result, failed.get(id(result))) if isinstance(result, Envelope) else result for result in results]

    def _accept(self, target: Queue, entry: Params) -> tuple[Outgoing, Envelope]:
        envelope = message.check(
            entry,
            fifo=target.fifo,
            content_dedup=target.attributes.get("ContentBasedDeduplication") == "true",
            maximum=target.number("MaximumMessageSize"),
        )
        delay = number(entry, "DelaySeconds", 0, queue.DELAY, target.number("DelaySeconds"))
        if target.fifo and entry.get("DelaySeconds"):
            raise invalid("DelaySeconds", delay, "The request includes a parameter that is not valid for this queue type.")
        envelope.id = self._ids.next()
        body: str = entry["MessageBody"]
        if not target.fifo:
            return Outgoing(body=body, delay=delay, tenant=envelope.group, attributes=envelope), envelope
        envelope.sequence = self._ids.sequence()
        return Outgoing(body=body, delay=delay, group=envelope.group, dedup=envelope.dedup, attributes=envelope), envelope

    # Receiving.

    async def _receive(self, call: Call) -> Answer:
        params, source, limits = call.params, self._queues.asked(call), self._broker.limits
        count = number(params, "MaxNumberOfMessages", 1, BATCH, 1)
        wait = number(params, "WaitTimeSeconds", 0, queue.WAIT, source.number("ReceiveMessageWaitTimeSeconds"))
        visibility = float(number(params, "VisibilityTimeout", 0, queue.HOLD, source.number("VisibilityTimeout")))
        attempt = text(params, "ReceiveRequestAttemptId") if source.fifo and params.get("ReceiveRequestAttemptId") else None
        system = names(params, "AttributeNames", "MessageSystemAttributeNames")
        wanted = names(params, "MessageAttributeNames")
        handles = source.attempted(attempt, self._broker.clock.time()) if attempt else ()
        batch: Sequence[Delivery] = [source.held[handle] for handle in handles]
        if batch:
            await self._broker.extend(batch, visibility)
        else:
            if len(source.held) >= _IN_FLIGHT and self._full(source):
                return _DONE
            batch = await self._front.receive(source.name, max_messages=min(count, limits.receive), wait=min(wait, limits.wait))
            # Not through the front: what it lies about a lease is not to be undone, and nothing more to be lied.
            if batch and visibility != limits.lease:
                await self._broker.extend(batch, visibility)
            now = self._broker.clock.time()
            handles = [source.hold(delivery, now) for delivery in batch]
            if attempt:
                source.remember_attempt(attempt, handles, now)
        messages = [self._message(delivery, handle, system, wanted, call) for delivery, handle in zip(batch, handles, strict=True)]
        return {"Messages": messages} if messages else _DONE

    def _full(self, source: Queue) -> bool:
        """Whether as much is in flight as SQS allows; a standard queue says so (AWS ReceiveMessage)."""
        source.sweep(self._broker.clock.time())
        if len(source.held) < _IN_FLIGHT:
            return False
        if source.fifo:
            return True
        raise Refused("OverLimit", f"Too many messages are in flight: {len(source.held)}.")

    def _message(self, delivery: Delivery, handle: str, system: frozenset[str], wanted: frozenset[str], call: Call) -> Answer:
        envelope = envelope_of(delivery)
        answer: Answer = {"MessageId": envelope.id, "ReceiptHandle": handle, "MD5OfBody": envelope.digest, "Body": delivery.body}
        if system:
            known = self._system(delivery, envelope, call)
            answer["Attributes"] = {name: value for name, value in known.items() if value and (name in system or "All" in system)}
        if envelope.typed and wanted:
            chosen = envelope.typed
            if not wanted & {"All", ".*"}:
                chosen = {name: value for name, value in chosen.items() if _is_wanted(name, wanted)}
            if chosen:
                answer["MessageAttributes"] = chosen
                answer["MD5OfMessageAttributes"] = message.attributes_digest(chosen)
        return answer

    def _system(self, delivery: Delivery, envelope: Envelope, call: Call) -> Mapping[str, str | None]:
        origin = self._broker.origin(delivery)
        return {
            "ApproximateFirstReceiveTimestamp": _milliseconds(self._broker.first_received(delivery)),
            "ApproximateReceiveCount": str(delivery.receives),
            "AWSTraceHeader": envelope.trace,
            "DeadLetterQueueSourceArn": call.arn(origin) if origin else None,
            "MessageDeduplicationId": envelope.dedup,
            "MessageGroupId": envelope.group,
            "SenderId": ACCOUNT,
            "SentTimestamp": _milliseconds(delivery.sent or 0.0),
            "SequenceNumber": envelope.sequence,
        }

    # Settling.

    async def _delete_one(self, call: Call) -> Answer:
        return _only(await self._delete(self._queues.asked(call), [call.params]))

    async def _delete_batch(self, call: Call) -> Answer:
        source = self._queues.asked(call)
        return await self._each(entries(call), lambda live: self._delete(source, live))

    async def _delete(self, source: Queue, batch: _Entries) -> _Results:
        results, held = _held(source, batch)
        answers = await self._front.ack(list(held.values())) if held else ()
        settled = dict(zip(held, answers, strict=True))
        for index, entry in enumerate(batch):
            if isinstance(results[index], Refused):
                continue
            handle = str(entry["ReceiptHandle"])
            why = settled.get(index)
            source.forget_attempts(handle)
            if index not in settled or isinstance(why, LeaseLost):
                if source.fifo:
                    results[index] = invalid("ReceiptHandle", handle, "The receipt handle has expired.")
            elif why is not None:
                results[index] = _failure(why)
            elif not source.fifo:  # there a handle that is unknown is one that is done; a FIFO queue tells these apart
                source.held.pop(handle, None)
        return results

    async def _change_one(self, call: Call) -> Answer:
        return _only(await self._change(self._queues.asked(call), [call.params]))

    async def _change_batch(self, call: Call) -> Answer:
        source = self._queues.asked(call)
        return await self._each(entries(call), lambda live: self._change(source, live))

    async def _change(self, source: Queue, batch: _Entries) -> _Results:
        results, held = _held(source, batch)
        now = self._broker.clock.time()
        by_seconds: dict[int, list[int]] = {}
        for index, entry in enumerate(batch):
            if isinstance(results[index], Refused):
                continue
            try:
                seconds = number(entry, "VisibilityTimeout", 0, queue.HOLD)
            except Refused as refused:
                results[index] = refused
                continue
            if index not in held:
                results[index] = _not_in_flight()
            elif now + seconds > held[index].received + queue.HOLD:
                why = f"Total VisibilityTimeout for the message is beyond the limit [{queue.HOLD} seconds]"
                results[index] = invalid("VisibilityTimeout", seconds, why)
            else:
                by_seconds.setdefault(seconds, []).append(index)
        for seconds, indexes in by_seconds.items():
            answers = await self._front.extend([held[index] for index in indexes], seconds)
            for index, failure in zip(indexes, answers, strict=True):
                source.forget_attempts(str(batch[index]["ReceiptHandle"]))
                if failure is not None:
                    results[index] = _failure(failure)
        return results

    # Batches.

    async def _each(self, batch: _Entries, act: Callable[[_Entries], Awaitable[_Results]]) -> Answer:
        """Carry out a batch, except for the entries that are to fail."""
        live = [entry for entry in batch if not self._is_to_fail()]
        results = dict(zip((entry["Id"] for entry in live), await act(live) if live else (), strict=True))
        successful: list[Answer] = []
        failed: list[Answer] = []
        for entry in batch:
            own = entry["Id"]
            result = results.get(own, _MADE_TO_FAIL)
            if isinstance(result, Refused):
                failed.append({"Id": own, "Code": result.legacy, "Message": str(result), "SenderFault": not result.fault})
            else:
                successful.append({"Id": own, **result})
        return {"Successful": successful, "Failed": failed} if failed else {"Successful": successful}

    def _is_to_fail(self) -> bool:
        self._batched += 1
        return self._fail_every > 0 and self._batched % self._fail_every == 0


def _only(results: _Results) -> Answer:
    """The result of a request that is no batch."""
    (result,) = results
    if isinstance(result, Refused):
        raise result
    return result


def _sent(envelope: Envelope, why: SendError | None) -> Answer | Refused:
    if why is not None:
        return _failure(why)
    answer = {"MessageId": envelope.id, "MD5OfMessageBody": envelope.digest}
    if envelope.typed_digest is not None:
        answer["MD5OfMessageAttributes"] = envelope.typed_digest
    if envelope.trace is not None:
        answer["MD5OfMessageSystemAttributes"] = message.attributes_digest(
            {"AWSTraceHeader": {"DataType": "String", "StringValue": envelope.trace}}
        )
    if envelope.sequence is not None:
        answer["SequenceNumber"] = envelope.sequence
    return answer


def _not_in_flight() -> Refused:
    return Refused("MessageNotInflight", "The specified message isn't in flight.")


def _failure(why: SendError | SettleError) -> Refused:
    """What the broker refused, as SQS says it."""
    if isinstance(why, LeaseLost):
        return _not_in_flight()
    return Refused(why.code or "InternalError", str(why), fault=why.retryable)


def _held(source: Queue, batch: _Entries) -> tuple[list[Answer | Refused], dict[int, Delivery]]:
    """For each entry a success or why its handle is none; and by index the deliveries whose leases may last."""
    results: list[Answer | Refused] = []
    held: dict[int, Delivery] = {}
    for index, entry in enumerate(batch):
        try:
            delivery = source.find(text(entry, "ReceiptHandle"))
        except Refused as refused:
            results.append(refused)
            continue
        results.append({})
        if delivery is not None:
            held[index] = delivery
    return results, held


def _is_wanted(name: str, wanted: frozenset[str]) -> bool:
    return name in wanted or any(each.endswith(".*") and name.startswith(each[:-2]) for each in wanted)


def _milliseconds(when: float) -> str:
    return str(int(when * 1000))
