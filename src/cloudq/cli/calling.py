"""``cloudq call`` and ``cloudq result``: send one call, and see what became of one."""

from __future__ import annotations

import json
import re
import time
from difflib import get_close_matches
from typing import Annotated, Any, Final

import typer
from rich.text import Text
from typer.core import TyperCommand

from cloudq import records, states
from cloudq.cli.exits import FAILED
from cloudq.cli.output import card, counts, duration, emit, error_of, iso, out, progress, put, say, short, span, watching, when
from cloudq.cli.state import require_shared, state_of
from cloudq.errors import ResultTimeout, UnknownTask
from cloudq.result import AsyncResult
from cloudq.signature import CallOptions
from cloudq.store import Value

_KEYWORD = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
STYLES: Final = {
    states.SUCCESS: "bold green",
    states.FAILURE: "bold red",
    states.DEAD: "bold red",
    states.STARTED: "cyan",
    states.RETRY: "yellow",
}

LOOK: Final = 0.5
"""Seconds between two looks at what is watched."""

Wait = Annotated[bool, typer.Option("-w", "--wait", help="Wait for the result; needs a store.")]
Timeout = Annotated[
    float | None, typer.Option(parser=duration, metavar="TIME", help="How long to wait (implies --wait); 30s, if not said.")
]
AsJSON = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


class Call(TyperCommand):
    """A command whose arguments may be negative numbers."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # ctx: which click Typer brings along differs by version
        """Parse; what looks like an option and is neither one nor a number is still an error."""
        plain = args[: args.index("--")] if "--" in args else list(args)
        ctx.ignore_unknown_options = True
        rest = super().parse_args(ctx, args)
        for text in ctx.params.get("arguments") or ():
            if text in plain and re.match(r"-[^\d.]", text):
                raise typer.BadParameter(f"there is no option {text.partition('=')[0]}; text that begins with - stands after --", ctx=ctx)
        return rest


def call(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="The task's name.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="VALUE|NAME=VALUE", help="Each in JSON; what is no JSON is text.")
    ] = None,
    args: Annotated[str | None, typer.Option("--args", metavar="JSON", help="All positional arguments, as a JSON list.")] = None,
    kwargs: Annotated[str | None, typer.Option("--kwargs", metavar="JSON", help="Keyword arguments, as a JSON object.")] = None,
    delay: Annotated[
        float | None, typer.Option(parser=duration, metavar="TIME", help="Run no sooner than after this time, like 5m.")
    ] = None,
    queue: Annotated[str | None, typer.Option("-q", "--queue", help="Send to this queue.")] = None,
    wait: Wait = False,
    timeout: Timeout = None,
    force: Annotated[bool, typer.Option("--force", help="Send also what this app does not know.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Call a task; print the call's id or, with --wait, its result.

    [dim]cloudq call shop.add 1 2 --wait[/]
    [dim]cloudq call shop.mail.welcome to=ana@example.com delay_days=3 --delay 5m[/]
    [dim]cloudq call shop.tag --args '["a=b", [1, 2]]'[/]
    """
    app = state_of(context).load()
    known = app.tasks.get(task)
    if known is None and not force:
        close = get_close_matches(task, app.tasks, n=3, cutoff=0.5) or sorted(name for name in app.tasks if name.endswith(f".{task}"))[:3]
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UnknownTask(f"the app {app.name!r} has no task {task!r}{hint} (--force sends it all the same)")
    if not app.conf.task_always_eager:
        require_shared(app)
    if wait or timeout is not None:
        app.required_store("waiting for a result")
    positional, named = _arguments(arguments or [], args, kwargs)
    if known is not None:  # JSON values become what the task's type hints say, so that they are checked here
        typed = known.codec.decode(positional, named)
        positional, named = list(typed[0]), dict(typed[1])
    options = CallOptions()
    if delay is not None:
        options["delay"] = delay
    if queue is not None:
        options["queue"] = queue
    sent = app.send_task(task, positional, named, **options)
    if wait or timeout is not None:
        _wait(sent, timeout, as_json=as_json)
    elif as_json:
        emit({"id": sent.id, "task": task})
    else:
        put(sent.id)


def result(
    context: typer.Context,
    id: Annotated[str, typer.Argument(metavar="ID", help="The call's id.")],
    wait: Wait = False,
    timeout: Timeout = None,
    watch: Annotated[bool, typer.Option("--watch", help="Watch its progress until it has ended, however long that takes.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Show what became of a call.

    State, value or error, and times. Exits with 1 where it failed or is not known.

    [dim]cloudq result 6f0c2b7e… --wait --timeout 1m[/]
    """
    app = state_of(context).load()
    app.required_store("a result")
    found: AsyncResult[Any] = app.result(id)
    if wait or watch or timeout is not None:
        try:
            if watch:
                _watch(found, timeout)
            else:
                found.get(30.0 if timeout is None else timeout, propagate=False)
        except ResultTimeout:
            _show(id, found.record, as_json=as_json)
            raise
    document = found.record
    _show(id, document, as_json=as_json)
    if document is None:
        say(f"nothing is known of {id}: never sent, not recorded, or expired", "yellow")
    if document is None or document["state"] in states.TERMINAL - {states.SUCCESS}:
        raise typer.Exit(FAILED)


def _wait(sent: AsyncResult[Any], timeout: float | None, *, as_json: bool) -> None:
    """Print the bare value, so that it can be piped; on failure the error."""
    try:
        sent.get(30.0 if timeout is None else timeout, propagate=False)
    except ResultTimeout:
        if as_json:
            emit(as_document(sent.id, sent.record))
        else:
            put(sent.id)
        raise
    document = sent.record
    assert document is not None
    if as_json:
        emit(as_document(sent.id, document))
    elif document["state"] == states.SUCCESS:
        put(json.dumps(document.get("value"), indent=2, ensure_ascii=False))
    else:
        out().print(card(described(sent.id, document)))
    if document["state"] != states.SUCCESS:
        raise typer.Exit(FAILED)


def _watch(found: AsyncResult[Any], timeout: float | None) -> None:
    """Show how far it is until it has ended."""
    deadline = None if timeout is None else time.monotonic() + timeout
    with watching(short(found.id, 12)) as show:
        while True:
            document = found.record
            state = states.PENDING if document is None else records.shown(document)
            if state in states.TERMINAL:
                return
            done, total = counts(document.get("meta")) if document is not None else (None, None)
            show(str(document["progress"]) if document is not None and "progress" in document else state, done, total)
            if deadline is not None and time.monotonic() >= deadline:
                raise ResultTimeout(f"no result of {found.id} within {timeout:g} s; its state is {state}")
            time.sleep(LOOK if deadline is None else max(0.0, min(LOOK, deadline - time.monotonic())))


def _show(id: str, document: Value | None, *, as_json: bool) -> None:
    if as_json:
        emit(as_document(id, document))
    elif document is not None:
        out().print(card(described(id, document)))


def as_document(id: str, document: Value | None) -> dict[str, Any]:
    """The shape of ``--json``: always the same keys; times in ISO 8601."""
    known: Value = document or {}
    error = known.get("error")
    return {
        "id": id,
        "task": known.get("task") or None,
        "state": known.get("state", states.PENDING),
        "queue": known.get("queue"),
        "attempt": known.get("attempt", 0),
        "sent": iso(known.get("sent")),
        "started": iso(known.get("started")),
        "finished": iso(known.get("finished")),
        "revoked": bool(known.get("revoked", False)),
        "progress": {"state": known["progress"], "meta": known.get("meta")} if "progress" in known else None,
        "value": known.get("value"),
        "error": error_of(error) if error else None,
        "reason": known.get("reason"),
    }


def described(id: str, known: Value) -> dict[str, Text | str | None]:
    """The fields of a call as a person reads them."""
    state = str(known["state"])
    started, finished = known.get("started"), known.get("finished")
    error = error_of(known["error"]) if known.get("error") else None
    return {
        "id": id,
        "task": known.get("task") or None,
        "state": Text(state, STYLES.get(state, "bold")) if not known.get("revoked") else Text.assemble(state, (" (revoke asked)", "dim")),
        "progress": progress(known["progress"], known.get("meta")) if "progress" in known else None,
        "queue": known.get("queue"),
        "attempt": str(known["attempt"]) if known.get("attempt") else None,
        "sent": when(known.get("sent")),
        "started": when(started),
        "finished": when(finished),
        "took": span(finished - started) if started is not None and finished is not None else None,
        "value": json.dumps(known.get("value"), indent=2, ensure_ascii=False) if state == states.SUCCESS else None,
        "reason": known.get("reason"),
        "error": Text(f"{error['type']}: {error['detail']}", "red") if error else None,
        "traceback": Text(error["traceback"].rstrip(), "dim") if error and error["traceback"] else None,
    }


# ---------------------------------------------------------------------- arguments


def _arguments(texts: list[str], args: str | None, kwargs: str | None) -> tuple[list[Any], dict[str, Any]]:
    positional: list[Any] = _json_of(args, list, "--args", "list") if args is not None else []
    named: dict[str, Any] = _json_of(kwargs, dict, "--kwargs", "object") if kwargs is not None else {}
    for text in texts:
        if match := _KEYWORD.fullmatch(text):
            if match[1] in named:
                raise typer.BadParameter(f"{match[1]} stands twice")
            named[match[1]] = _value(match[2])
        elif args is not None:
            raise typer.BadParameter("positional arguments stand either alone or in --args, not in both")
        else:
            positional.append(_value(text))
    return positional, named


def _json_of(text: str, kind: type, option: str, name: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"it is no JSON: {error}", param_hint=option) from None
    if not isinstance(value, kind):
        raise typer.BadParameter(f"it must be a JSON {name}", param_hint=option)
    return value


def _value(text: str) -> Any:
    """JSON where it is JSON; else text, unless it looks as if it was meant to be JSON."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        if text[:1] in {"[", "{", '"'}:
            raise typer.BadParameter(f"{text!r} begins like JSON, but is none: {error}") from None
        return text


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
