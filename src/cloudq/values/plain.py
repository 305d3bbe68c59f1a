"""Values of plain JSON types: checked exactly, sent as they are, without pydantic."""

from __future__ import annotations

import sys
import types
import typing
from collections import abc
from collections.abc import Callable, Mapping
from math import inf
from typing import Any, Final, Union, cast

Check = Callable[[object], bool]

MAX_DEPTH: Final = 100
"""How deep a value without a type of its own may nest; pydantic's JSON parser stops at 200."""

_DIGITS: Final = min(sys.get_int_max_str_digits() or 4300, 4300)
_BIG: Final = 10**_DIGITS
_HINT: Final = "annotate the parameter with its type, so that it arrives as what it was"


def _is_int(value: object) -> bool:
    return type(value) is int and -_BIG < value < _BIG


def _is_float(value: object) -> bool:
    return type(value) is float and -inf < value < inf


def is_text(value: object) -> bool:
    """Whether ``value`` is a str without lone surrogates."""
    return type(value) is str and (value.isascii() or _is_unicode(value))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _is_bool(value: object) -> bool:
    return value is True or value is False


def _is_none(value: object) -> bool:
    return value is None


def never(_value: object) -> bool:
    """Accept nothing."""
    return False


_SCALARS: Final[Mapping[object, Check]] = {
    int: _is_int,
    float: _is_float,
    str: is_text,
    bool: _is_bool,
    None: _is_none,
    type(None): _is_none,
}


def is_native(value: object, depth: int = MAX_DEPTH) -> bool:
    """Whether a JSON parser would give back exactly this."""
    kind = type(value)
    if (check := _SCALARS.get(kind)) is not None:
        return check(value)
    if depth == 0:
        return False
    if kind is list:
        return all(is_native(item, depth - 1) for item in cast("list[object]", value))
    if kind is dict:
        return all(is_text(key) and is_native(item, depth - 1) for key, item in cast("dict[object, object]", value).items())
    return False


def _is_native_list(value: object) -> bool:
    return type(value) is list and is_native(cast("object", value))


def _is_native_dict(value: object) -> bool:
    return type(value) is dict and is_native(cast("object", value))


def _list_of(item: Check) -> Check:
    return lambda value: type(value) is list and all(map(item, cast("list[object]", value)))


def _dict_of(item: Check) -> Check:
    def check(value: object) -> bool:
        if type(value) is not dict:
            return False
        found = cast("dict[object, object]", value)
        return all(map(is_text, found)) and all(map(item, found.values()))

    return check


def _one_of(checks: tuple[Check, ...]) -> Check:
    if len(checks) == 2:
        first, second = checks
        return lambda value: first(value) or second(value)
    return lambda value: any(check(value) for check in checks)


def plain_check(annotation: Any) -> Check | None:
    """What tells whether a value is exactly of a plain ``annotation``; ``None`` where the annotation needs pydantic."""
    if annotation in (Any, object):
        return is_native
    if isinstance(annotation, abc.Hashable) and (scalar := _SCALARS.get(annotation)) is not None:
        return scalar
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin is list:
        if not arguments or arguments[0] in (Any, object):
            return _is_native_list
        item = plain_check(arguments[0])
        return None if item is None else _list_of(item)
    if origin is dict:
        if not arguments or arguments in ((str, Any), (str, object)):
            return _is_native_dict
        item = plain_check(arguments[1]) if arguments[0] is str else None
        return None if item is None else _dict_of(item)
    if origin in (Union, types.UnionType) and not _ambiguous(arguments):
        checks = [check for member in arguments if (check := plain_check(member)) is not None]
        return _one_of(tuple(checks)) if len(checks) == len(arguments) else None
    return None


def _ambiguous(members: tuple[Any, ...]) -> bool:
    """Whether pydantic may convert a value for one member that another, being or holding Any, would take as it is."""
    members = tuple(member for member in members if member is not type(None))
    kinds = [typing.get_origin(member) or member for member in members]
    loose = [kind for kind, member in zip(kinds, members, strict=True) if _holds_any(member)]
    return any((kind in (Any, object) and len(kinds) > 1) or kinds.count(kind) > 1 for kind in loose)


def _holds_any(annotation: Any) -> bool:
    return annotation in (Any, object, list, dict, list, dict) or any(map(_holds_any, typing.get_args(annotation)))


def why_not_native(value: object, depth: int = MAX_DEPTH) -> str | None:
    """What in ``value`` is no JSON value, in words that hold nothing of it; ``None`` where all is."""
    if is_native(value, 0):
        return None
    kind = type(value)
    if kind is int:
        return f"holds an int of more than {_DIGITS} digits"
    if kind is float:
        return "holds NaN or infinity, which JSON has not"
    if kind is str:
        return "holds text with a lone surrogate, which is no valid Unicode"
    if kind not in (list, dict):
        return f"holds a {kind.__qualname__}, which is no JSON value; {_HINT}"
    if depth == 0:
        return f"nests more than {MAX_DEPTH} levels deep, or holds itself"
    if kind is dict:
        found = cast("dict[object, object]", value)
        for key in found:
            if type(key) is not str:
                return f"holds a dict with a key of type {type(key).__qualname__}, and JSON's are str; {_HINT}"
        items: list[object] = [*found, *found.values()]
    else:
        items = cast("list[object]", value)
    return next((why for item in items if (why := why_not_native(item, depth - 1)) is not None), None)
