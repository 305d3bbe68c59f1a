"""cloudq on Google Cloud: each module is an adapter or a host, and importing one loads none of Google's libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloudq_gcp.function import cloud_event
    from cloudq_gcp.push import push_app

__all__ = ["cloud_event", "push_app"]


def __getattr__(name: str) -> Any:
    """The hosts, loaded when they are asked for."""
    if name == "push_app":
        from cloudq_gcp.push import push_app

        return push_app
    if name == "cloud_event":
        from cloudq_gcp.function import cloud_event

        return cloud_event
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
