"""Turns a call into a message: checks arguments and options, picks the queue, encodes. Pure but for the id and the time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, cast

from cloudq.broker import Outgoing
from cloudq.bulk import Addressed, Bulk
from cloudq.durations import seconds
from cloudq.errors import ArgumentsError, DelayError
from cloudq.message import MAX_ID, VERSION, Message, check_nesting, decode, encode_call, new_id, new_ids, parse
from cloudq.request import current
from cloudq.signature import NO_OPTIONS, CallOptions, Canvas, Signature, refuse_unknown
from cloudq.values import dumps

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.task import Task

NO_FIELDS: Final[Mapping[str, Any]] = {}
NOTHING: Final = object()
"""No value goes before a call's arguments."""


@dataclass(slots=True, eq=False, repr=False)
class Prepared:
    """A call that is ready to be sent."""

    id: str
    queue: str
    outgoing: Outgoing
    message: Message | None
    """``None`` for a bare call, which is encoded without building one; ``message_of`` makes it."""
    task: Task[..., Any] | None
    after_commit: bool = False


def prepare(
    app: CloudQ,
    name: str,
    task: Task[..., Any] | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: CallOptions | None,
    *,
    fields: Mapping[str, Any] = NO_FIELDS,
    each: bool = False,
) -> Prepared:
    """Build the message of a call; ``fields`` are further ones of it, and with ``each`` ``args`` are lists of arguments.

    Raises ArgumentsError, MessageTooLarge, DelayError or SendError before anything is sent."""
    more = fields
    if each:
        json_args, json_kwargs = _each(name, task, args), dict[str, Any]()
    elif task is not None:
        json_args, json_kwargs = task.codec.encode(args, kwargs)
    else:
        json_args, json_kwargs = list(args), dict(kwargs)
    queue = queue_of(app, name, task, options)
    now = app.clock.time()
    hooks = app.hooks
    bare = not options and not json_kwargs and not more and not each
    if bare and task is not None and task.is_plain and not hooks.before_send and current.get() is None:
        id = new_id()
        body = encode_call(id, task.name_json, encoded(json_args, name) if json_args else "[]", now)
        outgoing = Outgoing(body=body)
        if len(body) > app.broker.limits.body:
            app.sender.check(outgoing, what=f"task {name!r}")
        return Prepared(id, queue, outgoing, None, task)

    options = options or NO_OPTIONS
    refuse_unknown(options, name)
    id = _id(options, name)
    fields = {"v": VERSION, "id": id, "task": name, "args": json_args}
    if each:
        fields["each"] = True
    if json_kwargs:
        fields["kwargs"] = json_kwargs
    fields["sent"] = round(now, 3)
    _lineage(fields)
    delay = _delay(options, now, name)
    _times(fields, options, task, now, name)
    _carried(fields, options, app)
    fields.update(more)
    check_nesting(fields, name)
    message = held_until(app, Message(fields), delay)
    for hook in hooks.before_send:
        message = hook(message, queue)
    encoded(message.fields, name)
    outgoing = outgoing_of(message, delay=delay)
    app.sender.check(outgoing, what=f"task {name!r}")
    return Prepared(id, queue, outgoing, message, task, after_commit=options.get("after_commit", False))


def prepare_signature(app: CloudQ, signature: Signature[Any]) -> Prepared:
    """``prepare`` for a call as a value."""
    name, options = signature.task, signature.options or None
    return prepare(app, name, app.tasks.get(name), signature.args, signature.kwargs, options, each=signature.each)


def prepare_many(app: CloudQ, signatures: Iterable[Signature[Any]], *, bare: bool) -> Bulk:
    """Build the messages of many calls; with ``bare`` those that hold no more than arguments have no object of their own, else each is
    Prepared. Raises as ``prepare`` does."""
    bulk, bare = Bulk(), bare and not app.hooks.before_send and current.get() is None
    add, time, largest, ids = bulk.add_bare, app.clock.time, app.broker.limits.body, new_ids()
    known: dict[str, tuple[Task[..., Any], str] | None] = {}
    for signature in signatures:
        name = signature.task
        if name not in known:
            task = app.tasks.get(name)
            known[name] = (task, queue_of(app, name, task, None)) if bare and task is not None and task.is_plain else None
        found = known[name]
        if found is None or signature.options or signature.kwargs or signature.each:
            bulk.add(prepare_signature(app, signature))
            continue
        task, queue = found
        args, _ = task.codec.encode(signature.args, NO_FIELDS)
        id = next(ids)
        body = encode_call(id, task.name_json, encoded(args, name) if args else "[]", time())
        if len(body) > largest:
            app.sender.check(Outgoing(body=body), what=f"task {name!r}")
        add(id, queue, body)
    return bulk


def is_waited_for(app: CloudQ, prepared: Prepared) -> bool:
    """Whether the call waits in the timer, and its end, should it be revoked there, is to be told to others."""
    message = prepared.message
    return (
        message is not None
        and _is_held(app, message, prepared.outgoing.delay)
        and (message.has_follow_ups or bool(message.link_error) or message.flow is not None)
    )


def prepared_of(app: CloudQ, entry: Addressed) -> Prepared:
    """An entry of a bulk, with its task."""
    if isinstance(entry, Prepared):
        return entry
    return Prepared(entry.id, entry.queue, entry.outgoing, None, app.tasks.get(parse(entry.outgoing.body)["task"]))


def message_of(entry: Addressed) -> Message:
    """The message of a call that is ready to be sent."""
    made = entry.message if isinstance(entry, Prepared) else None
    return made or decode(parse(entry.outgoing.body))


def outgoing_of(message: Message, *, delay: float = 0.0) -> Outgoing:
    """A message as the broker gets it."""
    return Outgoing(
        body=message.encode(),
        delay=delay,
        group=message.group,
        dedup=message.dedup_id() if message.group is not None else None,
        tenant=message.tenant,
    )


def queue_of(app: CloudQ, name: str, task: Task[..., Any] | None, options: CallOptions | None) -> str:
    """The call's own queue, else the task's, else the route's, else the default."""
    if options and (queue := options.get("queue")):
        return queue
    if task is not None and task.settings.queue is not None:
        return task.settings.queue
    return app.conf.route(name) or app.conf.default_queue


def signature_json(app: CloudQ, signature: Signature[Any]) -> dict[str, Any]:
    """A signature as it travels inside a message: arguments encoded, options in seconds, the queue decided."""
    task = app.tasks.get(signature.task)
    kwargs: dict[str, Any]
    if signature.each:
        args, kwargs = _each(signature.task, task, signature.args), {}
    elif task is None:
        args, kwargs = list(signature.args), dict(signature.kwargs)
    elif signature.immutable:
        args, kwargs = task.codec.encode(signature.args, signature.kwargs)
    else:
        args, kwargs = task.codec.encode_partial(signature.args, signature.kwargs)
    options = signature.options
    refused = options.keys() & {"eta", "after_commit"}
    if refused or isinstance(options.get("expires"), datetime):
        refused = refused or {"expires= as a datetime (give a duration)"}
        raise ArgumentsError(f"the signature of {signature.task!r} cannot be linked with {', '.join(sorted(refused))}", task=signature.task)
    fields: dict[str, Any] = {"task": signature.task, "queue": queue_of(app, signature.task, task, options)}
    if args:
        fields["args"] = args
    if kwargs:
        fields["kwargs"] = kwargs
    if signature.immutable:
        fields["immutable"] = True
    if signature.each:
        fields["each"] = True
    if "task_id" in options:
        fields["id"] = _id(options, signature.task)
    if delay := _delay(options, 0.0, signature.task):
        fields["delay"] = delay
        app.sender.check(Outgoing(body="", delay=delay, group=options.get("ordering_key")), what=f"the link to {signature.task!r}")
    timed: dict[str, Any] = {}
    _times(timed, options, task, 0.0, signature.task)
    fields.update(timed)  # "expires" is relative here: it counts from when the call is sent
    _carried(fields, options, app)
    return fields


def steps_of(app: CloudQ, canvas: Canvas[Any], *, now: bool = False) -> list[dict[str, Any]]:
    """A canvas as steps; with ``now`` those at its front, which start at once, are left to be checked as calls of their own."""
    own = {"id": _id(canvas.options, repr(canvas))} if "task_id" in canvas.options else {}
    if isinstance(canvas, Signature):
        if not now:
            return [signature_json(app, canvas)]
        return [{"signature": canvas, "delay": _delay(canvas.options, app.clock.time(), canvas.task), **own}]
    from cloudq.workflow import Chain, Group

    if isinstance(canvas, Chain):
        steps = [step for at, part in enumerate(canvas.steps) for step in steps_of(app, part, now=now and at == 0)]
        steps[-1] |= own
        return steps
    assert isinstance(canvas, Group)
    members = cast("Sequence[Canvas[Any]]", canvas.branches)
    return [{"members": [steps_of(app, branch, now=now) for branch in members], **own}]


def link_json(app: CloudQ, canvas: Canvas[Any]) -> dict[str, Any]:
    """A canvas as one step, with what follows it in ``next``: how a message carries it as its link."""
    first, *rest = steps_of(app, canvas)
    return {**first, "next": rest} if rest else dict(first)


def link_steps(link: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps of a link."""
    first = {key: value for key, value in link.items() if key != "next"}
    return [first, *link.get("next", ())]


def linked_message(
    app: CloudQ,
    link: Mapping[str, Any],
    *,
    id: str,
    parent: Message,
    value: Any = NOTHING,
    fields: Mapping[str, Any] = NO_FIELDS,
) -> Prepared:
    """The call that a link makes. ``value`` goes before the link's own arguments; ``fields`` are further ones of the message."""
    more = fields
    now, name = app.clock.time(), link["task"]
    args = [*([] if link.get("immutable") or value is NOTHING else [value]), *link.get("args", ())]
    fields = {
        "v": VERSION,
        "id": id,
        "task": name,
        "args": args,
        "sent": round(now, 3),
        "root": parent.root,
        "parent": parent.id,
    }
    for key in ("kwargs", "timeout", "group", "tenant", "ignore_result", "headers", "each", "link", "link_error"):
        if key in link:
            fields[key] = link[key]
    if "headers" not in link and parent.headers:
        fields["headers"] = parent.headers  # a trace goes on
    fields.update(more)
    if "expires" in link:
        fields["expires"] = round(now + link["expires"], 3)
    task, delay = app.tasks.get(name), float(link.get("delay", 0.0))
    message = held_until(app, Message(fields), delay)
    return Prepared(id, link.get("queue") or queue_of(app, name, task, None), outgoing_of(message, delay=delay), message, task)


def held_until(app: CloudQ, message: Message, delay: float) -> Message:
    """The message with its ``eta``, where the broker cannot hold it for ``delay`` seconds: timers are set early, and the runner waits."""
    return message.copy(eta=round(app.clock.time() + delay, 3)) if _is_held(app, message, delay) else message


def _is_held(app: CloudQ, message: Message, delay: float) -> bool:
    """Whether others than the broker hold it until it is due."""
    limits = app.broker.limits
    return delay > limits.delay or (delay > 0 and message.group is not None and not limits.ordered_delay)


# ---------------------------------------------------------------------------------------------------------------------


def encoded(value: Any, name: str) -> str:
    """The JSON text of what a call of the task ``name`` carries; raises ArgumentsError where it has none."""
    try:
        return dumps(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise ArgumentsError(
            f"task {name!r}: the call cannot travel as JSON: {error}. "
            "Send plain values, or register the task in this process: its type hints encode others",
            task=name,
        ) from error


def _carried(fields: dict[str, Any], options: CallOptions, app: CloudQ) -> None:
    """The options that a message or a linked signature takes along as they are."""
    if headers := options.get("headers"):
        fields["headers"] = dict(headers)
    for option, key, kind in (("ordering_key", "group", str), ("tenant", "tenant", str), ("ignore_result", "ignore_result", bool)):
        value: object = options.get(option)
        if isinstance(value, kind):
            fields[key] = value
        elif value is not None:
            name = fields["task"]
            raise ArgumentsError(f"task {name!r}: {option}= takes a {kind.__name__}, not {value!r:.100}", task=name)
    for key in ("link", "link_error"):
        if key in options:
            linked = cast("Mapping[str, Any]", options)[key]
            try:
                fields[key] = [link_json(app, each) for each in _several(linked)]
            except RecursionError:
                name = fields["task"]
                raise ArgumentsError(f"{key} of task {name!r}: links are nested too deeply, or in themselves", task=name) from None


def _id(options: CallOptions, name: str) -> str:
    id = cast("object", options.get("task_id"))
    if id is None:
        return new_id()
    if not isinstance(id, str) or not id.isascii() or not id.isprintable() or " " in id or not 0 < len(id) <= MAX_ID:
        raise ArgumentsError(f"task {name!r}: task_id must be 1 to {MAX_ID} printable ASCII characters without spaces", task=name)
    return id


def _lineage(fields: dict[str, Any]) -> None:
    run = current.get()
    if run is not None and run.message is not None:
        fields["root"], fields["parent"] = run.message.root, run.message.id


def _delay(options: CallOptions, now: float, name: str) -> float:
    given = [key for key in ("delay", "countdown", "eta") if options.get(key) is not None]
    if not given:
        return 0.0
    if len(given) > 1:
        raise DelayError(f"task {name!r}: give one of {', '.join(given)}, not {len(given)}")
    if given == ["eta"]:
        return max(0.0, _instant(options.get("eta"), "eta", name) - now)
    try:
        return seconds(cast("Any", options)[given[0]], given[0])
    except (ValueError, TypeError) as error:
        raise DelayError(f"task {name!r}: {error}") from error


def _times(fields: dict[str, Any], options: CallOptions, task: Task[..., Any] | None, now: float, name: str) -> None:
    expires = options.get("expires", task.settings.expires if task is not None else None)
    if "timeout" in options and "time_limit" in options:
        raise ArgumentsError(f"task {name!r}: timeout and time_limit are the same; give one", task=name)
    limit = options.get("timeout", options.get("time_limit"))
    try:
        if isinstance(expires, datetime):
            fields["expires"] = round(_instant(expires, "expires", name), 3)
        elif expires is not None:
            fields["expires"] = round(now + seconds(expires, "expires"), 3)
        if limit is not None:
            fields["timeout"] = seconds(limit, "timeout")
    except (ValueError, TypeError) as error:
        raise ArgumentsError(f"task {name!r}: {error}", task=name) from error


def _instant(value: object, what: str, name: str) -> float:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise DelayError(f"task {name!r}: {what} must be a datetime with a time zone, as datetime.now(UTC) + timedelta(…)")
    return value.timestamp()


def _several(value: Canvas[Any] | Sequence[Canvas[Any]]) -> Sequence[Canvas[Any]]:
    return [value] if isinstance(value, Canvas) else value


def _each(name: str, task: Task[..., Any] | None, items: Sequence[Any]) -> list[Any]:
    """The arguments of each call in one run."""
    for item in items:
        if not isinstance(item, (list, tuple)):
            raise ArgumentsError(f"task {name!r}: starmap and chunks take lists of arguments, not a {type(item).__name__}", task=name)
    return [list(item) if task is None else task.codec.encode(item, {})[0] for item in items]
