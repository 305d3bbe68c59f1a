"""What a person composes of calls: chains, groups and chords, values that send nothing until they are asked to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack, cast, overload

from cloudq.errors import ArgumentsError
from cloudq.message import MAX_NESTING, new_id
from cloudq.signature import NO_OPTIONS, CallOptions, Canvas, Signature

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.result import AsyncResult, GroupResult

__all__ = ["Chain", "Group", "chain", "chord", "group"]

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
C = TypeVar("C", bound=Canvas[Any])

_FIRST: Final = frozenset({"delay", "countdown", "eta"})
"""Options of a chain that are its first step's."""
_WHOLE: Final = frozenset({"task_id", "after_commit"})
"""Options that are the canvas's own."""
_LINKS: Final = frozenset({"link", "link_error"})


class Chain(Canvas[R_co]):
    """Steps one after another: each gets the result of the one before it. A group followed by a step is a chord."""

    __slots__ = ("depth", "options", "steps")

    def __init__(self, steps: Iterable[Canvas[Any]], options: CallOptions = NO_OPTIONS) -> None:
        flat: list[Signature[Any] | Group[Any]] = []
        for step in cast("Iterable[Any]", steps):
            if isinstance(step, Chain):
                id = step.options.get("task_id")
                flat.extend(step.steps if id is None else (*step.steps[:-1], step.steps[-1].set(task_id=id)))
                options = cast("CallOptions", {**{key: step.options[key] for key in ("after_commit",) if key in step.options}, **options})
            elif isinstance(step, (Signature, Group)):
                flat.append(cast("Any", step))
            else:
                raise _no_canvas(step, "a chain")
        if not flat:
            raise ArgumentsError("a chain needs a step: chain(fetch.s(url), parse.s())", task="")
        self.steps: tuple[Signature[Any] | Group[Any], ...] = tuple(flat)
        self.depth = max(step.depth for step in flat)
        self.options = options

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.steps))

    def __call__(self, *args: Any, **kwargs: Any) -> AsyncResult[R_co]:
        """As ``delay``."""
        return self.delay(*args, **kwargs)

    @property
    def app(self) -> CloudQ | None:
        return next((app for step in self.steps if (app := step.app) is not None), None)

    def clone(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Chain[R_co]:
        """The same chain, its first step called with ``args`` before its own and ``kwargs`` over its own."""
        if not args and not kwargs:
            return self
        return Chain((self.steps[0].clone(args, kwargs), *self.steps[1:]), self.options)

    def set(self, **options: Unpack[CallOptions]) -> Chain[R_co]:
        """A delay is the first step's, ``task_id`` the result's, links are added as ``link`` does; the rest is each step's."""
        first, whole, links, rest = _parts(options)
        steps: list[Canvas[Any]] = [step.set(**rest) if rest else step for step in self.steps]
        if first:
            steps[0] = steps[0].set(**first)
        return _linked(Chain(steps, cast("CallOptions", {**self.options, **whole})), links)

    def link(self, callback: Canvas[Any]) -> Chain[R_co]:
        """Call ``callback`` with the chain's result, beside what else follows. Adds to this chain and returns it."""
        self.steps = (*self.steps[:-1], cast("Any", _copied(self.steps[-1]).link(callback)))
        return self

    def link_error(self, errback: Signature[Any]) -> Chain[R_co]:
        """Call ``errback`` when a step ends without a result, once. Adds to this chain and returns it.

        Where members of a group fail, the step after it is the one that ends: it is called once for them all. Of a group at the end of
        the chain, or before another group, it is called for each member that fails.
        """
        steps: list[Any] = []
        for step, after in zip(self.steps, (*self.steps[1:], None), strict=True):
            told_by_body = isinstance(step, Group) and isinstance(after, Signature)
            steps.append(step if told_by_body else _copied(step).link_error(errback))
        self.steps = tuple(steps)
        return self


class Group(Canvas[list[R]]):
    """Calls side by side; its result is the list of theirs, in order."""

    __slots__ = ("branches", "depth", "options")

    def __init__(self, branches: Iterable[Canvas[R]], options: CallOptions = NO_OPTIONS) -> None:
        self.branches: tuple[Canvas[R], ...] = tuple(branches)
        for branch in self.branches:
            if not isinstance(cast("object", branch), Canvas):
                raise _no_canvas(branch, "a group")
        self.depth = 1 + max((branch.depth for branch in self.branches), default=0)
        if self.depth > MAX_NESTING:
            raise ArgumentsError(f"groups are nested over {MAX_NESTING} deep", task="")
        self.options = options

    def __repr__(self) -> str:
        shown = [repr(branch) for branch in self.branches[:3]]
        more = [f"… {len(self.branches) - 3} more"] if len(self.branches) > 3 else []
        return f"group({', '.join([*shown, *more])})"

    def __len__(self) -> int:
        return len(self.branches)

    @property
    def app(self) -> CloudQ | None:
        return next((app for branch in self.branches if (app := branch.app) is not None), None)

    def clone(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Group[R]:
        """The same group, each member called with ``args`` before its own and ``kwargs`` over its own."""
        if not args and not kwargs:
            return self
        return Group([branch.clone(args, kwargs) for branch in self.branches], self.options)

    def set(self, **options: Unpack[CallOptions]) -> Group[R]:
        """``task_id`` is the group's, ``link`` and ``link_error`` are added to each member's; every other option is each member's."""
        first, whole, links, rest = _parts(options)
        each = cast("CallOptions", {**rest, **first})
        branches = [branch.set(**each) for branch in self.branches] if each else self.branches
        return _linked(Group(branches, cast("CallOptions", {**self.options, **whole})), links)

    def _bound(self) -> CloudQ:
        return super()._bound() if self.branches else cast("CloudQ", _Nobody())

    def link(self, callback: Canvas[Any]) -> Group[R]:
        """Call ``callback`` with the result of each member. Adds to this group and returns it."""
        self.branches = tuple(_copied(branch).link(callback) for branch in self.branches)
        return self

    def link_error(self, errback: Signature[Any]) -> Group[R]:
        """Call ``errback`` for each member that ends without a result. Adds to this group and returns it."""
        self.branches = tuple(_copied(branch).link_error(errback) for branch in self.branches)
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

    dispatch = SimpleNamespace(blocking=None, awaiting=None)
    """A result waits in one of these ways; this one never waits."""

    def send_canvas(self, canvas: Canvas[Any]) -> GroupResult[Any]:
        from cloudq.result import EagerGroupResult

        return EagerGroupResult(canvas.options.get("task_id") or new_id(), cast("CloudQ", self), [])

    async def asend_canvas(self, canvas: Canvas[Any]) -> GroupResult[Any]:
        return self.send_canvas(canvas)

    run_canvas_eagerly = send_canvas


class Header:
    """``chord(header)``, which waits for its body."""

    __slots__ = ("_group",)

    def __init__(self, members: Group[Any]) -> None:
        self._group = members

    def __call__(self, body: Canvas[S], **options: Unpack[CallOptions]) -> AsyncResult[S]:
        """Send the chord, Celery's way: ``chord(header)(body)``; returns the body's result."""
        return (self._group | body).apply_async(**options)


@overload
def chain(last: Canvas[R], /) -> Chain[R]: ...
@overload
def chain(first: Canvas[Any], last: Canvas[R], /) -> Chain[R]: ...
@overload
def chain(first: Canvas[Any], second: Canvas[Any], last: Canvas[R], /) -> Chain[R]: ...
@overload
def chain(first: Canvas[Any], second: Canvas[Any], third: Canvas[Any], last: Canvas[R], /) -> Chain[R]: ...
@overload
def chain(*steps: Canvas[Any]) -> Chain[Any]: ...
@overload
def chain(steps: Iterable[Canvas[Any]], /) -> Chain[Any]: ...
def chain(*steps: Any) -> Chain[Any]:
    """``chain(fetch.s(url), parse.s(), store.s())``, or of one iterable. ``fetch.s(url) | parse.s()`` is the same."""
    return Chain(_members(steps))


@overload
def group(*branches: Canvas[R]) -> Group[R]: ...
@overload
def group(branches: Iterable[Canvas[R]], /) -> Group[R]: ...
def group(*branches: Any) -> Group[Any]:
    """``group(thumb.s(size) for size in SIZES)``, or ``group(a.s(), b.s())``."""
    return Group(_members(branches))


@overload
def chord(header: Iterable[Canvas[Any]] | Group[Any]) -> Header: ...
@overload
def chord(header: Iterable[Canvas[Any]] | Group[Any], body: Canvas[S]) -> Chain[S]: ...
def chord(header: Iterable[Canvas[Any]] | Group[Any], body: Canvas[Any] | None = None) -> Any:
    """``body`` is called with the list of the header's results, once all are there; the same as ``group(...) | body``.

    ``chord(header)(body)`` sends it at once. It needs a store.
    """
    members: Group[Any] = header if isinstance(header, Group) else Group(header)
    return Header(members) if body is None else members | body


def _members(given: Sequence[Any]) -> Iterable[Any]:
    one: Any = given[0] if len(given) == 1 else None
    return one if hasattr(one, "__iter__") else given


def _parts(options: CallOptions) -> tuple[CallOptions, CallOptions, CallOptions, CallOptions]:
    """Options by whose they are: the first step's, the canvas's own, the links, each step's."""
    parts: tuple[dict[str, Any], ...] = ({}, {}, {}, {})
    for key, value in options.items():
        parts[0 if key in _FIRST else 1 if key in _WHOLE else 2 if key in _LINKS else 3][key] = value
    return cast("tuple[CallOptions, CallOptions, CallOptions, CallOptions]", parts)


def _linked(canvas: C, links: CallOptions) -> C:
    for callback in _several(links.get("link", ())):
        canvas.link(callback)
    for errback in _several(links.get("link_error", ())):
        canvas.link_error(errback)
    return canvas


def _several(value: Canvas[Any] | Sequence[Any]) -> Sequence[Any]:
    return [value] if isinstance(value, Canvas) else value


def _copied(canvas: C) -> C:
    """Another with the same parts: one signature may stand in many places, and what is added in one is not added in the others."""
    return canvas.set()


def _no_canvas(value: object, what: str) -> ArgumentsError:
    return ArgumentsError(f"{what} is made of signatures, such as add.s(2, 3), and not of a {type(value).__name__}", task="")
