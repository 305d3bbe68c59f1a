"""The actions of SQS's JSON protocol, carried out on a memory broker."""

from __future__ import annotations

from collections import Counter
from typing import Final

from cloudq.broker import Broker
from cloudq.errors import BrokerError, ConfigError, QueueNotFound
from cloudq.memory.broker import MemoryBroker
from cloudq_aws.sqs_protocol.message import MIB, Ids
from cloudq_aws.sqs_protocol.messages import Messages
from cloudq_aws.sqs_protocol.queues import Queues, no_queue
from cloudq_aws.sqs_protocol.request import BATCH, Answer, Call, Refused


class Service:
    """SQS over ``broker``. Use it on one event loop; the broker may be used beside it from any thread.

    ``front`` is what messages go through, where it is not the broker itself (a LyingBroker around it). Of the entries of batches every
    ``fail_every``-th, if above 0, fails with InternalError, and nothing is done of it.

    Attributes of queues take effect, but for retention, keys and policies, which are only told back. A stale receipt
    deletes nothing: a standard queue answers it as a success, as AWS may, a FIFO queue with an error (AWS DeleteMessage, ReceiveMessage).
    """

    def __init__(self, broker: MemoryBroker, front: Broker | None = None, *, fail_every: int = 0) -> None:
        if broker.limits.batch < BATCH or broker.limits.batch_bytes < MIB:
            raise ConfigError("the SQS protocol needs a broker that takes batches of 10 messages and 1 MiB")
        self.requests: Final[Counter[str]] = Counter()
        """Requests by action."""
        self.entries: Final[Counter[str]] = Counter()
        """Messages asked to be sent, deleted or changed, and those received, by action."""
        ids = Ids()
        self._queues = Queues(broker, ids)
        self._messages = Messages(broker, front or broker, self._queues, ids, fail_every=fail_every)
        self._actions = {**self._queues.actions, **self._messages.actions}

    @property
    def body_bytes(self) -> int:
        """Bytes that SQS would count of the messages asked to be sent."""
        return self._messages.body_bytes

    async def answer(self, action: str, call: Call) -> Answer:
        """Carry out ``action`` (``SendMessage``); raises Refused with the code that AWS answers."""
        act = self._actions.get(action)
        if act is None:
            raise Refused("UnknownOperationException", f"This server does not know the action {action[:100]}.")
        self.requests[action] += 1
        if action in self._messages.actions and action != "ReceiveMessage":
            self.entries[action] += len(call.params.get("Entries") or "1")
        try:
            answer = await act(call)
        except QueueNotFound as error:
            self._queues.forget_deleted()
            raise no_queue() from error
        except BrokerError as error:
            raise Refused("InternalFailure", str(error), fault=True) from error
        if action == "ReceiveMessage":
            self.entries[action] += len(answer.get("Messages", ()))
        return answer
