"""Settings are checked when they are set, and routes choose by the exact name first."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cloudq import CloudQ
from cloudq.config import Config
from cloudq.errors import ConfigError


def test_durations_are_seconds_however_they_are_written_and_whenever_they_are_set() -> None:
    conf = Config.of({"timeout": "5m", "result_expires": timedelta(days=1)})
    assert (conf.timeout, conf.result_expires) == (300.0, 86_400.0)
    conf.send_timeout = "10s"  # type: ignore[assignment]
    assert conf.send_timeout == 10.0
    with pytest.raises(ConfigError, match="send_timeout"):
        conf.send_timeout = "soon"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crash_cap", 0),
        ("crash_cap", "5"),
        ("default_queue", ""),
        ("retry", 3),
        ("timeout", 0),
        ("send_timeout", 0),
        ("send_timeout", None),
        ("result_expires", None),
        ("task_routes", [("a", "b")]),
        ("task_routes", {"a": 5}),
        ("task_routes", {"a": {"exchange": "b"}}),
        ("task_always_eager", "yes"),
        ("catch_up", "some"),
        ("after_commit", True),
    ],
)
def test_a_value_that_cannot_be_kept_is_refused_when_it_is_set(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} takes "):
        Config.of({name: value})
    conf = Config()
    with pytest.raises(ConfigError, match=f"{name} takes "):
        setattr(conf, name, value)
    assert getattr(conf, name) == getattr(Config(), name)


def test_a_setting_of_celerys_is_told_its_name_here() -> None:
    with pytest.raises(ConfigError, match=r"backend is store= here"):
        Config.of({"backend": "redis://"})
    with pytest.raises(ConfigError, match=r"soft_time_limit is timeout="):
        CloudQ("shop", soft_time_limit=5)
    with pytest.raises(ConfigError, match=r"did you mean beat_schedule\?"):
        Config().beat_schedul = {}  # type: ignore[attr-defined]


def test_several_are_set_at_once_or_none_of_them() -> None:
    conf = Config()
    conf.update({"timeout": "5m"}, crash_cap=3)
    assert (conf.timeout, conf.crash_cap) == (300.0, 3)
    with pytest.raises(ConfigError, match="crash_cap takes"):
        conf.update(timeout=1, crash_cap=0)
    assert conf.timeout == 300.0


def test_queues_that_are_named_after_the_app_was_made_are_its_queues() -> None:
    app = CloudQ("shop", broker="memory://")
    app.conf.default_queue = "mine"
    app.conf.task_routes = {"mail.*": "emails"}
    assert set(app.queues) == {"mine", "emails"}
    app.task(name="mail.send")(lambda: None).delay()
    app.task(name="other")(lambda: None).delay()
    assert {name: app.use_broker(lambda broker, name=name: broker.stats(name)).ready for name in app.queues} == {"mine": 1, "emails": 1}
    app.close()


def test_the_queues_of_a_routing_function_are_those_of_the_apps_tasks() -> None:
    app = CloudQ("shop", broker="memory://", task_routes=lambda name: name.partition(".")[0])
    app.task(name="mail.send")(lambda: None).delay()
    assert "mail" in app.queues
    app.close()


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
