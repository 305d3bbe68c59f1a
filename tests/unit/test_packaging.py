"""What goes into the function's package: requirements as they are asked for, the project's own source, and nothing that Lambda has."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from cloudq import CloudQ
from cloudq.deploy import packaging, requirements
from cloudq.deploy.packaging import Installer, installed, package, platforms, root_of, source, write
from cloudq.deploy.plan import Plan, plan_of
from cloudq.deploy.requirements import Requirements, read
from cloudq.deploy.settings import Settings, parse
from cloudq.errors import ConfigError

OWN = f"cloudq-tasks=={version('cloudq-tasks')}"


@pytest.fixture(autouse=True)
def of_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """cloudq as if it had come from an index, whichever way it is installed here."""
    set_origin(monkeypatch, None)


def set_origin(monkeypatch: pytest.MonkeyPatch, document: str | None) -> None:
    found = type("Running", (), {"version": version("cloudq-tasks"), "read_text": lambda self, name: document})()
    monkeypatch.setattr(requirements, "distribution", lambda name: found)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    made = tmp_path / "project"
    made.mkdir()
    return made


def lay(folder: Path, *names: str, text: str = "") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def needed(project: Path, text: str | None = None, *, toml: str | None = None, build: Callable[[Path], Path] | None = None) -> Requirements:
    for name, given in (("requirements.txt", text), ("pyproject.toml", toml)):
        if given is not None:
            (project / name).write_text(given)
    return read(project, build or (lambda path: pytest.fail(f"{path} was built")))


# ---------------------------------------------------------------------- requirements


def test_requirements_are_those_of_pyproject_and_a_requirements_file_wins_over_them(project: Path) -> None:
    toml = '[project]\nname = "shop"\ndependencies = ["requests>=2", "cloudq-tasks>=0.1"]'
    assert needed(project, toml=toml).asked == ("requests>=2", "cloudq-tasks>=0.1")
    assert needed(project, "httpx==0.28.1  # newer ones break\n\n# a remark\ncloudq-tasks==0.1.0\n").asked == (
        "httpx==0.28.1",
        "cloudq-tasks==0.1.0",
    )


def test_cloudq_itself_is_always_asked_for_at_the_version_that_runs(project: Path) -> None:
    assert needed(project).asked == (OWN,)
    assert needed(project, "six\n").asked == ("six", OWN)
    assert needed(project, "cloudq_tasks\n").asked == (OWN,)


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ("cloudq-tasks[aws]>=0.1", "cloudq-tasks>=0.1"),
        ("cloudq-tasks[aws,crypto]>=0.1", "cloudq-tasks[crypto]>=0.1"),
        ("cloudq.tasks [all] >=0.1 ; python_version > '3'", "cloudq-tasks[crypto]>=0.1 ; python_version > '3'"),
        ("cloudq-tasks[cli,gcp]", OWN),
        ("cloudq-tasks[aws] @ https://example.org/c.whl", "cloudq-tasks @ https://example.org/c.whl"),
    ],
)
def test_cloudq_loses_the_extras_that_no_function_uses(asked: str, kept: str, project: Path) -> None:
    assert needed(project, asked).asked == (kept,)


def test_a_lock_pins_what_only_others_need_without_asking_for_it(project: Path) -> None:
    lock = """\
aiobotocore==3.1.0 \\
    --hash=sha256:01 \\
    --hash=sha256:02
    # via cloudq-tasks
boto3==1.40.0
    # via
    #   cloudq-tasks
    #   powertools
cloudq-tasks[aws]==0.1.0
    # via
    #   shop
    #   powertools
powertools==3.0.0 ; sys_platform == 'linux'
    # via -r requirements.in
requests==2.32.0
    # via shop (pyproject.toml)
urllib3==2.5.0  # via requests
xyz==1
"""
    found = needed(project, lock, toml='[project]\nname = "Shop"\n')
    assert found.asked == ("cloudq-tasks==0.1.0", "powertools==3.0.0 ; sys_platform == 'linux'", "requests==2.32.0", "xyz==1")
    assert found.versions == ("aiobotocore==3.1.0 --hash=sha256:01 --hash=sha256:02", "boto3==1.40.0", "urllib3==2.5.0")


def test_files_of_requirements_are_followed_and_options_stay_with_paths_made_absolute(project: Path) -> None:
    lay(project, "more/limits.txt", "more/wheels/x")
    lay(project, "more/base.txt", text="-c limits.txt\n--find-links ./wheels\nsix\n")
    text = "-r more/base.txt\n--index-url https://example.org/simple\n--find-links https://example.org/wheels\n"
    assert needed(project, text).asked == (
        f"-c {project / 'more/limits.txt'}",
        f"--find-links {project / 'more/wheels'}",
        "six",
        "--index-url https://example.org/simple",
        "--find-links https://example.org/wheels",
        OWN,
    )


def test_what_lies_on_this_machine_becomes_a_wheel(project: Path) -> None:
    lay(project, "libs/a/pyproject.toml", "wheels/b-1-py3-none-any.whl", "a_lib-1-py3-none-any.whl", "c d/c-1.tar.gz")
    built: list[Path] = []

    def build(path: Path) -> Path:
        built.append(path.resolve())
        return project / "a_lib-1-py3-none-any.whl"

    text = f"""\
-e ./libs/a[fast]
wheels/b-1-py3-none-any.whl ; python_version > "3" --hash=sha256:00
c[x] @ file://{(project / "c d/c-1.tar.gz").as_posix().replace(" ", "%20")}
git+https://example.org/repo.git
https://example.org/d-1-py3-none-any.whl
"""
    wheel = (project / "a_lib-1-py3-none-any.whl").as_uri()
    assert needed(project, text, build=build).asked == (
        f"a_lib[fast] @ {wheel}",
        f'b @ {(project / "wheels/b-1-py3-none-any.whl").as_uri()} ; python_version > "3"',
        f"a_lib[x] @ {wheel}",
        "git+https://example.org/repo.git",
        "https://example.org/d-1-py3-none-any.whl",
        OWN,
    )
    assert built == [project / "libs/a", project / "c d/c-1.tar.gz"]
    with pytest.raises(ConfigError, match="gone, and nothing is there"):
        needed(project, "./gone")


def test_a_source_of_uv_is_a_place_too_and_the_project_itself_stands_for_what_it_needs(project: Path) -> None:
    lay(project, "wheels/b-1-py3-none-any.whl", "wheels/c-1-py3-none-any.whl")
    toml = f"""
[project]
name = "shop"
dependencies = ["b[x]>=1", "c ; python_version > '3'", "six"]
[tool.uv.sources]
b = {{ path = "wheels/b-1-py3-none-any.whl" }}
c = {{ path = "{project}/wheels/c-1-py3-none-any.whl" }}
six = {{ index = "ours" }}
"""
    wheels = (project / "wheels").as_uri()
    expected = (f"b[x] @ {wheels}/b-1-py3-none-any.whl", f"c @ {wheels}/c-1-py3-none-any.whl ; python_version > '3'", "six", OWN)
    assert needed(project, toml=toml).asked == expected
    assert needed(project, "-e .\n", toml=toml).asked == expected


def test_a_cloudq_that_runs_from_a_checkout_is_packaged_from_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(project, "cloudq/pyproject.toml", "cloudq_tasks-9-py3-none-any.whl")
    set_origin(monkeypatch, f'{{"url": "{(project / "cloudq").as_uri()}", "dir_info": {{"editable": true}}}}')
    wheel = project / "cloudq_tasks-9-py3-none-any.whl"
    assert needed(project, "cloudq-tasks[all]>=0.1", build=lambda path: wheel).asked == (f"cloudq_tasks[crypto] @ {wheel.as_uri()}",)
    set_origin(monkeypatch, f'{{"url": "{wheel.as_uri()}", "archive_info": {{}}}}')
    assert needed(project, "").asked == (f"cloudq_tasks @ {wheel.as_uri()}",)


@pytest.mark.parametrize("toml", ['[project]\nname = "a"\ndynamic = ["dependencies"]', '[tool.poetry.dependencies]\nsix = "*"'])
def test_dependencies_that_pyproject_does_not_list_are_refused_with_the_way_out(toml: str, project: Path) -> None:
    with pytest.raises(ConfigError, match=r"put a requirements\.txt beside it"):
        needed(project, toml=toml)


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml"])
def test_a_file_that_cannot_be_read_is_an_error_of_one_line(name: str, project: Path) -> None:
    (project / name).write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=f"{name} cannot be read"):
        read(project, lambda path: path)


# ---------------------------------------------------------------------- what is installed


def dist(target: Path, name: str, *needs: str, files: tuple[str, ...] = ()) -> None:
    """An installed distribution with one module."""
    folder = f"{name.replace('-', '_')}-1.dist-info"
    module = f"{name.replace('-', '_')}/__init__.py"
    lay(target, module, *files)
    lay(target, f"{folder}/METADATA", text=f"Name: {name}\nVersion: 1\n" + "".join(f"Requires-Dist: {each}\n" for each in needs))
    names = (module, f"{folder}/METADATA", f"{folder}/RECORD", *files)
    lay(target, f"{folder}/RECORD", text="".join(f"{each},,\n" for each in names))


def kept(target: Path, *asked: str) -> set[str]:
    return {name.partition("/")[0] for name in installed(target, Requirements(asked, ())) if ".dist-info" not in name}


@pytest.fixture
def sdk(tmp_path: Path) -> Path:
    target = tmp_path / "installed"
    dist(target, "boto3", "botocore<2", "s3transfer", "jmespath")
    dist(target, "botocore", "jmespath", "urllib3!=2.2.0", "python-dateutil")
    dist(target, "s3transfer", "botocore")
    dist(target, "jmespath")
    dist(target, "python-dateutil", "six>=1.5")
    dist(target, "urllib3", "h2 ; extra == 'h2'")
    dist(target, "six")
    dist(target, "powertools", "boto3 ; extra == 'sdk'")
    return target


SDK = {"boto3", "botocore", "s3transfer"}
BESIDE = {"jmespath", "urllib3", "python_dateutil", "six"}


def test_what_lambda_has_stays_out(sdk: Path) -> None:
    assert kept(sdk, "powertools", "boto3>=1.40") == {"powertools"}
    assert not [name for name in installed(sdk, Requirements((), ())) if name.startswith("boto")]


def test_a_pin_puts_it_in_with_all_that_it_needs(sdk: Path) -> None:
    assert kept(sdk, "boto3==1.40.0") == SDK | BESIDE | {"powertools"}
    assert kept(sdk, "boto3 @ https://example.org/boto3.whl") == SDK | BESIDE | {"powertools"}
    assert kept(sdk, "jmespath==1.0 ; python_version > '3'") == {"jmespath", "powertools"}
    assert kept(sdk, "boto3>=1 ; python_version == '3.13'") == {"powertools"}


def test_what_something_else_needs_too_goes_along(sdk: Path) -> None:
    dist(sdk, "pandas", "python-dateutil>=2.8")
    assert kept(sdk, "pandas") == {"powertools", "pandas", "python_dateutil", "six"}
    assert kept(sdk, "pandas", "urllib3") == {"powertools", "pandas", "python_dateutil", "six", "urllib3"}


def test_aiobotocore_that_the_project_asks_for_has_its_own_botocore(sdk: Path) -> None:
    dist(sdk, "aiobotocore", "botocore==1.40.0")
    assert kept(sdk, "aiobotocore") == {"aiobotocore", "powertools", "botocore"} | BESIDE


def test_of_each_project_metadata_goes_along_and_caches_stubs_tests_and_the_installer_s_notes_do_not(tmp_path: Path) -> None:
    target = tmp_path / "installed"
    more = ("a/data.json", "a/__pycache__/b.pyc", "a/b.pyi", "a/tests/test_b.py", "bin/a", "a/.libs/c.so", "a.libs/d.so", ".lock")
    notes = ("a-1.dist-info/INSTALLER", "a-1.dist-info/direct_url.json", "a-1.dist-info/uv_cache.json", "a-1.dist-info/entry_points.txt")
    dist(target, "a", files=(*more, *notes))
    assert set(installed(target, Requirements((), ()))) == {
        "a/__init__.py",
        "a/data.json",
        "a/.libs/c.so",
        "a.libs/d.so",
        "a-1.dist-info/METADATA",
        "a-1.dist-info/entry_points.txt",
    }


def test_the_platform_is_that_of_lambda() -> None:
    uv, pip = Installer("uv", ()), Installer("pip", ())
    assert platforms(uv, "3.13", "arm64") == ["--python-platform", "aarch64-manylinux_2_34"]
    assert platforms(uv, "3.11", "x86_64") == ["--python-platform", "x86_64-manylinux_2_17"]
    tags = platforms(pip, "3.11", "arm64")[1::2]
    assert (tags[0], tags[-2:]) == ("manylinux_2_26_aarch64", ["manylinux_2_17_aarch64", "manylinux2014_aarch64"])


# ---------------------------------------------------------------------- the project's own


def names(project: Path, root: Path | None = None, *, module: str = "tasks", include: tuple[str, ...] = ()) -> set[str]:
    return set(source(project, root or project, module, include, leave=project / "infrastructure"))


def test_modules_and_packages_go_along_with_their_data_and_nothing_else_does(project: Path) -> None:
    code = {"tasks.py", "shop/__init__.py", "shop/mail.html", "shop/sub/orders.py", "plain/deep/x.py"}
    beside = """
        pyproject.toml README.md .env secret.pem setup.py conftest.py test_tasks.py tests/test_a.py shop/tests/test_b.py docs/conf.py
        .venv/x.py env/pyvenv.cfg env/lib/y.py node_modules/z.py __pycache__/tasks.pyc shop/__pycache__/orders.pyc shop/.secret
        shop.egg-info/x.py assets/logo.png infrastructure/a.py prod/.cloudq/written.json prod/b.py dist/c.py
    """
    lay(project, *code, *beside.split())
    assert names(project) == code


def test_a_folder_beside_the_code_goes_along_where_the_app_is_in_it(project: Path) -> None:
    lay(project, "examples/tasks.py", "docs/conf.py")
    assert names(project, module="examples.tasks") == {"examples/tasks.py"}


def test_include_names_what_else_goes_along(project: Path) -> None:
    lay(project, "src/shop/__init__.py", "config/a.json", "config/b/c.json", "src/words.txt", "x.txt")
    found = names(project, project / "src", module="shop", include=("config", "src/*.txt"))
    assert found == {"shop/__init__.py", "config/a.json", "config/b/c.json", "words.txt"}
    for pattern in ("gone/*", "", ".", "../*", "/etc/*"):
        with pytest.raises(ConfigError, match=re.escape(f"names {pattern!r}, and there is nothing")):
            names(project, include=(pattern,))


def test_the_root_is_where_the_app_is_imported_from_if_that_is_in_the_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(project, "apps/shop_at_a/__init__.py", "apps/shop_at_a/tasks.py", ".venv/lib/site-packages/shop_at_b.py")
    for folder in ("apps", ".venv/lib/site-packages"):
        monkeypatch.syspath_prepend(project / folder)
    assert root_of("shop_at_a.tasks", project) == root_of("shop_at_a", project) == project / "apps"
    assert root_of("shop_at_b", project) == root_of("json.decoder", project) == root_of("", project) == project
    (project / "src").mkdir()
    assert root_of("shop_at_b", project) == project / "src"


# ---------------------------------------------------------------------- the zip


def test_the_zip_has_its_names_in_order_one_time_and_plain_modes(tmp_path: Path) -> None:
    lay(tmp_path, "b.py", "a.py", "run", text="text")
    (tmp_path / "run").chmod(0o700)
    (tmp_path / "b.py").chmod(0o600)
    files = {name: tmp_path / name for name in ("b.py", "run", "a.py")}
    made = write(files, tmp_path / "one/function.zip")
    os.utime(tmp_path / "a.py", (1, 1))
    write(dict(reversed(files.items())), tmp_path / "two/function.zip")
    assert made.path.read_bytes() == (tmp_path / "two/function.zip").read_bytes()
    with zipfile.ZipFile(made.path) as archive:
        entries = [(each.filename, each.date_time[0], oct(each.external_attr >> 16)) for each in archive.infolist()]
    assert entries == [("a.py", 1980, "0o100644"), ("b.py", 1980, "0o100644"), ("run", 1980, "0o100755")]
    assert (made.files, made.unzipped, made.zipped) == (3, 12, made.path.stat().st_size)
    assert sorted(path.name for path in made.path.parent.iterdir()) == [".gitignore", "function.zip"]


def test_a_place_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    lay(tmp_path, "file", "a.py")
    with pytest.raises(ConfigError, match="cannot be written"):
        write({"a.py": tmp_path / "a.py"}, tmp_path / "file/function.zip")


# ---------------------------------------------------------------------- the whole


def planned(table: dict[str, Any], target: Any = "aws-terraform", module: str = "tasks") -> tuple[Plan, Settings]:
    app = CloudQ("shop")
    app.reference = f"{module}:app"
    app.task(name="t", queue="emails", timeout=30)(lambda: None)
    settings = parse(table, "dev")
    return plan_of(app, settings, target=target, stage="dev"), settings


@pytest.fixture
def without_an_installer(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one module; installing brings one file, of 5000 bytes that cannot be made smaller."""
    lay(project, "tasks.py")

    def install(tool: Installer, needed: Requirements, target: Path, **_: object) -> None:
        lay(target, "big/__init__.py")
        (target / "big/data").write_bytes(os.urandom(5000))

    monkeypatch.setattr(packaging, "install", install)
    return project


def test_an_app_that_would_not_be_in_its_package_is_refused(without_an_installer: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"would not hold the app's module shop\.tasks: name its files by include"):
        package(*planned({}, module="shop.tasks"), without_an_installer, tmp_path / "out")
    with pytest.raises(ConfigError, match="would not hold the app's module tasks"):
        package(*planned({"package": {"exclude": ["*.py"]}}), without_an_installer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_package_over_a_limit_is_refused_with_what_is_large(
    without_an_installer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path, "out/build/function.zip", text="an older one")
    monkeypatch.setattr(packaging, "ZIPPED", 4000)
    with pytest.raises(ConfigError, match=r'takes from Terraform; leave files out.*runs_on = "container", or deploy by aws-sam'):
        package(*planned({}), without_an_installer, tmp_path / "out")
    assert (tmp_path / "out/build/function.zip").read_text() == "an older one"
    assert package(*planned({}, "aws-sam"), without_an_installer, tmp_path / "out").files == 3  # by way of S3
    monkeypatch.setattr(packaging, "UNZIPPED", 4000)
    with pytest.raises(ConfigError, match="MB unzipped: big has 0 MB"):
        package(*planned({}), without_an_installer, tmp_path / "out")
    assert package(*planned({"package": {"exclude": ["big/data"]}}), without_an_installer, tmp_path / "out").files == 2


@pytest.mark.parametrize("target", ["gcp-terraform", "kubernetes", "compose"])
def test_a_target_that_runs_images_has_no_package(target: str, project: Path) -> None:
    with pytest.raises(ConfigError, match=f"{target} runs tasks from a container image"):
        package(*planned({}, target), project, project / "out")


def test_a_plan_without_functions_has_no_package(project: Path) -> None:
    with pytest.raises(ConfigError, match="the plan has no functions"):
        package(*planned({"defaults": {"runs_on": "container"}}), project, project / "out")
