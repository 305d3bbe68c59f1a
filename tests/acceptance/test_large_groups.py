"""A group of 10,000 is sent in full requests, and takes memory for what is sent and not for more; counted at an SQS server of our own."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

import cloudq_aws.server
from cloudq import CloudQ, group
from cloudq.memory import MemoryStore
from cloudq.worker import Worker, WorkerOptions
from tests.servers import SQSServer, unique, use

MEMBERS = 10_000
LARGE = 200_000
"""Bytes of an argument, five of which fit a request of 1 MiB."""


class Shop:
    """An app over a server that counts requests."""

    def __init__(self, server: cloudq_aws.server.SQSServer) -> None:
        self.server = server
        self.queue = unique()
        for name in (self.queue, f"{self.queue}-dlq"):
            server.broker.create_queue(name)
        self.app = app = CloudQ("large", broker="sqs://", store=MemoryStore(), default_queue=self.queue, send_timeout=300)

        @app.task(name="one", ignore_result=True)
        def one(value: int) -> int:
            return value

        @app.task(name="size", ignore_result=True)
        def size(text: str) -> int:
            return len(text)

        @app.task(name="total")
        def total(values: list[int]) -> int:
            return sum(values)

        self.one, self.size, self.total = one, size, total

    def sends(self) -> tuple[int, int]:
        """Requests that send, and messages in them, since it was last asked."""
        found = self.server.requests["SendMessageBatch"] + self.server.requests["SendMessage"], self.server.entries["SendMessageBatch"]
        self.server.requests.clear()
        self.server.entries.clear()
        return found


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    with cloudq_aws.server.serve_in_thread() as server:
        use(SQSServer("ours", server.endpoint).env, monkeypatch)
        shop = Shop(server)
        yield shop
        shop.app.close()


def test_10000_members_are_sent_in_1000_requests_within_8_kilobytes_of_memory_each(shop: Shop) -> None:
    tracemalloc.start()
    (group(shop.one.s(number) for number in range(MEMBERS)) | shop.total.s()).delay()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{peak / MEMBERS:.0f} bytes a member, the server's share included")
    assert shop.sends() == (MEMBERS / 10, MEMBERS)
    assert peak <= 8_192 * MEMBERS


def test_10000_members_after_a_step_are_sent_in_1000_requests_by_its_settling(shop: Shop) -> None:
    (shop.one.s(5) | group(shop.one.si(number) for number in range(MEMBERS)) | shop.total.s()).delay()
    assert shop.sends() == (1, 1)
    worker = Worker(shop.app, WorkerOptions(wait=1.0, once=True))
    worker.start()
    worker.join(300)
    assert shop.sends() == (MEMBERS / 10, MEMBERS)


def test_large_members_are_sent_as_many_at_once_as_a_request_takes_bytes(shop: Shop) -> None:
    group(shop.size.s("x" * LARGE) for _ in range(20)).delay()
    assert shop.sends() == (4, 20)
