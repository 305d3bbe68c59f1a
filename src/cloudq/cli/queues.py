"""``cloudq queue …``: what is in the queues, without running it, and whether workers receive from them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from cloudq import letters, pauses
from cloudq.app import CloudQ
from cloudq.broker import QueueStats
from cloudq.cli.output import ago, confirm, emit, iso, out, put, say, short, span, table, working
from cloudq.cli.state import run_on, state_of
from cloudq.errors import QueueNotFound
from cloudq.letters import Letter

commands = typer.Typer(no_args_is_help=True, help="Look into queues: counts, a peek, a purge; pause and resume them.")

_NONE: Final = Text("–", "dim")
_MISSING: Final = Text("missing", "bold red")

AsJSON = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


@commands.command("list")
def list_queues(context: typer.Context, as_json: AsJSON = False) -> None:
    """Show the queues that the app declares and their dead-letter queues, with counts (approximate, as brokers count)."""
    app = state_of(context).load_shared()
    _show(app, list(app.queues), as_json=as_json)


@commands.command()
def stats(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Queues; all that the app declares, if none.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Count messages. Exits with 1 where a queue that is named does not exist."""
    app = state_of(context).load_shared()
    missing = _show(app, names or list(app.queues), as_json=as_json)
    if names and missing:
        raise QueueNotFound(f"the broker has no queue {', '.join(missing)}")


def _show(app: CloudQ, names: Sequence[str], *, as_json: bool) -> list[str]:
    """Print the counts; returns the names of queues that are missing (dead-letter queues do not count)."""
    twins = {name: app.dead_letter_queue(name) for name in names if letters.dead_letter_queue(app, name) != name}
    wanted = list(dict.fromkeys([*names, *twins.values()]))

    async def count() -> Sequence[QueueStats | None]:
        return await asyncio.gather(*(letters.stats(app, name) for name in wanted))

    counts = dict(zip(wanted, run_on(app, count()), strict=True))
    paused = app.use_store(pauses.paused) if app.store is not None else {}
    if as_json:
        emit({
            "queues": [
                _counts(name, counts[name])
                | {"paused": iso(paused.get(name))}
                | {"dead_letter": _counts(twins[name], counts[twins[name]]) if name in twins else None}
                for name in names
            ]
        })  # fmt: skip
    else:
        numbers = ("ready", "in flight", "delayed", "dead letters")
        shown = table("queue", "ready", "in flight", "delayed", "oldest", "dead letters", numbers=numbers)
        for name in names:
            dead = _dead_letters(counts[twins[name]]) if name in twins else _NONE
            label = Text.assemble((name, "bold"), (" paused", "yellow") if name in paused else "")
            shown.add_row(label, *_cells(counts[name]), dead)
        out().print(shown)
    return [name for name in names if counts[name] is None]


def _cells(found: QueueStats | None) -> list[Text]:
    if found is None:
        return [_MISSING, _NONE, _NONE, _NONE]
    oldest = _NONE if found.oldest is None else Text(span(found.oldest))
    return [_number(found.ready), _number(found.in_flight), _number(found.delayed), oldest]


def _dead_letters(found: QueueStats | None) -> Text:
    if found is None:
        return _MISSING
    if found.ready is None or found.in_flight is None:
        return _NONE
    total = found.ready + found.in_flight
    return Text(f"{total:,}", "bold red" if total else "dim")


def _number(count: int | None) -> Text:
    return _NONE if count is None else Text(f"{count:,}", "" if count else "dim")


def _counts(name: str, found: QueueStats | None) -> dict[str, Any]:
    return {
        "name": name,
        "exists": found is not None,
        "ready": found.ready if found else None,
        "in_flight": found.in_flight if found else None,
        "delayed": found.delayed if found else None,
        "oldest": found.oldest if found else None,
    }


@commands.command()
def pause(context: typer.Context, name: Annotated[str, typer.Argument(help="The queue.")], as_json: AsJSON = False) -> None:
    """Keep workers from receiving from a queue until it is resumed; needs a store.

    They notice within a few seconds, and finish what they run. The pause outlives their restarts. Lambda functions and push services
    are [bold]not[/] paused: disable the function's event source mapping, or the push subscription.
    """
    app = state_of(context).load_shared()
    app.required_store("pausing a queue")
    if run_on(app, letters.stats(app, name)) is None:
        raise QueueNotFound(f"the broker has no queue {name}")
    now = app.clock.time()
    changed = app.use_store(lambda store: pauses.pause(store, name, now=now))
    if as_json:
        emit({"queue": name, "paused": True, "changed": changed})
        return
    put(f"{name} is paused: workers stop receiving within a few seconds" if changed else f"{name} was paused already")
    say("a Lambda function goes on until its event source mapping is disabled, a push service until its subscription is", "dim")


@commands.command()
def resume(context: typer.Context, name: Annotated[str, typer.Argument(help="The queue.")], as_json: AsJSON = False) -> None:
    """Let workers receive from a paused queue again; needs a store."""
    app = state_of(context).load_shared()
    app.required_store("resuming a queue")
    changed = app.use_store(lambda store: pauses.resume(store, name))
    if as_json:
        emit({"queue": name, "paused": False, "changed": changed})
    else:
        put(f"{name} goes on: workers receive within a few seconds" if changed else f"{name} was not paused")


@commands.command()
def peek(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The queue.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=1000, help="How many.")] = 10,
    payload: Annotated[bool, typer.Option("--payload", help="Show arguments, too.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Show messages that wait, and give them back.

    A broker knows no looking: this receives, and [bold]each look counts as a delivery[/]. A message that is delivered again and
    again without an outcome is taken to crash its worker, so look sparingly.
    """
    app = state_of(context).load_shared()
    found = run_on(app, letters.scan(app, name, limit=count))
    if as_json:
        emit({"queue": name, "messages": [as_document(letter, payload=payload) for letter in found.letters]})
        return
    shown = table("id", "task", "attempt", "sent", "deliveries", *(["arguments"] if payload else []), numbers=("attempt", "deliveries"))
    for letter in found.letters:
        arguments: list[str] = [short(f"{letter.fields.get('args', [])} {letter.fields.get('kwargs', '')}", 200)] if payload else []
        shown.add_row(
            letter.id,
            letter.task or Text("no call", "yellow"),
            str(letter.attempt),
            ago(letter.sent),
            str(letter.delivery.receives or "–"),
            *arguments,
        )
    if found.letters:
        out().print(shown)
        say(f"each of these now counts one delivery more; at {2 * app.conf.crash_cap} without an outcome a message is dead-lettered", "dim")
    else:
        say(f"nothing to be received in {name}" + (f"; {found.unseen} in flight" if found.unseen else ""), "dim")


def as_document(letter: Letter, *, payload: bool) -> dict[str, Any]:
    """The shape of a message in ``--json``."""
    document: dict[str, Any] = {
        "id": letter.id,
        "message_id": letter.message_id,
        "task": letter.task,
        "attempt": letter.attempt,
        "sent": iso(letter.sent),
        "receives": letter.delivery.receives,
    }
    if payload:
        document["message"] = letter.fields or None
        document["body"] = None if letter.fields else letter.delivery.body
    return document


@commands.command()
def purge(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The queue.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many would be deleted.")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Delete all messages that wait in a queue. There is no way back. What is in flight or delayed stays."""
    app = state_of(context).load_shared()
    there = run_on(app, app.broker.stats(name)).ready
    if dry_run:
        if as_json:
            emit({"queue": name, "dry_run": True, "deleted": there})
        else:
            put("this broker does not count; all would be deleted" if there is None else f"about {there:,} would be deleted")
        return
    confirm(f"Delete {'all' if there is None else f'about {there:,}'} messages of {name} for good?", yes=yes)
    with working("deleting", there) as progress:
        deleted = run_on(app, letters.purge(app, name, progress=progress))
    if as_json:
        emit({"queue": name, "dry_run": False, "deleted": deleted})
    else:
        put(f"{deleted:,} deleted")
