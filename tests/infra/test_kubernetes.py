"""Kubernetes' manifests of the three apps under kubectl, the schemas of Kubernetes and KEDA, and Checkov."""

from __future__ import annotations

from pathlib import Path
from shutil import which

import pytest
import yaml

from cloudq.deploy.targets import also_of, folder_of, values_of
from cloudq_templates import render
from tests.infra import tools
from tests.infra.apps import APPS, GOOGLE, plan
from tests.infra.checkov_exceptions import KUBERNETES
from tests.servers import missing

VERSION = "1.33"


CASES = (*((name, "aws") for name in APPS), ("quickstart", "google"), ("everything", "google"))


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What ``kubectl apply -k`` would send, of each app in a file."""
    if which("kubectl") is None:
        missing("kubectl", "https://kubernetes.io/docs/tasks/tools/")
    written, built = tmp_path_factory.mktemp("written"), tmp_path_factory.mktemp("built")
    for name, cloud in CASES:
        folder = written / f"{name}-{cloud}"
        folder.mkdir()
        made, settings = plan(name, "kubernetes", GOOGLE if cloud == "google" else None)
        for path, text in render(folder_of("kubernetes"), values_of(made, settings), also=also_of(made)).items():
            (folder / path).write_text(text, "utf-8")
        (built / f"{folder.name}.yaml").write_text(tools.accepted("kubectl", "kustomize", folder), "utf-8")
    return sorted(built.iterdir())


def test_all_of_it_is_in_the_namespace_that_it_makes(manifests: list[Path]) -> None:
    for manifest in manifests:
        made = list(yaml.safe_load_all(manifest.read_text("utf-8")))
        assert made[0]["kind"] == "Namespace", "which is applied first"
        assert {each["metadata"]["namespace"] for each in made[1:]} == {made[0]["metadata"]["name"]}


def test_the_schemas_of_kubernetes_and_of_keda_take_it(manifests: list[Path]) -> None:
    tools.script("check_k8s.py", tools.folder() / "schemas", VERSION, *manifests)


def test_checkov_finds_nothing_beyond_the_exceptions(manifests: list[Path]) -> None:
    tools.checkov(manifests[0].parent, "kubernetes", skipped=KUBERNETES)
