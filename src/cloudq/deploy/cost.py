"""What a plan costs a month under a stated load: each line with its formula, from one dated file of list prices. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final, cast

from cloudq.deploy.gcp_terraform import cpu as whole_cpus
from cloudq.deploy.plan import ContainerPlan, FunctionPlan, Plan, QueuePlan
from cloudq.deploy.problems import nearest
from cloudq.deploy.settings import Settings
from cloudq.errors import ConfigError

MONTH: Final = 730 * 3600.0
"""Seconds of a month, as the providers reckon it: 730 hours."""

# What cloudq does, as its drivers and its worker do it.
RENEWALS: Final = 20.0
"""Seconds between two renewals of what runs: a third of a lease of 60 s."""
REPORTS: Final = 30.0
"""Seconds between two reports of a worker to a store that is paid by the write."""
DOCUMENT: Final = 1_000
"""Bytes of a task's document in the store, and of the claim that stands for a body in a bucket: one write unit."""
WRITES: Final = 2
"""Of a task's document: its claim and its end."""
CLOUD_TASKS: Final = 5
"""Operations for one delay: the task is made, three names are freed, and it is sent."""

# AWS, "Amazon SQS pricing": each 64 KB of a request count as one; SQS quotas: 10 messages and 1 MiB a request. Lambda begins with five
# pollers a queue (AWS, "Creating and configuring an Amazon SQS event source mapping"), which wait for 20 s.
_CHUNK: Final = 64 << 10
_SQS_BYTES: Final = 1 << 20
_SQS_BATCH: Final = 10
_POLL: Final = 20.0
_POLLERS: Final = 5
# Google Cloud, "Pub/Sub pricing": 1,000 bytes a request at least; quotas: 10 MB and 1,000 messages a publish; the driver pulls 100. "Cloud
# Run pricing": rounded up to 100 ms. "Cloud Tasks pricing": 32 KB an operation.
_PUBSUB_LEAST: Final = 1_000
_PUBSUB_BYTES: Final = 8_900_000
_PUBSUB_BATCH: Final = 1_000
_PUBSUB_PULL: Final = 100
_RUN_MS: Final = 100
_TASKS_CHUNK: Final = 32 << 10
_GIB: Final = 1 << 30

_BROKER: Final = {"aws": "SQS", "gcp": "Pub/Sub"}
_HOST: Final = {
    ("aws", "function"): "Lambda",
    ("aws", "container"): "ECS Fargate",
    ("gcp", "function"): "Cloud Run push",
    ("gcp", "container"): "worker pool",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What ``per`` units cost. ``free``: units a month that an account has for nothing. ``source``: the provider's page."""

    dollars: float
    per: float
    unit: str
    free: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """List prices of ``date``, by name."""

    date: str
    regions: Mapping[str, str]
    prices: Mapping[str, Price]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is run. ``tasks``: a month, by queue; ``fires``: a month, by schedule, which come on top."""

    tasks: Mapping[str, float]
    fires: Mapping[str, float]
    size: int = 1_000
    """Bytes of a message."""
    duration: float = 0.1
    """Seconds of a task."""
    together: int = 10
    """Messages that are sent, and so wait, at the same time: what batches are filled with."""
    results: bool = False
    """Whether each result is read, once."""
    delayed: float = 0.0
    """The share that waits for longer than the queue itself can: over 15 minutes on SQS, at all on Pub/Sub."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing that is paid for. ``on``: the queue, or nothing; ``price``: its name in the prices; ``free`` is taken off ``quantity``."""

    on: str
    what: str
    price: str
    unit: str
    quantity: float
    formula: str
    unit_price: float
    """Dollars for ``per`` units."""
    per: float
    free: float
    dollars: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A month. ``requests``: to the queues, also where they are not what is paid; ``notes``: what a reader must know of this one."""

    host: str
    lines: tuple[Line, ...]
    requests: float
    notes: tuple[str, ...]

    @property
    def dollars(self) -> float:
        return math.fsum(each.dollars for each in self.lines)


LEFT_OUT: Final = (
    "retries, failures and dead letters",
    "starts of functions and containers, and what scaling overshoots",
    "logs and metrics",
    "network: NAT, public addresses, transfer between zones and regions",
    "keys and secrets; clusters, images and their registry",
    "volume discounts, savings plans, tax",
)


def read_prices(text: str | None = None) -> Prices:
    """The prices that ship with cloudq, and over them those of ``text``, JSON of the same form. Raises ConfigError where it is none."""
    document: Any = json.loads(files("cloudq.deploy").joinpath("prices.json").read_text("utf-8"))
    known: dict[str, dict[str, Any]] = document["prices"]
    if text is not None:
        own = _own_prices(text)
        for name, given in own.get("prices", {}).items():
            if name not in known:
                raise ConfigError(f"prices: {name!r} is nothing that is paid for; {nearest(name, known)}")
            known[name] = _checked(name, known[name], given)
        document["date"] = own["date"]
        document["regions"] |= {key: str(value) for key, value in own.get("regions", {}).items()}
    return Prices(date=document["date"], regions=document["regions"], prices={name: Price(**each) for name, each in known.items()})


def _own_prices(text: str) -> dict[str, Any]:
    try:
        own: Any = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"prices: this is no JSON: {error}") from None
    known: dict[str, Any] = cast("dict[str, Any]", own) if isinstance(own, dict) else {}
    types = {"date": str, "regions": dict, "prices": dict}
    if "date" not in known or not all(key in types and isinstance(value, types[key]) for key, value in known.items()):
        raise ConfigError(
            'prices: write {"date": "2026-11-21", "prices": {"sqs.standard": {"dollars": 0.4}}}, with the date that they are of, '
            'and "regions": {"aws": "eu-west-1"} if they are of another'
        )
    return known


def _checked(name: str, known: Mapping[str, Any], given: Any) -> dict[str, Any]:
    made: dict[str, Any] = {**known, **(cast("dict[str, Any]", given) if isinstance(given, dict) else {"": given})}
    numbers = [made[key] for key in ("dollars", "per", "free")]
    good = all(isinstance(each, (int, float)) and not isinstance(each, bool) and 0 <= each < math.inf for each in numbers)
    if not good or made["per"] <= 0 or made.keys() != known.keys() or not all(isinstance(made[key], str) for key in ("unit", "source")):
        raise ConfigError(f'prices: {name} must be like {{"dollars": 0.4, "per": 1000000, "free": 0, "unit": "request", "source": "…"}}')
    return made


# ---------------------------------------------------------------------- formulas


@dataclass(frozen=True, slots=True)
class _Term:
    """A number that shows what it was made of."""

    value: float
    text: str

    def __mul__(self, other: _Term) -> _Term:
        return _Term(self.value * other.value, f"{self.text} × {other.text}")

    def __truediv__(self, other: _Term) -> _Term:
        return _Term(self.value / other.value, f"{self.text} ÷ {other.text}")


def _term(value: float, of: str = "") -> _Term:
    return _Term(value, f"{number(value)} {counted(value, of)}".rstrip())


def _sum(*terms: _Term) -> _Term:
    text = " + ".join(each.text for each in terms)
    return _Term(sum(each.value for each in terms), f"({text})" if len(terms) > 1 else text)


def _share(what: str, times: float, of: float) -> _Term:
    """``what`` so many times for ``of`` messages."""
    return _Term(times / of, f"{what} {number(times)}/{number(of)}")


def number(value: float) -> str:
    """A number for people: whole, or of five digits."""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 10_000 else f"{value:,.5g}"


def counted(value: float, several: str) -> str:
    """``several`` things, or one."""
    return several.removesuffix("s") if value == 1 and len(several) > 1 else several


@dataclass(frozen=True, slots=True, kw_only=True)
class _Use:
    """So much of what has a price; ``requests``: of it to queues."""

    price: str
    what: str
    amount: _Term
    on: str = ""
    requests: float = 0.0


# ---------------------------------------------------------------------- the whole


def cost_of(plan: Plan, settings: Settings, load: Load, prices: Prices, *, free: bool = False) -> Cost:
    """What ``plan`` costs a month under ``load``; ``free``: less what an account has for nothing, if it uses it for nothing else.

    Raises ConfigError where the plan cannot bear the load at all: a message that is too large, a task that outlasts its function.
    """
    notes: list[str] = []
    uses: list[_Use] = []
    if plan.provider == "local":
        notes.append("it runs on machines of your own, and nothing is paid by the request")
    else:
        uses = [*_uses(plan, settings, load, notes)]
    left = {_allowance(each): each.free for each in prices.prices.values() if each.free} if free else {}
    return Cost(
        host=host_of(plan),
        lines=tuple(_line(each, prices.prices[each.price], left) for each in uses if each.amount.value > 0),
        requests=math.fsum(each.requests for each in uses),
        notes=tuple(notes),
    )


def host_of(plan: Plan) -> str:
    """``SQS + Lambda``."""
    if plan.provider == "local":
        return "compose"
    kinds = {each.runs_on for each in plan.queues if each.runs_on != "none"}
    cluster = plan.target == "kubernetes"
    hosts = ["Kubernetes" if cluster else _HOST[plan.provider, kind] for kind in sorted(kinds, reverse=True)]
    return f"{_BROKER[plan.provider]} + {' and '.join(dict.fromkeys(hosts)) or 'workers of your own'}"


def _allowance(price: Price) -> tuple[str, str]:
    """What is free is free once: for standard and ordered queues together, for both architectures."""
    return price.source, price.unit


def _line(use: _Use, price: Price, left: dict[tuple[str, str], float]) -> Line:
    taken = min(left.get(_allowance(price), 0.0), use.amount.value) if price.free else 0.0
    if taken:
        left[_allowance(price)] -= taken
    return Line(
        on=use.on,
        what=use.what,
        price=use.price,
        unit=price.unit,
        quantity=use.amount.value,
        formula=use.amount.text,
        unit_price=price.dollars,
        per=price.per,
        free=taken,
        dollars=(use.amount.value - taken) * price.dollars / price.per,
    )


def _uses(plan: Plan, settings: Settings, load: Load, notes: list[str]) -> Iterator[_Use]:
    aws = plan.provider == "aws"
    limit = _SQS_BYTES if aws else _PUBSUB_BYTES
    if load.size > limit and plan.bodies is None:
        raise ConfigError(f"{_BROKER[plan.provider]} takes no message of {load.size:,} bytes; set bodies = true under [tool.cloudq]")
    wire = load.size if load.size <= limit else DOCUMENT
    ticks = _ticks(plan, load)
    for queue in plan.queues:
        tasks = load.tasks.get(queue.name, 0.0) + ticks.get(queue.name, 0.0)
        runs = _runs(plan, queue)
        if isinstance(runs, FunctionPlan) and load.duration > runs.timeout:
            raise ConfigError(
                f"tasks of {load.duration:g} s outlast the function of queue {queue.name!r}, which has {runs.timeout} s: "
                'give that queue runs_on = "container" or a longer timeout, or say a shorter --duration'
            )
        if isinstance(runs, FunctionPlan) and aws and tasks:
            fit = math.floor(runs.timeout / load.duration) * runs.concurrency if load.duration else math.inf
            if (gathered := _gathered(runs, tasks, load)) > fit:
                what = f"a call gathers {number(gathered)} tasks, of which {fit} fit into the {runs.timeout} s of its function"
                notes.append(f"queue {queue.name}: {what}; the rest is received again, which is not counted: set batch_size = {fit}")
        if isinstance(runs, ContainerPlan):
            needed = _workers(runs, tasks, load)
            if needed > runs.max_workers:
                notes.append(f"queue {queue.name} needs {number(needed)} workers for this load, and its max_workers is {runs.max_workers}")
            if plan.target == "kubernetes":
                pods = _term(needed, "pods").text
                notes.append(f"queue {queue.name} has {pods} of {runs.cpu:g} vCPU and {runs.memory} MB on nodes of yours, not counted")
        if runs is None and tasks:
            notes.append(f"what runs queue {queue.name} is yours, and not counted")
        yield from _sqs(queue, runs, tasks, wire, load) if aws else _pubsub(queue, runs, tasks, wire, load)
        yield from _computing(plan, settings, queue, runs, tasks, load)
        if plan.store is not None:
            yield from _stored(queue, runs, tasks, load, aws)
    total = _term(sum(load.tasks.values()) + sum(ticks.values()), "tasks")
    if plan.store is not None:
        yield from _kept(total, plan.store.result_expires, load, aws)
    yield from _timed(plan, load, wire, aws)
    if load.size > limit and plan.bodies is not None:
        place = "s3" if aws else "gcs"
        yield _Use(price=f"{place}.put", what="bodies left", amount=total)
        yield _Use(price=f"{place}.get", what="bodies collected", amount=total)
        stored = total * _gigabytes(load.size, aws) * _term(plan.bodies.days * 86_400 / MONTH, "months")
        yield _Use(price=f"{place}.storage", what="bodies kept", amount=stored)
    if aws:
        yield _Use(price="cloudwatch.alarm", what="alarms", amount=_term(len(plan.alarms), "alarms"))
    elif plan.alarms:
        notes.append("alerting policies of Cloud Monitoring are not counted")


def _runs(plan: Plan, queue: QueuePlan) -> FunctionPlan | ContainerPlan | None:
    several: tuple[FunctionPlan | ContainerPlan, ...] = (*plan.functions, *plan.containers)
    return next((each for each in several if each.queue == queue.name), None)


def _ticks(plan: Plan, load: Load) -> dict[str, float]:
    """Tasks a month that schedules lead to, by queue."""
    found: dict[str, float] = {}
    for schedule in plan.schedules:
        for step in schedule.steps:
            found[step.queue] = found.get(step.queue, 0.0) + load.fires.get(schedule.name, 0.0)
    return found


def _workers(runs: ContainerPlan, tasks: float, load: Load) -> float:
    """Containers that are busy on average, as many as there are at least."""
    return max(runs.min_workers, tasks * load.duration / runs.concurrency / MONTH)


def _gathered(runs: FunctionPlan, tasks: float, load: Load) -> float:
    """Messages in one call of a Lambda function: what is there at once, or comes within its window."""
    return min(runs.batch_size, max(load.together, tasks / MONTH * runs.batch_window))


# ---------------------------------------------------------------------- queues


def _sqs(queue: QueuePlan, runs: FunctionPlan | ContainerPlan | None, tasks: float, size: int, load: Load) -> Iterator[_Use]:
    price = "sqs.fifo" if queue.fifo else "sqs.standard"
    fits = max(1, _SQS_BYTES // max(size, 1))
    sent = min(load.together, _SQS_BATCH, fits)
    waiting = _gathered(runs, tasks, load) if isinstance(runs, FunctionPlan) else load.together
    got = min(waiting, runs.concurrency if isinstance(runs, ContainerPlan) else _SQS_BATCH, _SQS_BATCH, fits)

    def chunks(messages: float) -> int:
        return max(1, math.ceil(messages * size / _CHUNK))

    each = _sum(_share("send", chunks(sent), sent), _share("receive", chunks(got), got), _share("delete", 1, got))
    amount = _term(tasks, "tasks") * each
    yield _Use(price=price, what="requests", on=queue.name, amount=amount, requests=amount.value)
    if load.delayed:  # sent alone by the scheduler, early, and sent again for the rest of the time
        early = _sum(_share("send", chunks(1), 1), _share("receive", chunks(1), 1), _share("delete", 1, 1))
        amount = _term(tasks, "tasks") * _term(load.delayed, "delayed") * early
        yield _Use(price=price, what="requests of long delays", on=queue.name, amount=amount, requests=amount.value)
    if isinstance(runs, ContainerPlan) and load.duration >= RENEWALS:
        amount = _term(tasks, "tasks") * _term(math.floor(load.duration / RENEWALS), "renewals") / _term(got)
        yield _Use(price=price, what="leases renewed", on=queue.name, amount=amount, requests=amount.value)
    if runs is not None:
        pollers = _term(_POLLERS, "pollers of Lambda") if isinstance(runs, FunctionPlan) else _term(runs.min_workers, "workers")
        amount = pollers * _term(MONTH, "s") / _term(_POLL, "s")
        yield _Use(price=price, what="idle receives", on=queue.name, amount=amount, requests=amount.value)


def _pubsub(queue: QueuePlan, runs: FunctionPlan | ContainerPlan | None, tasks: float, size: int, load: Load) -> Iterator[_Use]:
    fits = max(1, _PUBSUB_BYTES // max(size, 1))
    sent = min(load.together, _PUBSUB_BATCH, fits)
    pushed = isinstance(runs, FunctionPlan)
    got = 1 if pushed else min(load.together, _PUBSUB_PULL, fits, 10 if runs is None else runs.concurrency)

    def weight(what: str, messages: int) -> _Term:
        """Bytes of a message's share of one request."""
        return _share(what, max(_PUBSUB_LEAST, messages * size), messages)

    count = _term(tasks, "tasks")
    amount = count * _sum(weight("publish", sent), weight("push" if pushed else "pull", got))
    requests = tasks / sent + tasks / got * (1 if pushed else 2)
    yield _Use(price="pubsub.throughput", what="bytes", on=queue.name, amount=amount, requests=requests)
    if load.delayed:  # Cloud Tasks publishes alone; what the line above has for it stays, so that this one is at most too much
        yield _Use(
            price="pubsub.throughput",
            what="bytes of delays",
            on=queue.name,
            amount=count * _term(load.delayed, "delayed") * weight("publish", 1),
            requests=tasks * load.delayed,
        )
    if isinstance(runs, ContainerPlan):
        pulls = _term(runs.min_workers, "workers") * _term(MONTH, "s") / _term(_POLL, "s")
        amount = pulls * _term(_PUBSUB_LEAST, "bytes")
        yield _Use(price="pubsub.throughput", what="idle pulls", on=queue.name, amount=amount, requests=pulls.value)


# ---------------------------------------------------------------------- what runs tasks


def _computing(
    plan: Plan, settings: Settings, queue: QueuePlan, runs: FunctionPlan | ContainerPlan | None, tasks: float, load: Load
) -> Iterator[_Use]:
    if runs is None or plan.target == "kubernetes":
        return
    count, memory = _term(tasks, "tasks"), _term(runs.memory / 1024, "GB" if plan.provider == "aws" else "GiB")
    if isinstance(runs, ContainerPlan):
        cores = runs.cpu if plan.provider == "aws" else whole_cpus(runs.cpu, runs.memory)
        workers, cpu = _term(_workers(runs, tasks, load), "workers"), _term(cores, "vCPU")
        if plan.provider == "aws":
            hours = _term(MONTH / 3600, "h")
            yield _Use(price=f"fargate.cpu.{settings.architecture}", what="CPU", on=queue.name, amount=workers * hours * cpu)
            yield _Use(price=f"fargate.memory.{settings.architecture}", what="memory", on=queue.name, amount=workers * hours * memory)
        else:
            yield _Use(price="workerpool.cpu", what="CPU", on=queue.name, amount=workers * _term(MONTH, "s") * cpu)
            yield _Use(price="workerpool.memory", what="memory", on=queue.name, amount=workers * _term(MONTH, "s") * memory)
    elif plan.provider == "aws":
        gathered = _gathered(runs, tasks, load)
        yield _Use(price="lambda.call", what="calls", on=queue.name, amount=count / _term(gathered, "a call"))
        seconds = count * _term(load.duration, "s") * memory
        at_once = min(runs.concurrency, gathered)
        amount = seconds if at_once == 1 else seconds / _term(at_once, "at once")
        yield _Use(price=f"lambda.{settings.architecture}", what="computing", on=queue.name, amount=amount)
    else:
        at_once = min(runs.concurrency, max(load.together, tasks * load.duration / MONTH))
        billed = math.ceil(round(load.duration * 1000) / _RUN_MS) * _RUN_MS / 1000
        busy = count * _term(billed, "s") / _term(at_once, "at once")
        yield _Use(price="run.request", what="pushes", on=queue.name, amount=count)
        yield _Use(price="run.cpu", what="CPU", on=queue.name, amount=busy * _term(whole_cpus(0.0, runs.memory), "vCPU"))
        yield _Use(price="run.memory", what="memory", on=queue.name, amount=busy * memory)


# ---------------------------------------------------------------------- what is beside them


def _stored(queue: QueuePlan, runs: FunctionPlan | ContainerPlan | None, tasks: float, load: Load, aws: bool) -> Iterator[_Use]:
    """Writes of the store for one queue. A Lambda function renews nothing: its queue hides messages for long enough."""
    price = "dynamodb.write" if aws else "firestore.write"
    renewed = 0 if aws and isinstance(runs, FunctionPlan) else math.floor(load.duration / RENEWALS)
    written = [_term(WRITES, "writes"), *([_term(renewed, "renewals")] if renewed else [])]
    yield _Use(price=price, what="claims and ends", on=queue.name, amount=_term(tasks, "tasks") * _sum(*written))
    if isinstance(runs, ContainerPlan):
        amount = _term(_workers(runs, tasks, load), "workers") * _term(MONTH, "s") / _term(REPORTS, "s")
        yield _Use(price=price, what="workers' reports", on=queue.name, amount=amount)


def _kept(tasks: _Term, expires: int, load: Load, aws: bool) -> Iterator[_Use]:
    name = "dynamodb" if aws else "firestore"
    if load.results:
        yield _Use(price=f"{name}.read", what="results read", amount=tasks)
    if not aws:  # DynamoDB asks nothing for what its TTL deletes
        yield _Use(price="firestore.delete", what="documents expired", amount=tasks)
    stored = tasks * _gigabytes(DOCUMENT, aws) * _term(expires / MONTH, "months")
    yield _Use(price=f"{name}.storage", what="documents kept", amount=stored)


def _gigabytes(size: int, aws: bool) -> _Term:
    return _term(size, "bytes") / (_term(1e9, "(GB)") if aws else _term(_GIB, "(GiB)"))


def _timed(plan: Plan, load: Load, size: int, aws: bool) -> Iterator[_Use]:
    delayed = _term(sum(load.tasks.values()), "tasks") * _term(load.delayed, "delayed")
    if aws:
        fires = _term(sum(load.fires.get(each.name, 0.0) for each in plan.schedules), "fires")
        yield _Use(price="eventbridge.scheduler", what="long delays", amount=delayed)
        yield _Use(price="eventbridge.scheduler", what="schedules", amount=fires)
    else:
        chunks = max(1, math.ceil(size / _TASKS_CHUNK))
        operations = _term(CLOUD_TASKS - 2 + 2 * chunks, "operations")
        yield _Use(price="cloudtasks.operation", what="delays", amount=delayed * operations)
        yield _Use(price="cloudscheduler.job", what="schedules", amount=_term(sum(len(each.parts) for each in plan.schedules), "jobs"))


def spread(given: Mapping[str | None, float], queues: Iterable[str]) -> dict[str, float]:
    """Tasks a month by queue; those given for none in particular (``None``) go in equal shares to the queues that are not named.

    Raises ConfigError for a queue that is not there.
    """
    known = [*queues]
    named = {name: tasks for name, tasks in given.items() if name is not None}
    for name in named:
        if name not in known:
            raise ConfigError(f"the app has no queue {name!r}: {nearest(name, known)}")
    rest = [name for name in known if name not in named]
    if None in given and not rest:
        raise ConfigError("each queue has its own number of tasks, and none is left for the one that names no queue: leave it out")
    return named | {name: given.get(None, 0.0) / len(rest) for name in rest}
