"""Tokens of push requests: only Google's own, for our audience and of our account, and in time."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from cloudq_gcp import oidc
from cloudq_gcp.oidc import STRIPPED, Refused, Tokens
from tests.push_host import ACCOUNT, AUDIENCE, Issuer, Key, issuer

OURS, THEIRS = Key("first"), Key("first")


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    monkeypatch.setattr(oidc, "_FETCH", 60.0)  # a busy machine is not Google's fault
    with issuer(OURS) as certs:
        yield certs


def refusal(tokens: Tokens, authorization: str) -> int | None:
    """The status with which a header is refused."""
    try:
        asyncio.run(tokens.check(authorization))
    except Refused as refused:
        return refused.status
    return None


async def refreshed(tokens: Tokens) -> None:
    """Wait for the end of a fetch that nobody waits for."""
    if tokens._certs._refreshing is not None:
        await tokens._certs._refreshing


def unsigned() -> str:
    return OURS.token(header={"alg": "none"}).rpartition(".")[0] + "."


def signed_with_the_certificate() -> str:
    """The old trick: a token by a shared secret, which is the public certificate."""
    head = OURS.token(header={"alg": "HS256"}).rpartition(".")[0]
    seal = hmac.new(OURS.certificate.encode(), head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(seal).rstrip(b'=').decode()}"


def tampered() -> str:
    head, _, seal = OURS.token(email="x@y").split(".")
    return f"{head}.{OURS.token().split('.')[1]}.{seal}"


BAD: dict[str, tuple[Callable[[], str], int]] = {
    "none": (str, 401),
    "no scheme": (lambda: OURS.token(), 401),
    "another scheme": (lambda: f"Basic {OURS.token()}", 401),
    "no token": (lambda: "Bearer ", 401),
    "no JWT": (lambda: "Bearer abc", 401),
    "garbage": (lambda: "Bearer a.ö.c", 401),
    "deep garbage": (lambda: f"Bearer {base64.urlsafe_b64encode(b'[' * 30_000).decode()}.e30.e30", 401),
    "forged": (lambda: f"Bearer {THEIRS.token()}", 401),
    "tampered": (lambda: f"Bearer {tampered()}", 401),
    "unknown key": (lambda: f"Bearer {OURS.token(header={'kid': 'second'})}", 401),
    "no key": (lambda: f"Bearer {OURS.token(header={'kid': None})}", 401),
    "a key that is a list": (lambda: f"Bearer {OURS.token(header={'kid': ['first']})}", 401),
    "unsigned": (lambda: f"Bearer {unsigned()}", 401),
    "signed with the certificate": (lambda: f"Bearer {signed_with_the_certificate()}", 401),
    "signature stripped": (lambda: f"Bearer {OURS.token().rpartition('.')[0]}.{STRIPPED}", 401),
    "expired": (lambda: f"Bearer {OURS.token(exp=int(time.time()) - 60)}", 401),
    "without expiry": (lambda: f"Bearer {OURS.token(exp=None)}", 401),
    "an expiry that is no number": (lambda: f"Bearer {OURS.token(exp='never')}", 401),
    "from the future": (lambda: f"Bearer {OURS.token(iat=int(time.time()) + 600)}", 401),
    "another audience": (lambda: f"Bearer {OURS.token(aud='https://other.a.run.app/')}", 401),
    "no audience": (lambda: f"Bearer {OURS.token(aud=None)}", 401),
    "several audiences": (lambda: f"Bearer {OURS.token(aud=[AUDIENCE])}", 401),
    "another issuer": (lambda: f"Bearer {OURS.token(iss='https://accounts.example.com')}", 401),
    "another account": (lambda: f"Bearer {OURS.token(email='push@evil.iam.gserviceaccount.com')}", 403),
    "no account": (lambda: f"Bearer {OURS.token(email=None)}", 403),
    "an unverified account": (lambda: f"Bearer {OURS.token(email_verified=False)}", 403),
    "an account that says it is verified": (lambda: f"Bearer {OURS.token(email_verified='true')}", 403),
}


@pytest.mark.parametrize("name", BAD)
def test_a_token_that_is_not_ours_is_refused(google: Issuer, name: str) -> None:
    make, status = BAD[name]
    assert refusal(Tokens([AUDIENCE], [ACCOUNT], certs_url=google.url), make()) == status


def test_a_good_token_is_taken_also_by_a_clock_that_is_a_little_off(google: Issuer) -> None:
    tokens = Tokens(["https://other/", AUDIENCE], ["other@x", ACCOUNT], certs_url=google.url)
    for claims in ({}, {"iss": "accounts.google.com"}, {"exp": -2}, {"iat": 2}):
        now = int(time.time())
        told = {name: now + value if isinstance(value, int) else value for name, value in claims.items()}
        assert refusal(tokens, f"bearer {google.token(**told)}") is None


def test_behind_cloud_run_a_stripped_signature_is_taken_and_all_else_is_still_checked(google: Issuer) -> None:
    tokens = Tokens([AUDIENCE], [ACCOUNT], certs_url=google.url, stripped=True)

    def stripped(**claims: object) -> str:
        return f"Bearer {THEIRS.token(**claims).rpartition('.')[0]}.{STRIPPED}"

    assert refusal(tokens, stripped()) is None
    assert refusal(tokens, stripped(email="x@y")) == 403
    assert refusal(tokens, stripped(aud="https://other/")) == 401
    assert refusal(tokens, stripped(exp=int(time.time()) - 60)) == 401
    assert refusal(tokens, f"Bearer {THEIRS.token()}") == 401  # signed, so it is verified
    assert google.fetches == 1


def test_certificates_are_fetched_once_for_as_long_as_they_may_be_kept(google: Issuer) -> None:
    now = [0.0]

    async def check() -> None:
        tokens = Tokens([AUDIENCE], [ACCOUNT], certs_url=google.url, now=lambda: now[0])
        await tokens.warm()
        await asyncio.gather(*(tokens.check(f"Bearer {google.token()}") for _ in range(20)))
        assert google.fetches == 1
        now[0] = 18_000.0
        await tokens.check(f"Bearer {google.token()}")
        assert google.fetches == 1
        now[0] = 19_001.0  # max-age=19000
        await tokens.check(f"Bearer {google.token()}")
        await refreshed(tokens)
        assert google.fetches == 2

    asyncio.run(check())


def test_a_new_key_is_found_and_made_up_ones_cost_one_fetch_a_minute(google: Issuer) -> None:
    now = [0.0]

    async def check() -> None:
        tokens = Tokens([AUDIENCE], [ACCOUNT], certs_url=google.url, now=lambda: now[0])
        await tokens.check(f"Bearer {google.token()}")
        now[0] = 61.0
        new = Key("second")
        google.keys.append(new)
        await tokens.check(f"Bearer {new.token()}")
        assert google.fetches == 2
        for number in range(50):
            with pytest.raises(Refused):
                await tokens.check(f"Bearer {OURS.token(header={'kid': f'made-up-{number}'})}")
        assert google.fetches == 2

    asyncio.run(check())


def test_while_certificates_cannot_be_had_it_is_the_services_fault_and_known_ones_go_on(google: Issuer) -> None:
    now = [0.0]

    async def check() -> None:
        tokens = Tokens([AUDIENCE], [ACCOUNT], certs_url=google.url, now=lambda: now[0])
        google.status = 500
        for _ in range(5):
            with pytest.raises(Refused) as refused:
                await tokens.check(f"Bearer {google.token()}")
            assert refused.value.status == 503
        assert google.fetches == 1  # then a pause
        google.status, now[0] = 200, 3.0
        await tokens.check(f"Bearer {google.token()}")
        google.status, now[0] = 500, 30_000.0
        await tokens.check(f"Bearer {google.token()}")
        await refreshed(tokens)
        assert google.fetches == 3
        with pytest.raises(Refused) as refused:
            await tokens.check(f"Bearer {THEIRS.token()}")
        assert refused.value.status == 401

    asyncio.run(check())


def test_who_names_a_known_key_does_not_wait_for_certificates_whose_server_hangs(google: Issuer) -> None:
    now = [0.0]

    async def check() -> None:
        tokens = Tokens([AUDIENCE], [ACCOUNT], certs_url=google.url, now=lambda: now[0])
        await tokens.check(f"Bearer {google.token()}")
        now[0] = 30_000.0
        with socket.create_server(("127.0.0.1", 0)) as silent:
            tokens._certs._url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
            for _ in range(5):
                await tokens.check(f"Bearer {google.token()}")
            (fetch, _), now[0] = await asyncio.to_thread(silent.accept), 30_100.0
            await tokens.check(f"Bearer {google.token()}")
            assert tokens._certs._refreshing is not None
            fetch.close()
            await refreshed(tokens)
            silent.setblocking(False)
            now[0] = 30_101.0
            await tokens.check(f"Bearer {google.token()}")
            with pytest.raises(BlockingIOError):  # one fetch at a time, and a pause after its end
                silent.accept()

    asyncio.run(check())


def test_what_is_no_list_of_certificates_is_none(google: Issuer) -> None:
    google.keys.clear()
    assert refusal(Tokens([AUDIENCE], [ACCOUNT], certs_url=google.url), f"Bearer {OURS.token()}") == 503
