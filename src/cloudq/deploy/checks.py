"""Holds a plan against what its provider allows, and says everything that is wrong with it at once, each with its fix."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from cloudq.deploy import aws_checks, gcp_checks
from cloudq.deploy.plan import FunctionPlan, Plan, QueuePlan, SchedulePlan, TaskPlan, host_name, in_pods
from cloudq.deploy.problems import Problem, nearest
from cloudq.deploy.providers import PROVIDERS, Provider, has_functions
from cloudq.deploy.settings import Settings, key_path
from cloudq.durations import text


def check(plan: Plan, settings: Settings) -> tuple[Problem, ...]:
    """Every problem, errors first; empty where there is none."""
    provider = PROVIDERS[plan.provider]
    found = [
        *_whole(plan, settings, provider),
        *_names(plan, provider),
        *(problem for task in plan.tasks for problem in _task(task, plan, provider)),
        *(problem for queue in plan.queues for problem in _queue(queue, plan, settings, provider)),
        *(problem for function in plan.functions for problem in _function(function, plan, provider)),
        *(problem for schedule in plan.schedules for problem in _schedule(schedule, plan, provider)),
        *_environment(plan, settings),
        *(aws_checks.account(plan, settings) if plan.provider == "aws" else ()),
        *(aws_checks.check(plan, settings) if plan.target.startswith("aws") else ()),
        *(gcp_checks.check(plan, settings) if plan.target == "gcp-terraform" else ()),
    ]
    return tuple(sorted(dict.fromkeys(found), key=lambda each: each.level != "error"))


# ---------------------------------------------------------------------- the whole


def _whole(plan: Plan, settings: Settings, provider: Provider) -> Iterable[Problem]:
    if plan.reference is None:
        yield Problem(
            "the app", "it has no module:attribute by which a host could load it", 'set app = "shop.tasks:app" under [tool.cloudq]'
        )
    for name in sorted(settings.queues.keys() - {each.name for each in plan.queues}):
        yield Problem(key_path("queues", name), "the app has no such queue", nearest(name, [each.name for each in plan.queues]))
    for name, count in Counter(each.name for each in plan.tasks).items():
        if count > 1:
            yield Problem(f"task {name}", f"{count} tasks have this name, and a message could mean any of them", "give each a name=…")
    for seam, kind in plan.seams_in_code:
        variable = f"CLOUDQ_{seam.upper()}"
        what = f"the code sets the {seam} ({kind}), and then {variable}, which deployed hosts are given, counts for nothing"
        yield Problem("the app", what, f"leave {seam}= out of CloudQ(…), and set {variable} where you need it")
    for task in plan.tasks:
        if task.needs_store is not None and plan.store is None:
            yield Problem(f"task {task.name}", f"its {task.needs_store} needs a store, and there is to be none", "take store = false away")
    if provider.name == "aws" and plan.target in ("aws-terraform", "kubernetes") and settings.aws.region is None:
        yield Problem(key_path("aws", "region"), "it is not set", 'write region = "eu-west-1"')
    if plan.target == "kubernetes":
        yield from _whole_kubernetes(settings, provider)
    if plan.target == "compose" and plan.bodies is not None:
        what = "compose has no bucket, so a message over 1 MiB is refused there"
        yield Problem(key_path("bodies"), what, "try large messages in a cloud", "warning")
    if settings.image is not None and not re.fullmatch(r"[a-z0-9][A-Za-z0-9._/:@-]*", settings.image):
        yield Problem(key_path("image"), "no image has this name", 'write one like "registry.example.com/shop:1.2.3"')
    if provider.name == "gcp":
        if not settings.gcp.project:
            yield Problem(key_path("gcp", "project"), "it is not set", 'write project = "my-project"')
        if not settings.gcp.region:
            yield Problem(key_path("gcp", "region"), "it is not set", 'write region = "europe-west1"')
        pattern = r"projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+"
        if settings.gcp.kms_key and not re.fullmatch(pattern, settings.gcp.kms_key):
            yield Problem(key_path("gcp", "kms_key"), "this names no key", "write projects/P/locations/L/keyRings/R/cryptoKeys/K")
    if settings.alarms_topic is None and provider.name != "local" and plan.target != "kubernetes":
        yield Problem(key_path("alarms_topic"), "alarms are made, and tell nobody", "name the topic that wakes somebody", "warning")


def _whole_kubernetes(settings: Settings, provider: Provider) -> Iterable[Problem]:
    if settings.image is None:
        what = "it is not set, and a cluster pulls its images from a registry"
        yield Problem(key_path("image"), what, 'write image = "registry.example.com/shop:1.2.3"')
    if provider.name == "aws" and settings.aws.account is None:
        what = "it is not set, and manifests name queues and roles in full"
        yield Problem(key_path("aws", "account"), what, 'write account = "123456789012"')


# ---------------------------------------------------------------------- names


def _names(plan: Plan, provider: Provider) -> Iterable[Problem]:
    seen: dict[str, str] = {}
    taken = {"producer", "operator", "scheduler", "execution", "" if plan.timer is None else plan.timer.role}
    if provider.name == "aws" and plan.containers:
        taken.add(f"{plan.name}-{plan.stage}-execution")  # the role that starts them
    whose = "a role"
    if plan.target == "compose":
        taken, whose = {"queues", "schedules"}, "another service"
    for queue in plan.queues:
        for what, name, existing in (
            (f"queue {queue.name}", queue.resource, queue.existing),
            (f"queue {queue.name}", queue.dead_letters.resource, queue.dead_letters.existing),
        ):
            if existing is None and not re.fullmatch(provider.queue_name, name):
                fix = f"use another name, or a shorter {key_path('prefix')}"
                yield Problem(what, f"no queue can be named {name!r}: a name is {provider.queue_name_rule}", fix)
            if plan.timer is not None and name == plan.timer.undelivered:
                yield Problem(what, f"{name!r} is where the timer leaves what it could not send", "rename it, or its dead_letter=")
        if queue.runs_on == "none":
            continue
        host = host_name(queue.resource)
        longest = min(provider.host_name, 63) if plan.target == "kubernetes" else provider.host_name  # of a label's value
        if not host or len(host) > longest:
            what = f"what runs it would be named {host!r}, and a name has 1 to {longest} characters"
            yield Problem(f"queue {queue.name}", what, f"use a shorter name, or a shorter {key_path('prefix')}")
        if host and host in taken:
            yield Problem(f"queue {queue.name}", f"what runs it would be named {host!r}, which is the name of {whose}", "rename it")
        if (other := seen.setdefault(host, queue.name)) != queue.name:
            yield Problem(
                f"queue {queue.name}", f"what runs it would be named {host!r}, like that of the queue {other}", "rename one of them"
            )
    consumed = {each.name for each in plan.queues}
    sources = Counter(each.dead_letters.name for each in plan.queues)
    for queue in plan.queues:
        if (dead := queue.dead_letters.name) in consumed:
            yield Problem(
                f"queue {queue.name}", f"its dead letters go to {dead!r}, which is worked off like any queue", "name another dead_letter="
            )
        if provider.name == "aws" and sources[dead] > 10:
            what = f"its dead-letter queue {dead!r} has {sources[dead]} sources, and SQS allows 10 by name"
            yield Problem(f"queue {queue.name}", what, "give some of them another dead_letter=")


# ---------------------------------------------------------------------- tasks and what runs them


def _task(task: TaskPlan, plan: Plan, provider: Provider) -> Iterable[Problem]:
    where, queue = f"task {task.name}", plan.queue(task.queue)
    function = next((each for each in plan.functions if each.queue == task.queue), None)
    container = f'set runs_on = "container" in {key_path("queues", task.queue)}'
    if function is not None:
        most = provider.function_timeout[1] - provider.task_margin
        if task.timeout is None:
            left = function.timeout - provider.task_margin
            what = f"it has no time limit, and its function ends it after {text(left)} as if it had crashed"
            yield Problem(where, what, f"give it a timeout=, or {container}", "warning")
        elif task.timeout > most:
            yield Problem(where, f"its time limit of {text(task.timeout)} is over the {text(most)} of a function", container)
        elif task.timeout > function.timeout - provider.task_margin:
            what = f"its time limit of {text(task.timeout)} does not fit its function, which has {text(function.timeout)}"
            fix = f"set timeout = {int(task.timeout) + max(provider.task_margin, 1) + 1} or more in {key_path('queues', task.queue)}"
            yield Problem(where, what, fix)
    elif queue.runs_on == "container" and provider.name == "aws" and (task.timeout or 0) > provider.visibility[1]:
        what = f"its time limit of {text(task.timeout or 0)} is over the 12 hours that SQS lets anybody hold a message"
        yield Problem(where, what, "cut the work into tasks that follow each other")


def _queue(queue: QueuePlan, plan: Plan, settings: Settings, provider: Provider) -> Iterable[Problem]:
    where, own = key_path("queues", queue.name), settings.queue(queue.name)
    if queue.runs_on == "none" and not in_pods(settings, plan.target, queue.name):
        told = f"{len(queue.tasks)} tasks go there" if queue.tasks else "the app's calls may go there"
        yield Problem(
            f"queue {queue.name}", f"nobody consumes it: {told}", f"set runs_on in {where}, unless you run workers yourself", "warning"
        )
    elif not queue.tasks and not any(step.queue == queue.name for each in plan.schedules for step in each.steps):
        yield Problem(
            f"queue {queue.name}", "it is consumed, and no task goes there by itself", "take it out, unless calls name it", "warning"
        )
    if queue.runs_on == "function" and not has_functions(plan.target):
        yield Problem(where, f"{plan.target} has no functions", 'set runs_on = "container"')
    for name in sorted(set(queue.sends_to) - {each.name for each in plan.queues}):
        yield Problem(
            f"{where}.sends_to", f"nobody consumes {name!r}: the app has no such queue", nearest(name, [each.name for each in plan.queues])
        )
    said = settings.queues.get(queue.name)
    kept = f"{where}.retention" if said is not None and "retention" in said.model_fields_set else key_path("defaults", "retention")
    yield from _range(kept, queue.retention, provider.retention, text)
    if plan.store is not None and plan.store.result_expires < queue.retention:
        forgets = text(plan.store.result_expires)
        what = f"messages are kept for {text(queue.retention)}, and the store forgets after {forgets}: a late duplicate runs again"
        yield Problem(kept, what, "raise CloudQ(result_expires=…), or shorten it", "warning")
    if queue.visibility and provider.name != "local":
        yield from _range(f"{where}.visibility", queue.visibility, provider.visibility, text)
    yield from _receives(queue, plan, where, provider)
    if provider.name != "gcp":
        for what, fifo in (
            ("the queue", queue.resource.endswith(".fifo")),
            ("its dead-letter queue", queue.dead_letters.resource.endswith(".fifo")),
        ):
            if fifo != queue.fifo:
                kind = ("ordered", "has no .fifo at its end") if queue.fifo else ("not ordered", "ends in .fifo")
                yield Problem(f"queue {queue.name}", f"{what} is {kind[0]}, and its name {kind[1]}", "rename it, or change fifo")
        if (
            queue.existing is not None
            and provider.name == "aws"
            and not re.fullmatch(rf"arn:aws[a-z-]*:sqs:[a-z0-9-]+:\d{{12}}:{re.escape(queue.resource)}", queue.existing)
        ):
            what = f"cloudq looks for a queue named {queue.resource!r}, and this is no ARN of it"
            arn = queue.existing if queue.existing.startswith("arn:") else "arn:aws:sqs:REGION:ACCOUNT:NAME"
            fix = f'write arn:aws:sqs:REGION:ACCOUNT:{queue.resource}, or take this out and name it by its ARN in the code, queue="{arn}"'
            yield Problem(f"{where}.existing", what, fix)
    if queue.fifo and plan.timer is None and provider.name == "aws":
        what = "ordered queues take no delay for one message, and there is no timer: a call with a delay is refused"
        yield Problem(f"queue {queue.name}", what, f"set {key_path('timer')} = true, or delay nothing there", "warning")
    if queue.alarm_age > queue.retention:
        yield Problem(f"{where}.alarm_age", "messages do not get this old: the alarm never rises", f"set it below {text(queue.retention)}")
    if own.min_workers > own.max_workers and queue.runs_on == "container":
        what = f"{own.min_workers} workers at least are more than the {own.max_workers} at most"
        yield Problem(f"{where}.min_workers", what, "lower it, or raise max_workers")


def _receives(queue: QueuePlan, plan: Plan, where: str, provider: Provider) -> Iterable[Problem]:
    yield from _range(f"{where}.max_receives", queue.max_receives, provider.receives, str)
    least = 2 * plan.crash_cap
    if queue.max_receives < min(least, provider.receives[1]):
        what = f"after {queue.max_receives} deliveries the provider moves a message before cloudq could say why"
        yield Problem(f"{where}.max_receives", what, f"set {least} or more: twice the crash_cap of {plan.crash_cap}", "warning")
    if queue.fifo and provider.name == "aws":
        for task in (each for each in plan.tasks if each.queue == queue.name):
            if task.max_retries is None or task.max_retries + 1 + plan.crash_cap > queue.max_receives:
                tries = "retries without end" if task.max_retries is None else f"{task.max_retries} retries"
                what = (
                    f"on an ordered queue a retry is a delivery, and {queue.max_receives} of them do not hold the {tries} of {task.name!r}"
                )
                yield Problem(
                    f"queue {queue.name}",
                    what,
                    "lower its max_retries, or raise max_receives",
                    "warning" if task.max_retries is None else "error",
                )


def _function(function: FunctionPlan, plan: Plan, provider: Provider) -> Iterable[Problem]:
    where, queue = key_path("queues", function.queue), plan.queue(function.queue)
    yield from _range(f"{where}.timeout", function.timeout, provider.function_timeout, text)
    yield from _range(f"{where}.memory", function.memory, provider.function_memory, lambda size: f"{size:,} MB")
    needed = provider.visibility_factor * function.timeout + (function.batch_window if provider.visibility_factor > 1 else 0)
    if queue.visibility < needed:
        hidden, takes = text(queue.visibility), text(function.timeout)
        what = f"messages are hidden for {hidden}, and a function of {takes} needs {text(needed)}: they would run twice"
        yield Problem(f"{where}.visibility", what, f"set {needed} or more, or leave it out")
    if function.max_concurrency is not None:
        yield from _range(f"{where}.max_concurrency", function.max_concurrency, provider.max_concurrency, str)
    if provider.name != "aws":
        return
    if function.reserved_concurrency is not None and function.reserved_concurrency < max(5, function.max_concurrency or 0):
        what = "a function with less than its event source asks for is throttled, and throttled messages use up their deliveries"
        yield Problem(f"{where}.reserved_concurrency", what, f"set {max(5, function.max_concurrency or 0)} or more, or leave it out")
    if function.batch_window > provider.batch_window:
        yield Problem(
            f"{where}.batch_window", f"{text(function.batch_window)} is over the {text(provider.batch_window)} of Lambda", "shorten it"
        )
    if queue.fifo:
        if function.batch_size > 1 and plan.store is None:
            what = "without a store each delivery is an attempt, and what is delivered behind a message that fails comes back with it"
            yield Problem(f"{where}.batch_size", what, f"leave it out, for 1 at a time, or set {key_path('store')} = true", "warning")
        if function.batch_window:
            yield Problem(f"{where}.batch_window", "an ordered queue has no window", "take it out")
        if function.batch_size > provider.batch_ordered:
            yield Problem(
                f"{where}.batch_size", f"an ordered queue gives {provider.batch_ordered} messages at most", f"set {provider.batch_ordered}"
            )
    elif function.batch_size > provider.batch:
        yield Problem(
            f"{where}.batch_size", f"{function.batch_size:,} is over the {provider.batch:,} of Lambda", f"set {provider.batch} or less"
        )
    elif function.batch_size > provider.batch_alone and function.batch_window < 1:
        what = f"{function.batch_size} messages at once need a window, in which they are gathered"
        yield Problem(f"{where}.batch_size", what, f'set batch_window = "1s", or a batch_size of {provider.batch_alone}')


# ---------------------------------------------------------------------- schedules


def _schedule(schedule: SchedulePlan, plan: Plan, provider: Provider) -> Iterable[Problem]:
    where = f"schedule {schedule.name}"
    if schedule.refused is not None:
        yield Problem(where, schedule.refused, "change its trigger or its call")
    for warning in schedule.warnings:
        what, _, fix = warning.rpartition("; ")
        if provider.name == "gcp" and "clocks go" in what:  # Google, "Cron job format and time zone"
            what = f"{what.rpartition(': ')[0]}: Cloud Scheduler may fire then, or not"
        yield Problem(where, what, fix, "warning")
    if len(schedule.parts) > provider.schedule_parts:
        what = f"{schedule.trigger} takes {len(schedule.parts)} expressions, and {provider.schedule_parts} is the most"
        yield Problem(where, what, "declare several schedules")
    if plan.timer is None and provider.name != "local":
        yield Problem(where, "nothing fires it: there is to be no timer", "take timer = false away")
    for index, step in enumerate(schedule.steps):
        queue = plan.queue(step.queue)
        if not queue.fifo:
            continue
        if step.group is None and provider.name != "gcp":
            what = f"its call of {step.task!r} goes to the ordered queue {queue.name!r} without a group"
            yield Problem(where, what, "give it ordering_key=, or another queue")
        if index == 0 and not provider.ordered_schedules:
            yield Problem(
                where, f"Cloud Scheduler cannot send in order, and {queue.name!r} keeps one", "send it to a queue that is not ordered"
            )
        if step.delay and plan.timer is None:
            what = (
                f"its call of {step.task!r} waits {text(step.delay)}, and the ordered queue {queue.name!r} takes no delay for one message"
            )
            yield Problem(where, what, f"take the delay out, or set {key_path('timer')} = true")
    for step in schedule.steps:
        if step.delay > provider.delay and plan.timer is None and not plan.queue(step.queue).fifo:
            what = f"its call of {step.task!r} waits {text(step.delay)}, over the {text(provider.delay)} of the queue"
            fix = "shorten it: compose has no timer" if provider.name == "local" else f"set {key_path('timer')} = true"
            yield Problem(where, what, fix)


# ---------------------------------------------------------------------- environment and secrets

_OWN: Final = frozenset({"CLOUDQ_APP", "CLOUDQ_BROKER", "CLOUDQ_STORE", "CLOUDQ_TIMER", "CLOUDQ_CONCURRENCY", "CLOUDQ_SECRETS"})
_KEYS: Final = frozenset({"CLOUDQ_SIGNING_KEYS", "CLOUDQ_ENCRYPTION_KEYS"})
_SECRET: Final = re.compile(r"SECRET|PASSW|TOKEN|CREDENTIAL|PRIVATE|API_?KEY", re.IGNORECASE)
_WITH_PASSWORD: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@", re.IGNORECASE)
# AWS Lambda, "Defined runtime environment variables"; Cloud Run, "Container runtime contract".
_RESERVED: Final = re.compile(r"AWS_(?!ENDPOINT)\w+|_HANDLER|_X_AMZN_TRACE_ID|LAMBDA_\w+|PORT|K_SERVICE|K_REVISION|K_CONFIGURATION")


def _environment(plan: Plan, settings: Settings) -> Iterable[Problem]:
    for table, names in (("environment", settings.environment), ("secrets", settings.secrets)):
        for name in names:
            where = key_path(table, name)
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]+", name):
                yield Problem(where, "no variable can have this name", "use letters, digits and _, a letter first, two at least")
            elif name in _OWN:
                yield Problem(where, "cloudq deploy sets this variable itself", "take it out")
            elif plan.provider != "local" and _RESERVED.fullmatch(name):
                yield Problem(where, "the host sets this variable itself", "use another name")
    for name in sorted(settings.environment.keys() & settings.secrets.keys()):
        yield Problem(key_path("secrets", name), "it is under environment, too", "leave one of the two")
    for name, value in settings.environment.items():
        where, fix = key_path("environment", name), f"keep it in the secret manager, and write its name under {key_path('secrets')}"
        if name in _KEYS and "kms://" not in value:
            yield Problem(where, "keys in an environment are read by all who may look at a function", fix)
        elif _WITH_PASSWORD.search(value):
            yield Problem(where, "its value looks like a URL with a password", fix)
        elif _SECRET.search(name):
            yield Problem(where, "this looks like a secret", fix, "warning")
        if "\0" in value:
            yield Problem(where, "no variable can hold a NUL", "encode it")
    size = sum(len(name.encode()) + len(value.encode("utf-8", "surrogatepass")) for name, value in settings.environment.items())
    size += len(json.dumps(settings.secrets)) if settings.secrets else 0  # their names are a variable, too
    if plan.provider == "aws" and plan.functions and size > _ENVIRONMENT:
        what = f"these are {size:,} bytes, and Lambda takes 4,096 together with cloudq's own"
        yield Problem(key_path("environment"), what, "keep what is large in a file of the package")
    for name, reference in settings.secrets.items():
        if not re.fullmatch(r"[\w/+=.@:-]{1,2048}", reference, re.ASCII):
            yield Problem(
                key_path("secrets", name), "no secret has this name; it must be a name, never the value", "write the secret's name or ARN"
            )
        elif plan.provider == "aws" and reference.startswith("arn:") and not re.fullmatch(_SECRET_ARN, reference):
            fix = "write its whole ARN, with the six characters that Secrets Manager adds to the name, or the name alone"
            yield Problem(key_path("secrets", name), "this is no ARN of a secret in Secrets Manager", fix)


_SECRET_ARN: Final = r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:.+-[A-Za-z0-9]{6}"
_ENVIRONMENT: Final = 3_500
"""Bytes that users may have of Lambda's 4 KB ("Lambda quotas")."""


def _range(where: str, value: int, allowed: tuple[int, int], say: Callable[[int], str]) -> Iterable[Problem]:
    least, most = allowed
    if not least <= value <= most:
        yield Problem(where, f"{say(value)} is not allowed", f"set {say(least)} to {say(most)}")
