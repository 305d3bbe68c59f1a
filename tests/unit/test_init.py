"""``cloudq init``: what it writes, what it asks for, and that it writes over nothing."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cloudq.cli import starting
from cloudq.cli.app import cli
from cloudq.deploy.settings import Target, read

TARGETS = {
    "aws-sam": (),
    "aws-cloudformation": (),
    "aws-terraform": ("--region", "eu-west-1"),
    "gcp-terraform": ("--project", "my-project"),
    "kubernetes": ("--account", "123456789012"),
    "compose": (),
}


@pytest.fixture(autouse=True)
def no_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)


def init(folder: Path, *options: str, code: int = 0) -> str:
    """Run it where nobody can be asked; returns what it said."""
    done = CliRunner().invoke(cli, ["init", str(folder), *options])
    found = done.exit_code if done.exception is None or isinstance(done.exception, SystemExit) else type(done.exception).__name__
    assert found == code, f"{done.output}\n{done.exception!r}"
    return done.output


def refused(folder: Path, *options: str) -> str:
    """The error where a folder is not as it must be."""
    done = CliRunner().invoke(cli, ["init", str(folder), *options])
    assert type(done.exception).__name__ == "ConfigError"
    return str(done.exception)


def texts(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in folder.rglob("*") if path.is_file()}


def test_a_project_has_a_task_its_test_settings_and_what_to_do_next(tmp_path: Path) -> None:
    said = init(tmp_path / "my-shop")
    written = texts(tmp_path / "my-shop")
    assert sorted(written) == [
        ".gitignore",
        "README.md",
        "local.env",
        "my_shop/__init__.py",
        "my_shop/tasks.py",
        "pyproject.toml",
        "tests/test_tasks.py",
    ]
    assert all(f"create  {tmp_path / 'my-shop' / name}" in said.replace("\n/", "/") for name in written)
    assert "cloudq call my_shop.tasks.welcome" in said
    assert not any("[[" in text and "[[[" not in text for text in written.values())
    for name, text in written.items():
        assert text.endswith("\n")
        assert not text.endswith("\n\n")
        if name.endswith(".py"):
            compile(text, name, "exec")


@pytest.mark.parametrize("target", TARGETS)
def test_its_settings_are_good_in_each_stage(target: str, tmp_path: Path) -> None:
    init(tmp_path, "--name", "shop", "--target", target, *TARGETS[target])
    document = tomllib.loads((tmp_path / "pyproject.toml").read_text("utf-8"))
    assert document["project"]["dependencies"] == ["cloudq-tasks[gcp]" if target == "gcp-terraform" else "cloudq-tasks[aws]"]
    for stage in ("dev", "prod"):
        settings = read(tmp_path / "pyproject.toml", stage)
        assert (settings.app, settings.target) == ("shop.tasks:app", target)
    given = dict(zip(TARGETS[target][::2], TARGETS[target][1::2], strict=True))
    assert settings.aws.region == (None if target in ("gcp-terraform", "compose") else given.get("--region", "us-east-1"))
    assert (settings.gcp.project, settings.aws.account) == (given.get("--project"), given.get("--account"))
    assert settings.image == {
        "gcp-terraform": "us-central1-docker.pkg.dev/my-project/shop/shop:0.1.0",
        "kubernetes": "123456789012.dkr.ecr.us-east-1.amazonaws.com/shop:0.1.0",
    }.get(target)


def test_kubernetes_with_a_google_project_uses_google_queues(tmp_path: Path) -> None:
    init(tmp_path, "--name", "shop", "--target", "kubernetes", "--project", "my-project", "--image", "r.example/shop:1")
    assert '"cloudq-tasks[gcp]"' in (tmp_path / "pyproject.toml").read_text("utf-8")


def test_each_target_is_tried_here() -> None:
    assert set(TARGETS) == set(get_args(Target))


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        init(tmp_path / folder, "--name", "shop")
    assert texts(tmp_path / "a") == texts(tmp_path / "b")


def test_the_region_is_that_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    init(tmp_path, "--name", "shop")
    assert read(tmp_path / "pyproject.toml", "dev").aws.region == "eu-central-1"


# ---------------------------------------------------------------------- what is there already


def test_a_folder_with_any_of_its_files_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "local.env").symlink_to(tmp_path / "nowhere")
    assert "README.md, local.env" in refused(tmp_path, "--name", "shop")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "local.env"]


def test_with_force_what_is_there_stays_and_the_rest_is_written(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("# mine\n")
    (tmp_path / "local.env").symlink_to(tmp_path / "nowhere")
    said = init(tmp_path, "--name", "shop", "--force")
    assert (tmp_path / "pyproject.toml").read_text() == "# mine\n"
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "shop" / "tasks.py").is_file()
    assert "kept" in said
    assert 'app = "shop.tasks:app"' in said


def test_a_folder_with_other_files_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    init(tmp_path, "--name", "shop")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(tmp_path / "file", "--name", "shop")


# ---------------------------------------------------------------------- names, and what must be said


@pytest.mark.parametrize(
    "name", ["", "Shop", "1shop", "shop-", "a--b", "shop_2", "über", "s" * 31, "json", "class", "match", "tests", "cloudq", "a b", "../x"]
)
def test_a_name_that_nothing_could_have_is_refused(name: str, tmp_path: Path) -> None:
    assert "cannot be the name" in " ".join(init(tmp_path / "x", "--name", name, code=2).replace("│", " ").split())
    assert not (tmp_path / "x").exists()


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_a_name_that_is_proposed_is_good_and_that_of_the_folder(folder: str) -> None:
    if folder not in (".", ".."):
        name = starting._proposed(Path("/") / folder)
        assert name is None or starting._name(name) is None
        if folder.isascii() and folder.isalpha() and len(folder) <= 30 and starting._name(folder.lower()) is None:
            assert name == folder.lower()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", "aws_sam"), "did you mean 'aws-sam'"),
        (("--target", "gcp-terraform"), "--project"),
        (("--target", "gcp-terraform", "--project", "My"), "no Google Cloud project"),
        (("--target", "kubernetes", "--image", "r/shop:1"), "--account"),
        (("--target", "kubernetes", "--account", "123456789012", "--image", "A b"), "no image"),
        (("--image", "r/shop:1"), "no use for it"),
        (("--target", "kubernetes", "--account", "12", "--image", "r/shop:1"), "12 digits"),
        (("--target", "aws-sam", "--project", "my-project"), "no use for it"),
        (("--target", "compose", "--region", "eu-west-1"), "no use for it"),
        (("--region", "Frankfurt"), "no region"),
        (("--target", "gcp-terraform", "--project", "my-project", "--region", "eu-west-1"), "no region"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_say(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    told = " ".join(init(tmp_path / "x", "--name", "shop", *options, code=2).replace("│", " ").split())
    assert said in told
    assert not (tmp_path / "x").exists()


def test_a_folder_of_which_no_name_can_be_made_needs_one(tmp_path: Path) -> None:
    assert "--name" in init(tmp_path / "123", code=2)
    init(tmp_path / "123", "--name", "shop")
