"""Writing what was rendered: new files, changed ones, and never over what a person has edited; and `cloudq deploy`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloudq.deploy.writing import RECORD, Step, changes, write
from cloudq.errors import ConfigError


def steps(files: dict[str, str], folder: Path) -> dict[str, Step]:
    return {each.name: each.step for each in changes(files, folder)}


def test_a_first_run_creates_a_second_keeps_and_a_third_updates_what_has_changed(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    files = {"a.tf": "a\n", "b.json": "b\n"}
    assert steps(files, folder) == {"a.tf": Step.CREATE, "b.json": Step.CREATE}
    assert not folder.exists(), "looking writes nothing"
    write(changes(files, folder), folder)
    assert steps(files, folder) == {"a.tf": Step.KEEP, "b.json": Step.KEEP}
    files["b.json"] = "c\n"
    (change,) = [each for each in changes(files, folder) if each.step is not Step.KEEP]
    assert (change.step, change.diff) == (Step.UPDATE, "--- b.json (there)\n+++ b.json (new)\n@@ -1 +1 @@\n-b\n+c\n")
    write([change], folder)
    assert ((folder / "a.tf").read_text("utf-8"), (folder / "b.json").read_text("utf-8")) == ("a\n", "c\n")
    assert sorted(each.name for each in folder.iterdir()) == [".cloudq", "a.tf", "b.json"]


def test_what_was_edited_is_kept_until_told_otherwise(tmp_path: Path) -> None:
    write(changes({"a.tf": "1\n"}, tmp_path), tmp_path)
    (tmp_path / "a.tf").write_text("mine\n", "utf-8")
    for wanted in ("1\n", "2\n"):
        assert steps({"a.tf": wanted}, tmp_path) == {"a.tf": Step.EDITED}
        write(changes({"a.tf": wanted}, tmp_path), tmp_path)
        assert (tmp_path / "a.tf").read_text("utf-8") == "mine\n"
    write(changes({"a.tf": "2\n"}, tmp_path), tmp_path, force=True)
    assert steps({"a.tf": "3\n"}, tmp_path) == {"a.tf": Step.UPDATE}


@pytest.mark.parametrize("record", [None, "", "[]", "{", '{"a.tf": 1}'])
def test_without_a_record_what_is_there_counts_as_edited(record: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.tf").write_bytes(b"old\r\n\xff")
    if record is not None:
        (tmp_path / RECORD).parent.mkdir()
        (tmp_path / RECORD).write_text(record, "utf-8")
    assert steps({"a.tf": "new\n"}, tmp_path) == {"a.tf": Step.EDITED}


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(ConfigError, match="cannot be written"):
        write(changes({"a.tf": "a"}, tmp_path / "file"), tmp_path / "file")


SHOP = """
from cloudq import CloudQ
app = CloudQ("shop")
@app.task(queue="emails", timeout="30s")
def mail(): ...
"""


def test_the_command_writes_and_check_says_whether_the_files_are_as_the_code_asks(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP, "utf-8")
    settings = tmp_path / "pyproject.toml"
    settings.write_text('[tool.cloudq]\napp = "shop:app"\ntarget = "aws-terraform"\naws.region = "eu-west-1"\n', "utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDQ_")}

    def deploy(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-W", "error", "-m", "cloudq.cli", "deploy", "--out", "out", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout

    assert deploy("--check")[0] == 1
    assert not (tmp_path / "out").exists()
    code, said = deploy()
    assert (code, "create  out/cloudq.auto.tfvars.json" in said) == (0, True)
    assert json.loads((tmp_path / "out" / "cloudq.auto.tfvars.json").read_text("utf-8"))["app"] == "shop"
    assert deploy("--check") == (0, "")
    settings.write_text(settings.read_text("utf-8") + "queues.emails.memory = 1024\n", "utf-8")
    code, said = deploy("--diff")
    assert (code, '-      "memory": 512,' in said, '+      "memory": 1024,' in said) == (0, True, True)
    assert deploy("--check") == (1, "update  out/cloudq.auto.tfvars.json\n")
    with (tmp_path / "out" / "queues.tf").open("a", encoding="utf-8") as file:
        file.write("# mine\n")
    assert deploy() == (1, "update  out/cloudq.auto.tfvars.json\nedited  out/queues.tf\n")
    assert deploy("gcp-terraform")[0] == 2
