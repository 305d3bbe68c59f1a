"""A queue that goes, under Terraform itself: what is shown for its dead letters is what lets the rest be applied, and they stay."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from cloudq import CloudQ, Queue
from cloudq.deploy import leaving
from cloudq.deploy.plan import Plan, plan_of
from cloudq.deploy.settings import Settings, parse
from cloudq.deploy.targets import also_of, folder_of, values_of
from cloudq_templates import render
from tests.infra import tools


def planned(target: Any, *queues: str) -> tuple[Plan, Settings]:
    app = CloudQ("shop", queues=[Queue(name=each, dead_letter=f"failed-{each}") for each in queues])
    app.reference = "shop:app"
    settings = parse({"aws": {"region": "eu-west-1"}, "gcp": {"project": "shop-123456", "region": "europe-west1"}, "image": "a/b"}, "dev")
    return plan_of(app, settings, target=target, stage="dev"), settings


def write(plan: Plan, settings: Settings, folder: Path) -> None:
    files = render(folder_of(plan.target), values_of(plan, settings), also=also_of(plan))
    for name, text in {**files, "build/function.zip": ""}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")


@pytest.mark.parametrize("target", ["aws-terraform", "gcp-terraform"])
def test_a_queue_that_goes_is_applied_once_terraform_forgot_its_dead_letters_by_the_command_that_is_shown(
    target: Any, tmp_path: Path
) -> None:
    def terraform(*arguments: str, code: int = 0) -> str:
        ran = tools.terraform(tmp_path, *arguments)
        assert ran.returncode == code, ran.stdout[-3000:] + ran.stderr[-3000:]
        return ran.stdout + ran.stderr

    plan, settings = planned(target, "emails", "reports")
    write(plan, settings, tmp_path)
    terraform("init", "-input=false", "-no-color")
    terraform("apply", "-auto-approve", "-input=false", "-no-color")
    before = leaving.made(plan)
    plan, settings = planned(target, "emails")
    write(plan, settings, tmp_path)
    assert "Instance cannot be destroyed" in terraform("plan", "-input=false", "-no-color", code=1)
    letters, queue = leaving.check(before, plan, drop=True)
    assert (letters.where, queue.where) == ("dead letters failed-reports", "queue shop-dev-reports")
    terraform(*shlex.split(letters.fix)[1:])
    terraform("plan", "-input=false", "-no-color", "-out=planned")
    changes = json.loads(terraform("show", "-json", "planned"))["resource_changes"]
    gone = {each["address"].partition("[")[0] for each in changes if "delete" in each["change"]["actions"]}
    assert f"{'aws_sqs_queue' if plan.provider == 'aws' else 'google_pubsub_topic'}.queue" in gone
    assert gone.isdisjoint(each.partition("[")[0] for each in shlex.split(letters.fix)[3:])
