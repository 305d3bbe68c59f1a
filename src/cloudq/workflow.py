"""What a person composes of calls: chains, groups and chords, values that send nothing until they are asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, Unpack, cast, overload

from cloudq.errors import ArgumentsError
from cloudq.message import new_id
from cloudq.signature import NO_OPTIONS, CallOptions, Canvas, Signature

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.result import AsyncResult, GroupResult

__all__ = ["Chain", "Group", "chain", "chord", "group"]

R = TypeVar("R")
S = TypeVar("S")

_FIRST: Final = frozenset({"delay", "countdown", "eta"})
"""Options of a chain that are its first step's."""
_WHOLE: Final = frozenset({"task_id", "after_commit"})
"""Options that are the canvas's own."""


class Chain(Canvas[R]):
    """Steps one after another: each gets the result of the one before it. A group followed by a step is a chord."""

    __slots__ = ("options", "steps")

    def __init__(self, steps: Iterable[Canvas[Any]], options: CallOptions = NO_OPTIONS) -> None:
        flat: list[Signature[Any] | Group[Any]] = []
        for step in cast("Iterable[Any]", steps):
            if isinstance(step, Chain):
                flat.extend(step.steps)
            elif isinstance(step, (Signature, Group)):
                flat.append(cast("Any", step))
            else:
                raise _no_canvas(step, "a chain")
        if not flat:
            raise ArgumentsError("a chain needs a step: chain(fetch.s(url), parse.s())", task="")
        self.steps: tuple[Signature[Any] | Group[Any], ...] = tuple(flat)
        self.options = options

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.steps))

    def __call__(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """As ``delay``."""
        return self.delay(*args, **kwargs)

    @property
    def app(self) -> CloudQ | None:
        return next((step.app for step in self.steps if step.app is not None), None)

    def clone(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Chain[R]:
        """The same chain, its first step called with ``args`` before its own and ``kwargs`` over its own."""
        if not args and not kwargs:
            return self
        return Chain((self.steps[0].clone(args, kwargs), *self.steps[1:]), self.options)

    def set(self, **options: Unpack[CallOptions]) -> Chain[R]:
        """A delay is the first step's, ``link`` the last one's, ``task_id`` the result's; every other option is each step's."""
        first, whole, last, rest = _parts(options)
        steps: list[Canvas[Any]] = [step.set(**rest) if rest else step for step in self.steps]
        if first:
            steps[0] = steps[0].set(**first)
        if last:
            steps[-1] = steps[-1].set(**last)
        return Chain(steps, cast("CallOptions", {**self.options, **whole}))

    def link(self, callback: Canvas[Any]) -> Chain[R]:
        """Call ``callback`` with the chain's result, beside what else follows. Adds to this chain and returns it."""
        self.steps[-1].link(callback)
        return self

    def link_error(self, errback: Signature[Any]) -> Chain[R]:
        """Call ``errback`` when a step ends without a result, once. Adds to this chain and returns it."""
        for step in self.steps:
            step.link_error(errback)
        return self


class Group(Canvas[list[R]]):
    """Calls side by side; its result is the list of theirs, in order."""

    __slots__ = ("branches", "options")

    def __init__(self, branches: Iterable[Canvas[R]], options: CallOptions = NO_OPTIONS) -> None:
        self.branches: tuple[Canvas[R], ...] = tuple(branches)
        for branch in self.branches:
            if not isinstance(cast("object", branch), Canvas):
                raise _no_canvas(branch, "a group")
        self.options = options

    def __repr__(self) -> str:
        shown = [repr(branch) for branch in self.branches[:3]]
        more = [f"… {len(self.branches) - 3} more"] if len(self.branches) > 3 else []
        return f"group({', '.join([*shown, *more])})"

    def __len__(self) -> int:
        return len(self.branches)

    @property
    def app(self) -> CloudQ | None:
        return next((branch.app for branch in self.branches if branch.app is not None), None)

    def clone(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Group[R]:
        """The same group, each member called with ``args`` before its own and ``kwargs`` over its own."""
        if not args and not kwargs:
            return self
        return Group([branch.clone(args, kwargs) for branch in self.branches], self.options)

    def set(self, **options: Unpack[CallOptions]) -> Group[R]:
        """``task_id`` is the group's, every other option each member's."""
        first, whole, last, rest = _parts(options)
        each = cast("CallOptions", {**rest, **first, **last})
        branches = [branch.set(**each) for branch in self.branches] if each else self.branches
        return Group(branches, cast("CallOptions", {**self.options, **whole}))

    def _bound(self) -> CloudQ:
        return super()._bound() if self.branches else cast("CloudQ", _Nobody())

    def link(self, callback: Canvas[Any]) -> Group[R]:
        """Call ``callback`` with the result of each member. Adds to this group and returns it."""
        for branch in self.branches:
            branch.link(callback)
        return self

    def link_error(self, errback: Signature[Any]) -> Group[R]:
        """Call ``errback`` for each member that ends without a result. Adds to this group and returns it."""
        for branch in self.branches:
            branch.link_error(errback)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> GroupResult[R]:
        """As ``delay``."""
        return self.delay(*args, **kwargs)

    if TYPE_CHECKING:

        def delay(self, *args: Any, **kwargs: Any) -> GroupResult[R]: ...
        async def adelay(self, *args: Any, **kwargs: Any) -> GroupResult[R]: ...
        def apply_async(
            self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
        ) -> GroupResult[R]: ...


class _Nobody:
    """Stands in for the app of a group without members, which no app need send: its result is the empty list."""

    def send_canvas(self, canvas: Canvas[Any]) -> GroupResult[Any]:
        from cloudq.result import GroupResult

        return GroupResult(new_id(), cast("CloudQ", None), [])

    async def asend_canvas(self, canvas: Canvas[Any]) -> GroupResult[Any]:
        return self.send_canvas(canvas)

    run_canvas_eagerly = send_canvas


class _Header(Generic[R]):
    """``chord(header)``, which waits for its body."""

    __slots__ = ("_group",)

    def __init__(self, members: Group[R]) -> None:
        self._group = members

    def __call__(self, body: Canvas[S], **options: Unpack[CallOptions]) -> Any:
        """Send the chord, Celery's way: ``chord(header)(body)``; returns the body's result."""
        return (self._group | body).apply_async(**options)


def chain(*steps: Any) -> Chain[Any]:
    """``chain(fetch.s(url), parse.s(), store.s())``, or of one iterable. ``fetch.s(url) | parse.s()`` is the same, and keeps the type."""
    return Chain(_members(steps))


@overload
def group(*branches: Canvas[R]) -> Group[R]: ...
@overload
def group(branches: Iterable[Canvas[R]], /) -> Group[R]: ...
def group(*branches: Any) -> Group[Any]:
    """``group(thumb.s(size) for size in SIZES)``, or ``group(a.s(), b.s())``."""
    return Group(_members(branches))


@overload
def chord(header: Iterable[Canvas[Any]] | Group[Any]) -> Callable[..., Any]: ...
@overload
def chord(header: Iterable[Canvas[Any]] | Group[Any], body: Canvas[S]) -> Chain[S]: ...
def chord(header: Iterable[Canvas[Any]] | Group[Any], body: Canvas[Any] | None = None) -> Any:
    """``body`` is called with the list of the header's results, once all are there; the same as ``group(...) | body``.

    ``chord(header)(body)`` sends it at once. It needs a store.
    """
    members: Group[Any] = header if isinstance(header, Group) else Group(header)
    return _Header(members) if body is None else members | body


def _members(given: Sequence[Any]) -> Iterable[Any]:
    one: Any = given[0] if len(given) == 1 else None
    return one if hasattr(one, "__iter__") else given


def _parts(options: CallOptions) -> tuple[CallOptions, CallOptions, CallOptions, CallOptions]:
    """Options by whose they are: the first step's, the canvas's own, the last step's, each step's."""
    given = cast("Mapping[str, Any]", options)
    first = {key: value for key, value in given.items() if key in _FIRST}
    whole = {key: value for key, value in given.items() if key in _WHOLE}
    last = {key: value for key, value in given.items() if key == "link"}
    rest = {key: value for key, value in given.items() if key not in first and key not in whole and key not in last}
    return cast("tuple[CallOptions, CallOptions, CallOptions, CallOptions]", (first, whole, last, rest))


def _no_canvas(value: object, what: str) -> ArgumentsError:
    return ArgumentsError(f"{what} is made of signatures, such as add.s(2, 3), and not of a {type(value).__name__}", task="")
