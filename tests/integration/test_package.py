"""``cloudq deploy --package``: the zip, unpacked, runs the app under AWS's runtime client with the runtime's own boto3 and nothing else.

Nothing is downloaded: every wheel but cloudq's own is made of what is installed here.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.event_source import EventSource
from tests.packaging.installs import Environment, build_wheel, install
from tests.runtime_api import FunctionError, function
from tests.servers import REGION, SQSServer, unique

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
ARCHITECTURE = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
UV = Path(sys.executable).with_name("uv")

if sys.platform != "linux":
    pytest.skip("a function's wheels are those of Linux", allow_module_level=True)

APP = """
import os
from importlib import import_module
from pathlib import Path
from cloudq import CloudQ

app = CloudQ("shop", default_queue="emails")
GREETING = Path(__file__).with_name("greeting.txt").read_text()

@app.task(timeout=10)
def greet(name: str) -> None:
    noted.delay(GREETING + name)

@app.task(timeout=10)
def noted(text: str) -> None:
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(text + "\\n")

@app.task(timeout=10)
def where(names: list[str]) -> dict[str, str | None]:
    found = {}
    for name in names:
        try:
            found[name] = import_module(name).__file__
        except ImportError:
            found[name] = None
    return found

@app.task(timeout=10)
def add(one: int, other: int) -> int:
    return one + other
"""

SETTINGS = f"""
[tool.cloudq]
app = "shop.tasks:app"
target = "aws-terraform"
python = "{PYTHON}"
architecture = "{ARCHITECTURE}"
alarms_topic = "arn:aws:sns:eu-west-1:123456789012:alarms"
aws = {{ region = "eu-west-1" }}
"""


def as_wheels(folder: Path, *names: str) -> None:
    """What is installed here and all that it needs, as wheels again: the files that its record names, but for the installer's notes."""
    todo, seen = list(names), set[str]()
    while todo:
        found = distribution(todo.pop())
        name = re.sub(r"[-_.]+", "_", found.metadata["Name"]).lower()
        if name in seen:
            continue
        seen.add(name)
        needs = [Requirement(each) for each in found.requires or ()]
        todo += [each.name for each in needs if each.marker is None or each.marker.evaluate({"extra": ""})]
        tags = re.findall(r"^Tag: (.*)$", found.read_text("WHEEL") or "", re.MULTILINE)
        tag = "-".join(".".join(dict.fromkeys(parts)) for parts in zip(*(each.split("-") for each in tags), strict=True))
        notes = ("INSTALLER", "REQUESTED", "direct_url.json", ".pyc")
        files = [each for each in found.files or () if ".." not in each.parts and not str(each).endswith(notes)]
        with zipfile.ZipFile(folder / f"{name}-{found.version}-{tag}.whl", "w") as wheel:
            for each in files:
                if each.name == "RECORD":
                    wheel.writestr(str(each), "".join(f"{one},,\n" for one in files))
                else:
                    wheel.write(str(each.locate()), str(each))


@dataclass(frozen=True, slots=True)
class Home:
    """What all tests share: wheels, an environment in which cloudq was installed from its wheel, and one as Lambda has it."""

    wheels: Path
    cloudq: Environment
    runtime: Path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    wheels, built = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("built")
    as_wheels(wheels, "pydantic", "boto3", "awslambdaric", "aiobotocore", "aiohttp")
    wheel = build_wheel(built)
    shutil.copy(wheel, wheels)
    cloudq = install(tmp_path_factory.mktemp("cloudq"), str(wheel))
    runtime = tmp_path_factory.mktemp("runtime") / "venv"
    uv(["venv", "--offline", "--python", sys.executable, str(runtime)])
    python = str(runtime / "bin/python")
    uv(["pip", "install", "--offline", "--no-index", "--find-links", str(wheels), "--python", python, "boto3", "awslambdaric"])
    return Home(wheels, cloudq, runtime)


def uv(arguments: Iterable[str], cwd: Path | None = None) -> None:
    ran = subprocess.run([str(UV), "--quiet", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.fixture
def project(home: Home, tmp_path: Path) -> Path:
    """An app with a ``src`` layout, whose wheels come from a folder: for uv that is a setting, for pip a file of requirements says so."""
    made = tmp_path / "shop"
    (made / "src/shop/tests").mkdir(parents=True)
    for name, text in {"__init__.py": "", "tasks.py": APP, "greeting.txt": "hello ", "tests/test_tasks.py": ""}.items():
        (made / "src/shop" / name).write_text(text)
    depends = f"""
[project]
name = "shop"
version = "1"
requires-python = "=={PYTHON}.*"
dependencies = ["cloudq-tasks[aws]", "typing_extensions"]
[tool.uv]
no-index = true
find-links = ["{home.wheels}"]
environments = ["sys_platform == 'linux'"]
"""
    (made / "pyproject.toml").write_text(depends + SETTINGS)
    return made


def deploy(home: Home, project: Path, *arguments: str, tool: str = "uv", code: int = 0, step: str = "--package") -> tuple[str, str]:
    """Run ``cloudq deploy`` in the project; the tool that is not meant is not on the path. Returns what it wrote."""
    path = os.pathsep.join([str(UV.parent) if tool == "uv" else str(home.cloudq.bin), str(project.parent / "tools")])
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("CLOUDQ_", "AWS_", "PIP_", "UV_"))}
    environ |= {"PATH": path, "PYTHONPATH": str(project / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(home.cloudq.bin / "cloudq"), "deploy", "--out", "infrastructure", step, *arguments]
    ran = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout, ran.stderr


def test_the_package_runs_the_app_with_the_runtime_s_own_boto3_and_nothing_else(
    home: Home, project: Path, sqs_server: SQSServer, tmp_path: Path
) -> None:
    made = json.loads(deploy(home, project, "--json")[0])["package"]
    assert made["path"] == "infrastructure/build/function.zip"
    code = tmp_path / "code"
    with zipfile.ZipFile(project / made["path"]) as archive:
        archive.extractall(code)
        assert made["unzipped"] == sum(each.file_size for each in archive.infolist()) < 20_000_000
    prefix, notes = f"{unique('package')}-", tmp_path / "notes"
    sqs_server.make_queue(f"{prefix}emails", dead_letter=f"{prefix}emails-dlq", VisibilityTimeout="60")
    env = {
        **sqs_server.env, "CLOUDQ_APP": "shop.tasks:app", "CLOUDQ_BROKER": f"sqs://{REGION}/?prefix={prefix}",
        "NOTES": str(notes), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    python = str(home.runtime / "bin/python")
    with function("cloudq_aws.entry.handler", env=env, log=tmp_path / "log", python=python, code=code) as environment:
        assert environment.invoke({"task": "shop.tasks.add", "args": [2, 3]}) == 5
        with pytest.raises(FunctionError, match="ArgumentsError"):
            environment.invoke({"task": "shop.tasks.add", "args": ["two", 3]})
        names = ["cloudq", "pydantic_core", "typing_extensions", "boto3", "urllib3", "aiobotocore", "typer", "uv"]
        found = environment.invoke({"task": "shop.tasks.where", "args": [names]})
        places: dict[str, Any] = {name: None if file is None else Path(file).is_relative_to(code) for name, file in found.items()}
        assert places == {
            **dict.fromkeys(("cloudq", "pydantic_core", "typing_extensions"), True),
            **dict.fromkeys(("boto3", "urllib3"), False),
            **dict.fromkeys(("aiobotocore", "typer", "uv"), None),
        }
        assert all(Path(found[name]).is_relative_to(home.runtime) for name in ("boto3", "urllib3"))

        source = EventSource(sqs_server.boto3, f"{prefix}emails", environment)
        body = {"v": 1, "id": "1", "task": "shop.tasks.greet", "args": ["Ada"]}
        sqs_server.boto3.send_message(QueueUrl=source.url, MessageBody=json.dumps(body))
        source.run(lambda: sqs_server.depth(f"{prefix}emails") == 0 or source.invocations > 5)
        assert environment.starts == 1, (tmp_path / "log").read_text()
    assert notes.read_text() == "hello Ada\n"
    assert sqs_server.depth(f"{prefix}emails-dlq") == 0


def test_two_runs_give_the_same_bytes_and_so_does_pip(home: Home, project: Path) -> None:
    package = project / "infrastructure/build/function.zip"
    said, remark = deploy(home, project)
    one = package.read_bytes()
    package.unlink()
    for file in project.rglob("*.py"):
        os.utime(file, (1_000_000_000, 1_000_000_000))
    deploy(home, project)
    assert package.read_bytes() == one
    assert re.search(r"^infrastructure/build/function\.zip: \d\.\d MB, \d\.\d MB unzipped, \d+ files$", said, re.MULTILINE)
    assert f"Python {PYTHON} on {ARCHITECTURE}" in remark
    package.unlink()
    (project / "requirements.txt").write_text(f"--no-index\n--find-links {home.wheels}\ncloudq-tasks[aws]\ntyping_extensions\n")
    deploy(home, project, tool="pip")
    with zipfile.ZipFile(package) as archive:
        assert {"shop/tasks.py", "shop/greeting.txt", "pydantic/main.py", "cloudq_aws/entry.py"} <= set(archive.namelist())
    assert package.read_bytes() == one


def test_what_is_applied_is_the_code_of_now_unless_it_is_told_to_take_the_package_that_is_there(home: Home, project: Path) -> None:
    tool, greeting = project.parent / "tools/terraform", project / "src/shop/greeting.txt"
    package = project / "infrastructure/build/function.zip"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nexit 0\n")
    tool.chmod(0o755)

    def packed() -> str:
        with zipfile.ZipFile(package) as archive:
            return archive.read("shop/greeting.txt").decode()

    deploy(home, project, step="--apply")
    assert packed() == "hello "
    greeting.write_text("bye ")
    deploy(home, project, "--no-package", step="--apply")
    assert packed() == "hello "
    deploy(home, project, step="--apply")
    assert packed() == "bye "


def test_a_lock_says_which_versions_and_brings_nothing_that_only_the_sdk_needs(home: Home, project: Path) -> None:
    uv(["lock", "--offline"], project)
    assert "aiobotocore" in (project / "uv.lock").read_text()
    package = project / "infrastructure/build/function.zip"
    deploy(home, project)
    locked = package.read_bytes()
    (project / "uv.lock").write_text("no lock")
    assert "uv.lock cannot be read: uv says: " in deploy(home, project, code=2)[1]
    assert "only uv reads it: pip install uv" in deploy(home, project, tool="pip", code=2)[1]
    (project / "uv.lock").unlink()
    deploy(home, project)
    assert package.read_bytes() == locked


@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_what_has_no_wheel_for_the_platform_fails_with_the_way_out(tool: str, home: Home, project: Path) -> None:
    settings = (project / "pyproject.toml").read_text()
    other = "x86_64" if ARCHITECTURE == "arm64" else "arm64"
    (project / "pyproject.toml").write_text(settings.replace(f'architecture = "{ARCHITECTURE}"', f'architecture = "{other}"'))
    if tool == "pip":
        (project / "requirements.txt").write_text(f"--no-index\n--find-links {home.wheels}\ncloudq-tasks\n")
    said = " ".join(deploy(home, project, tool=tool, code=2)[1].split())
    assert f"wheels for Python {PYTHON} on Linux {other}" in said
    assert 'run queues in containers: runs_on = "container"' in said
    assert re.search(rf"{tool} says: .*pydantic.core", said)
    assert not (project / "infrastructure").exists()


def test_a_requirement_on_a_folder_is_built_and_goes_along(home: Home, project: Path) -> None:
    """Its build backend is its own, so that building needs nothing."""
    library = project.parent / "library"
    library.mkdir()
    (library / "pyproject.toml").write_text(
        '[project]\nname = "mail-lib"\nversion = "2"\n[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (library / "backend.py").write_text("""
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "mail_lib-2-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr("mail_lib.py", "")
        wheel.writestr("mail_lib-2.dist-info/METADATA", "Metadata-Version: 2.1\\nName: mail-lib\\nVersion: 2\\n")
        wheel.writestr("mail_lib-2.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("mail_lib-2.dist-info/RECORD", "mail_lib.py,,\\nmail_lib-2.dist-info/METADATA,,\\nmail_lib-2.dist-info/WHEEL,,\\n")
    return name
""")
    for tool, asked in (("uv", "-e ../library\n"), ("pip", "mail-lib @ file://{library}\n")):
        lines = f"--no-index\n--find-links {home.wheels}\n" + asked.format(library=library)
        (project / "requirements.txt").write_text(lines)
        deploy(home, project, tool=tool)
        with zipfile.ZipFile(project / "infrastructure/build/function.zip") as archive:
            held = {name for name in archive.namelist() if name.startswith("mail_lib")}
        assert held == {"mail_lib.py", "mail_lib-2.dist-info/METADATA", "mail_lib-2.dist-info/WHEEL"}
    (library / "backend.py").write_text("raise RuntimeError('no compiler')")
    assert "library cannot be made a wheel: " in deploy(home, project, code=1)[1]
