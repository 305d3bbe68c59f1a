"""What an app needs of a platform: plain data, made of the app and its settings. No limit is checked here; ``checks`` does."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, TypeAlias

from cloudq import claimcheck
from cloudq.adapters import Location
from cloudq.app import CloudQ
from cloudq.broker import Outgoing
from cloudq.deploy.providers import AWS, DAY, Provider, ProviderName, has_functions, provider_of
from cloudq.deploy.settings import RunsOn, Settings, Target
from cloudq.durations import seconds
from cloudq.errors import CannotExpress, CloudQError, ConfigError
from cloudq.recurring import Recurring
from cloudq.schedules import Cron
from cloudq.schedules.expressions import Expression
from cloudq.schedules.naming import cloud_scheduler_job, cloud_scheduler_note, cloud_scheduler_owner, eventbridge_note, eventbridge_schedule
from cloudq.task import Task

VERSION: Final = 1
"""Of the plan's JSON form."""

Action: TypeAlias = Literal[
    "send", "consume", "inspect", "use", "leave", "set", "sync", "pass", "encrypt", "decrypt", "write", "join", "read", "pull"
]
"""What a role may do. ``consume``: receive, renew and delete; ``use``: read and write; ``leave``: write only; ``set``: once; ``sync``: what
recurs; ``pass``: a role to the timer; ``write``: logs; ``join``: a network; ``read``: secrets; ``pull``: the containers' image."""
Purpose: TypeAlias = Literal["producer", "function", "worker", "execution", "scheduler", "operator"]
"""``execution``: what starts containers, where that is not what runs in them."""
AlarmKind: TypeAlias = Literal["age", "dead-letters", "throttles", "timer-depth", "timer-undelivered"]

DEAD_LETTERS: Final = "dead-letters of "
"""Before a queue's name, its dead-letter queue in a grant."""
UNDELIVERED: Final = f"{DEAD_LETTERS}the timer"
"""In a grant, the queue for what the timer could not send. No queue of AWS's, which alone has one, can be named so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """A task, as far as infrastructure depends on it. Times in seconds."""

    name: str
    queue: str
    timeout: float | None
    max_retries: int | None
    """``None``: without end."""
    longest_wait: float
    """Between two tries at most, as far as its policy says; 0 without retries."""
    needs_store: str | None
    """The option that cannot be kept without a store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetters:
    """A dead-letter queue. What it keeps is kept for the provider's longest."""

    name: str
    resource: str
    retention: int
    existing: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePlan:
    """A queue. ``resource`` is its whole name at the provider; ``visibility`` is Pub/Sub's ack deadline."""

    name: str
    resource: str
    fifo: bool
    retention: int
    visibility: int
    max_receives: int
    dead_letters: DeadLetters
    runs_on: RunsOn
    tasks: tuple[str, ...]
    sends_to: tuple[str, ...]
    """Queues that its tasks may send to, itself always: retries go there."""
    existing: str | None
    alarm_age: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionPlan:
    """A function (Lambda, a Cloud Run service that is pushed to) that runs one queue."""

    name: str
    queue: str
    memory: int
    timeout: int
    concurrency: int
    batch_size: int
    batch_window: int
    max_concurrency: int | None
    reserved_concurrency: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPlan:
    """Containers with ``cloudq worker`` for one queue, as many as its backlog asks for."""

    name: str
    queue: str
    memory: int
    cpu: float
    concurrency: int
    min_workers: int
    max_workers: int
    backlog_per_worker: int
    grace: int
    """Seconds from SIGTERM to the end: the longest time limit and ten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One expression of a schedule, as the provider reads it."""

    expression: str
    timezone: str
    name: str
    """Of what the provider keeps for it."""
    description: str
    """By which drivers know it, and what it belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A call that a schedule leads to: the first, or one of a chain after it."""

    task: str
    queue: str
    delay: float
    """Seconds that it waits once it is its turn."""
    group: str | None
    """Its ordering key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulePlan:
    """A schedule. Without ``parts`` and with ``refused`` the provider cannot keep it."""

    name: str
    task: str
    queue: str
    trigger: str
    catch_up: str
    parts: tuple[Part, ...]
    refused: str | None
    warnings: tuple[str, ...]
    """What may surprise in its trigger: fires that a change of clocks meets in the ten years to come, and uneven steps."""
    steps: tuple[Step, ...]
    """Its calls; the first goes to ``queue``."""
    body: str
    """Of the message that each fire sends, with ``<slot>`` where the instant goes that it is for."""
    group: str | None
    """The message's ordering key."""
    tenant: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlan:
    """A table or collection for results, claims, limits, pauses."""

    resource: str
    why: str
    result_expires: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerPlan:
    """A schedule group, or a Cloud Tasks queue: for what waits longer than the broker's delay, and for what recurs."""

    resource: str
    undelivered: str | None
    """The queue for what could not be sent, by its whole name; ``None``: it tries without end."""
    role: str
    """What sends for it: a role, or a service account."""
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BodiesPlan:
    """A bucket for large messages, which deletes them after ``days``."""

    resource: str
    days: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmPlan:
    """An alarm: ``on`` rises above ``above`` (seconds for ``age``, else a count)."""

    kind: AlarmKind
    on: str
    above: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What may be done with which things: queues by name, ``dead-letters of NAME``, and ``store``, ``bodies``, ``timer``,
    ``scheduler``, ``key``, ``logs``, ``network``, ``secrets``, ``image``."""

    action: Action
    on: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePlan:
    """Who may do what, and nothing else. ``name`` is unique in the app's stage."""

    name: str
    purpose: Purpose
    queue: str | None
    grants: tuple[Grant, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is to be there. Made by ``plan_of``; the same app and settings make an equal one."""

    version: int
    name: str
    stage: str
    target: Target
    provider: ProviderName
    reference: str | None
    """``module:attribute`` of the app."""
    prefix: str
    tasks: tuple[TaskPlan, ...]
    queues: tuple[QueuePlan, ...]
    functions: tuple[FunctionPlan, ...]
    containers: tuple[ContainerPlan, ...]
    schedules: tuple[SchedulePlan, ...]
    store: StorePlan | None
    timer: TimerPlan | None
    bodies: BodiesPlan | None
    alarms: tuple[AlarmPlan, ...]
    roles: tuple[RolePlan, ...]
    seams_in_code: tuple[tuple[str, str], ...]
    """Broker, store or timer that the code sets, which no environment can change: seam and scheme."""
    crash_cap: int
    secrets: tuple[str, ...]
    """What hosts read, by its name in the provider's secret manager."""
    image: str | None
    """The containers', where settings name one."""

    def document(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return asdict(self)

    def queue(self, name: str) -> QueuePlan:
        """The queue of that name."""
        return next(each for each in self.queues if each.name == name)


def plan_of(app: CloudQ, settings: Settings, *, target: Target, stage: str) -> Plan:
    """What ``app``, with its modules loaded, needs on ``target``. Raises ConfigError where no name can be made of the app's."""
    provider = provider_of(target, settings)
    name = _name(app, settings)
    prefix = f"{name}-{stage}-" if settings.prefix is None else settings.prefix
    schedules = tuple(_schedule(app, app.schedules[each], provider, f"{name}-{stage}") for each in sorted(app.schedules))
    tasks = tuple(_task(app, app.tasks[each]) for each in sorted(app.tasks))
    used = _used(app, settings, tasks, schedules)
    store = _store(app, settings, tasks, f"{name}-{stage}")
    queues = tuple(_queue(app, settings, each, used, tasks, provider, target, prefix, stored=store is not None) for each in used)
    functions = tuple(_function(settings, each, tasks, provider, stored=store is not None) for each in queues if each.runs_on == "function")
    containers = tuple(_container(settings, each, tasks) for each in queues if each.runs_on == "container")
    queues = tuple(_with_visibility(each, settings, functions, provider) for each in queues)
    timer = _timer(app, settings, tasks, queues, schedules, provider, f"{name}-{stage}")
    bodies = None
    if settings.bodies or (settings.bodies is None and (broker := _given(app, "broker")) is not None and "bodies" in broker.options):
        days = claimcheck.DELAY_DAYS + 2 * math.ceil(provider.retention[1] / DAY)
        bodies = BodiesPlan(resource=f"{name}-{stage}-bodies", days=days)
    return Plan(
        version=VERSION,
        name=name,
        stage=stage,
        target=target,
        provider=provider.name,
        reference=app.reference,
        prefix=prefix,
        tasks=tasks,
        queues=queues,
        functions=functions,
        containers=containers,
        schedules=schedules,
        store=store,
        timer=timer,
        bodies=bodies,
        alarms=tuple(_alarms(queues, functions, timer, provider)),
        roles=tuple(_roles(settings, target, queues, functions, store, timer, bodies, provider)),
        seams_in_code=tuple(
            (seam, given.partition(":")[0] if isinstance(given, str) else type(given).__name__)
            for seam, given in app.given.items()
            if given is not None
        ),
        crash_cap=app.conf.crash_cap,
        secrets=tuple(sorted(set(settings.secrets.values()))),
        image=settings.image,
    )


def _name(app: CloudQ, settings: Settings) -> str:
    name = settings.name or re.sub(r"[^a-z0-9]+", "-", app.name.lower()).strip("-")
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,29}", name):
        raise ConfigError(
            f"nothing can be named {name!r}, after the app {app.name!r}; set name under [tool.cloudq]: "
            "1 to 30 lower-case letters, digits and -, a letter first"
        )
    return name


def _task(app: CloudQ, task: Task[..., Any]) -> TaskPlan:
    settings, retry = task.settings, task.policy
    return TaskPlan(
        name=task.name,
        queue=settings.queue or app.conf.route(task.name) or app.conf.default_queue,
        timeout=settings.timeout or app.conf.timeout,
        max_retries=retry.max_retries,
        longest_wait=0.0 if retry.max_retries == 0 else seconds(retry.max_delay, "max_delay"),
        needs_store=settings.needs_store,
    )


def _schedule(app: CloudQ, each: Recurring, provider: Provider, timer: str) -> SchedulePlan:
    refused: str | None = None
    parts: list[Part] = []
    steps: Sequence[Mapping[str, Any]] = ()
    tick: Outgoing | None = None
    try:
        steps, tick = each.steps(app), each.schedule(app).message
        if provider.expressions is not None:
            found = provider.expressions(each.trigger)
            parts = [_part(app, each, provider, timer, expression, number, len(found)) for number, expression in enumerate(found, 1)]
    except CannotExpress as error:
        refused = str(error)
    except CloudQError as error:
        refused = f"its call cannot be made: {error}"
    calls = tuple(
        Step(task=step["task"], queue=step["queue"], delay=float(step.get("delay", 0.0)), group=step.get("group")) for step in _flat(steps)
    )
    return SchedulePlan(
        name=each.name,
        task=each.task,
        queue=calls[0].queue if calls else "",
        trigger=str(each.trigger),
        catch_up=each.catch_up,
        parts=tuple(parts),
        refused=refused,
        warnings=each.trigger.warnings() if isinstance(each.trigger, Cron) else (),
        steps=calls,
        body=tick.body if tick else "",
        group=tick.group if tick else None,
        tenant=tick.tenant if tick else None,
    )


def _part(app: CloudQ, each: Recurring, provider: Provider, timer: str, expression: Expression, number: int, of: int) -> Part:
    queue, trigger = each.queue(app), str(each.trigger)
    if provider.name == "gcp":
        owner = cloud_scheduler_owner(app.name, timer)
        name = cloud_scheduler_job(owner, each.name, number)
        description = cloud_scheduler_note(owner, each.name, queue, trigger, part=number, of=of)
    else:
        name = eventbridge_schedule(each.name, number)
        description = eventbridge_note(each.name, queue, trigger, part=number, of=of)
    return Part(expression=str(expression), timezone=expression.timezone, name=name, description=description)


def _flat(steps: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """The calls among steps, those of groups too."""
    for step in steps:
        if "members" in step:
            for member in step["members"]:
                yield from _flat(member)
        else:
            yield step


def _used(app: CloudQ, settings: Settings, tasks: Sequence[TaskPlan], schedules: Sequence[SchedulePlan]) -> tuple[str, ...]:
    """The queues that something goes to, and those that the app names; the default one counts only where settings or a call name it."""
    called = {each.queue for each in tasks} | {step.queue for each in schedules for step in each.steps}
    named = app.queues.keys() - ({app.conf.default_queue} - settings.queues.keys())
    return tuple(sorted(called | named))


def _queue(
    app: CloudQ,
    settings: Settings,
    name: str,
    used: Sequence[str],
    tasks: Sequence[TaskPlan],
    provider: Provider,
    target: Target,
    prefix: str,
    *,
    stored: bool,
) -> QueuePlan:
    own = settings.queue(name)
    fifo = name.endswith(".fifo") if own.fifo is None else own.fifo
    mine = [each for each in tasks if each.queue == name]
    dead = app.dead_letter_queue(name)
    sends_to = used if own.sends_to is None else {name, *own.sends_to}
    elsewhere = name if _ELSEWHERE.match(name) else None
    return QueuePlan(
        name=name,
        resource=_resource(prefix, name),
        fifo=fifo,
        retention=math.ceil(own.retention),
        visibility=0,  # known once the function is
        max_receives=own.max_receives or _max_receives(app, mine, fifo, stored, provider),
        dead_letters=DeadLetters(
            name=dead,
            resource=_resource(prefix, dead),
            retention=provider.retention[1],
            existing=own.existing_dead_letter or (dead if _ELSEWHERE.match(dead) else None),
        ),
        runs_on=own.runs_on or _runs_on(settings, target),
        tasks=tuple(each.name for each in mine),
        sends_to=tuple(sorted(sends_to)),
        existing=own.existing or elsewhere,
        alarm_age=_alarm_age(app, mine, fifo, own.retention, provider) if own.alarm_age is None else math.ceil(own.alarm_age),
    )


def _runs_on(settings: Settings, target: Target) -> RunsOn:
    """Where settings do not say. An app whose own target is Kubernetes has its workers there, beside queues that another target makes."""
    if not has_functions(target):
        return "container"
    return "none" if settings.target == "kubernetes" else "function"


def in_pods(settings: Settings, target: Target, queue: str) -> bool:
    """Whether it is Kubernetes that runs a queue which ``target`` makes."""
    return settings.target == "kubernetes" and has_functions(target) and settings.queue(queue).runs_on is None


_ELSEWHERE: Final = re.compile(r"arn:|https?://|projects/")
"""What a queue's name begins with where the code names it in full: it is there already."""


def _resource(prefix: str, name: str) -> str:
    """A queue's whole name, as the drivers make it."""
    return re.split(r"[/:]", name)[-1] if _ELSEWHERE.match(name) else prefix + name


def _max_receives(app: CloudQ, tasks: Sequence[TaskPlan], fifo: bool, stored: bool, provider: Provider) -> int:
    """Deliveries after which the provider gives up, as the last resort: cloudq itself gives up before, and says why."""
    cap, (_, most) = app.conf.crash_cap, provider.receives
    if provider.name == "gcp":
        return most  # a push that is refused counts like one that crashed
    if fifo and stored:
        return most  # runs are counted by the store, and what waits behind one that fails may be delivered each time with it
    retries = [each.max_retries for each in tasks] if fifo else []
    if None in retries:
        return most
    return min(2 * cap + max((each for each in retries if each is not None), default=0), most)


def _alarm_age(app: CloudQ, tasks: Sequence[TaskPlan], fifo: bool, retention: float, provider: Provider) -> int:
    """Beyond what a message reaches where all goes well, and where an alarm still helps: before it is too old to be kept.

    It grows older while its task runs, and on an ordered queue of SQS, where it keeps its place, between its retries.
    """
    longest = max((each.timeout or 0.0 for each in tasks), default=0.0)
    if fifo and provider.name == "aws":
        longest = max((_tries(app, each) for each in tasks), default=0.0)
    return int(min(max(LATE, longest + LATER), max(retention / 2, 1)))


def _tries(app: CloudQ, task: TaskPlan) -> float:
    """Seconds at most from the begin of a task's first run to the end of its last."""
    if task.max_retries is None:
        return math.inf
    policy, runs = app.tasks[task.name].policy, task.timeout or 0.0
    return runs + sum(policy.pause(retries, uniform=max) + runs for retries in range(min(task.max_retries, AWS.receives[1])))


def _with_visibility(queue: QueuePlan, settings: Settings, functions: Sequence[FunctionPlan], provider: Provider) -> QueuePlan:
    asked = settings.queue(queue.name).visibility
    if asked is not None:
        return replace(queue, visibility=math.ceil(asked))
    runs = next((each for each in functions if each.queue == queue.name), None)
    needed = provider.lease if runs is None else provider.visibility_factor * runs.timeout + runs.batch_window
    return replace(queue, visibility=min(max(needed, provider.lease), provider.visibility[1]))


LEAST_TIMEOUT: Final = 60
"""Seconds that a function has at least, unless settings say less."""
LATE: Final = 900
"""Seconds for which the oldest message may wait before an alarm rises, unless settings say otherwise."""
LATER: Final = 300
"""Seconds for which it may wait at least beside the longest task: a message that is being worked on grows older, too (SQS,
ApproximateAgeOfOldestMessage; Pub/Sub, oldest_unacked_message_age)."""
ROOM: Final = 10
"""Seconds that a host has beside its longest task's time limit: for its start, and for settling."""


def _longest(queue: str, tasks: Sequence[TaskPlan]) -> float:
    return max((each.timeout or 0.0 for each in tasks if each.queue == queue), default=0.0)


def _function(settings: Settings, queue: QueuePlan, tasks: Sequence[TaskPlan], provider: Provider, *, stored: bool) -> FunctionPlan:
    own = settings.queue(queue.name)
    room = max(ROOM, provider.task_margin)
    needed = min(max(LEAST_TIMEOUT, math.ceil(_longest(queue.name, tasks)) + room), provider.function_timeout[1])
    most = own.max_concurrency
    if most is None and own.reserved_concurrency is not None and provider.name == "aws":
        lowest, highest = provider.max_concurrency
        most = min(max(own.reserved_concurrency, lowest), highest)  # what an event source asks for beyond what is reserved is throttled
    return FunctionPlan(
        name=host_name(queue.resource),
        queue=queue.name,
        memory=own.memory,
        timeout=needed if own.timeout is None else math.ceil(own.timeout),
        concurrency=own.concurrency or (1 if provider.name == "aws" else 10),
        batch_size=own.batch_size or (1 if queue.fifo and not stored else 10),
        batch_window=math.ceil(own.batch_window),
        max_concurrency=most,
        reserved_concurrency=own.reserved_concurrency,
    )


def _container(settings: Settings, queue: QueuePlan, tasks: Sequence[TaskPlan]) -> ContainerPlan:
    own = settings.queue(queue.name)
    return ContainerPlan(
        name=host_name(queue.resource),
        queue=queue.name,
        memory=own.memory,
        cpu=own.cpu,
        concurrency=own.concurrency or 10,
        min_workers=own.min_workers,
        max_workers=own.max_workers,
        backlog_per_worker=own.backlog_per_worker,
        grace=max(30, math.ceil(_longest(queue.name, tasks))) + ROOM,
    )


def host_name(resource: str) -> str:
    """A function's, service's or role's name, after a queue's: lower-case letters, digits and ``-``."""
    return re.sub(r"[^a-z0-9-]+", "-", resource.lower()).strip("-")


def _given(app: CloudQ, seam: str) -> Location | None:
    """The URL of a seam in the code. Those in this process's environment say nothing of what is deployed."""
    given = app.given[seam]
    return Location.parse(given) if isinstance(given, str) and given else None


def _store(app: CloudQ, settings: Settings, tasks: Sequence[TaskPlan], resource: str) -> StorePlan | None:
    needing = next((each for each in tasks if each.needs_store is not None), None)
    if settings.store is False:
        return None
    if settings.store:
        why = "settings"
    elif needing is not None:
        why = f"{needing.needs_store} of the task {needing.name!r}"
    elif app.given["store"]:
        why = "the app has one"
    else:
        return None
    return StorePlan(resource=resource, why=why, result_expires=math.ceil(app.conf.result_expires))


def _timer(
    app: CloudQ,
    settings: Settings,
    tasks: Sequence[TaskPlan],
    queues: Sequence[QueuePlan],
    schedules: Sequence[SchedulePlan],
    provider: Provider,
    resource: str,
) -> TimerPlan | None:
    if settings.timer is False or provider.name == "local":
        return None
    ordered = {each.name for each in queues if each.fifo}
    why = ["settings"] if settings.timer else []
    if app.given["timer"]:
        why.append("the app has one")
    if schedules:
        why.append(f"{len(schedules)} schedule{'s' if len(schedules) > 1 else ''}")
    waits = [each for each in tasks if each.longest_wait > provider.delay and each.queue not in ordered]
    if waits:
        longest = max(waits, key=lambda each: each.longest_wait)
        why.append(f"retries of {longest.name!r} wait up to {longest.longest_wait:g} s")
    if provider.name == "gcp" and any(each.runs_on == "function" for each in queues) and not waits:
        why.append("a service that is pushed to holds nothing back itself")
    undelivered = f"{resource}-undelivered" if provider.name == "aws" else None
    return TimerPlan(resource=resource, undelivered=undelivered, role=f"{resource}-scheduler", why=tuple(why)) if why else None


def _key(settings: Settings, provider: Provider) -> str | None:
    """The key that encrypts what is created, where it is the user's own."""
    return {"aws": settings.aws.kms_key, "gcp": settings.gcp.kms_key, "local": None}[provider.name]


def _alarms(
    queues: Sequence[QueuePlan], functions: Sequence[FunctionPlan], timer: TimerPlan | None, provider: Provider
) -> Iterable[AlarmPlan]:
    if provider.name == "local":
        return
    for queue in queues:
        yield AlarmPlan(kind="age", on=queue.name, above=queue.alarm_age)
    for dead in dict.fromkeys(each.dead_letters.name for each in queues):
        yield AlarmPlan(kind="dead-letters", on=dead, above=0)
    for function in functions:
        yield AlarmPlan(kind="throttles", on=function.name, above=0)
    if timer is not None:  # Cloud Tasks has no dead letters, EventBridge Scheduler no depth
        yield (
            AlarmPlan(kind="timer-depth", on=timer.resource, above=1_000)
            if provider.name == "gcp"
            else AlarmPlan(kind="timer-undelivered", on=timer.resource, above=0)
        )


def _roles(
    settings: Settings,
    target: Target,
    queues: Sequence[QueuePlan],
    functions: Sequence[FunctionPlan],
    store: StorePlan | None,
    timer: TimerPlan | None,
    bodies: BodiesPlan | None,
    provider: Provider,
) -> Iterable[RolePlan]:
    """Least privilege for each that has a part: what its drivers' docstrings say that they need, and no more."""
    if provider.name == "local":
        return
    names = tuple(each.name for each in queues)
    keyed = _key(settings, provider) is not None
    joined: list[tuple[Action, Iterable[str]]] = [("join", ("network",))] if settings.aws.subnets and provider.name == "aws" else []

    def grants(*several: tuple[Action, Iterable[str]]) -> tuple[Grant, ...]:
        found = [Grant(action=action, on=tuple(on)) for action, on in several if tuple(on)]
        return tuple([*found, Grant(action="encrypt", on=("key",))] if keyed else found)

    shared: list[tuple[Action, Iterable[str]]] = [("use", [what for what, there in (("store", store), ("bodies", bodies)) if there])]
    later: list[tuple[Action, Iterable[str]]] = [("set", ("timer",)), ("pass", ("scheduler",))] if timer is not None else []
    calls: list[tuple[Action, Iterable[str]]] = [
        ("send", names),
        ("use", ["store"] if store else []),
        ("leave", ["bodies"] if bodies else []),
    ]
    secrets: list[tuple[Action, Iterable[str]]] = [("read", ("secrets",))] if settings.secrets else []
    yield RolePlan(name="producer", purpose="producer", queue=None, grants=grants(*calls, *later))
    for queue in queues:
        if queue.runs_on == "none" and not (provider.name == "gcp" and in_pods(settings, target, queue.name)):
            continue  # on AWS `cloudq iam` prints what a pod's role may do: its trust is the cluster's
        dead = f"{DEAD_LETTERS}{queue.name}"
        does: list[tuple[Action, Iterable[str]]] = [("consume", (queue.name,)), ("send", (*queue.sends_to, dead)), *shared, *later]
        if queue.runs_on == "function":
            function = next(each for each in functions if each.queue == queue.name)
            runs: list[tuple[Action, Iterable[str]]] = [*does, ("write", ("logs",)), *joined, *secrets]
            yield RolePlan(name=function.name, purpose="function", queue=queue.name, grants=grants(*runs))
        else:
            yield RolePlan(name=host_name(queue.resource), purpose="worker", queue=queue.name, grants=grants(*does, ("inspect", (dead,))))
    if target.startswith("aws") and any(each.runs_on == "container" for each in queues):
        # ECS tells what starts a container from what runs in it
        starts: list[tuple[Action, Iterable[str]]] = [("pull", ("image",)), ("write", ("logs",)), *secrets]
        if keyed and secrets:
            starts.append(("decrypt", ("key",)))
        found = tuple(Grant(action=action, on=tuple(on)) for action, on in starts)
        yield RolePlan(name="execution", purpose="execution", queue=None, grants=found)
    if timer is not None:
        yield RolePlan(
            name="scheduler",
            purpose="scheduler",
            queue=None,
            grants=grants(("send", (*names, *([UNDELIVERED] if timer.undelivered else [])))),
        )
    letters = [*(f"{DEAD_LETTERS}{each}" for each in names), *([UNDELIVERED] if timer is not None and timer.undelivered else [])]
    sync: list[tuple[Action, Iterable[str]]] = [("sync", ("timer",)), ("pass", ("scheduler",))] if timer is not None else []
    yield RolePlan(
        name="operator",
        purpose="operator",
        queue=None,
        grants=grants(("send", names), ("consume", (*names, *letters)), *shared, *sync),
    )
