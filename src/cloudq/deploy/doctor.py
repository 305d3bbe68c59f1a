"""Holds what is there against what a plan wants: each difference that matters with its consequence and its fix. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final, Literal, TypeAlias, cast

from cloudq.adapters import Location
from cloudq.deploy.observed import Function, Observed, Queue, Schedule, Source, Subscription, Unread
from cloudq.deploy.plan import DeadLetters, FunctionPlan, Part, Plan, QueuePlan, SchedulePlan
from cloudq.deploy.providers import PROVIDERS, Provider
from cloudq.deploy.settings import Settings, key_path
from cloudq.durations import text
from cloudq.errors import ConfigError

Level: TypeAlias = Literal["error", "warning", "note", "unread"]
LEVELS: Final[Sequence[Level]] = ("error", "warning", "note", "unread")
"""``error``: work is lost, runs twice or stops; ``warning``: it may, or it costs; ``note``: worth a look; ``unread``: not known."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be. Its texts may hold what others wrote, so whoever shows them escapes them."""

    level: Level
    where: str
    """What it is about: ``queue shop-prod-emails``."""
    what: str
    consequence: str
    fix: str

    def document(self) -> dict[str, str]:
        """The finding as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Words:
    """How a provider calls what all have."""

    hidden: str
    kept: str
    receives: str
    redrive: str
    fifo: str
    store: str
    timer: str


_WORDS: Final = {
    "aws": _Words(
        "VisibilityTimeout", "MessageRetentionPeriod", "maxReceiveCount", "RedrivePolicy", "FifoQueue", "table", "schedule group"
    ),
    "gcp": _Words(
        "ack deadline",
        "message retention",
        "max delivery attempts",
        "dead-letter policy",
        "message ordering",
        "collection",
        "Cloud Tasks queue",
    ),
}


def findings(plan: Plan, settings: Settings, observed: Observed) -> tuple[Finding, ...]:
    """Everything that is found, the worst first; empty where all is as planned. The plan must be one for a provider in the cloud."""
    provider = PROVIDERS[plan.provider]
    found = [
        *(each for queue in plan.queues for each in _queue(queue, plan, settings, observed, provider)),
        *(each for letters in _letters(plan) for each in _dead_letters(*letters, settings, observed, provider)),
        *(each for function in plan.functions for each in _function(function, plan, settings, observed)),
        *_store(plan, observed, provider),
        *_timer(plan, observed, provider),
        *(each for schedule in plan.schedules for each in _schedule(schedule, plan, observed, provider)),
        *_orphans(plan, observed),
        *_beside(plan, observed),
        *_bodies(plan, observed),
        *_unread(observed),
    ]
    return tuple(sorted(found, key=lambda each: LEVELS.index(each.level)))


def as_used(plan: Plan, settings: Settings, urls: Mapping[str, str]) -> tuple[Plan, Settings]:
    """The plan with the names that the URLs of ``broker``, ``store`` and ``timer`` lead to, for what was made by hand.

    What has no URL is left out, and so are the bucket, and Firestore. Raises ConfigError without a broker of the plan's provider.
    """
    broker, store, timer = (Location.parse(urls[seam]) if urls.get(seam) else None for seam in ("broker", "store", "timer"))
    schemes = {"aws": ("sqs", "dynamodb", "eventbridge"), "gcp": ("pubsub", None, "cloudtasks")}[plan.provider]
    if broker is None or broker.scheme != schemes[0]:
        raise ConfigError(
            f"the app's broker here is no {schemes[0]}://, and {plan.target} uses that: set CLOUDQ_BROKER as its hosts have it"
        )
    prefix = broker.options.get("prefix", "")

    def resource(each: QueuePlan | DeadLetters) -> str:
        return prefix + each.name if each.existing is None else each.resource

    queues = tuple(
        replace(each, resource=resource(each), dead_letters=replace(each.dead_letters, resource=resource(each.dead_letters)))
        for each in plan.queues
    )
    found = replace(plan, prefix=prefix, queues=queues, store=None, timer=None, bodies=None)
    if plan.store is not None and store is not None and store.scheme == schemes[1]:
        found = replace(found, store=replace(plan.store, resource=store.path))
    if plan.timer is not None and timer is not None and timer.scheme == schemes[2]:
        letters = re.split(r"[/:]", timer.options.get("dead_letter", ""))[-1] or None
        found = replace(found, timer=replace(plan.timer, resource=timer.path.rpartition("/")[2], undelivered=letters))
    if plan.provider == "gcp":
        return found, settings.model_copy(update={"gcp": settings.gcp.model_copy(update={"project": broker.host or settings.gcp.project})})
    return found, settings.model_copy(update={"aws": settings.aws.model_copy(update={"region": broker.host or settings.aws.region})})


_MAKE: Final = "apply what `cloudq deploy` writes"
_OR_NAMED: Final = f", or say under {key_path()} how it is named: prefix, name, existing"


# ---------------------------------------------------------------------- queues


def _queue(queue: QueuePlan, plan: Plan, settings: Settings, observed: Observed, provider: Provider) -> Iterable[Finding]:
    where, words = f"queue {queue.resource}", _WORDS[provider.name]
    if queue.resource in observed.topics and observed.topics[queue.resource] is None:
        yield Finding("error", where, "its topic is not there", "every call to it fails", _MAKE + _OR_NAMED)
    elif queue.existing is None and (topic := observed.topics.get(queue.resource)) is not None:
        yield from _key(where, topic.key, settings.gcp.kms_key)
    if queue.resource not in observed.queues:
        return
    seen = observed.queues[queue.resource]
    if seen is None:
        what, then = ("its subscription", "what is sent is lost") if provider.name == "gcp" else ("it", "every call to it fails")
        yield Finding("error", where, f"{what} is not there", then, _MAKE + _OR_NAMED)
        return
    if seen.fifo != queue.fifo and (queue.fifo or provider.name == "aws"):
        kept, then = ("no", "ordered calls run in any order, or are refused") if queue.fifo else ("an", "calls are refused")
        fix = f"make it anew with {words.fifo} {'on' if queue.fifo else 'off'}, or change fifo"
        yield Finding("error", where, f"it keeps {kept} order", then, fix)
    yield from _hidden(where, queue, seen, plan, observed, provider)
    if seen.retention < queue.retention:
        what = f"messages are kept for {text(seen.retention)}, and not for {text(queue.retention)}"
        yield Finding("warning", where, what, "after an outage that is longer they are gone", f"set its {words.kept} to {queue.retention}")
    elif plan.store is not None and seen.retention > max(plan.store.result_expires, queue.retention):
        what = f"messages are kept for {text(seen.retention)}, and the store forgets after {text(plan.store.result_expires)}"
        yield Finding("warning", where, what, "a late duplicate runs again", f"set its {words.kept} to {queue.retention}")
    if queue.existing is None:
        yield from _encryption(where, seen, settings, provider)
    yield from _redrive(where, queue, seen, plan, provider)
    if provider.name == "aws" and queue.runs_on != "none":
        yield from _sources(queue, plan, observed)
    if seen.subscription is not None:
        yield from _subscription(where, seen.subscription, _topic(queue.resource, queue.existing, settings))
        yield from _push(where, queue, seen.subscription, plan, settings)


def _hidden(where: str, queue: QueuePlan, seen: Queue, plan: Plan, observed: Observed, provider: Provider) -> Iterable[Finding]:
    """Whether messages are hidden for long enough."""
    word, hidden = _WORDS[provider.name].hidden, text(seen.visibility)
    function = next((each for each in plan.functions if each.queue == queue.name), None)
    if function is not None:
        live = observed.functions.get(function.name)
        takes = function.timeout if live is None else live.timeout
        window = max((each.window for each in observed.sources.get(queue.resource, ()) if each.function == function.name), default=0)
        needed = provider.visibility_factor * takes + window
        if seen.visibility < needed:
            what = f"messages are hidden for {hidden}, and a function of {text(takes)} needs {text(needed)}"
            then = "they come again while they are being worked on, run twice, and use up their deliveries"
            yield Finding("error", where, what, then, f"set its {word} to {needed} or more")
        return
    longest = max((each.timeout or 0 for each in plan.tasks if each.queue == queue.name), default=0)
    mine = queue.existing is None
    needed = min(queue.visibility if mine else int(longest), provider.visibility[1])
    if seen.visibility < needed:
        what = f"messages are hidden for {hidden}, and {'the plan says' if mine else 'its longest task has'} {text(needed)}"
        then = (
            "workers change it with a request for each receive"
            if provider.name == "gcp"
            else "cloudq's workers ask for a lease of their own, and whatever else receives gets messages again that are being worked on"
        )
        yield Finding("warning", where, what, then, f"set its {word} to {needed} or more")


def _redrive(where: str, queue: QueuePlan, seen: Queue, plan: Plan, provider: Provider) -> Iterable[Finding]:
    words, wanted = _WORDS[provider.name], queue.dead_letters.resource
    if seen.max_receives is None or seen.dead_letters is None:
        then = "a message that ends whatever receives it comes again until it is too old, and is then lost"
        fix = f"give it a {words.redrive} to {wanted} after {queue.max_receives} deliveries"
        yield Finding("error", where, f"it has no {words.redrive}", then, fix)
        return
    if seen.dead_letters != wanted:
        what = f"its dead letters go to {seen.dead_letters!r}, and not to {wanted!r}"
        fix = f"change its {words.redrive}, or name that queue as dead_letter= or existing_dead_letter"
        yield Finding("error", where, what, "`cloudq dlq` and the alarms do not see them", fix)
    needed = queue.max_receives if queue.fifo or provider.name == "gcp" else min(2 * plan.crash_cap, queue.max_receives)
    if seen.max_receives < needed:
        what = f"after {seen.max_receives} deliveries its messages are dead letters, and the plan has {queue.max_receives}"
        then = (
            "retries end too soon: here each is a delivery, also of those that wait behind"
            if queue.fifo and provider.name == "aws"
            else "pushes that are refused count, too: what is only delayed becomes a dead letter"
            if provider.name == "gcp"
            else f"the provider moves a message before cloudq could say why (crash_cap is {plan.crash_cap})"
        )
        yield Finding("warning", where, what, then, f"set its {words.receives} to {needed} or more")


def _encryption(where: str, seen: Queue, settings: Settings, provider: Provider) -> Iterable[Finding]:
    if provider.name != "aws":
        return
    if not seen.encrypted:
        then = "whoever gets at AWS's disks could read what lies there"
        yield Finding("warning", where, "it is not encrypted", then, "set its SqsManagedSseEnabled to true")
    elif (wanted := settings.aws.kms_key) is not None:
        yield from _key(where, seen.key, wanted)


def _key(where: str, key: str | None, wanted: str | None) -> Iterable[Finding]:
    if wanted is not None and (key or "").rpartition("/")[2] != wanted.rpartition("/")[2]:
        what = f"it is encrypted with {key or 'a key of the provider'}, and not with {wanted}"
        yield Finding("warning", where, what, "the key's policy and its log say nothing about it", f"set its key to {wanted}")


# ---------------------------------------------------------------------- dead letters


def _letters(plan: Plan) -> Iterable[tuple[DeadLetters, list[QueuePlan]]]:
    """Each dead-letter queue, with its sources."""
    found: dict[str, tuple[DeadLetters, list[QueuePlan]]] = {}
    for queue in plan.queues:
        found.setdefault(queue.dead_letters.resource, (queue.dead_letters, []))[1].append(queue)
    return found.values()


def _dead_letters(
    letters: DeadLetters, sources: list[QueuePlan], settings: Settings, observed: Observed, provider: Provider
) -> Iterable[Finding]:
    where, words, name = f"dead letters {letters.resource}", _WORDS[provider.name], letters.resource
    topic = observed.topics.get(name)
    if name in observed.topics and topic is None:
        yield Finding("error", where, "their topic is not there", "what has failed for good comes again and again", _MAKE + _OR_NAMED)
    elif topic is not None:
        yield from _key(where, topic.key, settings.gcp.kms_key if letters.existing is None else None)
        if topic.granted is False:
            yield _ungranted(where, "publish to their topic", "roles/pubsub.publisher on the topic")
    for queue in sources:
        found = observed.queues.get(queue.resource)
        if found is not None and found.dead_letters is not None and found.subscription is not None and found.subscription.granted is False:
            yield _ungranted(f"queue {queue.resource}", "acknowledge on its subscription", "roles/pubsub.subscriber on the subscription")
    if name not in observed.queues:
        return
    seen = observed.queues[name]
    if seen is None:
        gcp = provider.name == "gcp"
        what, then = (
            ("their topic has no subscription", "Pub/Sub throws them away")
            if gcp
            else ("their queue is not there", "what has failed for good comes again and again, and is lost in the end")
        )
        yield Finding("error", where, what, then, _MAKE + _OR_NAMED)
        return
    if provider.name == "aws" and seen.fifo != sources[0].fifo:
        what = f"{sources[0].resource!r} is {'' if sources[0].fifo else 'not '}ordered, and their queue is not of its kind"
        then = "AWS moves nothing there, and refuses what cloudq sends"
        yield Finding("error", where, what, then, "make it anew, and name it in the code")
    longest = max(each.retention if (found := observed.queues.get(each.resource)) is None else found.retention for each in sources)
    if seen.retention < longest and provider.name == "aws" and not seen.fifo:  # an ordered one counts from when they come
        what = f"they are kept for {text(seen.retention)}, and messages of their queues for {text(longest)}"
        then = "the age of a message goes on counting there: late ones are gone as they come"
        yield Finding("error", where, what, then, f"set its {words.kept} to {letters.retention}")
    elif letters.existing is None and seen.retention < letters.retention:
        what = f"they are kept for {text(seen.retention)}, and not for {text(letters.retention)}"
        yield Finding("warning", where, what, "there is less time to look at them", f"set its {words.kept} to {letters.retention}")
    if letters.existing is None:
        yield from _encryption(where, seen, settings, provider)
    if seen.subscription is not None:
        yield from _subscription(where, seen.subscription, _topic(name, letters.existing, settings))
        if seen.subscription.push is not None:
            yield Finding("error", where, "they are pushed", "`cloudq dlq` cannot read them", "take the push endpoint away")
    if seen.waiting:
        what = f"{seen.waiting} wait{'s' if seen.waiting == 1 else ''} there"
        fix = f"see why: cloudq dlq list {sources[0].name}"
        yield Finding("note", where, what, f"after {text(seen.retention)} they are gone", fix)


# ---------------------------------------------------------------------- Pub/Sub


def _topic(resource: str, existing: str | None, settings: Settings) -> str:
    return existing if existing is not None and existing.startswith("projects/") else f"projects/{settings.gcp.project}/topics/{resource}"


def _subscription(where: str, seen: Subscription, topic: str) -> Iterable[Finding]:
    if seen.detached or seen.topic != topic:
        what = "it is detached" if seen.detached else f"its subscription is one of {seen.topic}, and not of {topic}"
        yield Finding("error", where, what, "what is sent does not come there, and is lost", "delete the subscription, and make it anew")
    if seen.expires is not None:
        what = f"its subscription is deleted after {text(seen.expires)} without use"
        yield Finding("error", where, what, "what is sent after a quiet time is lost", "set its expiration period to never")
    if seen.filter:
        what = f"its subscription has the filter {seen.filter!r}"
        yield Finding("error", where, what, "messages that do not fit are thrown away", "make it anew without a filter")


def _push(where: str, queue: QueuePlan, seen: Subscription, plan: Plan, settings: Settings) -> Iterable[Finding]:
    """How a queue's messages get to what runs them."""
    if not seen.backoff:
        then = "a message that is refused comes again at once, over and over, and uses up its deliveries"
        yield Finding("warning", where, "its subscription has no retry policy", then, "set one of 10 to 600 seconds")
    if queue.runs_on == "function" and seen.push is None:
        yield Finding("error", where, "nothing pushes its messages", "no task of it runs", "give its subscription the service's address")
    elif queue.runs_on == "container" and seen.push is not None:
        what = f"its messages are pushed to {seen.push}"
        yield Finding("error", where, what, "Pub/Sub refuses to be pulled: its workers get nothing", "take the push endpoint away")
    function = next((each for each in plan.functions if each.queue == queue.name), None)
    if seen.push is None or function is None:
        return
    if not seen.push.startswith("https://"):
        what = f"its messages are pushed to {seen.push}, in the open"
        yield Finding("error", where, what, "whoever is between can read and change them", "push to the service's https address")
    if seen.account is None:
        then = "the service refuses them, or runs whatever anybody sends it"
        yield Finding("error", where, "its pushes carry no token", then, "give its push a service account, which may invoke the service")
    ours = f"{function.name}.{settings.gcp.project}.cloudq"
    if seen.audience is not None and _host(seen.audience) not in (_host(seen.push), ours):
        what = f"the tokens of its pushes are for {seen.audience}"
        then = f"the service refuses them, unless that is one of its audiences: it is not its address, and `cloudq deploy` names it {ours}"
        yield Finding("warning", where, what, then, f"set the audience to https://{ours}, and give the service CLOUDQ_PUSH_AUDIENCE")


def _host(url: str) -> str:
    return url.split("/")[2] if url.count("/") >= 2 else url


def _ungranted(where: str, may_not: str, role: str) -> Finding:
    what = f"Pub/Sub's service agent may not {may_not}, as far as the policy there says"
    then = "the dead-letter policy does nothing: a message that cannot be handled comes again until it is too old, and is lost"
    fix = f"give service-PROJECT_NUMBER@gcp-sa-pubsub.iam.gserviceaccount.com {role}, if the project does not already"
    return Finding("warning", where, what, then, fix)


# ---------------------------------------------------------------------- functions


def _function(function: FunctionPlan, plan: Plan, settings: Settings, observed: Observed) -> Iterable[Finding]:
    if function.name not in observed.functions:
        return
    where, seen = f"function {function.name}", observed.functions[function.name]
    if seen is None:
        fix = f'{_MAKE}, or set runs_on = "none" in {key_path("queues", function.queue)} where you run workers yourself'
        yield Finding("error", where, "it is not there", "no task of its queue runs", fix)
        return
    if seen.state not in ("Active", "Pending", "Inactive"):  # Inactive: idle for weeks, and woken by the next message
        yield Finding("error", where, f"its state is {seen.state}", "it is not called", "see why: aws lambda get-function-configuration")
    margin = PROVIDERS[plan.provider].task_margin
    longest = max((each for each in plan.tasks if each.queue == function.queue), key=lambda each: each.timeout or 0, default=None)
    if longest is not None and (longest.timeout or 0) + margin > seen.timeout:
        what = f"it has {text(seen.timeout)}, and the task {longest.name!r} may take {text(longest.timeout or 0)}"
        then = "such a task is ended as if it had crashed, and is a dead letter after a few deliveries"
        yield Finding("error", where, what, then, f"set its Timeout to {function.timeout}")
    yield from _runtime(where, seen, settings)
    if seen.reserved is not None and seen.reserved < (asked := max(5, _most(function, plan, observed))):
        what = f"{seen.reserved} of it may run at once, and its event source asks for up to {asked}"
        then = "no task of its queue runs" if seen.reserved == 0 else "it is throttled, and throttled messages use up their deliveries"
        fix = "take its reserved concurrency away, and set MaximumConcurrency of the event source instead"
        yield Finding("error", where, what, then, fix)
    if seen.loops == "Terminate":
        then = "after 16 rounds of one chain of retries or calls AWS drops the message"
        yield Finding("error", where, "its RecursiveLoop is Terminate, and its tasks send tasks", then, "set it to Allow")
    yield from _environment(where, plan, settings, seen)


def _most(function: FunctionPlan, plan: Plan, observed: Observed) -> int:
    sources = observed.sources.get(plan.queue(function.queue).resource, ())
    return max((each.max_concurrency or 0 for each in sources if each.function == function.name), default=0)


def _runtime(where: str, seen: Function, settings: Settings) -> Iterable[Finding]:
    wanted = f"python{settings.python}"
    if seen.runtime is None:
        return
    version = re.fullmatch(r"python3\.(\d+)", seen.runtime)
    if version is None or int(version[1]) < 11:
        what = f"its runtime is {seen.runtime}"
        yield Finding("error", where, what, "cloudq needs Python 3.11, and AWS retires what is older", f"set it to {wanted}")
    elif seen.runtime != wanted:
        what = f"its runtime is {seen.runtime}, and packages are built for {wanted}"
        yield Finding("error", where, what, "what is compiled in the package cannot be loaded", f"set it to {wanted}, or change python")
    if seen.architecture != settings.architecture:
        what = f"it runs on {seen.architecture}, and packages are built for {settings.architecture}"
        then = "what is compiled in the package cannot be loaded"
        yield Finding("error", where, what, then, f"set it to {settings.architecture}, or change architecture")


def _environment(where: str, plan: Plan, settings: Settings, seen: Function) -> Iterable[Finding]:
    """Its variables. Their values are not shown: some are secrets."""
    wanted = [
        ("CLOUDQ_APP", "", plan.reference or "", "it does not start, or runs another app"),
        ("CLOUDQ_BROKER", "sqs", plan.prefix, "what its tasks send goes nowhere, or elsewhere"),
    ]
    if plan.store is not None:
        wanted.append(("CLOUDQ_STORE", "dynamodb", plan.store.resource, "results, claims and limits are kept nowhere, or elsewhere"))
    if plan.timer is not None:
        wanted.append(("CLOUDQ_TIMER", "eventbridge", plan.timer.resource, "long delays are refused, or wait elsewhere"))
    for name, scheme, place, then in wanted:
        there = seen.environment.get(name)
        if there is None or not (_leads(there, scheme, place) if scheme else there == place):
            what = f"{name} is {'not set' if there is None else 'not as planned'}"
            yield Finding("error", where, what, then, _MAKE)
    handed = seen.environment.keys() | _named(seen.environment.get("CLOUDQ_SECRETS", ""))
    if missing := settings.secrets.keys() - handed:
        what = f"it is handed no {', '.join(sorted(missing))}, which {key_path('secrets')} names"
        yield Finding("error", where, what, "tasks that need it fail", _MAKE)
    for name, value in settings.environment.items():
        if seen.environment.get(name) != value:
            what = f"{name} is {'not set' if name not in seen.environment else 'another than in ' + key_path('environment')}"
            yield Finding("warning", where, what, "tasks run with other settings than those in the code's repository", _MAKE)


def _named(secrets: str) -> frozenset[str]:
    """The variables in CLOUDQ_SECRETS, by which the handler reads secrets (cloudq_aws.secrets)."""
    found = _read(secrets)
    return frozenset(cast("dict[str, object]", found)) if isinstance(found, dict) else frozenset()


def _leads(url: str, scheme: str, name: str) -> bool:
    """Whether an adapter URL leads to the queues with that prefix, to that table or that group."""
    try:
        location = Location.parse(url)
    except ConfigError:
        return False
    return location.scheme == scheme and name == (location.options.get("prefix", "") if scheme == "sqs" else location.path)


def _sources(queue: QueuePlan, plan: Plan, observed: Observed) -> Iterable[Finding]:
    """What Lambda does with the queue."""
    if queue.resource not in observed.sources:
        return
    where, sources = f"queue {queue.resource}", observed.sources[queue.resource]
    function = next((each for each in plan.functions if each.queue == queue.name), None)
    mine = [each for each in sources if function is not None and each.function == function.name]
    for other in (each for each in sources if each not in mine and each.state not in _OFF):
        what = f"the function {other.function} takes its messages, too"
        yield Finding("error", where, what, "each message goes to one of the two", "delete that event source mapping")
    if function is None or observed.functions.get(function.name, True) is None:
        return
    if not mine:
        what = f"no event source mapping gives its messages to {function.name}"
        yield Finding("error", where, what, "no task of it runs", _MAKE)
    for source in mine:
        yield from _source(f"event source of {function.name}", source, function)


_OFF: Final = frozenset({"Disabled", "Disabling", "Deleting"})


def _source(where: str, source: Source, function: FunctionPlan) -> Iterable[Finding]:
    if source.state in _OFF:
        yield Finding("error", where, f"it is {source.state.lower()}", "no task of its queue runs", "enable it")
    if not source.partial:
        then = "one task that fails brings its whole batch back, and those that were done run again"
        fix = "set its FunctionResponseTypes to ReportBatchItemFailures"
        yield Finding("error", where, "it does not report failures one by one", then, fix)
    if source.filtered:
        yield Finding("error", where, "it has a filter", "messages that do not fit are deleted", "take its FilterCriteria away")
    if source.batch_size > 10 and source.window < 1:
        what = f"it takes {source.batch_size} messages at once without a window"
        yield Finding("error", where, what, "AWS gathers no more than 10", "set its MaximumBatchingWindowInSeconds to 1 or more")
    elif source.batch_size > function.batch_size:
        what = f"it takes {source.batch_size} messages at once, and the plan says {function.batch_size}"
        then = (
            "what waits behind a message that fails comes back with it, and uses up its attempts"
            if function.batch_size == 1
            else "what does not fit into the function's time comes again, and uses up its deliveries"
        )
        yield Finding("warning", where, what, then, f"set its BatchSize to {function.batch_size}")
    if function.max_concurrency is not None and source.max_concurrency != function.max_concurrency:
        what = f"its MaximumConcurrency is {source.max_concurrency or 'not set'}, and the plan says {function.max_concurrency}"
        yield Finding("warning", where, what, "more of it run at once than you want, or fewer", f"set it to {function.max_concurrency}")


# ---------------------------------------------------------------------- store, timer, bodies


def _store(plan: Plan, observed: Observed, provider: Provider) -> Iterable[Finding]:
    if plan.store is None or plan.store.resource not in observed.stores:
        return
    where, seen = f"{_WORDS[provider.name].store} {plan.store.resource}", observed.stores[plan.store.resource]
    if seen is None:
        yield Finding("error", where, "it is not there", "no result is kept, and tasks that claim do not run", _MAKE + _OR_NAMED)
        return
    if seen.state not in ("ACTIVE", "UPDATING"):
        yield Finding("error", where, f"its state is {seen.state}", "it may not answer", "wait, or look at it in the console")
    if seen.keys is not None and seen.keys != _KEYS:
        what = f"its keys are {', '.join(f'{name} ({kind})' for kind, name in seen.keys.items())}"
        yield Finding("error", where, what, "the store can use no such table", "make it anew with pk (HASH) and sk (RANGE), both strings")
    wanted = "ttl" if provider.name == "aws" else "expires"
    if seen.ttl is not None and seen.ttl != wanted:
        what = f"its TTL is by {seen.ttl!r}" if seen.ttl else "its TTL is off"
        then = "results are never deleted, and what they cost grows"
        yield Finding("warning", where, what, then, f"switch its TTL on, by the attribute {wanted}")


_KEYS: Final = {"HASH": "pk S", "RANGE": "sk S"}


def _timer(plan: Plan, observed: Observed, provider: Provider) -> Iterable[Finding]:
    timer = plan.timer
    if timer is None:
        return
    where = f"{_WORDS[provider.name].timer} {timer.resource}"
    if timer.resource in observed.timers:
        seen = observed.timers[timer.resource]
        if seen is None:
            then = "long delays are refused" + (", and schedules do not fire" if provider.name == "aws" else "")
            yield Finding("error", where, "it is not there", then, _MAKE + _OR_NAMED)
        elif seen.state not in ("ACTIVE", "RUNNING"):
            fix = "wait" if provider.name == "aws" else "resume it: gcloud tasks queues resume"
            yield Finding("error", where, f"it is {seen.state.lower()}", "what waits there is not sent", fix)
        elif seen.attempts is not None:
            what = f"it gives up after {seen.attempts} tries"
            yield Finding("warning", where, what, "what could not be sent by then is lost: it has no dead letters", "set maxAttempts to -1")
    if timer.undelivered is None or timer.undelivered not in observed.queues:
        return
    where, letters = f"queue {timer.undelivered}", observed.queues[timer.undelivered]
    if letters is None:
        yield Finding("error", where, "it is not there", "what EventBridge Scheduler could not send is lost", _MAKE)
    elif letters.waiting:
        what = f"EventBridge Scheduler could not send {letters.waiting} message{'s' if letters.waiting > 1 else ''}"
        fix = "see why by cloudq dlq list with the queue's ARN, and send it back by cloudq dlq redrive"
        yield Finding("warning", where, what, "what was due has not run", fix)


def _bodies(plan: Plan, observed: Observed) -> Iterable[Finding]:
    if plan.bodies is None or plan.bodies.resource not in observed.buckets:
        return
    where, seen, days = f"bucket {plan.bodies.resource}", observed.buckets[plan.bodies.resource], plan.bodies.days
    if seen is None:
        yield Finding("error", where, "it is not there", "large messages cannot be sent", _MAKE)
    elif seen.days is None:
        fix = f"give it a lifecycle rule that deletes after {days} days"
        yield Finding("warning", where, "nothing deletes what is in it", "what it costs grows", fix)
    elif seen.days < days:
        what = f"it deletes after {seen.days} days, and messages may refer to what is in it for {days}"
        yield Finding("error", where, what, "such a message is a dead letter that nobody can read", f"set its rule to {days} days")


# ---------------------------------------------------------------------- schedules


def _schedule(schedule: SchedulePlan, plan: Plan, observed: Observed, provider: Provider) -> Iterable[Finding]:
    if plan.timer is None or observed.schedules is None:
        return
    if provider.name == "aws" and observed.timers.get(plan.timer.resource, True) is None:  # they went with their group
        return
    where, sync = f"schedule {schedule.name}", "cloudq schedule sync, or " + _MAKE
    seen = [(part, observed.schedules.get(part.name)) for part in schedule.parts]
    missing = [part.expression for part, there in seen if there is None]
    if missing:
        what = "it is not there" if len(missing) == len(seen) else f"a part of it is not there: {', '.join(missing)}"
        yield Finding("error", where, what, f"it does not fire ({schedule.trigger})", sync)
    there = [(part, found) for part, found in seen if found is not None]
    differs = dict.fromkeys(each for part, found in there for each in _differs(schedule, part, found, plan))
    if differs:
        what = f"its {' and its '.join(differs)} {'is' if len(differs) == 1 else 'are'} not as declared"
        yield Finding("error", where, what, "it fires at other times, or something else", sync)
    if any(not found.enabled for _, found in there):
        fix = f"cloudq schedule resume {schedule.name}"
        yield Finding("warning", where, "it is paused", "it does not fire", fix)
    if provider.name == "aws" and any(found.undelivered != (plan.timer.undelivered or "") for _, found in there):
        what = f"it does not leave what could not be sent in {plan.timer.undelivered!r}"
        yield Finding("warning", where, what, "a fire that cannot be sent is lost, and nobody is told", sync)


def _differs(schedule: SchedulePlan, part: Part, seen: Schedule, plan: Plan) -> Iterable[str]:
    if seen.expression != part.expression:
        yield "expression"
    if seen.timezone != part.timezone:
        yield "time zone"
    if seen.queue != plan.queue(schedule.queue).resource:
        yield "queue"
    if _read(seen.body) != _read(schedule.body):
        yield "message"
    if seen.group != (schedule.group or schedule.tenant):
        yield "group"


def _read(body: str) -> object:
    try:
        return json.loads(body)
    except ValueError:
        return body


def _orphans(plan: Plan, observed: Observed) -> Iterable[Finding]:
    declared = {part.name for schedule in plan.schedules for part in schedule.parts}
    for name in sorted((observed.schedules or {}).keys() - declared):
        then = "what it sends is no schedule of the app, and becomes a dead letter"
        yield Finding("warning", f"schedule {name}", "it is there, and the code declares none of its name", then, "cloudq schedule sync")


def _beside(plan: Plan, observed: Observed) -> Iterable[Finding]:
    """Queues of an older plan, as a name that was changed leaves them; or another app's, whose name begins like this one's."""
    for name, waiting in sorted(observed.beside.items()):
        waits = "1 message waits there" if waiting == 1 else f"{waiting} messages wait there"
        what, own = f"it begins as the app's queues do, and is not in the plan; {waits}", name.removeprefix(plan.prefix)
        fix = f"if it was the app's, run it dry (cloudq worker --queues {own} --drain), and delete it with what is there for it"
        then = "nothing that is planned works it off" if waiting else "a function that still polls it costs requests"
        yield Finding("warning" if waiting else "note", f"queue {name}", what, then, fix)


# ---------------------------------------------------------------------- what is not known


def _unread(observed: Observed) -> Iterable[Finding]:
    """One finding for what could not be read for the same reason, but for the name."""
    told: dict[tuple[str, str], list[Unread]] = {}
    for each in sorted(observed.unread, key=lambda each: (each.part, each.name)):  # whichever answer came first
        told.setdefault((each.part, each.why.replace(each.name, "")), []).append(each)
    for (part, _), several in told.items():
        names = ", ".join(dict.fromkeys(each.name for each in several if each.name))
        then = f"whether it is right{' for ' * bool(names)}{names} is not known"
        yield Finding("unread", part, f"could not be read: {several[0].why}", then, "do what it says, and ask again")
