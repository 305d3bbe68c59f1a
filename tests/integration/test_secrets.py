"""Secrets by name: what a function reads from Secrets Manager before its app is loaded, on moto's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudq.errors import ConfigError, SeamError
from cloudq_aws import secrets
from tests.servers import AWS_ENV, aws_client, moto, unique, use

VALUE = 'sk_live "quoted" ${x} é\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto(tmp_path_factory.mktemp("secrets")) as running:
        yield running.endpoint


@pytest.fixture
def sdk(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    use({**AWS_ENV, "AWS_ENDPOINT_URL": server}, monkeypatch)
    client = aws_client("secretsmanager", server)
    yield client
    client.close()


@pytest.fixture
def variable(monkeypatch: pytest.MonkeyPatch) -> str:
    """A variable that is unset, and is so again afterwards."""
    monkeypatch.setenv("STRIPE_KEY", "")
    monkeypatch.delenv("STRIPE_KEY")
    return "STRIPE_KEY"


def named(monkeypatch: pytest.MonkeyPatch, **by_variable: str) -> None:
    monkeypatch.setenv(secrets.VARIABLE, json.dumps(by_variable))


@pytest.mark.parametrize("by", ["Name", "ARN"])
@pytest.mark.parametrize("inside", [True, False], ids=["boto3", "aiobotocore"])
def test_a_variable_gets_the_text_of_the_secret_that_is_named(
    sdk: Any, variable: str, monkeypatch: pytest.MonkeyPatch, by: str, inside: bool
) -> None:
    if inside:
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "f")
    made = sdk.create_secret(Name=unique("prod/stripe"), SecretString=VALUE)
    named(monkeypatch, **{variable: made[by]})
    secrets.load()
    assert os.environ[variable] == VALUE


def test_a_variable_that_is_set_already_stays_and_its_secret_is_not_asked_for(
    sdk: Any, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "mine")
    named(monkeypatch, **{variable: "there-is-none"})
    secrets.load()
    assert os.environ[variable] == "mine"


def test_a_secret_that_is_not_there_is_named_and_nothing_is_set(sdk: Any, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = sdk.create_secret(Name=unique("there"), SecretString=VALUE)["Name"]
    named(monkeypatch, **{variable: there, "OTHER": "there-is-none"})
    with pytest.raises(SeamError, match="'there-is-none': there is none of this name"):
        secrets.load()
    assert variable not in os.environ


def test_a_secret_that_is_no_text_is_refused_without_showing_it(sdk: Any, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = sdk.create_secret(Name=unique(), SecretBinary=b"\xff\x00hidden")["Name"]
    named(monkeypatch, **{variable: name})
    with pytest.raises(ConfigError, match="no text that a variable can hold") as caught:
        secrets.load()
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("value", ["{", "[]", '{"A": 1}', '{"": "x"}', "null"])
def test_what_is_no_table_of_names_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(secrets.VARIABLE, value)
    with pytest.raises(ConfigError, match=r"CLOUDQ_SECRETS must be JSON"):
        secrets.load()


def test_the_entry_has_read_them_when_the_app_s_module_is_imported(sdk: Any, server: str, tmp_path: Path) -> None:
    name = sdk.create_secret(Name=unique(), SecretString="key-1")["Name"]
    (tmp_path / "secret_tasks.py").write_text(
        "import os\nfrom cloudq import CloudQ\napp = CloudQ('s')\nprint(os.environ['STRIPE_KEY'])\n", encoding="utf-8"
    )
    given = {
        **AWS_ENV,
        "AWS_ENDPOINT_URL": server,
        "AWS_LAMBDA_FUNCTION_NAME": "f",
        "PYTHONPATH": str(tmp_path),
        "CLOUDQ_APP": "secret_tasks:app",
        "CLOUDQ_BROKER": "sqs://eu-west-1/",
        "CLOUDQ_SECRETS": json.dumps({"STRIPE_KEY": name}),
    }
    command = [sys.executable, "-W", "error", "-c", "import cloudq_aws.entry"]
    ran = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "key-1\n", "")
