"""Locks that are held while the process forks, so that the child finds what they guard whole and free."""

from __future__ import annotations

import os
import weakref
from collections import defaultdict
from typing import Final, Protocol

PATIENCE: Final = 10.0
"""Seconds that a fork waits for one lock; a thread that holds it longer than that is stuck, and the child may be too."""


class Lock(Protocol):
    """A ``threading`` lock, reentrant or not."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...


class Forked(Protocol):
    """State in this process that threads share."""

    @property
    def fork_lock(self) -> Lock:
        """What guards it."""
        ...

    def after_fork(self) -> None:
        """Drop, in the child, what belongs to threads and loops of the parent. Nothing else runs meanwhile."""
        ...


_rows: Final[defaultdict[int, weakref.WeakSet[Forked]]] = defaultdict(weakref.WeakSet)
_held: Final[list[Lock]] = []


def protect(state: Forked, *, row: int) -> None:
    """Hold the lock of ``state`` during forks. Locks of a lower row are taken first: who holds one may ask for those of higher rows."""
    _rows[row].add(state)


def _before() -> None:
    for row in sorted(_rows):
        for state in list(_rows[row]):
            lock = state.fork_lock
            if lock.acquire(timeout=PATIENCE):
                _held.append(lock)


def _release() -> None:
    while _held:
        _held.pop().release()


def _in_child() -> None:
    _release()
    for row in sorted(_rows, reverse=True):
        for state in list(_rows[row]):
            state.after_fork()


os.register_at_fork(before=_before, after_in_parent=_release, after_in_child=_in_child)
