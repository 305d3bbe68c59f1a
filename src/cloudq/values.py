"""TEMPORARY: typed arguments, to be replaced."""
from __future__ import annotations
import inspect, json, typing
from typing import Any
from cloudq.errors import ArgumentsError
_enc = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
dumps = _enc.encode
class ArgumentCodec:
    def __init__(self, function, *, task, skip_first=False):
        self.f, self.task, self.skip = function, task, skip_first
        self._sig = None
    def _s(self):
        if self._sig is None:
            sig = inspect.signature(self.f)
            ps = list(sig.parameters.values())[1 if self.skip else 0:]
            self._sig = sig.replace(parameters=ps)
        return self._sig
    def encode(self, args, kwargs):
        if args or kwargs or self._s().parameters:
            try:
                self._s().bind(*args, **kwargs)
            except TypeError as e:
                raise ArgumentsError(f"task {self.task!r}: {e}", task=self.task) from None
        try:
            dumps([list(args), dict(kwargs)])
        except (TypeError, ValueError) as e:
            raise ArgumentsError(f"task {self.task!r}: parameter: {e}", task=self.task) from e
        return list(args), dict(kwargs)
    def decode(self, args, kwargs):
        return self.encode(args, kwargs)
    def encode_partial(self, args, kwargs):
        return list(args), dict(kwargs)
    def encode_result(self, value):
        try:
            dumps(value)
        except (TypeError, ValueError) as e:
            raise ArgumentsError(f"task {self.task!r}: result: {e}", task=self.task, parameter="return") from e
        return value
    def decode_result(self, value):
        return value
