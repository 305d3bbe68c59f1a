"""Wires the commands together, and turns errors into one line and an exit code."""

from __future__ import annotations

import logging
import traceback
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from cloudq import logs
from cloudq.cli import (
    calling,
    costing,
    deploying,
    doctoring,
    following,
    graphs,
    inspecting,
    letters,
    planning,
    queues,
    schedules,
    starting,
    tasks,
    work,
)
from cloudq.cli.exits import code_of
from cloudq.cli.output import fail, out
from cloudq.cli.state import State
from cloudq.errors import CloudQError

cli = typer.Typer(
    name="cloudq",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_state = State(None)


def _version(wanted: bool) -> None:
    if wanted:
        try:
            found = version("cloudq-tasks")
        except PackageNotFoundError:
            from cloudq import __version__ as found
        out().print(f"cloudq {found}")
        raise typer.Exit


@cli.callback()
def root(
    context: typer.Context,
    app: Annotated[
        str | None, typer.Option("-A", "--app", envvar="CLOUDQ_APP", metavar="MODULE:APP", help="The app, like shop.tasks:app.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, and log everything.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,  # noqa: ARG001  # its callback does it
) -> None:
    """Background tasks on a cloud queue.

    [dim]cloudq -A shop.tasks:app dev[/]         on your machine, reloading as you edit
    [dim]cloudq -A shop.tasks:app worker[/]      in production
    [dim]cloudq -A shop.tasks:app call shop.tasks.add 1 2 --wait[/]
    [dim]cloudq -A shop.tasks:app dlq list[/]    what failed, and why

    The app can also be named by CLOUDQ_APP, or by [bold]app = "shop.tasks:app"[/] under \\[tool.cloudq] in pyproject.toml.
    """
    _state.given, _state.debug = app, debug
    context.obj = _state
    logs.configure("plain", "DEBUG" if debug else "WARNING")
    if not debug and context.invoked_subcommand != "worker":  # it warns of each try for credentials, and raises what is said in one line
        logging.getLogger("google.auth").setLevel(logging.ERROR)


cli.command()(starting.init)
cli.command()(work.worker)
cli.command()(work.dev)
cli.command(cls=calling.Call)(calling.call)
cli.command()(calling.result)
cli.command()(graphs.graph)
cli.command()(following.events)
cli.command()(planning.plan)
cli.command()(planning.iam)
cli.command()(deploying.deploy)
cli.command()(doctoring.doctor)
cli.command()(costing.cost)
cli.add_typer(queues.commands, name="queue")
cli.add_typer(letters.commands, name="dlq")
cli.add_typer(schedules.commands, name="schedule")
cli.add_typer(tasks.commands, name="task")
cli.add_typer(inspecting.commands, name="inspect")


def run() -> int:
    """Run the command line; returns the exit code (or raises SystemExit with it)."""
    try:
        cli()
    except (CloudQError, TimeoutError) as error:
        if _state.debug:
            traceback.print_exc()
        fail(str(error) or type(error).__name__)
        return code_of(error)
    return 0
