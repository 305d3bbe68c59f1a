"""An index of a folder, as background tasks. Nothing here knows on which broker it runs, or in which process."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudq import CloudQ, Retry, Task

app = CloudQ("index")  # CLOUDQ_BROKER and CLOUDQ_STORE say where it runs

WORD = re.compile(r"\b[^\W\d_]{4,}\b")
LARGEST_TEXT = 512 * 1024
"""Bytes; of a larger file no words are counted."""


@dataclass(frozen=True)
class Entry:
    """What the index knows of one file."""

    path: Path
    bytes: int
    sha256: str
    lines: int = 0
    """0 for what is no text."""
    words: Counter[str] = field(default_factory=Counter[str])
    picture: tuple[int, int] | None = None
    """Width and height in pixels, of a PNG, GIF or JPEG."""


@app.task(retry=Retry(max_retries=4, delay="200ms", on=(OSError,), never=(FileNotFoundError,)), timeout="30s")
def index(path: Path) -> Entry:
    """Read one file. A disk or a network share that fails is tried again; a file that is gone stays gone."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if b"\0" in data[:8192] or len(data) > LARGEST_TEXT:
        return Entry(path, len(data), digest, picture=_picture(data))
    text = data.decode(errors="replace")
    return Entry(path, len(data), digest, lines=text.count("\n"), words=Counter(WORD.findall(text.lower())))


@app.task(bind=True)
def find_duplicates(self: Task[..., Any], paths: Sequence[Path]) -> list[list[Path]]:
    """Compare all files in one long task, which says how far it is."""
    same: dict[str, list[Path]] = defaultdict(list)
    for done, path in enumerate(paths, start=1):
        same[hashlib.sha256(path.read_bytes()).hexdigest()].append(path)
        self.update_state("COMPARING", {"done": done, "of": len(paths)})
    return [group for group in same.values() if len(group) > 1]


@app.task(bind=True, retry=Retry(max_retries=5, delay="300ms", on=(ConnectionError,)))
async def publish(self: Task[..., Any], words: Mapping[str, int]) -> str:
    """Hand the most frequent words to a search server; a pretended one, that is busy at the first two attempts."""
    if self.request.retries < 2:
        raise ConnectionError("the search server is busy")
    return f"{len(words)} words published"


@app.task
def is_unchanged(path: Path, sha256: str) -> bool:
    """Look at a file again, some time after it was indexed."""
    return hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _picture(data: bytes) -> tuple[int, int] | None:
    """Width and height, from the first bytes of the file."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    at = 2
    while data.startswith(b"\xff\xd8") and at + 9 <= len(data) and data[at] == 0xFF:  # the segments of a JPEG
        if 0xC0 <= data[at + 1] <= 0xCF and data[at + 1] not in (0xC4, 0xC8, 0xCC):  # the one that holds its frame
            return int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None
