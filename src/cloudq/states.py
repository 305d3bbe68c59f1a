"""The states of a task, as a result shows them."""

from __future__ import annotations

from typing import Final

PENDING: Final = "PENDING"
"""Nothing is known of the id: never sent, not recorded, or forgotten."""
QUEUED: Final = "QUEUED"
STARTED: Final = "STARTED"
RETRY: Final = "RETRY"
REVOKING: Final = "REVOKING"
"""It runs, and is asked to stop; shown until it has, and written nowhere."""
SUCCESS: Final = "SUCCESS"
FAILURE: Final = "FAILURE"
"""The task raised its last error; its message is in the dead-letter queue."""
REVOKED: Final = "REVOKED"
EXPIRED: Final = "EXPIRED"
DEAD: Final = "DEAD"
"""cloudq gave the message up (crash loop, unknown task, unreadable arguments, Reject); it is in the dead-letter queue."""

WAS_REVOKED: Final = "it was revoked"
"""The reason in a REVOKED."""

TERMINAL: Final = frozenset({SUCCESS, FAILURE, REVOKED, EXPIRED, DEAD})
REOPENED_BY_REDRIVE: Final = frozenset({FAILURE, DEAD, EXPIRED})
"""Terminal states that a redriven dead letter may leave again."""
