"""What a function's package needs, by uv.lock, requirements.txt or pyproject.toml; what lies on this machine becomes a wheel."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final, TypeAlias, cast
from urllib.parse import unquote, urlsplit

from cloudq.errors import ConfigError

OWN: Final = "cloudq-tasks"

Build: TypeAlias = Callable[[Path], Path]
"""Makes the wheel of a folder or a source archive, and answers with its path."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """What an installer is to be told."""

    asked: tuple[str, ...]
    """Requirements and options, as a requirements file has them; paths are absolute, and each is that of a wheel."""
    versions: tuple[str, ...]
    """Versions of what comes only because something else needs it: constraints."""

    @property
    def named(self) -> dict[str, bool]:
        """Whether each project that is asked for by its name is pinned: by ``==``, or by its place."""
        found = [match for each in self.asked if (match := _NAMED.match(each))]
        return {normal(each["name"]): each["rest"].startswith("@") or "==" in each["rest"].partition(";")[0] for each in found}


def read(project: Path, build: Build, lock: Path | None = None) -> Requirements:
    """Those of the project in a folder, ``cloudq-tasks`` among them, without the extras that no function uses.

    They are those of ``lock``, which is what uv exports of ``uv.lock``, else of ``requirements.txt``, else of ``pyproject.toml``: the first
    two pin what the last leaves open. Lines that came ``via`` other projects only, as uv and pip-tools note there, pin versions and ask for
    nothing. Raises ConfigError where they cannot be read.
    """
    found = _Reader(project, build)
    path = lock or project / "requirements.txt"
    if path.is_file():
        found.file(path, project)
    else:
        found.dependencies()
    if not any(map(_is_own, found.asked)):
        found.line(OWN, project)
    return Requirements(tuple(found.asked), tuple(found.versions))


def normal(name: str) -> str:
    """A project's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


_NAMED: Final = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)\s*(?P<extras>\[[^\]]*\])?\s*(?P<rest>(?![\w/:+]).*)$", re.DOTALL)
_LOCAL: Final = re.compile(
    r"(?:[\w.-]+\s*(?P<extras>\[[^\]]*\])?\s*@\s*)?(?P<path>(?:file:)?[^\s;\[]+)(?P<more>\[[^\]]*\])?\s*(?P<marker>;.*)?", re.DOTALL
)
_EDITABLE: Final = re.compile(r"(?:-e|--editable)[\s=]+")
_OPTION: Final = re.compile(r"(?P<option>-r|--requirement|-c|--constraint|-f|--find-links)[\s=]+(?P<value>\S+)")


@dataclass(slots=True)
class _Reader:
    project: Path
    build: Build
    asked: list[str] = field(default_factory=list[str])
    versions: list[str] = field(default_factory=list[str])

    def file(self, path: Path, base: Path) -> None:
        own = normal(str(self._pyproject().get("project", {}).get("name", "")))
        for line, via in _entries(path):
            others = bool(via) and all(_NAME.fullmatch(each) and normal(each) != own for each in via)
            if others and _NAMED.match(line) and not _is_own(line):
                self.versions.append(line)
            else:
                self.line(line, base)

    def dependencies(self) -> None:
        """Those of ``[project]``, from where uv takes them if that is a folder or a file."""
        document = self._pyproject()
        project: dict[str, Any] = document.get("project", {})
        if "dependencies" in project.get("dynamic", []) or "dependencies" in document.get("tool", {}).get("poetry", {}):
            raise ConfigError(
                f"{self.project / 'pyproject.toml'} does not list its dependencies under [project]: put a requirements.txt beside it"
            )
        sources: dict[str, Any] = document.get("tool", {}).get("uv", {}).get("sources", {})
        paths = {normal(name): str(each["path"]) for name, each in sources.items() if "path" in each}
        for line in cast("list[str]", project.get("dependencies", [])):
            found = _NAMED.match(line)
            if found is None or normal(found["name"]) not in paths:
                self.line(line, self.project)
            else:
                _, sign, marker = found["rest"].partition(";")
                self.asked.append(self._wheel(self.project / paths[normal(found["name"])], found["extras"] or "", sign + marker))

    def line(self, line: str, base: Path) -> None:
        """One requirement or option; paths are relative to ``base``."""
        if (option := _OPTION.fullmatch(line)) is not None:
            path = base / option["value"]
            if option["option"] in ("-r", "--requirement"):
                self.file(path, path.parent)
            else:
                self.asked.append(f"{option['option']} {path.resolve() if path.exists() else option['value']}")
            return
        text = _EDITABLE.sub("", line)
        local = _LOCAL.fullmatch(text.partition(" --")[0].strip())
        if local is not None and _is_path(local["path"]):
            path = base / unquote(urlsplit(local["path"]).path if local["path"].startswith("file:") else local["path"])
            if path.resolve() == self.project.resolve():
                self.dependencies()  # the project's own source goes along anyway
            else:
                self.asked.append(self._wheel(path, local["extras"] or local["more"] or "", local["marker"]))
            return
        self.asked.append(self._own(text) if _is_own(text) else text)

    def _wheel(self, path: Path, extras: str, marker: str | None) -> str:
        if not path.exists():
            raise ConfigError(f"a requirement lies in {path}, and nothing is there")
        wheel = path if path.suffix == ".whl" else self.build(path)
        name = wheel.name.partition("-")[0]
        kept = _extras(extras) if normal(name) == OWN else extras
        return f"{name}{kept} @ {wheel.resolve().as_uri()}" + (f" {marker}" if marker else "")

    def _own(self, text: str) -> str:
        """cloudq itself: the one that runs here, where that is a checkout or a file; else as it is asked for."""
        found = _NAMED.match(text)
        assert found is not None
        extras, rest = _extras(found["extras"] or ""), found["rest"]
        if rest.startswith("@"):
            return f"{OWN}{extras} {rest}"
        try:
            running = distribution(OWN)
        except PackageNotFoundError:
            return f"{OWN}{extras}{rest}"
        url = str(json.loads(running.read_text("direct_url.json") or "{}").get("url", ""))
        if url.startswith("file:"):
            return self._wheel(Path(unquote(urlsplit(url).path)), extras, None)
        return f"{OWN}{extras}{rest or f'=={running.version}'}"

    def _pyproject(self) -> dict[str, Any]:
        path = self.project / "pyproject.toml"
        try:
            return tomllib.loads(path.read_text("utf-8")) if path.is_file() else {}
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error


def _extras(given: str) -> str:
    """Of cloudq's extras those that a function on Lambda uses: it works with the boto3 that is there."""
    names = {each.strip() for each in given.strip("[]").split(",")}
    return "[crypto]" if names & {"crypto", "all"} else ""


def _is_own(line: str) -> bool:
    return (found := _NAMED.match(line)) is not None and normal(found["name"]) == OWN


def _is_path(text: str) -> bool:
    if "://" in text and not text.startswith("file:"):
        return False
    return text.startswith((".", "/", "file:")) or "/" in text or text.endswith(".whl")


_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*")


def _entries(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each line of a requirements file, continued lines joined, with the names that comments say it comes ``via``."""
    try:
        raw = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    line, via, told = "", list[str](), False
    for each in raw:
        text, _, comment = re.sub(r"(^|\s)#", r"\1\0", each, count=1).partition("\0")
        if text.strip() and not line.endswith("\\") and line:
            yield line, via
            line, via, told = "", [], False
        if text.strip():
            line = f"{line.removesuffix(chr(92)).rstrip()} {text.strip()}".strip()
        comment = comment.strip()
        told = told or bool(re.match(r"via\b", comment))
        if told:
            via += _names(comment)
    if line:
        yield line.removesuffix("\\").rstrip(), via


def _names(comment: str) -> Iterable[str]:
    return [each for part in comment.removeprefix("via").split(",") if (each := part.strip())]
