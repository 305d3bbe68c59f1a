"""The README, line by line: its files are written, its commands run in an empty folder, and what they print is compared.

A ``console`` block holds commands after ``$`` and what they print; ``…`` there stands for any text. A ``python`` block that begins with
``# name.py`` is that file, another one is run.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.servers import free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8").replace("timeout=10)", "timeout=60)")  # however slow the machine
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PATIENCE = 120.0
"""Seconds that one command may take."""


@dataclass
class Shell:
    """A bash in an empty folder, as a reader's terminal."""

    process: subprocess.Popen[str]
    lines: list[str]
    count: int = 0

    def run(self, command: str) -> str:
        """Run a command line to its end; returns what it printed on stdout and stderr."""
        self.count += 1
        mark, start = f"--- end of {self.count}", len(self.lines)
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\necho; echo '{mark}'\n")
        self.process.stdin.flush()
        deadline = time.monotonic() + PATIENCE
        while mark not in self.lines[start:]:
            assert time.monotonic() < deadline, f"{command!r} takes over {PATIENCE:.0f} s:\n" + "\n".join(self.lines[start:])
            time.sleep(0.01)
        return "\n".join(self.lines[start : self.lines.index(mark, start)]).strip()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CLOUDQ_", "PYTHON"))}
    env = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONDONTWRITEBYTECODE": "1",  # a cache would look like an edit to `cloudq dev`
    }
    process = subprocess.Popen(
        ["bash", "--norc"],
        cwd=tmp_path, env=env, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    made = Shell(process, [])
    assert process.stdout is not None
    output = process.stdout
    reader = threading.Thread(target=lambda: made.lines.extend(line.rstrip() for line in output), daemon=True)
    reader.start()
    try:
        yield made
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):  # bash is the leader of a group of its own: this ends what it started
            try:
                os.killpg(process.pid, number)
                process.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        process.wait(10)
        reader.join(10)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block, with what it prints."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        yield command, printed.strip()


def matches(printed: str, said: str) -> bool:
    """Whether a command printed what the README says: spaces count once, ``…`` is any text."""
    expected = ".*".join(re.escape(" ".join(part.split())) for part in said.split("…"))
    return re.fullmatch(expected.replace(r".*\ ", ".*").replace(r"\ .*", ".*"), " ".join(printed.split()), re.DOTALL) is not None


@pytest.mark.slow
def test_every_line_of_the_readme_works_in_an_empty_folder(shell: Shell, tmp_path: Path) -> None:
    port = free_port()
    ran: list[str] = []
    for kind, block in BLOCKS:
        if kind == "python":
            if name := re.match(r"# (\w+\.py)\n", block):
                (tmp_path / name[1]).write_text(block)
            else:
                assert shell.run(f"python - <<'END'\n{block}END") == "True receipt for order 19 sent to ana@example.com"
            continue
        assert kind == "console", f"what is a block of {kind}?"
        for command, said in commands(block):
            ran.append(command)
            if command.startswith("pip install "):
                extras_exist(command)
            elif command.startswith("make "):
                target_exists(command)
            elif command == "cloudq dev":
                shell.run("cloudq dev > dev.log 2>&1 &")
                until_in(tmp_path / "dev.log", "ready")
            elif command.startswith("python -m cloudq_aws.server"):
                shell.run(command.replace("9324", str(port)))
                until_in(tmp_path / "sqs.log", f"http://127.0.0.1:{port}")
            else:
                printed = shell.run(command.replace("9324", str(port)))
                assert matches(printed, said), f"$ {command}\n{printed}\n--- but the README says\n{said}"
    assert len(ran) >= 12
    redrive = re.search(r"`(cloudq dlq redrive [^`]+)`", README)
    assert redrive is not None
    shell.run(f"{redrive[1]} --yes")
    until_in(tmp_path / "dev.log", "is no address", times=2)


def test_the_code_of_getting_started_runs(shell: Shell, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/getting-started.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    (tmp_path / "tasks.py").write_text(blocks[0])
    before = "import tasks\nfrom cloudq.worker import Worker\nworker = Worker(tasks.app)\nworker.start()\n"
    after = "worker.stop()\nworker.join(60)\nprint('through')\n"
    for block in blocks[1:]:
        printed = shell.run(f"CLOUDQ_STORE=memory:// python -W error - <<'END'\n{before}{block}{after}END")
        assert printed.endswith("through"), f"{block}\n{printed}"


def test_links_and_files_that_the_pages_name_are_there() -> None:
    broken: list[str] = []
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text("utf-8")):
            if not (page.parent / unquote(target)).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_python_in_the_pages_compiles() -> None:
    blocks = [
        (page, block)
        for page in PAGES
        for block in re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    ]
    assert blocks
    for page, block in blocks:
        compile(block, str(page), "exec")


def test_the_readme_opens_with_one_sentence_and_code() -> None:
    first, then, *_ = README.split("\n\n")
    assert first.count(". ") == 0
    assert first.endswith(".")
    assert then.startswith("```python\n")


def test_every_command_option_and_make_target_that_the_pages_name_exists() -> None:
    import typer.main

    from cloudq.cli.app import cli

    named = 0
    for page in PAGES:
        text = page.read_text("utf-8")
        for line in re.findall(r"(?:`|\$ )cloudq ((?:-A|[a-z])[^`\n]*)", text):
            words, command = shlex.split(line, comments=True), typer.main.get_command(cli)
            if words[0] == "-A":
                words = words[2:]
            while words and hasattr(command, "commands"):
                name = words.pop(0)
                if name.isupper() or name == "…":  # a placeholder
                    break
                assert name in command.commands, f"{page.name}: cloudq {line}"
                command = command.commands[name]
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, f"{page.name}: cloudq {line}"
            named += 1
        for target in re.findall(r"(?:`|\$ )(make [a-z-]+)", text):
            target_exists(target)
    assert named > 20


def extras_exist(command: str) -> None:
    """A command installs what there is: our distribution with its extras."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for wanted in shlex.split(command)[2:]:
        name, _, extras = wanted.rstrip("]").partition("[")
        assert name == known["name"]
        assert set(extras.split(",")) <= set(known["optional-dependencies"])


def target_exists(command: str) -> None:
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command


def until_in(log: Path, text: str, *, times: int = 1) -> None:
    deadline = time.monotonic() + PATIENCE
    while not log.exists() or log.read_text(errors="replace").count(text) < times:
        assert time.monotonic() < deadline, f"{text!r} is not {times} times in:\n" + log.read_text()
        time.sleep(0.05)
