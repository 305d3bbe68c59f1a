"""Hooks run in their order, cost nothing where nobody overrides them, and fail only what they may fail."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cloudq import CloudQ, Middleware, Retry, states
from cloudq.memory import MemoryBroker
from cloudq.message import Message
from cloudq.middleware import Hooks, call_quietly
from cloudq.outcome import Again, Dead, Outcome
from cloudq.request import Request


class Log(Middleware):
    def __init__(self, name: str, into: list[str]) -> None:
        self.name = name
        self.into = into

    def before_send(self, message: Message, queue: str) -> Message:
        self.into.append(f"{self.name} before_send")
        return message

    def before_run(self, request: Request) -> None:
        self.into.append(f"{self.name} before_run {request.args}")

    def after_run(self, request: Request, outcome: Outcome) -> None:
        self.into.append(f"{self.name} after_run {type(outcome).__name__}")

    def on_retry(self, request: Request, outcome: Again) -> None:
        self.into.append(f"{self.name} on_retry")

    def on_dead(self, message: Message | None, queue: str, outcome: Dead) -> None:
        self.into.append(f"{self.name} on_dead")


def _app(*middleware: Middleware) -> CloudQ:
    return CloudQ("hooks", broker=MemoryBroker(), middleware=middleware)


def test_every_hook_is_called_in_its_place_in_the_order_of_the_middleware() -> None:
    told: list[str] = []
    app = _app(Log("a", told), Log("b", told))

    @app.task(name="t", retry=Retry(max_retries=1, delay=0))
    def t(x: int) -> None:
        told.append("run")
        raise ValueError

    t.apply((1,))
    assert told == [
        "a before_send", "b before_send",
        "a before_run [1]", "b before_run [1]", "run", "a after_run Again", "b after_run Again", "a on_retry", "b on_retry",
        "a before_run [1]", "b before_run [1]", "run", "a after_run Dead", "b after_run Dead", "a on_dead", "b on_dead",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_error_before_the_run_fails_the_run_as_if_the_task_had_raised_it(kind: str) -> None:
    class Refuse(Middleware):
        def before_run(self, request: Request) -> None:
            raise PermissionError("not today")

    app = _app(Refuse())
    ran: list[int] = []

    def body() -> None:
        ran.append(1)

    async def abody() -> None:
        ran.append(1)

    task: Any = app.task(name="t")(body if kind == "sync" else abody)
    result = task.apply()
    assert (result.state, result.result.type) == (states.FAILURE, "PermissionError")
    assert ran == []


def test_an_error_before_the_send_is_the_callers() -> None:
    class Refuse(Middleware):
        def before_send(self, message: Message, queue: str) -> Message:
            raise PermissionError("not from here")

    app = _app(Refuse())

    @app.task(name="t")
    def t() -> None: ...

    with pytest.raises(PermissionError):
        t.delay()
    assert asyncio.run(app.broker.stats("default")).ready == 0


def test_errors_in_the_other_hooks_are_logged_and_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Middleware):
        def after_run(self, request: Request, outcome: Outcome) -> None:
            raise ValueError("broken")

    app = _app(Broken())

    @app.task(name="t")
    def t() -> int:
        return 1

    with caplog.at_level(logging.ERROR, "cloudq"):
        assert t.apply().get() == 1
    assert "Broken.after_run failed" in caplog.text


def test_a_hook_ends_no_process_and_only_the_main_threads_ctrl_c_goes_through(caplog: pytest.LogCaptureFixture) -> None:
    def ends() -> None:
        raise SystemExit(3)

    def interrupts() -> None:
        raise KeyboardInterrupt

    called: list[int] = []
    hooks = (ends, lambda: called.append(1))
    with caplog.at_level(logging.ERROR, "cloudq"):
        call_quietly(hooks)
        with ThreadPoolExecutor(1) as threads:
            threads.submit(call_quietly, (interrupts, *hooks)).result(30)
    assert called == [1, 1]
    assert caplog.text.count("failed") == 3
    with pytest.raises(KeyboardInterrupt):
        call_quietly((interrupts,))


def test_hooks_that_nobody_overrides_are_empty_and_later_middleware_counts() -> None:
    assert all(getattr(Hooks([Middleware()]), name) == () for name in Hooks.__slots__)
    app = _app()
    assert app.hooks.before_run == ()
    app.add_middleware(Log("late", []))
    assert len(app.hooks.before_run) == 1
