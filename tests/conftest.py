"""What the whole suite shares: the real servers' fixtures, property tests that judge by result and never by time, and AWS's models."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from botocore.loaders import JSONFileLoader
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.servers", "tests.gcp_servers", "tests.localstack"]

settings.register_profile(
    "suite", deadline=None, derandomize="CI" in os.environ, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

_load = JSONFileLoader.load_file


@cache
def _loaded(path: str) -> Any:
    return _load(JSONFileLoader(), path)


# Each test makes clients of its own, and reading a service's model anew takes most of the time of that.
JSONFileLoader.load_file = lambda _, path: _loaded(path)
