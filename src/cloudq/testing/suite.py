"""What the conformance suites share: async scenarios as plain pytest tests, and no quiet override."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest

_Suite = TypeVar("_Suite", bound="Suite")


class Suite:
    """A set of standard tests for the drivers of one seam.

    A subclass gives the hooks and no tests of its own names: a standard test that a driver cannot pass stays, as an override marked
    ``@pytest.mark.xfail(reason=...)``, or ``skip(reason=...)`` where it passes by chance. What a driver's limits say it cannot do is
    skipped.
    """

    patience: float = 60.0
    """Seconds of real time after which a test has failed."""

    slack: float = 0.5
    """Seconds by which the server's own timers may be late."""

    async def pass_time(self, seconds: float) -> None:
        """Let ``seconds`` pass for the driver; a driver on a ManualClock advances it."""
        await asyncio.sleep(seconds)

    async def play(self, scenario: Callable[[], Awaitable[None]]) -> None:
        """Run one scenario within ``patience``."""
        async with asyncio.timeout(self.patience):
            await scenario()

    def test_no_standard_test_is_overridden_without_a_reason(self) -> None:
        """An override needs a reason: an xfail, or a skip where the server fails by chance only."""
        assert sorted(_quiet_overrides(type(self))) == []


def _quiet_overrides(driver: type[Suite]) -> Iterator[str]:
    standard = next(cls for cls in reversed(driver.__mro__) if issubclass(cls, Suite) and cls is not Suite)
    for name in dir(standard):
        if name.startswith("test_") and getattr(driver, name) is not getattr(standard, name):
            marks: list[pytest.Mark] = getattr(getattr(driver, name), "pytestmark", [])
            if not any(mark.name in ("xfail", "skip") and mark.kwargs.get("reason") for mark in marks):
                yield name


def scenario(test: Callable[[_Suite], Awaitable[None]]) -> Callable[[_Suite], None]:
    """Make a test of an async method: it runs on a loop of its own, so that a driver's clients live on one loop."""

    def run(self: _Suite) -> None:
        asyncio.run(self.play(lambda: test(self)))

    for name in ("__name__", "__qualname__", "__doc__", "__module__"):  # no __wrapped__: pytest would look for fixtures
        setattr(run, name, getattr(test, name))
    return run


def unless(condition: bool, reason: str) -> None:
    """Skip the test that runs, for a limit that the driver declares, unless ``condition`` holds."""
    if not condition:
        pytest.skip(reason)


def is_busy() -> bool:
    """Whether others have the machine's processors in these seconds: a fifth of a second of computing takes a quarter longer, at least."""
    for _ in range(10):
        began, spent = time.monotonic(), time.thread_time()
        while time.thread_time() - spent < 0.2:
            pass
        if time.monotonic() - began > 0.25:
            return True
        time.sleep(0.1)
    return False
