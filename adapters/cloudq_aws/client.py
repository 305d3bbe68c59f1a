"""One asynchronous SDK client of an AWS service: loaded and opened at the first request, opened again after close or fork."""

from __future__ import annotations

import asyncio
import importlib
import io
import os
from functools import lru_cache
from typing import Any, Protocol

from cloudq.errors import ConfigError
from cloudq_aws.boto import BotoClient

_CONNECT = 3.0
"""Seconds for one connect."""
_ATTEMPTS = 3
"""Tries of one request in the SDK's standard retry mode, with back-off of up to 1 s, then 2 s."""
_POOL = 64
"""Connections at most: receivers, senders and ackers at once (the SDK's default of 10 would make them queue)."""
_LARGE = 1 << 20
"""Bytes of a request above which aiohttp wants a file."""

_abandoned: list[object] = []
"""Clients of a parent process, or of a loop that is gone. Kept: finalising them would take the parent's sockets from its event loop."""


class Requests(Protocol):
    """What the drivers need of a client; ``Client`` and ``cloudq_aws.boto.BotoClient`` are the two."""

    async def request(self, action: str, *, within: float, **parameters: Any) -> dict[str, Any]: ...

    async def region(self) -> str: ...

    async def close(self) -> None: ...


def client_for(service: str, region: str | None, *, read_timeout: float, sdk: str | None = None) -> Requests:
    """The client over ``sdk``, ``boto3`` or ``aiobotocore``; by default boto3 inside Lambda, whose runtime has it, else aiobotocore."""
    sdk = sdk or ("boto3" if "AWS_LAMBDA_FUNCTION_NAME" in os.environ else "aiobotocore")
    if sdk not in ("boto3", "aiobotocore"):
        raise ConfigError(f"the client is boto3 or aiobotocore, not {sdk!r}")
    if sdk == "aiobotocore":
        return Client(service, region, read_timeout=read_timeout)
    return BotoClient(service, region, read_timeout=read_timeout)


class Client:
    """Requests to one service. ``region`` ``None`` leaves it to the SDK, as are credentials and endpoint.

    The SDK client belongs to the loop of the first request. It is made anew after ``close``, on another loop, and in a forked child,
    which must not touch its parent's sockets. ``read_timeout`` is in seconds. The SDK's exceptions come out as they are.
    """

    def __init__(self, service: str, region: str | None, *, read_timeout: float) -> None:
        self._service = service
        self._region = region
        self._read_timeout = read_timeout
        self._home: object = None
        self._opening: asyncio.Task[Any] | None = None

    async def request(self, action: str, *, within: float, **parameters: Any) -> dict[str, Any]:
        """Carry out ``action`` (``SendMessageBatch``) with the SDK's retries; TimeoutError after ``within`` seconds.

        A streamed ``Body`` (S3 GetObject) is answered as its bytes.
        """
        async with asyncio.timeout(within):
            sdk = await self._open()
            answer: dict[str, Any] = await getattr(sdk, _method(action))(**parameters)
            if (body := answer.get("Body")) is not None:
                answer["Body"] = await body.read()
            return answer

    async def region(self) -> str:
        """The region that requests go to."""
        return str((await self._open()).meta.region_name)

    async def close(self) -> None:
        """Close the connections; requests under way fail."""
        opening, self._opening = self._opening, None
        if opening is None:
            return
        if self._home != _here():
            _abandoned.append(opening)
            return
        opening.cancel()  # does nothing to one that is done
        await asyncio.wait([opening])
        if not opening.cancelled() and opening.exception() is None:
            await opening.result().__aexit__(None, None, None)

    async def _open(self) -> Any:
        here = _here()
        if self._opening is not None and self._home != here:
            _abandoned.append(self._opening)
            self._opening = None
        if self._opening is None:
            self._home = here
            self._opening = asyncio.get_running_loop().create_task(self._create())
            self._opening.add_done_callback(self._forget_failure)
        return await asyncio.shield(self._opening)  # one for all who ask at once: who is cancelled does not take it from the others

    def _forget_failure(self, opening: asyncio.Task[Any]) -> None:
        if (opening.cancelled() or opening.exception() is not None) and self._opening is opening:
            self._opening = None

    async def _create(self) -> Any:
        # By name: the SDK ships no types, and loading it (a quarter of a second) waits for the first request.
        session = importlib.import_module("aiobotocore.session").get_session()
        config = importlib.import_module("aiobotocore.config").AioConfig(
            connect_timeout=_CONNECT,
            read_timeout=self._read_timeout,
            max_pool_connections=_POOL,
            parameter_validation=False,
            user_agent=session.user_agent(),  # said once: putting it together is a tenth of the CPU of a request
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        )
        sdk = await session.create_client(self._service, region_name=self._region, config=config).__aenter__()
        sdk.meta.events.register("before-send", _stream)
        return sdk


def _stream(request: Any, **_: object) -> None:
    """Hand a large body to aiohttp as a file: it warns of bytes above 1 MiB, which a full batch reaches once escaped."""
    if isinstance(request.body, bytes) and len(request.body) > _LARGE:
        request.body = io.BytesIO(request.body)


def _here() -> object:
    return os.getpid(), asyncio.get_running_loop()


@lru_cache(None)
def _method(action: str) -> str:
    return str(importlib.import_module("botocore").xform_name(action))
