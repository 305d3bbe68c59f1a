"""Puts secrets of Secrets Manager into the environment before a function's app is loaded: no template and no state holds a value."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any, Final, cast

from cloudq.errors import CloudQError, ConfigError, SeamError
from cloudq_aws.client import Requests, client_for
from cloudq_aws.errors import DENIED, Refusal, Service, mapped_to

__all__ = ["VARIABLE", "load"]

VARIABLE: Final = "CLOUDQ_SECRETS"
"""JSON: variable to the name or ARN of the secret that it is to hold. ``cloudq deploy`` writes it from ``[tool.cloudq.secrets]``."""

_ANSWER: Final = 8.0
"""Seconds that a request with its SDK retries may take: Lambda gives the start of a function 10 s."""
_SILENCE: Final = 3.0
"""Seconds without an answer after which the SDK tries again."""


def load() -> None:
    """Set each variable that ``CLOUDQ_SECRETS`` names to its secret's text; those that are set already stay as they are.

    Called once, when a host starts: a secret that has changed is seen by the hosts that start afterwards. Needs
    secretsmanager:GetSecretValue on each, and kms:Decrypt where a key of yours encrypts it. Raises ConfigError for what cannot be read
    from it, SeamError where Secrets Manager refuses or does not answer; neither shows a value.
    """
    wanted = {name: secret for name, secret in _named().items() if name not in os.environ}
    if wanted:
        os.environ.update(asyncio.run(_read(wanted)))


def _named() -> dict[str, str]:
    try:
        found: Any = json.loads(os.environ.get(VARIABLE) or "{}")
    except ValueError:
        found = None
    if not (isinstance(found, dict) and all(name and isinstance(secret, str) for name, secret in cast("dict[str, Any]", found).items())):
        raise ConfigError(f'{VARIABLE} must be JSON, of variables and the names of their secrets: {{"STRIPE_KEY": "prod/stripe"}}')
    return cast("dict[str, str]", found)


async def _read(wanted: dict[str, str]) -> dict[str, str]:
    client = client_for("secretsmanager", None, read_timeout=_SILENCE)
    try:
        names = sorted(set(wanted.values()))
        texts = dict(zip(names, await asyncio.gather(*(_text(client, name) for name in names)), strict=True))
    finally:
        await client.close()
    return {variable: texts[name] for variable, name in wanted.items()}


async def _text(client: Requests, name: str) -> str:
    with mapped_to(_SERVICE, "GetSecretValue", f"reading the secret {name!r}"):
        answer = await client.request("GetSecretValue", within=_ANSWER, SecretId=name)
    text = answer.get("SecretString")
    if not isinstance(text, str) or "\0" in text:
        raise ConfigError(f"the secret {name!r} is no text that a variable can hold; keep it as a SecretString, encoded if need be")
    return text


def _refused(refusal: Refusal) -> CloudQError | None:
    if refusal.code == "ResourceNotFoundException":
        return SeamError(f"{refusal.tried}: there is none of this name with a value in this account and region; create it there")
    if refusal.code in DENIED:
        return SeamError(f"{refusal.tried}: access denied ({refusal.detail}); allow secretsmanager:GetSecretValue on it, and its key")
    return None


_SERVICE: Final = Service(name="Secrets Manager", url="AWS_REGION", error=SeamError, unavailable=SeamError, refused=_refused)
