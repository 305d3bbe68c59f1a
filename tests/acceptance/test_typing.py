"""User code is typed: mypy --strict and basedpyright strict accept what is right, and find a wrong call."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import pytest

SAMPLES = Path(__file__).parents[1] / "typing"

Errors: TypeAlias = dict[tuple[str, int], str]
"""What a checker said, by file and line."""


def _mypy(folder: Path) -> Errors:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={folder}", "--no-error-summary", "--no-pretty"]
    ran = subprocess.run([*command, *_samples()], capture_output=True, text=True, cwd=folder, timeout=500)
    assert not ran.stderr, ran.stderr
    found = re.findall(r"^(?:.*[/\\])?(\w+\.py):(\d+): error: (.*)$", ran.stdout, re.MULTILINE)
    assert ran.returncode == (1 if found else 0), ran.stdout
    return {(file, int(line)): text for file, line, text in found}


def _basedpyright(folder: Path) -> Errors:
    config = {"include": _samples(), "typeCheckingMode": "strict", "pythonVersion": "3.11"}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "basedpyright", "-p", str(folder), "--pythonpath", sys.executable, "--outputjson"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=500)
    report = json.loads(ran.stdout)
    assert report["summary"]["filesAnalyzed"] == len(_samples()), ran.stdout
    return {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1): each["message"]
        for each in report["generalDiagnostics"]
        if each["severity"] in ("error", "warning")
    }


def _samples() -> list[str]:
    return [str(path) for path in sorted(SAMPLES.glob("*.py"))]


def _refused() -> set[tuple[str, int]]:
    lines = (SAMPLES / "refused.py").read_text().splitlines()
    return {("refused.py", number) for number, line in enumerate(lines, 1) if line.endswith("# refused")}


@pytest.mark.parametrize("check", [_mypy, _basedpyright], ids=["mypy", "basedpyright"])
def test_right_code_passes_strictly_and_each_wrong_call_is_an_error(check: Callable[[Path], Errors], tmp_path: Path) -> None:
    assert find_spec(check.__name__.strip("_")) is not None, "it is among the development requirements"
    found, refused = check(tmp_path), _refused()
    assert len(refused) > 20
    assert not {place: text for place, text in found.items() if place not in refused}
    assert not refused - found.keys()
