"""Writes what was rendered, and never over what a person has edited: what would change first, as values, and then each file of it."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, cast

from cloudq.errors import ConfigError

RECORD: Final = Path(".cloudq") / "written.json"
"""In the folder: the SHA-256 of each file as it was written, by which an edit is told from an older rendering."""
_OF: Final = ""
"""In the record, where the files' names are, what all of them are for."""


class Step(StrEnum):
    """What is to be done about one file."""

    CREATE = "create"
    UPDATE = "update"
    KEEP = "keep"
    DELETE = "delete"
    """It was written, and is not any more."""
    EDITED = "edited"
    """It would change, and somebody has changed it since it was written, or it was never written by cloudq."""


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


def changes(files: Mapping[str, str], folder: Path, *, of: str | None = None) -> list[Change]:
    """What brings ``folder`` to ``files``, by name. Raises ConfigError where it cannot be read, or holds what is not ``of`` the same.

    ``of``: what the files are for. Another stage's in their place would have Terraform replace what is there.
    """
    known = _record(folder)
    if of is not None and known.get(_OF, of) != of:
        raise ConfigError(f"{folder} holds the files of {known[_OF]}; give {of} its own by --out, or write over them with --force")
    found: list[Change] = []
    for name in sorted({*files, *(known.keys() - {_OF})}):
        path, wanted = folder / name, files.get(name)
        if wanted is None and not path.resolve().is_relative_to(folder.resolve()):
            continue  # a record that somebody has changed
        try:
            there = path.read_bytes().decode("utf-8", "replace") if path.exists() else None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        if there is None and wanted is None:
            continue
        if there is None:
            step = Step.CREATE
        elif there == wanted:
            step = Step.KEEP
        elif known.get(name) != _digest(there):
            step = Step.EDITED
        else:
            step = Step.DELETE if wanted is None else Step.UPDATE
        found.append(Change(name, step, wanted, there))
    return found


def write(found: Iterable[Change], folder: Path, *, force: bool = False, of: str | None = None) -> None:
    """Write what is created and updated, delete what is not written any more, and with ``force`` do so over edits. Raises ConfigError."""
    known = _record(folder)
    try:
        for change in found:
            if change.step is Step.EDITED and not force:
                continue
            if change.wanted is None:
                (folder / change.name).unlink(missing_ok=True)
                known.pop(change.name, None)
                continue
            if change.step is not Step.KEEP:
                _put(folder / change.name, change.wanted)
            known[change.name] = _digest(change.wanted)
        if of is not None:
            known[_OF] = of
        _put(folder / RECORD, json.dumps(known, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}") from error


def _put(path: Path, text: str) -> None:
    """The whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_bytes(text.encode())
    beside.replace(path)


def _record(folder: Path) -> dict[str, str]:
    try:
        known: Any = json.loads((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError):  # none yet, or spoilt: then everything that differs counts as edited
        return {}
    return {str(name): str(digest) for name, digest in cast("dict[str, Any]", known).items()} if isinstance(known, dict) else {}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
