"""Blocking SDK clients of one AWS service, called in threads: for Lambda, where boto3 is there and aiobotocore is dead weight."""

from __future__ import annotations

import asyncio
import importlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import Any

from cloudq_aws.errors import note_answer

_CONNECT = 3.0
"""Seconds for one connect."""
_ATTEMPTS = 3
"""Tries of one request in the SDK's standard retry mode, with back-off of up to 1 s, then 2 s."""
_THREADS = 16
"""Requests at once, and connections; the threads start as they are needed, and are the process's."""


class BotoClient:
    """Requests to one service over botocore, which is all of boto3 that they need; otherwise as ``cloudq_aws.client.Client``.

    It belongs to no loop, and is made anew in a forked child; the SDK client for polling is made with the first poll. ``open`` loads the
    SDK in the calling thread, so that a host can do so while it starts. A request that is given up ends in its thread by itself, within
    ``read_timeout`` for each try.
    """

    def __init__(self, service: str, region: str | None, *, read_timeout: float, poll_timeout: float | None = None) -> None:
        self._service = service
        self._region = region
        self._read_timeouts = (read_timeout, poll_timeout or read_timeout)
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # for the threads alone: they hold it for as long as credentials are looked for
        self._session: Any = None
        self._sdks: dict[float, Any] = {}
        self._pool: ThreadPoolExecutor | None = None

    async def request(self, action: str, *, within: float, polling: bool = False, **parameters: Any) -> dict[str, Any]:
        """Carry out ``action`` (``SendMessageBatch``) with the SDK's retries; TimeoutError after ``within`` seconds.

        A streamed ``Body`` (S3 GetObject) is answered as its bytes.
        """
        async with asyncio.timeout(within):
            answer: dict[str, Any] = await self._in_thread(self._perform, action, polling, parameters)
            return answer

    async def region(self) -> str:
        """The region that requests go to."""
        return str((await self._in_thread(self._open)).meta.region_name)

    async def close(self) -> None:
        """Close the connections; requests under way end by themselves."""
        sdks, pool, self._sdks, self._pool, self._session = self._sdks, self._pool, {}, None, None
        if pool is not None:
            pool.shutdown(wait=False)
        for sdk in sdks.values():
            sdk.close()

    def open(self) -> None:
        """Load the SDK and make its client, where that has not been done and can be: what is wrong, the first request says."""
        with suppress(Exception):
            self._open()

    async def _in_thread(self, perform: Callable[..., Any], *arguments: object) -> Any:
        if self._pid != os.getpid():  # a forked child: the connections are the parent's, and its threads are not here
            self._begin()
        pool = self._pool = self._pool or ThreadPoolExecutor(_THREADS, f"cloudq-{self._service}")
        return await asyncio.get_running_loop().run_in_executor(pool, perform, *arguments)

    def _perform(self, action: str, polling: bool, parameters: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = getattr(self._open(polling), _method(action))(**parameters)
        note_answer()
        body: Any = answer.get("Body")
        if hasattr(body, "read"):
            answer["Body"] = body.read()
        return answer

    def _open(self, polling: bool = False) -> Any:
        read_timeout = self._read_timeouts[polling]
        sdk = self._sdks.get(read_timeout)
        if sdk is None:
            with self._lock:
                sdk = self._sdks[read_timeout] = self._sdks.get(read_timeout) or self._made(read_timeout)
        return sdk

    def _made(self, read_timeout: float) -> Any:
        # By name: the SDK ships no types, and nothing loads it before it is used.
        session = self._session or importlib.import_module("botocore.session").get_session()
        if session.get_credentials() is None:
            raise importlib.import_module("botocore.exceptions").NoCredentialsError
        self._session = session
        config = importlib.import_module("botocore.config").Config(**settings(session, read_timeout, _THREADS))
        return session.create_client(self._service, region_name=self._region, config=config)


def settings(session: Any, read_timeout: float, connections: int) -> dict[str, Any]:
    """What an SDK client of either kind is configured with. ``connections``: at most, at once."""
    return {
        "connect_timeout": _CONNECT,
        "read_timeout": read_timeout,
        "max_pool_connections": connections,
        "parameter_validation": False,
        "user_agent": session.user_agent(),  # said once: putting it together is a tenth of the CPU of a request
        "retries": {"mode": "standard", "total_max_attempts": _ATTEMPTS},
    }


@lru_cache(None)
def _method(action: str) -> str:
    return str(importlib.import_module("botocore").xform_name(action))
