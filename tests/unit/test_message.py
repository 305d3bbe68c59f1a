"""The envelope: what is written can be read, what cannot be read says why, and dead letters lose nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudq import CloudQ
from cloudq.broker import Delivery
from cloudq.errors import DecodeError
from cloudq.message import Message, dead_letter, decode, derived_id, encode_call, is_bare, new_id, parse, unwrap
from cloudq.outcome import Later
from cloudq.runner import Runner

CALL: dict[str, Any] = {"v": 1, "id": "a", "task": "add", "args": [1], "sent": 1.5}


def test_a_bare_call_is_the_same_message_as_one_built_field_by_field() -> None:
    body = encode_call("a", '"add"', "[1]", 1.5)
    assert decode(parse(body)) == Message(dict(CALL))
    assert is_bare(parse(body))


def test_ids_are_fresh_and_derived_ids_are_the_same_for_the_same_parts_only() -> None:
    assert len({new_id() for _ in range(100)}) == 100
    assert derived_id("a", "link", 1) == derived_id("a", "link", 1)
    assert len({derived_id("a", "link", 1), derived_id("a", "link", 11), derived_id("al", "ink", 1), derived_id("a", "link1")}) == 4


def test_what_is_not_known_stays_with_a_retry_and_a_dead_letter() -> None:
    message = decode({**CALL, "colour": {"deep": [1]}})
    assert message.next_attempt().fields["colour"] == {"deep": [1]}
    assert parse(dead_letter(message.encode(), message.fields, {"reason": "x"}))["colour"] == {"deep": [1]}


def test_attempts_never_fall_and_a_redrive_gives_a_fresh_budget() -> None:
    message = decode(
        {**CALL, "dead": {"reason": "x"}, "attempt": 3, "crashes": 2, "eta": 5, "expires": 6, "unknown_since": 1, "deferrals": 4}
    )
    again = message.revived()
    assert (again.attempt, again.first, again.retries, again.crashes, again.deferrals) == (4, 4, 0, 0, 0)
    assert again.eta is again.expires is again.dead is None
    assert again.next_attempt().retries == 1


def test_only_crashes_one_after_another_are_counted() -> None:
    crashed = decode(CALL).next_attempt(crashed=True).next_attempt(crashed=True)
    assert crashed.crashes == 2
    assert crashed.copy(deferrals=1).crashes == 2
    assert crashed.next_attempt().crashes == 0


def test_the_deduplication_id_tells_attempts_and_deferrals_apart() -> None:
    message = decode(dict(CALL))
    ids = [message.dedup_id(), message.next_attempt().dedup_id(), message.copy(deferrals=1).dedup_id()]
    assert len(set(ids)) == 3


@pytest.mark.parametrize("extra", [{"attempt": "x"}, {"eta": "now"}, {"kwargs": []}, {"group": 1}, {"link": [{"task": "t"}]}])
def test_a_short_message_is_checked_as_a_long_one(extra: dict[str, Any]) -> None:
    short = {"v": 1, "id": "a", "task": "add", **extra}
    for fields in (short, {**CALL, **extra, "more": 1}):
        with pytest.raises(DecodeError, match=next(iter(extra))):
            decode(fields)


def test_a_short_message_with_an_eta_waits_for_it() -> None:
    app = CloudQ("short", broker="memory://")

    @app.task(name="add")
    def add(x: int) -> None: ...

    body = json.dumps({"v": 1, "id": "a", "task": "add", "args": [1], "eta": app.clock.time() + 60})
    outcome = Runner(app).admit(Delivery(queue="default", body=body, receipt=None)).outcome
    assert isinstance(outcome, Later)
    assert 50 < outcome.delay <= 60


@pytest.mark.parametrize(
    "body",
    [
        "",
        "x",
        "[]",
        "1",
        "null",
        '"x"',
        "{",
        '{"v":1',
        '{"a":1} x',
        '{"a":NaN}',
        '{"a":-Infinity}',
        "[" * 10_000,
        '{"a":' + "9" * 5_000 + "}",
    ],
)
def test_what_is_no_json_object_is_a_decode_error(body: str) -> None:
    with pytest.raises(DecodeError):
        parse(body)


def test_links_nested_without_end_are_refused_and_not_followed() -> None:
    link: dict[str, Any] = {"task": "t", "queue": "q"}
    for _ in range(5_000):
        link = {"task": "t", "queue": "q", "link": [link]}
    with pytest.raises(DecodeError, match="link"):
        decode({**CALL, "link": [link]})
    while "link" in link:  # taken apart from outside, for the collector's sake
        link = link.pop("link")[0]


def test_white_space_around_a_message_is_no_fault() -> None:
    assert parse(f" \n{json.dumps(CALL)}\n ") == CALL


@pytest.mark.parametrize(("version", "newer"), [(0, False), (2, True), (99, True), ("1", False), (True, False), (None, False)])
def test_only_a_higher_version_is_a_newer_one(version: object, newer: bool) -> None:
    with pytest.raises(DecodeError) as caught:
        decode({**CALL, "v": version})
    assert caught.value.newer is newer


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_come_out_of_a_dead_letter_as_they_went_in_however_often_it_dies(data: bytes) -> None:
    body = data.decode("utf-8", "surrogateescape")
    letter = dead_letter(body, None, {"reason": "x"})
    for _ in range(3):
        assert letter.isascii()
        assert unwrap(parse(letter)) == body
        letter = dead_letter(letter, None, {"reason": "again"})
    assert parse(letter)["dead"]["reason"] == "again"


def test_a_message_that_cannot_be_written_again_is_wrapped() -> None:
    body = '{"v":1,"id":"a","task":"add","args":[1e999]}'
    assert unwrap(parse(dead_letter(body, parse(body), {"reason": "x"}))) == body


def test_a_wrapper_with_damaged_bytes_is_kept_whole() -> None:
    body = '{"v":1,"dead":{"raw":"no base64!"}}'
    letter = dead_letter(body, parse(body), {"reason": "x"})
    assert unwrap(parse(letter)) == body
