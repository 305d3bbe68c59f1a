"""SQS's actions on queues: making, describing, listing and deleting them, and moving dead letters back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from cloudq.broker import Delivery, Outgoing
from cloudq.memory.broker import MemoryBroker
from cloudq_aws.sqs_protocol import queue
from cloudq_aws.sqs_protocol.message import Envelope, Ids, envelope_of
from cloudq_aws.sqs_protocol.queue import Queue
from cloudq_aws.sqs_protocol.request import Answer, Call, Refused, invalid, mapping, names, number, text

_PURGE: Final = 60.0
"""Seconds between two purges of a queue (AWS PurgeQueue)."""

_DONE: Final[Answer] = {}


class Queues:
    """The queues of a broker with what SQS keeps of them, also of those that were made by the broker's own method."""

    def __init__(self, broker: MemoryBroker, ids: Ids) -> None:
        self._broker = broker
        self._ids = ids
        self._known: dict[str, Queue] = {}
        self.actions: Final[Mapping[str, Callable[[Call], Awaitable[Answer]]]] = {
            "CreateQueue": self._create,
            "DeleteQueue": self._delete,
            "GetQueueAttributes": self._get_attributes,
            "GetQueueUrl": self._get_url,
            "ListDeadLetterSourceQueues": self._list_sources,
            "ListMessageMoveTasks": self._list_moves,
            "ListQueueTags": self._list_tags,
            "ListQueues": self._list,
            "PurgeQueue": self._purge,
            "SetQueueAttributes": self._set_attributes,
            "StartMessageMoveTask": self._start_move,
            "TagQueue": self._tag,
            "UntagQueue": self._untag,
        }

    def asked(self, call: Call) -> Queue:
        """The queue of the request's QueueUrl; only the URL's last part counts."""
        return self.named(text(call.params, "QueueUrl").rpartition("/")[2])

    def forget_deleted(self) -> None:
        """Forget what was deleted by the broker's own method."""
        here = set(self._broker.queues())
        self._known = {name: known for name, known in self._known.items() if name in here}

    def named(self, name: str) -> Queue:
        """The queue, also one that was made by the broker's own method."""
        known = self._known.get(name)
        if known is None:
            if name not in self._broker.queues():
                raise no_queue()
            known = self._known[name] = Queue(name, lease=self._broker.limits.lease, now=self._broker.clock.time())
        return known

    async def _create(self, call: Call) -> Answer:
        name, given = text(call.params, "QueueName"), mapping(call.params, "Attributes")
        queue.check_name(name, given)
        attributes = queue.check_attributes(given, fifo=name.endswith(".fifo"))
        if name in self._broker.queues():
            present = self._described(self.named(name), call)
            for attribute, value in attributes.items():
                if not _same(attribute, present.get(attribute, ""), value):
                    why = f"A queue already exists with the same name and a different value for attribute {attribute}"
                    raise Refused("QueueNameExists", why)
        else:
            redrive = self._checked_redrive(name, attributes)
            self._broker.create_queue(name)
            self._configure(self.named(name), attributes, redrive)
            self.named(name).tags |= {str(tag): str(value) for tag, value in mapping(call.params, "tags").items()}
        return {"QueueUrl": call.url(name)}

    async def _delete(self, call: Call) -> Answer:
        name = self.asked(call).name
        self._broker.delete_queue(name)
        del self._known[name]
        return _DONE

    async def _purge(self, call: Call) -> Answer:
        target, now = self.asked(call), self._broker.clock.time()
        if now < target.purged + _PURGE:
            raise Refused("PurgeQueueInProgress", f"Only one PurgeQueue operation on {target.name} is allowed every 60 seconds.")
        self._broker.purge(target.name)
        target.purged = now
        return _DONE

    async def _get_url(self, call: Call) -> Answer:
        return {"QueueUrl": call.url(self.named(text(call.params, "QueueName")).name)}

    async def _get_attributes(self, call: Call) -> Answer:
        target, asked = self.asked(call), names(call.params, "AttributeNames")
        for name in sorted(asked - queue.READABLE):
            raise Refused("InvalidAttributeName", f"Unknown Attribute {name}.")
        known = self._described(target, call)
        if asked & {"All", *queue.COUNTS}:
            stats = await self._broker.stats(target.name)
            known |= {name: str(count) for name, count in zip(queue.COUNTS, (stats.ready, stats.in_flight, stats.delayed), strict=True)}
        chosen = {name: value for name, value in known.items() if name in asked or "All" in asked}
        return {"Attributes": chosen} if chosen else _DONE

    def _described(self, target: Queue, call: Call) -> dict[str, str]:
        known = {
            **target.attributes,
            "CreatedTimestamp": str(target.created),
            "LastModifiedTimestamp": str(target.modified),
            "QueueArn": call.arn(target.name),
        }
        if redrive := self._broker.redrive(target.name):
            known["RedrivePolicy"] = f'{{"deadLetterTargetArn":"{call.arn(redrive[0])}","maxReceiveCount":{redrive[1]}}}'
        return known

    async def _set_attributes(self, call: Call) -> Answer:
        target, given = self.asked(call), mapping(call.params, "Attributes")
        if "FifoQueue" in given:
            raise Refused("InvalidAttributeName", "Unknown Attribute FifoQueue.")
        attributes = queue.check_attributes(given, fifo=target.fifo)
        self._configure(target, attributes, self._checked_redrive(target.name, attributes))
        return _DONE

    def _checked_redrive(self, name: str, attributes: Mapping[str, str]) -> tuple[str, int] | None:
        value = attributes.get("RedrivePolicy", "")
        redrive = queue.redrive_policy(value)
        if redrive is not None:
            if redrive[0] not in self._broker.queues() or redrive[0] == name:
                raise invalid("RedrivePolicy", value, "Dead letter target does not exist.")
            if redrive[0].endswith(".fifo") != name.endswith(".fifo"):
                raise invalid("RedrivePolicy", value, "Dead-letter queue must be same type of queue as the source.")
        return redrive

    def _configure(self, target: Queue, attributes: Mapping[str, str], redrive: tuple[str, int] | None) -> None:
        if redrive is not None:
            self._broker.create_queue(target.name, dead_letter=redrive[0], max_receives=redrive[1])
        elif "RedrivePolicy" in attributes:
            self._broker.end_redrive(target.name)
        target.attributes |= {name: value for name, value in attributes.items() if name != "RedrivePolicy"}
        target.modified = int(self._broker.clock.time())

    async def _list(self, call: Call) -> Answer:
        prefix = str(call.params.get("QueueNamePrefix") or "")
        return _page(call, "QueueUrls", [name for name in self._broker.queues() if name.startswith(prefix)])

    async def _list_sources(self, call: Call) -> Answer:
        return _page(call, "queueUrls", self._sources(self.asked(call).name))

    def _sources(self, dead_letter: str) -> list[str]:
        return [name for name in self._broker.queues() if (self._broker.redrive(name) or ("", 0))[0] == dead_letter]

    async def _tag(self, call: Call) -> Answer:
        self.asked(call).tags |= {str(tag): str(value) for tag, value in mapping(call.params, "Tags").items()}
        return _DONE

    async def _untag(self, call: Call) -> Answer:
        target = self.asked(call)
        for tag in names(call.params, "TagKeys"):
            target.tags.pop(tag, None)
        return _DONE

    async def _list_tags(self, call: Call) -> Answer:
        tags = self.asked(call).tags
        return {"Tags": tags} if tags else _DONE

    # Moving dead letters back.

    async def _start_move(self, call: Call) -> Answer:
        """Move what is there now, before answering: a real move goes on in the background."""
        source, target = self._by_arn(call, "SourceArn"), None
        number(call.params, "MaxNumberOfMessagesPerSecond", 1, 500, 500)
        if call.params.get("DestinationArn"):
            target = self._by_arn(call, "DestinationArn")
            if target.fifo != source.fifo:
                raise invalid("DestinationArn", call.params["DestinationArn"], "It is not of the source's type.")
        if not self._sources(source.name):
            raise Refused("InvalidParameterValue", "Source queue must be configured as a Dead Letter Queue.")
        todo = (await self._broker.stats(source.name)).ready or 0
        task: Answer = {
            "Status": "COMPLETED",
            "SourceArn": call.params["SourceArn"],
            "ApproximateNumberOfMessagesToMove": todo,
            "ApproximateNumberOfMessagesMoved": 0,
            "StartedTimestamp": int(self._broker.clock.time() * 1000),
        } | {name: call.params[name] for name in ("DestinationArn", "MaxNumberOfMessagesPerSecond") if call.params.get(name)}
        for _ in range(todo):
            found = await self._broker.receive(source.name, max_messages=1, wait=0)
            if not found:
                break
            destination = target.name if target else self._broker.origin(found[0])
            if destination is None or destination not in self._broker.queues():
                await self._broker.extend(found, 0)
                task |= {"Status": "FAILED", "FailureReason": "CouldNotDetermineMessageSource"}
                break
            await self._move(found[0], destination)
            task["ApproximateNumberOfMessagesMoved"] += 1
        source.moves.insert(0, task)
        return {"TaskHandle": self._ids.next()}

    async def _move(self, delivery: Delivery, destination: str) -> None:
        """Send the message anew, as AWS does (StartMessageMoveTask): it gets another id, and counts its receives from 0."""
        old = envelope_of(delivery)
        fresh = Envelope(old.typed, old.digest)
        fresh.trace, fresh.group, fresh.dedup, fresh.sequence = old.trace, old.group, old.dedup, old.sequence
        fresh.id = self._ids.next()
        (refused,) = await self._broker.send(destination, [Outgoing(body=delivery.body, group=delivery.group, attributes=fresh)])
        if refused is not None:
            raise refused
        await self._broker.ack([delivery])

    async def _list_moves(self, call: Call) -> Answer:
        return {"Results": self._by_arn(call, "SourceArn").moves[: number(call.params, "MaxResults", 1, 10, 1)]}

    def _by_arn(self, call: Call, member: str) -> Queue:
        name = queue.queue_of(text(call.params, member))
        if name is None or name not in self._broker.queues():
            raise Refused("ResourceNotFoundException", f"The resource that you specified for the {member} parameter doesn't exist.")
        return self.named(name)


def no_queue() -> Refused:
    """What is answered for a queue that is not there."""
    return Refused("QueueDoesNotExist", "The specified queue does not exist.")


def _same(attribute: str, present: str, given: str) -> bool:
    if attribute == "RedrivePolicy":
        return (queue.redrive_policy(present) if present else None) == queue.redrive_policy(given)
    return present == given


def _page(call: Call, member: str, found: Sequence[str]) -> Answer:
    """A page of queue URLs; the token is the last name of the page before."""
    size = number(call.params, "MaxResults", 1, 1000, 1000)
    after = str(call.params.get("NextToken") or "")
    page = [name for name in found if name > after]
    answer: Answer = {member: [call.url(name) for name in page[:size]]} if page else {}
    if len(page) > size and call.params.get("MaxResults") is not None:
        answer["NextToken"] = page[size - 1]
    return answer
