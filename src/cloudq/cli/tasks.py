"""``cloudq task …``: calls as the store knows them: list, show, run again, cancel."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from cloudq import letters, records, states
from cloudq.app import CloudQ
from cloudq.cli.calling import STYLES, as_document, described
from cloudq.cli.exits import FAILED
from cloudq.cli.output import ago, card, emit, error_of, fail, iso, out, progress, put, say, short, table, when, working
from cloudq.cli.state import run_on, state_of
from cloudq.letters import Match, Redriven
from cloudq.store import Store, Value

commands = typer.Typer(no_args_is_help=True, help="Calls that the store knows: list, show, run again, cancel.")

READ: Final = 10_000
"""Documents that a listing reads at most, unless told otherwise."""
_STATES: Final = (states.QUEUED, states.STARTED, states.RETRY, states.REVOKING, *sorted(states.TERMINAL))
_NONE: Final = Text("–", "dim")

AsJSON = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
ID = Annotated[str, typer.Argument(metavar="ID", help="The call's id.")]
IDs = Annotated[list[str], typer.Argument(metavar="ID…", help="The calls' ids.")]


@dataclass(slots=True)
class Listed:
    """A part of the tasks that the store knows."""

    tasks: list[tuple[str, Value]]
    matching: int
    """How many of those read are meant, also where fewer are shown."""
    read: int
    next: str | None
    """The id after which to go on, where not all were read."""

    def tell(self) -> None:
        """Say what is not shown."""
        if self.matching > len(self.tasks):
            say(f"{len(self.tasks):,} of {self.matching:,} that match; --limit shows more", "dim")
        if self.next is not None:
            say(f"only {self.read:,} tasks were read, in the order of their ids; --read reads more", "dim")


def listed(
    app: CloudQ, meant: Callable[[Value], bool], *, limit: int, read: int, order: Callable[[Value], float], after: str | None = None
) -> Listed:
    """The ``limit`` tasks with the highest ``order`` of at most ``read``, for the store knows them only by id."""
    found = Listed([], 0, 0, None)

    async def look(store: Store, tell: Callable[[int], None] | None) -> None:
        best: list[tuple[float, str, Value]] = []
        last = after
        async for id, document in records.listing(store, after=after):
            if found.read == read:
                found.next = last
                break
            found.read, last = found.read + 1, id
            if meant(document):
                found.matching += 1
                entry = (order(document), id, {name: value for name, value in document.items() if name != "value"})
                if len(best) < limit:
                    heapq.heappush(best, entry)
                else:
                    heapq.heappushpop(best, entry)
            if tell is not None and found.read % records.PAGE == 0:
                tell(found.read)
        found.tasks = [(id, document) for _, id, document in sorted(best, key=lambda entry: entry[:2], reverse=True)]

    store = app.required_store("listing tasks")
    with working("reading tasks", None) as tell:
        run_on(app, look(store, tell))
    return found


@commands.command("list")
def list_tasks(
    context: typer.Context,
    state: Annotated[
        list[str] | None, typer.Option("--state", metavar="STATE", help=f"Only in this state; more than once: {', '.join(_STATES)}.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", metavar="NAME", help="Only of this task; a pattern like 'shop.mail.*'.")] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="Show so many, the newest.")] = 50,
    read: Annotated[int, typer.Option("--read", metavar="N", min=1, help="Read so many tasks' documents at most.")] = READ,
    after: Annotated[str | None, typer.Option("--after", metavar="ID", help="Go on reading after this id.")] = None,
    as_json: AsJSON = False,
) -> None:
    """List the calls that the store knows, newest first.

    The store knows them by id: it is read in that order, --read documents at most, and the newest of those that match are shown.

    [dim]cloudq task list --state FAILURE --task 'shop.mail.*'[/]
    """
    wanted = {each.upper() for each in state or ()}
    if unknown := wanted - set(_STATES):
        raise typer.BadParameter(f"there is no state {', '.join(sorted(unknown))}; there are {', '.join(_STATES)}", param_hint="--state")
    app = state_of(context).load_stored("task list")

    def meant(document: Value) -> bool:
        return (not wanted or records.shown(document) in wanted) and (task is None or fnmatchcase(document["task"], task))

    found = listed(app, meant, limit=limit, read=read, order=_latest, after=after)
    if as_json:
        tasks = [_row(id, document) for id, document in found.tasks]
        emit({"tasks": tasks, "matching": found.matching, "read": found.read, "next": found.next})
        return
    shown = table("id", "task", "state", "when", "why")
    for id, document in found.tasks:
        now = records.shown(document)
        shown.add_row(id, document["task"] or _NONE, Text(now, STYLES.get(now, "")), ago(_latest(document) or None), _why(document))
    if found.tasks:
        out().print(shown)
    else:
        say("the store knows no task" + (" that matches" if found.read else ""), "dim")
    found.tell()


def _latest(document: Value) -> float:
    """The last instant known of a task."""
    return max((document.get(name) or 0.0 for name in ("finished", "revoked_at", "started", "sent")), default=0.0)


def _why(document: Value) -> Text:
    """What is to be said beside the state, in a line."""
    if "progress" in document:
        return progress(document["progress"], document.get("meta"))
    if error := document.get("error"):
        told = error_of(error)
        return Text(short(f"{told['type']}: {told['detail']}", 80), "red")
    if document["state"] in states.TERMINAL - {states.SUCCESS}:
        return Text(short(document.get("reason", ""), 80), "dim")
    if document["state"] == states.QUEUED and document.get("due"):
        return Text(f"due {ago(document['due'])}", "dim")
    return Text()


def _row(id: str, document: Value) -> dict[str, Any]:
    whole = as_document(id, document)
    del whole["value"]
    if whole["error"]:
        del whole["error"]["traceback"]
    return {**whole, "state": records.shown(document), "due": iso(document.get("due"))}


@commands.command()
def show(context: typer.Context, id: ID, as_json: AsJSON = False) -> None:
    """Show all that the store knows of a call: state, times, progress, value or error, and what it belongs to."""
    app = state_of(context).load_stored("task show")
    found = app.use_store(lambda store: store.get(records.KIND, id))
    if found is None:
        fail(f"the store knows nothing of {id}: never sent, not recorded, or expired")
        raise typer.Exit(FAILED)
    known = found.value
    if as_json:
        more = {name: known.get(name) for name in ("root", "parent", "owner", "upstream")}
        times = {name: iso(at) for name, at in (("due", known.get("due")), ("held_until", known.get("until") or None),
                                                ("revoked_at", known.get("revoked_at")), ("expires", found.expires))}  # fmt: skip
        emit({**as_document(id, known), "state": records.shown(known), **more, **times, "crashes": known.get("crashes", 0)})
        return
    state = records.shown(known)
    held = records.is_held(known, app.clock.time())
    fields = described(id, known)
    ended = {name: fields.pop(name) for name in ("value", "reason", "error", "traceback")}
    out().print(
        card({
            **fields,
            "state": Text(state, STYLES.get(state, "bold")),
            "revoked": when(known.get("revoked_at")) if known.get("revoked") else None,
            "due": when(known.get("due")) if state in {states.QUEUED, states.RETRY} else None,
            "held by": f"{known.get('owner')} until {when(known['until'])}" if held else None,
            "crashes": str(known["crashes"]) if known.get("crashes") else None,
            "begun by": known["root"] if known.get("root") not in {None, id} else None,
            "called by": known.get("parent"),
            "never ran": f"because of {known['upstream']}" if "upstream" in known else None,
            **ended,
            "kept until": when(found.expires),
        })
    )  # fmt: skip
    if state in states.REOPENED_BY_REDRIVE:
        say(f"cloudq task retry {id} sends its dead letter again", "dim")


@commands.command()
def retry(
    context: typer.Context,
    ids: IDs,
    queue: Annotated[
        str | None, typer.Option("-q", "--queue", help="Look in this queue's dead letters only; where it died, if the store knows.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Run calls again that failed for good: send their dead letters back to where they died, with a fresh budget of retries.

    Finds them by id; [bold]cloudq dlq redrive[/] does the same for many, by task or error. Exits with 1 where one was not found.
    """
    app = state_of(context).load_shared()
    known = _known(app, ids)
    places: dict[str, set[str]] = {}
    for id in dict.fromkeys(ids):
        document = known[id]
        died = queue or (document.get("queue") if document is not None else None)
        for name in [died] if died else app.queues:
            places.setdefault(letters.dead_letter_queue(app, name), set()).add(id)
    done: list[Redriven] = []
    for name, wanted in places.items():
        with working(f"reading {name}", None) as tell:
            done.append(run_on(app, letters.redrive(app, name, Match(ids=frozenset(wanted)), progress=tell)))
    sent = [pair for each in done for pair in each.sent]
    failed = {letter.id: why for each in done for letter, why in each.failed}
    gone = {id for letter, _ in sent for id in (letter.id, letter.message_id)}
    for id in ids:
        if id not in gone | failed.keys():
            failed[id] = _missing(known[id], [name for name, wanted in places.items() if id in wanted])
    if as_json:
        emit({
            "sent": [{"id": letter.id, "task": letter.task, "queue": target} for letter, target in sent],
            "failed": [{"id": id, "why": why} for id, why in failed.items()],
        })  # fmt: skip
    else:
        for letter, target in sent:
            put(f"{letter.id} is sent to {target} again")
        for id, why in failed.items():
            fail(f"{id}: {why}")
    if failed:
        raise typer.Exit(FAILED)


def _known(app: CloudQ, ids: list[str]) -> dict[str, Value | None]:
    if app.store is None:
        return dict.fromkeys(ids)
    found = app.use_store(lambda store: store.get_many(records.KIND, ids))
    return {id: None if each is None else each.value for id, each in zip(ids, found, strict=True)}


def _missing(document: Value | None, places: list[str]) -> str:
    """Why there is nothing to send again."""
    where = f"there is no dead letter of it in {', '.join(places)}"
    if document is None:
        return f"{where}, and the store knows nothing of it"
    state = records.shown(document)
    match state:
        case states.SUCCESS:
            return "it has succeeded"
        case states.REVOKED:
            return "it was revoked, which leaves no dead letter: call it anew"
        case states.EXPIRED:
            return "it expired, which leaves no dead letter: call it anew"
        case states.FAILURE | states.DEAD:
            return f"{where}: it was sent again or deleted, or another reader holds it just now"
        case _:
            return f"it has not failed: its state is {state}"


@commands.command()
def cancel(
    context: typer.Context,
    ids: IDs,
    terminate: Annotated[bool, typer.Option("--terminate/--no-terminate", help="End it also where it runs already.")] = True,
    as_json: AsJSON = False,
) -> None:
    """Revoke calls: they do not start any more, and end where they run. A workflow's id cancels the whole.

    Exits with 1 where one had ended before.
    """
    app = state_of(context).load_stored("cancelling a task")
    answers: list[dict[str, Any]] = []
    for id in dict.fromkeys(ids):
        before = _known(app, [id])[id]
        over = before is not None and before["state"] in states.TERMINAL
        if not over:
            app.revoke(id, terminate=terminate)
        after = _known(app, [id])[id] or {}
        answers.append({"id": id, "state": records.shown(after) if after else states.PENDING, "changed": not over})
        if as_json:
            continue
        if over:
            fail(f"{id} has ended already: {answers[-1]['state']}")
        else:
            put(f"{id} {_cancelled(after, known=before is not None, terminate=terminate)}")
    if as_json:
        emit({"tasks": answers})
    if not all(each["changed"] for each in answers):
        raise typer.Exit(FAILED)


def _cancelled(document: Value, *, known: bool, terminate: bool) -> str:
    state = records.shown(document)
    if state == states.REVOKED:
        return "is revoked"
    if state == states.REVOKING:
        return "runs: it is asked to end at its worker's next heartbeat"
    if state == states.STARTED and not terminate:
        return "runs, and may go on; its retries are dropped"
    if not known:
        return "is not known here: it is dropped should it come"
    return "is dropped when its turn comes"
