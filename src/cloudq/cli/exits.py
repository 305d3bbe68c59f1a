"""Exit codes, which scripts may rely on, and which error means which."""

from __future__ import annotations

from typing import Final

from cloudq.errors import (
    BatchSendError,
    CallError,
    CloudQError,
    ConfigError,
    DecodeError,
    QueueNotFound,
    ResultError,
    ResultTimeout,
    SeamError,
    SendUnknown,
)

OK: Final = 0
FAILED: Final = 1
"""What was asked for failed or was not found: a task that failed, an unknown id, a missing queue."""
USAGE: Final = 2
"""The command line, the app or a setting is wrong."""
UNREACHABLE: Final = 3
"""The broker, store or timer could not be reached, or answered with an error."""
TIMEOUT: Final = 4
"""It was not known in time; it may still come to be."""


def code_of(error: CloudQError | TimeoutError) -> int:
    """The exit code of an error."""
    match error:
        case ResultTimeout() | SendUnknown():
            return TIMEOUT
        case ConfigError() | CallError():
            return USAGE
        case QueueNotFound() | ResultError() | BatchSendError() | DecodeError():
            return FAILED
        case SeamError():
            return UNREACHABLE
        case TimeoutError():
            return TIMEOUT
        case _:
            return FAILED
