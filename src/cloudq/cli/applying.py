"""``cloudq deploy --package`` and ``--apply``: what they show and ask."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cloudq.cli.output import err, public_url, put, say
from cloudq.cli.state import pyproject
from cloudq.errors import ConfigError

if TYPE_CHECKING:
    from cloudq.deploy.applying import Command
    from cloudq.deploy.packaging import Package
    from cloudq.deploy.plan import Plan
    from cloudq.deploy.settings import Settings


def package(plan: Plan, settings: Settings, folder: Path, *, asked: bool) -> Package | None:
    """Make the functions' package of the project of this directory; unless it was ``asked`` for, only where the plan needs one."""
    from cloudq.deploy import packaging

    if not asked and not packaging.is_needed(plan):
        return None
    packaging.refuse(plan)
    path = pyproject(Path.cwd())
    say(f"making the package for Python {settings.python} on {settings.architecture}", "dim")
    with err().status("installing what it needs"):
        return packaging.package(plan, settings, Path.cwd() if path is None else path.parent, folder)


def commands(plan: Plan, settings: Settings, folder: Path, *, package: bool | None) -> Sequence[Command]:
    """What will apply the files; raises ConfigError where something is missing for that, before anything is written."""
    from cloudq.deploy import applying, packaging

    if packaging.is_needed(plan) and package is False and not (folder / packaging.PLACE).is_file():
        raise ConfigError(f"the functions have no package, there is no {folder / packaging.PLACE}: leave out --no-package")
    return applying.commands(plan, settings)


def say_what_lacks(plan: Plan, folder: Path) -> None:
    """Where the files name a package that is not there yet."""
    from cloudq.deploy import packaging

    if packaging.is_needed(plan) and not (folder / packaging.PLACE).is_file():
        say(f"what the functions run, {folder / packaging.PLACE}, is still to be made: --package", "yellow")


def show(todo: Sequence[Command], folder: Path) -> None:
    """The commands, where edits were left: what is there is not what was planned, and may be just what its author wants."""
    from cloudq.deploy.applying import text

    say("so nothing is applied; where it is as you want it, run this yourself:", "yellow")
    put(text(todo, folder))


def apply(todo: Sequence[Command], plan: Plan, settings: Settings, folder: Path) -> None:
    """Run the commands; raises Exit with the code of one that failed."""
    from cloudq.deploy import applying, aws_sam

    sys.stdout.flush()
    if plan.target in ("aws-sam", "aws-cloudformation") and (asked := aws_sam.asked(plan, settings)):
        what = "set image under [tool.cloudq], subnets and security_groups under [tool.cloudq.aws]"
        say(f"a stack that is new asks for its containers' {' '.join(asked)}: {what}, or make it by --parameter-overrides", "yellow")
    elsewhere = os.environ.get("AWS_ENDPOINT_URL")
    if elsewhere and todo and todo[0].words[0] in ("sam", "aws", "terraform"):
        say(f"AWS_ENDPOINT_URL is set, so this goes to {public_url(elsewhere)} and not to AWS", "yellow")  # `source local.env` does that
    if code := applying.apply(todo, folder, show=lambda line: say(line, "bold"), confirm=lambda text: typer.confirm(text, err=True)):
        raise typer.Exit(code)
