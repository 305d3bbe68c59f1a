"""``cloudq graph``: a workflow as a tree, of a canvas in code or of one that is under way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Final, cast

import typer
from rich.text import Text
from rich.tree import Tree

from cloudq import graph as graphs
from cloudq import states
from cloudq.app import CloudQ
from cloudq.cli.calling import STYLES
from cloudq.cli.exits import FAILED
from cloudq.cli.output import emit, out, put, say, short
from cloudq.cli.state import state_of
from cloudq.errors import ConfigError
from cloudq.graph import Node
from cloudq.loading import load_object
from cloudq.signature import Canvas

_REFERENCE: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_SHOWN: Final = 50
"""Lines for the members of one group at most."""


def graph(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="ID|MODULE:CANVAS", help="The id of a workflow's result, or a canvas in code.")],
    id: Annotated[str | None, typer.Option("--id", help="With a canvas: the states of the call that has this id.")] = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Answer as a Mermaid flowchart.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Show what a workflow is made of, and how far it has come.

    An id needs a store, and shows what has begun; of what comes later only what a group is followed by is known. With the canvas that
    was called, too, all of it is shown. Exits with 1 where nothing is known of the id.

    [dim]cloudq graph shop.flows:nightly[/]
    [dim]cloudq graph 6f0c2b7e…[/]
    [dim]cloudq graph shop.flows:nightly --id 6f0c2b7e…[/]
    """
    if id is not None and not _REFERENCE.fullmatch(what):
        raise typer.BadParameter("it goes with a canvas, as in shop.flows:nightly", param_hint="--id")
    app = state_of(context).load()
    node = _of_canvas(app, what, id) if _REFERENCE.fullmatch(what) else _of_id(app, what)
    if node is None:
        say(f"nothing is known of {what}: never sent, not recorded, or expired", "yellow")
        raise typer.Exit(FAILED)
    if as_json:
        emit(node.as_json())
    elif mermaid:
        put(graphs.mermaid(node))
    else:
        out().print(_tree(node))


def _of_canvas(app: CloudQ, reference: str, id: str | None) -> Node:
    found = load_object(reference)
    if not isinstance(found, Canvas):
        raise ConfigError(f"{reference} is a {type(found).__name__}, and no chain, group, chord or signature")
    node = graphs.of_canvas(cast("Any", found), id)
    if id is None:
        return node
    app.required_store("the states of a workflow")
    return app.use_store(lambda store: graphs.look(store, node))


def _of_id(app: CloudQ, id: str) -> Node | None:
    app.required_store("the states of a workflow")
    return app.use_store(lambda store: graphs.of_id(store, id))


def _tree(node: Node) -> Tree:
    tree = Tree(_label(node, 1), guide_style="dim")
    _grow(tree, node)
    return tree


def _grow(tree: Tree, node: Node) -> None:
    lines = [*graphs.alike(node.parts)] if node.kind == "group" else [(part, 1) for part in node.parts]
    for part, times in lines[:_SHOWN]:
        _grow(tree.add(_label(part, times)), part)
    if more := sum(times for _, times in lines[_SHOWN:]):
        tree.add(Text(f"… {more:,} more", "dim"))


def _label(node: Node, times: int) -> Text:
    return Text.assemble(*_words(node, times))


def _words(node: Node, times: int) -> Iterator[Any]:
    yield (node.name, "bold") if node.kind == "task" else node.kind
    if node.kind == "group":
        yield (f" of {len(node.parts):,}", "dim")
    if times > 1:
        yield f" × {times:,}"
    if node.state is not None:
        yield (f"  {node.state}", STYLES.get(node.state, "dim" if node.state == states.PENDING else "bold"))
    if times == 1 and node.id is not None and node.kind != "chain":
        yield (f"  {node.id}", "dim")
    if node.reason is not None and node.kind == "task":
        yield (f"  {short(node.reason, 120)}", "red")
