"""A Lambda execution environment of the tests: AWS's own runtime client (awslambdaric) in a process, served by a Runtime API."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
_INIT = 60.0
"""Seconds that a runtime has to start and load its handler: AWS gives 10, a slow machine may need more."""
ARN = "arn:aws:lambda:eu-west-1:123456789012:function:tests"


class FunctionError(Exception):
    """The invocation failed: the handler raised, the process died, or the function's time was over (``kind`` says which)."""

    def __init__(self, kind: str, detail: Any) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


class Environment:
    """One execution environment of the function ``handler`` (``module.attribute``); after a timeout or crash a new process takes over.

    ``python`` is the runtime's, and ``code`` the folder of the function's own modules.
    """

    def __init__(
        self, handler: str, *, env: Mapping[str, str], log: Path, timeout: float = 5.0, python: str = sys.executable, code: Path = _ROOT
    ) -> None:
        self.timeout = timeout
        self.starts = 0
        self._handler, self._env, self._log = handler, env, log
        self._python, self._code = python, code
        self._process: subprocess.Popen[bytes] | None = None
        self._next: queue.SimpleQueue[tuple[str, float, bytes]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[str, str, Any]] = queue.SimpleQueue()
        self._asked = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Api", (_Api,), {"environment": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def invoke(self, event: Any, timeout: float | None = None) -> Any:
        """Invoke the function as AWS does: one at a time, killed at the timeout. Raises FunctionError."""
        self.warm()
        assert self._process is not None
        id, deadline = str(uuid.uuid4()), time.time() + (timeout or self.timeout)
        self._next.put((id, deadline, json.dumps(event).encode()))
        while True:
            try:
                kind, answered, payload = self._answers.get(timeout=min(0.05, max(deadline - time.time(), 0.001)))
            except queue.Empty:
                if self._process.poll() is not None:
                    raise self._failed("Runtime.ExitError", f"exit status {self._process.returncode}") from None
                if time.time() > deadline:
                    raise self._failed("Sandbox.Timedout", "the function's time was over") from None
                continue
            if kind == "init":
                raise self._failed("Runtime.InitError", payload)
            if answered == id:
                if kind == "error":
                    raise FunctionError("Function.Error", payload)
                return payload

    def warm(self) -> None:
        """Start the function unless it runs.

        The init phase has a time of its own, and none of the invocation's (AWS, "Lambda execution environment lifecycle").
        """
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None
        end = time.monotonic() + _INIT
        while not self._asked.wait(0.02) and self._answers.empty() and self._process.poll() is None and time.monotonic() < end:
            pass

    def close(self) -> None:
        """End the process and the server."""
        self._end()
        self._server.shutdown()
        self._server.server_close()

    def _start(self) -> None:
        self._end()
        self.starts += 1
        self._answers, self._asked = queue.SimpleQueue(), threading.Event()
        env = {
            **os.environ, **self._env, "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._server.server_address[1]}",
            "AWS_LAMBDA_FUNCTION_NAME": "tests", "AWS_LAMBDA_FUNCTION_VERSION": "1", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
            "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/tests", "AWS_LAMBDA_LOG_STREAM_NAME": "tests", "_X_AMZN_TRACE_ID": "",
        }  # fmt: skip
        with self._log.open("ab") as output:
            command = [self._python, "-m", "awslambdaric", self._handler]
            self._process = subprocess.Popen(command, cwd=self._code, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def _end(self) -> None:
        self._next = queue.SimpleQueue()
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def _failed(self, kind: str, detail: Any) -> FunctionError:
        self._end()
        self._process = None
        return FunctionError(kind, detail)

    def next(self) -> tuple[str, float, bytes] | None:
        """The event that the runtime asks for; ``None`` once the runtime that asked is gone."""
        events = self._next
        self._asked.set()
        while events is self._next:
            try:
                return events.get(timeout=0.2)
            except queue.Empty:
                continue
        return None

    def answer(self, kind: str, id: str, body: bytes) -> None:
        """What the runtime answers."""
        self._answers.put((kind, id, json.loads(body or b"null")))


class _Api(BaseHTTPRequestHandler):
    """AWS, "Using the Lambda runtime API": next, response, error, init error."""

    environment: Environment
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        event = self.environment.next()
        if event is None:
            self.close_connection = True
            return
        id, deadline, body = event
        headers = {
            "Lambda-Runtime-Aws-Request-Id": id,
            "Lambda-Runtime-Deadline-Ms": str(int(deadline * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": ARN,
            "Lambda-Runtime-Trace-Id": "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700",
        }
        self._reply(200, body, headers)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        *_, id, kind = self.path.split("/")
        self.environment.answer("init" if id == "init" else kind, id, body)
        self._reply(202, b"{}", {})

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def function(
    handler: str, *, env: Mapping[str, str], log: Path, timeout: float = 5.0, python: str = sys.executable, code: Path = _ROOT
) -> Iterator[Environment]:
    """An environment until the end of the block."""
    environment = Environment(handler, env=env, log=log, timeout=timeout, python=python, code=code)
    try:
        yield environment
    finally:
        environment.close()
