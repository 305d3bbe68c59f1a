"""A broker that lies as a cloud may: it repeats, reorders, forgets leases and loses answers, and never loses a message."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloudq.broker import Broker, CreatesQueues, Delivery, Outgoing, QueueStats
from cloudq.errors import BrokerUnavailable, ConfigError, LeaseLost, SendError, SettleError


@dataclass(frozen=True, slots=True, kw_only=True)
class Lies:
    """How often each lie is told: probabilities from 0 to 1."""

    send_refused: float = 0.05
    """An entry is answered with a retryable error; half of these were taken all the same."""
    send_lost: float = 0.05
    """The whole send raises BrokerUnavailable; half of these were taken all the same."""
    receive_empty: float = 0.05
    """A receive comes back empty at once, whatever there is."""
    receive_lost: float = 0.02
    """A receive raises BrokerUnavailable, and what it leased comes back only when the lease ends."""
    reorder: float = 0.2
    """A batch is shuffled."""
    duplicate: float = 0.05
    """A delivery's lease ends at once, unknown to its holder: somebody else gets the message too."""
    expire: float = 0.05
    """A lease has ended just before its ack or extend."""
    stale_accepted: float = 0.5
    """An ack after the lease had ended is answered as a success, and does nothing (AWS DeleteMessage)."""
    ack_undone: float = 0.03
    """An ack is answered as a success, and the message is delivered again."""
    settle_refused: float = 0.03
    """An ack or extend that was done is answered with a retryable error."""
    settle_lost: float = 0.03
    """The whole ack or extend was done, and raises BrokerUnavailable."""


class LyingBroker:
    """Another broker, made to lie within what SQS standard queues do (AWS "At-least-once delivery").

    The same seed and the same calls give the same lies. Messages with a group are never repeated or reordered on purpose:
    only their requests fail.
    """

    def __init__(self, broker: Broker, seed: int = 0, rates: Lies | None = None) -> None:
        self.limits: Final = broker.limits
        self.rates: Final = rates or Lies()
        self._broker = broker
        self._random = random.Random(seed)

    def create_queue(self, name: str, *, dead_letter: str | None = None, max_receives: int | None = None) -> None:
        """As the broker does it; ConfigError where its queues are created elsewhere."""
        if not isinstance(self._broker, CreatesQueues):
            raise ConfigError(f"{type(self._broker).__name__} creates no queues")
        self._broker.create_queue(name, dead_letter=dead_letter, max_receives=max_receives)

    async def send(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
        """As Broker says, with answers that may be lies."""
        if self._lie(self.rates.send_lost):
            if self._lie(0.5):
                await self._broker.send(queue, messages)
            raise BrokerUnavailable("a lie: the answer to a send was lost")
        refused = [self._lie(self.rates.send_refused) for _ in messages]
        passed = [not no or self._lie(0.5) for no in refused]
        taken = [message for message, goes in zip(messages, passed, strict=True) if goes]
        truths = iter(await self._broker.send(queue, taken) if taken else ())
        answers: list[SendError | None] = []
        for no, goes in zip(refused, passed, strict=True):
            truth = next(truths) if goes else None
            answers.append(truth or (SendError("a lie: refused", retryable=True, code="InternalError") if no else None))
        return answers

    async def receive(self, queue: str, *, max_messages: int, wait: float) -> Sequence[Delivery]:
        """As Broker says, with deliveries that may be somebody else's too."""
        if self._lie(self.rates.receive_empty):
            await self._broker.stats(queue)  # a queue that is not there is still said
            return []
        batch = list(await self._broker.receive(queue, max_messages=max_messages, wait=wait))
        if self._lie(self.rates.receive_lost):
            raise BrokerUnavailable("a lie: the answer to a receive was lost")
        await self._end([delivery for delivery in batch if delivery.group is None and self._lie(self.rates.duplicate)])
        if self._lie(self.rates.reorder) and all(delivery.group is None for delivery in batch):
            self._random.shuffle(batch)
        return batch

    async def ack(self, deliveries: Sequence[Delivery]) -> Sequence[SettleError | None]:
        """As Broker says, with answers that may be lies."""
        await self._expire(deliveries)
        undone = [delivery for delivery in deliveries if delivery.group is None and self._lie(self.rates.ack_undone)]
        await self._end(undone)
        done = [delivery for delivery in deliveries if delivery not in undone]
        truths = iter(await self._broker.ack(done) if done else ())
        answers = [None if delivery in undone else next(truths) for delivery in deliveries]
        return self._settled(
            [None if isinstance(answer, LeaseLost) and self._lie(self.rates.stale_accepted) else answer for answer in answers]
        )

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[SettleError | None]:
        """As Broker says, with answers that may be lies."""
        await self._expire(deliveries)
        return self._settled(await self._broker.extend(deliveries, seconds))

    async def stats(self, queue: str) -> QueueStats:
        """The truth: counts are approximate anyway."""
        return await self._broker.stats(queue)

    async def close(self) -> None:
        """Close the broker."""
        await self._broker.close()

    def _lie(self, rate: float) -> bool:
        return self._random.random() < rate

    async def _expire(self, deliveries: Sequence[Delivery]) -> None:
        await self._end([delivery for delivery in deliveries if delivery.group is None and self._lie(self.rates.expire)])

    async def _end(self, deliveries: Sequence[Delivery]) -> None:
        """End leases without a word to whoever holds them."""
        for start in range(0, len(deliveries), self.limits.batch):
            part = deliveries[start : start + self.limits.batch]
            believed = [delivery.lease_until for delivery in part]
            await self._broker.extend(part, 0)
            for delivery, until in zip(part, believed, strict=True):
                delivery.lease_until = until

    def _settled(self, truths: Sequence[SettleError | None]) -> Sequence[SettleError | None]:
        if self._lie(self.rates.settle_lost):
            raise BrokerUnavailable("a lie: the answer was lost")
        return [
            SettleError("a lie: refused", retryable=True, code="InternalError")
            if truth is None and self._lie(self.rates.settle_refused)
            else truth
            for truth in truths
        ]
