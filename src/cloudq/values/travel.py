"""How the values of one annotation travel: as they are, or through pydantic."""

from __future__ import annotations

import contextlib
import functools
import operator
import types
import typing
from collections import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Union, cast

from cloudq.values.plain import never, plain_check, why_not_native
from cloudq.values.text import dumps

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_TOO_DEEP: Final = "nests too deeply, or holds itself"


class Refused(Exception):
    """Why a value does not fit, in words that hold nothing of it."""


_ABSTRACT: Final[Mapping[object, Any]] = {
    abc.Sequence: list,
    abc.MutableSequence: list,
    abc.Collection: list,
    abc.Iterable: list,
    abc.Mapping: dict,
    abc.MutableMapping: dict,
}


def _concrete(annotation: Any) -> Any:
    """``Sequence[int]`` is ``list[int]`` on the wire and when it arrives, ``Mapping`` is ``dict``: say so at the call."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is None:
        return _ABSTRACT.get(annotation, annotation) if isinstance(annotation, abc.Hashable) else annotation
    inner = tuple(map(_concrete, arguments)) if origin in (Union, types.UnionType, list, dict) or origin in _ABSTRACT else arguments
    if origin not in _ABSTRACT and all(map(operator.is_, inner, arguments)):
        return annotation  # as written: typing's caches may give back an equal union in another order
    if origin in (Union, types.UnionType):
        return Union[inner]  # noqa: UP007
    origin = _ABSTRACT.get(origin, origin)
    return origin[inner] if inner else origin


class Travel:
    """How the values of one annotation travel."""

    def __init__(self, annotation: Any, *, always_validate: bool = False) -> None:
        self.annotation = _concrete(annotation)
        self.plain = plain_check(self.annotation)
        self.accepts = never if self.plain is None or always_validate else self.plain
        """The check that lets a value pass unchanged, both ways."""
        self._untyped = self.annotation in (Any, object)

    def encode(self, value: object) -> object:
        """The JSON value of ``value``. Raises Refused."""
        if self._untyped:
            return self._exact(value)
        valid = self._validate(lambda: self._call.validate_python(value))
        return self._dump(valid) if self.plain is None else self._exact(valid)

    def decode(self, value: object) -> object:
        """The value of a JSON value. Raises Refused."""
        if self._untyped:
            return self._exact(value)
        valid = self._read(value)
        return valid if self.plain is None else self._exact(valid)

    def _exact(self, value: object) -> object:
        """A plain value, which is its own JSON value."""
        if self.plain is not None and self.plain(value):
            return value
        raise Refused(why_not_native(value) or "is not exactly of the annotated type")

    def _dump(self, value: object) -> object:
        dumped: object = None
        refused = None
        try:
            # By field names both ways, so that aliases (which may differ for reading and writing) play no part.
            dumped = self._wire.dump_python(value, mode="json", by_alias=False, round_trip=True, warnings="error")
        except RecursionError:
            refused = _TOO_DEEP
        except Exception as error:
            refused = _why_not_dumped(error)
        if refused is not None:
            raise Refused(refused)
        if not _same(value, self._read(dumped)):
            raise Refused("would not arrive as what it is: read back from JSON, its value or type is another; narrow the annotation")
        return dumped

    def _read(self, value: object) -> object:
        text = None
        with contextlib.suppress(ValueError, TypeError):
            text = dumps(value)
        if text is None:  # raised out here, so that the error has no context to print
            raise Refused(why_not_native(value) or _TOO_DEEP)
        return self._validate(lambda: self._wire.validate_json(text, by_alias=False, by_name=True))

    def _validate(self, validate: Callable[[], object]) -> object:
        from pydantic import ValidationError

        try:
            return validate()
        except Refused:
            raise
        except ValidationError as error:
            refused = _words(error, self._wire)
        except RecursionError:
            refused = _TOO_DEEP
        except Exception as error:
            refused = f"could not be validated: its validation raised {type(error).__qualname__}"
        raise Refused(refused)

    @functools.cached_property
    def _call(self) -> TypeAdapter[Any]:
        return self._adapter(None)

    @functools.cached_property
    def _wire(self) -> TypeAdapter[Any]:
        from pydantic import ConfigDict, PydanticUserError

        try:
            return self._adapter(ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants"))
        except PydanticUserError:
            return self._call  # a model, dataclass or TypedDict: its own config decides

    def _adapter(self, config: Any) -> TypeAdapter[Any]:
        from pydantic import PydanticUserError, TypeAdapter

        try:
            return TypeAdapter(self.annotation, config=config)
        except PydanticUserError as error:
            if error.code == "type-adapter-config-unused":
                raise
            why = str(error).partition("\n")[0].partition(". ")[0]
        except Exception as error:  # such as EmailStr without email-validator
            why = str(error).partition("\n")[0]
        name = getattr(self.annotation, "__qualname__", None) or repr(self.annotation)
        raise Refused(f"has a type that cannot travel, {name} ({why}); use a pydantic model or a dataclass, or give an id instead")


def _why_not_dumped(error: Exception) -> str:
    text = str(error)  # may hold the value: only what is recognised is told
    if "utf-8" in text:
        return "holds bytes that are no UTF-8; set ser_json_bytes='base64' and val_json_bytes='base64' in its model_config"
    if text.startswith(("Circular reference", "Maximum serialization depth")):
        return _TOO_DEEP
    if text.startswith("Unable to serialize unknown type: "):
        return f"cannot be written as JSON: {text[0].lower()}{text[1:]}"
    return "cannot be written as JSON, or holds a value of another type than its annotation says"


def _words(error: Any, adapter: TypeAdapter[Any]) -> str:
    """A ValidationError in words without input: places are indexes and field names, never the keys of a dict."""
    names = set(_field_names(adapter.core_schema))
    told: dict[str, None] = {}
    for detail in error.errors(include_url=False, include_input=False):
        parts = [part for part in detail["loc"] if isinstance(part, int) or part in names]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")
        message = detail["msg"]
        if detail["type"] == "union_tag_invalid":  # quotes the tag that it found
            message = f"Input tag does not match any of the expected tags: {detail['ctx']['expected_tags']}"
        told[f"{place}: {message}" if place else message] = None
    lines = list(told)
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")


def _field_names(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        parts = cast("dict[str, Any]", schema)
        found = parts.get("fields")
        if isinstance(found, dict):
            yield from cast("dict[str, Any]", found)
        elif isinstance(found, list):  # a dataclass's
            yield from (field["name"] for field in cast("list[dict[str, Any]]", found) if "name" in field)
        for key, part in parts.items():
            if key != "metadata":
                yield from _field_names(part)
    elif isinstance(schema, (list, tuple)):
        for part in cast("Sequence[Any]", schema):
            yield from _field_names(part)


def _same(sent: Any, arrived: Any) -> bool:
    """Whether two values are equal and of the same types all the way down."""
    kind: type[Any] = sent.__class__
    if kind is not arrived.__class__:
        return False
    if issubclass(kind, (list, tuple)):
        return len(sent) == len(arrived) and all(map(_same, sent, arrived))
    if issubclass(kind, abc.Mapping):
        return len(sent) == len(arrived) and all(map(_same, sent.items(), arrived.items()))
    if issubclass(kind, (set, frozenset)):
        return {(type(item), item) for item in sent} == {(type(item), item) for item in arrived}
    if issubclass(kind, datetime):  # == of two zones is never true in a repeated hour
        return bool(sent.utcoffset() == arrived.utcoffset() and sent.replace(tzinfo=None, fold=0) == arrived.replace(tzinfo=None, fold=0))
    if (names := _compared(kind)) is not None:
        same = all(_same(getattr(sent, name, None), getattr(arrived, name, None)) for name in names)
        return same and _same(getattr(sent, "__pydantic_extra__", None), getattr(arrived, "__pydantic_extra__", None))
    compares = any("__eq__" in part.__dict__ for part in kind.__mro__[:-1])  # without, nothing can be told
    return not compares or bool(sent == arrived)


def _compared(kind: type) -> list[str] | None:
    """The fields of a model or dataclass that make up its value; a model's excluded ones stay behind because it says so."""
    if (model := getattr(kind, "__pydantic_fields__", None)) is not None:
        return [name for name, field in model.items() if not field.exclude]
    return [field.name for field in fields(kind) if field.compare] if is_dataclass(kind) else None
