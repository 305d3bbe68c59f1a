"""What reads the files that ``cloudq deploy`` writes: linters in environments of their own, and Terraform with its providers' schemas.

``CLOUDQ_INFRA_TOOLS`` names a folder with checks and schemas that are no part of the project: recorded schemas of Terraform's providers,
of KEDA and of compose, and the scripts that read them. Where it is not set, the tests that need it are skipped, and ``CLOUDQ_REQUIRE=all``
makes that a failure; ``none`` says that there is no such folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from shutil import which

import pytest

from tests.environments import python_of
from tests.servers import CACHE, missing


def python() -> Path:
    """An interpreter with cfn-lint, aws-sam-translator, hadolint, kubernetes-validate, jsonschema, pyyaml; its scripts are beside it."""
    return python_of("infra")


def folder() -> Path:
    """``CLOUDQ_INFRA_TOOLS``."""
    given = os.environ.get("CLOUDQ_INFRA_TOOLS")
    if given == "none":
        pytest.skip("there is no folder of infrastructure tools here")
    if not given or not Path(given).is_dir():
        missing("the folder of infrastructure tools", "set CLOUDQ_INFRA_TOOLS")
    return Path(given).resolve()


def run(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a tool; what it says is the caller's to judge."""
    where = {**os.environ, "PATH": f"{python().parent}{os.pathsep}{os.environ['PATH']}", **(env or {})}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=where,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def accepted(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a tool, which must have nothing to say against it; returns what it printed."""
    ran = run(*command, cwd=cwd, env=env)
    assert ran.returncode == 0, f"{' '.join(map(str, command))}\n{ran.stdout[-6000:]}{ran.stderr[-3000:]}"
    return ran.stdout


def script(name: str, *arguments: str | Path) -> str:
    """Run a script of the folder of tools by its interpreter, which must have nothing to say against its arguments."""
    return accepted(python(), folder() / name, *arguments)


def checkov(path: Path, framework: str, *, skipped: Mapping[str, str]) -> None:
    """checkov must find nothing in ``path`` beyond what is skipped: a check's id, and the reason."""
    program = python_of("checkov").with_name("checkov")
    where = ["--file", path] if path.is_file() else ["--directory", path]
    skips = ["--skip-check", ",".join(sorted(skipped))] if skipped else []
    # Some of its checks ask its makers' servers, which a test must not
    accepted(program, *where, "--framework", framework, "--compact", "--quiet", "--skip-download", *skips)


def terraform(module: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Terraform in a module; its providers come from a mirror that serves recorded schemas, and asks no cloud."""
    if which("terraform") is None:
        missing("terraform", "https://developer.hashicorp.com/terraform/install")
    return run("terraform", *arguments, cwd=module, env=_mirror())


@cache
def _mirror() -> Mapping[str, str]:
    tools = folder()
    maker, program = tools / "make_tf_mirror.sh", python()
    what = sha256(maker.read_bytes() + (tools / "terraform-provider-schema").read_bytes() + str(program).encode()).hexdigest()[:12]
    home = CACHE / f"terraform-mirror-{what}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "terraform-mirror.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "terraformrc").exists():
            accepted("bash", maker, home, tools / "schemas", program)
        schemas = _schemas(tools / "schemas")
    return {"TF_CLI_CONFIG_FILE": str(home / "terraformrc"), "TF_SCHEMA_DIR": str(schemas), "CHECKPOINT_DISABLE": "1"}


def _schemas(recorded: Path) -> Path:
    """The recorded schemas of Terraform's providers, and those of ``schemas/`` here: resources that were not recorded."""
    more = {path.name: path.read_bytes() for path in sorted((Path(__file__).parent / "schemas").glob("*.json"))}
    base = {path.name: path.read_bytes() for path in sorted(recorded.glob("*.json"))}
    home = CACHE / f"terraform-schemas-{sha256(b''.join([*base.values(), *more.values()])).hexdigest()[:12]}"
    if not (home / "complete").exists():
        home.mkdir(exist_ok=True)
        for name in ("aws.json", "google.json"):
            whole = json.loads(base[name])
            for provider, added in json.loads(more.get(name, b'{"provider_schemas": {}}'))["provider_schemas"].items():
                for kind, resources in added.items():
                    whole["provider_schemas"][provider][kind] |= resources
            (home / name).write_text(json.dumps(whole))
        (home / "complete").touch()
    return home
