"""The I/O thread starts when needed, ends cleanly, starts again, and never waits for itself."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from typing import ClassVar

import pytest

from cloudq.errors import Closed, ConfigError
from cloudq.io import IOThread, drive
from tests.waiting import until


async def _answer(value: int = 42) -> int:
    await asyncio.sleep(0)
    return value


def _io() -> IOThread:
    return IOThread("test")


def test_nothing_runs_before_the_first_use() -> None:
    io = _io()
    assert not io.running
    io.close()
    assert not io.running


def test_a_coroutine_runs_on_a_thread_of_its_own() -> None:
    io = _io()

    async def where() -> str:
        return threading.current_thread().name

    assert io.run(where()) == "cloudq-io-test"
    assert not io.owns_this_thread()
    io.close()


def test_many_threads_at_once_start_one_loop() -> None:
    io = _io()
    loops: list[asyncio.AbstractEventLoop] = []
    gate = threading.Barrier(8)

    def use() -> None:
        gate.wait()
        loops.append(io.loop)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, loops))) == 1
    io.close()


def test_it_can_be_used_again_after_close() -> None:
    io = _io()
    assert io.run(_answer(1)) == 1
    io.close()
    io.close()
    assert not io.running
    assert io.run(_answer(2)) == 2
    io.close()


def test_waiting_for_the_io_thread_on_itself_is_refused() -> None:
    io = _io()

    async def wait_for_itself() -> None:
        io.run(_answer())

    with pytest.raises(Closed, match="I/O thread itself"):
        io.run(wait_for_itself())
    io.close()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "interrupt"])
def test_what_asks_for_the_end_on_it_ends_itself_alone(error: BaseException) -> None:
    async def ends() -> None:
        raise error

    io = _io()
    first = io.loop
    with pytest.raises(type(error)):
        io.run(ends(), timeout=30)
    assert io.run(_answer(), timeout=30) == 42
    assert io.loop is first
    io.close()


def test_closing_it_from_itself_is_refused_and_harmless() -> None:
    io = _io()

    async def close_itself() -> None:
        io.close()

    with pytest.raises(Closed):
        io.run(close_itself())
    assert io.run(_answer()) == 42
    io.close()


def test_a_coroutine_may_await_it_from_any_loop_and_from_its_own() -> None:
    io = _io()

    async def nested() -> int:
        return await io.arun(_answer(7))

    assert asyncio.run(nested()) == 7
    assert io.run(nested()) == 7
    io.close()


def test_a_run_over_its_time_is_cancelled() -> None:
    io = _io()
    begun, ended = threading.Event(), threading.Event()

    async def long() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    while not begun.is_set():  # it may be over before a busy machine has begun it
        with pytest.raises(TimeoutError):
            io.run(long(), timeout=0.05)
    assert ended.wait(30)
    io.close()


def test_cancelling_the_one_who_waits_cancels_the_call() -> None:
    io = _io()
    begun, ended = threading.Event(), threading.Event()

    async def long() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def scenario() -> None:
        waiting = asyncio.create_task(io.arun(long()))
        await asyncio.to_thread(begun.wait, 30)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(scenario())
    assert ended.wait(30)
    io.close()


def test_closers_run_on_the_loop_last_first_and_one_that_fails_stops_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    io = _io()
    order: list[str] = []

    async def first() -> None:
        order.append("first")

    async def second() -> None:
        order.append("second")
        raise ValueError("broken")

    io.at_close(first)
    io.at_close(second)
    io.run(_answer())
    io.close()
    assert order == ["second", "first"]
    assert "broken" in capsys.readouterr().err


def test_a_closer_that_hangs_ends_with_the_time_given_and_what_is_left_is_cancelled() -> None:
    io = _io()
    cancelled = threading.Event()

    async def hang() -> None:
        await asyncio.sleep(60)

    async def left() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    io.at_close(hang)
    waiting = io.submit(left())
    loop = io.loop
    io.run(_answer())
    io.close(timeout=0.2)
    until(loop.is_closed)
    assert cancelled.is_set()
    assert waiting.cancelled()


def test_what_ending_work_begins_is_ended_too() -> None:
    io = _io()
    ended: list[int] = []

    async def work(depth: int) -> None:
        try:
            await asyncio.sleep(1_000)
        finally:
            if depth:
                heirs.append(asyncio.get_running_loop().create_task(work(depth - 1)))
                await asyncio.sleep(0)
            ended.append(depth)

    heirs: list[asyncio.Task[None]] = []

    async def begin() -> None:
        heirs.append(asyncio.get_running_loop().create_task(work(3)))
        await asyncio.sleep(0)

    io.run(begin())
    loop = io.loop
    io.close()
    until(loop.is_closed)
    assert sorted(ended) == [0, 1, 2, 3]
    assert all(heir.done() for heir in heirs)


def test_drive_runs_a_local_driver_to_its_end_and_passes_its_errors_on() -> None:
    async def value() -> int:
        return 3

    async def broken() -> None:
        raise KeyError("x")

    assert drive(value()) == 3
    with pytest.raises(KeyError):
        drive(broken())


def test_drive_refuses_a_driver_that_suspends() -> None:
    with pytest.raises(RuntimeError, match="suspended"):
        drive(_answer())


def test_uwsgi_without_threads_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Uwsgi:
        opt: ClassVar = {"processes": b"4"}

    monkeypatch.setitem(sys.modules, "uwsgi", Uwsgi)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="enable-threads"):
        _ = _io().loop


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_a_forked_child_has_a_loop_of_its_own_and_leaves_the_parents_alone() -> None:
    out = _python(
        """
        import os
        from cloudq.io import IOThread

        async def pid():
            return os.getpid()

        io = IOThread("f")
        forgot = []
        io.after_fork(lambda: forgot.append(os.getpid()))
        assert io.run(pid()) == os.getpid()
        io._lock.acquire()  # as if another thread were starting a loop at this moment
        child = os.fork()
        if child == 0:
            assert not io.running and forgot == [os.getpid()]
            assert io.run(pid(), timeout=60) == os.getpid()
            io.close()
            os._exit(0)
        io._lock.release()
        assert os.waitpid(child, 0)[1] == 0
        assert io.run(pid()) == os.getpid() and not forgot
        print("ok")
        """
    )
    assert out == "ok\n"


def test_at_exit_the_closers_run_and_later_use_is_refused() -> None:
    out = _python(
        """
        import atexit

        def late():
            try:
                io.loop
            except RuntimeError as error:
                assert type(error).__name__ == "Closed"
                print("refused")

        atexit.register(late)  # registered before cloudq.io: runs after it
        from cloudq.io import IOThread

        async def nothing():
            pass

        async def closer():
            print("closed")

        io = IOThread("x")
        io.at_close(closer)
        io.run(nothing())
        """
    )
    assert out == "closed\nrefused\n"
