"""The Makefile's own promises: it says what it can make, and what is missing on a machine without a fitting Python."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.packaging.installs import ROOT, run


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """What set-up needs of a checkout, without a virtual environment."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    return tmp_path


def test_without_a_target_make_lists_the_targets_and_sets_up_nothing(fresh: Path) -> None:
    listed = {line.split()[0] for line in run("make", cwd=fresh).splitlines()}
    assert listed >= {"demo", "test", "check", "bench-memory"}
    assert not list(fresh.glob(".venv*"))


def test_without_a_python_of_3_11_make_says_so_and_how_to_name_one(fresh: Path) -> None:
    with pytest.raises(AssertionError, match=r"needs Python 3\.11 or newer.*PYTHON=/path/to/python3"):
        run("make", "test", "PYTHON=", cwd=fresh)


def test_set_up_reruns_only_when_its_pins_change(fresh: Path) -> None:
    for stamp in (".requirements", ".installed"):
        (fresh / ".venv").mkdir(exist_ok=True)
        (fresh / ".venv" / stamp).touch()
    assert "pip install" not in run("make", "--dry-run", "setup", cwd=fresh)
    (fresh / "requirements/dev.txt").touch()
    assert "--require-hashes -r requirements/dev.txt" in run("make", "--dry-run", "setup", cwd=fresh)
