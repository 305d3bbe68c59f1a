"""Settings are checked when they are set, and routes choose by the exact name first."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cloudq.config import Config
from cloudq.errors import ConfigError


def test_durations_are_seconds_however_they_are_written_and_whenever_they_are_set() -> None:
    conf = Config.of({"timeout": "5m", "result_expires": timedelta(days=1)})
    assert (conf.timeout, conf.result_expires) == (300.0, 86_400.0)
    conf.send_timeout = "10s"  # type: ignore[assignment]
    assert conf.send_timeout == 10.0
    with pytest.raises(ConfigError, match="send_timeout"):
        conf.send_timeout = "soon"  # type: ignore[assignment]


def test_an_exact_route_wins_over_globs_and_globs_count_in_their_order() -> None:
    conf = Config(task_routes={"shop.*": "shop", "shop.mail.*": "never", "shop.mail.send": {"queue": "mail"}, "[ab].x": "short"})
    assert conf.route("shop.mail.send") == "mail"
    assert conf.route("shop.mail.other") == "shop"
    assert conf.route("a.x") == "short"
    assert conf.route("A.x") is None
    assert conf.routed_queues() == ["shop", "never", "mail", "short"]


def test_a_route_may_be_a_function() -> None:
    conf = Config(task_routes=lambda name: "long" if len(name) > 3 else None)
    assert (conf.route("abcd"), conf.route("abc")) == ("long", None)
    assert conf.routed_queues() == []


def test_a_dead_letter_queue_keeps_the_ending_that_sqs_wants() -> None:
    assert Config().dead_letter_queue("a") == "a-dlq"
    assert Config(dead_letter_suffix="_dead").dead_letter_queue("a.fifo") == "a_dead.fifo"
