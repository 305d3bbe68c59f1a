"""Large bodies in S3, of messages and of results: checked when read, deleted by the bucket's lifecycle alone."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import urlsplit

from cloudq.errors import CloudQError, ConfigError, StoreError, StoreUnavailable
from cloudq_aws.client import client_for
from cloudq_aws.errors import DENIED, Refusal, Service, mapped_to

__all__ = ["Bodies"]

_ANSWER = 30.0
"""Seconds that a request with its SDK retries may take."""
_SILENCE = 10.0
"""Seconds without an answer after which the SDK tries again."""


class Bodies:
    """Bytes under ``s3://bucket/prefix``. Needs s3:PutObject and s3:GetObject on ``bucket/prefix*``; it deletes nothing.

    Without s3:ListBucket, AWS calls an object that is gone "access denied" (AWS GetObject).
    """

    def __init__(self, url: str, region: str | None = None, *, client: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise ConfigError(f"{url!r} names no place in S3; write s3://bucket, or s3://bucket/prefix")
        self._bucket = parts.netloc
        path = parts.path.strip("/")
        self._prefix = f"{path}/" if path else ""
        self._client = client_for("s3", region, read_timeout=_SILENCE, sdk=client)

    @property
    def place(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}"

    async def write(self, key: str, body: bytes) -> None:
        """Keep ``body`` under the prefix and ``key``."""
        await self._call("PutObject", self._prefix + key, Body=body, ContentType="application/json")

    async def read(self, key: str, *, most: int) -> bytes:
        """What is under the prefix and ``key``, up to one byte more than ``most``."""
        body: bytes = (await self._call("GetObject", self._prefix + key, Range=f"bytes=0-{most}"))["Body"]
        return body

    async def put(self, name: str, body: bytes) -> tuple[str, str]:
        """Write ``body`` under the prefix and a name that nobody else uses; returns the object's key and its SHA-256 in hex."""
        await self.write(name, body)
        return self._prefix + name, hashlib.sha256(body).hexdigest()

    async def get(self, key: str, sha256: str) -> bytes:
        """Read what ``put`` wrote; raises StoreError where it is gone, or is not what was written."""
        body: bytes = (await self._call("GetObject", key))["Body"]
        if hashlib.sha256(body).hexdigest() != sha256:
            raise StoreError(f"s3://{self._bucket}/{key} is not what was written there: its SHA-256 differs")
        return body

    async def close(self) -> None:
        await self._client.close()

    async def _call(self, action: str, key: str, **parameters: Any) -> dict[str, bytes]:
        with mapped_to(_S3, action, f"{action} of s3://{self._bucket}/{key}"):
            return await self._client.request(action, within=_ANSWER, Bucket=self._bucket, Key=key, **parameters)


def _refused(refusal: Refusal) -> CloudQError | None:
    if refusal.code == "NoSuchKey":
        return StoreError(
            f"{refusal.tried}: it is gone; the bucket's lifecycle must keep objects for longer than what refers to them lives"
        )
    if refusal.code == "NoSuchBucket":
        return StoreError(f"{refusal.tried}: there is no such bucket; create it ('cloudq deploy' writes the template), or correct its name")
    if refusal.code in DENIED:
        return StoreError(f"{refusal.tried}: access denied, or it is gone; allow s3:{refusal.action} on it ({refusal.detail})")
    return None


_S3 = Service(name="S3", url="dynamodb://eu-west-1/table", error=StoreError, unavailable=StoreUnavailable, refused=_refused)
