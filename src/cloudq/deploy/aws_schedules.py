"""What EventBridge Scheduler sends for a schedule of the plan: the same input that the driver ``cloudq_aws.scheduler`` writes. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final

from cloudq.deploy.plan import SchedulePlan
from cloudq.recurring import SLOT
from cloudq.schedules.naming import eventbridge_schedule

SEND_MESSAGE: Final = "arn:{partition}:scheduler:::aws-sdk:sqs:sendMessage"
"""The universal target, in a partition."""
RETRY: Final = {"attempts": 185, "age": 86_400}
"""As long as AWS tries (CreateSchedule, RetryPolicy): a day."""

_TIME: Final = "<aws.scheduler.scheduled-time>"
_KEYWORD: Final = "<aws.scheduler."


def request(schedule: SchedulePlan, *, ordered: bool) -> dict[str, Any] | None:
    """What SendMessage is asked beside the queue's URL; ``None`` where the body alone says all, and the queue itself can be the target.

    The templated target takes no deduplication id, without which a queue would take equal ticks for one, and replaces keywords in the
    message's own text, which as JSON within JSON can be written otherwise.
    """
    if schedule.group is None and not schedule.tenant and _KEYWORD not in schedule.body:
        return None
    found: dict[str, Any] = {"MessageBody": schedule.body}
    if ordered:
        found["MessageGroupId"] = _id(schedule.group or "")
        found["MessageDeduplicationId"] = _id(f"{eventbridge_schedule(schedule.name)}@{SLOT}")
    elif schedule.tenant:
        found["MessageGroupId"] = _id(schedule.tenant)
    return found


def text(sent: dict[str, Any] | str) -> str:
    """A request, or a body alone, as a target's input: Scheduler puts the fire's time where the slot goes."""
    if not isinstance(sent, str):
        sent = json.dumps(sent, separators=(",", ":")).replace(_KEYWORD, _KEYWORD.replace("<", "\\u003c"))
    return sent.replace(SLOT, _TIME)


def _id(name: str) -> str:
    """A group or deduplication id as SQS takes it; of another, its SHA-256, as the driver for SQS does."""
    return name if re.fullmatch(r"[!-~]{1,128}", name) else hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
