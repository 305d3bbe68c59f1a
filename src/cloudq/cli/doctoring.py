"""``cloudq doctor``: what is there at the provider, held against what the app and its settings want."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.text import Text

from cloudq.cli.exits import FAILED, UNREACHABLE, USAGE
from cloudq.cli.output import emit, one_line, out, say, working
from cloudq.cli.planning import AsJSON, Stage, Target, planned, show_problems
from cloudq.cli.state import state_of
from cloudq.errors import AdapterMissing, ConfigError

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.deploy.doctor import Finding
    from cloudq.deploy.observed import Observed
    from cloudq.deploy.plan import Plan
    from cloudq.deploy.settings import Settings


def doctor(
    context: typer.Context,
    target: Target = None,
    stage: Stage = "dev",
    here: Annotated[
        bool, typer.Option("--here", help="Look where the app's broker, store and timer lead here, and not at the plan's own names.")
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """Look at the live queues, functions, tables and schedules, and say what is not as the app needs it, what follows, and what to do.

    It only reads, with the provider's own credentials (AWS_PROFILE, or Google's application default ones), and needs no `cloudq deploy`:
    what was made by hand is held against the same plan. With [bold]--here[/] it is found by CLOUDQ_BROKER, CLOUDQ_STORE and CLOUDQ_TIMER.

    Exits with 1 where something is found, and with 0 where nothing is, or only notes. What could not be read is said, and counts as a note;
    with 3 where that is all.

    [dim]cloudq doctor --stage prod[/]
    """
    from cloudq.deploy.doctor import as_used, findings

    state = state_of(context)
    made, settings, problems = planned(state, target, stage)
    if made is None or settings is None:
        show_problems(problems)
        raise typer.Exit(USAGE)
    if made.provider == "local":
        raise ConfigError(f"{made.target} uses queues of this machine, and there is nothing to look at: name another target")
    if here:
        made, settings = as_used(made, settings, _urls(state.load()))
    with working("looking", None):
        observed = observe(made, settings)
    found = findings(made, settings, observed)
    levels = Counter(each.level for each in found)
    if as_json:
        emit({"target": made.target, "stage": stage, "place": observed.place, "findings": [each.document() for each in found]})
    else:
        _show(found)
        if errors := sum(each.level == "error" for each in problems):
            say(f"the plan itself has {errors} problem{'s' if errors > 1 else ''}: cloudq plan", "yellow")
        if not found:
            say(f"all is as planned in {observed.place}: {_looked_at(observed)}", "green")
    if levels["error"] or levels["warning"]:
        raise typer.Exit(FAILED)
    if levels["unread"] and not any(_things(observed).values()):
        raise typer.Exit(UNREACHABLE)


def observe(plan: Plan, settings: Settings) -> Observed:
    """What is there, read by the provider's own adapter. Raises ConfigError where there is none, and what its SDK needs is not set."""
    try:
        module: Any = import_module(f"cloudq_{plan.provider}.observing")
    except ModuleNotFoundError as error:
        raise AdapterMissing(
            f"{plan.target} needs the package {error.name!r}, which is not installed: pip install 'cloudq-tasks[{plan.provider}]'"
        ) from error
    observed: Observed = asyncio.run(module.observe(plan, settings))
    return observed


def _urls(app: CloudQ) -> dict[str, str]:
    """Where the app's seams lead in this process."""
    given = {seam: app.given[seam] or os.environ.get(f"CLOUDQ_{seam.upper()}") for seam in ("broker", "store", "timer")}
    return {seam: url for seam, url in given.items() if isinstance(url, str)}


def _things(observed: Observed) -> dict[str, int]:
    """How many of each kind were looked at."""
    return {
        "queue": len(observed.queues),
        "function": len(observed.functions),
        "schedule": len(observed.schedules or ()),
        "store": len(observed.stores),
        "timer": len(observed.timers),
        "bucket": len(observed.buckets),
    }


def _looked_at(observed: Observed) -> str:
    return ", ".join(f"{count} {name}{'s' if count > 1 else ''}" for name, count in _things(observed).items() if count)


_SIGNS: Final = {"error": ("✗", "x", "bold red"), "warning": ("!", "!", "yellow"), "note": ("·", "-", "cyan"), "unread": ("?", "?", "dim")}


def _show(found: Sequence[Finding]) -> None:
    """Each with its consequence and its fix under it."""
    console = out()
    plainly = not console.encoding.lower().startswith("utf")
    for each in found:
        sign, plain, style = _SIGNS[each.level]
        head = Text.assemble((f"{plain if plainly else sign} ", style), (one_line(each.where), "bold"), f": {one_line(each.what)}")
        console.print(head, soft_wrap=True)
        for text in (each.consequence, each.fix):
            console.print(Text(f"  {one_line(text)}", "dim"), soft_wrap=True)
