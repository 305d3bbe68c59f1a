"""Celery's signals: who is connected is told, of the senders it asked for, until it is disconnected."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from cloudq import CloudQ, Retry, signals
from cloudq.memory import MemoryBroker


@pytest.fixture
def told() -> Iterator[list[tuple[str, str]]]:
    """What every signal said, as (signal, sender)."""
    heard: list[tuple[str, str]] = []
    receivers: list[tuple[signals.Signal, Any]] = []
    for signal in signals._ALL:

        def receive(sender: str, signal: signals.Signal = signal, **kwargs: Any) -> None:
            heard.append((signal.name, sender))

        signal.connect(receive)
        receivers.append((signal, receive))
    yield heard
    for signal, receiver in receivers:
        assert signal.disconnect(receiver)
        assert not signal.disconnect(receiver)


def _app() -> CloudQ:
    return CloudQ("signals", broker=MemoryBroker())


def test_a_run_tells_its_story_in_order(told: list[tuple[str, str]]) -> None:
    app = _app()

    @app.task(name="t", retry=Retry(max_retries=1, delay=0))
    def t(fail: bool) -> None:
        if fail:
            raise ValueError

    t.apply((False,))
    assert [name for name, _ in told] == ["before_task_publish", "task_prerun", "task_success", "task_postrun"]
    told.clear()
    t.apply((True,))
    once = ["task_prerun", "task_postrun", "task_retry"]
    assert [name for name, _ in told] == ["before_task_publish", *once, "task_prerun", "task_failure", "task_postrun"]
    told.clear()
    t.delay(False)
    assert told == [("before_task_publish", "t"), ("after_task_publish", "t")]


def test_an_app_notices_receivers_that_come_and_go() -> None:
    app = _app()
    seen: list[Any] = []

    @app.task(name="t")
    def t() -> int:
        return 5

    t.apply()

    @signals.task_success.connect
    def receive(result: Any, **kwargs: Any) -> None:
        seen.append(result)

    t.apply()
    assert signals.task_success.disconnect(receive)
    t.apply()
    assert seen == [5]
    assert not app.hooks.before_run


def test_a_receiver_may_ask_for_one_sender_by_task_or_by_name() -> None:
    app = _app()
    seen: list[str] = []

    @app.task(name="one")
    def one() -> None: ...

    @app.task(name="two")
    def two() -> None: ...

    def receive(sender: str, **kwargs: Any) -> None:
        seen.append(sender)

    signals.task_prerun.connect(sender=one)(receive)
    signals.task_prerun.connect(receive, sender="two")
    one.apply()
    two.apply()
    app.task(name="three")(lambda: None).apply()
    signals.task_prerun.disconnect(receive)
    assert seen == ["one", "two"]


def test_a_receiver_that_fails_is_logged_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []
    signal = signals.Signal("mine")

    @signal.connect
    def broken(**kwargs: Any) -> None:
        raise ValueError("broken receiver")

    @signal.connect
    def fine(**kwargs: Any) -> None:
        seen.append(1)

    with caplog.at_level(logging.ERROR, "cloudq"):
        signal.send("x")
    assert seen == [1]
    assert "broken receiver" in caplog.text
