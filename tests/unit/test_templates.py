"""How values are put into templates: quoted by the environment itself, with mistakes that name their place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cloudq.errors import ConfigError
from cloudq_templates import render


def rendered(folder: Path, text: str, **values: object) -> str:
    (folder / "out.yaml.j2").write_text(text, "utf-8")
    return render("aws_terraform", {"variables": {}, **values}, folder).get("out.yaml", "")


@given(
    value=st.recursive(
        st.text() | st.integers() | st.booleans() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_value_is_read_back_from_yaml_as_it_was(value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("templates")
    text = rendered(folder, "a: [[ value ]]\nb:\n  c: [[ value | json(indent=2) ]]\n", value=value)
    assert yaml.safe_load(text) == {"a": value, "b": {"c": value}}


def test_a_comment_is_one_line_and_a_bare_word_is_one(tmp_path: Path) -> None:
    assert rendered(tmp_path, "# [[ x | comment ]]\n", x="a\nb: 1\u2028é") == "# a\\nb: 1\\u2028é\n"
    assert rendered(tmp_path, "[[ x | bare ]]\n", x="shop-dev.fifo:1") == "shop-dev.fifo:1\n"
    with pytest.raises(ConfigError, match=r"out.yaml.j2, line 2: 'a b' cannot stand without quotes"):
        rendered(tmp_path, "\n[[ x | bare ]]", x="a b")


def test_compose_reads_no_variable_out_of_a_value(tmp_path: Path) -> None:
    assert rendered(tmp_path, "[[ x | compose ]]\n", x='${HOME} $x "') == '"$${HOME} $$x \\""\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n[[ nothing ]]", "line 2: 'nothing' is undefined"),
        ("[[ x.y ]]", "line 1: 'str object' has no attribute 'y'"),
        ("\n\n[% if %]", "line 3: Expected an expression"),
        ("[[ x | upper ]]", "line 1: No filter named 'upper'"),
    ],
)
def test_a_mistake_in_a_template_names_its_place(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the template out\.yaml\.j2, ") as caught:
        rendered(tmp_path, text, x="a")
    assert said in str(caught.value)


def test_what_renders_to_nothing_and_what_is_a_part_are_not_written(tmp_path: Path) -> None:
    (tmp_path / "_part.j2").write_text("x: [[ x ]]\n", "utf-8")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "as_is.tf").write_text("[[ x ]]\n", "utf-8")
    assert rendered(tmp_path, "[% if false %]\nx\n[% endif %]\n", x=1) == ""
    files = render("aws_terraform", {"variables": {}, "x": 1}, tmp_path)
    assert "_part" not in files
    assert "out.yaml" not in files
    assert files["sub/as_is.tf"] == "[[ x ]]\n"
    assert rendered(tmp_path, '[% include "_part.j2" %]', x=1) == "x: 1\n"


def test_a_file_of_ones_own_stands_for_the_one_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "store.tf").write_text("mine\n", "utf-8")
    shipped, own = render("aws_terraform", {"variables": {}}), render("aws_terraform", {"variables": {}}, tmp_path)
    assert own == {**shipped, "store.tf": "mine\n"}
    with pytest.raises(ConfigError, match="is no folder"):
        render("aws_terraform", {}, tmp_path / "nowhere")
