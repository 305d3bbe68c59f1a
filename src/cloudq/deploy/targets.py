"""The targets by their names: what each makes of a plan for its templates."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeAlias

from cloudq.deploy.plan import Plan
from cloudq.deploy.settings import Settings, Target

Values: TypeAlias = Callable[[Plan, Settings], dict[str, Any]]


def folder_of(target: Target) -> str:
    """The folder of its templates, and the module of its values: ``aws-sam`` has ``aws_sam``."""
    return target.replace("-", "_")


def values_of(plan: Plan, settings: Settings) -> dict[str, Any]:
    """What the templates of the plan's target are given: JSON values. The same plan and settings give equal ones."""
    values: Values = import_module(f"cloudq.deploy.{folder_of(plan.target)}").values
    return values(plan, settings)
