"""A call's arguments and its result, by the signature of the task's function."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from cloudq.errors import ArgumentsError, ConfigError
from cloudq.values.plain import Check, is_text
from cloudq.values.travel import Refused, Travel

_Parameter = inspect.Parameter
_Turn = Callable[[Travel, object], object]


class _Slot:
    """A parameter: its name and how its values travel."""

    __slots__ = ("name", "required", "travel")

    def __init__(self, name: str, travel: Travel, *, required: bool) -> None:
        self.name = name
        self.travel = travel
        self.required = required


class _Shape:
    """A signature, resolved."""

    def __init__(self, function: Callable[..., object], *, task: str, skip_first: bool, always_validate: bool) -> None:
        parameters = list(inspect.signature(function).parameters.values())[1 if skip_first else 0 :]
        hints = _hints(function, [*(parameter.name for parameter in parameters), "return"], task)
        self.positional: list[_Slot] = []
        self.keyword: dict[str, _Slot] = {}
        self.keyword_only: list[_Slot] = []
        self.rest: _Slot | None = None
        self.rest_by_name: Travel | None = None
        for parameter in parameters:
            travel = Travel(hints.get(parameter.name, Any), always_validate=always_validate)
            slot = _Slot(parameter.name, travel, required=parameter.default is _Parameter.empty)
            match parameter.kind:
                case _Parameter.VAR_POSITIONAL:
                    self.rest = slot
                case _Parameter.VAR_KEYWORD:
                    self.rest_by_name = travel
                case _Parameter.KEYWORD_ONLY:
                    self.keyword_only.append(slot)
                    self.keyword[slot.name] = slot
                case kind:
                    self.positional.append(slot)
                    if kind is not _Parameter.POSITIONAL_ONLY:
                        self.keyword[slot.name] = slot
        self.result = Travel(hints.get("return", Any), always_validate=always_validate)


def _hints(function: Callable[..., object], names: Sequence[str], task: str) -> dict[str, Any]:
    target: Any = inspect.unwrap(function)
    while isinstance(target, functools.partial):
        target = inspect.unwrap(cast("functools.partial[object]", target).func)
    if not hasattr(target, "__annotations__"):
        target = type(target).__call__  # an object that can be called
    try:
        return typing.get_type_hints(target, include_extras=True)
    except Exception as error:
        found = getattr(target, "__annotations__", {})
        for name in names:
            if name in found and (why := _unresolvable(target, name)) is not None:
                what = "return type" if name == "return" else f"parameter {name!r}"
                raise ConfigError(
                    f"task {task!r}: the annotation of {what}, {found[name]!r}, cannot be resolved ({why}); "
                    "import its names where the module can see them when it runs, not only under TYPE_CHECKING or inside a function"
                ) from error
        raise ConfigError(f"task {task!r}: its annotations cannot be resolved ({error})") from error


def _unresolvable(target: Any, name: str) -> str | None:
    def alone() -> None: ...

    alone.__annotations__ = {name: target.__annotations__[name]}
    try:
        typing.get_type_hints(alone, globalns=getattr(target, "__globals__", {}), include_extras=True)
    except Exception as error:
        return str(error)
    return None


class ArgumentCodec:
    """How the arguments and the result of one task travel.

    ``skip_first`` leaves out a bound task's ``self``. Annotations are resolved at first use, so that they may name what is defined further
    down; one that cannot be is a ConfigError then. ``always_validate`` sends plain values through pydantic too, which decides the same.

    What was positional stays positional; defaults are not sent. Every method raises ArgumentsError naming task and parameter.
    """

    def __init__(self, function: Callable[..., object], *, task: str, skip_first: bool = False, always_validate: bool = False) -> None:
        self._function = function
        self._task = task
        self._skip_first = skip_first
        self._always_validate = always_validate
        self._resolved: _Shape | None = None
        # The quick path: so many positional arguments and no others, each passing its check. Closed until resolved.
        self._checks: tuple[Check, ...] = ()
        self._least = 1
        self._most = 0

    def encode(self, args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[list[object], dict[str, object]]:
        """The JSON values of a call's arguments."""
        if not args and not kwargs and not self._least:
            return [], {}
        if not kwargs and self._least <= len(args) <= self._most:
            for check, value in zip(self._checks, args):  # noqa: B905 - defaults may be left out
                if not check(value):
                    break
            else:
                return [*args], {}
        return self._each(args, kwargs, Travel.encode)

    def decode(self, args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[list[object], dict[str, object]]:
        """The arguments, from their JSON values."""
        if not args and not kwargs and not self._least:
            return [], {}
        if not kwargs and self._least <= len(args) <= self._most:
            for check, value in zip(self._checks, args):  # noqa: B905 - defaults may be left out
                if not check(value):
                    break
            else:
                return [*args], {}
        return self._each(args, kwargs, Travel.decode)

    def encode_partial(
        self, args: Sequence[object], kwargs: Mapping[str, object], *, before: int = 1
    ) -> tuple[list[object], dict[str, object]]:
        """``encode`` for a linked signature: ``before`` positional arguments (the parent's result) will come first, any may be missing."""
        return self._each(args, kwargs, Travel.encode, before=before, partial=True)

    def encode_result(self, value: object) -> object:
        """The JSON value of what the task returned; in errors its parameter is ``"return"``."""
        return self._one(value, None, self._shape().result, Travel.encode)

    def decode_result(self, value: object) -> object:
        """What the task returned, from its JSON value; in errors its parameter is ``"return"``."""
        return self._one(value, None, self._shape().result, Travel.decode)

    def _shape(self) -> _Shape:
        shape = self._resolved
        if shape is None:
            shape = _Shape(self._function, task=self._task, skip_first=self._skip_first, always_validate=self._always_validate)
            self._checks = tuple(slot.travel.accepts for slot in shape.positional)
            if not any(slot.required for slot in shape.keyword_only):
                self._least = sum(slot.required for slot in shape.positional)
                self._most = len(shape.positional)
            self._resolved = shape
        return shape

    def _each(
        self, args: Sequence[object], kwargs: Mapping[str, object], turn: _Turn, *, before: int = 0, partial: bool = False
    ) -> tuple[list[object], dict[str, object]]:
        shape = self._shape()
        if (misfit := _misfit(shape, before + len(args), kwargs, partial)) is not None:
            raise ArgumentsError(f"task {self._task!r} {misfit}", task=self._task)
        slots = shape.positional[before:]
        new_args = [self._one(value, slot.name, slot.travel, turn) for slot, value in zip(slots, args, strict=False)]
        if (rest := shape.rest) is not None:
            new_args += [self._one(value, rest.name, rest.travel, turn) for value in args[len(slots) :]]
        new_kwargs: dict[str, object] = {}
        for name, value in kwargs.items():
            slot = shape.keyword.get(name)
            travel = shape.rest_by_name if slot is None else slot.travel
            assert travel is not None  # or it would be a misfit
            new_kwargs[name] = self._one(value, name, travel, turn)
        return new_args, new_kwargs

    def _one(self, value: object, name: str | None, travel: Travel, turn: _Turn) -> object:
        if travel.accepts(value):
            return value
        try:
            return turn(travel, value)
        except Refused as refused:
            why = str(refused)
        what = "its return value" if name is None else f"parameter {name!r}"
        # Raised out here, so that the error has no context to print.
        raise ArgumentsError(f"task {self._task!r}: {what}: {why}", task=self._task, parameter=name or "return")


def _misfit(shape: _Shape, count: int, kwargs: Mapping[str, object], partial: bool) -> str | None:
    """How a call does not fit the signature, in Python's words; ``None`` where it fits."""
    positional = shape.positional
    given = {slot.name for slot in positional[:count]}
    for name in kwargs:
        if not is_text(name):
            return "got a keyword that is no valid text"
        if name in shape.keyword:
            if name in given:
                return f"got multiple values for argument {name!r}"
        elif shape.rest_by_name is None:
            if any(slot.name == name for slot in positional):
                return f"got a positional-only argument passed as keyword argument: {name!r}"
            return f"got an unexpected keyword argument {name!r}"
    if count > len(positional) and shape.rest is None:
        least = sum(slot.required for slot in positional)
        takes = f"from {least} to {len(positional)}" if least < len(positional) else str(least)
        return f"takes {takes} positional argument{'' if takes == '1' else 's'} but {count} {'was' if count == 1 else 'were'} given"
    if partial:
        return None
    for kind, slots in (("positional", positional[count:]), ("keyword-only", shape.keyword_only)):
        missing = [slot.name for slot in slots if slot.required and not (slot.name in kwargs and slot.name in shape.keyword)]
        if missing:
            names = " and ".join(filter(None, (", ".join(map(repr, missing[:-1])), repr(missing[-1]))))
            return f"missing {len(missing)} required {kind} argument{'' if len(missing) == 1 else 's'}: {names}"
    return None
