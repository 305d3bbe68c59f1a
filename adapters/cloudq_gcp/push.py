"""The push host: an ASGI app that Pub/Sub pushes to, for Cloud Run and every other place that serves ASGI."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from types import FrameType
from typing import Any, Final

from cloudq.app import CloudQ
from cloudq.errors import ConfigError
from cloudq.worker.serving import Answer, Serving
from cloudq_gcp.oidc import CERTS, Refused, Tokens
from cloudq_gcp.pubsub import PubSubBroker
from cloudq_gcp.pushed import NoPush, of_request

__all__ = ["PushApp", "push_app"]

logger = logging.getLogger("cloudq.push")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CONCURRENCY: Final = 10
ACK_DEADLINE: Final = 600.0
"""Seconds: Pub/Sub's longest."""
GRACE: Final = 8.0
"""Cloud Run kills 10 s after SIGTERM."""
_BODY: Final = 15_000_000
"""Bytes of a request: 10 MB in base64, and its attributes."""
_STATUS: Final = {Answer.DONE: 204, Answer.KEPT: 500, Answer.BUSY: 429, Answer.STOPPING: 503}


def push_app(
    app: CloudQ,
    *,
    audience: str | Collection[str] = (),
    service_account: str | Collection[str] = (),
    queues: Mapping[str, str] | None = None,
    concurrency: int = CONCURRENCY,
    ack_deadline: float = ACK_DEADLINE,
    grace: float = GRACE,
    path: str = "/",
    behind_iam: bool = False,
    certs_url: str = CERTS,
) -> PushApp:
    """The ASGI app to which push subscriptions deliver: ``application = push_app(app, audience=…, service_account=…)``.

    ``audience`` and ``service_account`` (its email) are those of the subscriptions' OIDC tokens; one or several. Without them the app
    starts only beside the emulator, which sends no tokens. ``behind_iam``: the service requires authentication, so Cloud Run has
    verified the token and taken its signature off.

    ``queues`` names queues by subscription (its plain name), where the broker's naming rule does not. At most ``concurrency`` messages are
    worked off at once, what is beyond gets 429. ``ack_deadline`` is the subscriptions', in seconds: a task that will not have ended by
    then is given up before. After SIGTERM what runs has ``grace`` seconds.
    """
    return PushApp(
        app,
        tokens=_tokens(_several(audience), _several(service_account), certs_url, stripped=behind_iam),
        queues=queues or {},
        concurrency=concurrency,
        seconds=ack_deadline,
        grace=grace,
        path=path,
    )


class PushApp:
    """An app behind push subscriptions; each request is one message.

    204 says that its outcome is durable: the result kept, the retry or the dead letter sent. 500 makes Pub/Sub deliver it again, by
    the subscription's retry policy: its outcome could not be made durable, an ordered message waits for its turn, there is no timer for
    a delay, or it did not end in the grace time. 429 and 503: it was not begun, for want of a place or at the end of the process. 401 and
    403: no token, or not the right one. 400: no push.
    """

    def __init__(
        self, app: CloudQ, *, tokens: Tokens | None, queues: Mapping[str, str], concurrency: int, seconds: float, grace: float, path: str
    ) -> None:
        prepare(app, concurrency, seconds)
        self.app = app
        self._tokens = tokens
        self._queues = queues
        self._seconds = seconds
        self._grace = grace
        self._path = path
        self._serving = Serving(app, concurrency=concurrency)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the server's lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            try:
                status, why = await self._answer(scope, receive)
            except Refused as refused:
                status, why = refused.status, str(refused)
            await _respond(send, status, why)
        else:
            raise ConfigError(f"a push service speaks HTTP, not {scope['type']}")

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, str]:
        if scope["path"] != self._path:
            return 404, "not found"
        if scope["method"] != "POST":
            return 405, "messages are pushed with POST"
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self._tokens is not None:
            await self._tokens.check(headers.get("authorization", ""))
        if self._serving.stopping or self._serving.full:
            return (503, "stopping") if self._serving.stopping else (429, "busy")
        body = await _body(receive)
        try:
            pushed = of_request(headers, body)
        except NoPush as error:
            return 400, f"this is no push of Pub/Sub: {error}"
        now = self.app.clock.time()
        lease = min(self._seconds, self.app.broker.limits.lease)  # the claim's, which is renewed while the task runs
        delivery = pushed.delivery(self._queue_of(pushed.subscription), now, now + lease)
        served = self.app.io.submit(self._serving.serve(delivery, self._seconds))
        answer = await asyncio.shield(asyncio.wrap_future(served))  # some servers give up a request whose client has gone
        return _STATUS[answer], "" if answer is Answer.DONE else answer.value

    def _queue_of(self, subscription: str) -> str:
        name = subscription.rpartition("/")[2]
        named = self._queues.get(name) or self._queues.get(subscription)
        broker = self.app.broker
        return named or (broker.naming.queue_of(subscription) if isinstance(broker, PubSubBroker) else name)

    # ------------------------------------------------------------------ start and end

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        warming: asyncio.Task[None] | None = None
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._heed_sigterm()
                warming = None if self._tokens is None else asyncio.create_task(self._tokens.warm())
                await send({"type": "lifespan.startup.complete"})
            else:
                self._serving.stop(self._grace)
                if warming is not None:
                    await warming
                await self.app.io.arun(self._serving.close())
                await asyncio.to_thread(self.app.close)
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _heed_sigterm(self) -> None:
        """Hear of the end when it begins: the server says so only once all requests are answered."""
        if threading.current_thread() is not threading.main_thread():
            return
        servers = signal.getsignal(signal.SIGTERM)

        def stop(number: int, frame: FrameType | None) -> None:
            self._serving.stop(self._grace)
            if callable(servers):
                servers(number, frame)

        signal.signal(signal.SIGTERM, stop)


def prepare(app: CloudQ, concurrency: int, seconds: float) -> None:
    """Make an app ready for being pushed to; raises ConfigError for what cannot work."""
    if concurrency < 1:
        raise ConfigError("a push service needs a concurrency of 1 or more")
    if not 1 <= seconds <= 3600:
        raise ConfigError(f"a push has from 1 to 3600 s, not {seconds:g}")
    app.load()
    broker = app.broker
    if broker.limits.local:
        raise ConfigError("retries and dead letters need a broker that outlives the process: set CLOUDQ_BROKER=pubsub://project-id/")
    if isinstance(broker, PubSubBroker):
        broker.hold_nothing()
    if app.timer is None:
        logger.warning("without a timer what is to wait waits by the subscription's retry policy: set CLOUDQ_TIMER=cloudtasks://…")
    for task in app.tasks.values():
        if (task.settings.timeout or 0.0) > seconds:
            logger.warning("%s may take %g s, and a push has %g s: it is given up then", task.name, task.settings.timeout, seconds)


def _tokens(audiences: Collection[str], emails: Collection[str], certs_url: str, *, stripped: bool) -> Tokens | None:
    if audiences and emails:
        return Tokens(audiences, emails, certs_url=certs_url, stripped=stripped)
    if audiences or emails or "PUBSUB_EMULATOR_HOST" not in os.environ:
        raise ConfigError(
            "a push service needs the audience and the service account of its subscriptions' tokens: push_app(app, audience=…, "
            "service_account=…), or CLOUDQ_PUSH_AUDIENCE and CLOUDQ_PUSH_SERVICE_ACCOUNT for cloudq_gcp.entry"
        )
    logger.warning("no token is asked for: anybody who can reach this service can push to it; only for the emulator, which sends none")
    return None


def _several(names: str | Collection[str]) -> Collection[str]:
    return [names] if isinstance(names, str) and names else names


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the request broke off")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _BODY:
            raise Refused(413, "it is larger than any push")
        if not message.get("more_body"):
            return b"".join(parts)


async def _respond(send: Send, status: int, why: str) -> None:
    body = why.encode()
    headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"text/plain; charset=utf-8")] if body else []
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    elif status == 405:
        headers.append((b"allow", b"POST"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
