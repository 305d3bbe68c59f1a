"""A Retry says when a failed task runs again, and never more than it promises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudq import Retry
from cloudq.retry import NO_RETRY


def test_waits_grow_by_the_backoff_up_to_the_longest() -> None:
    retry = Retry(max_retries=None, delay="2s", backoff=3, max_delay=20, jitter=False)
    assert [retry.wait(ValueError(), n) for n in range(4)] == [2, 6, 18, 20]


def test_errors_that_are_not_named_are_final_and_never_wins_over_on() -> None:
    retry = Retry(on=(OSError,), never=(FileNotFoundError,))
    assert retry.wait(OSError(), 0) is not None
    assert retry.wait(FileNotFoundError(), 0) is None
    assert retry.wait(ValueError(), 0) is None
    assert NO_RETRY.wait(ValueError(), 0) is None


def test_there_are_so_many_retries_and_no_more() -> None:
    retry = Retry(max_retries=2)
    assert [retry.wait(ValueError(), n) is None for n in range(4)] == [False, False, True, True]
    assert Retry(max_retries=0).wait(ValueError(), 0) is None
    assert Retry(max_retries=None).wait(ValueError(), 10**6) is not None


def test_jitter_spreads_from_nothing_to_the_whole_wait() -> None:
    retry = Retry(delay=10, jitter=True)
    assert retry.pause(0, uniform=lambda low, high: low) == 0
    assert retry.pause(0, uniform=lambda low, high: high) == 10


def test_decide_chooses_the_wait_or_gives_up() -> None:
    retry = Retry(decide=lambda error, retries: retries * 5.0 if retries < 2 else None)
    assert [retry.wait(ValueError(), n) for n in range(3)] == [0, 5, None]


@pytest.mark.parametrize("settings", [{"max_retries": -1}, {"backoff": 0.5}, {"delay": -1}, {"max_retries": True}])
def test_what_makes_no_sense_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Retry(**settings)  # type: ignore[arg-type]


def test_a_class_alone_is_taken_and_what_is_no_exception_is_refused() -> None:
    assert Retry(on=OSError).on == (OSError,)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="exception classes"):
        Retry(on=("OSError",))  # type: ignore[arg-type]


@given(st.integers(0, 10**9), st.floats(0, 1e6), st.floats(1, 100), st.floats(0, 1e6))
def test_no_wait_is_negative_infinite_or_over_the_longest(retries: int, delay: float, backoff: float, longest: float) -> None:
    wait = Retry(max_retries=None, delay=delay, backoff=backoff, max_delay=longest).wait(ValueError(), retries)
    assert wait is not None
    assert 0 <= wait <= longest
