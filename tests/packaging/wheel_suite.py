"""Runs what of the suite needs no server on the built wheel, away from the checkout: ``python -m tests.packaging.wheel_suite``."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.packaging.installs import ROOT, build_wheel, install

PARTS: Final = (
    "unit",
    "conformance/test_memory_broker.py",
    "conformance/test_memory_store.py",
    "conformance/test_memory_timer.py",
    "conformance/test_sqlite_store.py",
)
"""Servers prove nothing more of a wheel."""
LONG: Final = "unit/test_schedules_random.py"
"""Nor does a quarter of all the time that the others take."""


def main() -> int:
    """Build, install, copy the tests away and run them; returns pytest's exit code."""
    with tempfile.TemporaryDirectory(prefix="cloudq-wheel-") as name:
        folder = Path(name)
        environment = install(folder, str(build_wheel(folder)))
        tests = environment.cwd / "tests"
        tests.mkdir()
        for file in (ROOT / "tests").glob("*.py"):
            shutil.copy(file, tests)
        for data in ("unit", "conformance", "events", "infra"):  # the parts, and what their tests read
            shutil.copytree(ROOT / "tests" / data, tests / data, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "docs", environment.cwd / "docs")  # the protocol's schema is held against real messages
        shutil.copy(ROOT / "pyproject.toml", environment.cwd)  # pytest's settings: warnings are errors here too
        where = environment.python("import cloudq; print(cloudq.__file__)").strip()
        assert Path(where).is_relative_to(folder), f"the tests would run on {where}, which is not the installed wheel"
        print(f"testing {where}", flush=True)
        pytest = [str(environment.bin / "python"), "-m", "pytest", "-q", "-n", "3", "--dist", "loadscope"]
        command = [*pytest, f"--ignore=tests/{LONG}", *(f"tests/{part}" for part in PARTS)]
        return subprocess.run(command, cwd=environment.cwd, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
