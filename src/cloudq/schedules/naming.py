"""How a recurring schedule is named and noted at each provider: what drivers and ``cloudq deploy`` share. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final

# AWS EventBridge Scheduler, API reference, CreateSchedule: 1 to 64 characters.
_EVENTBRIDGE: Final = re.compile(r"[0-9A-Za-z_.-]{1,64}")

EVENTBRIDGE_PREFIX: Final = "every"
"""What the names of recurring schedules begin with."""


def eventbridge_name(kind: str, key: str) -> str:
    """``KIND-KEY``; a key that is too long or has other characters gives ``KIND.HASH``, which no plain key can be."""
    plain = f"{kind}-{key}"
    if _EVENTBRIDGE.fullmatch(plain):
        return plain
    return f"{kind}.{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}"


def eventbridge_schedule(name: str, part: int = 1) -> str:
    """The name in EventBridge Scheduler of the recurring schedule ``name``, or of a further part of it."""
    return eventbridge_name(EVENTBRIDGE_PREFIX if part == 1 else f"{EVENTBRIDGE_PREFIX}{part}", name)


def eventbridge_note(name: str, queue: str, trigger: str, *, part: int = 1, of: int = 1) -> str:
    """The description of a schedule in EventBridge Scheduler: what AWS does not keep elsewhere, and by which ours are known."""
    return json.dumps({"name": name, "queue": queue, "trigger": trigger, **_parts(part, of)}, ensure_ascii=False)


def cloud_scheduler_owner(app: str, queue: str) -> str:
    """Whose a job is: an app's, with the Cloud Tasks queue of its timer, which another stage of it in the same project does not share."""
    return f"{app}/{queue}"


def cloud_scheduler_job(owner: str, schedule: str, part: int = 1) -> str:
    """The id of a schedule's job: readable, of characters and a length that Google allows, and unlike that of any other."""
    further = f"\0{part}" if part > 1 else ""
    digest = hashlib.sha256(f"{owner}\0{schedule}{further}".encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return "-".join([*(re.sub("[^A-Za-z0-9_]+", "-", part)[:60] for part in (owner, schedule)), digest])


def cloud_scheduler_note(owner: str, name: str, queue: str, trigger: str, *, part: int = 1, of: int = 1) -> str:
    """The description of a schedule's job: what Google does not keep elsewhere, and by which an owner's jobs are known."""
    said = {"app": owner, "name": name, "queue": queue, "trigger": trigger, **_parts(part, of)}
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"))


def _parts(part: int, of: int) -> dict[str, Any]:
    return {"part": part, "of": of} if of > 1 else {}
