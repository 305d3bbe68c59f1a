"""`import cloudq` stays light: each cold start in Lambda pays for every module it loads."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {
    "aiobotocore", "aiohttp", "boto3", "botocore", "flask", "google", "grpc", "jinja2", "pydantic", "pytest", "rich", "sqlite3", "typer",
    "urllib3", "watchfiles",
}  # fmt: skip


def test_importing_cloudq_loads_no_sdk_cli_template_web_or_validation_library() -> None:
    code = "import sys; before = set(sys.modules); import cloudq; print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100).stdout.split()
    assert "cloudq" in loaded
    assert not HEAVY.intersection(loaded)
