"""Python environments of their own for what the suite runs and must not share its packages with: made once for each set of pins."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from tests.servers import CACHE, missing

_PINS = Path(__file__).parents[1] / "requirements"


def python_of(name: str) -> Path:
    """The interpreter of an environment that holds what ``requirements/NAME.txt`` pins; skips, or fails, where it cannot be installed."""
    pins = _PINS / f"{name}.txt"
    home = CACHE / f"{name}-{sha256(pins.read_bytes()).hexdigest()[:12]}-{sys.implementation.cache_tag}"
    python, complete = home / "bin" / "python", home / "complete"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (complete.exists() and python.exists()):  # the second is a link, which a removed Python breaks
            _run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(home))
            what = ["install", "--quiet", "--no-deps", "--require-hashes", "--requirement", str(pins)]
            # uv is six times as quick; pip may know an index that uv does not.
            if _run(sys.executable, "-m", "uv", "pip", *what, "--python", str(python)):
                failed = _run(sys.executable, "-m", "pip", "--python", str(python), *what, "--no-compile", "--retries", "1")
                if failed:
                    missing(name, f"'pip {' '.join(what)}' failed: {failed[-500:]}")
            complete.touch()
    return python


def _run(*command: str) -> str:
    """Run it; returns what it wrote if it failed, else nothing."""
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500, check=False)
    return ran.stderr or f"exit code {ran.returncode}" if ran.returncode else ""
