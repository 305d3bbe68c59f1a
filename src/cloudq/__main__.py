"""``python -m cloudq``: the same as the ``cloudq`` command."""

from __future__ import annotations

from cloudq.cli import main

if __name__ == "__main__":
    main()
