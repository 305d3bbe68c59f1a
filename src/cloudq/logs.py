"""Logs of a process that cloudq owns: one JSON object a line for machines, one plain line for people."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias, cast

Format: TypeAlias = Literal["plain", "json"]

CHATTY: Final = ("aiobotocore", "botocore", "boto3", "urllib3", "google", "grpc", "asyncio", "watchfiles")
"""Loggers that say at INFO what only their own developers want to know; they are heard from WARNING on, unless DEBUG is asked for."""


def facts(record: logging.LogRecord) -> Mapping[str, Any]:
    """What cloudq says of a task beside the text: task, task_id, queue, attempt, outcome, duration (seconds), exc (the traceback's text,
    where it failed); else empty."""
    found = getattr(record, "cloudq", None)
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}


def last_words(record: logging.LogRecord) -> str:
    """The traceback of a task that failed for good, for people: a retry's is told by its last line only."""
    known = facts(record)
    return str(known.get("exc", "")).rstrip() if known.get("outcome") == "dead" else ""


class JSONFormatter(logging.Formatter):
    """One object a line: ``ts`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, the task's facts, and ``exc`` (the traceback's text).

    The line is ASCII, so that no reader breaks it elsewhere; a fact that JSON does not know is written as text.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **facts(record),
        }
        if record.exc_info:
            line["exc"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, default=str)


class PlainFormatter(logging.Formatter):
    """``2026-03-01 12:00:00.123 INFO cloudq.worker: ready``; times are local."""

    default_msec_format = "%s.%03d"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        traceback = last_words(record)
        return f"{super().format(record)}\n{traceback}" if traceback else super().format(record)


def configure(format: Format = "plain", level: str | int = "INFO") -> None:
    """Send every log of this process to stderr, in ``format``, from ``level`` on; replaces the root logger's handlers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if format == "json" else PlainFormatter())
    install(handler, level)


def install(handler: logging.Handler, level: str | int) -> None:
    """Make ``handler`` the only one of the root logger."""
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.NOTSET if logging.getLogger().level <= logging.DEBUG else logging.WARNING)
    logging.captureWarnings(True)
