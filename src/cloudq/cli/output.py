"""How answers look: tables and times for people, JSON for programs; answers on stdout, all else on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final, cast
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cloudq.durations import seconds
from cloudq.letters import Progress as Told

WIDE: Final = 240
"""Columns where no terminal says how many: a pipe gets whole ids."""


@cache
def out() -> Console:
    """Where answers go."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


@cache
def err() -> Console:
    """Where everything else goes."""
    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else WIDE)


def say(text: str, style: str = "") -> None:
    """A remark beside the answer."""
    err().print(Text(text, style), soft_wrap=True)


def fail(text: str) -> None:
    """What went wrong, in one line."""
    err().print(Text.assemble(("error: ", "bold red"), " ".join(text.split())), soft_wrap=True)


def emit(value: object) -> None:
    """The answer as JSON."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=sys.stdout.encoding.lower() != "utf-8", default=str) + "\n")


def put(text: str | Text) -> None:
    """The answer as a line."""
    out().print(Text(text) if isinstance(text, str) else text, soft_wrap=True)


_LONG: Final = frozenset({"task", "why", "arguments", "to", "error", "queues", "worker"})
"""Columns that give way where a terminal is narrow; ids stay whole, to be copied."""


def table(*columns: str, numbers: Sequence[str] = (), folds: Sequence[str] = ()) -> Table:
    """A table without lines, for terminals and for ``awk``; ``numbers`` are the columns set right, ``folds`` those that give way."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold", no_wrap=column not in {*_LONG, *folds})
    return made


def card(fields: Mapping[str, Text | str | None]) -> Table:
    """Names and values, one a line; what is ``None`` is left out."""
    made = Table.grid(padding=(0, 3, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in fields.items():
        if value is not None:
            made.add_row(name, Text(value) if isinstance(value, str) else value)
    return made


@contextmanager
def working(what: str, total: int | None) -> Generator[Told | None]:
    """A progress bar on stderr while something takes long; ``None`` where nobody watches."""
    if not err().is_terminal:
        yield None
        return
    columns = (TextColumn("[dim]{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn())
    with Progress(*columns, console=err(), transient=True) as bar:
        task = bar.add_task(what, total=total or None)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def watching(what: str) -> Generator[Callable[[str, float | None, float | None], None]]:
    """Shows how far something is, for a person who waits: told ``(how it stands, done, total)``. Silent where nobody watches."""
    if not err().is_terminal:
        yield lambda _state, _done, _total: None
        return
    columns = (TextColumn("[dim]{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[count]}"), TimeElapsedColumn())
    with Progress(*columns, console=err(), transient=True) as bar:
        task = bar.add_task(what, total=None, count="")

        def show(state: str, done: float | None, total: float | None) -> None:
            count = "" if done is None else f"{done:g}" if total is None else f"{done:g}/{total:g}"
            bar.update(task, description=f"{what} {state}", completed=done or 0, total=total, count=count)

        yield show


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone; ends the command where the answer is no. Where nobody can answer, ``--yes`` is needed."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody is there to be asked; add --yes if you mean it")
    typer.confirm(question, abort=True, err=True)


# ---------------------------------------------------------------------- words


def iso(at: float | None) -> str | None:
    """A Unix time as ISO 8601 in UTC."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def when(at: float | None) -> str | None:
    """A Unix time for people: the local time, and how long ago."""
    if at is None:
        return None
    return f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S} ({ago(at)})"


def ago(at: float | None) -> str:
    """How long ago."""
    if at is None:
        return "–"
    past = time.time() - at
    return f"{span(past)} ago" if past >= 0 else f"in {span(-past)}"


def span(length: float) -> str:
    """A duration in seconds, rounded to what matters: ``12 ms``, ``3.4 s``, ``5 min``."""
    if length < 0.9995:
        return f"{length * 1000:.0f} ms"
    for unit, size, limit in (("s", 1.0, 120.0), ("min", 60.0, 7200.0), ("h", 3600.0, 172800.0)):
        if length < limit:
            return f"{length / size:.1f} {unit}" if unit == "s" and length < 10 else f"{length / size:.0f} {unit}"
    return f"{length / 86400:.0f} d"


def counts(meta: object) -> tuple[float | None, float | None]:
    """``done`` and ``total`` of a task's progress, where it has said them."""
    if not isinstance(meta, dict):
        return None, None
    known = cast("dict[str, object]", meta)
    done, total = (value if isinstance(value, (int, float)) else None for value in (known.get("done"), known.get("total")))
    return done, None if total is None or done is None or total <= 0 else total


def progress(state: str, meta: object) -> Text:
    """What a task says of its progress: a bar where it counts, else its own words."""
    done, total = counts(meta)
    if done is None or total is None:
        return Text(f"{state} {json.dumps(meta, ensure_ascii=False)}" if meta is not None else state)
    filled = round(_CELLS * min(max(done / total, 0.0), 1.0))
    full, empty = "━─" if out().encoding.lower().startswith("utf") else "#-"
    share = f" {done:g}/{total:g}" + (f" ({done / total:.0%})" if 0 <= done <= total else "")
    return Text.assemble((full * filled, "green"), (empty * (_CELLS - filled), "dim"), share, "" if state == "PROGRESS" else f" {state}")


_CELLS: Final = 24
"""Columns of a bar inside a text."""


def short(text: str, most: int = 100) -> str:
    """The text in one line, cut at ``most`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def public_url(given: object) -> str:
    """A broker, store or timer as it may be shown: no user, no password, no option's value that could be a secret."""
    if not isinstance(given, str):
        return type(given).__name__
    parts = urlsplit(given)
    host = parts.netloc.rpartition("@")[2]
    query = "&".join(_public_option(option) for option in parts.query.split("&")) if parts.query else ""
    return f"{parts.scheme}://{host}{parts.path}" + (f"?{query}" if query else "")


def _public_option(option: str) -> str:
    name, _, value = option.partition("=")
    return f"{name}={value}" if name in _HARMLESS else f"{name}=…"


_HARMLESS: Final = frozenset({"prefix", "lease", "wait", "batch", "receive", "lie", "timeout", "region", "name"})


def duration(text: str) -> float:
    """Parse ``30``, ``30s`` or ``1h30m`` into seconds, for options."""
    try:
        return seconds(float(text) if text.replace(".", "", 1).isdigit() else text, "the time")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def one_line(text: str) -> str:
    """What others wrote, in one line and without control characters."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def error_of(value: Any) -> dict[str, str]:
    """An error document with its three texts."""
    found: Mapping[str, Any] = value or {}
    return {name: str(found.get(name, "")) for name in ("type", "detail", "traceback")}
