"""What was there and is not planned any more: nothing that holds work goes unless that is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloudq import CloudQ
from cloudq.deploy import leaving
from cloudq.deploy.plan import Plan, plan_of
from cloudq.deploy.settings import parse
from cloudq.deploy.writing import RECORD

ARN = "arn:aws:sqs:eu-west-1:123456789012:shop-dev-emails"


def planned(target: Any, *queues: str, **table: Any) -> Plan:
    app = CloudQ("shop")
    app.reference = "shop:app"
    for name in queues:
        app.task(name=f"to_{name}", queue=name)(lambda: None)
    return plan_of(app, parse(table, "dev"), target=target, stage="dev")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("aws-terraform", "it goes, with what waits there"),
        ("gcp-terraform", "it goes, with what waits there"),
        ("aws-sam", "it leaves the stack, and nobody works off what waits there"),
    ],
)
def test_a_queue_that_is_planned_no_more_is_an_error_until_it_is_dropped(target: Any, says: str) -> None:
    before = leaving.made(planned(target, "emails", "reports"))
    assert before[:2] == ("shop-dev-emails", "shop-dev-reports")
    after = planned(target, "emails", "nightly")
    (*_, found) = leaving.check(before, after)
    assert (found.level, found.where, found.what) == ("error", "queue shop-dev-reports", says)
    fix = "let it run dry first, by a deploy with 'reports' in the app's queues=[…]"
    assert found.fix == f"{fix}, or let go of it by --drop"
    (*_, found) = leaving.check(before, after, drop=True)
    assert (found.level, found.fix) == ("warning", fix)
    assert not [*leaving.check(before, planned(target, "emails", "reports", "more"))]
    (*_, found) = leaving.check(before, planned(target, "emails", "reports", prefix="other-"))
    assert "by a deploy under the name and the prefix that it has" in found.fix


def test_dead_letters_that_go_are_no_error_and_only_terraform_is_to_forget_them() -> None:
    forget = {
        "aws-terraform": """'aws_sqs_queue.dead_letters["reports-dlq"]' 'aws_sqs_queue_policy.dead_letters["reports-dlq"]'""",
        "gcp-terraform": """'google_pubsub_topic.dead_letters["reports-dlq"]' 'google_pubsub_subscription.dead_letters["reports-dlq"]'""",
    }
    for target, addresses in forget.items():
        found, _ = leaving.check(leaving.made(planned(target, "emails", "reports")), planned(target, "emails"))
        assert (found.level, found.where) == ("warning", "dead letters reports-dlq")
        assert found.fix == f"terraform state rm {addresses}"
    assert len([*leaving.check(leaving.made(planned("aws-sam", "emails", "reports")), planned("aws-sam", "emails"))]) == 1


def test_a_queue_that_was_made_and_is_existing_now_is_what_terraform_would_destroy_and_a_stack_leaves() -> None:
    table: dict[str, Any] = {"queues": {"emails": {"existing": ARN}}}
    (found,) = leaving.check(leaving.made(planned("aws-terraform", "emails")), planned("aws-terraform", "emails", **table))
    assert (found.level, "Terraform destroys it" in found.what) == ("error", True)
    forget = """terraform state rm 'aws_sqs_queue.queue["emails"]' 'aws_sqs_queue_policy.queue["emails"]'"""
    assert forget in found.fix
    assert not [*leaving.check(leaving.made(planned("aws-sam", "emails")), planned("aws-sam", "emails", **table))]
    topic = "projects/p/topics/shop-dev-emails"
    table = {"queues": {"emails": {"existing": topic, "runs_on": "none"}}, "gcp": {"project": "p"}}
    (found,) = leaving.check(leaving.made(planned("gcp-terraform", "emails")), planned("gcp-terraform", "emails", **table))
    assert """'google_pubsub_topic.queue["emails"]' 'google_pubsub_subscription.queue["emails"]'""" in found.fix


def test_a_worker_on_kubernetes_loses_nothing_and_is_told_of_with_what_deletes_it() -> None:
    before = leaving.made(planned("kubernetes", "emails", "reports"))
    (found,) = leaving.check(before, planned("kubernetes", "emails"))
    assert (found.level, found.where) == ("warning", "worker shop-dev-reports")
    assert found.fix.startswith("kubectl delete scaledobject,deployment,poddisruptionbudget,serviceaccount --namespace shop-dev ")
    assert "app.kubernetes.io/instance=shop-dev-reports" in found.fix
    assert leaving.made(planned("compose", "emails")) == ()


def test_the_command_writes_nothing_where_a_queue_would_go_until_it_is_told_to(tmp_path: Path) -> None:
    app, settings = tmp_path / "shop.py", tmp_path / "pyproject.toml"
    app.write_text('from cloudq import CloudQ\napp = CloudQ("shop")\n@app.task(queue="emails", timeout=9)\ndef mail(): ...\n', "utf-8")
    settings.write_text('[tool.cloudq]\napp = "shop:app"\ntarget = "aws-terraform"\naws.region = "eu-west-1"\n', "utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDQ_")}

    def deploy(*arguments: str, code: int) -> tuple[str, str]:
        command = [sys.executable, "-W", "error", "-m", "cloudq.cli", "deploy", "--out", "out", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout, done.stderr

    deploy(code=0)
    app.write_text(app.read_text("utf-8").replace("emails", "letters"), "utf-8")
    before = {each: each.read_bytes() for each in (tmp_path / "out").rglob("*") if each.is_file()}
    said, beside = deploy(code=1)
    assert (said, "queue shop-dev-emails: it goes, with what waits there" in beside) == ("", True)
    assert '"resource": "shop-dev-letters"' in deploy("--diff", code=1)[0]
    assert "queue shop-dev-emails" in deploy("--check", code=1)[1]
    assert {each: each.read_bytes() for each in (tmp_path / "out").rglob("*") if each.is_file()} == before
    assert deploy("--drop", code=0)[0] == "update  out/cloudq.auto.tfvars.json\n"
    assert json.loads((tmp_path / "out" / RECORD).read_text("utf-8"))["made"] == ["shop-dev-letters", "dead letters letters-dlq"]
    settings.write_text(settings.read_text("utf-8").replace("target", 'name = "store"\ntarget'), "utf-8")
    assert "holds the files of shop dev" in deploy(code=2)[1]
    said, beside = deploy("--force", code=1)
    assert (said, "queue shop-dev-letters: it goes" in beside) == ("", True), "it is the same state of Terraform"
    assert deploy("--force", "--drop", code=0)[0] == "update  out/cloudq.auto.tfvars.json\n"
