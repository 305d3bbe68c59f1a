"""Hands written files over to the ecosystem's own tool: which commands, for which target, and running them in the files' folder."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cloudq.deploy.leaving import WORKER, workers
from cloudq.deploy.packaging import PLACE
from cloudq.deploy.plan import Plan
from cloudq.deploy.settings import Settings
from cloudq.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Command:
    """One command, to be run in the folder of the files."""

    words: tuple[str, ...]
    kind: Literal["prepares", "compares", "finds", "asks", "applies"]
    """``compares``: its exit code is 0 where nothing would change, 1 where something would; where nothing would, the next command is left
    out. ``finds``: it writes what the next one is for, which is left out where that is nothing. ``asks``: it applies once it has been told
    to, by itself. ``applies``: it does so at once, so that somebody else must have asked.
    """

    def __str__(self) -> str:
        return shlex.join(self.words)


def commands(plan: Plan, settings: Settings) -> Sequence[Command]:
    """What applies the files of a plan, in order. Raises ConfigError where the tool is not installed, and says how it comes."""
    match plan.target:
        case "aws-sam" if shutil.which("sam") is not None or shutil.which("aws") is None:
            _need("sam", "pip install aws-sam-cli")
            return (Command(("sam", "deploy"), "asks"),)  # samconfig.toml says the rest, and that it asks
        case "aws-sam" | "aws-cloudformation":
            _need("aws", "https://docs.aws.amazon.com/cli/latest/userguide/getting-started-install.html")
            return _cloudformation(plan, settings)
        case "aws-terraform" | "gcp-terraform":
            _need("terraform", "https://developer.hashicorp.com/terraform/install")
            return (Command(("terraform", "init"), "prepares"), Command(("terraform", "apply"), "asks"))
        case "kubernetes":
            _need("kubectl", "https://kubernetes.io/docs/tasks/tools/")
            return (
                Command(("kubectl", "diff", "-k", "."), "compares"),
                Command(("kubectl", "apply", "-k", "."), "applies"),
                *_forgotten(plan),
            )
        case "compose":
            _need("docker", "https://docs.docker.com/engine/install/")
            # Here, and as soon undone: nobody need ask
            return (Command(("docker", "compose", "up", "--build", "--detach", "--remove-orphans"), "prepares"),)


def _forgotten(plan: Plan) -> Sequence[Command]:
    """Workers of queues that the plan has no more: kubectl knows only of what is in the files."""
    which = f" notin ({','.join(each.name for each in plan.containers)})" if plan.containers else ""
    where = ("--namespace", f"{plan.name}-{plan.stage}", "--selector", workers(plan, which))
    return (
        Command(("kubectl", "get", WORKER, *where, "--output", "name"), "finds"),
        Command(("kubectl", "delete", WORKER, *where), "applies"),
    )


def _cloudformation(plan: Plan, settings: Settings) -> Sequence[Command]:
    """By the AWS CLI, which packs nothing without a bucket, and asks nobody."""
    region = () if settings.aws.region is None else ("--region", settings.aws.region)
    bucket = () if settings.aws.artifacts is None else ("--s3-bucket", settings.aws.artifacts)
    template, packs = "template.yaml", list[Command]()
    if plan.functions:
        if not bucket:
            what = " or pip install aws-sam-cli, which makes one" if plan.target == "aws-sam" else ""
            raise ConfigError(f"the functions' package needs a bucket: set artifacts under [tool.cloudq.aws]{what}")
        packed = str(PLACE.with_name("packaged.yaml"))
        words = ("aws", "cloudformation", "package", "--template-file", template, "--output-template-file", packed, *bucket, *region)
        template, packs = packed, [Command(words, "prepares")]
    options = ("--capabilities", "CAPABILITY_NAMED_IAM", "--no-fail-on-empty-changeset")
    stack = ("--stack-name", f"{plan.name}-{plan.stage}")
    deploy = ("aws", "cloudformation", "deploy", "--template-file", template, *stack, *bucket, *region, *options)
    return (*packs, Command(deploy, "applies"))


def _need(tool: str, where: str) -> None:
    if shutil.which(tool) is None:
        raise ConfigError(f"{tool} is not installed: {where}")


def apply(todo: Sequence[Command], folder: Path, *, show: Callable[[str], None], confirm: Callable[[str], bool]) -> int:
    """Run the commands in ``folder`` until one fails, each shown first, with this process's terminal; returns the last exit code.

    ``confirm`` is asked before what would not ask by itself. Where it says no, nothing is applied, and the code is 1. Ctrl-C is the
    tool's, which ends as it must and not in the middle. To be called on the main thread.
    """
    show(f"$ cd {shlex.quote(str(folder))}")
    rest = iter(todo)
    for command in rest:
        if command.kind == "applies" and not confirm(f"run {command}?"):
            return 1
        show(f"$ {command}")
        if command.kind == "finds":
            code, found = _found(command, folder)
            if found:
                show(found)
            elif code == 0:
                next(rest)
        else:
            code = _run(command, folder)
        if command.kind == "compares" and code == 0:
            show("nothing would change")
            next(rest)
        # What cannot be compared, as its namespace is still to come, can be applied: that is asked next.
        if code < 0 or (code > 0 and command.kind != "compares"):
            return code if code > 0 else 128 - code
    return 0


def text(todo: Sequence[Command], folder: Path) -> str:
    """The commands as a shell takes them."""
    return "\n".join([f"cd {shlex.quote(str(folder))}", *map(str, todo)])


def _leave_it_to_the_tool(number: int, frame: object) -> None:
    """A handler, and not SIG_IGN, which the tool would inherit."""


def _found(command: Command, folder: Path) -> tuple[int, str]:
    done = subprocess.run(command.words, cwd=folder, check=False, stdout=subprocess.PIPE, text=True, errors="replace")
    return done.returncode, done.stdout.strip()


def _run(command: Command, folder: Path) -> int:
    before = signal.signal(signal.SIGINT, _leave_it_to_the_tool)
    try:
        return subprocess.run(command.words, cwd=folder, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
