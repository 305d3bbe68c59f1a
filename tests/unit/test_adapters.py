"""A URL becomes a driver by its scheme, and what is wrong with it is said by name."""

from __future__ import annotations

import sys
from importlib.metadata import distribution
from pathlib import Path

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
    with pytest.raises(AdapterMissing, match=r"there are .*memory.*pip install"):
        adapters.find("nosuch")


def test_an_adapter_asked_for_what_it_is_not_says_so() -> None:
    with pytest.raises(ConfigError, match="sqlite:// is no broker"):
        adapters.open_broker("sqlite:///x.db", CONTEXT)


def _distribution(path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """What pip leaves of a third party's distribution: a module, and the entry point that names it."""
    info = path / "acme_cloudq-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-cloudq\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cloudq.adapters]\nacme = acme_cloudq:adapter\n")
    (path / "acme_cloudq.py").write_text(module)
    monkeypatch.syspath_prepend(str(path))
    monkeypatch.delitem(sys.modules, "acme_cloudq", raising=False)


def test_a_third_partys_adapter_joins_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _distribution(tmp_path, monkeypatch, "from cloudq.memory import adapter\n")
    assert isinstance(adapters.open_broker("acme://", CONTEXT), MemoryBroker)
    with pytest.raises(AdapterMissing, match=r"there are acme, .*memory"):
        adapters.find("nosuch")


def test_an_adapter_whose_package_is_missing_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _distribution(tmp_path, monkeypatch, "import acme_sdk\n")
    with pytest.raises(AdapterMissing, match=r"acme:// needs the package 'acme_sdk'"):
        adapters.find("acme")
    monkeypatch.setitem(sys.modules, "cloudq_aws.sqs", None)
    with pytest.raises(AdapterMissing, match=r"sqs:// needs .*cloudq-tasks\[aws\]"):
        adapters.find("sqs")


def test_an_entry_point_that_names_no_adapter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _distribution(tmp_path, monkeypatch, "adapter = 'none'\n")
    with pytest.raises(ConfigError, match=r"is no cloudq\.adapters\.Adapter"):
        adapters.find("acme")


def test_what_is_known_without_reading_metadata_is_what_the_distribution_declares() -> None:
    declared = {entry.name: entry.value for entry in distribution("cloudq-tasks").entry_points if entry.group == adapters.GROUP}
    assert declared
    assert declared == adapters._SHIPPED
