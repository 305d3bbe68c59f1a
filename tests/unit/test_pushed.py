"""What Pub/Sub pushes, in its three forms, becomes the same delivery; what it never sends is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloudq.message import DEAD_ATTRIBUTE
from cloudq_gcp.naming import Naming
from cloudq_gcp.pushed import NoPush, of_object, of_request
from tests.push_host import push

HEADERS = {
    "x-goog-pubsub-subscription-name": "projects/p/subscriptions/orders",
    "x-goog-pubsub-message-id": "136969346945",
    "x-goog-pubsub-publish-time": "2026-11-21T09:00:00.533Z",
}


def test_wrapped_and_unwrapped_say_the_same() -> None:
    wrapped = of_request({}, push('{"v":1}', orderingKey="k", deliveryAttempt=3, attributes={DEAD_ATTRIBUTE: "x"}))
    unwrapped = of_request(
        {
            **HEADERS,
            "x-goog-pubsub-ordering-key": "k",
            "x-goog-pubsub-delivery-attempt": "3",
            DEAD_ATTRIBUTE: "x",
            "user-agent": "APIs-Google",
        },
        b'{"v":1}',
    )
    assert wrapped == unwrapped
    assert (wrapped.body, wrapped.id, wrapped.attempt, wrapped.published) == ('{"v":1}', "136969346945", 3, 1795251600.533)


def test_attempts_count_where_the_order_is_kept_and_say_nothing_of_crashes_elsewhere() -> None:
    ordered = of_request({}, push("x", orderingKey="k", deliveryAttempt=7)).delivery("orders", 10.0, 20.0)
    plain = of_request({}, push("x", deliveryAttempt=7)).delivery("orders", 10.0, 20.0)
    assert (ordered.receives, ordered.group, plain.receives, plain.group) == (7, "k", 0, None)
    assert (plain.receipt, plain.received, plain.lease_until) == (None, 10.0, 20.0)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"{no json", "ü".encode()], ids=str)
def test_a_body_of_any_bytes_is_carried_as_it_is(data: bytes) -> None:
    for found in (of_request({}, push(data)), of_request(HEADERS, data)):
        assert found.body.encode("utf-8", "surrogateescape") == data


def test_data_that_is_no_base64_is_no_message_and_stays_what_it_is() -> None:
    assert of_object({"message": {"data": "{{", "messageId": "1"}, "subscription": "s"}).body == "{{"
    assert of_object({"message": {"data": 7, "messageId": "1"}, "subscription": "s"}).body == "7"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"[" * 100_000, b"\xff", b"{}", b'{"v":1,"id":"a","task":"note"}', b'{"message":{}}',
        b'{"message":{"data":"e30="}}', b'{"message":"e30=","subscription":"s"}', b'{"message":{},"subscription":"s"}',
        b'{"message":{"data":"e30="},"subscription":7}',
    ],
)  # fmt: skip
def test_what_pubsub_never_sends_is_no_push(body: bytes) -> None:
    with pytest.raises(NoPush):
        of_request({"content-type": "application/json"}, body)


@pytest.mark.parametrize("fields", [{"publishTime": 7}, {"publishTime": "soon"}, {"attributes": None}, {"orderingKey": None}], ids=str)
def test_metadata_that_is_not_as_documented_is_left_out(fields: dict[str, Any]) -> None:
    body = json.loads(push("x"))
    body["message"].update(fields, publish_time=None)
    found = of_object(body)
    assert (found.body, found.ordering_key) == ("x", None)


def test_a_topic_is_the_queue_that_is_sent_to() -> None:
    naming = Naming(project="p", prefix="shop-")
    for queue in ("orders", "projects/other/topics/orders", "projects/p/topics/orders"):
        assert naming.queue_of_topic(naming.topic_of(queue)) == queue
    assert naming.queue_of_topic("projects/p/topics/shop-") == "projects/p/topics/shop-"
