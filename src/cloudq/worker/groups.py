"""Keeps the order of ordering groups inside a worker: of one group one delivery runs at a time, and none past one that stays."""

from __future__ import annotations

from collections import deque

from cloudq.worker.flight import Flight


class Groups:
    """The deliveries of ordered queues that are here, by queue and group; a receive may bring several of one group at once."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str | None], deque[Flight]] = {}
        """The first of each is under way, the others wait."""

    def enter(self, flight: Flight) -> bool:
        """Whether the flight may go now; else it waits behind the one of its group that is under way."""
        line = self._lines.setdefault(_key(flight), deque())
        line.append(flight)
        return len(line) == 1

    def clear(self, flight: Flight) -> list[Flight]:
        """Let go of those that wait behind the one under way, and return them: they are to be given back."""
        line = self._lines.get(_key(flight))
        if line is None or line[0] is not flight:
            return []
        line.popleft()
        self._lines[_key(flight)] = deque([flight])
        return list(line)

    def leave(self, flight: Flight, *, skip_rest: bool) -> list[Flight]:
        """The group's delivery under way is gone; returns the one to go next, or with ``skip_rest`` all that wait, to be given back."""
        line = self._lines.get(_key(flight))
        if line is None or flight not in line:
            return []
        first = line[0] is flight
        line.remove(flight)
        if not first:  # it was given back before its turn came
            return []
        if line and not skip_rest:
            return [line[0]]
        del self._lines[_key(flight)]
        return list(line)


def _key(flight: Flight) -> tuple[str, str | None]:
    return flight.job.delivery.queue, flight.job.delivery.group
