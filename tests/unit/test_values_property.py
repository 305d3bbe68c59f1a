"""The two ways of typed values decide the same, and what is sent arrives as what it was."""

from __future__ import annotations

import functools
import json
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, Optional
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from typing_extensions import TypedDict

from cloudq.errors import ArgumentsError
from cloudq.values import ArgumentCodec, dumps

SCALARS: list[Any] = [int, float, str, bool, type(None)]
LOOSE: list[Any] = [Any, object, list, dict]

annotations: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(SCALARS + LOOSE),
    lambda inner: st.one_of(
        inner.map(lambda a: list[a]),
        inner.map(lambda a: dict[str, a]),
        # Built by |, since typing's caches give back an equal union in another order.
        st.lists(inner, min_size=2, max_size=3).map(lambda members: functools.reduce(operator.or_, members)),
        inner.map(lambda a: a | type(None)),
    ),
    max_leaves=5,
)


class Text(str):
    __slots__ = ()


class Number(int):
    pass


near: st.SearchStrategy[Any] = st.sampled_from(
    [
        True,
        0,
        1,
        1.0,
        1.5,
        -0.0,
        "1",
        "1.5",
        "true",
        "",
        "\ud800",
        "\x00é𝄞",
        math.nan,
        math.inf,
        2**64,
        Text("a"),
        Number(3),
        b"1",
        Decimal(1),
        (1, 2),
        {1},
        range(2),
        {1: 2},
        {"\udfff": 1},
        {Text("k"): 1},
    ]
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | near,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3) | st.lists(inner, max_size=2).map(tuple)
    ),
    max_leaves=6,
)


def of(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a plain annotation, with one that is not now and then."""
    if annotation in (Any, object):
        return values
    if annotation in (list, dict):
        return st.lists(values, max_size=3) if annotation is list else st.dictionaries(st.text(max_size=3), values, max_size=3)
    fit: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(),
        float: st.floats(),
        str: st.text(),
        bool: st.booleans(),
        None: st.none(),
        type(None): st.none(),
    }
    if annotation in fit:
        return st.one_of(fit[annotation], fit[annotation], near)
    arguments = annotation.__args__
    if getattr(annotation, "__origin__", None) is list:
        return st.lists(of(arguments[0]), max_size=3)
    if getattr(annotation, "__origin__", None) is dict:
        return st.dictionaries(st.text(max_size=3), of(arguments[1]), max_size=3)
    return st.one_of(*map(of, arguments))


def codec(annotation: Any, *, always_validate: bool = False) -> ArgumentCodec:
    def task(x: Any) -> None: ...

    task.__annotations__ = {"x": annotation, "return": annotation}
    return ArgumentCodec(task, task="t", always_validate=always_validate)


def outcome(action: Callable[[], object]) -> tuple[str, object]:
    try:
        return "accepted", action()
    except ArgumentsError as error:
        return "refused", (error.parameter, error.__context__)


def exact(value: Any) -> Any:
    """Something that is equal only for equal values of equal types."""
    if isinstance(value, (list, tuple)):
        return type(value), [exact(item) for item in value]
    if isinstance(value, dict):
        return dict, [(exact(key), exact(item)) for key, item in value.items()]
    return type(value), repr(value) if isinstance(value, float) else value


annotated = st.one_of(
    annotations.flatmap(lambda a: st.tuples(st.just(a), of(a))),
    st.tuples(annotations, values),
)


@given(annotated)
def test_both_ways_accept_and_refuse_the_same_calls_with_the_same_values(case: tuple[Any, Any]) -> None:
    annotation, value = case
    plain, validated = codec(annotation), codec(annotation, always_validate=True)
    one, other = (outcome(lambda c=c: exact(c.encode([value], {})[0])) for c in (plain, validated))
    assert one == other
    if one[0] == "refused":
        return
    text = dumps(plain.encode([value], {})[0])
    assert text == dumps(validated.encode([value], {})[0])
    arrived = exact(plain.decode(json.loads(text), {})[0])
    assert arrived == exact(validated.decode(json.loads(text), {})[0])
    assert exact(plain.decode_result(json.loads(dumps(plain.encode_result(value))))) == exact(
        validated.decode_result(json.loads(dumps(validated.encode_result(value))))
    )


json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
).map(json.dumps)


@given(annotations, json_texts | st.sampled_from(["NaN", "1e999", '"\\ud800"', '{"\\udfff":1}', '"1"', "1", "1.0", "true"]))
def test_both_ways_decide_the_same_about_what_any_writer_sent(annotation: Any, text: str) -> None:
    both = codec(annotation), codec(annotation, always_validate=True)
    one, other = (outcome(lambda c=c: exact(c.decode([json.loads(text)], {})[0])) for c in both)
    assert one == other


@given(annotated)
def test_what_is_accepted_at_the_call_is_accepted_by_the_worker_as_the_same_value(case: tuple[Any, Any]) -> None:
    annotation, value = case
    both = codec(annotation)
    kind, sent = outcome(lambda: both.encode([value], {})[0])
    if kind == "accepted":
        assert exact(both.decode(json.loads(dumps(sent)), {})[0]) == exact(sent)


class Colour(Enum):
    RED = "r"
    BLUE = 2


class Point(NamedTuple):
    x: int
    y: float


class Options(TypedDict, total=False):
    size: int
    name: str


@dataclass
class Line:
    sku: UUID
    price: Decimal
    tags: frozenset[str]


class Order(BaseModel):
    lines: list[Line]
    at: datetime
    due: date | None = None
    meta: dict[str, bytes] = {}

    model_config = {"ser_json_bytes": "base64", "val_json_bytes": "base64"}


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
zones = st.integers(-12 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
zoned = st.datetimes(timezones=zones)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
lines = st.builds(Line, st.uuids(), decimals, st.frozensets(names, max_size=3))
metas = st.dictionaries(names, st.binary(), max_size=2)
orders = st.builds(Order, lines=st.lists(lines, max_size=2), at=zoned, due=st.none() | st.dates(), meta=metas)
rich: dict[Any, st.SearchStrategy[Any]] = {
    datetime: st.datetimes() | zoned,
    date: st.dates(),
    time: st.times(),
    timedelta: st.timedeltas(timedelta(days=-9999), timedelta(days=9999)),
    UUID: st.uuids(),
    Decimal: decimals,
    bytes: st.binary(),
    Colour: st.sampled_from(Colour),
    Path: names.filter(lambda name: "\x00" not in name).map(Path),
    Point: st.builds(Point, st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
    Line: lines,
    Order: orders,
    Options: st.fixed_dictionaries({}, optional={"size": st.integers(), "name": names}),
    set[int]: st.sets(st.integers(), max_size=3),
    tuple[int, str]: st.tuples(st.integers(), names),
}
containers: dict[Any, st.SearchStrategy[Any]] = {}
for kind, strategy in rich.items():
    containers[list[kind]] = st.lists(strategy, max_size=2)
    containers[dict[str, kind]] = st.dictionaries(names, strategy, max_size=2)
    containers[Optional[kind]] = st.none() | strategy  # noqa: UP045
    containers[tuple[kind, ...]] = st.lists(strategy, max_size=2).map(tuple)
everything = [(kind, codec(kind), strategy) for kind, strategy in {**rich, **containers}.items()]


@given(st.sampled_from(everything).flatmap(lambda case: st.tuples(st.just(case), case[2])))
def test_rich_types_arrive_as_what_they_were(case: tuple[tuple[Any, ArgumentCodec, Any], Any]) -> None:
    (_, both, _), value = case
    args, kwargs = both.encode([value], {})
    arrived, _ = both.decode(json.loads(dumps(args)), kwargs)
    assert arrived == [value]
    assert type(arrived[0]) is type(value)
    assert both.decode_result(json.loads(dumps(both.encode_result(value)))) == value
