"""What is tracked can be published: no path of somebody's machine, no package registry, no file that pins download addresses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.installs import ROOT

LOCK_FILES = {"uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "package-lock.json", "yarn.lock", "pnpm-lock.yaml", "pylock.toml"}
INDEX_OPTIONS = re.compile(r"^\s*(--(extra-)?index-url|--default-index|--find-links|--trusted-host|-i |-f )", re.MULTILINE)


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Files that git tracks or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: nothing is tracked")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def holding(files: list[Path], pattern: re.Pattern[str]) -> Iterator[str]:
    for file in files:
        if found := pattern.search(file.read_text(encoding="utf-8", errors="replace")):
            yield f"{file.relative_to(ROOT)}: {found.group()}"


def test_no_tracked_file_holds_a_path_of_somebodys_machine(tracked: list[Path]) -> None:
    here = [re.escape(str(path)) for path in (ROOT, Path.home()) if len(path.parts) > 2]
    homes = [r"/home/[a-z][\w.-]*/", r"/Users/[A-Za-z][\w.-]*/", r"/root/\."]
    pattern = re.compile(rf"(?<![\w.]){'|'.join([*here, *homes])}")
    assert not list(holding([file for file in tracked if file != Path(__file__)], pattern))


def test_no_tracked_file_names_a_package_registry(tracked: list[Path]) -> None:
    asked = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False).stdout
    settings = [asked, *(value for name, value in os.environ.items() if name.lower().startswith(("pip_", "uv_", "npm_config_")))]
    configured = {found["host"] for setting in settings for found in re.finditer(r"https?://([^/\s]*@)?(?P<host>[\w.-]+)", setting)}
    public = {f"{name}.org" for name in ("pypi", "files.pythonhosted", "registry.npmjs")}
    hosts = (configured | public) - {"localhost", "127.0.0.1"}
    assert not list(holding(tracked, re.compile("|".join(map(re.escape, sorted(hosts))))))


def test_requirements_hold_names_versions_and_hashes_only(tracked: list[Path]) -> None:
    requirements = [file for file in tracked if file.parent == ROOT / "requirements"]
    assert requirements
    assert not list(holding(requirements, re.compile(r"\w+://|@ |^-e ", re.MULTILINE)))
    assert not list(holding(requirements, INDEX_OPTIONS))


def test_no_lock_file_is_tracked(tracked: list[Path]) -> None:
    assert not [str(file.relative_to(ROOT)) for file in tracked if file.name in LOCK_FILES]
