"""Keys made of a task's arguments: what makes calls the same, or counts them together."""

from __future__ import annotations

import hashlib
import inspect
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from cloudq.errors import ConfigError
from cloudq.values import dumps

Arguments: TypeAlias = "tuple[Sequence[Any], Mapping[str, Any]]"


class Key:
    """A key of a task's calls: a format string over its parameters, or a function of its arguments."""

    __slots__ = ("_make", "_signature")

    def __init__(
        self, function: Callable[..., Any], key: str | Callable[..., object] | None, *, bind: bool, task: str, option: str
    ) -> None:
        """Raises ConfigError, naming ``option``, for a format string that cannot be filled. ``None``: all arguments together."""
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())[1 if bind else 0 :]
        self._signature = signature.replace(parameters=parameters)
        self._make = key
        if isinstance(key, str):
            _check(key, [parameter.name for parameter in parameters], f"task {task!r}: {option}={key!r}")

    def of(self, arguments: Arguments) -> str:
        """The key of a call. What the user's code raises here, it raises."""
        args, kwargs = arguments
        if callable(self._make):
            return str(self._make(*args, **kwargs))
        bound = self._signature.bind(*args, **kwargs)
        if self._make is None:
            return dumps(dict(sorted(bound.arguments.items())))
        bound.apply_defaults()
        return self._make.format_map(bound.arguments)


def _check(key: str, parameters: Sequence[str], what: str) -> None:
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(key) if field is not None]
    except ValueError as error:
        raise ConfigError(f"{what} is no format string: {error}") from error
    names = [field.split(".")[0].split("[")[0] for field in fields]
    if wrong := [name for name in names if name not in parameters]:
        known = ", ".join(parameters) or "none"
        raise ConfigError(f"{what} names {wrong[0]!r}, which is no parameter of it (they are {known})")
    if not names:
        raise ConfigError(f"{what} names no parameter: all calls would have the same key")


def place(use: str, task: str, key: str) -> str:
    """Where a key's document is; keys may be of any length, and are nobody's business."""
    return f"{use}-{hashlib.sha256(dumps([task, key]).encode()).hexdigest()[:40]}"
