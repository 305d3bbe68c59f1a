"""Finds an app by the name of its module, and the name of an app that is already here."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from cloudq.app import CloudQ
from cloudq.errors import ConfigError


def load_app(reference: str) -> CloudQ:
    """Import the app that ``module:attribute`` names, or the only one of ``module``; the current directory is searched first.

    Sets ``app.reference``. Raises ConfigError, from the error of a module that fails to import.
    """
    name, _, attribute = reference.partition(":")
    module = _module(reference)
    app = _only_app(module) if not attribute else getattr(module, attribute, None)
    if not isinstance(app, CloudQ):
        raise ConfigError(f"{name}.{attribute} is no CloudQ app; the module has {', '.join(_apps(module)) or 'none'}")
    app.reference = f"{name}:{attribute or next(known for known, each in _apps(module).items() if each is app)}"
    return app


def load_object(reference: str) -> object:
    """What ``module:attribute`` names; raises ConfigError where there is no such thing."""
    name, _, attribute = reference.partition(":")
    module = _module(reference)
    if not hasattr(module, attribute):
        raise ConfigError(f"the module {name} has no {attribute!r}")
    return getattr(module, attribute)


def load_configured() -> tuple[CloudQ, int | None]:
    """The app that ``CLOUDQ_APP`` names, and ``CLOUDQ_CONCURRENCY``; for the ready-made entries of functions and services."""
    reference = os.environ.get("CLOUDQ_APP")
    if not reference:
        raise ConfigError("set CLOUDQ_APP=module:attribute in the environment, as in shop.tasks:app")
    concurrency = os.environ.get("CLOUDQ_CONCURRENCY")
    if concurrency is not None and not concurrency.isdigit():
        raise ConfigError(f"CLOUDQ_CONCURRENCY must be a whole number, not {concurrency!r}")
    return load_app(reference), None if concurrency is None else int(concurrency)


def reference_of(app: CloudQ) -> str:
    """``module:attribute`` of an app that this process has imported, or runs as its script; raises ConfigError where it has no name."""
    if app.reference is not None:
        return app.reference
    modules = dict(sys.modules)  # in the order in which imports began: who imports others comes before them
    for name, module in {"__main__": modules["__main__"], **modules}.items():
        for attribute, value in list(getattr(module, "__dict__", {}).items()):
            if value is app and (importable := _main_name(module) if name == "__main__" else name) is not None:
                return f"{importable}:{attribute}"
    raise ConfigError(
        f"the app {app.name!r} is no variable of an imported module, so a child process cannot load it:"
        " make it one, or set app.reference = 'module:attribute'"
    )


def _module(reference: str) -> ModuleType:
    name = reference.partition(":")[0]
    if not name or "/" in name or name.endswith(".py"):
        raise ConfigError(f"{reference!r} names no module: say module:attribute, as in shop.tasks:app")
    here = str(Path.cwd())
    if "" not in sys.path and here not in sys.path:
        sys.path.insert(0, here)
    return _import(name)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"there is no module {error.name!r} here: run it where the module is, or put that on PYTHONPATH") from None
        raise ConfigError(f"importing {name} failed: {error}") from error
    except Exception as error:
        raise ConfigError(f"importing {name} failed: {type(error).__name__}: {error}{_place(error)}") from error


def _place(error: BaseException) -> str:
    """Where below the current directory, and else where at all, an error came from; a syntax error says so itself."""
    frames = [each for each in traceback.extract_tb(error.__traceback__) if each.filename != __file__]
    own = [each for each in frames if Path(each.filename).is_relative_to(Path.cwd()) and "site-packages" not in each.filename]
    if isinstance(error, SyntaxError) or not frames:
        return ""
    last = (own or frames)[-1]
    return f" ({last.filename}, line {last.lineno})"


def _apps(module: ModuleType) -> dict[str, CloudQ]:
    return {name: value for name, value in vars(module).items() if isinstance(value, CloudQ)}


def _only_app(module: ModuleType) -> CloudQ:
    apps = _apps(module)
    if len({id(app) for app in apps.values()}) != 1:
        found = f"{len(apps)} apps ({', '.join(apps)}): name one, as in {module.__name__}:{next(iter(apps))}" if apps else "no CloudQ app"
        raise ConfigError(f"the module {module.__name__} has {found}")
    return next(iter(apps.values()))


def _main_name(main: ModuleType) -> str | None:
    """The name under which the script that is running can be imported."""
    if main.__spec__ is not None:
        return main.__spec__.name
    path = getattr(main, "__file__", None)
    return Path(path).stem if path else None
