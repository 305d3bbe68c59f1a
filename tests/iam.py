"""IAM between clients and a local AWS server: notes which role does what to which resource, and refuses what its policy does not allow.

Who calls is told by the access key, which is the role's name: nothing here checks a signature. What counts is IAM's own: a batch is the
action of its entries, S3's HEAD and missing objects are ``s3:ListBucket``, a schedule's role is passed, and each use of what a key encrypts
is one of the key (AWS, "Actions, resources, and condition keys for AWS services"; the developer guides of SQS, DynamoDB, S3, Secrets
Manager: encryption at rest).
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

from tests.servers import REGION

ACCOUNT = "123456789012"
"""Of moto."""
Policy: TypeAlias = Mapping[str, Any]

# SQS, "Configuring KMS permissions": producers and consumers. DynamoDB, "Encryption at rest": the table key, on behalf of the caller.
# S3, "Using server-side encryption with AWS KMS keys": GetObject, PutObject. Secrets Manager, "Permissions for the KMS key".
_OF_KEY: Mapping[str, tuple[str, ...]] = {
    "sqs:SendMessage": ("kms:Decrypt", "kms:GenerateDataKey"),
    "sqs:ReceiveMessage": ("kms:Decrypt",),
    "s3:GetObject": ("kms:Decrypt",),
    "s3:PutObject": ("kms:GenerateDataKey",),
    "secretsmanager:GetSecretValue": ("kms:Decrypt",),
    **{f"dynamodb:{each}Item": ("kms:Decrypt",) for each in ("Get", "BatchGet", "Put", "Update", "Delete")},
    "dynamodb:Query": ("kms:Decrypt",),
}


@dataclass(frozen=True, order=True)
class Call:
    """What a role did, or wanted to do."""

    role: str
    action: str
    resource: str
    context: tuple[tuple[str, str], ...] = ()
    """Condition keys that the request has."""


def allows(policy: Policy, call: Call) -> bool:
    """Whether a policy allows it. It may hold only what ours do: Allow, actions without wildcards, and StringEquals."""
    return any(_applies(each, call) for each in policy["Statement"])


def _applies(statement: Mapping[str, Any], call: Call) -> bool:
    assert statement.keys() <= {"Sid", "Effect", "Action", "Resource", "Condition"}, statement
    assert statement["Effect"] == "Allow", statement
    conditions: Mapping[str, Mapping[str, str]] = statement.get("Condition", {})
    assert conditions.keys() <= {"StringEquals"}, statement
    return (
        call.action in statement["Action"]
        and any(fits(call.resource, each) for each in statement["Resource"])
        and conditions.get("StringEquals", {}).items() <= dict(call.context).items()
    )


def fits(resource: str, pattern: str) -> bool:
    """Whether a pattern of a policy stands for the resource: ``*`` and ``?``, and nothing else is special."""
    return fnmatchcase(resource, pattern.replace("[", "[[]"))


def grants(policy: Policy) -> Iterator[tuple[str, str]]:
    """Each action with each resource that a policy allows it on."""
    for statement in policy["Statement"]:
        yield from ((action, resource) for action in statement["Action"] for resource in statement["Resource"])


def without(policy: Policy, action: str, resource: str) -> Policy:
    """The policy with one action on one resource less."""
    statements: list[dict[str, Any]] = []
    for each in policy["Statement"]:
        if action not in each["Action"] or resource not in each["Resource"]:
            statements.append(each)
            continue
        statements += [
            {**each, "Action": [other for other in each["Action"] if other != action]},
            {**each, "Action": [action], "Resource": [other for other in each["Resource"] if other != resource]},
        ]
    return {**policy, "Statement": statements}


@dataclass
class Gateway:
    """What AWS's own front door does. ``policies`` are those of the roles by name, and may change at any time."""

    upstream: str
    policies: dict[str, Policy]
    key: str | None
    """The ARN of the key that encrypts all there is."""
    endpoint: str = ""
    calls: set[Call] = field(default_factory=set)
    """What was done."""
    refused: set[Call] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    """Requests that it cannot read: the test is to be taught them."""

    def env(self, role: str) -> dict[str, str]:
        """The environment of a process that has taken on a role."""
        return {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": role}

    def admit(self, calls: Sequence[Call]) -> Call | None:
        """Note what is done, or else return the first that is not allowed; then nothing is done."""
        whole = [*calls]
        if self.key is not None:
            whole += [Call(each.role, action, self.key) for each in calls for action in _OF_KEY.get(each.action, ())]
        for call in whole:
            if call.role not in self.policies or not allows(self.policies[call.role], call):
                self.refused.add(call)
                return call
        self.calls.update(whole)
        return None


@contextmanager
def gateway(upstream: str, policies: Mapping[str, Policy], key: str | None) -> Iterator[Gateway]:
    """Run a gateway in front of the endpoint ``upstream`` until the block ends."""
    it = Gateway(upstream, dict(policies), key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Door", (_Door,), {"gateway": it}))
    it.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="test-iam", daemon=True)
    thread.start()
    try:
        yield it
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


class _Door(BaseHTTPRequestHandler):
    gateway: Gateway
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that ends may leave what it asked for
            super().handle()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        signed = re.search(r"Credential=([^/]+)/\d+/[^/]+/([^/]+)/", self.headers.get("Authorization", ""))
        role, service = signed.groups() if signed else ("nobody", "")
        try:
            calls = [Call(role, *each) for each in _READ[service](self, body)]
        except (KeyError, ValueError):
            self.gateway.unknown.add(f"{role}: {self.command} {self.path} {self.headers.get('X-Amz-Target')}")
            self._refuse(service, "this request is not known here")
            return
        if (denied := self.gateway.admit(calls)) is not None:
            self._refuse(service, f"{denied.role} is not authorized to perform {denied.action} on {denied.resource}")
            return
        status, headers, answer = self._forward(body)
        if status == 404 and [each.action for each in calls] == ["s3:GetObject"]:  # only who may list is told that it is gone
            bucket = calls[0].resource.partition("/")[0]
            if self.gateway.admit([Call(role, "s3:ListBucket", bucket)]) is not None:
                self._refuse(service, "it is gone, or not for you")
                return
        self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        there = urlsplit(self.gateway.upstream)
        connection = HTTPConnection(there.hostname or "", there.port, timeout=30)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "expect")}
            connection.request(self.command, self.path, body, headers)
            found = connection.getresponse()
            return found.status, dict(found.getheaders()), found.read()
        finally:
            connection.close()

    def _refuse(self, service: str, why: str) -> None:
        if service == "s3":
            text = f"<Error><Code>AccessDenied</Code><Message>{why}</Message></Error>"
            self._answer(403, {"Content-Type": "application/xml"}, text.encode())
            return
        text = json.dumps({"__type": "AccessDeniedException", "message": why})
        self._answer(
            403 if service == "scheduler" else 400,
            {"Content-Type": "application/x-amz-json-1.0", "X-Amzn-ErrorType": "AccessDeniedException"},
            text.encode(),
        )

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "content-length", "date", "server", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


# ---------------------------------------------------------------------- what requests are in IAM's words

_Asked: TypeAlias = tuple[str, str] | tuple[str, str, tuple[tuple[str, str], ...]]


def arn(service: str, resource: str, account: str = ACCOUNT) -> str:
    """An ARN of the region that tests are in."""
    return f"arn:aws:{service}:{REGION}:{account}:{resource}"


def _target(request: _Door) -> str:
    return str(request.headers["X-Amz-Target"]).rpartition(".")[2]


def _sqs(request: _Door, body: bytes) -> Iterator[_Asked]:
    asked = json.loads(body)
    if "QueueUrl" in asked:
        account, name = asked["QueueUrl"].split("/")[-2:]
    else:
        account, name = asked.get("QueueOwnerAWSAccountId", ACCOUNT), asked["QueueName"]
    yield f"sqs:{_target(request).removesuffix('Batch')}", arn("sqs", name, account)


def _dynamodb(request: _Door, body: bytes) -> Iterator[_Asked]:
    asked = json.loads(body)
    for table in asked["RequestItems"] if "RequestItems" in asked else [asked["TableName"]]:
        yield f"dynamodb:{_target(request)}", arn("dynamodb", f"table/{table}")


_SCHEDULER = {"POST": "CreateSchedule", "PUT": "UpdateSchedule", "DELETE": "DeleteSchedule", "GET": "GetSchedule"}


def _scheduler(request: _Door, body: bytes) -> Iterator[_Asked]:
    url = urlsplit(request.path)
    if url.path == "/schedules" and request.command == "GET":
        yield "scheduler:ListSchedules", "*"
        return
    _, kind, name = url.path.split("/")
    if kind != "schedules":
        raise ValueError(request.path)
    asked = json.loads(body) if body else {}
    group = asked["GroupName"] if asked else parse_qs(url.query)["groupName"][0]
    yield f"scheduler:{_SCHEDULER[request.command]}", arn("scheduler", f"schedule/{group}/{unquote(name)}")
    if "Target" in asked:
        yield "iam:PassRole", asked["Target"]["RoleArn"], (("iam:PassedToService", "scheduler.amazonaws.com"),)


def _s3(request: _Door, body: bytes) -> Iterator[_Asked]:
    url = urlsplit(request.path)
    _, bucket, key = unquote(url.path).split("/", 2)
    if url.query not in ("", f"x-id={request.command.title()}Object") or not key:
        raise ValueError(request.path)
    yield {"GET": "s3:GetObject", "PUT": "s3:PutObject"}[request.command], f"arn:aws:s3:::{bucket}/{key}"


def _secretsmanager(request: _Door, body: bytes) -> Iterator[_Asked]:
    name = json.loads(body)["SecretId"]
    yield f"secretsmanager:{_target(request)}", name if name.startswith("arn:") else arn("secretsmanager", f"secret:{name}-AbCdEf")


_READ: Mapping[str, Callable[[_Door, bytes], Iterator[_Asked]]] = {
    "sqs": _sqs,
    "dynamodb": _dynamodb,
    "scheduler": _scheduler,
    "s3": _s3,
    "secretsmanager": _secretsmanager,
}
