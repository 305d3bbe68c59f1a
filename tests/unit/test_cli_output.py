"""What the commands show, and what they never show."""

from __future__ import annotations

import pytest
import typer

from cloudq.cli.exits import code_of
from cloudq.cli.output import public_url, span
from cloudq.cli.work import weights
from cloudq.errors import (
    BrokerUnavailable,
    CloudQError,
    ConfigError,
    QueueNotFound,
    ResultTimeout,
    SendUnknown,
    StoreUnavailable,
    TaskFailed,
)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("sqs://eu-west-1/?prefix=shop-&lease=60", "sqs://eu-west-1/?prefix=shop-&lease=60"),
        ("amqp://user:secret@host:5672/vhost?password=x&api_key", "amqp://host:5672/vhost?password=…&api_key=…"),
        ("sqlite:////var/results.db", "sqlite:////var/results.db"),
        ("memory://", "memory://"),
        (3, "int"),
    ],
)
def test_a_url_is_shown_without_what_could_be_secret(given: object, shown: str) -> None:
    assert public_url(given) == shown


@pytest.mark.parametrize(
    ("length", "shown"),
    [(0.0004, "0 ms"), (0.012, "12 ms"), (0.9996, "1.0 s"), (3.44, "3.4 s"), (59, "59 s"), (300, "5 min"), (7200, "2 h"), (864000, "10 d")],
)
def test_a_duration_is_rounded_to_what_matters(length: float, shown: str) -> None:
    assert span(length) == shown


def test_queues_are_named_with_weights_or_without() -> None:
    assert weights(["high=5, low", "bulk=2"]) == {"high": 5, "low": 1, "bulk": 2}


@pytest.mark.parametrize("text", ["high=0", "=3", "high,high=2", "high=a", "high=1001"])
def test_a_weight_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        weights([text])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TaskFailed("ValueError", "no", task_id="x"), 1),
        (QueueNotFound("no queue"), 1),
        (ConfigError("wrong"), 2),
        (BrokerUnavailable("down"), 3),
        (StoreUnavailable("down"), 3),
        (ResultTimeout("late"), 4),
        (SendUnknown("unknown", task_id="x"), 4),
        (TimeoutError(), 4),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: CloudQError | TimeoutError, code: int) -> None:
    assert code_of(error) == code
