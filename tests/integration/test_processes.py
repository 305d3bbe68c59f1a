"""Child processes: whatever a task does to its process, it does to itself alone."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cloudq import CloudQ, states
from cloudq.broker import Delivery
from cloudq.errors import ConfigError
from cloudq.loading import load_app, reference_of
from cloudq.message import Message, new_id
from cloudq.outcome import Again, Dead, Done, Dropped, Later, Outcome
from cloudq.runner import Runner
from cloudq.worker import Worker, WorkerOptions, processes
from cloudq.worker.flight import Flight
from cloudq.worker.processes import ProcessExecutor
from tests.servers import REGION, SQSServer, moto, unique

MODULE = "tests.integration.process_tasks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The task module, imported anew, with a broker whose limits are asked for and to which nothing is sent."""
    monkeypatch.setenv("CLOUDQ_BROKER", f"sqs://{REGION}/?lease=30")
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    module = importlib.import_module(MODULE)
    yield module
    module.app.close()
    monkeypatch.delitem(sys.modules, MODULE, raising=False)


class Bench:
    """An executor and what it has completed."""

    def __init__(self, app: CloudQ, count: int, max_tasks: int | None) -> None:
        self.app = app
        self.runner = Runner(app)
        self.outcomes: dict[Flight, Outcome] = {}
        self.executor = ProcessExecutor(self.runner, count, self._complete, max_tasks=max_tasks)

    def _complete(self, flight: Flight, outcome: Outcome) -> None:
        assert flight not in self.outcomes, "completed twice"
        self.outcomes[flight] = outcome

    def submit(self, task: str, *args: Any, wanted: bool = True, report: Callable[[str, Any], None] | None = None) -> Flight:
        message = Message({"v": 1, "id": new_id(), "task": f"{MODULE}.{task}", "args": list(args), "sent": time.time()})
        job = self.runner.admit(Delivery(queue="q", body=message.encode(), receipt=None, receives=1))
        assert job.request is not None, job.outcome
        job.recorded = wanted
        job.request.report = report
        flight = Flight(job)
        self.executor.submit(flight)
        return flight

    async def outcome(self, flight: Flight) -> Outcome:
        await until(lambda: flight in self.outcomes)
        return self.outcomes[flight]

    async def run(self, task: str, *args: Any, **options: Any) -> Outcome:
        return await self.outcome(self.submit(task, *args, **options))

    async def value(self, task: str, *args: Any) -> Any:
        outcome = await self.run(task, *args)
        assert isinstance(outcome, Done), outcome
        return outcome.value


async def until(condition: Callable[[], bool], patience: float = 60.0) -> None:
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.01)


def bench(app: CloudQ, use: Callable[[Bench], Awaitable[None]], *, count: int = 1, max_tasks: int | None = None) -> None:
    """Use an executor with real children; afterwards none of them is left."""

    async def run() -> None:
        it = Bench(app, count, max_tasks)
        await it.executor.start()
        try:
            await use(it)
        finally:
            it.executor.close()
            await it.executor.wait_closed()
        assert children_of(os.getpid()) == []

    asyncio.run(run())


def children_of(parent: int) -> list[int]:
    """The child processes of cloudq that a process has; zombies do not count."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 3) for line in listed.splitlines()]
    return [int(pid) for pid, ppid, stat, args in rows if int(ppid) == parent and "cloudq.worker.child" in args and stat[0] != "Z"]


def is_alive(pid: int) -> bool:
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(listed.strip()) and listed.strip()[0] != "Z"


def wait_until(condition: Callable[[], object], patience: float = 60.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


# ------------------------------------------------------------------ the executor


@pytest.mark.parametrize("task", ["touch_and_spin", "touch_and_sleep"])
def test_a_revoked_task_is_ended_inside_its_child_which_goes_on(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setattr(processes, "REVOKE_GRACE", 60.0)

    async def use(it: Bench) -> None:
        child = await it.value("pid")
        running = tmp_path / "running"
        flight = it.submit(task, str(running))
        await until(lambda: running.exists() and running.read_text() != "")
        flight.job.revoked = True
        it.executor.revoke(flight)
        outcome = await it.outcome(flight)
        assert isinstance(outcome, Dropped)
        assert outcome.state == states.REVOKED
        assert await it.value("pid") == child
        assert running.read_text() == str(child)

    bench(module.app, use)


def test_a_revoked_task_that_does_not_end_is_killed_with_its_child(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "REVOKE_GRACE", 0.3)

    async def use(it: Bench) -> None:
        running = tmp_path / "running"
        flight = it.submit("touch_and_hold_the_gil", str(running))
        await until(lambda: running.exists() and running.read_text() != "")
        waiting = it.submit("pid")
        flight.job.revoked = True
        it.executor.revoke(flight)
        outcome = await it.outcome(flight)
        assert isinstance(outcome, Dropped)
        assert outcome.state == states.REVOKED
        assert isinstance(await it.outcome(waiting), Done), "another child has taken its place"
        assert not is_alive(int(running.read_text()))

    bench(module.app, use)


def test_a_revoked_task_that_has_no_child_yet_never_runs(module: ModuleType, tmp_path: Path) -> None:
    async def use(it: Bench) -> None:
        first, never = it.submit("pid"), tmp_path / "never"
        flight = it.submit("touch_and_spin", str(never))
        flight.job.revoked = True
        it.executor.revoke(flight)
        assert isinstance(await it.outcome(flight), Dropped)
        assert isinstance(await it.outcome(first), Done)
        assert not never.exists()

    bench(module.app, use)


def test_sync_and_async_tasks_run_in_another_process_and_their_values_come_back(module: ModuleType) -> None:
    async def use(it: Bench) -> None:
        assert await it.value("add", 1, 2) == 3
        child = await it.value("pid")
        assert child != os.getpid()
        assert await it.value("pid_of_a_coroutine") == child, "one child serves both kinds"
        assert await it.value("repeat", "0123456789" * 10_000, 50) == "0123456789" * 500_000

    bench(module.app, use)


def test_a_value_that_nobody_wants_does_not_travel(module: ModuleType) -> None:
    async def use(it: Bench) -> None:
        assert await it.run("add", 1, 2, wanted=False) == Done()

    bench(module.app, use)


def test_a_task_that_raises_fails_as_it_does_in_a_thread(module: ModuleType) -> None:
    async def use(it: Bench) -> None:
        outcome = await it.run("fail")
        assert isinstance(outcome, Dead)
        assert outcome.state == states.FAILURE
        assert outcome.error is not None
        assert (outcome.error.type, outcome.error.detail) == ("LookupError", "as asked")
        assert "process_tasks.py" in outcome.error.traceback

    bench(module.app, use)


@pytest.mark.parametrize(
    ("task", "args", "how"),
    [("kill_own_process", (), "the child process was killed by SIGKILL"), ("leave", (3,), "the child process exited with status 3")],
)
def test_a_task_that_ends_its_process_hurts_no_other(module: ModuleType, task: str, args: tuple[Any, ...], how: str) -> None:
    async def use(it: Bench) -> None:
        bad, good = it.submit(task, *args), [it.submit("add", n, n) for n in range(4)]
        outcome = await it.outcome(bad)
        assert isinstance(outcome, Again)
        assert outcome.crashed
        assert outcome.error.detail == how
        assert [await it.outcome(flight) for flight in good] == [Done(2 * n) for n in range(4)]

    bench(module.app, use, count=2)


def test_a_c_call_that_holds_the_gil_ends_at_its_limit_while_others_go_on(module: ModuleType) -> None:
    async def use(it: Bench) -> None:
        began = time.monotonic()
        bad, good = it.submit("hold_the_gil"), it.submit("add", 1, 1)
        assert await it.outcome(good) == Done(2)
        outcome = await it.outcome(bad)
        assert list(it.outcomes) == [good, bad]
        assert isinstance(outcome, Dead)
        assert "time limit of 1.5 s" in (outcome.error.detail if outcome.error else "")
        assert time.monotonic() - began < 40  # by itself it ends after 60
        assert await it.value("add", 2, 2) == 4

    bench(module.app, use, count=2)


def test_an_async_task_past_its_limit_is_cancelled_in_its_process_which_lives_on(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "ASYNC_GRACE", 50.0)

    async def use(it: Bench) -> None:
        before = await it.value("pid")
        outcome = await it.run("dawdle")
        assert isinstance(outcome, Dead)
        assert "time limit" in outcome.reason
        assert await it.value("pid") == before

    bench(module.app, use)


def test_an_async_task_that_does_not_heed_its_limit_is_killed(module: ModuleType) -> None:
    async def use(it: Bench) -> None:
        outcome = await it.run("dawdle_unheeding")
        assert isinstance(outcome, Dead)
        assert "time limit" in outcome.reason

    bench(module.app, use)


def test_programs_that_a_task_started_end_with_it_at_its_limit(module: ModuleType, tmp_path: Path) -> None:
    async def use(it: Bench) -> None:
        path = tmp_path / "pid"
        for _ in range(3):  # where the machine is held up, the limit may come before the program
            assert isinstance(await it.run("start_a_program_and_hang", str(path)), Dead)
            if path.exists() and path.read_text():
                break
        program = int(path.read_text())
        await until(lambda: not is_alive(program))

    bench(module.app, use)


def test_a_death_is_noticed_though_a_forked_process_lives_on(module: ModuleType, tmp_path: Path) -> None:
    async def use(it: Bench) -> None:
        path = tmp_path / "pid"
        outcome = await it.run("fork_and_die", str(path))
        os.kill(int(path.read_text()), signal.SIGKILL)
        assert isinstance(outcome, Again)
        assert outcome.error.detail == "the child process was killed by SIGKILL"

    bench(module.app, use)


def test_a_child_that_dies_idle_is_replaced_and_no_task_is_hurt(module: ModuleType) -> None:
    async def use(it: Bench) -> None:
        child = await it.value("pid")
        os.kill(child, signal.SIGKILL)
        flights = [it.submit("pid") for _ in range(3)]  # handed to the dying one, or waiting for its successor
        outcomes = [await it.outcome(flight) for flight in flights]
        assert all(isinstance(outcome, Done) and outcome.value != child for outcome in outcomes)

    bench(module.app, use)


def test_a_child_is_replaced_after_max_tasks(module: ModuleType) -> None:
    async def use(it: Bench) -> None:
        first, second, third, fourth = [await it.value("pid") for _ in range(4)]
        assert first == second != third == fourth
        await until(lambda: not is_alive(first))

    bench(module.app, use, max_tasks=2)


def test_what_has_not_started_is_withdrawn_and_what_runs_goes_on(module: ModuleType, tmp_path: Path) -> None:
    async def use(it: Bench) -> None:
        runs = it.submit("touch_and_wait", str(tmp_path / "running"), 0.3)
        waits = [it.submit("pid") for _ in range(3)]
        assert it.executor.withdraw() == waits
        assert [runs.started, *(flight.started for flight in waits)] == [True, False, False, False]
        assert await it.outcome(runs) == Done("waited")
        assert list(it.outcomes) == [runs]

    bench(module.app, use)


def test_cancel_ends_what_runs_and_completes_nothing(module: ModuleType, tmp_path: Path) -> None:
    async def use(it: Bench) -> None:
        path = tmp_path / "running"
        it.submit("touch_and_wait", str(path), 60)
        await until(lambda: path.exists() and path.read_text() != "")
        it.executor.cancel()
        await until(lambda: not is_alive(int(path.read_text())))
        assert it.outcomes == {}

    bench(module.app, use)


def test_progress_of_a_run_reaches_the_worker_and_what_comes_after_its_end_does_not(module: ModuleType, tmp_path: Path) -> None:
    async def use(it: Bench) -> None:
        heard: list[tuple[str, Any]] = []
        ended, late = tmp_path / "ended", tmp_path / "late"
        outcome = await it.run("tell_progress", str(ended), str(late), report=lambda state, meta: heard.append((state, meta)))
        assert outcome == Done("told")
        assert heard == [("PROGRESS", {"done": 1}), ("PROGRESS", {"done": 2})]
        ended.touch()
        await until(late.exists)
        await it.value("pid")  # what the child had said before has come
        assert len(heard) == 2

    bench(module.app, use)


def test_signals_end_no_task_but_the_programs_that_it_starts(module: ModuleType) -> None:
    async def use(it: Bench) -> None:
        assert await it.value("shrug_off_signals") == "SIGTERM"

    bench(module.app, use)


def test_hooks_of_a_run_run_in_the_child_and_those_of_its_death_here(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes"
    monkeypatch.setenv("PROCESS_TASKS_NOTES", str(notes))

    async def use(it: Bench) -> None:
        child = await it.value("pid")
        await it.run("kill_own_process")
        assert notes.read_text() == f"after_run {child}\non_retry {os.getpid()}\n"

    bench(module.app, use)


def test_a_module_that_fails_to_import_in_the_child_is_said_at_the_start(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCESS_TASKS_FAIL", "import")
    with pytest.raises(ConfigError, match="LookupError: only in the child"):
        bench(module.app, lambda it: asyncio.sleep(0), count=2)
    assert children_of(os.getpid()) == []


def test_a_task_that_only_this_process_has_is_said_at_the_start(module: ModuleType) -> None:
    @module.app.task  # type: ignore[untyped-decorator]
    def here_only() -> None: ...

    with pytest.raises(ConfigError, match=r"does not get the task .*here_only.*include="):
        bench(module.app, lambda it: asyncio.sleep(0))
    assert children_of(os.getpid()) == []


def test_a_memory_broker_is_refused(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDQ_BROKER", "memory://")
    with pytest.raises(ConfigError, match="memory://"):
        bench(module.app, lambda it: asyncio.sleep(0))


def test_what_waits_for_children_that_no_longer_start_goes_to_other_workers(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(it: Bench) -> None:
        child = await it.value("pid")
        monkeypatch.setenv("PROCESS_TASKS_FAIL", "import")
        os.kill(child, signal.SIGKILL)
        outcome = await it.run("pid")
        assert isinstance(outcome, Later)
        assert "do not start" in outcome.why
        monkeypatch.delenv("PROCESS_TASKS_FAIL")
        await asyncio.sleep(0.1)
        outcomes = [await it.run("pid") for _ in range(2)]
        assert isinstance(outcomes[-1], Done)

    bench(module.app, use)


# ------------------------------------------------------------------ finding the app


def test_an_app_has_the_name_by_which_it_was_loaded_or_under_which_it_is_found(module: ModuleType) -> None:
    assert reference_of(module.app) == f"{MODULE}:app"
    assert module.app.reference is None
    assert load_app(MODULE) is module.app
    assert module.app.reference == f"{MODULE}:app"


def test_an_app_that_is_no_variable_of_a_module_cannot_be_named() -> None:
    with pytest.raises(ConfigError, match="no variable of an imported module"):
        reference_of(CloudQ("hidden"))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("shop/tasks.py", "names no module"),
        ("no_such_module:app", "there is no module 'no_such_module'"),
        (f"{MODULE}:add", r"process_tasks.add is no CloudQ app; the module has app"),
        ("json", "the module json has no CloudQ app"),
        ("cloudq_two_apps", r"2 apps \(one, two\): name one, as in cloudq_two_apps:one"),
        ("cloudq_broken", r"importing cloudq_broken failed: ZeroDivisionError: .*cloudq_broken\.py, line 1\)"),
    ],
)
def test_a_reference_that_leads_to_no_app_is_refused_with_a_way_out(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, message: str
) -> None:
    (tmp_path / "cloudq_two_apps.py").write_text("from cloudq import CloudQ\none = CloudQ('one')\ntwo = CloudQ('two')\n")
    (tmp_path / "cloudq_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_app(reference)


# ------------------------------------------------------------------ the worker, on a real broker


@pytest.fixture(scope="module")
def sqs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SQSServer]:
    """One server that is none of ours: these tests are about processes, and long."""
    with moto(tmp_path_factory.mktemp("moto")) as server:
        yield server
        server.boto3.close()


@pytest.fixture
def shop(sqs: SQSServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The task module on a queue of its own, with a store in a file."""
    queue = unique("processes")
    sqs.make_queue(queue, dead_letter=f"{queue}-dlq")
    monkeypatch.setenv("PROCESS_TASKS_QUEUE", queue)
    monkeypatch.setenv("CLOUDQ_BROKER", f"sqs://{REGION}/?lease=30")
    monkeypatch.setenv("CLOUDQ_STORE", f"sqlite:///{tmp_path / 'store.db'}")
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    module = importlib.import_module(MODULE)
    yield module
    module.app.close()
    monkeypatch.delitem(sys.modules, MODULE, raising=False)


@contextmanager
def worker(app: CloudQ, **options: Any) -> Iterator[Worker]:
    it = Worker(app, WorkerOptions(processes=2, wait=1, **options))
    it.start()
    try:
        yield it
    finally:
        it.stop()
        it.join(60)


def test_a_worker_with_processes_gives_results_and_its_tasks_send_calls(shop: ModuleType) -> None:
    with worker(shop.app):
        assert shop.add.delay(2, 3).get(timeout=60) == 5
        sent = shop.send_another.delay(4).get(timeout=60)
        assert shop.app.result(sent).get(timeout=60) == 8
    wait_until(lambda: not children_of(os.getpid()))


def test_a_task_that_always_kills_its_process_is_dead_lettered_with_that_reason_and_others_go_on(shop: ModuleType, sqs: SQSServer) -> None:
    with worker(shop.app):
        bad = shop.kill_own_process.delay()
        stuck = shop.hold_the_gil.delay()
        assert [shop.add.delay(n, n).get(timeout=60) for n in range(5)] == [0, 2, 4, 6, 8]
        wait_until(lambda: bad.state == states.DEAD and stuck.state == states.FAILURE)
    url = sqs.boto3.get_queue_url(QueueName=f"{shop.app.conf.default_queue}-dlq")["QueueUrl"]
    letters = sqs.boto3.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
    text = " ".join(letter["Body"] for letter in letters)
    assert len(letters) == 2
    assert "crash loop: the child process was killed by SIGKILL, 2 times" in text
    assert "it ran over its time limit" in text


def test_a_task_that_outlasts_the_grace_time_is_ended_and_its_message_given_back(shop: ModuleType, sqs: SQSServer, tmp_path: Path) -> None:
    path = tmp_path / "running"
    with worker(shop.app, grace=0.3):
        sent = shop.touch_and_wait.delay(str(path))
        wait_until(lambda: path.exists() and path.read_text())
    assert not is_alive(int(path.read_text()))
    url = sqs.boto3.get_queue_url(QueueName=shop.app.conf.default_queue)["QueueUrl"]
    (message,) = sqs.boto3.receive_message(QueueUrl=url, WaitTimeSeconds=10)["Messages"]  # far sooner than its lease ends
    assert sent.id in message["Body"]


SCRIPT = """
from cloudq import CloudQ
from cloudq.worker import Worker, WorkerOptions
import os

app = CloudQ("script", default_queue=os.environ["PROCESS_TASKS_QUEUE"])

@app.task
def shout(text: str) -> str:
    return text.upper()

def main() -> None:
    result = shout.delay("done")
    Worker(app, WorkerOptions(processes=1, drain=True, wait=1)).run()
    print(result.get(timeout=60))
"""


def test_a_script_can_be_its_own_worker(shop: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "a_script.py"
    script.write_text(f"{SCRIPT}\nif __name__ == '__main__':\n    main()\n")
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert ran.stdout.strip() == "DONE", ran.stderr


def test_a_script_whose_import_starts_a_worker_is_told_so(shop: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "a_script.py"
    script.write_text(f"{SCRIPT}\nmain()\n")
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 1
    assert "put that under if __name__ == '__main__':" in ran.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "task",
    [
        "touch_and_wait",
        pytest.param("touch_and_hold_the_gil", marks=pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")),
    ],
)
def test_no_child_outlives_a_worker_that_is_killed(shop: ModuleType, tmp_path: Path, task: str) -> None:
    running = [tmp_path / "one", tmp_path / "two"]
    program = f"""if True:
        from cloudq.loading import load_app
        from cloudq.worker import Worker, WorkerOptions
        Worker(load_app("{MODULE}"), WorkerOptions(processes=2, wait=1)).run()
    """
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        for path in running:
            shop.app[f"{MODULE}.{task}"].delay(str(path))
        wait_until(lambda: all(path.exists() and path.read_text() for path in running))
        children = children_of(process.pid)
        assert sorted(children) == sorted(int(path.read_text()) for path in running)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not any(is_alive(child) for child in children), 30)
