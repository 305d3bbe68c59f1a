"""LocalStack as a session fixture: SQS and EventBridge Scheduler of another maker, shared by the processes of one pytest-xdist run."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.gcp_servers import shared
from tests.servers import CACHE, SQSServer, missing, use

_PINS = Path(__file__).parents[1] / "requirements" / "localstack.txt"
_SERVER = Path(__file__).with_name("localstack_server.py")


@pytest.fixture(scope="session")
def localstack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SQSServer]:
    """LocalStack in an environment of its own: it pins the boto3 that it wants."""
    command = [str(_python()), "-I", str(_SERVER), str(tmp_path_factory.mktemp("localstack"))]
    with shared("localstack", command, tmp_path_factory, health="/_localstack/health") as address:
        server = SQSServer("localstack", f"http://{address}")
        try:
            server.boto3.list_queues()  # its first request is seconds slower than the rest: too slow for a lease of two
            yield server
        finally:
            server.boto3.close()


class OnLocalStack:
    """Takes a test class that uses ``sqs`` to LocalStack: name it before that class."""

    @pytest.fixture
    def sqs(self, localstack: SQSServer, monkeypatch: pytest.MonkeyPatch) -> SQSServer:
        """The server, with this process's environment leading to it."""
        use(localstack.env, monkeypatch)
        return localstack


def _python() -> Path:
    """The interpreter of an environment that holds LocalStack, made once for all runs on this machine and each set of pins."""
    pins = sha256(_PINS.read_bytes()).hexdigest()[:12]
    home = CACHE / f"localstack-{pins}-{sys.implementation.cache_tag}"
    python, complete = home / "bin" / "python", home / "complete"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "localstack.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (complete.exists() and python.exists()):  # the second is a link, which a removed Python breaks
            _run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(home))
            what = ["install", "--quiet", "--no-deps", "--require-hashes", "--requirement", str(_PINS)]
            # uv is six times as quick; pip may know an index that uv does not.
            if _run(sys.executable, "-m", "uv", "pip", *what, "--python", str(python)):
                failed = _run(sys.executable, "-m", "pip", "--python", str(python), *what, "--no-compile", "--retries", "1")
                if failed:
                    missing("LocalStack", f"'pip {' '.join(what)}' failed: {failed[-500:]}")
            complete.touch()
    return python


def _run(*command: str) -> str:
    """Run it; returns what it wrote if it failed, else nothing."""
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False)
    return ran.stderr or f"exit code {ran.returncode}" if ran.returncode else ""
