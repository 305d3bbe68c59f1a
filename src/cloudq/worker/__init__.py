"""The worker: the long-lived host of tasks."""

from __future__ import annotations

from cloudq.worker.worker import StopReason, Worker, WorkerOptions

__all__ = ["StopReason", "Worker", "WorkerOptions"]
