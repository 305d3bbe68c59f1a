"""What a worker shows to a person: the banner at its start, and one quiet line for each task."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from cloudq import __version__
from cloudq.app import CloudQ
from cloudq.cli.output import card, public_url, short, span
from cloudq.logs import facts, last_words

_MARKS: Final[Mapping[str, tuple[str, str]]] = {
    "done": ("✓", "green"),
    "again": ("↻", "yellow"),
    "later": ("↻", "dim"),
    "dead": ("✗", "bold red"),
    "dropped": ("–", "dim"),
}
_LEVELS: Final[Mapping[int, str]] = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "bold red"}
_TOOK = re.compile(r" \(\d+\.\d+ s\)$")
_INDENT: Final = 12
"""Columns before the text of a task's line."""
_SHOWN: Final = 12
"""Tasks named in the banner."""


class LiveHandler(logging.Handler):
    """Writes logs for a person who watches."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._unicode = console.encoding.lower().startswith("utf")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            detail = None
            line = Text().append(time.strftime("%H:%M:%S  ", time.localtime(record.created)), "dim")
            if facts(record).get("outcome") in _MARKS:
                detail = self._task(line, record)
            else:
                line.append(record.getMessage(), _LEVELS.get(record.levelno, "dim" if record.levelno < logging.INFO else ""))
            if record.exc_info:
                line.append("\n" + logging.Formatter().formatException(record.exc_info), "dim")
            self._console.print(line, soft_wrap=True)
            if detail is not None:
                self._console.print(Padding(detail, (0, 0, 0, _INDENT)))
            if traceback := last_words(record):
                self._console.print(Padding(Text(traceback, "dim"), (0, 0, 0, _INDENT)))
        except Exception:
            self.handleError(record)

    def _task(self, line: Text, record: logging.LogRecord) -> Text | None:
        """``✓ shop.mail.welcome[6f0c…] 12 ms``, and below it what it came to where it is not done."""
        known = facts(record)
        mark, style = _MARKS[known["outcome"]]
        line.append(f"{mark} " if self._unicode else f"{known['outcome']:<8}", style)
        label = f"{known['task']}[{known['task_id']}]" if known.get("task_id") else None
        if label:
            line.append(str(known["task"])).append(f"[{known['task_id']}]", "dim")
        else:
            line.append("a message that is no call", style)
        line.append(f" {span(known['duration'])}", "cyan")
        if known["outcome"] == "done":
            return None
        said = _TOOK.sub("", record.getMessage()).removeprefix(label or "").strip()
        return Text(short(said, 300), style.removeprefix("bold "))


def banner(app: CloudQ, role: str, runs: str, queues: Mapping[str, int]) -> RenderableType:
    """Who works here, on what."""
    head = Text.assemble(("cloudq ", "bold cyan"), (__version__, "dim"), "  ", (app.name, "bold"), ("  " + role, "dim"))
    weights = set(queues.values())
    names = Text(", ").join(Text.assemble(name, (f" ×{weight}", "dim") if len(weights) > 1 else "") for name, weight in queues.items())
    tasks = _listed([Text(name) for name in sorted(app.tasks)])
    recurring = [Text.assemble(name, (f"  {app.schedules[name].trigger}", "dim")) for name in sorted(app.schedules)]
    timer = _seam(app, "timer")
    fields = {
        "broker": _seam(app, "broker") or "memory://",
        "store": _seam(app, "store") or Text("none: results are not kept", "dim"),
        "timer": timer,
        "queues": names,
        "runs": runs,
        "tasks": tasks or Text("none: is the module with the tasks imported, or in include=?", "yellow"),
        "schedules": _listed(recurring),
    }
    return Padding(Group(head, Text(), card(fields)), (1, 0, 1, 2))


def _listed(lines: list[Text]) -> Text | None:
    if len(lines) > _SHOWN:
        lines = [*lines[:_SHOWN], Text(f"and {len(lines) - _SHOWN} more", "dim")]
    return Text("\n").join(lines) if lines else None


def _seam(app: CloudQ, seam: str) -> str | None:
    """The URL that a seam was opened with, fit to be shown."""
    given = app.given[seam] or os.environ.get(f"CLOUDQ_{seam.upper()}")
    return public_url(given) if given else None
