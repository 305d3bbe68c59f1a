"""Durations are read as people write them, and anything else is refused by name."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudq.durations import seconds


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0.0),
        (90, 90.0),
        (0.25, 0.25),
        (timedelta(minutes=2, milliseconds=5), 120.005),
        ("250ms", 0.25),
        ("30s", 30.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        (" 3d ", 259_200.0),
        ("2w", 1_209_600.0),
        ("1.5h", 5400.0),
        ("1m500ms", 60.5),
    ],
)
def test_a_duration_is_seconds(value: float | timedelta | str, expected: float) -> None:
    assert seconds(value) == pytest.approx(expected)


@pytest.mark.parametrize("value", ["", "5", "m", "5 minutes", "-5s", "1h,30m", "5M", "٣s", "1e3s", "5s!", "1..5s"])
def test_text_that_is_no_duration_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"timeout .* is not understood"):
        seconds(value, "timeout")


@pytest.mark.parametrize("value", [-1, -0.001, float("nan"), float("inf"), timedelta(seconds=-1), "9" * 400 + "s"])
def test_a_time_that_is_negative_or_not_finite_is_refused(value: float | timedelta | str) -> None:
    with pytest.raises(ValueError, match="delay must be a finite time"):
        seconds(value, "delay")


@pytest.mark.parametrize("value", [True, None, [5], b"5s"])
def test_another_type_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="delay must be seconds"):
        seconds(value, "delay")  # type: ignore[arg-type]


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_the_parts_add_up(hours: int, minutes: int, rest: int) -> None:
    assert seconds(f"{hours}h{minutes}m{rest}s") == hours * 3600 + minutes * 60 + rest
