"""What is wrong with settings or a plan: each problem as a value, with its place and its fix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, TypeAlias

from cloudq.errors import ConfigError

Level: TypeAlias = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. Its texts may hold what users wrote, so whoever shows them escapes them."""

    where: str
    """What it is about: ``queue emails``, ``tool.cloudq.queues.emails.memory``."""
    what: str
    """What is wrong, and what follows from it."""
    fix: str
    """What to write or do."""
    level: Level = "error"

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.fix}"


class Refused(ConfigError):
    """Settings or a plan that cannot be deployed, with every problem at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


def nearest(name: str, known: Iterable[str]) -> str:
    """A fix for a name that is none of ``known``: the nearest of them, or all."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"there are {', '.join(names)}" if names else "there are none"
