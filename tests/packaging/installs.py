"""Builds the distribution and installs it into fresh environments, offline, with the dependencies of the running one."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "cloudq": ROOT / "src/cloudq",
    "cloudq_aws": ROOT / "adapters/cloudq_aws",
    "cloudq_gcp": ROOT / "adapters/cloudq_gcp",
    "cloudq_templates": ROOT / "templates/cloudq_templates",
}
CORE_DEPENDENCIES = frozenset({"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"})


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment with cloudq installed in it, and a folder away from the checkout to run in."""

    bin: Path
    cwd: Path

    def run(self, *command: str, timeout: float = 300) -> str:
        """Run one of the environment's own commands and return what it printed; raises AssertionError with its output on failure."""
        return run(str(self.bin / command[0]), *command[1:], cwd=self.cwd, timeout=timeout)

    def python(self, code: str) -> str:
        """Run Python code in isolated mode, where neither the folder nor PYTHONPATH can lend it a module."""
        return self.run("python", "-I", "-W", "error", "-c", code)


def run(*command: str, cwd: Path, timeout: float = 300) -> str:
    """Run a command without the variables that would lead it back to the checkout."""
    environ = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{' '.join(command)} exited with {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def build_wheel(out: Path, *, from_sdist: bool = False) -> Path:
    """Build the wheel into ``out``, straight from the checkout or from a source distribution (left beside it)."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *([] if from_sdist else ["--wheel"]), str(ROOT), cwd=out)
    (wheel,) = out.glob("*.whl")
    return wheel


def install(folder: Path, *what: str, only: frozenset[str] | None = None) -> Environment:
    """Make a virtual environment in ``folder`` and install ``what`` into it (a wheel, or ``-e`` and the checkout).

    Its dependencies are those of the running environment, linked one by one: all but cloudq's own, or ``only`` these.
    """
    uv, environment, links, cwd = Path(sys.executable).parent / "uv", folder / "venv", folder / "dependencies", folder / "away"
    links.mkdir()
    cwd.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        ours = entry.name.startswith(("cloudq", "_cloudq", "__editable__")) or entry.suffix == ".pth"
        if not ours and (only is None or entry.name.removesuffix(".py") in only):
            (links / entry.name).symlink_to(entry)
    run(str(uv), "venv", "--quiet", "--offline", "--python", sys.executable, str(environment), cwd=cwd)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{links}\n")
    python = str(environment / "bin/python")
    run(str(uv), "pip", "install", "--quiet", "--offline", "--no-deps", "--no-build-isolation", "--python", python, *what, cwd=cwd)
    return Environment(bin=environment / "bin", cwd=cwd)
