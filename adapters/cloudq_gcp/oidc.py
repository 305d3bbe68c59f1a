"""Tokens that Google signs for a service account (OpenID Connect): whether a request comes from whom it should."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any, Final, cast

logger = logging.getLogger("cloudq.push")

CERTS: Final = "https://www.googleapis.com/oauth2/v1/certs"
"""The certificates of Google's OpenID Connect keys, by key id (google.oauth2.id_token)."""
ISSUERS: Final = frozenset({"accounts.google.com", "https://accounts.google.com"})
STRIPPED: Final = "SIGNATURE_REMOVED_BY_GOOGLE"
"""What Cloud Run puts in the place of a signature that it has verified itself (Cloud Run, "Troubleshooting", signature-removed)."""

_SKEW: Final = 10
"""Seconds that clocks may differ."""
_FETCH: Final = 5.0
"""Seconds that the certificates may take."""
_LIFE: Final = 3600.0
"""Seconds that they are kept where their server does not say."""
_AGAIN: Final = 60.0
"""Seconds between fetches for keys that are not known, which anybody can name."""
_FAILED: Final = 2.0
"""Seconds before a fetch that failed is repeated."""


class Refused(Exception):
    """A request that must not be served: ``status`` is the HTTP status. Its text never holds the token."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Tokens:
    """Verifies tokens made for one of ``audiences``, and for one of the service accounts ``emails``. For one event loop.

    ``stripped``: Cloud Run has verified signature and audience before us, and has taken the signature off ("Require authentication").
    """

    def __init__(
        self,
        audiences: Collection[str],
        emails: Collection[str],
        *,
        certs_url: str = CERTS,
        stripped: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._audiences = list(audiences)
        self._emails = frozenset(emails)
        self._stripped = stripped
        self._certs = Certificates(certs_url, now)

    async def warm(self) -> None:
        """Load and fetch what the first check would wait for."""
        await asyncio.gather(asyncio.to_thread(import_module, "google.auth.jwt"), self._certs.of(""), return_exceptions=True)

    async def check(self, authorization: str) -> None:
        """Return where the header holds a good token. Raises Refused: 401, 403 for another account, 503 without certificates."""
        scheme, _, token = authorization.strip().partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise Refused(401, "no bearer token")
        jwt: Any = import_module("google.auth.jwt")  # with cryptography, a tenth of a second: the first push pays, or the start
        try:
            key = jwt.decode_header(token).get("kid")
        except Exception as error:
            raise Refused(401, f"no token: {type(error).__name__}") from None
        if self._stripped and token.endswith(f".{STRIPPED}"):
            claims: Mapping[str, Any] = jwt.decode(token, verify=False)
        else:
            certificate = await self._certs.of(key)
            if certificate is None:
                raise Refused(401, "it is not signed with a key of Google's")
            try:
                claims = jwt.decode(token, certs={key: certificate}, audience=self._audiences, clock_skew_in_seconds=_SKEW)
            except Exception as error:  # Google's library raises what it meets in a token that is none
                logger.info("a token was refused: %s", error)
                raise Refused(401, "the token is forged, expired, or made for another audience") from None
        self._check_claims(claims)

    def _check_claims(self, claims: Mapping[str, Any]) -> None:
        expires = claims.get("exp")
        if claims.get("aud") not in self._audiences or not isinstance(expires, (int, float)) or expires + _SKEW < time.time():
            raise Refused(401, "the token is expired, or made for another audience")
        if claims.get("iss") not in ISSUERS:
            raise Refused(401, "the token's issuer is not Google")
        if claims.get("email") not in self._emails or claims.get("email_verified") is not True:
            raise Refused(403, "the token belongs to another account")


class Certificates:
    """Google's certificates by key id, kept for as long as their server says. For one event loop."""

    def __init__(self, url: str, now: Callable[[], float]) -> None:
        self._url = url
        self._now = now
        self._found: Mapping[str, str] = {}
        self._until = self._next = now()
        self._refreshing: asyncio.Task[None] | None = None

    async def of(self, key: object) -> str | None:
        """The certificate of a key, in PEM; ``None`` where there is none. Raises Refused (503) while none can be had at all.

        Only who names a key that is not known waits for a fetch.
        """
        if not isinstance(key, str):
            return None
        now = self._now()
        if self._refreshing is None and now >= self._next and (now >= self._until or key not in self._found):
            self._refreshing = asyncio.create_task(self._refresh())
        if self._refreshing is not None and key not in self._found:
            await asyncio.shield(self._refreshing)
        if not self._found:
            raise Refused(503, "Google's certificates cannot be had")
        return self._found.get(key)

    async def _refresh(self) -> None:
        try:
            self._found, life = await asyncio.to_thread(self._fetch)
            now = self._now()
            self._until, self._next = now + life, now + _AGAIN
        except Exception as error:  # whatever comes from there: what was known goes on
            self._next = self._now() + _FAILED
            logger.error("the certificates at %s could not be fetched: %s", self._url, error)
        finally:
            self._refreshing = None

    def _fetch(self) -> tuple[Mapping[str, str], float]:
        import urllib.request  # in a thread, and with ssl and http: it is not what a cold start waits for

        with urllib.request.urlopen(self._url, timeout=_FETCH) as answer:
            found: Any = json.load(answer)
            age = re.search(r"max-age=(\d+)", answer.headers.get("Cache-Control") or "")
        if not isinstance(found, dict) or not found:
            raise ValueError("they are no object of certificates")
        return cast("dict[str, str]", found), float(age[1]) if age else _LIFE
