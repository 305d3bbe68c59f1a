"""JSON text: compact, ASCII, and nothing that other JSON parsers refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from json import encoder as _json_encoder
from typing import NoReturn, cast


def _refuse_unknown(value: object) -> NoReturn:
    raise TypeError(f"a {type(value).__name__} is no JSON value")


def _make_dumps() -> Callable[[object], str]:
    make = cast("Callable[..., Callable[[object, int], tuple[str, ...]]] | None", getattr(_json_encoder, "c_make_encoder", None))
    if make is None:  # an interpreter without the C encoder
        return json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
    # json.dumps builds this encoder anew at each call. No markers: a cycle ends in RecursionError, and threads share no state.
    encode = make(None, _refuse_unknown, _json_encoder.encode_basestring_ascii, None, ":", ",", False, False, False)
    return lambda value: "".join(encode(value, 0))


_encode = _make_dumps()


def dumps(value: object) -> str:
    """``value`` as compact ASCII JSON.

    Raises TypeError for what is no JSON value; ValueError for NaN, infinity, a cycle, and an int of too many digits.
    """
    try:
        return _encode(value)
    except RecursionError:
        raise ValueError("it nests too deeply, or holds itself") from None
