"""Writes what was rendered, and never over what a person has edited: what would change first, as values, and then each file of it."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, cast

from cloudq.errors import ConfigError

RECORD: Final = Path(".cloudq") / "written.json"
"""In the folder: what was written last, by which an edit is told from an older rendering."""


class Step(StrEnum):
    """What is to be done about one file."""

    CREATE = "create"
    UPDATE = "update"
    KEEP = "keep"
    DELETE = "delete"
    """It was written, and is not any more."""
    YOURS = "yours"
    """Somebody has changed or deleted it, and what cloudq would write has not changed since: it stays so."""
    EDITED = "edited"
    """It would change, and somebody has changed it since it was written, too, or it was never written by cloudq."""


@dataclass(frozen=True, slots=True)
class Change:
    """One file, as it is to be and as it is."""

    name: str
    step: Step
    wanted: str | None
    there: str | None

    @property
    def diff(self) -> str:
        """What would change, as a unified diff; empty where nothing would."""
        before, after = ((text or "").splitlines(keepends=True) for text in (self.there, self.wanted))
        return "".join(difflib.unified_diff(before, after, f"{self.name} (there)", f"{self.name} (new)"))


@dataclass(slots=True)
class Record:
    """What a folder's ``RECORD`` holds."""

    of: str | None = None
    """What the files are for."""
    files: dict[str, str] = field(default_factory=dict[str, str])
    """The SHA-256 of each as it was written."""
    made: tuple[str, ...] = ()
    """Names of what the files make, and what must not go in silence (``leaving``)."""


def changes(files: Mapping[str, str], folder: Path, *, of: str | None = None) -> list[Change]:
    """What brings ``folder`` to ``files``, by name. Raises ConfigError where it cannot be read, or holds what is not ``of`` the same.

    ``of``: what the files are for. Another stage's in their place would have Terraform replace what is there.
    """
    record = recorded(folder)
    if of is not None and record.of not in (None, of):
        raise ConfigError(f"{folder} holds the files of {record.of}; give {of} its own by --out, or write over them with --force")
    known = record.files
    emptied = not any((folder / name).exists() for name in known)  # to have all of them written anew
    found: list[Change] = []
    for name in sorted({*files, *known}):
        path, wanted = folder / name, files.get(name)
        if wanted is None and not path.resolve().is_relative_to(folder.resolve()):
            continue  # a record that somebody has changed
        try:
            there = path.read_bytes().decode("utf-8", "replace") if path.exists() else None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        if there == wanted:
            step = Step.KEEP
        elif there is None and (name not in known or emptied):
            step = Step.CREATE
        elif wanted is not None and known.get(name) == _digest(wanted):
            step = Step.YOURS
        elif there is None or known.get(name) != _digest(there):
            step = Step.EDITED
        else:
            step = Step.DELETE if wanted is None else Step.UPDATE
        found.append(Change(name, step, wanted, there))
    return found


def write(
    found: Iterable[Change],
    folder: Path,
    *,
    force: bool = False,
    keep: bool = False,
    of: str | None = None,
    made: tuple[str, ...] = (),
) -> None:
    """Write what is created and updated, delete what is not written any more, and with ``force`` do so over edits. Raises ConfigError.

    ``keep``: what was edited stays, and is the user's alone from now on, until what cloudq would write changes again.
    """
    record = recorded(folder)
    known = record.files
    try:
        for change in found:
            if change.step in (Step.EDITED, Step.YOURS) and not force:
                if not keep:
                    continue
            elif change.wanted is None:
                (folder / change.name).unlink(missing_ok=True)
            elif change.step is not Step.KEEP:
                _put(folder / change.name, change.wanted)
            if change.wanted is None:
                known.pop(change.name, None)
            else:
                known[change.name] = _digest(change.wanted)
        new = Record(record.of if of is None else of, known, made)
        _put(folder / RECORD, json.dumps(asdict(new), indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}") from error


def _put(path: Path, text: str) -> None:
    """The whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_bytes(text.encode())
    beside.replace(path)


def recorded(folder: Path) -> Record:
    """What was written last; nothing where there is no record yet, or a spoilt one: then everything that differs counts as edited."""
    try:
        found: Any = json.loads((folder / RECORD).read_text("utf-8"))
        files = cast("dict[str, Any]", found["files"])
        made = cast("list[Any]", found.get("made", []))
        return Record(found.get("of"), {str(name): str(digest) for name, digest in files.items()}, tuple(map(str, made)))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return Record()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
