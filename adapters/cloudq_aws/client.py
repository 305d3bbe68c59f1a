"""One asynchronous SDK client of an AWS service: loaded and opened at the first request, opened again after close or fork."""

from __future__ import annotations

import asyncio
import importlib
import io
import os
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

from cloudq.errors import ConfigError
from cloudq_aws.boto import BotoClient, settings
from cloudq_aws.errors import note_answer

_POOL = 64
"""Connections at most: receivers, senders and ackers at once (the SDK's default of 10 would make them queue)."""
_LARGE = 1 << 20
"""Bytes of a request above which aiohttp wants a file."""

_abandoned: list[object] = []
"""Clients of a parent process, or of a loop that is gone. Kept: finalising them would take the parent's sockets from its event loop."""


class Requests(Protocol):
    """What the drivers need of a client; ``Client`` and ``cloudq_aws.boto.BotoClient`` are the two."""

    async def request(self, action: str, *, within: float, polling: bool = False, **parameters: Any) -> dict[str, Any]: ...

    async def region(self) -> str: ...

    async def close(self) -> None: ...


@runtime_checkable
class Opens(Protocol):
    """A broker, store or timer that can make its client before the first request."""

    def open(self) -> None:
        """Load boto3 and make its client now, for a host whose start is cheaper than its first request; with aiobotocore do nothing."""
        ...


def open_now(client: Requests) -> None:
    """What ``Opens.open`` does of a client."""
    if isinstance(client, BotoClient):
        client.open()


def client_for(
    service: str, region: str | None, *, read_timeout: float, poll_timeout: float | None = None, sdk: str | None = None
) -> Requests:
    """The client over ``sdk``, ``boto3`` or ``aiobotocore``; by default boto3 inside Lambda, whose runtime has it, else aiobotocore."""
    sdk = sdk or ("boto3" if "AWS_LAMBDA_FUNCTION_NAME" in os.environ else "aiobotocore")
    if sdk not in ("boto3", "aiobotocore"):
        raise ConfigError(f"the client is boto3 or aiobotocore, not {sdk!r}")
    if sdk == "aiobotocore":
        return Client(service, region, read_timeout=read_timeout, poll_timeout=poll_timeout)
    return BotoClient(service, region, read_timeout=read_timeout, poll_timeout=poll_timeout)


class Client:
    """Requests to one service. ``region`` ``None`` leaves it to the SDK, as are credentials and endpoint.

    The SDK client belongs to the loop of the first request. It is made anew after ``close``, on another loop, and in a forked child,
    which must not touch its parent's sockets. None is made without credentials, which it could never get again. ``read_timeout`` is the
    seconds without an answer after which the SDK tries again, and ``poll_timeout`` is theirs for requests that poll. The SDK's exceptions
    come out as they are; a connection that is cut inside a streamed body is a ConnectionError.
    """

    def __init__(self, service: str, region: str | None, *, read_timeout: float, poll_timeout: float | None = None) -> None:
        self._service = service
        self._region = region
        self._read_timeouts = (read_timeout, poll_timeout or read_timeout)
        self._home: object = None
        self._opening: asyncio.Task[Any] | None = None

    async def request(self, action: str, *, within: float, polling: bool = False, **parameters: Any) -> dict[str, Any]:
        """Carry out ``action`` (``SendMessageBatch``) with the SDK's retries; TimeoutError after ``within`` seconds.

        A streamed ``Body`` (S3 GetObject) is answered as its bytes.
        """
        async with asyncio.timeout(within):
            sdk = (await self._open())[polling]
            answer: dict[str, Any] = await getattr(sdk, _method(action))(**parameters)
            note_answer()
            if (body := answer.get("Body")) is not None:
                answer["Body"] = await _read(body)
            return answer

    async def region(self) -> str:
        """The region that requests go to."""
        return str((await self._open())[0].meta.region_name)

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
            for sdk in set(opening.result()):
                await sdk.__aexit__(None, None, None)

    async def _open(self) -> tuple[Any, Any]:
        here = _here()
        if self._opening is not None and self._home != here:
            _abandoned.append(self._opening)
            self._opening = None
        if self._opening is None:
            self._home = here
            self._opening = asyncio.get_running_loop().create_task(self._create())
            self._opening.add_done_callback(self._forget_failure)
        # One for all who ask at once: who is cancelled does not take it from the others.
        both: tuple[Any, Any] = await asyncio.shield(self._opening)
        return both

    def _forget_failure(self, opening: asyncio.Task[Any]) -> None:
        if (opening.cancelled() or opening.exception() is not None) and self._opening is opening:
            self._opening = None

    async def _create(self) -> tuple[Any, Any]:
        """The SDK clients for requests that are answered at once, and for those that poll: SDKs have a read timeout for each client only.

        A second one of the same session costs a few milliseconds and 120 KiB.
        """
        # By name: the SDK ships no types, and loading it (a quarter of a second) waits for the first request.
        session = importlib.import_module("aiobotocore.session").get_session()
        if await session.get_credentials() is None:
            raise importlib.import_module("botocore.exceptions").NoCredentialsError
        made = [await self._made(session, read_timeout) for read_timeout in dict.fromkeys(self._read_timeouts)]
        return made[0], made[-1]

    async def _made(self, session: Any, read_timeout: float) -> Any:
        config = importlib.import_module("aiobotocore.config").AioConfig(**settings(session, read_timeout, _POOL))
        sdk = await session.create_client(self._service, region_name=self._region, config=config).__aenter__()
        sdk.meta.events.register("before-send", _stream)
        return sdk


async def _read(body: Any) -> bytes:
    try:
        answer: bytes = await body.read()
    except importlib.import_module("aiohttp").ClientError as error:  # aiobotocore lets some of them through
        raise ConnectionError(f"the connection was cut inside an answer: {error}") from error
    return answer


def _stream(request: Any, **_: object) -> None:
    """Hand a large body to aiohttp as a file: it warns of bytes above 1 MiB, which a full batch reaches once escaped."""
    if isinstance(request.body, bytes) and len(request.body) > _LARGE:
        request.body = io.BytesIO(request.body)


def _here() -> object:
    return os.getpid(), asyncio.get_running_loop()


@lru_cache(None)
def _method(action: str) -> str:
    return str(importlib.import_module("botocore").xform_name(action))
