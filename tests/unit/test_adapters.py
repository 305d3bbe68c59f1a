"""A URL becomes a driver by its scheme, and what is wrong with it is said by name."""

from __future__ import annotations

import pytest

from cloudq import adapters
from cloudq.adapters import AdapterContext, Location
from cloudq.clock import ManualClock
from cloudq.errors import AdapterMissing, ConfigError
from cloudq.memory import MemoryBroker, MemoryStore, MemoryTimer

CONTEXT = AdapterContext(app="a", clock=ManualClock())


def test_a_url_is_read_into_its_parts() -> None:
    location = Location.parse("sqs://eu-west-1/a%20b?prefix=shop-&wait=5m&n=3&plain=2.5&empty=")
    assert (location.scheme, location.host, location.path) == ("sqs", "eu-west-1", "a b")
    assert location.seconds("wait", 1.0) == 300.0
    assert location.seconds("plain", 1.0) == 2.5
    assert location.seconds("absent", 1.0) == 1.0
    assert (location.number("n", 9), location.number("absent", 9)) == (3, 9)
    assert location.options["empty"] == ""
    assert Location.parse("sqlite:////var/q.db").path == "/var/q.db"


@pytest.mark.parametrize("url", ["", "memory", "memory:", "//host", "memory://?a=1&a=2"])
def test_what_is_no_adapter_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        Location.parse(url)


@pytest.mark.parametrize("option", ["lease=soon", "batch=x", "batch=0", "nonsense=1"])
def test_a_bad_option_is_refused_by_name(option: str) -> None:
    with pytest.raises(ConfigError, match=option.split("=")[0]):
        adapters.open_broker(f"memory://?{option}", CONTEXT)


def test_memory_serves_all_three_seams() -> None:
    broker = adapters.open_broker("memory://", CONTEXT)
    assert isinstance(broker, MemoryBroker)
    assert isinstance(adapters.open_store("memory://", CONTEXT), MemoryStore)
    timed = AdapterContext(app="a", clock=ManualClock(), broker=broker)
    assert isinstance(adapters.open_timer("memory://", timed), MemoryTimer)


def test_an_unknown_scheme_is_answered_with_the_pip_command() -> None:
    with pytest.raises(AdapterMissing, match=r"installed: .*memory"):
        adapters.find("nosuch")
    with pytest.raises(AdapterMissing, match=r"pip install 'cloudq-tasks\[gcp\]'"):
        adapters.find("firestore")


def test_an_adapter_asked_for_what_it_is_not_says_so() -> None:
    with pytest.raises(ConfigError, match="sqlite:// is no broker"):
        adapters.open_broker("sqlite:///x.db", CONTEXT)


class _Entry:
    def __init__(self, loads: object) -> None:
        self.loads = loads
        self.name = self.value = "fake:adapter"

    def load(self) -> object:
        if isinstance(self.loads, Exception):
            raise self.loads
        return self.loads


def test_an_adapter_whose_package_is_missing_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ModuleNotFoundError("no", name="aiobotocore")
    monkeypatch.setattr(adapters, "entry_points", lambda **query: [_Entry(missing)])
    with pytest.raises(AdapterMissing, match=r"'aiobotocore'.*cloudq-tasks\[aws\]"):
        adapters.find("sqs")
    monkeypatch.setattr(adapters, "entry_points", lambda **query: [_Entry("no adapter")])
    with pytest.raises(ConfigError, match=r"is no cloudq\.adapters\.Adapter"):
        adapters.find("sqs")
