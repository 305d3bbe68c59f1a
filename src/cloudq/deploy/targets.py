"""The targets by their names: what each makes of a plan for its templates."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeAlias

from cloudq.deploy import container
from cloudq.deploy.plan import Plan
from cloudq.deploy.settings import Settings, Target

Values: TypeAlias = Callable[[Plan, Settings], dict[str, Any]]


def folder_of(target: Target) -> str:
    """The folder of its templates, and the module of its values: ``aws-sam`` has ``aws_sam``, and ``aws-cloudformation`` shares them."""
    return "aws_sam" if target == "aws-cloudformation" else target.replace("-", "_")


def also_of(plan: Plan) -> tuple[str, ...]:
    """Folders of templates that go along with the target's own: the image's, where something runs in containers."""
    return (container.FOLDER,) if container.needed(plan) else ()


def values_of(plan: Plan, settings: Settings, *, folder: str = "infrastructure", project: str = "..") -> dict[str, Any]:
    """What the templates of the plan's target are given: JSON values. The same plan and settings give equal ones.

    ``folder`` is where the files go, as seen from the project, and ``project`` the way back: an image is built of the whole project.
    """
    values: Values = import_module(f"cloudq.deploy.{folder_of(plan.target)}").values
    found = values(plan, settings)
    if container.needed(plan):
        found["container"] = {**container.values(plan, settings, folder), "project": project}
    return found
