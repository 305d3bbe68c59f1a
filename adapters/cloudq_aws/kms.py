"""Data keys under a key of AWS KMS, which never leaves it: for the encryption of messages."""

from __future__ import annotations

import logging
from typing import Any, Final

from cloudq.adapters import Adapter, Location
from cloudq.errors import CloudQError, ConfigError, KeysError, KeysUnavailable
from cloudq_aws.client import client_for
from cloudq_aws.errors import DENIED, Refusal, Service, mapped_to

__all__ = ["KMSKeys", "adapter"]

logger = logging.getLogger("cloudq.kms")

_ANSWER: Final = 15.0
"""Seconds that a request with its SDK retries may take."""
_SILENCE: Final = 4.0
"""Seconds without an answer after which the SDK tries again."""
_CONTEXT: Final = {"cloudq": "message"}
"""Encryption context: what this key has wrapped for another purpose is no data key of ours."""


class KMSKeys:
    """Data keys under the symmetric key ``key``: an id, an ARN, or ``alias/name``.

    Who encrypts needs kms:GenerateDataKey on it, who decrypts kms:Decrypt. Decrypt always names the key, so that nobody can bring a data
    key under a key of their own, whatever this process may use besides (AWS KMS Decrypt: KeyId).

    What keeps this key from decrypting at all (it is disabled, scheduled for deletion, denied) is KeysUnavailable: it is mended there, and
    what is encrypted under it is good. Only a data key that it has not wrapped is KeysError.
    """

    def __init__(self, key: str, region: str | None = None, *, client: str | None = None) -> None:
        self._key = key
        self._client = client_for("kms", region, read_timeout=_SILENCE, sdk=client)
        self._told = False

    async def generate(self) -> tuple[bytes, bytes]:
        answer = await self._call("GenerateDataKey", KeySpec="AES_256")
        return answer["Plaintext"], answer["CiphertextBlob"]

    async def unwrap(self, wrapped: bytes) -> bytes:
        try:
            secret: bytes = (await self._call("Decrypt", CiphertextBlob=wrapped))["Plaintext"]
        except KeysUnavailable as error:
            if not self._told:
                self._told = True  # once, not for each message of a backlog
                logger.error("messages wait for their key: %s", error)
            raise
        self._told = False
        return secret

    async def close(self) -> None:
        await self._client.close()

    async def _call(self, action: str, **parameters: Any) -> dict[str, Any]:
        with mapped_to(_DECRYPTING if action == "Decrypt" else _KMS, action, f"{action} with the KMS key {self._key!r}"):
            return await self._client.request(action, within=_ANSWER, KeyId=self._key, EncryptionContext=_CONTEXT, **parameters)


def _refused(refusal: Refusal) -> CloudQError | None:
    if refusal.code in ("InvalidCiphertextException", "IncorrectKeyException") or "ciphertextBlob" in refusal.detail:
        return KeysError(f"{refusal.tried}: this key did not wrap it ({refusal.code})")
    if refusal.code in ("KMSInternalException", "DependencyTimeoutException", "KeyUnavailableException", "LimitExceededException"):
        return KeysUnavailable(f"{refusal.tried}: AWS could not serve it now ({refusal.code}: {refusal.detail}); try again later")
    if refusal.code in DENIED:
        text = f"{refusal.tried}: access denied; allow kms:{refusal.action} on it ({refusal.detail})"
        return KeysUnavailable(text) if refusal.action == "Decrypt" else KeysError(text)
    return None


_KMS = Service(name="KMS", url="kms://eu-west-1/alias/name", error=KeysError, unavailable=KeysUnavailable, refused=_refused)
_DECRYPTING = _KMS._replace(error=KeysUnavailable)


def _open(location: Location) -> KMSKeys:
    location.allow("client")
    key, region = location.path, location.host or None
    if not key:
        raise ConfigError("kms:// names no key; write kms://region/alias/name, kms://region/KEY-ID or kms:///ARN")
    if key.startswith("arn:"):
        region = region or key.split(":")[3]
    return KMSKeys(key, region, client=location.options.get("client"))


adapter = Adapter(keys=_open)
"""``kms://eu-west-1/alias/shop``, ``kms://eu-west-1/KEY-ID`` or ``kms:///ARN``; ``client=boto3`` or ``aiobotocore`` as for SQS."""
