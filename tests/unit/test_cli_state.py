"""Which app a command means, by the nearest pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cloudq.cli.state import State
from cloudq.errors import ConfigError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def test_the_nearest_pyproject_names_the_app_and_its_folder_can_be_imported_from(here: Path) -> None:
    (here / "pyproject.toml").write_text('[tool.cloudq]\napp = "shop.tasks:app"\n', "utf-8")
    assert State(None).reference() == "shop.tasks:app"
    assert sys.path[0] == str(here)
    assert State("other:app").reference() == "other:app"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('tool = "x"', "must be a table"),
        ('[tool]\ncloudq = "x"', "must be a table"),
        ("[tool.cloudq]\napp = 3", 'must be text like "shop.tasks:app"'),
        ("[tool.cloudq", "cannot be read"),
        ("[project]", "which app?"),
        ("[tool.cloudq]", "which app?"),
    ],
)
def test_a_pyproject_that_names_no_app_is_told(text: str, said: str, here: Path) -> None:
    (here / "pyproject.toml").write_text(text + "\n", "utf-8")
    with pytest.raises(ConfigError) as caught:
        State(None).reference()
    assert said in str(caught.value)
