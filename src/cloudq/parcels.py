"""Messages on their way to the broker or the timer: whom to tell what became of them, and for how long they are tried."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from cloudq.broker import Outgoing
from cloudq.bulk import Bulk
from cloudq.errors import BrokerUnavailable, SendError, TimerUnavailable

Answer: TypeAlias = Exception | None
"""``None`` once the entry is durably accepted."""

PAUSES: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Seconds between repeats of a failed entry; the last one goes on."""

TRYING: Final = 0.9
"""Of the time that a call waits, in which failed entries are repeated: so that it hears why."""


def retryable(answer: Answer) -> bool:
    """Whether the same entry may be taken later."""
    return isinstance(answer, (BrokerUnavailable, TimerUnavailable)) or (isinstance(answer, SendError) and answer.retryable)


@dataclass(slots=True, eq=False, repr=False)
class Parcel:
    """One message, and whom to tell."""

    queue: str
    outgoing: Outgoing
    task_id: str
    tell: Callable[[int, Answer], None]
    give_up: float
    """``time.monotonic()`` after which it is not repeated any more."""
    errors: dict[int, Exception]
    """What its last try failed with, under its place."""
    place: int = 0
    """Told to ``tell``: one function serves all that were posted together, as a closure each would double what is kept alive."""
    among_many: bool = False
    tries: int = 0
    due: float = 0.0
    """Unix time until which the timer has it."""

    def again(self, answer: Exception) -> float | None:
        """Seconds until it is tried again; ``None`` where it is not, which it has been told then."""
        pause = PAUSES[min(self.tries, len(PAUSES) - 1)]
        if retryable(answer) and time.monotonic() + pause < self.give_up:
            self.tries += 1
            self.errors[self.place] = answer
            return pause
        self.tell(self.place, answer)
        return None


@dataclass(slots=True, eq=False, repr=False)
class Tally:
    """The answers to all entries of one ``send_many``; used on the I/O loop only, so that the count needs no lock."""

    left: int
    done: Callable[[], None]
    failed: dict[int, Exception] = field(default_factory=dict[int, Exception])
    """Why, of each that was refused; of one that has no answer yet, why its last try failed."""
    answered: bytearray = field(init=False)
    """1 at the index of each that has an answer."""

    def __post_init__(self) -> None:
        self.answered = bytearray(self.left)

    def tell(self, index: int, answer: Answer) -> None:
        """One of them."""
        if answer is not None:
            self.failed[index] = answer
        else:
            self.failed.pop(index, None)
        self.settle((index,))

    def settle(self, indices: Sequence[int]) -> None:
        """These have their answer: they were taken, unless ``failed`` says otherwise."""
        for index in indices:
            self.answered[index] = 1
        self.left -= len(indices)
        if not self.left:
            self.done()


@dataclass(slots=True, eq=False, repr=False)
class Load:
    """A full request of one ``send_many``, whose messages are made when it is its turn."""

    queue: str
    entries: Bulk
    indices: Sequence[int]
    tally: Tally
    give_up: float

    def parcel(self, index: int) -> Parcel:
        """One of its messages, for itself."""
        entries, tally = self.entries, self.tally
        return Parcel(self.queue, entries.outgoing(index), entries.ids[index], tally.tell, self.give_up, tally.failed, index, True)
