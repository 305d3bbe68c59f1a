"""A stand-in for what Google's emulators cannot be asked: policies of topics and subscriptions, and Firestore's admin API.

It stands before the Pub/Sub emulator, and hands on everything else. It speaks by Google's own generated messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Any

import grpc
from google.cloud.firestore_admin_v1.types import database, field, firestore_admin
from google.iam.v1 import iam_policy_pb2, policy_pb2


@dataclass
class GoogleAdmin:
    """``roles`` are of Pub/Sub's service agent, by the full name of a topic or subscription; ``denied`` are methods nobody may call."""

    address: str = ""
    roles: dict[str, str] = attribute(default_factory=lambda: dict[str, str]())
    databases: set[str] = attribute(default_factory=lambda: set[str]())
    expiring: set[str] = attribute(default_factory=lambda: set[str]())
    """Fields with TTL, by their full names."""
    denied: set[str] = attribute(default_factory=lambda: set[str]())

    def answer(self, method: str, body: bytes, context: Any) -> bytes | None:
        """What a method answers; ``None`` is the emulator's to say."""
        if method in self.denied:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{method} is not allowed")
        if method == "GetIamPolicy":
            resource = iam_policy_pb2.GetIamPolicyRequest.FromString(body).resource
            members = ["serviceAccount:service-123@gcp-sa-pubsub.iam.gserviceaccount.com"]
            bindings = [policy_pb2.Binding(role=self.roles[resource], members=members)] if resource in self.roles else []
            return bytes(policy_pb2.Policy(bindings=bindings).SerializeToString())
        if method == "GetDatabase":
            name = firestore_admin.GetDatabaseRequest.deserialize(body).name
            if name not in self.databases:
                context.abort(grpc.StatusCode.NOT_FOUND, f"The database {name} does not exist")
            return bytes(database.Database.serialize(database.Database(name=name)))
        if method == "GetField":
            name = firestore_admin.GetFieldRequest.deserialize(body).name
            ttl = {"ttl_config": {"state": field.Field.TtlConfig.State.ACTIVE}} if name in self.expiring else {}
            return bytes(field.Field.serialize(field.Field({"name": name, **ttl})))
        return None


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, admin: GoogleAdmin, emulator: Any) -> None:
        self._admin = admin
        self._emulator = emulator

    def service(self, handler_call_details: Any) -> Any:
        path = handler_call_details.method

        def serve(body: bytes, context: Any) -> bytes:
            answered = self._admin.answer(path.rpartition("/")[2], body, context)
            if answered is not None:
                return answered
            try:
                return bytes(self._emulator.unary_unary(path)(body, timeout=60))
            except grpc.RpcError as error:
                status: Any = error
                context.abort(status.code(), status.details())
                raise AssertionError("abort raises") from error

        return grpc.unary_unary_rpc_method_handler(serve)


@contextmanager
def google_admin(emulator: str) -> Iterator[GoogleAdmin]:
    """The stand-in before the Pub/Sub emulator at ``host:port``."""
    admin = GoogleAdmin()
    with ThreadPoolExecutor(8) as pool, grpc.insecure_channel(emulator, options=[("grpc.enable_http_proxy", 0)]) as channel:
        server = grpc.server(pool, handlers=[_Handlers(admin, channel)])
        admin.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield admin
        finally:
            server.stop(None).wait(5)
