"""The one place where the AWS SDK's exceptions become cloudq's errors."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from cloudq.errors import AdapterMissing, BrokerError, BrokerUnavailable, CloudQError, ConfigError, QueueNotFound

THROTTLED = frozenset({"RequestThrottled", "Throttling", "ThrottlingException", "TooManyRequestsException", "KmsThrottled", "OverLimit"})
"""Codes that ask for a later try, whatever SenderFault says (AWS SQS API, common errors)."""

_MISSING = frozenset({"QueueDoesNotExist", "NonExistentQueue", "InvalidAddress"})
_DENIED = frozenset({"AccessDenied", "AccessDeniedException"})
_CREDENTIALS = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "MissingAuthenticationToken",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)


class RequestRefused(BrokerError):
    """SQS refused a whole request for what it says, and did nothing of it. ``code`` is the provider's."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


def short_code(code: object) -> str:
    """The code without the prefix of the old query protocol: ``AWS.SimpleQueueService.NonExistentQueue`` → ``NonExistentQueue``."""
    return str(code).rpartition(".")[2]


@contextmanager
def mapped(action: str, queue: str) -> Generator[None]:
    """Turn what ``action`` (``SendMessageBatch``) on ``queue`` raises into cloudq's errors, ``raise … from``.

    Unreachable, no answer in time, throttled or failing inside AWS: BrokerUnavailable. No such queue: QueueNotFound. No
    credentials, profile or region: ConfigError. Refused for its content: RequestRefused. The rest: BrokerError.
    """
    try:
        yield
    except CloudQError:
        raise
    except Exception as error:
        raise _translate(error, action, queue) from error


def _translate(error: Exception, action: str, queue: str) -> CloudQError:
    tried = f"{action} on queue {queue!r}"
    if isinstance(error, ModuleNotFoundError):
        return AdapterMissing(f"SQS needs the package {error.name!r}, which is not installed: pip install 'cloudq-tasks[aws]'")
    if isinstance(error, TimeoutError):
        return BrokerUnavailable(f"{tried}: AWS did not answer in time; the request may or may not have been carried out")
    sdk: Any = import_module("botocore.exceptions")  # by name: the SDK ships no types, and nothing loads it before it is used
    if isinstance(error, sdk.ClientError):
        return _answered(error, tried, action)
    if isinstance(error, (sdk.HTTPClientError, sdk.ConnectionError, sdk.IncompleteReadError, OSError)):
        return BrokerUnavailable(f"{tried}: AWS could not be reached ({error}); check the network, the region and AWS_ENDPOINT_URL")
    if isinstance(error, sdk.NoRegionError):
        return ConfigError("no AWS region: write it in the URL (sqs://eu-west-1/), or set AWS_DEFAULT_REGION")
    if isinstance(error, (sdk.NoCredentialsError, sdk.PartialCredentialsError, sdk.CredentialRetrievalError, sdk.TokenRetrievalError)):
        return ConfigError(
            f"{tried}: no usable AWS credentials ({error}); set AWS_PROFILE, AWS_ACCESS_KEY_ID + AWS_SECRET_ACCESS_KEY, or a role"
        )
    if isinstance(error, (sdk.ProfileNotFound, sdk.ConfigParseError, sdk.ConfigNotFound, sdk.InvalidRegionError, ValueError)):
        return ConfigError(f"the AWS settings of this process are wrong: {error}; check the region, the profile and AWS_ENDPOINT_URL")
    return BrokerError(f"{tried}: {type(error).__name__}: {error}")


def _answered(error: Exception, tried: str, action: str) -> CloudQError:
    response = getattr(error, "response", {})
    code = short_code(response.get("Error", {}).get("Code", ""))
    detail = response.get("Error", {}).get("Message", "") or "no reason given"
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _MISSING:
        return QueueNotFound(
            f"{tried}: there is no such queue in this account and region; create it ('cloudq deploy' writes the template), "
            "or correct the queue's name, the URL's region or its prefix"
        )
    if code in _DENIED:
        if action == "GetQueueUrl":
            return QueueNotFound(f"{tried}: access denied; allow sqs:GetQueueUrl on it, or name the queue by its full URL")
        return BrokerError(f"{tried}: access denied; allow sqs:{action.removesuffix('Batch')} on it")
    if code in _CREDENTIALS:
        return BrokerError(f"{tried}: AWS does not accept the credentials ({code}: {detail})")
    if code in THROTTLED or status >= 500 or status == 429:
        return BrokerUnavailable(f"{tried}: AWS could not serve it now ({code or status}: {detail}); try again later")
    return RequestRefused(f"{tried}: AWS refused it ({code or status}: {detail})", code=code)
