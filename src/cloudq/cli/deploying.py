"""``cloudq deploy``: what a plan needs as files, written, compared or handed over."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloudq.cli import applying
from cloudq.cli.exits import FAILED, USAGE
from cloudq.cli.output import emit, put, say
from cloudq.cli.planning import AsJSON, Stage, Target, planned, show_problems
from cloudq.cli.state import pyproject, state_of

if TYPE_CHECKING:
    from cloudq.deploy.writing import Change


def deploy(
    context: typer.Context,
    target: Target = None,
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the files go.")] = Path("infrastructure"),
    stage: Stage = "dev",
    diff: Annotated[bool, typer.Option("--diff", help="Show what would change, and write nothing.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Write nothing, and leave 1 where anything would change; for CI.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over files that were edited, too.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep edited files: what would change there is taken over, or not wanted.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Let go of queues that are planned no more, with what waits there.")] = False,
    templates: Annotated[
        Path | None, typer.Option("--templates", metavar="DIR", help="Templates of your own: each stands for the one of its name.")
    ] = None,
    package: Annotated[
        bool | None, typer.Option("--package/--no-package", help="Make the functions' zip: DIR/build/function.zip; --apply does.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Then run what applies them: sam, terraform, kubectl or docker compose.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Write the infrastructure of the app as files that are yours.

    A later run writes what has changed. A file that somebody has edited stays as it is; where it should change, too, that is said, and the
    exit code is then 1. So it is where a queue goes: what waits in it would go, too, and nothing is written without [bold]--drop[/].
    [bold]--apply[/] shows what it runs, and leaves its exit code; it alone needs an account.

    [dim]cloudq deploy aws-terraform --stage prod --out infrastructure/prod[/]
    """
    from cloudq.deploy import leaving, writing
    from cloudq.deploy.targets import also_of, folder_of, values_of
    from cloudq_templates import render

    if (diff or check) and (package or apply):
        raise typer.BadParameter("--diff and --check write nothing: leave out --package and --apply")
    if apply and as_json:
        raise typer.BadParameter("--apply gives the terminal to another program: leave out --json")
    if force and keep:
        raise typer.BadParameter("--force writes over what --keep keeps: leave out one of them")
    made, settings, problems = planned(state_of(context), target, stage)
    show_problems(problems)
    if made is None or settings is None or any(each.level == "error" for each in problems):
        raise typer.Exit(USAGE)
    values = values_of(made, settings, **_places(folder))
    whose = f"{made.name} {made.stage} for {folder_of(made.target).replace('_', '-')}"
    if templates is None and settings.templates is not None:
        templates = _project() / settings.templates
    rendered = render(folder_of(made.target), values, templates, also=also_of(made))
    before = writing.recorded(folder)
    found = writing.changes(rendered, folder, of=None if force else whose)
    # One folder of Terraform is one state, whatever stage it is written for
    known = before.of == whose or (made.target.endswith("terraform") and (before.of or "").endswith(f" for {made.target}"))
    gone = [*leaving.check(before.made if known else (), made, drop=drop)]
    show_problems(gone)
    lost = any(each.level == "error" for each in gone)
    edited = [each.name for each in found if each.step is writing.Step.EDITED] if not (force or keep) else []
    todo = applying.commands(made, settings, folder, package=package) if apply else ()
    packed = None
    if not (diff or check or lost):
        if package or (apply and package is None and not edited):
            packed = applying.package(made, settings, folder, asked=bool(package))
        writing.write(found, folder, force=force, keep=keep, of=whose, made=leaving.made(made))
    if as_json:
        files = [{"name": each.name, "step": each.step.value} for each in found]
        emit({"folder": str(folder), "files": files, **({} if packed is None else {"package": packed.document()})})
    else:
        if diff or check or not lost:
            _show_files(found, folder, diff=diff, force=force and not check, keep=keep and not check)
        if packed is not None:
            put(str(packed))
    if lost:
        raise typer.Exit(FAILED)
    if edited and not (diff or check):
        say("what was edited stays as it is: --diff shows what would change, --keep says that it shall, --force writes over it", "yellow")
        if apply:
            applying.show(todo, folder)
        raise typer.Exit(FAILED)
    if apply:
        applying.apply(todo, made, settings, folder)
    elif not (diff or check or package):
        applying.say_what_lacks(made, folder)
    if check and any(each.step not in (writing.Step.KEEP, writing.Step.YOURS) for each in found):
        raise typer.Exit(FAILED)


def _show_files(found: Sequence[Change], folder: Path, *, diff: bool, force: bool, keep: bool) -> None:
    """What is done, or would be, about each."""
    from cloudq.deploy.writing import Step

    for each in found:
        step = each.step
        if force and step in (Step.EDITED, Step.YOURS):
            step = Step.DELETE if each.wanted is None else Step.CREATE if each.there is None else Step.UPDATE
        elif keep and step is Step.EDITED:
            step = Step.YOURS
        if diff and step not in (Step.KEEP, Step.YOURS):
            put(each.diff.rstrip("\n"))
        elif step is not Step.KEEP:
            put(f"{step.value:8}{folder / each.name}")
    if all(each.step in (Step.KEEP, Step.YOURS) for each in found):
        say(f"nothing has changed in {folder}", "dim")


def _places(folder: Path) -> dict[str, str]:
    """Where ``folder`` is, as seen from the project, and where the project is, as seen from there."""
    project = _project().resolve()
    return {
        "folder": Path(os.path.relpath(folder.resolve(), project)).as_posix(),
        "project": Path(os.path.relpath(project, folder.resolve())).as_posix(),
    }


def _project() -> Path:
    """The folder of the settings."""
    file = pyproject(Path.cwd())
    return Path.cwd() if file is None else file.parent
