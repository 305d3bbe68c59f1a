"""``python -m cloudq.cli`` is ``cloudq``."""

from __future__ import annotations

from cloudq.cli import main

main()
