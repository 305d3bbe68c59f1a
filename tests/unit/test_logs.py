"""Logs for machines: one object a line, whatever is logged."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from cloudq import logs


def _line(record: logging.LogRecord) -> dict[str, object]:
    text = logs.JSONFormatter().format(record)
    assert text.isascii()
    assert "\n" not in text
    found: dict[str, object] = json.loads(text)
    return found


def _record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    record = logging.LogRecord("shop", logging.WARNING, "shop.py", 1, message, args, None)
    record.__dict__.update(extra)
    record.created = 1_772_366_400.25
    return record


def test_a_line_has_the_instant_in_utc_and_the_facts_of_its_task() -> None:
    assert _line(_record("%s failed", "add", cloudq={"task": "add", "duration": 0.5})) == {
        "ts": "2026-03-01T12:00:00.250Z",
        "level": "WARNING",
        "logger": "shop",
        "message": "add failed",
        "task": "add",
        "duration": 0.5,
    }


def test_what_breaks_lines_or_json_stays_one_line() -> None:
    line = _line(_record("a\nb\u2028c \ud800", cloudq={"what": object()}))
    assert line["message"] == "a\nb\u2028c \ud800"
    assert str(line["what"]).startswith("<object")


def test_an_exception_is_kept_whole() -> None:
    record = _record("oh")
    try:
        raise ValueError("no")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert str(_line(record)["exc"]).endswith("ValueError: no")


def test_configuring_replaces_handlers_and_quiets_the_chatty(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers = [logging.NullHandler()]
    try:
        logs.configure("json", "INFO")
        assert [type(handler.formatter) for handler in root.handlers] == [logs.JSONFormatter]
        assert not logging.getLogger("botocore.hooks").isEnabledFor(logging.INFO)
        logs.configure("plain", "DEBUG")
        assert len(root.handlers) == 1
        assert logging.getLogger("botocore.hooks").isEnabledFor(logging.DEBUG)
    finally:
        root.handlers, root.level = before, level
        logging.captureWarnings(False)
        for name in logs.CHATTY:
            logging.getLogger(name).setLevel(logging.NOTSET)
        root.setLevel(level)


def test_the_traceback_of_what_failed_for_good_is_in_the_log_of_people_and_of_machines() -> None:
    dead = _record("add[1] dead", cloudq={"outcome": "dead", "exc": "Traceback …\nValueError: no\n"})
    again = _record("add[1] again", cloudq={"outcome": "again", "exc": "Traceback …\nValueError: no\n"})
    assert str(_line(dead)["exc"]) == str(_line(again)["exc"]) == "Traceback …\nValueError: no\n"
    assert logs.PlainFormatter().format(dead).endswith("add[1] dead\nTraceback …\nValueError: no")
    assert logs.PlainFormatter().format(again).endswith("add[1] again")
