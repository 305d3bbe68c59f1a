"""Reads what EventBridge Scheduler leaves in a dead-letter queue, so that it is a dead letter like any other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cloudq.broker import Delivery
from cloudq.errors import DecodeError
from cloudq.message import dead_letter, parse

__all__ = ["SCHEDULED_TIME", "SEND_MESSAGE", "read"]

SEND_MESSAGE = ":scheduler:::aws-sdk:sqs:sendMessage"
"""What the ARN of the universal target ends in, in every partition: it takes a whole request of SQS's SendMessage, as JSON."""
SCHEDULED_TIME = "<aws.scheduler.scheduled-time>"
"""What Scheduler replaces in its input (AWS, "Adding context attributes")."""

_MARKS = frozenset({"SCHEDULE_ARN", "TARGET_ARN", "ERROR_CODE"})
"""Of the attributes that Scheduler gives a dead-letter event (AWS, "Configuring a schedule's dead-letter queue")."""


def read(delivery: Delivery, queue_of: Callable[[str], str]) -> Delivery:
    """The delivery; one that Scheduler gave up as the dead letter that cloudq would have written (docs/protocol.md).

    Scheduler puts its target's input into the body, which with the universal target is a whole SendMessage request, and what went wrong
    into attributes. ``queue_of`` names a queue by its URL or ARN. An input that was cut, or is none of ours, is kept as it is, as raw.
    """
    said = delivery.attributes
    if not said.keys() >= _MARKS:
        return delivery
    code, detail, target = said["ERROR_CODE"], said.get("ERROR_MESSAGE", ""), said["TARGET_ARN"]
    text = delivery.body.replace(SCHEDULED_TIME, said.get("SCHEDULED_TIME", SCHEDULED_TIME))
    request: dict[str, Any] = _request(text) if target.endswith(SEND_MESSAGE) else {"MessageBody": text, "QueueUrl": target}
    queue, body = queue_of(request.get("QueueUrl", "")), request.get("MessageBody", text)
    try:
        fields = parse(body)
    except DecodeError:
        fields = None
    error = {"type": code, "detail": detail, "traceback": ""}
    note: dict[str, Any] = {"reason": "EventBridge Scheduler could not send it", "at": delivery.sent, "error": error}
    attributes: Mapping[str, Mapping[str, str]] = request.get("MessageAttributes") or {}
    return replace(
        delivery,
        body=dead_letter(body, fields, note | ({"queue": queue} if queue else {})),
        group=request.get("MessageGroupId") if queue.endswith(".fifo") else None,
        attributes={name: value["StringValue"] for name, value in attributes.items() if "StringValue" in value},
    )


def _request(text: str) -> dict[str, Any]:
    """The SendMessage request; empty where it was cut or is none."""
    try:
        request = json.loads(text)
        return request if isinstance(request["MessageBody"], str) and isinstance(request["QueueUrl"], str) else {}
    except (ValueError, KeyError, TypeError):
        return {}
