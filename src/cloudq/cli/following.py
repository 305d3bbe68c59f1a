"""``cloudq events``: what happens, line by line, as workers and callers write it to the store."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from cloudq import events as core
from cloudq.cli.output import duration, iso, put, say, span
from cloudq.cli.state import state_of

_STYLES: Final = {
    "succeeded": "green",
    "failed": "bold red",
    "dead": "bold red",
    "retried": "yellow",
    "revoked": "yellow",
    "expired": "yellow",
    "started": "cyan",
    "online": "bold",
    "offline": "bold",
}
LOOK: Final = 0.5
"""Seconds between two looks; four times as long where the store costs by the read."""


def events(
    context: typer.Context,
    task: Annotated[str | None, typer.Option("--task", metavar="NAME", help="Only of this task; a pattern like 'shop.mail.*'.")] = None,
    event: Annotated[
        list[str] | None, typer.Option("--event", metavar="EVENT", help=f"Only this; more than once: {', '.join(core.NAMES)}.")
    ] = None,
    since: Annotated[
        float | None, typer.Option(parser=duration, metavar="TIME", help="Begin so long ago; events are kept for an hour.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Go on until Ctrl-C.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON, a line each.")] = False,
) -> None:
    """Follow what happens: calls sent, started, done, retried, failed; workers that come and go.

    Written only where it is on, for each batch is a write to the store: by [bold]cloudq worker -E[/], and by whatever process has
    [bold]CloudQ(events=True)[/], which then tells of the calls that it sends, too.

    [dim]cloudq events --task 'shop.mail.*'[/]
    [dim]cloudq events --since 10m --event failed --no-follow --json[/]
    """
    if unknown := {*(event or ())} - {*core.NAMES}:
        raise typer.BadParameter(f"there is no event {', '.join(sorted(unknown))}; there are {', '.join(core.NAMES)}", param_hint="--event")
    app = state_of(context).load_stored("events")
    store, now = app.required_store(), app.clock.time
    follower = core.Follower(store, now() - (since or 0.0))
    pause = LOOK * 4 if store.limits.metered else LOOK
    if follow and not as_json:
        say("following; Ctrl-C ends it. Workers write events with -E", "dim")
    with suppress(KeyboardInterrupt):
        while True:
            for each in app.use_store(lambda _store: follower.look(now())):
                if (task is None or fnmatchcase(each.get("task", ""), task)) and (not event or each["event"] in event):
                    _print(each, as_json=as_json)
            if not follow:
                return
            time.sleep(pause)


def _print(event: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        names = ("id", "task", "queue", "attempt", "worker", "took", "error")
        line = {"event": event["event"], "at": iso(event["at"]), **{name: event.get(name) for name in names}}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        return
    name = event["event"]
    at = time.strftime("%H:%M:%S", time.localtime(event["at"])) + f".{round(event['at'] % 1 * 1000) % 1000:03}"
    text = Text.assemble((f"{at}  ", "dim"), (f"{name:<9}  ", _STYLES.get(name, "")))
    if "id" in event:
        text.append(event["task"]).append(f"[{event['id']}]", "dim")
        if event.get("attempt"):
            text.append(f" attempt {event['attempt']}", "dim")
        if "took" in event:
            text.append(f" {span(event['took'])}", "cyan")
        if "error" in event:
            text.append(f" {event['error']}", "red")
        if name == "sent":
            text.append(f" to {event['queue']}", "dim")
    if "worker" in event:
        text.append(f"  {event['worker']}" if "id" in event else event["worker"], "dim" if "id" in event else "")
    put(text)
