"""``cloudq schedule …``: what recurs, when next, and what the cloud's scheduler is told of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from typing import Annotated, Any, Final, cast

import typer
from rich.text import Text

from cloudq import syncing
from cloudq.app import CloudQ
from cloudq.cli.output import ago, confirm, emit, iso, out, put, say, table, working
from cloudq.cli.state import require_shared, run_on, state_of
from cloudq.errors import ConfigError, TimerError, UnknownSchedule
from cloudq.recurring import Recurring
from cloudq.schedules import Cron, Every
from cloudq.syncing import Change, Step
from cloudq.timer import Schedule, Timer, Trigger

commands = typer.Typer(no_args_is_help=True, help="Schedules: what recurs, when next; bring the cloud's scheduler to the code.")

AsJSON = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Name = Annotated[str, typer.Argument(help="The schedule.")]

_STATES: Final = {
    None: Text("in the worker", "dim"),
    Step.KEEP: Text("in place", "green"),
    Step.CREATE: Text("not there yet", "yellow"),
    Step.UPDATE: Text("differs", "yellow"),
    Step.DELETE: Text("not declared", "red"),
}
_SIGNS: Final = {Step.CREATE: ("+", "green"), Step.UPDATE: ("~", "yellow"), Step.DELETE: ("-", "red"), Step.KEEP: ("=", "dim")}


@commands.command("list")
def list_schedules(context: typer.Context, as_json: AsJSON = False) -> None:
    """List the schedules: as the code declares them, and how they stand in the cloud's scheduler.

    With memory:// they fire in [bold]cloudq dev[/] itself, and there is nothing else to be asked.
    """
    app = state_of(context).load()
    now, timer = app.clock.time(), _kept_by(app)
    found = _compared(app, timer) if timer is not None else [Change(Step.KEEP, each.name, each, each) for each in _declared(app)]
    rows = [(change, change.declared or cast("Schedule", change.kept)) for change in found]
    if as_json:
        emit({
            "schedules": [
                _document(app, schedule, now)
                | {"state": None if timer is None else change.step.value, "differs": list(change.differs), "paused": schedule.paused}
                for change, schedule in rows
            ]
        })  # fmt: skip
        return
    if not rows:
        say("no schedules: declare one by @app.task(schedule=cron(…)) or app.schedule(name, task.s(…), every(…))", "dim")
        return
    shown = table("schedule", "when", "next", "task", "queue", "state")
    for change, schedule in rows:
        idle = Text("nothing fires it", "yellow") if timer is None and not app.broker.limits.local else None
        state = Text("paused", "yellow") if schedule.paused else idle or _STATES[None if timer is None else change.step]
        called = app.schedules.get(schedule.name)
        following = None if schedule.paused else _next(schedule.trigger, now)
        shown.add_row(
            Text(schedule.name, "bold"), str(schedule.trigger), ago(following), called.task if called else "–", schedule.queue, state
        )
    out().print(shown)
    _warn(app, rows_of=[each.name for _, each in rows])
    if timer is not None and any(change.step is not Step.KEEP for change, _ in rows):
        say("cloudq schedule sync brings the scheduler to the code (--dry-run shows how)", "dim")
    if timer is None and not app.broker.limits.local:
        say("`cloudq dev` fires them while it runs; in the cloud: set CLOUDQ_TIMER, and run `cloudq schedule sync`", "yellow")


@commands.command("next")
def next_fires(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="The schedule; all, if none.")] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=1000, help="So many fires.")] = 5,
    after: Annotated[
        str | None, typer.Option("--after", metavar="TIME", help="After this instant, as 2027-01-15T08:00:00Z; now, if none.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Show when schedules fire next.

    [dim]cloudq schedule next daily_report -n 3 --after 2027-03-26T00:00:00Z[/]
    """
    app = state_of(context).load()
    begin = app.clock.time() if after is None else _instant(after)
    meant = [app.required_schedule(name)] if name is not None else [app.schedules[each] for each in sorted(app.schedules)]
    fires = sorted(((fire, each) for each in meant for fire in _fires(each.trigger, begin, count)), key=lambda one: (one[0], one[1].name))
    if as_json:
        emit({"fires": [{"schedule": each.name, "at": iso(fire), "slot": int(fire)} for fire, each in fires[:count]]})
        return
    if not fires:
        say("none of them fires any more" if meant else "no schedules are declared", "dim")
        return
    shown = table("at", "in its zone", "in", "schedule")
    for fire, each in fires[:count]:
        zone: tzinfo = each.trigger.zone if isinstance(each.trigger, Cron) else UTC
        shown.add_row(
            f"{datetime.fromtimestamp(fire).astimezone():%Y-%m-%d %H:%M:%S %Z}",
            f"{datetime.fromtimestamp(fire, zone):%a %H:%M:%S %Z}",
            ago(fire),
            Text(each.name, "bold"),
        )
    out().print(shown)


@commands.command()
def trigger(context: typer.Context, name: Name, as_json: AsJSON = False) -> None:
    """Fire a schedule now, beside its own times; prints the task id of the run."""
    app = state_of(context).load()
    require_shared(app)
    called, slot = app.required_schedule(name), int(app.clock.time())
    app.sender.send(called.queue(app), called.tick(app, slot), called.id(slot))
    if as_json:
        emit({"schedule": name, "id": called.id(slot), "queue": called.queue(app)})
    else:
        put(called.id(slot))


@commands.command()
def pause(context: typer.Context, name: Name, as_json: AsJSON = False) -> None:
    """Keep a schedule from firing until it is resumed; [bold]sync[/] leaves it paused."""
    _set(context, name, paused=True, as_json=as_json)


@commands.command()
def resume(context: typer.Context, name: Name, as_json: AsJSON = False) -> None:
    """Let a paused schedule fire again; what it missed is not made up for."""
    _set(context, name, paused=False, as_json=as_json)


@commands.command()
def sync(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave schedules that the code does not declare.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before schedules are deleted.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Bring the cloud's scheduler to what the code declares: create, change and delete the app's schedules.

    Paused ones stay paused. Nothing is deleted before all else is in place: where the scheduler refuses one, what was there is still there.
    """
    app = state_of(context).load()
    timer = _required_timer(app)
    found = [each for each in _compared(app, timer) if not (keep and each.step is Step.DELETE)]
    todo = sorted((each for each in found if each.step is not Step.KEEP), key=lambda each: each.step is Step.DELETE)
    if not as_json:
        for change in found:
            sign, style = _SIGNS[change.step]
            put(Text.assemble((f"{sign} ", style), (change.name, "bold"), _said(change)))
    gone = [each.name for each in todo if each.step is Step.DELETE]
    if not dry_run:
        if gone:
            confirm(f"delete {len(gone)} that the code does not declare ({', '.join(gone)})?", yes=yes)
            paused = {each.name for each in run_on(app, timer.schedules()) if each.paused}  # it took its time to be answered
            todo = [replace(each, declared=each.declared and replace(each.declared, paused=each.name in paused)) for each in todo]
        with working("syncing", len(todo)) as told:
            for done, change in enumerate(todo, 1):
                run_on(app, syncing.apply(timer, change))
                if told is not None:
                    told(done)
    if as_json:
        emit({
            "dry_run": dry_run,
            "changes": [{"schedule": each.name, "step": each.step.value, "differs": list(each.differs)} for each in found],
        })  # fmt: skip
    elif dry_run:
        say(f"{len(todo)} to change; nothing was", "dim")
    else:
        say(f"{len(todo)} changed, {len(found) - len(todo)} as they were", "dim")
    _warn(app, rows_of=[each.name for each in found])


# ---------------------------------------------------------------------------------------------------------------------


def _kept_by(app: CloudQ) -> Timer | None:
    """The timer that keeps the schedules outside of workers, if there is one."""
    timer = app.timer
    return None if timer is None or timer.limits.local else timer


def _required_timer(app: CloudQ) -> Timer:
    timer = _kept_by(app)
    if timer is None and app.broker.limits.local:
        raise ConfigError("with memory:// the schedules fire in the worker itself (`cloudq dev`): there is no scheduler to be told of them")
    if timer is None:
        raise ConfigError(
            "no timer is set: CLOUDQ_TIMER=eventbridge://region/group?role=…&dead_letter=… (AWS), "
            "or cloudtasks://project/region/queue?service_account=… (Google)"
        )
    return timer


def _declared(app: CloudQ) -> list[Schedule]:
    return [app.schedules[name].schedule(app) for name in sorted(app.schedules)]


def _compared(app: CloudQ, timer: Timer) -> list[Change]:
    return syncing.changes(_declared(app), run_on(app, timer.schedules()))


def _set(context: typer.Context, name: str, *, paused: bool, as_json: bool) -> None:
    app = state_of(context).load()
    timer = _required_timer(app)
    kept = {each.name: each for each in run_on(app, timer.schedules())}.get(name)
    if kept is None:
        known = "`cloudq schedule sync` brings it there" if name in app.schedules else "and the code declares none of that name"
        raise UnknownSchedule(f"the scheduler has no schedule {name!r}: {known}")
    changed = kept.paused != paused
    if changed or not paused:  # of a schedule in parts one may be paused
        run_on(app, timer.put_schedule(replace(kept, paused=paused)))
    if as_json:
        emit({"schedule": name, "paused": paused, "changed": changed})
    else:
        put(
            f"{name} is {'paused' if paused else 'going on'}"
            if changed
            else f"{name} {'was paused already' if paused else 'was not paused'}"
        )


def _document(app: CloudQ, schedule: Schedule, now: float) -> dict[str, Any]:
    called = app.schedules.get(schedule.name)
    return {
        "schedule": schedule.name,
        "trigger": str(schedule.trigger),
        "next": iso(_next(schedule.trigger, now)),
        "task": called.task if called else None,
        "queue": schedule.queue,
        "warnings": _warnings(called),
    }


def _next(trigger: Trigger, now: float) -> float | None:
    try:
        return trigger.next_after(now)
    except TimerError:  # one that the cloud alone understands
        return None


def _fires(trigger: Trigger, after: float, count: int) -> Iterable[float]:
    fire = trigger.next_after(after)
    for _ in range(count):
        if fire is None:
            return
        yield fire
        fire = trigger.next_after(fire)


def _said(change: Change) -> str:
    if change.kept is not None and change.declared is not None and "trigger" in change.differs:
        others = [each for each in change.differs if each != "trigger"]
        return f"  {change.kept.trigger} → {change.declared.trigger}" + (f", {', '.join(others)}" if others else "")
    known = cast("Schedule", change.declared or change.kept)
    paused = ", paused" if known.paused else ""
    return f"  {known.trigger} → {known.queue}" + (f" ({', '.join(change.differs)})" if change.differs else "") + paused


def _warnings(called: Recurring | None) -> list[str]:
    trigger = called.trigger if called is not None else None
    return list(trigger.warnings()) if isinstance(trigger, (Cron, Every)) else []


def _warn(app: CloudQ, *, rows_of: Iterable[str]) -> None:
    for name in rows_of:
        for warning in _warnings(app.schedules.get(name)):
            say(f"{name}: {warning}", "yellow")


def _instant(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no instant; write it as 2027-01-15T08:00:00Z", param_hint="--after") from None
    return (found.astimezone() if found.tzinfo is None else found).timestamp()
