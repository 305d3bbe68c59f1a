"""The function's package: a zip of the project's source and of what it needs, for Lambda's platform, with the same bytes each time."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

from cloudq.deploy.plan import Plan
from cloudq.deploy.requirements import Requirements, normal, read
from cloudq.deploy.settings import Settings
from cloudq.deploy.writing import RECORD
from cloudq.errors import CloudQError, ConfigError

PLACE: Final = Path("build") / "function.zip"
"""In the folder of the files, which name it as the functions' code."""

MB: Final = 1024 * 1024
"""What AWS means by it where it refuses a package."""
UNZIPPED: Final = 250 * MB
"""Bytes of a function's code, its layers included (AWS, "Lambda quotas")."""
ZIPPED: Final = 50 * MB
"""Bytes of a zip that comes with the request itself, as from Terraform, and not by way of S3 (AWS, "Lambda quotas")."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package as it was made; sizes in bytes."""

    path: Path
    files: int
    zipped: int
    unzipped: int

    def document(self) -> dict[str, str | int]:
        """For JSON."""
        return {"path": str(self.path), "files": self.files, "zipped": self.zipped, "unzipped": self.unzipped}

    def __str__(self) -> str:
        return f"{self.path}: {self.zipped / MB:.1f} MB, {self.unzipped / MB:.1f} MB unzipped, {self.files} files"


def is_needed(plan: Plan) -> bool:
    """Whether the plan has functions that run from a package."""
    return plan.target.startswith("aws") and bool(plan.functions)


def refuse(plan: Plan) -> None:
    """Raise ConfigError where the plan has no use for a package."""
    if not plan.target.startswith("aws"):
        raise ConfigError(f"{plan.target} runs tasks from a container image, so there is no package to make: leave out --package")
    if not plan.functions:
        raise ConfigError("the plan has no functions, so there is no package to make: leave out --package")


def package(plan: Plan, settings: Settings, project: Path, folder: Path) -> Package:
    """Make the package for the plan's functions, of the project in the folder ``project``; it goes to ``PLACE`` in ``folder``.

    It runs uv, else pip, which find indexes and caches as they do for this user. Raises ConfigError where the plan needs no package, where
    something has no wheel for the platform, where the app is not in the package, or it is over a limit; CloudQError where the installer
    fails otherwise.
    """
    refuse(plan)
    tool, module = installer(), (plan.reference or "").partition(":")[0]
    with TemporaryDirectory(prefix="cloudq-package-") as name:
        work = Path(name)
        lock = _exported(tool, project, work) if (project / "uv.lock").is_file() else None
        needed = read(project, lambda path: build(tool, path, work / "wheels"), lock)
        install(tool, needed, work / "installed", python=settings.python, architecture=settings.architecture, cwd=project)
        root = root_of(module, project)
        found = {**installed(work / "installed", needed), **source(project, root, module, settings.package.include, leave=folder)}
        files = {name: path for name, path in sorted(found.items()) if not _matches(name, settings.package.exclude)}
        if f"{module.replace('.', '/')}.py" not in files and f"{module.replace('.', '/')}/__init__.py" not in files:
            raise ConfigError(
                f"the package would not hold the app's module {module}: name its files by include under [tool.cloudq.package]"
            )
        if sum(path.stat().st_size for path in files.values()) > UNZIPPED:
            raise ConfigError(f"the package is over Lambda's {UNZIPPED // MB} MB unzipped: {_largest(files)}; {_REMEDY}")
        return write(files, folder / PLACE, most=ZIPPED if plan.target == "aws-terraform" else None)


_REMEDY: Final = 'leave files out by exclude under [tool.cloudq.package], or run queues in containers: runs_on = "container"'


def _largest(files: Mapping[str, Path]) -> str:
    sizes = Counter[str]()
    for name, path in files.items():
        sizes[name.partition("/")[0]] += path.stat().st_size
    return ", ".join(f"{name} has {size / MB:.0f} MB" for name, size in sizes.most_common(3))


# ---------------------------------------------------------------------- what is installed


@dataclass(frozen=True, slots=True)
class Installer:
    """What installs: uv or pip, and how it is called."""

    name: Literal["uv", "pip"]
    command: tuple[str, ...]


def installer() -> Installer:
    """uv where it is there, which also judges markers for the target; else pip, which judges them for this machine."""
    own = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))  # an environment that is not active
    if (found := shutil.which("uv", path=own)) is not None:
        return Installer("uv", (found,))
    if find_spec("pip") is not None:
        return Installer("pip", (sys.executable, "-m", "pip"))
    raise ConfigError("a package needs uv or pip, and neither is here: pip install uv")


def build(tool: Installer, path: Path, wheels: Path) -> Path:
    """The wheel of a folder or source archive, made below ``wheels``."""
    out = wheels / str(len(list(wheels.iterdir())) if wheels.exists() else 0)
    options = ("build", "--wheel", "--out-dir") if tool.name == "uv" else ("wheel", "--no-deps", "--wheel-dir")
    done = _run((*tool.command, *options, str(out), str(path)), path.parent)
    made = list(out.glob("*.whl"))
    if done.returncode or not made:
        raise CloudQError(f"{path} cannot be made a wheel: {tool.name} says: {done.stderr.strip()}")
    return made[0]


def _exported(tool: Installer, project: Path, work: Path) -> Path:
    """What ``uv.lock`` says, as a file of requirements."""
    if tool.name != "uv":
        raise ConfigError(f"{project / 'uv.lock'} says which versions, and only uv reads it: pip install uv")
    path = work / "lock.txt"
    options = ("export", "--frozen", "--no-dev", "--no-emit-project", "--quiet", "--output-file", str(path))
    done = _run((*tool.command, *options), project)
    if done.returncode:
        raise ConfigError(f"{project / 'uv.lock'} cannot be read: uv says: {done.stderr.strip()}")
    return path


def platforms(tool: Installer, python: str, architecture: str) -> list[str]:
    """Options that name the wheels that run on Lambda: Python 3.11 is on Amazon Linux 2 with glibc 2.26, later ones are on Amazon Linux
    2023 with 2.34 (AWS, "Lambda runtimes"). uv knows no 2.26, and takes what runs on 2.17 there.
    """
    machine = {"arm64": "aarch64"}.get(architecture, architecture)
    if tool.name == "uv":
        return ["--python-platform", f"{machine}-manylinux_2_{17 if python == '3.11' else 34}"]
    newest = 26 if python == "3.11" else 34
    tags = [*(f"manylinux_2_{minor}_{machine}" for minor in range(newest, 16, -1)), f"manylinux2014_{machine}"]
    return [option for tag in tags for option in ("--platform", tag)]


def install(tool: Installer, needed: Requirements, target: Path, *, python: str, architecture: str, cwd: Path) -> None:
    """Install into the folder ``target``, from wheels only: what was compiled here would run here, and not there."""
    target.mkdir(parents=True)
    files: list[str] = []
    for option, lines in (("-r", needed.asked), ("-c", needed.versions)):
        if lines:
            path = target.with_name(f"requirements{option}.txt")
            path.write_text("".join(f"{each}\n" for each in lines), "utf-8")
            files += [option, str(path)]
    call = ["pip", "install", "--python", sys.executable] if tool.name == "uv" else ["install", "--implementation", "cp", "--no-compile"]
    options = [*platforms(tool, python, architecture), "--python-version", python, "--only-binary", ":all:", "--target", str(target)]
    done = _run((*tool.command, *call, "--quiet", *options, *files), cwd)
    if done.returncode == 0:
        return
    said = done.stderr.strip()
    if _NO_WHEEL.search(said):
        raise ConfigError(
            f"not all that is needed has wheels for Python {python} on Linux {architecture}, and a function takes nothing else: choose "
            f'versions that have, or another python or architecture, or run queues in containers: runs_on = "container"; '
            f"{tool.name} says: {said}"
        )
    raise CloudQError(f"what is needed cannot be installed: {tool.name} says: {said}")


_NO_WHEEL: Final = re.compile(
    r"no usable wheels|no wheels with a matching|[Bb]uilding (from source|source distributions) is disabled|No matching distribution found"
    r"|not a supported wheel on this platform|incompatible with the current platform"
)


def _run(command: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL)


_SDK: Final = frozenset({"boto3", "botocore", "s3transfer"})
"""What is on Lambda already; only a requirement that pins one of them puts it into the package."""
_BESIDE: Final = frozenset({"jmespath", "urllib3", "python-dateutil", "six"})
"""What is there for the SDK; whatever else needs them gets them in the package."""


def installed(target: Path, needed: Requirements) -> dict[str, Path]:
    """The files of what was installed that go along, by their names in the zip."""
    there = {normal(each.metadata["Name"]): each for each in distributions(path=[str(target)])}
    left = {str(file) for name in _left_out(there, needed.named) for file in there[name].files or ()}
    files = {path.relative_to(target).as_posix(): path for path in _walk(target, _NEVER)}
    return {name: path for name, path in files.items() if name not in left and not _of_the_installer(name)}


def _left_out(there: Mapping[str, Distribution], asked: Mapping[str, bool]) -> frozenset[str]:
    """Of the SDK and what is beside it, all that nothing in the package needs at a version of its own."""
    kept = {each for each in there if each not in _SDK | _BESIDE} | {each for each, pinned in asked.items() if pinned or each in _BESIDE}
    ready = [each for each in kept if each in there]
    while ready:
        name = ready.pop()
        needs = {normal(found[0]) for each in there[name].requires or () if (found := re.match(r"[\w.-]+", each))} & there.keys()
        if name not in _SDK | {"aiobotocore"}:  # whose botocore must be of just the version that they ask for
            needs -= _SDK
        ready += needs - kept
        kept |= needs
    return (_SDK | _BESIDE) & there.keys() - kept


def _of_the_installer(name: str) -> bool:
    """Scripts that begin with this machine's Python, and an installer's notes, which hold its paths."""
    folder, _, last = name.rpartition("/")
    notes = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json")
    return name.startswith((".", "bin/")) or (folder.endswith(".dist-info") and last in notes)


# ---------------------------------------------------------------------- the project's own


def root_of(module: str, project: Path) -> Path:
    """The folder that the app is imported from, if it is the project's; else its ``src``, else the project's folder."""
    spec = None
    with suppress(ModuleNotFoundError, ValueError):  # of a reference that was set by hand, or is empty
        spec = find_spec(module)
    if spec is not None and spec.origin is not None:
        file = Path(spec.origin).resolve()
        root = file.parents[module.count(".") + (file.stem == "__init__")]
        if root.is_relative_to(project.resolve()) and "site-packages" not in root.parts:
            return root
    return project / "src" if (project / "src").is_dir() else project


_NEVER: Final = frozenset({"__pycache__", "*.pyc", "*.pyi", "tests"})
_NOT_OURS: Final = frozenset({".*", "*.egg-info", "node_modules"})
_NOT_CODE: Final = frozenset({"test", "tests", "docs", "examples", "benchmarks", "build", "dist"})
"""Folders beside the code, unless the app is in one."""
_NOT_MODULES: Final = frozenset({"conftest.py", "setup.py", "noxfile.py", "test_*.py"})


def source(project: Path, root: Path, module: str, include: Iterable[str], *, leave: Path) -> dict[str, Path]:
    """The project's modules and packages in ``root``, these with their data, and what ``include`` names; by their names in the zip.

    Folders without Python stay, as do tests, environments, ``leave`` and whatever else ``cloudq deploy`` has written.
    """
    root, project = root.resolve(), project.resolve()
    own = module.partition(".")[0]
    files: dict[str, Path] = {}
    for entry in root.iterdir():
        if entry.is_file():
            if entry.suffix == ".py" and not _matches(entry.name, _NOT_MODULES | _NOT_OURS):
                files[entry.name] = entry
        elif entry.name == own or not _matches(entry.name, _NOT_CODE | _NOT_OURS):
            found = list(_walk(entry, _NEVER | _NOT_OURS, leave.resolve()))
            if any(path.suffix in (".py", ".so") for path in found):
                files |= {path.relative_to(root).as_posix(): path for path in found}
    for pattern in include:
        inside = pattern.strip(".") != "" and not Path(pattern).is_absolute() and ".." not in Path(pattern).parts
        matched = list(project.glob(pattern)) if inside else []
        if not matched:
            raise ConfigError(f"include under [tool.cloudq.package] names {pattern!r}, and there is nothing in {project}")
        for path in matched:
            for each in _walk(path, _NEVER) if path.is_dir() else [path]:
                files[each.relative_to(root if each.is_relative_to(root) else project).as_posix()] = each
    return files


def _walk(folder: Path, but: Iterable[str], leave: Path | None = None) -> Iterator[Path]:
    """The files below a folder, without those that ``but`` names, environments, ``leave`` and what cloudq has written."""
    for name, folders, files in os.walk(folder):
        here = Path(name)
        if here == leave or (here / RECORD).exists() or (here / "pyvenv.cfg").exists():
            folders.clear()
            continue
        folders[:] = [each for each in folders if not _matches(each, but)]
        yield from (here / each for each in files if not _matches(each, but))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern names a file or one of its folders."""
    parts = name.split("/")
    places = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatchcase(place, pattern.rstrip("/")) for pattern in patterns for place in places)


# ---------------------------------------------------------------------- the zip


def write(files: Mapping[str, Path], path: Path, *, most: int | None = None) -> Package:
    """A zip of ``files`` at ``path``: names in order, one time for all, and modes that say no more than whether a file is executable.

    Raises ConfigError, and leaves what is there, where it cannot be written or has over ``most`` bytes.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / ".gitignore").write_text("*\n")
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, file in sorted(files.items()):
                entry = zipfile.ZipInfo(name)  # whose time is 1980, the first that a zip can say
                entry.create_system, entry.compress_type = 3, zipfile.ZIP_DEFLATED
                entry.external_attr = (stat.S_IFREG | (0o755 if file.stat().st_mode & 0o111 else 0o644)) << 16
                archive.writestr(entry, file.read_bytes(), compresslevel=9)
        if most is not None and beside.stat().st_size > most:
            raise ConfigError(f"the package is over the {most // MB} MB that Lambda takes from Terraform; {_REMEDY}, or deploy by aws-sam")
        beside.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            beside.unlink()
    sizes = [file.stat().st_size for file in files.values()]
    return Package(path, files=len(sizes), zipped=path.stat().st_size, unzipped=sum(sizes))
