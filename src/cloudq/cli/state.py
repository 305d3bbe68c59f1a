"""What every command starts from: which app is meant, and the app itself."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import typer

from cloudq.app import CloudQ
from cloudq.errors import ConfigError
from cloudq.loading import load_app

T = TypeVar("T")


@dataclass(slots=True)
class State:
    """The options before the command."""

    given: str | None
    """``-A``, or CLOUDQ_APP."""
    debug: bool = False

    def reference(self) -> str:
        """``module:attr`` of the app; raises ConfigError where nothing says which."""
        found = self.given or _from_pyproject(Path.cwd())
        if not found:
            raise ConfigError(
                'which app? say it by -A module:app (cloudq -A shop.tasks:app …), by CLOUDQ_APP, or by app = "shop.tasks:app" '
                "under [tool.cloudq] in pyproject.toml"
            )
        return found

    def load(self) -> CloudQ:
        """The app with all its tasks."""
        app = load_app(self.reference())
        app.load()
        return app

    def load_shared(self) -> CloudQ:
        """The app, for a command that talks to other processes through its broker; raises ConfigError where it cannot."""
        app = self.load()
        require_shared(app)
        return app

    def load_stored(self, why: str) -> CloudQ:
        """The app, for a command that reads what other processes have stored; raises ConfigError where it cannot."""
        app = self.load()
        if app.required_store(why).limits.local:
            raise ConfigError(
                f"{why} needs a store that processes share: memory:// lives inside one process, and this one has just begun; "
                "set CLOUDQ_STORE=sqlite:///results.db, or a store in the cloud"
            )
        return app


def require_shared(app: CloudQ) -> None:
    """Raise ConfigError where the app's broker lives in this process only."""
    if app.broker.limits.local:
        raise ConfigError(
            "memory:// lives inside one process, so this command shares no queue with any other; "
            "set a broker that processes share (CLOUDQ_BROKER=sqs://…), or call tasks from code that runs in `cloudq dev`"
        )


def state_of(context: typer.Context) -> State:
    """The state that the options before the command made."""
    return cast("State", context.find_root().obj)


def run_on(app: CloudQ, call: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine where the app's I/O belongs."""
    return app.io.run(call)


def pyproject(folder: Path) -> Path | None:
    """The nearest pyproject.toml, upwards."""
    return next((path for parent in (folder, *folder.parents) if (path := parent / "pyproject.toml").is_file()), None)


def _from_pyproject(folder: Path) -> str | None:
    """The app that the nearest pyproject.toml names; its folder is then importable, too."""
    path = pyproject(folder)
    if path is None:
        return None
    try:
        app: object = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    for key in ("tool", "cloudq", "app"):
        if not isinstance(app, dict):
            raise ConfigError(f"{path}: [tool.cloudq] must be a table")
        app = cast("dict[str, object]", app).get(key, None if key == "app" else {})
    if app is not None and not isinstance(app, str):
        raise ConfigError(f'{path}: app under [tool.cloudq] must be text like "shop.tasks:app"')
    if app and os.fspath(path.parent) not in sys.path:
        sys.path.insert(0, os.fspath(path.parent))
    return app
