"""What each provider allows: limits with their sources, as values that the plan and its checks read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from cloudq.deploy.settings import Settings, Target
from cloudq.schedules.expressions import Expression
from cloudq.schedules.to_cloud_scheduler import cloud_scheduler
from cloudq.schedules.to_eventbridge import eventbridge
from cloudq.timer import Trigger

ProviderName: TypeAlias = Literal["aws", "gcp", "local"]
DAY: Final = 86_400
FARGATE_STOP: Final = 120
"""Seconds that a container on Fargate has at most once it is told to stop (AWS ECS, ContainerDefinition: stopTimeout)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A provider's limits. Times in seconds, sizes in MB, ranges with both ends."""

    name: ProviderName
    queue_name: str
    """A pattern that a queue's whole name must match, and in words:"""
    queue_name_rule: str
    host_name: int
    """Characters of a function's, service's or role's name at most."""
    function_timeout: tuple[int, int]
    task_margin: int
    """What a function needs of its time beside a task's own."""
    function_memory: tuple[int, int]
    visibility: tuple[int, int]
    visibility_factor: int
    """A function's queue must hide messages for so many of its timeouts."""
    lease: int
    """How long a worker's queue hides them: it renews."""
    retention: tuple[int, int]
    receives: tuple[int, int]
    max_concurrency: tuple[int, int]
    batch: int
    """Messages for one call of a function at most; with a window beyond ``batch_alone``."""
    batch_alone: int
    batch_ordered: int
    batch_window: int
    delay: int
    """Of one message, by the broker itself."""
    ordered_schedules: bool
    """Whether a schedule can send with an ordering key."""
    expressions: Callable[[Trigger], Sequence[Expression]] | None
    schedule_parts: int


AWS: Final = Provider(
    name="aws",
    # AWS SQS, "Amazon SQS message quotas" and CreateQueue; Lambda CreateFunction, CreateEventSourceMapping, "Lambda quotas".
    queue_name=r"(?=.{1,80}\Z)[A-Za-z0-9_-]+(?:\.fifo)?",
    queue_name_rule="1 to 80 letters, digits, - and _, with .fifo at the end where ordered",
    host_name=64,
    function_timeout=(1, 900),
    task_margin=1,
    function_memory=(128, 10_240),
    visibility=(0, 43_200),
    visibility_factor=6,
    lease=60,
    retention=(60, 14 * DAY),
    receives=(1, 1_000),
    max_concurrency=(2, 1_000),
    batch=10_000,
    batch_alone=10,
    batch_ordered=10,
    batch_window=300,
    delay=900,
    ordered_schedules=True,
    expressions=eventbridge,
    schedule_parts=10,
)
GCP: Final = Provider(
    name="gcp",
    # Google Cloud, "Create and manage topics", "Subscription properties", "Handle message failures"; Cloud Run, "Configure memory limits".
    queue_name=r"(?!goog)[A-Za-z][A-Za-z0-9._~+%-]{2,254}",
    queue_name_rule="3 to 255 letters, digits and -._~+%, beginning with a letter and not with goog",
    host_name=49,
    function_timeout=(10, 600),
    task_margin=60,
    function_memory=(512, 32_768),
    visibility=(10, 600),
    visibility_factor=1,
    lease=60,
    retention=(600, 31 * DAY),
    receives=(5, 100),
    max_concurrency=(1, 1_000),
    batch=1_000,  # a push has one message, whatever is set
    batch_alone=1_000,
    batch_ordered=1_000,
    batch_window=0,
    delay=0,
    ordered_schedules=False,
    expressions=cloud_scheduler,
    schedule_parts=2,
)
LOCAL: Final = Provider(
    name="local",
    # What serves its queues speaks SQS (cloudq_aws.server): names, orders and delays are as there.
    queue_name=AWS.queue_name,
    queue_name_rule=AWS.queue_name_rule,
    host_name=63,
    function_timeout=(1, 900),
    task_margin=0,
    function_memory=(16, 1 << 20),
    visibility=(1, 43_200),
    visibility_factor=1,
    lease=60,
    retention=(60, 365 * DAY),
    receives=(1, 1_000),
    max_concurrency=(1, 1_000),
    batch=1_000,
    batch_alone=1_000,
    batch_ordered=1_000,
    batch_window=0,
    delay=AWS.delay,
    ordered_schedules=True,
    expressions=None,
    schedule_parts=1,
)


PROVIDERS: Final[Mapping[str, Provider]] = {each.name: each for each in (AWS, GCP, LOCAL)}


def provider_of(target: Target, settings: Settings) -> Provider:
    """The provider whose queues a target uses. Kubernetes runs beside either: Google's where ``[tool.cloudq.gcp]`` has a project."""
    if target.startswith("aws"):
        return AWS
    if target.startswith("gcp") or (target == "kubernetes" and settings.gcp.project):
        return GCP
    return LOCAL if target == "compose" else AWS


def has_functions(target: Target) -> bool:
    """Whether a target can run tasks in functions; others run containers only."""
    return target not in ("kubernetes", "compose")
