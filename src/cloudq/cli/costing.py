"""``cloudq cost``: dollars and requests a month of the plan under a stated load, with the formula of each line."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.text import Text

from cloudq.cli.exits import USAGE
from cloudq.cli.output import duration, emit, one_line, out, put, say, table
from cloudq.cli.planning import AsJSON, Stage, Target, planned, show_problems
from cloudq.cli.state import state_of
from cloudq.errors import ConfigError

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.deploy.cost import Cost, Line, Load, Prices
    from cloudq.deploy.plan import Plan
    from cloudq.deploy.settings import RunsOn, Settings
    from cloudq.deploy.settings import Target as Targets
    from cloudq.timer import Trigger


def cost(
    context: typer.Context,
    target: Target = None,
    stage: Stage = "dev",
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", metavar="[QUEUE=]N", help="Tasks a month, like 1M, 20k or 5/s: of all queues, or of one. Repeatable."),
    ] = None,
    size: Annotated[int, typer.Option("--size", min=1, metavar="BYTES", help="Of a message.")] = 1_000,
    lasting: Annotated[str, typer.Option("--duration", metavar="TIME", help="Of a task: 0.1, 2s, 5m.")] = "0.1",
    together: Annotated[
        int, typer.Option("--together", min=1, metavar="N", help="Messages that are sent at the same time; 1: each alone.")
    ] = 10,
    results: Annotated[bool, typer.Option("--results", help="Each task's result is kept, and read once.")] = False,
    delayed: Annotated[
        float, typer.Option("--delayed", min=0, max=1, metavar="SHARE", help="Of calls with a delay that the queue itself cannot keep.")
    ] = 0.0,
    free: Annotated[bool, typer.Option("--free-tier", help="Take off what an account has for nothing each month.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Beside the other hosts, of both providers.")] = False,
    prices: Annotated[
        Path | None, typer.Option("--prices", metavar="FILE", help="Prices of your own, over those that cloudq knows.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Say what the plan costs a month under a load: each line with its formula, from list prices. Asks no cloud.

    [dim]cloudq cost aws-sam --tasks 2M --duration 300ms --results[/]
    [dim]cloudq cost --tasks emails=5/s --tasks reports=1000 --compare[/]
    """
    from cloudq.deploy.cost import LEFT_OUT, Load, cost_of, read_prices, spread
    from cloudq.deploy.plan import plan_of

    state = state_of(context)
    plan, settings, problems = planned(state, target, stage)
    if plan is None or settings is None:
        show_problems(problems)
        raise typer.Exit(USAGE)
    known, app = read_prices(None if prices is None else _text(prices)), state.load()
    load = Load(
        tasks=spread(_tasks(tasks or ["1M"]), [each.name for each in plan.queues]),
        fires={name: _fires(each.trigger) for name, each in app.schedules.items()},
        size=size,
        duration=duration(lasting),
        together=together,
        results=results,
        delayed=delayed,
    )
    needed = {"store": results, "timer": delayed > 0}  # what the load asks for is there, unless settings say that it is not
    settings = settings.model_copy(update={name: True for name, asked in needed.items() if asked and getattr(settings, name) is None})
    plan = plan_of(app, settings, target=plan.target, stage=stage)
    found = cost_of(plan, settings, load, known, free=free)
    alone = cost_of(plan, settings, replace(load, together=1), known, free=free)
    others = list(_others(app, plan, settings, load, known, free=free)) if compare else []
    if as_json:
        emit(
            {
                "plan": {"name": plan.name, "stage": plan.stage, "target": plan.target},
                "load": asdict(load),
                "prices": {"date": known.date, "regions": known.regions, "free_tier": free},
                "cost": _document(found),
                "alone": {"dollars": alone.dollars, "requests": alone.requests},
                "compared": [
                    {"target": each.target, "host": each.host, "refused": each.refused, "cost": _document(each.cost)} for each in others
                ],
                "left_out": list(LEFT_OUT),
            }
        )
        return
    _show(plan, load, found)
    if compare:
        _compare(found, others)
    for note in found.notes:
        say(f"! {one_line(note)}", "yellow")
    if not found.lines:
        return
    put("")
    if together > 1:
        say(f"With each message sent and received alone (--together 1): {_dollars(alone.dollars)}, {alone.requests:,.0f} requests.", "dim")
    where = ", ".join(known.regions[each] for each in (("aws", "gcp") if compare else (plan.provider,)))
    say(f"List prices of {known.date}, {where}, {'less' if free else 'without'} the free tier{'' if free else ' (--free-tier)'}.", "dim")
    say(f"Left out: {'; '.join(LEFT_OUT)}.", "dim")


# ---------------------------------------------------------------------- the load

_NUMBER: Final = re.compile(r"(?:(?P<queue>.+)=)?(?P<number>[\d.,_]+(?:e\d+)?)(?P<factor>[kKmM]?)(?:/(?P<unit>s|min|h|day|month))?")
_FACTORS: Final = {"": 1.0, "k": 1e3, "m": 1e6}
_PER_MONTH: Final = {"s": 730 * 3600.0, "min": 730 * 60.0, "h": 730.0, "day": 730 / 24, "month": 1.0}


def _tasks(given: Sequence[str]) -> dict[str | None, float]:
    """Tasks a month by queue, ``None`` for all others."""
    found: dict[str | None, float] = {}
    for text in given:
        match = _NUMBER.fullmatch(text)
        try:
            if match is None:
                raise ValueError
            number = float(match["number"].replace(",", ""))
        except ValueError:
            raise typer.BadParameter(f"--tasks {text}: write 1000000, 1M, 20k, 5/s, 300/day, or with a queue emails=1M") from None
        if match["queue"] in found:
            raise typer.BadParameter(f"--tasks {text}: {match['queue'] or 'all queues'} had a number already")
        found[match["queue"]] = number * _FACTORS[match["factor"].lower()] * _PER_MONTH[match["unit"] or "month"]
    return found


_FIRES: Final = 1_000
_YEAR: Final = 365 * 86_400.0


def _fires(trigger: Trigger) -> float:
    """How often a schedule fires a month, by its next fires: a thousand of them, or a year's."""
    now = time.time()
    fires: list[float] = []
    while len(fires) < _FIRES:
        following = trigger.next_after(fires[-1] if fires else now)
        if following is None or following > now + _YEAR:
            return len(fires) / 12
        fires.append(following)
    return (_FIRES - 1) / (fires[-1] - fires[0]) * _PER_MONTH["s"]


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


# ---------------------------------------------------------------------- other hosts


@dataclass(frozen=True, slots=True)
class _Other:
    """The same app elsewhere: what it costs there, or why that cannot be."""

    target: str
    host: str
    cost: Cost | None
    refused: str | None


_PLACES: Final[Sequence[tuple[Targets, RunsOn]]] = (
    ("aws-sam", "function"),
    ("aws-sam", "container"),
    ("gcp-terraform", "function"),
    ("gcp-terraform", "container"),
)


def _others(app: CloudQ, plan: Plan, settings: Settings, load: Load, prices: Prices, *, free: bool) -> Iterator[_Other]:
    """Each other host on which all queues could run that anything runs now."""
    from cloudq.deploy.cost import cost_of, host_of
    from cloudq.deploy.plan import plan_of

    for target, runs_on in _PLACES:
        queues = {
            name: own.model_copy(update={"runs_on": runs_on}) if own.runs_on not in (None, "none") else own
            for name, own in settings.queues.items()
        }
        defaults = settings.defaults
        if defaults.runs_on != "none":
            defaults = defaults.model_copy(update={"runs_on": runs_on})
        moved = settings.model_copy(update={"queues": queues, "defaults": defaults})
        other = plan_of(app, moved, target=target, stage=plan.stage)
        if host_of(other) == host_of(plan):
            continue
        try:
            yield _Other(target, host_of(other), cost_of(other, moved, load, prices, free=free), None)
        except ConfigError as error:
            yield _Other(target, host_of(other), None, str(error))


# ---------------------------------------------------------------------- for people


def _document(cost: Cost | None) -> dict[str, Any] | None:
    return None if cost is None else {"dollars": cost.dollars, **asdict(cost)}


def _show(plan: Plan, load: Load, cost: Cost) -> None:
    from cloudq.deploy.cost import number

    total = Text.assemble((_dollars(cost.dollars), "bold"), f" and {cost.requests:,.0f} requests a month")
    put(Text.assemble((plan.name, "bold"), f" {plan.stage} on {plan.target}, {cost.host}: ", total))
    fires = f", and {sum(load.fires.values()):,.0f} ticks of schedules" if load.fires else ""
    tasks = f"{number(sum(load.tasks.values()))} tasks of {load.size:,} bytes and {number(load.duration)} s"
    put(Text(f"{tasks}, {load.together} at a time{fires}", "dim"))
    if not cost.lines:
        return
    shown = table("a month", "for", "why", numbers=("a month",))
    for on in dict.fromkeys(line.on for line in cost.lines):
        lines = [line for line in cost.lines if line.on == on]
        if shown.row_count:
            shown.add_row("", "", "")
        shown.add_row(Text(_dollars(sum(line.dollars for line in lines)), "bold"), Text(one_line(on) or "beside them", "bold"), "")
        for line in lines:
            shown.add_row(_dollars(line.dollars), line.what, Text(_why(line), "dim"))
    out().print(shown)


def _why(line: Line) -> str:
    """``1,000 tasks × 2 writes = 2,000 write units, at $0.625 for 1,000,000``."""
    from cloudq.deploy.cost import counted, number

    price = f"{line.unit_price:.10f}".rstrip("0").rstrip(".")
    amount = f"{number(line.quantity)} {counted(line.quantity, line.unit + 's')}"
    made = "" if line.formula == amount else f"{line.formula} = "
    less = f" - {number(line.free)} free" if line.free else ""
    return f"{made}{amount}{less}, at ${price}{'' if line.per == 1 else ' a TiB' if line.per == 1 << 40 else f' for {line.per:,.0f}'}"


def _dollars(amount: float) -> str:
    """To the cent, and smaller amounts to two digits."""
    if amount == 0 or amount >= 0.01:
        return f"${amount:,.2f}"
    return f"${amount:.{1 - math.floor(math.log10(amount))}f}"


def _compare(own: Cost, others: Sequence[_Other]) -> None:
    """The cheapest first, and last what cannot be."""
    rows = [own, *(each.cost for each in others if each.cost is not None)]
    shown = table("a month", "requests", "on", "why", numbers=("a month", "requests"))
    for cost in sorted(rows, key=lambda each: each.dollars):
        more = "; ".join(one_line(note) for note in cost.notes if note not in own.notes)
        shown.add_row(_dollars(cost.dollars), f"{cost.requests:,.0f}", Text(cost.host, "bold" if cost is own else ""), Text(more))
    for each in others:
        if each.refused is not None:
            shown.add_row("–", "–", each.host, Text(one_line(each.refused)))
    shown.columns[2].no_wrap = False
    out().print("")
    out().print(shown)
