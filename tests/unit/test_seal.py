"""Signed and encrypted messages: what a holder of the keys wrote runs, and nothing else does."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import os
import re
import subprocess
from collections.abc import Iterator
from shutil import which
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudq import CloudQ, Retry, group, letters
from cloudq.broker import Delivery, Outgoing
from cloudq.clock import ManualClock
from cloudq.errors import BrokerUnavailable, ConfigError, KeysError, KeysUnavailable, MessageTooLarge, SendError
from cloudq.io import drive
from cloudq.keys import LIFE, MESSAGES, DataKeys
from cloudq.letters import Match
from cloudq.memory import MemoryBroker
from cloudq.message import parse
from cloudq.outcome import Dead, Dropped, Later
from cloudq.runner import Job, Runner
from cloudq.seal import Sealing
from cloudq.settle import settle
from tests.servers import missing
from tests.unit.test_protocol import DOCS, VALIDATOR


def key(seed: str, bytes: int = 32) -> str:
    return base64.b64encode((hashlib.sha256(seed.encode()).digest() * 2)[:bytes]).decode()


NEW, OLD = f"2026-11:{key('new')}", f"2026-05:{key('old')}"
SECRET = f"secret:{key('secret')}"
SIGNED: dict[str, Any] = {"signing": NEW}
ENCRYPTED: dict[str, Any] = {"encryption": SECRET}
BOTH: dict[str, Any] = {**SIGNED, **ENCRYPTED}
KINDS = pytest.mark.parametrize("how", [SIGNED, ENCRYPTED, BOTH], ids=["signed", "encrypted", "both"])


class Site:
    """An app on a memory broker (perhaps somebody else's) whose every message is seen."""

    def __init__(self, broker: MemoryBroker | None = None, **keys: Any) -> None:
        self.clock = ManualClock()
        self.broker = broker or MemoryBroker(clock=self.clock)
        self.app = app = CloudQ("sealed", broker=self.broker, clock=self.clock, **{"store": "memory://", **keys})
        self.ran: list[Any] = []
        self.seen: list[str] = []
        assert app.broker is self.broker  # it has its queues from here on

        @app.task(name="take", retry=Retry(max_retries=1, delay=1))
        def take(what: Any, more: Any = None) -> Any:
            self.ran.append(what)
            if what == "fail":
                raise ValueError("password hunter2")
            return what

    def call(self, what: Any = "x", **options: Any) -> str:
        """Send a call and take it out again: its body."""
        self.app["take"].options(**options).delay(what)
        (body,) = self.take()
        return body

    def take(self, queue: str = "default") -> list[str]:
        found: list[str] = []
        while batch := drive(self.broker.receive(queue, max_messages=10, wait=0)):
            drive(self.broker.ack(batch))
            found += [delivery.body for delivery in batch]
        return found

    def put(self, body: str, queue: str = "default") -> None:
        assert drive(self.broker.send(queue, [Outgoing(body=body)])) == [None]

    def admit(self, body: str) -> Job:
        return Runner(self.app).admit(Delivery(queue="default", body=body, receipt=None, receives=1))

    async def deliver(self, delivery: Delivery) -> Job:
        runner = Runner(self.app)
        job = runner.admit(delivery)
        if job.elsewhere:
            await runner.fetch(job)
        if job.outcome is None:
            await runner.claim(job)
        await settle(self.app, job, job.outcome or runner.run_isolated(job))
        return job

    def work(self) -> list[Job]:
        """Deliver what there is, and what comes of it, until nothing is left."""
        jobs: list[Job] = []
        for _ in range(10):
            while batch := drive(self.broker.receive("default", max_messages=10, wait=0)):
                drive(self.broker.ack(batch))
                self.seen += [delivery.body for delivery in batch]
                jobs += [asyncio.run(self.deliver(delivery)) for delivery in batch]
            self.clock.advance(5)
        return jobs

    def refused(self, body: str) -> str:
        """The reason why it is a dead letter and did not run."""
        self.put(body)
        self.work()
        assert self.ran == []
        (letter,) = self.take("default-dlq")
        fields = parse(letter)
        VALIDATOR.validate(fields)
        return str(fields["dead"]["reason"])


# ---------------------------------------------------------------------- what runs


@KINDS
def test_everything_that_a_call_leads_to_is_sealed_and_runs(how: dict[str, Any]) -> None:
    site = Site(**how)
    take = site.app["take"]
    linked = take.si("linked").set(headers={"h": "hidden"})
    result = take.options(link=linked, link_error=take.si("told"), headers={"h": "hidden"}, delay="3s").delay("hidden")
    take.delay("fail")
    (group(take.s("hidden one"), take.s("hidden two")) | take.s()).delay()
    site.app.send_many([take.s("hidden three"), take.s("hidden four")])
    site.work()
    assert result.get(timeout=0) == "hidden"
    expected = ["hidden", "linked", "fail", "fail", "hidden one", "hidden two", ["hidden one", "hidden two"], "hidden three", "hidden four"]
    assert sorted(map(str, site.ran)) == sorted(map(str, expected))
    dead = site.take("default-dlq")
    assert [parse(body)["attempt"] for body in dead] == [1]
    for body in site.seen + dead:
        fields = parse(body)
        VALIDATOR.validate(fields)
        assert body.isascii()
        assert ("sig" in fields, "enc" in fields) == ("signing" in how, "encryption" in how)
        assert "encryption" not in how or not re.search("hidden|hunter2|linked", body)
        assert fields["task"] == "take"  # what routes a message stays readable


def test_a_text_that_another_language_signed_runs_whatever_its_spaces_and_its_order() -> None:
    text = '{ "task" : "take",\n "args": [ "zäh \\u00fc", {"a":1,"sig":"inner"} ], "v":1, "sent": 1.8e9, "id":"other-language"'
    mac = hmac.new(hashlib.sha256(b"new").digest(), text.encode(), "sha256").digest()
    body = f'{text},"sig":"2026-11.{base64.urlsafe_b64encode(mac).decode().rstrip("=")}"}}\n'
    site = Site(**SIGNED)
    assert site.admit(body).outcome is None
    assert isinstance(site.admit(body.replace("zäh", "zah")).outcome, Dead)
    died = body.rstrip()[:-1] + ',"dead":{"reason":"the console moved it"}}'
    assert site.admit(died).outcome is None


def test_the_page_says_how_a_shell_signs_a_call() -> None:
    if which("openssl") is None:
        missing("openssl", "apt-get install openssl")
    page = (DOCS / "protocol.md").read_text().partition("## Signatures and encryption")[2]
    script = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)[0].replace("shop.tasks.add", "take")
    done = subprocess.run(["sh", "-euc", script], env={**os.environ, "KEY": key("new")}, capture_output=True, text=True, timeout=100)
    assert Site(**SIGNED).admit(done.stdout).outcome is None, done
    VALIDATOR.validate(parse(done.stdout))


def test_keys_rotate_first_read_then_written_then_dropped() -> None:
    old, both, new = Site(signing=OLD), Site(signing=f"{OLD},{NEW}"), Site(signing=f"{NEW}, {OLD}")
    for writer in (old, both, new):
        for reader in (both, new):
            assert reader.admit(writer.call()).outcome is None
    assert parse(new.call())["sig"].startswith("2026-11.")
    assert "'2026-05' is not among CLOUDQ_SIGNING_KEYS" in Site(**SIGNED).refused(old.call())
    other = f"other:{key('other')}"
    assert Site(encryption=f"{other},{SECRET}").admit(Site(**ENCRYPTED).call()).outcome is None
    assert "'other' is not among CLOUDQ_ENCRYPTION_KEYS" in Site(**ENCRYPTED).refused(Site(encryption=other).call())


def test_an_eager_call_needs_no_seal_and_still_goes_through_the_codec() -> None:
    site = Site(**BOTH, task_always_eager=True)
    assert site.app["take"].options(link=site.app["take"].si("y")).delay("x").get() == "x"
    assert site.ran == ["x", "y"]


def test_a_process_without_keys_runs_what_is_signed_and_sends_no_stale_signature_on() -> None:
    body, site = Site(**SIGNED).call("fail"), Site()
    site.put(body)
    site.work()
    assert site.ran == ["fail", "fail"]
    assert ["sig" in parse(each) for each in site.seen] == [True, False]


# ---------------------------------------------------------------------- what does not


WHOLE = {
    "headers": {"h": 1},
    "kwargs": {"more": 1},
    "eta": 1_700_000_000.5,
    "expires": 2_700_000_000.5,
    "timeout": 5,
    "attempt": 1,
    "first": 1,
    "crashes": 1,
    "deferrals": 1,
    "root": "r",
    "parent": "p",
    "tenant": "t",
    "group": "g",
    "flow": "f",
    "ignore_result": True,
    "link": [{"task": "take", "queue": "default", "args": [1]}],
    "link_error": [{"task": "take", "queue": "default"}],
    "next": [{"task": "take", "queue": "default", "id": "n"}],
    "dead": {"reason": "it raised", "error": {"type": "E", "detail": "d", "traceback": "t"}},
}


def whole(site: Site) -> str:
    """A message with every field, sealed."""
    fields = {"v": 1, "id": "whole", "task": "take", "args": ["x"], "sent": 1.5, **WHOLE}
    sealing = site.app.sealing
    assert sealing is not None
    return sealing.seal(json.dumps(fields, separators=(",", ":")))


VICTIMS = {name: Site(**how, store=None) for name, how in (("signed", SIGNED), ("encrypted", ENCRYPTED), ("both", BOTH))}


@pytest.mark.parametrize("how", sorted(VICTIMS))
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_body_changed_anywhere_never_runs_as_anything_but_what_was_sealed(how: str, data: st.DataObject) -> None:
    site = VICTIMS[how]
    body = whole(site)
    original = site.admit(body).message
    assert original is not None
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, min(len(body), start + data.draw(st.sampled_from([0, 1, 3, 40, 5000])))))
    inserted = data.draw(st.sampled_from(["", "0", "9", "}", ',"attempt":0', ',"task":"take"', '"', " ", "\\", body]) | st.text(max_size=6))
    job = site.admit(body[:start] + inserted + body[end:])
    if job.message is None:
        assert isinstance(job.outcome, Dead)
    else:
        assert job.message == original


@pytest.mark.parametrize("how", sorted(VICTIMS))
@pytest.mark.parametrize("field", ["v", "id", "task", "args", "sent", *WHOLE, "queue", "new"])
def test_no_field_can_be_changed_added_or_taken_away(how: str, field: str) -> None:
    site = VICTIMS[how]
    body = whole(site)
    fields = parse(body)
    value = {"eta": 1, "expires": 2e9, "args": ["other"], "id": "other", "dead": {"reason": "other"}}.get(field, 1)
    changed = [{**fields, field: value}, {field: value, **fields}]
    changed += [{name: each for name, each in fields.items() if name != field}] if field in fields else []
    texts = [json.dumps(each, separators=(",", ":")) for each in changed]
    texts += [f'{body[:-1]},"{field}":{json.dumps(value)}}}', f'{{"{field}":{json.dumps(value)},{body[1:]}']
    for text in texts:
        job = site.admit(text)
        if field == "dead" and "other" in text and job.message is not None:
            assert (job.message.eta, job.message.expires) == (WHOLE["eta"], WHOLE["expires"])  # the one thing that anybody may say
        elif job.message is not None:
            assert parse(text) == fields
        else:
            assert isinstance(job.outcome, Dead)


@KINDS
def test_the_seal_of_one_message_does_not_fit_another_and_not_a_shorter_one(how: dict[str, Any]) -> None:
    site = Site(**how)
    one, other = site.call("one"), site.call("other")
    mark = ',"enc":"' if "encryption" in how else ',"sig":"'
    assert "not fit" in site.refused(one.partition(mark)[0] + "".join(other.partition(mark)[1:])) or "encryption" in how
    for end in range(len(one) - 60, len(one), 7):
        assert isinstance(site.admit(one[:end] + '"}').outcome, Dead)
    assert isinstance(site.admit(one.replace(mark, mark[:-1] + f'x",{mark[1:]}')).outcome, Dead)
    assert isinstance(site.admit(re.sub(mark + '[^"]*', mark, one)).outcome, Dead)
    assert isinstance(site.admit(re.sub(mark + '[^"]*"', mark[:-1] + "7", one)).outcome, Dead)
    twice = one[:-1] + f'{mark}x",{mark[1:-1]}5}}'
    assert isinstance(site.admit(twice).outcome, Dead)


def test_another_key_of_the_same_id_opens_nothing() -> None:
    assert "does not fit" in Site(signing=f"2026-11:{key('wrong')}").refused(Site(**SIGNED).call())
    assert "InvalidTag" in Site(encryption=f"secret:{key('wrong')}").refused(Site(**ENCRYPTED).call())


def test_what_is_not_sealed_at_all_is_refused_and_a_seal_cannot_be_taken_off() -> None:
    plain = Site().call()
    assert Site(**SIGNED).refused(plain) == "it is not signed"
    assert "it is not encrypted" in Site(**ENCRYPTED).refused(plain)
    assert Site(**BOTH).refused(plain) == "it is not signed"
    assert Site(**BOTH).refused(Site(**ENCRYPTED).call()) == "it is not signed"
    assert "no key to check its signature" in Site(**ENCRYPTED).refused(Site(**SIGNED).call())
    stripped = parse(Site(**BOTH).call())
    del stripped["sig"], stripped["enc"]
    assert Site(**BOTH).refused(json.dumps({**stripped, "args": ["forged"]})) == "it is not signed"
    wrapper = {"v": 1, "dead": {"reason": "r", "raw": base64.b64encode(plain.encode()).decode()}}
    assert Site(**SIGNED).refused(json.dumps(wrapper)) == "it is not signed"
    assert isinstance(Site(**SIGNED).admit('{"v":2,"id":"i","task":"take"}').outcome, Dead)  # also of a version to come


def test_what_is_encrypted_never_runs_without_the_keys() -> None:
    body = Site(**ENCRYPTED).call()
    assert "set CLOUDQ_ENCRYPTION_KEYS" in Site().refused(body)
    fields = parse(body)
    assert "set CLOUDQ_ENCRYPTION_KEYS" in Site().refused(json.dumps({name: fields[name] for name in ("v", "id", "task", "sent", "enc")}))


def test_while_keys_are_rolled_in_what_is_unsigned_runs_and_what_is_wrongly_signed_does_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for how in (SIGNED, ENCRYPTED, BOTH):
            site = Site(**how, accept_unsigned=True)
            for body in (Site().call("fail"), Site(**how).call("y")):
                site.put(body)
            site.work()
            assert site.ran == ["fail", "y", "fail"]
            assert "sig" in parse(site.seen[2]) or "enc" in parse(site.seen[2])  # the retry is its own
    assert "accept_unsigned lets it run" in caplog.text
    assert "does not fit" in Site(**SIGNED, accept_unsigned=True).refused(Site(signing=f"2026-11:{key('wrong')}").call())
    assert Site(**BOTH, accept_unsigned=True).admit(Site(**ENCRYPTED).call()).outcome is None
    assert Site(**BOTH).admit(Site(**SIGNED).call()).outcome is None  # encryption rolled in after signing needs no grace


# ---------------------------------------------------------------------- dead letters


@KINDS
def test_a_dead_letter_runs_again_from_the_console_and_by_command(how: dict[str, Any]) -> None:
    site = Site(**how)
    site.put(site.call("fail", expires="10s"))
    site.work()
    assert site.ran == ["fail", "fail"]
    (body,) = site.take("default-dlq")
    site.clock.advance(100)
    site.put(body)  # as a console does
    site.work()
    assert site.ran == ["fail"] * 4  # it has said itself that it died: that it has expired counts no more
    done = asyncio.run(letters.redrive(site.app, "default-dlq", Match()))
    assert len(done.sent) == 1
    site.work()
    assert site.ran == ["fail"] * 6
    assert parse(site.take("default-dlq")[0])["attempt"] == 5


@KINDS
def test_a_refused_message_keeps_every_byte_and_runs_once_the_key_is_there(how: dict[str, Any]) -> None:
    broken = {name: f"other:{key(name)}" for name in how}
    body = Site(**how).call()
    refusing = Site(**broken)
    refusing.put(body)
    refusing.work()
    refusing.put(refusing.take("default-dlq")[0])
    refusing.work()  # refused once more
    asyncio.run(letters.redrive(refusing.app, "default-dlq", Match()))
    site = Site(refusing.broker, **how)
    site.work()
    assert site.ran == ["x"]
    (sent,) = site.seen
    assert sent.startswith(body[:-1] + ',"dead":{"reason":')


def test_a_note_that_nobody_signed_neither_hurries_a_message_nor_makes_an_old_one_young() -> None:
    site = Site(**SIGNED)
    note = ',"dead":{"reason":"I say so"}}'
    now = site.clock.time()
    assert site.app.sealing is not None
    base = {"v": 1, "id": "i", "task": "take", "args": ["x"]}
    early = site.app.sealing.seal(json.dumps({**base, "eta": now + 50}, separators=(",", ":")))
    late = site.app.sealing.seal(json.dumps({**base, "expires": now - 50}, separators=(",", ":")))
    assert isinstance(site.admit(early[:-1] + note).outcome, Later)
    assert isinstance(site.admit(late[:-1] + note).outcome, Dropped)
    signed = site.app.sealing.seal(json.dumps({**base, "expires": now - 50, "dead": {"reason": "r"}}, separators=(",", ":")))
    assert site.admit(signed).outcome is None


def test_commands_show_what_is_encrypted_to_who_has_the_key() -> None:
    site = Site(**BOTH)
    site.put(site.call("fail"))
    site.work()
    (seen,) = asyncio.run(letters.scan(site.app, "default-dlq")).letters
    assert (seen.fields["args"], seen.error["detail"]) == (["fail"], "password hunter2")
    blind = Site(site.broker)
    (seen,) = asyncio.run(letters.scan(blind.app, "default-dlq")).letters
    assert ("args" in seen.fields, seen.task, seen.error["detail"]) == (False, "take", "(encrypted)")
    assert "ValueError" in seen.error["type"]
    done = asyncio.run(letters.redrive(blind.app, "default-dlq", Match()))  # who cannot read it can still send it back
    assert len(done.sent) == 1
    site.work()
    assert site.ran == ["fail"] * 4


def test_a_letter_that_the_broker_itself_moved_is_redriven_as_it_was_signed() -> None:
    site = Site(**SIGNED)
    site.put(site.call(), "default-dlq")
    asyncio.run(letters.redrive(site.app, "default-dlq", Match()))
    site.work()
    assert site.ran == ["x"]


# ---------------------------------------------------------------------- keys and settings


@pytest.mark.parametrize("setting", ["signing", "encryption"])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"a:{key('x', 31)}", "31 bytes"),
        ("a:", "0 bytes"),
        (key("x"), "write it as id:key"),
        (f"{key('x')[:20]}:{key('x')}+", "write it as|base64"),
        ("a:no base64!", "is not base64; make one with: openssl"),
        (f"a:{key('x')},a:{key('y')}", "twice"),
        (f"a:{key('x')},", "entry 2"),
    ],
)
def test_a_setting_that_holds_no_good_key_is_refused_without_printing_it(setting: Any, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        CloudQ("x", **{setting: text})
    assert key("x")[:8] not in str(caught.value)
    assert setting.upper() in str(caught.value).upper()


def test_a_key_to_encrypt_has_exactly_32_bytes_and_a_url_must_be_of_a_key_service() -> None:
    assert CloudQ("x", signing=f"a:{key('x', 64)}").sealing
    with pytest.raises(ConfigError, match="AES-256 takes 32"):
        CloudQ("x", encryption=f"a:{key('x', 64)}")
    with pytest.raises(ConfigError, match="no key service"):
        CloudQ("x", encryption="a:memory://")


def test_keys_come_from_the_environment_where_the_app_sets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDQ_SIGNING_KEYS", NEW)
    monkeypatch.setenv("CLOUDQ_ENCRYPTION_KEYS", SECRET)
    body = Site().call()
    assert parse(body).keys() == {"v", "id", "task", "sent", "enc", "sig"}
    assert Site(signing=NEW, encryption=SECRET).admit(body).outcome is None
    plain = '{"v":1,"id":"i","task":"take","args":["x"]}'
    assert isinstance(Site().admit(plain).outcome, Dead)
    monkeypatch.setenv("CLOUDQ_ACCEPT_UNSIGNED", "1")
    assert Site().admit(plain).outcome is None
    assert isinstance(Site(accept_unsigned=False).admit(plain).outcome, Dead)
    monkeypatch.setenv("CLOUDQ_ACCEPT_UNSIGNED", "perhaps")
    with pytest.raises(ConfigError, match="1 or 0"):
        Site()


def test_no_key_is_printed() -> None:
    app = Site(**BOTH).app
    printed = f"{app!r} {app.sealing!r} {app.conf!r} {app.given!r}"
    assert "2026-11" in printed
    assert key("new")[:10] not in printed
    assert repr(hashlib.sha256(b"new").digest())[3:12] not in printed


def test_a_message_that_its_seal_makes_too_large_is_refused_at_the_call() -> None:
    site = Site(**ENCRYPTED)
    room = site.broker.limits.body
    with pytest.raises(MessageTooLarge, match="signed or encrypted"):
        site.app["take"].delay("x" * (room - 1000))
    assert site.take() == []


# ---------------------------------------------------------------------- data keys


class Service:
    """A key service in memory. ``broken``: what each of the next requests raises."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.broken: list[Exception] = []

    async def generate(self) -> tuple[bytes, bytes]:
        return await self._answer("generate", (hashlib.sha256(b"%d" % len(self.asked)).digest(), b"wrapped %d" % len(self.asked)))

    async def unwrap(self, wrapped: bytes) -> bytes:
        if not wrapped.startswith(b"wrapped"):
            raise KeysError("this key did not wrap it")
        return await self._answer("unwrap", hashlib.sha256(wrapped.removeprefix(b"wrapped ")).digest())

    async def _answer(self, what: str, answer: Any) -> Any:
        self.asked.append(what)
        await asyncio.sleep(0)
        if self.broken:
            raise self.broken.pop(0)
        return answer

    async def close(self) -> None: ...


@pytest.fixture
def served() -> Iterator[tuple[Site, Service]]:
    site, service = Site(), Service()
    site.app.sealing = Sealing({}, {"kms": DataKeys(service, site.clock.time)})
    yield site, service
    site.app.close()


def test_a_data_key_serves_many_messages_for_a_bounded_time_and_number(served: tuple[Site, Service]) -> None:
    site, service = served
    for number in range(20):
        site.app["take"].delay(number)
    assert service.asked == ["generate"]
    site.work()
    assert site.ran == list(range(20))
    assert service.asked == ["generate", "unwrap"]
    site.clock.advance(LIFE)
    site.call()
    assert service.asked.count("generate") == 2
    sealing = site.app.sealing
    assert sealing is not None
    for _ in range(MESSAGES - 1):
        sealing._encryption["kms"].to_encrypt()
    site.call()
    assert service.asked.count("generate") == 3


def test_many_who_want_one_key_ask_once(served: tuple[Site, Service]) -> None:
    site, service = served

    async def call_at_once() -> None:
        await asyncio.gather(*(site.app["take"].adelay(number) for number in range(10)))

    asyncio.run(call_at_once())
    assert service.asked == ["generate"]
    bodies = site.take()

    async def deliver_at_once() -> None:
        await asyncio.gather(*(site.deliver(Delivery(queue="default", body=body, receipt=None, receives=1)) for body in bodies))

    asyncio.run(deliver_at_once())
    assert service.asked == ["generate", "unwrap"]
    assert sorted(site.ran) == list(range(10))


def test_while_the_key_service_is_away_messages_wait_unchanged_and_calls_say_so(served: tuple[Site, Service]) -> None:
    site, service = served
    body = site.call()
    service.broken = [KeysUnavailable("away")]
    site.put(body)
    site.work()
    assert site.ran == ["x"]
    assert site.seen == [body, body]  # not a byte is changed by the wait
    site.clock.advance(LIFE)
    service.broken = [KeysUnavailable("away"), KeysError("denied")]
    with pytest.raises(BrokerUnavailable, match="could not be had: away"):
        site.call()
    with pytest.raises(SendError, match="could not be had: denied"):
        site.call()
    assert site.take() == []


def test_a_wrapped_key_of_another_master_key_and_one_that_is_none_are_refused(served: tuple[Site, Service]) -> None:
    site, _ = served
    body = site.call()
    id, _, data = parse(body)["enc"].split(".")
    for wrapped in (base64.urlsafe_b64encode(b"foreign").decode().rstrip("="), "", "x" * 20_000, "?"):
        forged = body.replace(parse(body)["enc"], f"{id}.{wrapped}.{data}")
        site.put(forged)
        site.work()
        (letter,) = site.take("default-dlq")
        assert letter.startswith(forged[:-1])
    assert site.ran == []
