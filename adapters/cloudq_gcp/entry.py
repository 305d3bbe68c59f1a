"""Ready-made entries for the app that ``CLOUDQ_APP`` (``module:attribute``) names: ``uvicorn cloudq_gcp.entry:app``, and a function.

Of the service, ``CLOUDQ_CONCURRENCY`` is how many messages are worked off at once (10 unless set), ``CLOUDQ_ACK_DEADLINE`` the
subscriptions' ack deadline in seconds (600 unless set), ``CLOUDQ_PUSH_AUDIENCE`` and ``CLOUDQ_PUSH_SERVICE_ACCOUNT`` what their tokens
must say, several separated by commas. ``CLOUDQ_PUSH_BEHIND_IAM=1`` says that Cloud Run verifies them, ``CLOUDQ_PUSH_CERTS`` is where other
certificates than Google's are.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from cloudq.errors import ConfigError
from cloudq.loading import load_configured

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudq_gcp.function import CloudEvent
    from cloudq_gcp.push import PushApp

    app: PushApp
    handler: Callable[[CloudEvent], None]

__all__ = ["app", "handler"]


def __getattr__(name: str) -> Any:
    """``app`` for an ASGI server, ``handler`` for functions-framework: a process is one of the two."""
    if name == "app":
        made: Any = _app()
    elif name == "handler":
        made = _handler()
    else:
        raise AttributeError(name)
    globals()[name] = made
    return made


def _app() -> PushApp:
    from cloudq_gcp.oidc import CERTS
    from cloudq_gcp.push import CONCURRENCY, push_app

    cloudq, concurrency = load_configured()
    return push_app(
        cloudq,
        audience=_names("CLOUDQ_PUSH_AUDIENCE"),
        service_account=_names("CLOUDQ_PUSH_SERVICE_ACCOUNT"),
        concurrency=CONCURRENCY if concurrency is None else concurrency,
        ack_deadline=_seconds("CLOUDQ_ACK_DEADLINE", 600.0),
        behind_iam=os.environ.get("CLOUDQ_PUSH_BEHIND_IAM") == "1",
        certs_url=os.environ.get("CLOUDQ_PUSH_CERTS") or CERTS,
    )


def _handler() -> Callable[[CloudEvent], None]:
    from cloudq_gcp.function import cloud_event

    return cloud_event(load_configured()[0])


def _names(variable: str) -> list[str]:
    return [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]


def _seconds(variable: str, default: float) -> float:
    try:
        return float(os.environ.get(variable) or default)
    except ValueError:
        raise ConfigError(f"{variable} must be a number of seconds, not {os.environ[variable]!r}") from None
