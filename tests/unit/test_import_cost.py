"""What a program with tasks of plain types loads: cloudq and the standard library, from the import to the result."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

HEAVY = {
    "aiobotocore", "aiohttp", "boto3", "botocore", "click", "cloudq_aws", "cloudq_gcp", "cloudq_templates", "cryptography", "fastapi",
    "flask", "google", "grpc", "httpx", "jinja2", "pydantic", "pydantic_core", "pytest", "requests", "rich", "sqlite3", "starlette",
    "typer", "urllib3", "uvicorn", "watchfiles", "werkzeug",
}  # fmt: skip

APP = """
from cloudq import CloudQ, Retry

app = CloudQ("plain", broker="memory://", store="memory://")

@app.task(queue="other", retry=Retry(max_retries=2), timeout="30s")
def add(x: int, y: int = 0, *, names: list[str] | None = None) -> dict[str, int]:
    return {name: x + y for name in names or ["sum"]}

@app.task
async def later(text: str) -> str:
    return text.upper()

@app.task(bind=True)
def bound(self, ratio: float, flags: dict[str, bool]) -> float:
    return ratio + self.request.retries
"""

CALLS = """
results = [
    add.delay(1, y=2, names=["a"]),
    later.delay("x"),
    add.apply_async((1, 2), countdown=0.01, link=later.si("y")),
    bound.delay(0.5, {"a": True}),
]
"""

WORK = """
from cloudq.worker import Worker, WorkerOptions
worker = Worker(app, WorkerOptions(concurrency=2, wait=0.5))
worker.start()
values = [result.get(timeout=60) for result in results]
worker.stop()
worker.join(60)
assert values == [{"a": 3}, "X", {"sum": 3}, 0.5], values
"""

SIGNED = """
import os
os.environ["CLOUDQ_SIGNING_KEYS"] = "a:" + "A" * 43
"""

EAGER = """
app.conf.task_always_eager = True
assert later.delay("x").get() == "X"
assert add.delay(1, 2).get() == {"sum": 3}
"""


def loaded(code: str) -> set[str]:
    """The top-level modules that ``code`` has loaded in a process of its own; other packages' ``.pth`` files load some before."""
    beginning = "import sys\nbefore = {name.partition('.')[0] for name in sys.modules}"
    ending = "print('loaded', *{name.partition('.')[0] for name in sys.modules} - before)"
    command = [sys.executable, "-W", "error", "-c", f"{beginning}\n{textwrap.dedent(code)}\n{ending}"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr
    first, *names = ran.stdout.split()
    assert first == "loaded"
    return set(names)


@pytest.mark.parametrize(
    "code",
    ["import cloudq", APP, APP + CALLS, APP + CALLS + WORK, APP + EAGER, SIGNED + APP + CALLS + WORK],
    ids=["import", "define", "delay", "worker", "eager", "signed"],
)
def test_plain_typed_tasks_load_no_sdk_cli_template_web_or_validation_library(code: str) -> None:
    modules = loaded(code)
    assert "cloudq" in modules
    assert not HEAVY & modules


def test_pydantic_loads_at_the_first_signature_that_wants_more_than_exact_json_types() -> None:
    code = """
    import sys
    from datetime import datetime, UTC
    from cloudq import CloudQ
    app = CloudQ("typed", broker="memory://")
    @app.task
    def remind(at: datetime) -> None: ...
    assert "pydantic" not in sys.modules
    remind.delay(datetime.now(UTC))
    """
    modules = loaded(code)
    assert "pydantic" in modules
    assert not (HEAVY - {"pydantic", "pydantic_core"}) & modules


def test_a_wrong_argument_of_a_plain_task_may_load_pydantic_and_nothing_else() -> None:
    code = """
    from cloudq import ArgumentsError, CloudQ
    app = CloudQ("plain", broker="memory://")
    @app.task
    def add(x: int) -> int: return x
    try:
        add.delay("one")
    except ArgumentsError as error:
        assert error.parameter == "x"
    else:
        raise SystemExit("it was accepted")
    """
    assert not (HEAVY - {"pydantic", "pydantic_core"}) & loaded(code)
