"""LocalStack as a session fixture: SQS and EventBridge Scheduler of another maker, shared by the processes of one pytest-xdist run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.environments import python_of
from tests.gcp_servers import shared
from tests.servers import SQSServer, use

_SERVER = Path(__file__).with_name("localstack_server.py")


@pytest.fixture(scope="session")
def localstack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SQSServer]:
    """LocalStack in an environment of its own: it pins the boto3 that it wants."""
    command = [str(python_of("localstack")), "-I", str(_SERVER), str(tmp_path_factory.mktemp("localstack"))]
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
