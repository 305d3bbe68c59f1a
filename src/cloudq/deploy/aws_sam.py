"""The targets ``aws-sam`` and ``aws-cloudformation``: the plan as the values of a CloudFormation template. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from cloudq.deploy import aws_schedules, container
from cloudq.deploy.aws_iam import Place, policy, secret, trust
from cloudq.deploy.plan import ContainerPlan, FunctionPlan, Plan, QueuePlan, SchedulePlan
from cloudq.deploy.settings import Settings

RESOURCES: Final = 500
"""Of one stack at most (AWS CloudFormation, "Understand CloudFormation quotas")."""
_HERE: Final = Place(partition="${AWS::Partition}", region="${AWS::Region}", account="${AWS::AccountId}")
"""Where the stack is: for ``!Sub``."""


def values(plan: Plan, settings: Settings) -> dict[str, Any]:
    """What the templates are given. Texts with ``${`` are for ``!Sub``; what users wrote is not among them, or has it escaped."""
    place = replace(_HERE, kms_key=settings.aws.kms_key)
    stack = f"{plan.name}-{plan.stage}"
    return {
        "sam": plan.target == "aws-sam",
        "healthy": container.HEALTHY,
        "target": plan.target,
        "app": plan.name,
        "stage": plan.stage,
        "stack": stack,
        "reference": plan.reference,
        "region": settings.aws.region,
        "artifacts": settings.aws.artifacts,
        "python": settings.python,
        "architecture": settings.architecture,
        "platform": settings.architecture.upper(),
        "tags": {**dict(sorted(settings.tags.items())), "cloudq:app": plan.name, "cloudq:stage": plan.stage},
        "kms_key": settings.aws.kms_key,
        "boundary": settings.aws.permission_boundary,
        "alarms_topic": settings.alarms_topic,
        "log_retention": settings.log_retention,
        "subnets": settings.aws.subnets,
        "security_groups": settings.aws.security_groups,
        "image": plan.image,
        "overrides": asked(plan, settings),
        "environment": dict(sorted(settings.environment.items())),
        "secrets": json.dumps(settings.secrets, sort_keys=True) if settings.secrets else None,
        "container_secrets": {name: _secret(reference) for name, reference in sorted(settings.secrets.items())},
        "seams": seams(plan),
        "queues": [_section(each, plan) for each in plan.queues],
        "functions": bool(plan.functions),
        "containers": bool(plan.containers),
        "store": None if plan.store is None else plan.store.resource,
        "bodies": None if plan.bodies is None else {"name": f"{plan.bodies.resource}-${{AWS::AccountId}}", "days": plan.bodies.days},
        "timer": None if plan.timer is None else {"group": plan.timer.resource, "undelivered": plan.timer.undelivered},
        "schedules": [entry for each in plan.schedules for entry in _schedules(each, plan)],
        "roles": {
            each.name: {
                "name": {"scheduler": plan.timer.role if plan.timer else "", "execution": f"{stack}-execution"}.get(each.name, each.name),
                "policy": policy(each, plan, place)["Statement"],
                "trust": (trust(each, plan, place) or {}).get("Statement"),
            }
            for each in plan.roles
        },
        "alarms": [entry for on, entry in _alarms(plan) if on is None],
    }


def asked(plan: Plan, settings: Settings) -> list[str]:
    """What the stack asks for when it is made, since the settings do not say it; for ``--parameter-overrides``."""
    if not plan.containers:
        return []
    return [*([] if plan.image else ["Image=…"]), *([] if settings.aws.subnets else ["Subnets=subnet-…", "SecurityGroups=sg-…"])]


def seams(plan: Plan) -> dict[str, str]:
    """The variables by which hosts and callers find queues, table and schedule group: texts for ``!Sub``."""
    bodies = f"&bodies=s3://{plan.bodies.resource}-${{AWS::AccountId}}&bodies_days={plan.bodies.days}" if plan.bodies else ""
    found = {"CLOUDQ_BROKER": f"sqs://${{AWS::Region}}/?prefix={_literal(plan.prefix)}{bodies}"}
    if plan.store is not None:
        found["CLOUDQ_STORE"] = "dynamodb://${AWS::Region}/${Store}"
    if plan.timer is not None:
        found["CLOUDQ_TIMER"] = (
            "eventbridge://${AWS::Region}/${ScheduleGroup}?role=${SchedulerRole.Arn}&dead_letter=${UndeliveredQueue.Arn}"
        )
    return found


def resources(plan: Plan) -> int:
    """How many resources the stack has, once SAM has made its functions' event source mappings."""
    made = sum(each.existing is None for each in plan.queues) + len([each for each in _dead_letters(plan).values() if not each["existing"]])
    schedules = sum(len(each.parts) for each in plan.schedules)
    return (
        2 * made  # each with its policy
        + 4 * len(plan.functions)
        + sum(6 if each.min_workers else 8 for each in plan.containers)
        + (2 if plan.containers else 0)
        + (1 if plan.store else 0)
        + (2 if plan.bodies else 0)
        + (4 + schedules if plan.timer else 0)
        + 2  # the policies on offer
        + len(plan.alarms)
    )


def size(plan: Plan, settings: Settings) -> int:
    """About how many bytes the template has: mostly tags, which each resource repeats, and policies."""
    tags = sum(len(f"        - {{Key: {name!r}, Value: {value!r}}}\n".encode()) for name, value in settings.tags.items())
    variables = sum(len(f"          {name!r}: {value!r}\n".encode()) for name, value in settings.environment.items())
    statements = [found for each in plan.roles for found in policy(each, plan, _HERE)["Statement"]]
    granted = sum(len(arn) + 20 for found in statements for arn in found["Resource"])
    return resources(plan) * (800 + tags) + (len(plan.functions) + len(plan.containers)) * variables + granted


# ---------------------------------------------------------------------- names


_PLAIN: Final = re.compile(r"[a-z][a-z0-9]+(-[a-z][a-z0-9]+)*")


def logical(kind: str, name: str) -> str:
    """A logical id, as CloudFormation wants it: letters and digits only. It depends on nothing but ``kind`` and ``name``.

    Names of lower-case words keep them, ``slow-mails`` as ``SlowMails``, and an ordered queue ends in ``FIFO``, which no words give; all
    others begin with a hash, which is a 0 and twelve digits, so that no two names have one id.
    """
    stem, ordered = name.removesuffix(".fifo"), name.endswith(".fifo")
    words = "".join(word[:1].upper() + word[1:] for word in re.findall(r"[A-Za-z0-9]+", stem))
    if _PLAIN.fullmatch(stem):
        return kind + words + ("FIFO" if ordered else "")
    return f"{kind}0{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}{words[:40]}"


def _literal(text: str) -> str:
    """A user's text within one for ``!Sub``: nothing in it is replaced."""
    return text.replace("${", "${!")


def _secret(name: str) -> str:
    """How ECS is told of a secret: by its ARN, or by its name's, which Secrets Manager completes. For ``!Sub``."""
    return secret(name, _HERE).removesuffix("-??????")


# ---------------------------------------------------------------------- parts


def _section(queue: QueuePlan, plan: Plan) -> dict[str, Any]:
    """A queue with all that is there for it. Its dead letters are with the first queue that has them."""
    first = next(each for each in plan.queues if each.dead_letters.name == queue.dead_letters.name)
    return {
        **_queue(queue, plan),
        "letters": _dead_letters(plan)[queue.dead_letters.name] if first is queue and queue.dead_letters.existing is None else None,
        "function": next((_function(each, plan) for each in plan.functions if each.queue == queue.name), None),
        "container": next((_worker(each, plan) for each in plan.containers if each.queue == queue.name), None),
        "alarms": [entry for on, entry in _alarms(plan) if on == queue.name],
    }


def _queue(queue: QueuePlan, plan: Plan) -> dict[str, Any]:
    return {
        "id": logical("Queue", queue.name),
        "name": queue.name,
        "resource": queue.resource,
        "fifo": queue.fifo,
        "existing": queue.existing,
        "visibility": queue.visibility,
        "retention": queue.retention,
        "max_receives": queue.max_receives,
        "dead_letters": _dead_letters(plan)[queue.dead_letters.name],
    }


def _dead_letters(plan: Plan) -> Mapping[str, dict[str, Any]]:
    """Dead-letter queues by their names; several queues may share one."""
    found: dict[str, dict[str, Any]] = {}
    for queue in plan.queues:
        letters = queue.dead_letters
        entry = found.setdefault(
            letters.name,
            {
                "id": logical("DeadLetters", letters.name),
                "name": letters.name,
                "resource": letters.resource,
                "fifo": queue.fifo,
                "existing": letters.existing,
                "retention": letters.retention,
                "sources": [],
            },
        )
        # By name: the two kinds of queues would otherwise refer to each other in a circle
        entry["sources"].append(queue.existing or f"arn:${{AWS::Partition}}:sqs:${{AWS::Region}}:${{AWS::AccountId}}:{queue.resource}")
    return found


def _function(function: FunctionPlan, plan: Plan) -> dict[str, Any]:
    queue = plan.queue(function.queue)
    return {
        "id": logical("Function", queue.name),
        "role_id": logical("Role", queue.name),
        "logs_id": logical("Logs", queue.name),
        "name": function.name,
        "memory": function.memory,
        "timeout": function.timeout,
        "concurrency": function.concurrency,
        "batch_size": function.batch_size,
        "batch_window": function.batch_window,
        "max_concurrency": function.max_concurrency,
        "reserved_concurrency": function.reserved_concurrency,
    }


def _worker(worker: ContainerPlan, plan: Plan) -> dict[str, Any]:
    queue = plan.queue(worker.queue)
    return {
        "id": logical("Service", queue.name),
        "task_id": logical("Task", queue.name),
        "role_id": logical("Role", queue.name),
        "logs_id": logical("Logs", queue.name),
        "capacity_id": logical("Capacity", queue.name),
        "scaling_id": logical("Scaling", queue.name),
        "first_id": logical("First", queue.name),
        "alone_id": logical("Alone", queue.name),
        "name": worker.name,
        "memory": str(worker.memory),
        "tmp": worker.memory // 4,
        "cpu": str(int(worker.cpu * 1024)),
        **container.on_fargate(worker),
        "min_workers": worker.min_workers,
        "max_workers": worker.max_workers,
        "backlog": worker.backlog_per_worker,
    }


def _schedules(schedule: SchedulePlan, plan: Plan) -> Iterable[dict[str, Any]]:
    """One for each part; a request to SQS has the queue's URL, which only the stack knows."""
    queue = plan.queue(schedule.queue)
    request = aws_schedules.request(schedule, ordered=queue.resource.endswith(".fifo"))
    if request is None:
        target, sent = None, aws_schedules.text(schedule.body)
    else:
        url = f"${{{logical('Queue', queue.name)}}}" if queue.existing is None else _url(queue.existing)
        target = aws_schedules.SEND_MESSAGE.format(partition="${AWS::Partition}")
        sent = f'{{"QueueUrl":"{url}",{_literal(aws_schedules.text(request))[1:]}'
    for part in schedule.parts:
        yield {
            "id": logical("Schedule", part.name),
            "name": part.name,
            "description": part.description,
            "schedule": schedule.name,
            "trigger": schedule.trigger,
            "expression": part.expression,
            "timezone": part.timezone,
            "queue": _queue(queue, plan),
            "target": target,
            "input": sent,
            "counted": part.expression.startswith("rate("),
        }


def _url(arn: str) -> str:
    """The URL of a queue that is there already, from its ARN."""
    _, _, _, region, account, name = arn.split(":", 5)
    return f"https://sqs.{region}.${{AWS::URLSuffix}}/{account}/{name}"


def _alarms(plan: Plan) -> Iterable[tuple[str | None, dict[str, Any]]]:
    """Each with the queue that it belongs to; ``None`` is the timer's."""
    firsts = {each.dead_letters.name: each for each in reversed(plan.queues)}
    for alarm in plan.alarms:
        match alarm.kind:
            case "age":
                queue = plan.queue(alarm.on)
                yield (
                    queue.name,
                    {
                        "id": logical("Late", queue.name),
                        "name": f"{queue.resource}-is-late",
                        "description": f"The oldest message waits for longer than {alarm.above} seconds",
                        **_on("AWS/SQS", "ApproximateAgeOfOldestMessage", "QueueName", queue.resource, alarm.above, minutes=5),
                    },
                )
            case "dead-letters":
                queue = firsts[alarm.on]
                resource = queue.dead_letters.resource
                yield (
                    queue.name,
                    {
                        "id": logical("Letters", alarm.on),
                        "name": f"{resource}-has-letters",
                        "description": "Tasks of the app failed for good: see `cloudq dlq list`",
                        **_on("AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", resource, alarm.above),
                    },
                )
            case "throttles":
                function = next(each for each in plan.functions if each.name == alarm.on)
                yield (
                    function.queue,
                    {
                        "id": logical("Throttled", function.queue),
                        "name": f"{function.name}-is-throttled",
                        "description": "Throttled messages use up their deliveries",
                        **_on("AWS/Lambda", "Throttles", "FunctionName", function.name, alarm.above, statistic="Sum", minutes=5),
                    },
                )
            case "timer-undelivered":
                assert plan.timer is not None and plan.timer.undelivered is not None
                yield (
                    None,
                    {
                        "id": "UndeliveredAlarm",
                        "name": f"{plan.timer.undelivered}-has-letters",
                        "description": "EventBridge Scheduler could not send what was due",
                        **_on("AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", plan.timer.undelivered, alarm.above),
                    },
                )
            case "timer-depth":  # of Cloud Tasks
                raise AssertionError(alarm)


def _on(
    namespace: str, metric: str, dimension: str, value: str, above: int, *, statistic: str = "Maximum", minutes: int = 1
) -> dict[str, Any]:
    return {
        "namespace": namespace,
        "metric": metric,
        "dimension": dimension,
        "value": value,
        "above": above,
        "statistic": statistic,
        "minutes": minutes,
    }
