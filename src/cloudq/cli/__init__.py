"""The ``cloudq`` command. Typer and Rich come with the ``cli`` extra, and are imported nowhere else."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code (``cloudq.cli.exits``)."""
    try:
        from cloudq.cli.app import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {"rich", "typer", "watchfiles"}:
            raise
        sys.stderr.write(f"cloudq: the command line needs the package {error.name!r}: pip install 'cloudq-tasks[cli]'\n")
        sys.exit(2)
    sys.exit(run())
