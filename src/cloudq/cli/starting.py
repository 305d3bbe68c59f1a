"""``cloudq init``: a new project that runs at once and deploys; it asks what it must, and writes over nothing."""

from __future__ import annotations

import keyword
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, get_args

import typer

from cloudq.cli.output import put, say
from cloudq.errors import ConfigError

_RESERVED: Final = frozenset(
    {"tests", "test", "package", "tasks", "infrastructure", "cloudq", "cloudq_aws", "cloudq_gcp", "cloudq_templates"}
)
"""Packages that there are, or folders of a project."""

_WHERE: Final = {"aws": "AWS", "gcp": "Google Cloud", "kubernetes": "Kubernetes", "compose": "a server of yours"}
"""By the first word of a target."""


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The project's folder; it is made where it is not there.")] = Path(),
    name: Annotated[str | None, typer.Option("--name", help="The project's name; else the folder's.")] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="TARGET", help="aws-sam, aws-cloudformation, aws-terraform, gcp-terraform, kubernetes, compose."),
    ] = None,
    region: Annotated[str | None, typer.Option("--region", help="The provider's region.")] = None,
    project: Annotated[str | None, typer.Option("--project", help="Of Google Cloud; Kubernetes then uses Google's queues.")] = None,
    account: Annotated[str | None, typer.Option("--account", metavar="ID", help="The AWS account's 12 digits, for Kubernetes.")] = None,
    image: Annotated[
        str | None, typer.Option("--image", help="Which image containers are made of; else one in the provider's registry.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also where some of the files are there: they stay as they are, the others are written.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take what is given, and what is usual.")] = False,
) -> None:
    """Begin a project: a task, its test, and settings with which it runs here and is deployed. No file is written over.

    [dim]cloudq init shop[/]
    [dim]cloudq init shop --target gcp-terraform --project my-project --yes[/]
    """
    from cloudq.deploy.settings import Target
    from cloudq_templates import SUFFIX, render, sources

    ask = None if yes or not sys.stdin.isatty() else _ask
    proposed = _proposed(folder)
    name = _given(name, "name", "Name of the project", proposed, _name, ask)
    package = name.replace("-", "_")
    paths = {"package/init.py": f"{package}/__init__.py", "package/tasks.py": f"{package}/tasks.py"}  # a template's own name is its path
    names = [each.removesuffix(SUFFIX) for each in sources(["init"])]
    kept = _there([paths.get(each, each) for each in names], folder, force=force)  # said before anything more is asked
    target = _given(target, "target", f"Where it is deployed ({', '.join(get_args(Target))})", "aws-sam", _one_of(get_args(Target)), ask)
    provider, places = _places(target, name, region=region, project=project, account=account, image=image, ask=ask)
    values = {"name": name, "package": package, "target": target, "provider": provider, "where": _WHERE[target.partition("-")[0]], **places}
    files = {paths.get(each, each): text for each, text in render("init", values).items()}
    _write({each: text for each, text in files.items() if each not in kept}, folder)
    for each in sorted(files):
        put(f"{'kept' if each in kept else 'create':8}{folder / each}")
    if "pyproject.toml" in kept:
        say(f'pyproject.toml stays as it is: under [tool.cloudq] it needs app = "{package}.tasks:app" and target = "{target}"', "yellow")
    _say_next(folder, package)


# ---------------------------------------------------------------------- what is asked

Check = Callable[[str], str | None]
"""Says what is wrong with an answer, or ``None``."""


def _given(value: str | None, option: str, question: str, usual: str | None, check: Check, ask: Callable[..., str] | None) -> str:
    """What the option says, or the answer, or what is usual; raises BadParameter where that is not good."""
    if value is None and ask is not None:
        return ask(question, usual, check)
    found = usual if value is None else value
    if found is None:
        raise typer.BadParameter(f"{question.partition(' (')[0]} is not said, and nobody is there to be asked", param_hint=f"--{option}")
    if (wrong := check(found)) is not None:
        raise typer.BadParameter(wrong, param_hint=f"--{option}")
    return found


def _ask(question: str, usual: str | None, check: Check) -> str:
    while True:
        answer: str = typer.prompt(question, default=usual, err=True)
        if (wrong := check(answer)) is None:
            return answer
        say(wrong, "yellow")


def _proposed(folder: Path) -> str | None:
    """A name after the folder's, if one can be made of it."""
    found = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")
    return found if _name(found) is None else None


def _name(name: str) -> str | None:
    package = name.replace("-", "_")
    if not re.fullmatch(r"[a-z](-?[a-z0-9])*", name) or len(name) > 30:
        return f"{name!r} cannot be the name: 1 to 30 lower-case letters, digits and single -, a letter first and no - at the end"
    if keyword.iskeyword(package) or keyword.issoftkeyword(package) or package in sys.stdlib_module_names or package in _RESERVED:
        return f"{name!r} cannot be the name: Python has a module or a word {package!r}, or the project has a folder so named"
    return None


def _one_of(known: Sequence[str]) -> Check:
    from cloudq.deploy.problems import nearest

    return lambda answer: None if answer in known else f"there is no target {answer!r}: {nearest(answer, known)}"


def _matching(pattern: str, wrong: str) -> Check:
    return lambda answer: None if re.fullmatch(pattern, answer) else f"{answer!r} is {wrong}"


def _places(target: str, name: str, *, ask: Callable[..., str] | None, **given: str | None) -> tuple[str, Mapping[str, Any]]:
    """The provider, and where at it: what the target's checks ask for."""
    google = target == "gcp-terraform" or (target == "kubernetes" and given["project"] is not None)
    places: dict[str, Any] = dict.fromkeys(given)
    if google:
        is_project = _matching(r"[a-z][a-z0-9-]{4,28}[a-z0-9]", "no Google Cloud project: 6 to 30 lower-case letters, digits and -")
        places["project"] = _given(given["project"], "project", "Google Cloud project (its id)", None, is_project, ask)
    if target != "compose":
        usual = "us-central1" if google else os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        pattern = r"[a-z]+-[a-z]+\d+" if google else r"[a-z]{2}(-[a-z]+)+-\d"
        is_region = _matching(pattern, f"no region; write one like {'europe-west1' if google else 'eu-west-1'}")
        places["region"] = _given(given["region"], "region", "Region", usual, is_region, ask)
    if target == "kubernetes" and not google:
        is_account = _matching(r"[0-9]{12}", "no AWS account: it has 12 digits")
        places["account"] = _given(given["account"], "account", "AWS account (whose queues it uses)", None, is_account, ask)
    if target in ("gcp-terraform", "kubernetes"):
        artifacts, ecr = "{region}-docker.pkg.dev/{project}/{name}/{name}:0.1.0", "{account}.dkr.ecr.{region}.amazonaws.com/{name}:0.1.0"
        usual = (artifacts if google else ecr).format(name=name, **places)
        is_image = _matching(r"[a-z0-9][A-Za-z0-9._/:@-]*", "no image; write one like registry.example.com/shop:1")
        places["image"] = _given(given["image"], "image", "Image (that is pulled)", usual, is_image, ask)
    for option, value in given.items():
        if value is not None and places[option] is None:
            raise typer.BadParameter(f"{target} has no use for it", param_hint=f"--{option}")
    return ("gcp" if google else "aws"), places


# ---------------------------------------------------------------------- files


def _there(names: Iterable[str], folder: Path, *, force: bool) -> set[str]:
    """Those that are there already; raises ConfigError where there are any, without ``force``."""
    there = {name for name in names if os.path.lexists(folder / name)}
    if there and not force:
        said = ", ".join(sorted(there))
        raise ConfigError(f"{folder} has files of these names already: {said}; --force leaves them as they are and writes the others")
    return there


def _write(files: Mapping[str, str], folder: Path) -> None:
    try:
        for name, text in sorted(files.items()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("x", encoding="utf-8", newline="\n") as file:  # never over what came meanwhile
                file.write(text)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}") from error


def _say_next(folder: Path, package: str) -> None:
    """The commands that come next, which work as they stand."""
    steps = [] if folder.resolve() == Path.cwd() else [f"cd {shlex.quote(str(folder))}"]
    if find_spec("pytest") is None:
        steps.append("python -m pip install pytest")
    steps += [
        "python -m pytest",
        "CLOUDQ_STORE=sqlite:///results.sqlite3 cloudq dev --sqs-port 9324",
        f"source local.env && cloudq call {package}.tasks.welcome Ana --wait      # in another terminal, in the same folder",
        "cloudq plan",
    ]
    say("\nNext:", "bold")
    for step in steps:
        say(f"  {step}")
