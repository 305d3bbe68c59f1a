"""Durations as people write them: seconds, a timedelta or ``"1h30m"``, always turned into seconds."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import cast

Duration = float | int | timedelta | str

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*"  # compiled at the first use: a cold start may need none


def seconds(value: Duration, what: str = "duration") -> float:
    """Return ``value`` in seconds: a number, a timedelta, or text like ``"30s"``, ``"5m"``, ``"1h30m"``, ``"3d"``.

    Units are ms, s, m (minutes), h, d (24 h) and w. ``what`` names the value in errors.
    Raises ValueError for what is negative, not finite or not understood; TypeError for another type.
    """
    if isinstance(value, bool):
        raise TypeError(f"{what} must be seconds, a timedelta or text like '5m', not a bool")
    if isinstance(value, (int, float)):
        result = float(value)
    elif isinstance(value, timedelta):
        result = value.total_seconds()
    else:
        given = cast("object", value)  # whatever the type hints say
        if not isinstance(given, str):
            raise TypeError(f"{what} must be seconds, a timedelta or text like '5m', not {type(given).__name__}")
        text = given.strip()
        if not re.fullmatch(rf"(?:{_PART})+", text, re.ASCII):
            raise ValueError(f"{what} {value!r} is not understood; write '30s', '5m', '1h30m', '3d', or seconds as a number")
        result = sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, text, re.ASCII))
    if not math.isfinite(result) or result < 0:
        raise ValueError(f"{what} must be a finite time of 0 s or more, not {value!r}")
    return result


def text(length: float) -> str:
    """A duration in the largest unit that counts it whole, as settings read it: ``14d``, ``15m``, ``90s``."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if length >= size and length % size == 0:
            return f"{length / size:g}{unit}"
    return f"{length:g}s"
