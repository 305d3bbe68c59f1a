"""moto's server with a cheap clock: it asks each message's time for each request, and its own way to read it takes 10 µs.

At a depth of 2,000 messages a send of ten takes 12 ms so, and 260 ms otherwise; what it answers is the same.
"""

from __future__ import annotations

import sys
import time


def main() -> None:
    """Serve, with the arguments of ``moto_server``."""
    import moto.sqs.models
    from moto.server import main as serve

    def unix_time_millis(dt: object = None) -> float:
        return time.time() * 1000

    moto.sqs.models.unix_time_millis = unix_time_millis
    serve(sys.argv[1:])


if __name__ == "__main__":
    main()
