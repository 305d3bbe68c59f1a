"""Writing what was rendered: new files, changed ones, and never over what a person has edited; and `cloudq deploy`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloudq.cli.app import cli
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


def test_what_is_not_written_any_more_goes_unless_it_was_edited(tmp_path: Path) -> None:
    write(changes({"a.tf": "a\n", "sub/b.tf": "b\n", "c.tf": "c\n"}, tmp_path), tmp_path)
    (tmp_path / "c.tf").write_text("mine\n", "utf-8")
    found = changes({"a.tf": "a\n"}, tmp_path)
    assert {each.name: each.step for each in found} == {"a.tf": Step.KEEP, "sub/b.tf": Step.DELETE, "c.tf": Step.EDITED}
    assert next(each.diff for each in found if each.name == "sub/b.tf").endswith("-b\n")
    write(found, tmp_path)
    assert [(tmp_path / name).exists() for name in ("a.tf", "sub/b.tf", "c.tf")] == [True, False, True]
    assert steps({"a.tf": "a\n"}, tmp_path) == {"a.tf": Step.KEEP, "c.tf": Step.EDITED}
    write(changes({"a.tf": "a\n"}, tmp_path), tmp_path, force=True)
    assert steps({"a.tf": "a\n"}, tmp_path) == {"a.tf": Step.KEEP}
    assert not (tmp_path / "c.tf").exists()


def test_a_record_that_somebody_has_changed_deletes_nothing_outside_the_folder(tmp_path: Path) -> None:
    outside, folder = tmp_path / "precious", tmp_path / "out"
    outside.write_text("1\n", "utf-8")
    write(changes({"a.tf": "a\n"}, folder), folder)
    record = json.loads((folder / RECORD).read_text("utf-8"))
    digest = hashlib.sha256(b"1\n").hexdigest()
    record["files"] |= {"../precious": digest, str(outside): digest}
    (folder / RECORD).write_text(json.dumps(record), "utf-8")
    write(changes({"a.tf": "a\n"}, folder), folder, force=True)
    assert outside.read_text("utf-8") == "1\n"


def test_what_was_edited_is_the_user_s_alone_until_what_would_be_written_changes_too(tmp_path: Path) -> None:
    write(changes({"a.tf": "1\n"}, tmp_path), tmp_path)
    (tmp_path / "a.tf").write_text("mine\n", "utf-8")
    for wanted, step in (("1\n", Step.YOURS), ("2\n", Step.EDITED), ("2\n", Step.EDITED), ("1\n", Step.YOURS)):
        assert steps({"a.tf": wanted}, tmp_path) == {"a.tf": step}
        write(changes({"a.tf": wanted}, tmp_path), tmp_path)
        assert (tmp_path / "a.tf").read_text("utf-8") == "mine\n"
    write(changes({"a.tf": "2\n"}, tmp_path), tmp_path, force=True)
    assert steps({"a.tf": "3\n"}, tmp_path) == {"a.tf": Step.UPDATE}


def test_what_was_taken_over_by_hand_is_the_user_s_alone_once_it_is_to_be_kept(tmp_path: Path) -> None:
    write(changes({"a.tf": "1\n", "b.tf": "1\n"}, tmp_path), tmp_path)
    for name in ("a.tf", "b.tf"):
        (tmp_path / name).write_text("mine and 2\n", "utf-8")
    found = changes({"a.tf": "2\n"}, tmp_path)
    assert {each.name: each.step for each in found} == {"a.tf": Step.EDITED, "b.tf": Step.EDITED}
    write(found, tmp_path, keep=True)
    assert steps({"a.tf": "2\n"}, tmp_path) == {"a.tf": Step.YOURS}
    assert [(tmp_path / name).read_text("utf-8") for name in ("a.tf", "b.tf")] == ["mine and 2\n"] * 2
    assert steps({"a.tf": "3\n"}, tmp_path) == {"a.tf": Step.EDITED}


def test_what_was_deleted_stays_deleted_unless_all_of_it_was(tmp_path: Path) -> None:
    files = {"a.tf": "1\n", "b.tf": "1\n"}
    write(changes(files, tmp_path), tmp_path)
    (tmp_path / "a.tf").unlink()
    assert steps(files, tmp_path) == {"a.tf": Step.YOURS, "b.tf": Step.KEEP}
    write(changes(files, tmp_path), tmp_path)
    assert not (tmp_path / "a.tf").exists()
    assert steps({**files, "a.tf": "2\n"}, tmp_path) == {"a.tf": Step.EDITED, "b.tf": Step.KEEP}
    write(changes({**files, "a.tf": "2\n"}, tmp_path), tmp_path)
    assert not (tmp_path / "a.tf").exists()
    (tmp_path / "b.tf").unlink()
    assert steps(files, tmp_path) == {"a.tf": Step.CREATE, "b.tf": Step.CREATE}


def test_what_was_deleted_and_then_was_not_to_be_written_is_written_once_it_is_again(tmp_path: Path) -> None:
    files = {"a.yaml": "1\n", "b.yaml": "1\n"}
    write(changes(files, tmp_path), tmp_path)
    (tmp_path / "a.yaml").unlink()
    write(changes({"b.yaml": "1\n"}, tmp_path), tmp_path)
    assert steps(files, tmp_path) == {"a.yaml": Step.CREATE, "b.yaml": Step.KEEP}


@pytest.mark.parametrize("record", [None, "", "[]", "{", '{"a.tf": 1}', '{"files": 1}', '{"files": {}, "made": 1}'])
def test_without_a_record_what_is_there_counts_as_edited(record: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.tf").write_bytes(b"old\r\n\xff")
    if record is not None:
        (tmp_path / RECORD).parent.mkdir()
        (tmp_path / RECORD).write_text(record, "utf-8")
    assert steps({"a.tf": "new\n"}, tmp_path) == {"a.tf": Step.EDITED}


def test_a_folder_is_one_stage_s_and_one_target_s(tmp_path: Path) -> None:
    files = {"a.tf": "dev\n"}
    write(changes(files, tmp_path, of="shop dev for gcp-terraform"), tmp_path, of="shop dev for gcp-terraform")
    changes(files, tmp_path, of="shop dev for gcp-terraform")
    for other in ("shop prod for gcp-terraform", "shop dev for compose"):
        with pytest.raises(ConfigError, match="holds the files of shop dev for gcp-terraform"):
            changes(files, tmp_path, of=other)
    write(changes(files, tmp_path), tmp_path, force=True, of="shop prod for gcp-terraform")
    changes(files, tmp_path, of="shop prod for gcp-terraform")


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


def test_the_command_writes_and_check_says_whether_the_files_are_as_the_code_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "written_shop.py").write_text(SHOP, "utf-8")
    settings = tmp_path / "pyproject.toml"
    settings.write_text('[tool.cloudq]\napp = "written_shop:app"\ntarget = "aws-terraform"\naws.region = "eu-west-1"\n', "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in os.environ if name.startswith("CLOUDQ_")]:
        monkeypatch.delenv(name)

    def deploy(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, ["deploy", "--out", "out", *arguments])
        return done.exit_code, done.stdout

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
    assert deploy() == (0, "update  out/cloudq.auto.tfvars.json\nyours   out/queues.tf\n")
    assert deploy("--check") == (0, "yours   out/queues.tf\n")
    data = tmp_path / "out" / "cloudq.auto.tfvars.json"
    data.write_text(data.read_text("utf-8").replace("1024", "2048"), "utf-8")
    settings.write_text(settings.read_text("utf-8").replace("1024", "768"), "utf-8")
    both = "edited  out/cloudq.auto.tfvars.json\nyours   out/queues.tf\n"
    assert [deploy(), deploy("--check")] == [(1, both)] * 2
    assert deploy("--keep") == (0, both.replace("edited ", "yours  "))
    assert deploy("--check")[0] == 0
    assert deploy("gcp-terraform")[0] == 2
    before = (tmp_path / "out" / "cloudq.auto.tfvars.json").read_bytes()
    for other in (("--stage", "prod"), ("--stage", "prod", "--check"), ("compose",)):
        code, said = deploy(*other)
        assert (code != 0, said) == (True, ""), "a stage's files in another's place would have Terraform destroy what is there"
    assert (tmp_path / "out" / "cloudq.auto.tfvars.json").read_bytes() == before
    assert deploy("--stage", "prod", "--force", "--drop")[0] == 0


def test_the_command_says_what_it_wrote_over_and_that_the_package_is_still_to_be_made(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP, "utf-8")
    (tmp_path / "pyproject.toml").write_text('[tool.cloudq]\napp = "shop:app"\ntarget = "aws-sam"\n', "utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDQ_")}
    command = [sys.executable, "-W", "error", "-m", "cloudq.cli", "deploy", "--out", "out"]

    def deploy(*arguments: str) -> tuple[str, str]:
        done = subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout, done.stderr

    assert "out/build/function.zip, is still to be made: --package" in deploy()[1]
    template = tmp_path / "out" / "template.yaml"
    template.write_text(template.read_text("utf-8") + "# mine\n", "utf-8")
    (tmp_path / "out" / "build").mkdir()
    (tmp_path / "out" / "build" / "function.zip").write_bytes(b"")
    said, beside = deploy("--force")
    assert (said, "--package" in beside) == ("update  out/template.yaml\n", False)
