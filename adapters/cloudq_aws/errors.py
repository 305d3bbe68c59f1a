"""The one place where the AWS SDK's exceptions become cloudq's errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any, NamedTuple

from cloudq.errors import AdapterMissing, BrokerError, BrokerUnavailable, CloudQError, ConfigError, QueueNotFound, SeamError

THROTTLED = frozenset(
    {
        "KmsThrottled",
        "OverLimit",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestTimeout",
        "RequestTimeoutException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
"""Codes that ask for a later try, whatever SenderFault says (AWS API references, common errors of each service)."""

_MISSING = frozenset({"QueueDoesNotExist", "NonExistentQueue", "InvalidAddress"})
DENIED = frozenset({"AccessDenied", "AccessDeniedException"})
"""Codes for what a policy does not allow."""
_CREDENTIALS = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_ROLE_REQUESTS = frozenset({"AssumeRole", "AssumeRoleWithSAML", "AssumeRoleWithWebIdentity", "CreateToken", "GetRoleCredentials"})
"""What the SDK asks of STS and of SSO by itself, to have credentials."""
_PROMISES = (
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
)
"""Variables with which a platform promises a role."""

_had_credentials = False


class Refusal(NamedTuple):
    """An error that AWS answered with. ``tried`` says in words what was asked; ``response`` is the SDK's."""

    action: str
    tried: str
    code: str
    detail: str
    response: Mapping[str, Any]


class Service(NamedTuple):
    """What the failures of one AWS service become."""

    name: str
    url: str
    """An adapter URL that holds a region, for advice."""
    error: type[SeamError]
    unavailable: type[SeamError]
    refused: Callable[[Refusal], CloudQError | None]
    """The error for an answer with a meaning of its own in this service; ``None`` leaves it to what all services share."""


class RequestRefused(BrokerError):
    """SQS refused a whole request for what it says, and did nothing of it. ``code`` is the provider's."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


def note_answer() -> None:
    """AWS has carried out a request of this process, so that it has credentials: from now on those that are away are waited for."""
    global _had_credentials
    _had_credentials = True


def _credentials_return() -> bool:
    """Whether credentials that are not there, or not accepted, are away for the moment: this process has had some, or is promised some.

    Where neither is so, as with a laptop that is not logged in, waiting would only hide what is to be done.
    """
    return _had_credentials or any(os.environ.get(name) for name in _PROMISES)


def short_code(code: object) -> str:
    """The code without the prefix of the old query protocol: ``AWS.SimpleQueueService.NonExistentQueue`` → ``NonExistentQueue``."""
    return str(code).rpartition(".")[2]


def mapped(action: str, queue: str) -> AbstractContextManager[None]:
    """Turn what ``action`` (``SendMessageBatch``) on ``queue`` raises into cloudq's errors, ``raise … from``.

    Unreachable, no answer in time, throttled or failing inside AWS: BrokerUnavailable; so are credentials that are away, or are not
    accepted, in a process that has had some or is promised a role. No credentials otherwise, no profile or region: ConfigError. No such
    queue: QueueNotFound. Refused for its content: RequestRefused. The rest: BrokerError.
    """
    return mapped_to(_SQS, action, f"{action} on queue {queue!r}")


@contextmanager
def mapped_to(service: Service, action: str, tried: str) -> Generator[None]:
    """Turn what a request raises into the errors of ``service``, ``raise … from``; ``tried`` begins the message."""
    try:
        yield
    except CloudQError:
        raise
    except Exception as error:
        raise _translate(error, service, action, tried) from error


def _translate(error: Exception, service: Service, action: str, tried: str) -> CloudQError:
    if isinstance(error, ModuleNotFoundError):
        return AdapterMissing(f"{service.name} needs the package {error.name!r}, which is not installed: pip install 'cloudq-tasks[aws]'")
    if isinstance(error, TimeoutError):
        return service.unavailable(f"{tried}: AWS did not answer in time; the request may or may not have been carried out")
    sdk: Any = import_module("botocore.exceptions")  # by name: the SDK ships no types, and nothing loads it before it is used
    if isinstance(error, sdk.ClientError):
        response = getattr(error, "response", {})
        if getattr(error, "operation_name", action) in _ROLE_REQUESTS and not _passes(response):
            return _no_credentials(error, service, tried)
        return _answered(response, service, action, tried)
    if isinstance(error, (sdk.HTTPClientError, sdk.ConnectionError, sdk.IncompleteReadError, OSError)):
        return service.unavailable(f"{tried}: AWS could not be reached ({error}); check the network, the region and AWS_ENDPOINT_URL")
    if isinstance(error, sdk.NoRegionError):
        return ConfigError(f"no AWS region: write it in the URL ({service.url}), or set AWS_DEFAULT_REGION")
    absent = (sdk.NoCredentialsError, sdk.PartialCredentialsError, sdk.CredentialRetrievalError, sdk.TokenRetrievalError, sdk.SSOError)
    if isinstance(error, absent) or (isinstance(error, RuntimeError) and "still expired" in str(error)):  # what the SDK was given anew
        return _no_credentials(error, service, tried)
    if isinstance(error, (sdk.ProfileNotFound, sdk.ConfigParseError, sdk.ConfigNotFound, sdk.InvalidRegionError, ValueError)):
        return ConfigError(f"the AWS settings of this process are wrong: {error}; check the region, the profile and AWS_ENDPOINT_URL")
    return service.error(f"{tried}: {type(error).__name__}: {error}")


def _no_credentials(error: Exception, service: Service, tried: str) -> CloudQError:
    text = f"{tried}: no usable AWS credentials ({error}); "
    if _credentials_return():
        return service.unavailable(f"{text}they are asked for again with the next request; if that lasts, look at this host's role")
    return ConfigError(f"{text}set AWS_PROFILE, AWS_ACCESS_KEY_ID + AWS_SECRET_ACCESS_KEY, or a role")


def _passes(response: Mapping[str, Any]) -> bool:
    """Whether the same request may be served at another time."""
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return short_code(response.get("Error", {}).get("Code", "")) in THROTTLED or status >= 500 or status == 429


def _answered(response: Mapping[str, Any], service: Service, action: str, tried: str) -> CloudQError:
    code = short_code(response.get("Error", {}).get("Code", ""))
    detail = response.get("Error", {}).get("Message", "") or "no reason given"
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _CREDENTIALS:
        refused = service.unavailable if _credentials_return() else service.error
        return refused(f"{tried}: AWS does not accept the credentials ({code}: {detail}); check them, and this machine's clock")
    if _passes(response):
        return service.unavailable(f"{tried}: AWS could not serve it now ({code or status}: {detail}); try again later")
    own = service.refused(Refusal(action, tried, code or str(status), detail, response))
    return own or service.error(f"{tried}: AWS refused it ({code or status}: {detail})")


def _refused_by_sqs(refusal: Refusal) -> CloudQError:
    tried, action, code = refusal.tried, refusal.action, refusal.code
    if code in _MISSING:
        return QueueNotFound(
            f"{tried}: there is no such queue in this account and region; create it ('cloudq deploy' writes the template), "
            "or correct the queue's name, the URL's region or its prefix"
        )
    if code in DENIED:
        if action == "GetQueueUrl":
            return QueueNotFound(f"{tried}: access denied; allow sqs:GetQueueUrl on it, or name the queue by its full URL")
        return BrokerError(f"{tried}: access denied; allow sqs:{action.removesuffix('Batch')} on it")
    text = f"{tried}: AWS refused it ({code}: {refusal.detail})"
    status = refusal.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status == 403 or code == "NotAuthorized" or code.startswith("Kms"):  # whatever the request holds (AWS SendMessageBatch, errors)
        return BrokerError(text)
    return RequestRefused(text, code=code)


_SQS = Service(name="SQS", url="sqs://eu-west-1/", error=BrokerError, unavailable=BrokerUnavailable, refused=_refused_by_sqs)
