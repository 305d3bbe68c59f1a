"""A task is its function, by a name that a worker finds; Celery's spellings mean what they mean there."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloudq import CloudQ, Retry, Task, states, task
from cloudq.errors import ArgumentsError, ConfigError, DuplicateTask, StoreRequired
from cloudq.memory import MemoryBroker
from cloudq.worker import Worker, WorkerOptions


def _app(**settings: Any) -> CloudQ:
    return CloudQ("tasks", broker=MemoryBroker(), **settings)


def test_calling_a_task_runs_its_function_here() -> None:
    app = _app()

    @app.task
    def add(x: int, y: int = 1) -> int:
        "Adds."
        return x + y

    @app.task
    async def aadd(x: int) -> int:
        return x

    assert (add(1), add(1, y=5), asyncio.run(aadd(3))) == (2, 6, 3)
    assert (add.__name__, add.__doc__, add.__wrapped__(1)) == ("add", "Adds.", 2)


def test_its_name_is_module_and_qualified_name() -> None:
    app = _app()

    @app.task
    def f() -> None: ...

    assert f.name == f"{__name__}.test_its_name_is_module_and_qualified_name.f"


@pytest.mark.parametrize("by_module", [True, False])
def test_a_script_names_its_tasks_as_a_worker_would_import_them(tmp_path: Path, by_module: bool) -> None:
    (tmp_path / "jobs.py").write_text("from cloudq import task\n@task\ndef go(): pass\nprint(go.name)\n")
    command = ["-m", "jobs"] if by_module else [str(tmp_path / "jobs.py")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert done.stdout == "jobs.go\n", done.stderr


@pytest.mark.parametrize(
    "options",
    [
        {"nonsense": 1},
        {"acks_late": False},
        {"timeout": 1, "time_limit": 1},
        {"timeout": "soon"},
        {"retry": Retry(), "max_retries": 1},
        {"autoretry_for": ("ValueError",)},
    ],
)
def test_options_that_make_no_sense_are_refused_naming_the_task(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="bad"):
        task(name="bad", **options)(lambda: None)


def test_what_cannot_be_a_task_is_refused() -> None:
    def generator() -> Any:
        yield 1

    with pytest.raises(ConfigError, match="generator"):
        task(generator)
    with pytest.raises(ConfigError, match="already"):
        task(task(lambda: None))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="queue="):
        task("emails")  # type: ignore[call-overload]


def test_celerys_retry_options_mean_what_they_mean_there() -> None:
    plain = task(autoretry_for=(OSError,), dont_autoretry_for=(FileNotFoundError,))(lambda: None).policy
    assert (plain.on, plain.never, plain.max_retries, plain.delay) == ((OSError,), (FileNotFoundError,), 3, 180.0)
    assert [plain.pause(n) for n in range(3)] == [180, 180, 180]
    backoff = task(autoretry_for=(OSError,), retry_backoff=True, retry_jitter=False, retry_backoff_max=3)(lambda: None).policy
    assert [backoff.pause(n) for n in range(4)] == [1, 2, 3, 3]
    five = task(retry_backoff=5, retry_jitter=False, max_retries=None)(lambda: None).policy
    assert [five.pause(n) for n in range(3)] == [5, 10, 20]
    assert five.max_retries is None
    assert five.on == ()
    assert task(default_retry_delay="1m", max_retries=7)(lambda: None).policy.pause(3) == 60


def test_the_tasks_retry_wins_over_the_apps() -> None:
    app = _app(retry=Retry(max_retries=9))
    assert app.task(name="a")(lambda: None).policy.max_retries == 9
    assert app.task(name="b", retry=Retry(max_retries=1))(lambda: None).policy.max_retries == 1


def _flaky(app: CloudQ, *, with_exc: bool = False, **retry: Any) -> tuple[Any, list[int]]:
    runs: list[int] = []

    @app.task(name="flaky", bind=True)
    def flaky(self: Any) -> None:
        runs.append(self.request.retries)
        try:
            raise ConnectionError("down")
        except ConnectionError as error:
            self.retry(exc=error if with_exc else None, **retry)

    return flaky, runs


def test_self_retry_runs_again_up_to_its_limit_and_then_fails_with_exc() -> None:
    flaky, runs = _flaky(_app(), with_exc=True, max_retries=2, countdown=1)
    result = flaky.apply()
    assert runs == [0, 1, 2]
    assert (result.state, result.result.type) == (states.FAILURE, "ConnectionError")


def test_self_retry_without_exc_fails_as_out_of_retries_by_the_tasks_own_limit() -> None:
    flaky, runs = _flaky(_app())
    result = flaky.apply()
    assert runs == [0, 1, 2, 3]
    assert result.state == states.FAILURE
    assert "out of retries" in result.record["reason"]


def test_self_retry_needs_no_policy_and_an_endless_one_needs_no_limit() -> None:
    app = _app()
    runs: list[int] = []

    @app.task(name="t", bind=True, max_retries=None)
    def t(self: Any) -> str:
        runs.append(1)
        if len(runs) < 50:
            self.retry(countdown="1h")
        return "done"

    assert t.apply().get() == "done"
    assert len(runs) == 50


def test_request_and_update_state_outside_of_a_run_say_so() -> None:
    app = _app()
    t = app.task(name="t")(lambda: None)
    with pytest.raises(RuntimeError, match="while the task runs"):
        _ = t.request
    with pytest.raises(RuntimeError):
        t.update_state("X")


def test_update_state_without_a_store_says_what_to_set() -> None:
    from cloudq.broker import Delivery
    from cloudq.outcome import Dead
    from cloudq.runner import Runner

    app = _app()

    @app.task(name="t", bind=True)
    def t(self: Any) -> None:
        self.update_state("X")

    runner = Runner(app)
    job = runner.admit(Delivery(queue="default", body='{"v":1,"id":"i","task":"t","args":[]}', receipt=None))
    outcome = runner.run_isolated(job)
    assert isinstance(outcome, Dead)
    assert outcome.error is not None
    assert StoreRequired.__name__ in outcome.error.type
    assert t.apply().successful()


def test_signatures_and_calls_are_values() -> None:
    app = _app()

    @app.task(name="sub")
    def sub(x: int, y: int) -> int:
        return x - y

    signature = sub.s(2)
    assert signature.clone((5,)).args == (5, 2)
    assert signature.set(queue="q").options == {"queue": "q"}
    assert signature.options == {}
    assert sub.si(1, 2).clone((5,)).args == (1, 2)
    call = sub.options(queue="a")
    assert call.options(delay=1).s(1, 2).options == {"queue": "a", "delay": 1}
    assert call.s(1, 2).options == {"queue": "a"}


@pytest.mark.parametrize("wrong", [3, True, "3", None])
def test_a_retry_that_is_none_is_refused_where_it_is_written(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"write retry=Retry\(max_retries=3\)"):
        CloudQ("x", broker="memory://").task(retry=wrong)(print)


def test_an_option_of_celerys_is_told_its_name_here() -> None:
    with pytest.raises(ConfigError, match=r"has no option soft_time_limit \(soft_time_limit is timeout="):
        CloudQ("shop").task(soft_time_limit=5)(lambda: None)  # type: ignore[call-overload]


def test_a_queue_is_a_name() -> None:
    with pytest.raises(ConfigError, match="takes a queue's name, not 5"):
        CloudQ("shop").task(queue=5)(lambda: None)  # type: ignore[call-overload]
    unset: Any = None
    assert CloudQ("shop").task(queue=unset)(lambda: None).settings.queue is None


def test_options_of_a_call_are_checked_when_they_are_given() -> None:
    add = CloudQ("shop").task(lambda: None)
    with pytest.raises(ArgumentsError, match="unknown call option delai"):
        add.options(delai=5)  # type: ignore[call-arg]
    with pytest.raises(ArgumentsError, match="timeout and time_limit are the same"):
        add.options(timeout=5, time_limit=9).delay()


def test_two_functions_that_another_one_made_are_two_tasks() -> None:
    app = CloudQ("shop")

    def made(part: str) -> Callable[[], str]:
        def build() -> str:
            return part

        return build

    app.task(made("bolt"))
    app.task(made("bolt"))
    with pytest.raises(DuplicateTask, match="give one a name="):
        app.task(made("nut"))


def test_progress_that_is_no_json_is_refused_where_it_is_said_and_kept_as_it_was() -> None:
    app, seen = CloudQ("shop", broker="memory://", store="memory://"), list[object]()

    @app.task(bind=True)
    def work(self: Task[..., Any]) -> str:
        done = [1]
        self.update_state(meta=done)
        done.append(2)
        with pytest.raises(ArgumentsError, match="meta takes plain JSON values"):
            self.update_state(meta={"at": object()})
        seen.append("refused")
        return "done"

    result = work.delay()
    Worker(app, WorkerOptions(drain=True)).run()
    assert (result.get(timeout=20), seen) == ("done", ["refused"])
    app.close()
