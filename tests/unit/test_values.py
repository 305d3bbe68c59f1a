"""Typed arguments and results: what arrives, what is refused, and in which words."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel, EmailStr, Field, SecretStr, TypeAdapter, computed_field

from cloudq.errors import ArgumentsError, ConfigError
from cloudq.values import ArgumentCodec, dumps

if TYPE_CHECKING:
    from fractions import Fraction


def codec(annotation: Any, **options: bool) -> ArgumentCodec:
    def task(x: Any) -> None: ...

    task.__annotations__ = {"x": annotation, "return": annotation}
    return ArgumentCodec(task, task="shop.task", **options)


def travel(annotation: Any, value: object) -> Any:
    one = codec(annotation)
    args, kwargs = one.encode([value], {})
    return one.decode(json.loads(dumps(args)), kwargs)[0][0]


def refusal(annotation: Any, value: object) -> str:
    with pytest.raises(ArgumentsError) as caught:
        codec(annotation).encode([value], {})
    assert caught.value.task == "shop.task"
    assert caught.value.parameter == "x"
    return str(caught.value)


# ------------------------------------------------------------------ what arrives


class Animal(BaseModel):
    name: str


class Dog(Animal):
    tricks: int


class Aliased(BaseModel):
    both: int = Field(alias="b")
    reading: int = Field(validation_alias="r")
    writing: int = Field(serialization_alias="w")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        return self.both + self.reading


class Level(IntEnum):
    LOW = 1


class Loose(BaseModel):
    what: Any


class Forgetful(BaseModel):
    kept: int
    cache: str = Field(default="", exclude=True)


@dataclass
class Blob:
    data: bytes


class Opaque:
    pass


def test_values_are_converted_at_the_call_as_validate_call_does() -> None:
    assert codec(int).encode(["5"], {}) == ([5], {})
    assert codec(float).encode([3], {})[0][0].__class__ is float
    assert codec(Animal).encode([{"name": "Rex"}], {}) == ([{"name": "Rex"}], {})


def test_an_email_address_is_checked_at_the_call() -> None:
    assert travel(EmailStr, "a@b.example.com") == "a@b.example.com"
    assert "valid email address" in refusal(EmailStr, "nobody")


def test_constraints_hold_at_the_call_and_in_the_worker() -> None:
    positive = Annotated[int, Field(gt=0)]
    assert travel(positive, 3) == 3
    assert "greater than 0" in refusal(positive, -1)
    with pytest.raises(ArgumentsError, match="greater than 0"):
        codec(positive).decode([-1], {})


def test_bytes_of_any_kind_travel_and_text_for_them_is_text() -> None:
    assert travel(bytes, b"\xff\x00") == b"\xff\x00"
    assert travel(dict[str, list[bytes]], {"a": [b"\xfe"]}) == {"a": [b"\xfe"]}
    assert travel(bytes, "abc") == b"abc"


def test_aliases_play_no_part() -> None:
    value = Aliased.model_validate({"b": 1, "r": 2, "writing": 3})
    assert travel(Aliased, value) == value
    assert codec(Aliased).encode([value], {})[0] == [{"both": 1, "reading": 2, "writing": 3}]


def test_a_models_excluded_field_stays_behind_without_being_refused() -> None:
    assert travel(Forgetful, Forgetful(kept=1, cache="local")) == Forgetful(kept=1)


def test_a_time_in_the_repeated_hour_arrives_as_the_same_instant() -> None:
    for fold in (0, 1):
        when = datetime(2025, 10, 26, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=fold)
        assert travel(datetime, when).timestamp() == when.timestamp()


def test_an_abstract_sequence_or_mapping_arrives_as_list_or_dict() -> None:
    assert travel(Sequence[int], (1, 2)) == [1, 2]
    assert travel(Iterable[str], ["a"]) == ["a"]
    assert travel(Mapping[str, int] | None, {"a": 1}) == {"a": 1}
    assert "list" in refusal(Sequence[str], "abc")


def test_literals_and_optionals_arrive() -> None:
    assert travel(Literal["a", "b"], "b") == "b"
    assert travel(Optional[Decimal], None) is None  # noqa: UP045
    assert travel(Decimal | None, Decimal("1.50")) == Decimal("1.50")


# ------------------------------------------------------------------ what does not


@pytest.mark.parametrize("annotation", [Any, object, list, dict, list[Any], dict[str, Any]])
@pytest.mark.parametrize("value", [(1,), {1}, b"b", datetime(2025, 1, 1), Level.LOW, Opaque(), Decimal(1), {1: 2}])  # noqa: DTZ001
def test_what_has_no_type_is_json_or_is_refused_with_the_advice_to_annotate(annotation: Any, value: object) -> None:
    if annotation in (list, list[Any]):
        value = [value]
    elif annotation in (dict, dict[str, Any]):
        value = {"k": value}
    assert "annotate the parameter with its type" in refusal(annotation, value)


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        (float, float("nan"), "NaN or infinity"),
        (Any, [float("-inf")], "NaN or infinity"),
        (str, "\ud800", "."),
        (Any, {"\udc00": 1}, "lone surrogate"),
        (Loose, Loose(what="\ud800"), "."),
        pytest.param(int, 10**5000, "digits", id="int huge"),
        pytest.param(Any, [-(10**5000)], "digits", id="Any huge"),
        pytest.param(Loose, Loose(what=10**5000), "digits", id="Loo huge"),
    ],
)
def test_what_json_cannot_hold_is_refused_at_the_call(annotation: Any, value: object, words: str) -> None:
    assert words in refusal(annotation, value)
    with pytest.raises(ArgumentsError) as caught:
        codec(annotation).encode_result(value)
    assert caught.value.parameter == "return"


def test_what_holds_itself_or_nests_too_deeply_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    for annotation in (Any, list, list[Any], list[list[Any]], tuple[Any, ...]):
        assert "holds itself" in refusal(annotation, loop)
        assert "holds itself" in refusal(annotation, deep)
    assert "holds itself" in refusal(Loose, Loose(what=loop))
    with pytest.raises(ArgumentsError):
        codec(tuple[Any, ...]).decode([deep], {})


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (str | datetime, datetime(2025, 1, 1)),  # noqa: DTZ001
        (str | bytes, b"abc"),
        (SecretStr, SecretStr("hush")),
        (Animal, Dog(name="Rex", tricks=3)),
        (Loose, Loose(what=(1, 2))),
        (Loose, Loose(what=float("inf"))),
        (Loose, Loose(what=Level.LOW)),
        (tuple[Any, ...], (Decimal(1),)),
    ],
)
def test_what_would_arrive_as_something_else_is_refused_at_the_call(annotation: Any, value: object) -> None:
    assert "would not arrive as what it is" in refusal(annotation, value)


def test_bytes_that_a_models_own_settings_cannot_write_are_refused_at_the_call() -> None:
    assert "ser_json_bytes" in refusal(Blob, Blob(b"\xff"))
    assert travel(Blob, Blob(b"text")) == Blob(b"text")


def test_a_class_that_pydantic_does_not_know_is_refused_with_what_to_do() -> None:
    words = refusal(Opaque, Opaque())
    assert "Opaque" in words
    assert "use a pydantic model or a dataclass, or give an id instead" in words
    assert refusal(Callable[[], None], print)


def test_no_error_holds_a_value_or_a_key_of_a_dict() -> None:
    class Cat(BaseModel):
        kind: Literal["cat"]
        age: int

    class Cow(BaseModel):
        kind: Literal["cow"]

    tagged = Annotated[Cat | Cow, Field(discriminator="kind")]
    cases: list[tuple[Any, object]] = [
        (int, "s3cret"),
        (dict[str, int], {"s3cret": "x"}),
        (dict[str, Cat], {"s3cret": {"kind": "cat", "age": "s3cret"}}),
        (tagged, {"kind": "s3cret"}),
        (Any, {"s3cret": (1,)}),
        (Animal, Dog(name="s3cret", tricks=1)),
        (Blob, Blob(b"s3cret\xff")),
        (Animal, Animal.model_construct(name=b"s3cret")),
        (Cat, {"kind": "cat", "age": 1.5, "s3cret": 1}),
    ]
    for annotation, value in cases:
        for turn in (codec(annotation).encode, codec(annotation).decode):
            if turn.__name__ == "decode" and not isinstance(value, (str, dict)):
                continue  # no JSON value: never comes from a message
            with pytest.raises(ArgumentsError) as caught:
                turn([value], {})
            assert caught.value.__context__ is None
            assert caught.value.__cause__ is None
            assert "s3cret" not in str(caught.value)
    assert "parameter 'x': age: Input should be a valid integer" in refusal(Cat, {"kind": "cat", "age": "x"})
    assert "parameter 'x': [1].age: " in refusal(list[Cat], [{"kind": "cat", "age": 1}, {"kind": "cat", "age": "x"}])


def test_a_validator_that_breaks_is_an_arguments_error() -> None:
    from pydantic import AfterValidator

    def broken(_value: int) -> int:
        raise KeyError("s3cret")

    words = refusal(Annotated[int, AfterValidator(broken)], 1)
    assert "KeyError" in words
    assert "s3cret" not in words


def test_the_worker_names_the_parameter_that_does_not_fit() -> None:
    with pytest.raises(ArgumentsError, match=r"task 'shop\.task': parameter 'x': Input should be a valid integer") as caught:
        codec(int).decode(["a"], {})
    assert caught.value.parameter == "x"


# ------------------------------------------------------------------ signatures


def many(a: int, b: str = "b", *rest: float, c: bool, d: list[int] | None = None, **more: Decimal) -> None: ...


def two(a: int, b: int) -> int: ...


def three(a: int, /, b: int = 0, *, c: int) -> None: ...


def nothing() -> None: ...


def test_arguments_stay_as_they_were_called_and_defaults_are_not_sent() -> None:
    one = ArgumentCodec(many, task="t")
    assert one.encode((1,), {"c": True}) == ([1], {"c": True})
    assert one.encode(("1", "x", 2, 3.5), {"c": True, "z": "1.50"}) == ([1, "x", 2.0, 3.5], {"c": True, "z": "1.50"})
    assert one.decode([1, "x", 2, 3.5], {"c": True, "z": "1.50"}) == ([1, "x", 2.0, 3.5], {"c": True, "z": Decimal("1.50")})
    with pytest.raises(ArgumentsError) as caught:
        one.encode((1, "x", "y"), {"c": True})
    assert caught.value.parameter == "rest"
    with pytest.raises(ArgumentsError) as caught:
        one.encode((1,), {"c": True, "z": "y"})
    assert caught.value.parameter == "z"


@pytest.mark.parametrize("function", [two, three, many, nothing])
@pytest.mark.parametrize("args", [(), (1,), (1, 2), (1, 2, 3)])
@pytest.mark.parametrize("kwargs", [{}, {"a": 1}, {"b": 1}, {"c": 1}, {"b": 1, "c": 1}, {"z": 1}])
def test_a_call_fits_where_python_says_so(function: Callable[..., Any], args: tuple[int, ...], kwargs: dict[str, Any]) -> None:
    untyped = type(function)(function.__code__, {}, function.__name__, function.__defaults__)
    untyped.__kwdefaults__ = function.__kwdefaults__
    one = ArgumentCodec(untyped, task="t")
    expected = None
    try:
        function(*args, **kwargs)
    except TypeError as error:
        expected = str(error)
    if expected is None:
        assert one.encode(args, kwargs) == ([*args], kwargs)
        return
    for turn in (one.encode, one.decode):
        with pytest.raises(ArgumentsError) as caught:
            turn(args, kwargs)
        assert caught.value.parameter is None
        if "positional-only" not in expected and "keyword-only" not in expected:
            assert str(caught.value) == expected.replace(f"{function.__name__}()", "task 't'")


def test_a_linked_signature_leaves_room_for_the_result_before_its_own_arguments() -> None:
    def resize(image: bytes, width: int, height: int = 0) -> None: ...

    one = ArgumentCodec(resize, task="t")
    assert one.encode_partial((100,), {}) == ([100], {})
    assert one.encode_partial((), {"width": "7"}) == ([], {"width": 7})
    assert one.encode_partial((b"\xff",), {}, before=0) == (["_w=="], {})
    with pytest.raises(ArgumentsError, match="multiple values for argument 'image'"):
        one.encode_partial((), {"image": b""})
    with pytest.raises(ArgumentsError, match="takes from 2 to 3 positional arguments but 4 were given"):
        one.encode_partial((1, 2, 3), {})
    with pytest.raises(ArgumentsError, match="parameter 'width'"):
        one.encode_partial(("wide",), {})


def test_a_bound_tasks_self_is_no_argument() -> None:
    def bound(self: Any, a: int) -> None: ...

    assert ArgumentCodec(bound, task="t", skip_first=True).encode((1,), {}) == ([1], {})


def test_annotations_are_resolved_at_first_use() -> None:
    def task(x: Later) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    one = ArgumentCodec(task, task="t")
    globals()["Later"] = int
    try:
        assert one.encode(("1",), {}) == ([1], {})
    finally:
        del globals()["Later"]


def test_an_annotation_that_cannot_be_resolved_is_a_config_error_that_names_it() -> None:
    def task(a: int, price: Fraction) -> None: ...

    with pytest.raises(ConfigError, match=r"task 'shop\.pay': the annotation of parameter 'price', 'Fraction', cannot be resolved"):
        ArgumentCodec(task, task="shop.pay").encode((1, 2), {})

    def result() -> Fraction: ...

    with pytest.raises(ConfigError, match="return type"):
        ArgumentCodec(result, task="t").encode((), {})


def test_results_travel_by_the_return_type() -> None:
    one = codec(list[datetime])
    when = [datetime(2025, 1, 1)]  # noqa: DTZ001
    assert one.decode_result(json.loads(dumps(one.encode_result(when)))) == when
    with pytest.raises(ArgumentsError, match="its return value: ") as caught:
        one.encode_result(None)
    assert caught.value.parameter == "return"


# ------------------------------------------------------------------ text, and what is loaded


def test_dumps_is_compact_ascii_and_refuses_what_json_has_not() -> None:
    assert dumps({"a": [1, "é", None, True, 1.5]}) == '{"a":[1,"\\u00e9",null,true,1.5]}'
    loop: list[Any] = []
    loop.append(loop)
    for value in (float("nan"), float("inf"), 10**5000, loop):
        with pytest.raises(ValueError):
            dumps(value)
    with pytest.raises(TypeError, match="a set is no JSON value"):
        dumps({1})


def test_plain_values_load_no_pydantic() -> None:
    script = """
import sys
from cloudq.values import ArgumentCodec
def task(a: int, b: dict[str, list[float]] | None, c, *d: str, e: bool = True) -> str: ...
codec = ArgumentCodec(task, task="t")
args, kwargs = codec.encode((1, {"a": [1.5]}, [None], "x"), {"e": False})
assert codec.decode(args, kwargs) == ([1, {"a": [1.5]}, [None], "x"], {"e": False})
assert codec.decode_result(codec.encode_result("x")) == "x"
sys.exit("pydantic" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0


class Colour(Enum):
    RED = "r"


def test_an_enum_arrives_as_its_member() -> None:
    assert travel(Colour, Colour.RED) is Colour.RED
    assert travel(dict[Colour, int], {Colour.RED: 1}) == {Colour.RED: 1}


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(float | object, 3), (dict[str, float] | dict[str, Any], {"a": 1}), (list[int] | list[Any], [1, "5"]), (Any | None, {"a": None})],
)
def test_a_union_with_any_decides_as_pydantic_does(annotation: Any, value: object) -> None:
    (one,), (other,) = (codec(annotation, always_validate=always).encode([value], {})[0] for always in (False, True))
    assert repr(one) == repr(other)
    assert repr(one) == repr(TypeAdapter(annotation).validate_python(value))
