"""What the whole suite shares: the real servers' fixtures, and property tests that judge by result and never by time."""

from __future__ import annotations

import os

from hypothesis import settings

pytest_plugins = ["tests.servers", "tests.gcp_servers", "tests.localstack"]

settings.register_profile("suite", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("suite")
