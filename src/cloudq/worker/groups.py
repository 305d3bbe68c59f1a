"""Keeps the order of ordering groups inside a worker: of one group one delivery runs at a time, and none past one that stays."""

from __future__ import annotations

from collections import deque

from cloudq.worker.flight import Flight


class Groups:
    """The deliveries of ordered queues that are here, by queue and group; a receive may bring several of one group at once."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str | None], deque[Flight]] = {}

    def enter(self, flight: Flight) -> bool:
        """Whether the flight may go now; else it waits behind the one of its group that is under way."""
        waiting = self._waiting.get(_key(flight))
        if waiting is None:
            self._waiting[_key(flight)] = deque()
            return True
        waiting.append(flight)
        return False

    def leave(self, flight: Flight, *, skip_rest: bool) -> list[Flight]:
        """The group's delivery under way is gone; returns the one to go next, or with ``skip_rest`` all that wait, to be given back."""
        waiting = self._waiting.get(_key(flight))
        if waiting is None:
            return []
        if flight in waiting:  # it was given back before its turn came
            waiting.remove(flight)
            return []
        if waiting and not skip_rest:
            return [waiting.popleft()]
        del self._waiting[_key(flight)]
        return list(waiting)


def _key(flight: Flight) -> tuple[str, str | None]:
    return flight.job.delivery.queue, flight.job.delivery.group
