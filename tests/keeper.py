"""Keeps one server for all processes of a test run: started by the first, killed when the last one has let go, or has died.

``python keeper.py FOLDER ANSWERS COMMAND…`` runs COMMAND in the background until nobody holds a shared lock on ``FOLDER/users``. It
returns once the URL ANSWERS does so, and ``FOLDER/ready`` is there, which is gone before the server is; or once it has failed.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

_READY = 120.0
"""Seconds that a server may take to answer its first request, however slow the machine."""


def answers(url: str) -> bool:
    """Whether there is an answer, of whatever kind."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False


def main(folder: Path, url: str, command: list[str]) -> None:
    if child := os.fork():
        while not (folder / "ready").exists() and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.02)
        os._exit(0)
    with (folder / "users").open("rb") as users, (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + _READY
            while not (up := answers(url)) and server.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            if up:
                (folder / "starting-up").write_text(url)
                (folder / "starting-up").rename(folder / "ready")  # whole, once it is there
                fcntl.flock(users, fcntl.LOCK_EX)  # whoever comes from here on waits until the server has gone, and starts another
        finally:
            (folder / "ready").unlink(missing_ok=True)
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(30)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
