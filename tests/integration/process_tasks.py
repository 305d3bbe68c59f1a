"""Tasks for child processes, most of them bad ones; broker, store and the name of the queue come from the environment."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from cloudq import CloudQ, Middleware
from cloudq.outcome import Again, Outcome
from cloudq.request import Request

if os.environ.get("PROCESS_TASKS_FAIL") == "import" and "cloudq.worker.child" in sys.argv[0].replace("/", "."):
    raise LookupError("only in the child")


class Notes(Middleware):
    """Notes which process ran a hook."""

    def after_run(self, request: Request, outcome: Outcome) -> None:
        self.note("after_run")

    def on_retry(self, request: Request, outcome: Again) -> None:
        self.note("on_retry")

    def note(self, hook: str) -> None:
        if "PROCESS_TASKS_NOTES" in os.environ:
            with Path(os.environ["PROCESS_TASKS_NOTES"]).open("a") as notes:
                notes.write(f"{hook} {os.getpid()}\n")


app = CloudQ("process-tests", default_queue=os.environ.get("PROCESS_TASKS_QUEUE", "default"), crash_cap=2, middleware=[Notes()])


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
async def pid_of_a_coroutine() -> int:
    await asyncio.sleep(0)
    return os.getpid()


@app.task
def pid() -> int:
    return os.getpid()


@app.task
def repeat(text: str, times: int) -> str:
    return text * times


@app.task
def fail() -> None:
    raise LookupError("as asked")


@app.task
def kill_own_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def leave(status: int) -> None:
    os._exit(status)


@app.task(timeout=1.5)
def hold_the_gil() -> None:
    """A C call that lets no other thread run."""
    ctypes.PyDLL(None).sleep(60)


@app.task(timeout=0.3)
async def dawdle() -> None:
    await asyncio.sleep(60)


@app.task(timeout=0.3)
async def dawdle_unheeding() -> None:
    time.sleep(60)  # noqa: ASYNC251  # the fault that this is about


@app.task
def touch_and_wait(path: str, wait: float = 60) -> str:
    Path(path).write_text(str(os.getpid()))
    time.sleep(wait)
    return "waited"


@app.task
def touch_and_hold_the_gil(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(60)


@app.task(timeout=1)
def start_a_program_and_hang(path: str) -> None:
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(path).write_text(str(program.pid))
    time.sleep(60)


@app.task
def fork_and_die(path: str) -> None:
    """Leave a process behind that has a copy of every open file."""
    left = os.fork()
    if left == 0:
        time.sleep(30)
        os._exit(0)
    Path(path).write_text(str(left))
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def tell_progress(ended: str, late: str) -> str:
    """Once the file ``ended`` is there, tell more, and then make the file ``late``."""

    def afterwards() -> None:
        while not Path(ended).exists():
            time.sleep(0.01)
        tell_progress.update_state("LATE", {"done": 3})
        Path(late).touch()

    tell_progress.update_state("PROGRESS", {"done": 1})
    tell_progress.update_state(meta={"done": 2})
    threading.Thread(target=contextvars.copy_context().run, args=(afterwards,), daemon=True).start()
    return "told"


@app.task
def shrug_off_signals() -> str:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    program.terminate()
    return signal.Signals(-program.wait()).name


@app.task
def send_another(x: int) -> str:
    return add.delay(x, x).id


@app.task
def touch_and_spin(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    while True:
        time.sleep(0.002)


@app.task
async def touch_and_sleep(path: str) -> None:
    Path(path).write_text(str(os.getpid()))  # noqa: ASYNC240 - a test's own loop
    await asyncio.sleep(60)
