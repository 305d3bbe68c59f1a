"""The distribution works however it is installed: from its wheel, from its source distribution, or editable."""

from __future__ import annotations

import json
import tarfile
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tests.packaging.installs import CORE_DEPENDENCIES, PACKAGES, ROOT, Environment, build_wheel, install

WAYS = ["wheel", "sdist", "editable"]


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    direct, through_sdist = tmp_path_factory.mktemp("direct"), tmp_path_factory.mktemp("through-sdist")
    return {"wheel": build_wheel(direct), "sdist": build_wheel(through_sdist, from_sdist=True)}


@pytest.fixture(scope="session", params=WAYS)
def installed(request: pytest.FixtureRequest, wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    way: str = request.param
    what = ("--editable", str(ROOT)) if way == "editable" else (str(wheels[way]),)
    return install(tmp_path_factory.mktemp(f"installed-{way}"), *what)


def test_the_wheel_is_the_same_whether_built_directly_or_from_the_sdist(wheels: dict[str, Path]) -> None:
    contents: list[dict[str, int]] = []
    for wheel in wheels.values():
        with zipfile.ZipFile(wheel) as archive:
            contents.append({entry.filename: entry.CRC for entry in archive.infolist()})
    assert contents[0] == contents[1]


def test_the_wheel_holds_every_file_of_the_four_packages_and_nothing_else(wheels: dict[str, Path]) -> None:
    expected = {
        f"{name}/{file.relative_to(folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    with zipfile.ZipFile(wheels["wheel"]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected


def test_the_sdist_holds_what_a_packager_needs_and_no_tests(wheels: dict[str, Path]) -> None:
    (sdist,) = wheels["sdist"].parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames()}
    assert tops >= {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "src", "adapters", "templates"}
    assert not tops & {"tests", "benchmarks", "examples", "requirements"}


def test_all_four_packages_import_and_carry_their_type_marker(installed: Environment) -> None:
    code = f"""
import importlib, importlib.resources
for name in {sorted(PACKAGES)}:
    importlib.import_module(name)
    assert importlib.resources.files(name).joinpath("py.typed").is_file(), name
"""
    installed.python(code)


def test_templates_are_found_as_package_data(installed: Environment) -> None:
    code = """
import importlib.resources, json
def walk(folder, path=""):
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from walk(entry, f"{path}{entry.name}/")
        else:
            yield path + entry.name
print(json.dumps([p for p in walk(importlib.resources.files("cloudq_templates")) if "__pycache__" not in p]))
"""
    folder = PACKAGES["cloudq_templates"]
    expected = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert set(json.loads(installed.python(code))) == expected


def test_every_adapter_entry_point_loads_as_an_adapter(installed: Environment) -> None:
    code = """
import json
from importlib.metadata import entry_points
from cloudq.adapters import GROUP, find
found = entry_points(group=GROUP)
for entry in found:
    find(entry.name)
print(json.dumps([[entry.name, entry.value, entry.group] for entry in found]))
"""
    entries = {EntryPoint(*entry).name for entry in json.loads(installed.python(code))}
    assert entries >= {"memory", "sqlite", "sqs"}


def test_the_command_tells_its_version(installed: Environment) -> None:
    version = installed.python("from importlib.metadata import version; print(version('cloudq-tasks'))").strip()
    assert version in installed.run("cloudq", "--version")


def test_a_type_checker_sees_the_installed_types(installed: Environment) -> None:
    (installed.cwd / "typed.py").write_text("from cloudq.durations import seconds\n\nwrong: str = seconds('3s')\n")
    mypy = ["-m", "mypy", "--strict", "--no-error-summary", "typed.py"]
    with pytest.raises(AssertionError, match=r'expression has type "float", variable has type "str"'):
        installed.run("python", *mypy)


def test_with_pydantic_alone_every_core_module_imports(wheels: dict[str, Path], tmp_path: Path) -> None:
    bare = install(tmp_path, str(wheels["wheel"]), only=CORE_DEPENDENCIES)
    code = """
import importlib, pkgutil, cloudq
for module in pkgutil.walk_packages(cloudq.__path__, "cloudq."):
    if not module.name.startswith(("cloudq.cli", "cloudq.testing")):
        importlib.import_module(module.name)
"""
    bare.python(code)
