"""The envelope: what a task call looks like on the wire, version 1 (docs/protocol.md)."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from json import JSONDecoder
from typing import Any, Final, NoReturn, cast

from cloudq.errors import ArgumentsError, DecodeError
from cloudq.values import dumps

VERSION: Final = 1
"""The protocol version written, and the newest one read."""

MAX_ID: Final = 128
"""Characters of a task id at most (SQS allows 128 in a deduplication id: AWS SendMessage)."""


MAX_MEMBERS: Final = 100_000
"""Members of a group that is waited for at most: as many results are fetched at once."""

MAX_NESTING: Final = 100
"""Levels of links and groups inside each other at most. A chain is one level, however long."""

DEAD_ATTRIBUTE: Final = "cloudq-dead"
"""Attribute with the reason, where a dead letter is too large to carry it in its body."""


def new_id() -> str:
    """A fresh task id: 128 random bits as 32 hex digits; safe across forks."""
    return os.urandom(16).hex()


def new_ids() -> Iterator[str]:
    """Fresh task ids without end; asking the system for many at a time takes a fifth of the time. Not to be shared across a fork."""
    count = 1
    while True:
        digits = os.urandom(16 * count).hex()
        for at in range(0, len(digits), 32):
            yield digits[at : at + 32]
        count = min(2 * count, 256)


def derived_id(*parts: str | int) -> str:
    """An id made of others: the same parts give the same id, so that a redelivered parent sends the same messages."""
    return hashlib.sha256("\x00".join(map(str, parts)).encode()).hexdigest()[:32]


class Message:
    """One task call as it travels: the decoded JSON object, read through properties. Treat it as frozen.

    What this version does not know stays in ``fields`` and is sent on with a retry: a newer sender loses nothing.
    Instants are Unix time in seconds.
    """

    __slots__ = ("fields",)

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def __repr__(self) -> str:
        return f"<Message {self.task} {self.id} attempt {self.attempt}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and self.fields == other.fields

    def __hash__(self) -> int:
        return hash((self.id, self.attempt))

    @property
    def id(self) -> str:
        """The task id: the same for every attempt."""
        value: str = self.fields["id"]
        return value

    @property
    def task(self) -> str:
        """The task's name."""
        value: str = self.fields["task"]
        return value

    @property
    def args(self) -> list[Any]:
        """Positional arguments, JSON values."""
        value: list[Any] = self.fields.get("args", [])
        return value

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments, JSON values."""
        value: dict[str, Any] = self.fields.get("kwargs", {})
        return value

    @property
    def attempt(self) -> int:
        """0 for the first run, one more for each retry; it never falls, also not by a redrive."""
        value: int = self.fields.get("attempt", 0)
        return value

    @property
    def first(self) -> int:
        """The attempt at which the present budget of retries began: 0, or later after a redrive from a dead-letter queue."""
        value: int = self.fields.get("first", 0)
        return value

    @property
    def retries(self) -> int:
        """How many retries of the present budget lie behind this attempt."""
        return self.attempt - self.first

    @property
    def crashes(self) -> int:
        """How often a process running this message died, one run after another; survives re-sending, unlike the broker's receive count."""
        value: int = self.fields.get("crashes", 0)
        return value

    @property
    def turn(self) -> float | None:
        """When a rate limit lets this attempt start."""
        value: float | None = self.fields.get("turn")
        return value

    @property
    def deferrals(self) -> int:
        """How often this attempt was sent again without having run."""
        value: int = self.fields.get("deferrals", 0)
        return value

    @property
    def sent(self) -> float | None:
        """When it was called."""
        value: float | None = self.fields.get("sent")
        return value

    @property
    def eta(self) -> float | None:
        """It does not run before this instant."""
        value: float | None = self.fields.get("eta")
        return value

    @property
    def expires(self) -> float | None:
        """It does not start after this instant."""
        value: float | None = self.fields.get("expires")
        return value

    @property
    def timeout(self) -> float | None:
        """Time limit of one run in seconds, where the call set one."""
        value: float | None = self.fields.get("timeout")
        return value

    @property
    def root(self) -> str:
        """The id of the call that began the workflow; its own where none did."""
        value: str = self.fields.get("root", self.fields["id"])
        return value

    @property
    def parent(self) -> str | None:
        """The id of the task that made this call."""
        value: str | None = self.fields.get("parent")
        return value

    @property
    def group(self) -> str | None:
        """The ordering key."""
        value: str | None = self.fields.get("group")
        return value

    @property
    def tenant(self) -> str | None:
        """The fairness key."""
        value: str | None = self.fields.get("tenant")
        return value

    @property
    def headers(self) -> Mapping[str, Any]:
        """What the caller's code and middleware add; JSON values."""
        value: Mapping[str, Any] = self.fields.get("headers", {})
        return value

    @property
    def link(self) -> Sequence[Mapping[str, Any]]:
        """Signatures to call with the result, as JSON objects."""
        value: Sequence[Mapping[str, Any]] = self.fields.get("link", ())
        return value

    @property
    def link_error(self) -> Sequence[Mapping[str, Any]]:
        """Signatures to call when it ends without a result."""
        value: Sequence[Mapping[str, Any]] = self.fields.get("link_error", ())
        return value

    @property
    def next(self) -> Sequence[Mapping[str, Any]]:
        """The steps of its chain that follow it, as JSON objects."""
        value: Sequence[Mapping[str, Any]] = self.fields.get("next", ())
        return value

    @property
    def join(self) -> Mapping[str, Any] | None:
        """Of which chord it is a member: ``chord`` (an id), ``index``, ``of`` (how many members)."""
        value: Mapping[str, Any] | None = self.fields.get("join")
        return value

    @property
    def flow(self) -> str | None:
        """The id of the workflow that it belongs to: revoking that cancels all of it."""
        value: str | None = self.fields.get("flow")
        return value

    @property
    def results(self) -> Mapping[str, Any] | None:
        """Whose results go before its arguments: ``chord`` (an id)."""
        value: Mapping[str, Any] | None = self.fields.get("results")
        return value

    @property
    def each(self) -> bool:
        """Whether ``args`` are lists of arguments, for as many calls in one run."""
        return bool(self.fields.get("each", False))

    @property
    def has_follow_ups(self) -> bool:
        """Whether something is to be done with its value."""
        fields = self.fields
        return "link" in fields or "next" in fields or "join" in fields

    @property
    def ignore_result(self) -> bool:
        """Whether the call asked for no result."""
        return bool(self.fields.get("ignore_result", False))

    @property
    def dead(self) -> Mapping[str, Any] | None:
        """In a dead-letter queue: why it is there (``reason``, ``queue``, ``at``, ``error``)."""
        value: Mapping[str, Any] | None = self.fields.get("dead")
        return value

    def copy(self, **changes: Any) -> Message:
        """The same message with other fields; ``None`` takes a field out."""
        fields = {**self.fields, **changes}
        return Message({key: value for key, value in fields.items() if value is not None})

    def encode(self) -> str:
        """The wire form: one line of ASCII JSON."""
        return dumps(self.fields)

    def dedup_id(self) -> str:
        """The same for repeats of one send only: task id, attempt and deferral."""
        return f"{self.id}.{self.attempt}.{self.deferrals}" if self.attempt or self.deferrals else self.id

    def next_attempt(self, *, crashed: bool = False) -> Message:
        """What a retry sends."""
        return self.copy(
            attempt=self.attempt + 1,
            crashes=self.crashes + 1 if crashed else None,
            deferrals=None,
            eta=None,
            turn=None,
        )

    def revived(self, *, timed: bool = False) -> Message:
        """A dead letter as it runs again: a fresh budget of retries under the same id, with attempts that go on counting.

        ``timed``: its ``eta`` and ``expires`` go on to hold, for nobody trustworthy has said that it died.
        """
        fields = self.fields
        return self.copy(
            dead=None,
            attempt=self.attempt + 1,
            first=self.attempt + 1,
            crashes=None,
            deferrals=None,
            turn=None,
            unknown_since=None,
            eta=fields.get("eta") if timed else None,
            expires=fields.get("expires") if timed else None,
        )


def encode_call(id: str, task_json: str, args_json: str, sent: float) -> str:
    """The wire form of a bare call, without building the object first; ``task_json`` and ``args_json`` are JSON already."""
    return f'{{"v":1,"id":"{id}","task":{task_json},"args":{args_json},"sent":{sent:.3f}}}'


def _text(value: object) -> bool:
    return isinstance(value, str)


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53  # what every JSON reader keeps exactly


def _instant(value: object) -> bool:
    return (type(value) is float or type(value) is int) and -1e11 < value < 1e11


def _limit(value: object) -> bool:
    return _instant(value) and cast("float", value) >= 0


def _object(value: object) -> bool:
    return isinstance(value, dict)


def _array(value: object) -> bool:
    return isinstance(value, list)


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _signatures(value: object) -> bool:
    """Calls, or groups of steps side by side, with all that is nested in them."""
    if not isinstance(value, list):
        return False
    level = cast("list[object]", value)
    for _ in range(MAX_NESTING):
        if not all(map(_signature, level)):
            return False
        level = _nested(cast("list[dict[str, Any]]", level))
        if not level:
            return True
    return False


def _signature(value: object) -> bool:
    """One of them, but for what is nested in it."""
    if not isinstance(value, dict):
        return False
    link = cast("dict[str, Any]", value)
    if "members" not in link and not ("task" in link and "queue" in link):
        return False
    for key, each in link.items():  # of a long chain each message has many
        check = _LINK.get(key)
        if check is not None and not check(each):
            return False
    return not link.get("each") or _lists(link.get("args", []))


def _nested(level: Iterable[Mapping[str, Any]]) -> list[Any]:
    """What the links of one level hold of further ones."""
    found: list[Any] = []
    for link in level:
        for key in ("link", "link_error", "next"):
            if key in link:
                found.extend(link[key])
        for branch in link.get("members", ()):
            found.extend(branch)
    return found


def check_nesting(fields: Mapping[str, Any], name: str) -> None:
    """Refuse at the call what readers would refuse: links in links over MAX_NESTING deep. Raises ArgumentsError."""
    level: list[Any] = [fields]
    for _ in range(MAX_NESTING + 1):
        if not (level := _nested(level)):
            return
    raise ArgumentsError(f"task {name!r}: links and groups are nested over {MAX_NESTING} deep", task=name)


def waits_for_members(fields: Mapping[str, Any]) -> bool:
    """Whether a group of what follows is waited for, which needs a store: a step comes after it, or it ends a branch of such a group."""
    level: list[tuple[Sequence[Mapping[str, Any]], bool]] = [(fields.get("next", ()), "join" in fields), *_linked(fields)]
    while level:
        steps, joined = level.pop()
        for at, step in enumerate(steps):
            if "members" in step and (joined or at < len(steps) - 1):
                return True
            level.extend(_linked(step))
            level.extend((branch, False) for branch in step.get("members", ()))
    return False


def _linked(fields: Mapping[str, Any]) -> list[tuple[Sequence[Mapping[str, Any]], bool]]:
    return [([link, *link.get("next", ())], False) for key in ("link", "link_error") for link in fields.get(key, ())]


def _branches(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, list) and bool(cast("object", each)) for each in cast("list[object]", value))


def _steps(value: object) -> bool:
    """What follows in a chain: each step has its id by then."""
    return _signatures(value) and bool(value) and all("id" in step for step in cast("list[dict[str, object]]", value))


def _joined(value: object) -> bool:
    join = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    index, of = join.get("index"), join.get("of")
    return _an_id(join.get("chord")) and type(index) is int and type(of) is int and 0 <= index < of <= MAX_MEMBERS


def _gathered(value: object) -> bool:
    return isinstance(value, dict) and _an_id(cast("dict[str, Any]", value).get("chord"))


def _lists(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, list) for each in cast("list[object]", value))


def _an_id(value: object) -> bool:
    return type(value) is str and value.isascii() and value.isprintable() and 0 < len(value) <= MAX_ID


_LINK: Final[Mapping[str, Callable[[object], bool]]] = {
    "task": _name,
    "queue": _name,
    "args": _array,
    "kwargs": _object,
    "immutable": _flag,
    "delay": _limit,
    "expires": _limit,
    "timeout": _limit,
    "group": _text,
    "tenant": _text,
    "headers": _object,
    "ignore_result": _flag,
    "link": _array,
    "link_error": _array,
    "id": _an_id,
    "each": _flag,
    "members": _branches,
    "next": _array,
}


_KNOWN: Final[Mapping[str, tuple[Callable[[object], bool], str]]] = {
    "kwargs": (_object, "an object"),
    "attempt": (_count, "a whole number"),
    "first": (_count, "a whole number"),
    "crashes": (_count, "a whole number"),
    "deferrals": (_count, "a whole number"),
    "sent": (_instant, "a Unix time in seconds"),
    "eta": (_instant, "a Unix time in seconds"),
    "expires": (_instant, "a Unix time in seconds"),
    "turn": (_instant, "a Unix time in seconds"),
    "unknown_since": (_instant, "a Unix time in seconds"),
    "timeout": (_limit, "seconds"),
    "root": (_text, "a string"),
    "parent": (_text, "a string"),
    "group": (_text, "a string"),
    "tenant": (_text, "a string"),
    "headers": (_object, "an object"),
    "link": (_signatures, "a list of signatures"),
    "link_error": (_signatures, "a list of signatures"),
    "next": (_steps, "a list of steps, each with an id"),
    "join": (_joined, f"an object with chord, index and of (at most {MAX_MEMBERS})"),
    "results": (_gathered, "an object with chord"),
    "flow": (_an_id, "a task id"),
    "each": (_flag, "true or false"),
    "ignore_result": (_flag, "true or false"),
    "sig": (_text, "a string"),
    "dead": (_object, "an object"),
}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_decoder: Final = JSONDecoder(parse_constant=_no_constant)
_scan: Final = cast("Callable[[str, int], tuple[object, int]]", _decoder.scan_once)  # type: ignore[attr-defined]


def parse(body: str) -> dict[str, Any]:
    """Read a body as a JSON object, whatever its version; raises DecodeError."""
    try:
        fields, end = _scan(body, 0)  # decode without its search for white space around the value
        if end == len(body):
            return cast("dict[str, Any]", fields) if type(fields) is dict else _not_an_object(fields)
    except (StopIteration, ValueError, RecursionError):
        pass  # decode decides, and says why
    try:
        fields = _decoder.decode(body)
    except (ValueError, RecursionError) as error:  # also integers over Python's limit of digits
        raise DecodeError(f"the body is not JSON: {type(error).__name__}") from None
    return cast("dict[str, Any]", fields) if isinstance(fields, dict) else _not_an_object(fields)


def _not_an_object(value: object) -> NoReturn:
    raise DecodeError(f"the body is JSON, but a {type(value).__name__} and not an object")


def is_bare(fields: Mapping[str, Any]) -> bool:
    """Whether a message has v, id, task, args and sent, and nothing else: what most have, so that most need no further look."""
    return len(fields) == 5 and "sent" in fields and "args" in fields


def decode(fields: dict[str, Any]) -> Message:
    """Check a parsed body against version 1; raises DecodeError that names the field, never its value."""
    version, id, task = fields.get("v"), fields.get("id"), fields.get("task")
    if version != VERSION or type(version) is not int:
        if isinstance(version, int) and version > VERSION:
            raise DecodeError(f"the message has protocol version {version}, and this cloudq reads up to {VERSION}", newer=True)
        raise DecodeError('the body is no cloudq message: it has no "v" of 1')
    if type(id) is not str or not id.isascii() or not id.isprintable() or not 0 < len(id) <= MAX_ID:
        raise DecodeError(f'"id" must be 1 to {MAX_ID} printable ASCII characters')
    if type(task) is not str or not task:
        raise DecodeError('"task" must be a task\'s name')
    if not isinstance(fields.get("args", ()), (list, tuple)):
        raise DecodeError('"args" must be a list')
    if not is_bare(fields):
        if "enc" in fields:
            raise DecodeError("it is encrypted, and this process has no keys: set CLOUDQ_ENCRYPTION_KEYS")
        for key in fields.keys() & _KNOWN.keys():
            check, wanted = _KNOWN[key]
            if not check(fields[key]):
                raise DecodeError(f'"{key}" must be {wanted}')
        fields.pop("sig", None)  # nobody here can check it, and a retry is another text
        if fields.get("each") and not _lists(fields.get("args", [])):
            raise DecodeError('"args" must be a list of lists where "each" is true')
        if fields.get("first", 0) > fields.get("attempt", 0):
            raise DecodeError('"first" must not be above "attempt"')
    elif not _instant(fields["sent"]):
        raise DecodeError('"sent" must be a Unix time in seconds')
    return Message(fields)


def dead_letter(body: str, fields: dict[str, Any] | None, dead: dict[str, Any]) -> str:
    """The body for the dead-letter queue: the message with a ``dead`` field, or a wrapper of the raw bytes where that cannot be."""
    if fields is not None and (fields.keys() & {"task", "tick", "claim_check"} or "dead" not in fields):
        try:
            return dumps({**fields, "dead": dead})
        except ValueError:
            pass  # what JSON can be read but not written: 1e999, nesting at Python's limit
    return dumps({"v": VERSION, "dead": {**dead, "raw": _wrapped(body)}})


def _wrapped(body: str) -> str:
    """The body in base64; of a wrapper that was redriven and failed again, what it holds."""
    try:
        fields = parse(body)
    except DecodeError:
        fields = {}
    if unwrap(fields) is not None:
        return cast("str", fields["dead"]["raw"])
    return base64.b64encode(body.encode("utf-8", "surrogateescape" if not _lone_high(body) else "surrogatepass")).decode("ascii")


def unwrap(fields: dict[str, Any]) -> str | None:
    """The raw body inside a dead letter that wraps one, else ``None``."""
    dead = fields.get("dead")
    raw = cast("dict[str, Any]", dead).get("raw") if isinstance(dead, dict) and "task" not in fields else None
    if not isinstance(raw, str):
        return None
    try:
        return base64.b64decode(raw, validate=True).decode("utf-8", "surrogateescape")
    except ValueError:
        return None


def _lone_high(text: str) -> bool:
    """Whether surrogates other than those of surrogateescape (U+DC80 to U+DCFF) are in the text."""
    return any("\ud800" <= character <= "\udfff" and not "\udc80" <= character <= "\udcff" for character in text)
