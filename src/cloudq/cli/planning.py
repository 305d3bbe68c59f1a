"""``cloudq plan`` and ``iam``: what an app needs of a platform, with everything that is wrong with it, as other commands begin with it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.table import Table
from rich.text import Text

from cloudq.cli.exits import USAGE
from cloudq.cli.output import card, emit, err, one_line, out, say, table
from cloudq.cli.state import State, pyproject, state_of
from cloudq.errors import ConfigError

if TYPE_CHECKING:
    from cloudq.deploy.plan import FunctionPlan, Plan
    from cloudq.deploy.problems import Problem
    from cloudq.deploy.settings import Settings

AsJSON = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Target = Annotated[
    str | None,
    typer.Argument(
        metavar="TARGET",
        help="aws-sam, aws-cloudformation, aws-terraform, gcp-terraform, kubernetes or compose; else what the settings say.",
    ),
]
Stage = Annotated[str, typer.Option("--stage", help="The stage, one of \\[tool.cloudq.stages].")]


def plan(context: typer.Context, target: Target = None, stage: Stage = "dev", as_json: AsJSON = False) -> None:
    """Show what is to be there for the app: queues, what runs them, schedules, alarms, roles. Writes nothing, and asks no cloud.

    It is made of the code and of \\[tool.cloudq] in pyproject.toml, and held against the target's limits. Where something is wrong, all of
    it is shown, each with its fix, and the exit code is 2.

    [dim]cloudq plan aws-sam --stage prod[/]
    """
    made, settings, problems = planned(state_of(context), target, stage)
    errors = [each for each in problems if each.level == "error"]
    if as_json:
        emit({"plan": None if made is None else made.document(), "problems": [_document(each) for each in problems]})
    else:
        if made is not None and settings is not None:
            _show(made, settings)
        show_problems(problems)
    if errors:
        raise typer.Exit(USAGE)


def iam(
    context: typer.Context,
    role: Annotated[str | None, typer.Argument(help="Only this role: producer, operator, scheduler, or what runs a queue.")] = None,
    stage: Stage = "dev",
    account: Annotated[
        str | None, typer.Option("--account", metavar="ID", help="The AWS account's 12 digits, if the settings have none.")
    ] = None,
    region: Annotated[str | None, typer.Option("--region", help="The region, if the settings name none.")] = None,
) -> None:
    """Print the IAM policy of each role of the plan: what its host does, on this app's queues, table and schedules, and nothing else.

    What cloudq deploys has these roles anyway. Print them for what it does not deploy: [bold]producer[/] for a web application that calls
    tasks, [bold]operator[/] for a person at the command line. For Google Cloud: service accounts, and their IAM roles on single resources.

    [dim]cloudq iam producer --stage prod --account 123456789012[/]
    """
    from cloudq.deploy import aws_iam, gcp_terraform
    from cloudq.deploy.problems import Problem, Refused, nearest

    if account is not None and not (len(account) == 12 and account.isascii() and account.isdigit()):
        raise typer.BadParameter("an AWS account has 12 digits")
    if region is not None and not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", region):
        raise typer.BadParameter("no AWS region has this name; write one like eu-west-1")
    made, settings, problems = planned(state_of(context), None, stage, in_cloud=True)
    if errors := [each for each in problems if each.level == "error"]:
        show_problems(errors)
        raise typer.Exit(USAGE)
    assert made is not None and settings is not None
    names = {each.name: each for each in made.roles}
    google = gcp_terraform.policies(made, settings) if made.provider == "gcp" else {}
    if role is not None and role not in (google or names):
        raise Refused([Problem(f"role {role!r}", "the plan has none of this name", nearest(role, google or names))])
    if google:
        emit(google if role is None else {role: google[role]})
        return
    found = region or settings.aws.region or "REGION"
    account = account or settings.aws.account or "ACCOUNT"
    place = aws_iam.Place(region=found, account=account, partition=aws_iam.partition_of(found), kms_key=settings.aws.kms_key)
    chosen = [names[role]] if role is not None else list(made.roles)
    emit({each.name: {"trust": aws_iam.trust(each, made, place), "policy": aws_iam.policy(each, made, place)} for each in chosen})
    for word, option in (("ACCOUNT", "--account"), ("REGION", "--region")):
        if word in (account, found):
            say(f"{word} stands for yours: give it by {option}", "dim")


def planned(
    state: State, target: str | None, stage: str, *, in_cloud: bool = False
) -> tuple[Plan | None, Settings | None, Sequence[Problem]]:
    """The plan of the app, its settings, and what is wrong; nothing of the first two where they cannot be read. Raises ConfigError.

    ``in_cloud``: it must be a cloud's; AWS where the settings name none.
    """
    from cloudq.deploy import checks
    from cloudq.deploy.plan import plan_of
    from cloudq.deploy.problems import Problem, Refused, nearest
    from cloudq.deploy.settings import Target as Targets
    from cloudq.deploy.settings import parse, read

    path = pyproject(Path.cwd())
    try:
        settings: Settings = parse({}, stage) if path is None else read(path, stage)
    except Refused as error:
        return None, None, error.problems
    chosen = target or settings.target
    if in_cloud and chosen in (None, "compose"):
        chosen = "aws-sam"
    if chosen is None:
        raise ConfigError(f"which target? one of {', '.join(get_args(Targets))}: cloudq plan aws-sam, or target = … under [tool.cloudq]")
    known: dict[str, Targets] = {each: each for each in get_args(Targets)}
    if chosen not in known:
        return None, None, [Problem(f"target {chosen!r}", "there is no such target", nearest(chosen, known))]
    made = plan_of(state.load(), settings, target=known[chosen], stage=stage)
    return made, settings, (*checks.check(made, settings), *_left_here(made, settings))


def _left_here(plan: Plan, settings: Settings) -> Iterable[Problem]:
    """What works on this machine by its environment, and would not once deployed."""
    from cloudq.deploy.problems import Problem

    for seam, planned, said in (("store", plan.store, settings.store), ("timer", plan.timer, settings.timer)):
        variable = f"CLOUDQ_{seam.upper()}"
        if os.environ.get(variable) and planned is None and said is None and plan.provider != "local":
            what = f"it is set here, and nothing like it is deployed: the plan has no {seam}"
            yield Problem(variable, what, f"set {seam} = true under [tool.cloudq], or false if that is meant", "warning")


def show_problems(problems: Sequence[Problem]) -> None:
    """Each with its fix under it, on stderr."""
    console = err()
    for each in problems:
        sign, style = ("✗", "bold red") if each.level == "error" else ("!", "yellow")
        if not console.encoding.lower().startswith("utf"):
            sign = "x" if each.level == "error" else "!"
        console.print(Text.assemble((f"{sign} ", style), (one_line(each.where), "bold"), f": {one_line(each.what)}"), soft_wrap=True)
        console.print(Text(f"  {one_line(each.fix)}", "dim"), soft_wrap=True)
    errors = sum(each.level == "error" for each in problems)
    if errors:
        say(f"{errors} problem{'s' if errors > 1 else ''} to solve before it can be deployed", "bold red")


def _document(problem: Problem) -> dict[str, str]:
    return {"level": problem.level, "where": problem.where, "what": problem.what, "fix": problem.fix}


# ---------------------------------------------------------------------- for people


def _show(plan: Plan, settings: Settings) -> None:
    from cloudq.deploy.plan import in_pods
    from cloudq.durations import text

    head = Text.assemble((plan.name, "bold"), f" {plan.stage} on {plan.target}", (f"  {plan.reference or ''}", "dim"))
    out().print(head)
    if plan.prefix:
        out().print(Text(f"names of queues begin with {one_line(plan.prefix)}", "dim"))
    if plan.target == "kubernetes":
        maker = "aws-terraform or aws-sam" if plan.provider == "aws" else "gcp-terraform"
        out().print(Text(f"queues and all that is beside them are made by {maker}; what runs them is made here", "dim"))
    runs = {each.queue: f"function, {each.memory} MB, {text(each.timeout)}, {_at_once(each, plan)}" for each in plan.functions}
    fixed = plan.target in ("gcp-terraform", "compose")  # there nothing scales them by the backlog
    for each in plan.containers:
        count = str(each.min_workers) if fixed else f"{each.min_workers} to {each.max_workers}"
        runs[each.queue] = f"{count} containers, {each.cpu:g} vCPU, {each.memory} MB"
    runs |= {each.name: "pods of Kubernetes" for each in plan.queues if in_pods(settings, plan.target, each.name)}
    shown = table(
        *("queue", "tasks", "runs on", "hidden", "kept", "receives", "dead letters"),
        numbers=("tasks", "receives"),
        folds=("queue", "runs on", "dead letters"),
    )
    for queue in plan.queues:
        shown.add_row(
            Text(one_line(_own(queue.name, queue.resource, plan)), "bold") + (" (there already)" if queue.existing else ""),
            str(len(queue.tasks)),
            Text(runs.get(queue.name, "nothing"), "" if queue.name in runs else "yellow"),
            text(queue.visibility),
            text(queue.retention),
            str(queue.max_receives),
            Text(one_line(_own(queue.dead_letters.name, queue.dead_letters.resource, plan))),
        )
    _section("Queues", shown, plan.queues)
    shown = table("schedule", "when", "as", "task", "queue", folds=("schedule", "when", "as"))
    for schedule in plan.schedules:
        said = Text("\n".join(f"{each.expression} {each.timezone}" for each in schedule.parts))
        if not said:
            said = Text("cannot be said", "red") if schedule.refused or plan.provider != "local" else Text("by a worker here")
        names = (Text(one_line(each)) for each in (schedule.task, schedule.queue))
        shown.add_row(Text(one_line(schedule.name), "bold"), schedule.trigger, said, *names)
    _section("Schedules", shown, plan.schedules)
    beside = {
        "store": None if plan.store is None else f"{plan.store.resource}: {one_line(plan.store.why)}",
        "timer": None if plan.timer is None else f"{plan.timer.resource}: {one_line('; '.join(plan.timer.why))}",
        "bodies": None if plan.bodies is None else f"{plan.bodies.resource}, each for {plan.bodies.days} days",
    }
    _section("Beside them", card(dict(beside)), [each for each in beside.values() if each])
    shown = table("role", "for", "may", folds=("role", "may"))
    for role in plan.roles:
        may = "\n".join(f"{grant.action} {one_line(', '.join(grant.on))}" for grant in role.grants)
        shown.add_row(Text(role.name, "bold"), role.purpose, Text(may))
    _section("Roles", shown, plan.roles)
    shown = table("alarm", "on", "above", numbers=("above",), folds=("on",))
    for alarm in plan.alarms:
        shown.add_row(alarm.kind, Text(one_line(alarm.on)), text(alarm.above) if alarm.kind == "age" else str(alarm.above))
    _section("Alarms", shown, plan.alarms)


def _at_once(function: FunctionPlan, plan: Plan) -> str:
    """How many messages a function has: Pub/Sub pushes one at a time, and several are several pushes."""
    return f"{function.concurrency} at once" if plan.provider == "gcp" else f"batch {function.batch_size}"


def _own(name: str, resource: str, plan: Plan) -> str:
    """A queue's name as the code has it, where what it is called at the provider is that behind the prefix."""
    return name if resource == plan.prefix + name else resource


def _section(title: str, shown: Table, of: Iterable[object]) -> None:
    if any(True for _ in of):
        out().print(Text.assemble("\n", (title, "bold underline")))
        out().print(shown)
