"""Typed arguments and results: what a task's signature says, checked at the call, carried as JSON, rebuilt in the worker.

Two ways that accept and refuse the same. A parameter of plain JSON types (``int``, ``list[str]``, ``dict[str, Any] | None``, no annotation)
takes a value of exactly those types as it is, so that neither caller nor worker loads pydantic. Everything else goes through pydantic:
lax validation at the call as ``validate_call`` does it, a dump, and validation from JSON in the worker. At the call the dump is also read
back and compared, so that what would arrive as something else (a datetime for ``str | datetime``, a ``SecretStr``, a subclass with more
fields) is refused there and not found out in the worker. Models and dataclasses travel by field names; aliases play no part.

Errors name task and parameter and what was expected. They never hold a value, nor do their causes: a payload stays out of logs.
"""

from __future__ import annotations

from cloudq.values.codec import ArgumentCodec
from cloudq.values.text import dumps

__all__ = ["ArgumentCodec", "dumps"]
