"""Runs this same command in a child process, and starts it anew when a source file changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from cloudq.cli.output import say
from cloudq.errors import ConfigError

_CHILD: Final = "CLOUDQ_RELOADED"
"""Set in the child: how often it has been started before."""
_PATIENCE: Final = 5.0
"""Seconds beyond its grace after which a child that does not end is killed."""


def generation() -> int | None:
    """How often the child was started before, in a child; ``None`` elsewhere."""
    text = os.environ.get(_CHILD)
    return int(text) if text is not None and text.isdigit() else None


def same_command() -> list[str]:
    """This process's own command line."""
    return [sys.executable, *sys.orig_argv[1:]]


def replace_process() -> NoReturn:
    """Start this command anew in this process's place: same id, same arguments, fresh memory."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, same_command())


def end_with_parent() -> None:
    """In a child: end gracefully once the supervisor is gone, however it went."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="cloudq-parent", daemon=True).start()


class Supervisor:
    """Keeps one child going; signals are passed on to it."""

    def __init__(self, folders: Sequence[Path], grace: float) -> None:
        self._folders = [folder.resolve() for folder in folders]
        if missing := [str(folder) for folder in self._folders if not folder.exists()]:
            raise ConfigError(f"there is no {', '.join(missing)} to watch")
        self._grace = grace
        self._starts = 0
        self._stop = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Supervise until SIGTERM or SIGINT, or until the child ends by itself with success; returns its exit code."""
        from watchfiles import PythonFilter, watch

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        say(f"watching {', '.join(map(str, self._folders))}", "dim")
        self._start()
        told = False
        for changes in watch(
            *self._folders,
            watch_filter=PythonFilter(),
            stop_event=self._stop,
            rust_timeout=500,
            yield_on_timeout=True,
            raise_interrupt=False,
            debounce=400,
        ):
            if changes:
                names = sorted({Path(path).name for _, path in changes})
                say(f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''} changed: starting anew", "dim")
                self._end()
                if self._stop.is_set():
                    break
                self._start()
                told = False
            elif (code := self._child.poll() if self._child is not None else None) is not None:
                if code == 0:
                    return 0
                if not told:
                    say(f"it ended with {code}; waiting for a change", "yellow")
                    told = True
        code = self._end()
        if code == -signal.SIGTERM:  # asked to stop before it was ready: it had taken nothing in
            return 0
        return code if code >= 0 else 128 - code

    def _start(self) -> None:
        # a process group of its own: Ctrl-C must reach it once, through us, because a second signal ends it at once
        env = {**os.environ, _CHILD: str(self._starts)}
        self._child = subprocess.Popen(same_command(), env=env, stdin=subprocess.DEVNULL, process_group=0)
        self._starts += 1

    def _end(self) -> int:
        """End the child gracefully; by force if it takes longer than its grace and then some."""
        child = self._child
        if child is None:
            return 0
        if child.poll() is None and not self._stop.is_set():
            child.terminate()
        try:
            return child.wait(self._grace + _PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
