"""One blocking SDK client of an AWS service, called in threads: for Lambda, where boto3 is there and aiobotocore is dead weight."""

from __future__ import annotations

import asyncio
import importlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

_CONNECT = 3.0
"""Seconds for one connect."""
_ATTEMPTS = 3
"""Tries of one request in the SDK's standard retry mode."""
_THREADS = 16
"""Requests at once, and connections; the threads start as they are needed, and are the process's."""


class BotoClient:
    """Requests to one service over botocore, which is all of boto3 that they need; otherwise as ``cloudq_aws.client.Client``.

    It belongs to no loop, and is made anew in a forked child. ``open`` loads the SDK in the calling thread, so that a host can do so
    while it starts. A request that is given up ends in its thread by itself, within ``read_timeout`` for each try.
    """

    def __init__(self, service: str, region: str | None, *, read_timeout: float) -> None:
        self._service = service
        self._region = region
        self._read_timeout = read_timeout
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._sdk: Any = None
        self._pool: ThreadPoolExecutor | None = None

    async def request(self, action: str, *, within: float, **parameters: Any) -> dict[str, Any]:
        """Carry out ``action`` (``SendMessageBatch``) with the SDK's retries; TimeoutError after ``within`` seconds.

        A streamed ``Body`` (S3 GetObject) is answered as its bytes.
        """
        async with asyncio.timeout(within):
            answer: dict[str, Any] = await self._in_thread(action, parameters)
            return answer

    async def region(self) -> str:
        """The region that requests go to."""
        return str((await self._in_thread(None, {})).meta.region_name)

    async def close(self) -> None:
        """Close the connections; requests under way end by themselves."""
        with self._lock:
            sdk, pool, self._sdk, self._pool = self._sdk, self._pool, None, None
        if pool is not None:
            pool.shutdown(wait=False)
        if sdk is not None:
            sdk.close()

    def open(self) -> None:
        """Load the SDK and make its client, where that has not been done."""
        self._open()

    async def _in_thread(self, action: str | None, parameters: dict[str, Any]) -> Any:
        if self._pid != os.getpid():  # a forked child: the connections are the parent's, and its threads are not here
            self._begin()
        with self._lock:
            pool = self._pool = self._pool or ThreadPoolExecutor(_THREADS, f"cloudq-{self._service}")
        return await asyncio.get_running_loop().run_in_executor(pool, self._perform, action, parameters)

    def _perform(self, action: str | None, parameters: dict[str, Any]) -> Any:
        sdk = self._open()
        if action is None:
            return sdk
        answer: dict[str, Any] = getattr(sdk, _method(action))(**parameters)
        body: Any = answer.get("Body")
        if hasattr(body, "read"):
            answer["Body"] = body.read()
        return answer

    def _open(self) -> Any:
        if self._sdk is None:
            with self._lock:
                if self._sdk is None:
                    # By name: the SDK ships no types, and nothing loads it before it is used.
                    session = importlib.import_module("botocore.session").get_session()
                    config = importlib.import_module("botocore.config").Config(
                        connect_timeout=_CONNECT,
                        read_timeout=self._read_timeout,
                        max_pool_connections=_THREADS,
                        parameter_validation=False,
                        user_agent=session.user_agent(),  # said once: putting it together is a tenth of the CPU of a request
                        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                    )
                    self._sdk = session.create_client(self._service, region_name=self._region, config=config)
        return self._sdk


@lru_cache(None)
def _method(action: str) -> str:
    return str(importlib.import_module("botocore").xform_name(action))
