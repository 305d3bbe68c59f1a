"""What Pub/Sub pushes, as a delivery: wrapped in JSON, unwrapped with its metadata in headers, or in an event of Eventarc."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple, cast

from cloudq.broker import EMPTY, Delivery
from cloudq.message import DEAD_ATTRIBUTE

_HEADER: Final = "x-goog-pubsub-"


class NoPush(ValueError):
    """It is nothing that Pub/Sub sends."""


class Pushed(NamedTuple):
    """A message that was pushed. ``attempt`` is how often, 0 where Pub/Sub does not say (without a dead-letter policy)."""

    subscription: str
    body: str
    id: str = ""
    published: float | None = None
    ordering_key: str | None = None
    attempt: int = 0
    attributes: Mapping[str, str] = EMPTY

    def delivery(self, queue: str, now: float, until: float) -> Delivery:
        """The delivery, which is ours until ``until``.

        What is pushed and refused (no instance is free) has been attempted, too, so attempts say nothing of crashes: only of an ordered
        message, which is never sent again, they are kept.
        """
        return Delivery(
            queue=queue,
            body=self.body,
            receipt=None,
            receives=self.attempt if self.ordering_key else 0,
            message_id=self.id,
            sent=self.published,
            received=now,
            lease_until=until,
            group=self.ordering_key,
            attributes=self.attributes,
        )


def of_request(headers: Mapping[str, str], body: bytes) -> Pushed:
    """What a request holds; ``headers`` by lower-case name. Raises NoPush.

    Google Cloud, "Payload unwrapping": with ``--push-no-wrapper-write-metadata`` metadata are ``x-goog-pubsub-KEY`` headers.
    """
    subscription = headers.get(f"{_HEADER}subscription-name")
    if subscription:
        attempt = headers.get(f"{_HEADER}delivery-attempt", "")
        letter = headers.get(DEAD_ATTRIBUTE.lower())
        return Pushed(
            subscription=subscription,
            body=body.decode("utf-8", "surrogateescape"),
            id=headers.get(f"{_HEADER}message-id", ""),
            published=_instant(headers.get(f"{_HEADER}publish-time")),
            ordering_key=headers.get(f"{_HEADER}ordering-key") or None,
            attempt=int(attempt) if attempt.isdecimal() else 0,
            attributes={DEAD_ATTRIBUTE: letter} if letter else EMPTY,
        )
    try:
        return of_object(json.loads(body))
    except (ValueError, RecursionError) as error:
        raise NoPush(str(error) if isinstance(error, NoPush) else "the body is no JSON, and there is no metadata in headers") from None


def of_object(value: object, *, subscription: str | None = None) -> Pushed:
    """What ``{"message": {…}, "subscription": …}`` holds. Raises NoPush.

    Google Cloud, "Push subscriptions", "Receive messages"; some names come in two spellings.
    """
    fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    message = fields.get("message")
    name = fields.get("subscription", subscription)
    if not isinstance(message, dict) or not isinstance(name, str) or not ("data" in message or "messageId" in message):
        raise NoPush('there is no {"message": {"data": …}, "subscription": …} in it')
    message = cast("dict[str, Any]", message)
    attempt, attributes = fields.get("deliveryAttempt"), message.get("attributes")
    return Pushed(
        subscription=name,
        body=_text(message.get("data") or ""),
        id=str(message.get("messageId") or message.get("message_id") or ""),
        published=_instant(message.get("publishTime") or message.get("publish_time")),
        ordering_key=message.get("orderingKey") or None,
        attempt=attempt if isinstance(attempt, int) else 0,
        attributes={key: str(text) for key, text in cast("dict[str, Any]", attributes).items()} if isinstance(attributes, dict) else EMPTY,
    )


def _text(data: object) -> str:
    """The message's text; what is no base64 stays what it is, which no message is."""
    if not isinstance(data, str):
        return str(data)
    try:
        return base64.b64decode(data, validate=True).decode("utf-8", "surrogateescape")
    except ValueError:
        return data


def _instant(text: object) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp() if isinstance(text, str) else None
    except ValueError:
        return None
