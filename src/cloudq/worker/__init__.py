"""The worker: the long-lived host of tasks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloudq.worker.worker import StopReason, Worker, WorkerOptions

__all__ = ["StopReason", "Worker", "WorkerOptions"]


def __getattr__(name: str) -> Any:
    """What is asked for: other hosts use parts of it only, and start cold."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("cloudq.worker.worker"), name)
