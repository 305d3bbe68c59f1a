"""The one place where the exceptions of Google's clients become cloudq's errors."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from cloudq.errors import AdapterMissing, BrokerError, BrokerUnavailable, CloudQError, ConfigError, QueueNotFound, SeamError

PASSING = frozenset({"ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN"})
"""gRPC statuses that a later try may not have (google.rpc.Code; Google's clients repeat most of them)."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A status that Google answered with. ``tried`` says in words what was asked."""

    action: str
    tried: str
    status: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What the failures of one Google service become."""

    name: str
    emulator: str
    """The environment variable that leads to its emulator, for advice."""
    error: type[SeamError]
    unavailable: type[SeamError]
    refused: Callable[[Refusal], CloudQError | None]
    """The error for a status with a meaning of its own in this service; ``None`` leaves it to what all services share."""


class RequestRefused(BrokerError):
    """Pub/Sub refused a whole request for what it says, and did nothing of it. ``code`` is the gRPC status."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def mapped(action: str, queue: str) -> Generator[None]:
    """Turn what ``action`` (``publish``) on ``queue`` raises into cloudq's errors, ``raise … from``.

    Unreachable, no answer in time, out of quota or failing inside Google: BrokerUnavailable. No such topic or subscription:
    QueueNotFound. No credentials: ConfigError. Refused for its content: RequestRefused. The rest: BrokerError.
    """
    with mapped_to(PUBSUB, action, f"{action} on queue {queue!r}"):
        yield


@contextmanager
def mapped_to(service: Service, action: str, tried: str) -> Generator[None]:
    """Turn what a request raises into the errors of ``service``, ``raise … from``; ``tried`` begins the message."""
    try:
        yield
    except CloudQError:
        raise
    except Exception as error:
        raise _translate(error, service, action, tried) from error


def status_of(error: BaseException) -> str:
    """The gRPC status of an exception of Google's clients (``NOT_FOUND``), empty where it has none; of a given-up retry, its last one."""
    cause: object = getattr(error, "cause", None)
    code: object = getattr(cause if isinstance(cause, Exception) else error, "grpc_status_code", None)
    return str(getattr(code, "name", ""))


def per_id(error: BaseException) -> Mapping[str, str]:
    """Of an Acknowledge or ModifyAckDeadline that failed on an exactly-once subscription: why, by ack id; empty for other errors.

    Pub/Sub puts it into the metadata of a google.rpc.ErrorInfo: PERMANENT_FAILURE_INVALID_ACK_ID, TRANSIENT_FAILURE_… and others
    (Google Cloud, "Exactly-once delivery").
    """
    details: Any = getattr(error, "details", None) or ()
    for detail in details:
        found = {str(key): str(why) for key, why in dict(getattr(detail, "metadata", {})).items()}
        if any(why.startswith(("PERMANENT_FAILURE_", "TRANSIENT_FAILURE_")) for why in found.values()):
            return found
    return {}


def _translate(error: Exception, service: Service, action: str, tried: str) -> CloudQError:
    if isinstance(error, ModuleNotFoundError):
        return AdapterMissing(f"{service.name} needs the package {error.name!r}, which is not installed: pip install 'cloudq-tasks[gcp]'")
    if isinstance(error, TimeoutError):
        return service.unavailable(f"{tried}: Google did not answer in time; the request may or may not have been carried out")
    if isinstance(error, ConnectionError):
        return service.unavailable(f"{tried}: {error}")
    auth: Any = import_module("google.auth.exceptions")  # by name: nothing of Google's is loaded before it is used
    if isinstance(error, auth.DefaultCredentialsError):
        return ConfigError(
            f"{tried}: no Google credentials ({error}); run 'gcloud auth application-default login', set GOOGLE_APPLICATION_CREDENTIALS, "
            "or give the host a service account"
        )
    if isinstance(error, auth.GoogleAuthError):
        return service.unavailable(f"{tried}: Google's credentials could not be refreshed ({error})")
    last = getattr(error, "cause", None) or error  # of a given-up retry, whose own words say only that it was one
    status, detail = status_of(error), str(getattr(last, "message", "") or last)
    if status in PASSING:
        return service.unavailable(
            f"{tried}: Google could not serve it now ({status}: {detail}); check the network, the quota and {service.emulator}"
        )
    if status == "UNAUTHENTICATED":
        return service.error(f"{tried}: Google does not accept the credentials ({detail})")
    if status:
        refused = service.refused(Refusal(action, tried, status, detail))
        return refused or service.error(f"{tried}: Google refused it ({status}: {detail})")
    return service.error(f"{tried}: {type(error).__name__}: {error}")


_ALLOWED: Mapping[str, str] = {
    "publish": "pubsub.topics.publish (roles/pubsub.publisher)",
    "get_subscription": "pubsub.subscriptions.get (roles/pubsub.viewer)",
}


class AccessDenied(BrokerError):
    """A policy does not allow the request."""


def _refused_by_pubsub(refusal: Refusal) -> CloudQError:
    tried, action, status = refusal.tried, refusal.action, refusal.status
    if status == "NOT_FOUND":
        what = "topic" if action == "publish" else "subscription"
        return QueueNotFound(
            f"{tried}: there is no such {what} in this project; create it ('cloudq deploy' writes the template), "
            "or correct the queue's name, the URL's project or its prefix"
        )
    if status == "PERMISSION_DENIED":
        permission = _ALLOWED.get(action, "pubsub.subscriptions.consume (roles/pubsub.subscriber)")
        return AccessDenied(f"{tried}: access denied; allow {permission} on it")
    return RequestRefused(f"{tried}: Google refused it ({status}: {refusal.detail})", code=status)


PUBSUB = Service(
    name="Pub/Sub", emulator="PUBSUB_EMULATOR_HOST", error=BrokerError, unavailable=BrokerUnavailable, refused=_refused_by_pubsub
)
