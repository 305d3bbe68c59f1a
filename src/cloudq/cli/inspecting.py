"""``cloudq inspect …``: which workers there are and what they do, by what they say of themselves in the store."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from cloudq import heartbeats, records, states
from cloudq.app import CloudQ
from cloudq.cli.exits import FAILED
from cloudq.cli.output import ago, emit, iso, out, put, say, span, table
from cloudq.cli.state import State, state_of
from cloudq.cli.tasks import READ, listed
from cloudq.store import Value

commands = typer.Typer(no_args_is_help=True, help="Workers: who is there, what runs, what waits.")

_OUTCOMES: Final = ("done", "again", "later", "dead", "dropped")
_SHOWN: Final = ("done", "again", "dead")
"""Those that fit a terminal."""
_NONE: Final = Text("–", "dim")

AsJSON = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Worker = Mapping[str, Any]


@commands.command()
def ping(context: typer.Context, as_json: AsJSON = False) -> None:
    """Show the workers that have reported in the last 90 s. Exits with 1 where there is none."""
    found = _workers(state_of(context), as_json=as_json)
    if as_json:
        emit({"workers": [_identity(key, each) for key, each in found.items()]})
    elif found:
        shown = table("worker", "app", "version", "state", "up", "seen")
        for key, each in found.items():
            state = Text(each["state"], "green" if each["state"] == "running" else "yellow")
            shown.add_row(key, each["app"], each["version"] or _NONE, state, _since(each["started"]), ago(each["at"]))
        out().print(shown)
    _end(found)


@commands.command()
def active(context: typer.Context, as_json: AsJSON = False) -> None:
    """Show what runs, the longest first. As of the workers' last reports: up to 30 s ago."""
    found = _workers(state_of(context), as_json=as_json)
    if as_json:
        runs = {key: [{**run, "since": iso(run["since"])} for run in each["running"]] for key, each in found.items()}
        emit({"workers": [{**_identity(key, each), "busy": each["busy"], "running": runs[key]} for key, each in found.items()]})
        _end(found)
        return
    rows = sorted(((run, key) for key, each in found.items() for run in each["running"]), key=lambda row: row[0]["since"])
    shown = table("id", "task", "queue", "for", "attempt", "worker", numbers=("attempt",))
    for run, key in rows:
        shown.add_row(run["id"], run["task"], run["queue"], _since(run["since"]), str(run["attempt"]), Text(key, "dim"))
    if rows:
        out().print(shown)
    elif found:
        say("nothing runs", "dim")
    if (more := sum(each["busy"] for each in found.values()) - len(rows)) > 0:
        say(f"and {more} more: a worker names the {heartbeats.RUNS} that have run for longest", "dim")
    _end(found)


@commands.command()
def registered(context: typer.Context, as_json: AsJSON = False) -> None:
    """Show which tasks the workers can run, and the tasks of this app that none of them can."""
    state = state_of(context)
    app = state.load_stored("inspect")
    found = _read(app, as_json=as_json)
    if as_json:
        emit({"workers": [{**_identity(key, each), "tasks": each["tasks"], "known": each["known"]} for key, each in found.items()]})
        _end(found)
        return
    known = Counter(name for each in found.values() for name in each["tasks"])
    complete = all(each["known"] == len(each["tasks"]) for each in found.values())
    if found:
        shown = table("task", "workers", numbers=("workers",))
        for name in sorted(known.keys() | (app.tasks.keys() if complete else ())):
            shown.add_row(Text(name, "" if name in known else "yellow"), Text(str(known[name]), "" if name in known else "bold yellow"))
        out().print(shown)
    if not complete:
        say(f"a worker names {heartbeats.NAMES} tasks at most, and has more", "dim")
    _end(found)


@commands.command()
def stats(context: typer.Context, as_json: AsJSON = False) -> None:
    """Show what each worker works on, how full it is, and what it has come to since it began."""
    found = _workers(state_of(context), as_json=as_json)
    if as_json:
        names = ("concurrency", "processes", "busy", "queues", "paused", "known")
        emit({
            "workers": [
                _identity(key, each) | {name: each[name] for name in names} | {"counts": {o: each["counts"].get(o, 0) for o in _OUTCOMES}}
                for key, each in found.items()
            ]
        })  # fmt: skip
    elif found:
        shown = table("worker", "queues", "busy", *_SHOWN, "up", "seen", numbers=("busy", *_SHOWN))
        for key, each in found.items():
            queues = (Text.assemble(name, (" paused", "yellow") if name in each["paused"] else "") for name in each["queues"])
            numbers = [_number(each["counts"].get(outcome, 0), outcome) for outcome in _SHOWN]
            shown.add_row(
                key, Text(", ").join(queues), f"{each['busy']}/{each['concurrency']}", *numbers, _since(each["started"]), ago(each["at"])
            )
        out().print(shown)
    _end(found)


@commands.command()
def scheduled(
    context: typer.Context,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="Show so many.")] = 50,
    read: Annotated[int, typer.Option("--read", metavar="N", min=1, help="Read so many tasks' documents at most.")] = READ,
    as_json: AsJSON = False,
) -> None:
    """Show calls that wait for their time, the next first: those with a delay, and retries.

    As far as the store knows: a call with a delay is in it where QUEUED is recorded ([bold]track_queued[/]: by default not on DynamoDB
    and Firestore), a retry always. What recurs is shown by [bold]cloudq schedule list[/].
    """
    app = state_of(context).load_stored("inspect")
    now = app.clock.time()

    def waits(document: Value) -> bool:
        return document["state"] in {states.QUEUED, states.RETRY} and (document.get("due", 0.0) > now or "waits" in document)

    found = listed(app, waits, limit=limit, read=read, order=lambda document: -(document.get("due") or now))
    if as_json:
        emit({
            "tasks": [
                {"id": id, "task": each["task"], "queue": each.get("queue"), "state": records.shown(each), "attempt": each["attempt"]}
                | {"due": iso(each.get("due")), "revoked": bool(each.get("revoked"))}
                for id, each in found.tasks
            ],
            "matching": found.matching, "read": found.read, "next": found.next,
        })  # fmt: skip
        return
    shown = table("id", "task", "queue", "due", "why")
    for id, each in found.tasks:
        why = f"retry {each['attempt']}" if each["state"] == states.RETRY else "delay"
        revoked = Text(" revoked", "yellow") if each.get("revoked") else Text()
        shown.add_row(id, each["task"], each.get("queue") or _NONE, ago(each.get("due")), Text(why) + revoked)
    if found.tasks:
        out().print(shown)
    else:
        put("nothing that the store knows of waits for its time")
    found.tell()
    if not _tracks(app):
        say("calls with a delay are not recorded on this store, unless CloudQ(track_queued=True): what is shown are retries", "dim")


def _tracks(app: CloudQ) -> bool:
    store, wanted = app.store, app.conf.track_queued
    return bool(wanted) if wanted is not None or store is None else not store.limits.metered


def _workers(state: State, *, as_json: bool) -> dict[str, Worker]:
    return _read(state.load_stored("inspect"), as_json=as_json)


def _read(app: CloudQ, *, as_json: bool) -> dict[str, Worker]:
    found = app.use_store(heartbeats.workers, why="inspect")
    if not found and not as_json:
        say(
            f"no worker has reported in the last {heartbeats.TTL:.0f} s. A worker reports while it runs with this store "
            "(`cloudq worker`, or `dev`); Lambda functions and push services do not",
            "yellow",
        )
    return found


def _end(found: Mapping[str, Worker]) -> None:
    if not found:
        raise typer.Exit(FAILED)


def _identity(key: str, worker: Worker) -> dict[str, Any]:
    return {
        "worker": key,
        **{name: worker[name] for name in ("app", "version", "host", "pid", "state")},
        "started": iso(worker["started"]),
        "seen": iso(worker["at"]),
    }


def _since(at: float) -> str:
    return span(max(0.0, time.time() - at))


def _number(count: int, outcome: str) -> Text:
    return Text(f"{count:,}", "dim" if not count else "bold red" if outcome == "dead" else "")
