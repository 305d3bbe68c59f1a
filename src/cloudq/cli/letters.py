"""``cloudq dlq …``: what failed for good, why, and how to run it again."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Final, TextIO

import typer
from rich.text import Text

from cloudq import letters
from cloudq.app import CloudQ
from cloudq.cli.exits import FAILED
from cloudq.cli.output import ago, card, confirm, emit, error_of, fail, iso, out, put, say, short, table, when, working
from cloudq.cli.state import run_on, state_of
from cloudq.letters import Found, Letter, Match, Redriven

commands = typer.Typer(no_args_is_help=True, help="Dead letters: what failed for good, why, and another try.")

_PAYLOAD: Final = frozenset({"args", "kwargs", "headers", "link", "link_error"})
_ENCRYPTED: Final = "enc"
"""The field that stands for those, where this process could not decrypt it."""

AsJSON = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Queue = Annotated[str, typer.Argument(help="The queue whose dead letters are meant, or the dead-letter queue itself.")]
Task = Annotated[str | None, typer.Option("--task", help="Only of this task.")]
Error = Annotated[str | None, typer.Option("--error", metavar="TEXT", help="Only with this in the error or the reason.")]
DeadLetters = Annotated[str | None, typer.Argument(metavar="QUEUE", help="The queue whose dead letters are meant, or these themselves.")]
Everywhere = Annotated[bool, typer.Option("--all-queues", help="Of every queue of the app.")]


@commands.command("list")
def list_letters(
    context: typer.Context,
    queue: Annotated[str | None, typer.Argument(help="The queue whose dead letters are meant; all, if none.")] = None,
    task: Task = None,
    error: Error = None,
    limit: Annotated[int, typer.Option(min=1, help="Show so many of a queue at most.")] = 50,
    as_json: AsJSON = False,
) -> None:
    """List dead letters, newest first.

    [dim]cloudq dlq list emails --error Timeout[/]
    """
    app = state_of(context).load_shared()
    found: dict[str, Found] = {}
    for name in _meant(app, queue, everywhere=queue is None):
        with working(f"reading {name}", None) as progress:
            found[name] = run_on(app, letters.scan(app, name, Match(task=task, error=error), limit=limit, progress=progress))
    if as_json:
        emit({
            "queues": [
                {"dead_letter_queue": name, "unseen": each.unseen, "letters": [as_document(letter) for letter in _newest(each)]}
                for name, each in found.items()
            ]
        })  # fmt: skip
        return
    for index, (name, each) in enumerate(found.items()):
        if index and each.letters:
            put("")
        _list(name, each)


def _meant(app: CloudQ, queue: str | None, *, everywhere: bool) -> list[str]:
    """The dead-letter queues of the queue that is named, of all, or of the app's only one."""
    if queue and everywhere:
        raise typer.BadParameter("a queue or --all-queues, not both")
    names = dict.fromkeys(letters.dead_letter_queue(app, name) for name in ([queue] if queue else app.queues))
    if len(names) > 1 and not everywhere:
        raise typer.BadParameter(f"of which queue? the app has {', '.join(app.queues)}; name one, or say --all-queues")
    return list(names)


def _newest(found: Found) -> list[Letter]:
    return sorted(found.letters, key=lambda letter: letter.at or letter.sent or 0.0, reverse=True)


def _list(name: str, found: Found) -> None:
    if found.letters:
        shown = table("id", "task", "died", "why")
        for letter in _newest(found):
            why = Text(short(letter.reason, 80))
            if letter.error:
                error = error_of(letter.error)
                told = error["detail"] if letter.reason.endswith(error["type"]) else f"{error['type']}: {error['detail']}"
                why.append(f"\n{short(told, 120)}", "red")
            shown.add_row(letter.id, Text(letter.task or "no call", "" if letter.task else "yellow"), ago(letter.at), why)
        out().print(Text(name, "bold"))
        out().print(shown)
    else:
        say(f"{name}: no dead letters" + (" that match" if found.looked_at else ""), "dim")
    if found.unseen:
        say(f"{name}: about {found.unseen} more were not looked at (--limit, or held by another reader just now)", "dim")


@commands.command()
def show(
    context: typer.Context,
    queue: Queue,
    id: Annotated[str, typer.Argument(metavar="ID", help="Task id or message id.")],
    payload: Annotated[bool, typer.Option("--payload", help="Show the arguments, too; they may hold what is private.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Show one dead letter: why it died, with the traceback."""
    app = state_of(context).load_shared()
    name = letters.dead_letter_queue(app, queue)
    with working(f"reading {name}", None) as progress:
        found = run_on(app, letters.scan(app, name, Match(ids=frozenset({id})), limit=1, progress=progress))
    if not found.letters:
        fail(f"{name} has no dead letter {id}" + (f"; {found.unseen} could not be looked at just now" if found.unseen else ""))
        raise typer.Exit(FAILED)
    letter = found.letters[0]
    if as_json:
        emit(as_document(letter, whole=True, payload=payload))
        return
    error = error_of(letter.error) if letter.error else None
    fields: dict[str, Text | str | None] = {
        "id": letter.id,
        "task": letter.task,
        "queue": letter.queue,
        "attempt": str(letter.attempt) if letter.attempt else None,
        "sent": when(letter.sent),
        "died": when(letter.at),
        "reason": Text(letter.reason, "bold"),
        "error": Text(f"{error['type']}: {error['detail']}", "red") if error else None,
        "traceback": Text(error["traceback"].rstrip(), "dim") if error and error["traceback"] else None,
        "message": _pretty(_message(letter, payload=payload)),
        "body": letter.raw if payload else None,
    }
    out().print(card(fields))
    if _ENCRYPTED in letter.fields:
        say("its arguments are encrypted, and this process has no key that opens it (CLOUDQ_ENCRYPTION_KEYS)", "yellow")
    elif not payload:
        say("arguments are not shown; --payload shows them", "dim")


@commands.command()
def redrive(
    context: typer.Context,
    queue: DeadLetters = None,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Task ids or message ids.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    all_queues: Everywhere = False,
    task: Task = None,
    error: Error = None,
    to: Annotated[str | None, typer.Option("--to", metavar="QUEUE", help="Send there, and not to where each died.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent.")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Send dead letters back to where they died, to run again under the same id with a fresh budget of retries.

    A letter is deleted here only once its queue has accepted it. The queue may be left out where the app has only one.

    [dim]cloudq dlq redrive emails --error Timeout --dry-run[/]
    [dim]cloudq dlq redrive emails --all --yes[/]
    [dim]cloudq dlq redrive --all-queues --task shop.charge[/]
    """
    if not (ids or everything or task or error):
        raise typer.BadParameter("say which: ids, --task, --error, or --all")
    if ids and everything:
        raise typer.BadParameter("ids or --all, not both")
    app = state_of(context).load_shared()
    names = _meant(app, queue, everywhere=all_queues)
    there = {name: run_on(app, app.broker.stats(name)).ready for name in names}
    if not dry_run:
        confirm(_question("Send", "back", there, ids or [], task, error), yes=yes)
    match = Match(ids=frozenset(ids or []), task=task, error=error)
    done: dict[str, Redriven] = {}
    for name in names:
        with working(f"redriving {name}", there[name]) as progress:
            done[name] = run_on(app, letters.redrive(app, name, match, to=to, dry_run=dry_run, progress=progress))
    handled = {id for each in done.values() for letter, _ in (*each.sent, *each.failed) for id in (letter.id, letter.message_id)}
    absent = [id for id in ids or [] if id not in handled]
    if as_json:
        reports = [_report(name, each, absent, dry_run=dry_run) for name, each in done.items()]
        emit({"queues": reports} if all_queues else reports[0])
    else:
        for name, each in done.items():
            if all_queues:
                put(Text(name, "bold"))
            _tell(each, absent, dry_run=dry_run)
    if absent or any(each.failed or each.kept for each in done.values()):
        raise typer.Exit(FAILED)


def _question(do: str, how: str, there: dict[str, int | None], ids: list[str], task: str | None, error: str | None) -> str:
    which = [f"of task {task}"] if task else []
    which += [f"with {error!r} in the error"] if error else []
    count = f"{len(ids)} named" if ids else "all" if not which else "those"
    counts = [each for each in there.values() if each is not None]
    about = f"about {sum(counts):,} " if len(counts) == len(there) else ""
    return f"{do} {' '.join([count, *which])} of the {about}dead letters of {', '.join(there)} {how}?"


def _tell(done: Redriven, absent: list[str], *, dry_run: bool) -> None:
    if done.sent and dry_run:
        shown = table("id", "task", "to")
        for letter, target in done.sent:
            shown.add_row(letter.id, letter.task or Text("no call", "yellow"), target)
        out().print(shown)
    for letter, why in done.failed:
        fail(f"{letter.id} stays: {why}")
    for id in absent:
        fail(f"{id} was not found")
    for letter in done.kept:
        say(f"{letter.id} was sent, but could not be deleted here: it is in both queues, and may run twice without a store", "yellow")
    put(f"{len(done.sent):,} of {done.looked_at:,} {'would be sent' if dry_run else 'sent'}")


def _report(name: str, done: Redriven, absent: list[str], *, dry_run: bool) -> dict[str, Any]:
    return {
        "dead_letter_queue": name,
        "dry_run": dry_run,
        "looked_at": done.looked_at,
        "sent": [{"id": letter.id, "task": letter.task, "queue": target} for letter, target in done.sent],
        "failed": [{"id": letter.id, "task": letter.task, "why": why} for letter, why in done.failed],
        "kept": [letter.id for letter in done.kept],
        "not_found": absent,
    }


@commands.command()
def export(
    context: typer.Context,
    queue: Annotated[str | None, typer.Argument(help="The queue whose dead letters are meant; all, if none.")] = None,
    task: Task = None,
    error: Error = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write to a new file instead of stdout.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what the file holds; needs --output.")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Write dead letters as JSON lines, arguments included.

    They stay where they are, unless --delete is said: then each is deleted once the file that holds it is on disk.

    [dim]cloudq dlq export emails --error Timeout > letters.jsonl[/]
    [dim]cloudq dlq export --output letters.jsonl --delete --yes[/]
    """
    if delete and output is None:
        raise typer.BadParameter("--delete needs --output, so that what is deleted is on disk first")
    app = state_of(context).load_shared()
    names = _meant(app, queue, everywhere=queue is None)
    there = {name: run_on(app, app.broker.stats(name)).ready for name in names}
    if delete:
        confirm(_question("Delete", "here, once they are exported", there, [], task, error), yes=yes)
    try:
        place = nullcontext(sys.stdout) if output is None else output.open("x", encoding="utf-8")
    except OSError as problem:
        raise typer.BadParameter(f"{output} cannot be made: {problem.strerror}", param_hint="--output") from problem
    count, kept = 0, list[Letter]()
    with place as file:
        for name in names:
            with working(f"exporting {name}", there[name]) as progress:

                def write(batch: Sequence[Letter], name: str = name) -> None:
                    _write(file, name, batch, durable=output is not None)

                done = run_on(app, letters.export(app, name, Match(task=task, error=error), write, delete=delete, progress=progress))
            count += done.written
            kept += done.kept
    for letter in kept:
        say(f"{letter.id} was exported, but could not be deleted here", "yellow")
    if output is not None:
        say(f"{count:,} exported to {output}" + (f", {count - len(kept):,} deleted here" if delete else ""))
    if kept:
        raise typer.Exit(FAILED)


def _write(file: TextIO, name: str, batch: Sequence[Letter], *, durable: bool) -> None:
    for letter in batch:
        document = {"dead_letter_queue": name, **as_document(letter, whole=True, payload=True), "raw": _base64(letter)}
        del document["body"]
        file.write(json.dumps(document) + "\n")
    file.flush()
    if durable:
        os.fsync(file.fileno())


def _base64(letter: Letter) -> str | None:
    """The bytes that were no message, or are sealed: these must be kept as they are."""
    if letter.sealed:
        return base64.b64encode(letter.text.encode("utf-8", "surrogateescape")).decode("ascii")
    if letter.raw is not None:
        return str(letter.dead["raw"])
    return None if letter.fields else base64.b64encode(letter.delivery.body.encode("utf-8", "surrogateescape")).decode("ascii")


def as_document(letter: Letter, *, whole: bool = False, payload: bool = False) -> dict[str, Any]:
    """The shape of a dead letter in ``--json``; ``whole`` adds the traceback and the message."""
    error = error_of(letter.error) if letter.error else None
    document: dict[str, Any] = {
        "id": letter.id,
        "message_id": letter.message_id,
        "task": letter.task,
        "queue": letter.queue,
        "reason": letter.reason,
        "error": {"type": error["type"], "detail": error["detail"]} if error else None,
        "at": iso(letter.at),
        "sent": iso(letter.sent),
        "attempt": letter.attempt,
    }
    if whole:
        document["encrypted"] = _ENCRYPTED in letter.fields
        document["traceback"] = error["traceback"] if error else None
        document["message"] = _message(letter, payload=payload)
        if payload:
            document["body"] = letter.raw if letter.fields else letter.delivery.body
    return document


def _message(letter: Letter, *, payload: bool) -> dict[str, Any] | None:
    hidden = frozenset({"dead"}) if payload else _PAYLOAD | {"dead", "sig", _ENCRYPTED}
    shown = {name: value for name, value in letter.fields.items() if name not in hidden}
    return shown or None


def _pretty(message: dict[str, Any] | None) -> str | None:
    return json.dumps(message, indent=2, ensure_ascii=False) if message else None
