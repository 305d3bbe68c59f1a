"""What users set under ``[tool.cloudq]`` of their pyproject.toml: strict models, stages, and every mistake at once with its path."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, cast, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError  # noqa: TID253  # the command line loads this lazily

from cloudq.deploy.problems import Problem, Refused, nearest
from cloudq.durations import seconds
from cloudq.errors import ConfigError

ROOT: Final = "tool.cloudq"

Target: TypeAlias = Literal["aws-sam", "aws-cloudformation", "aws-terraform", "gcp-terraform", "kubernetes", "compose"]
"""What ``cloudq deploy`` writes."""
RunsOn: TypeAlias = Literal["function", "container", "none"]
"""What runs the tasks of a queue; ``none``: nothing that is deployed here."""


def _seconds(value: object) -> object:
    """Seconds, from a number or a text like ``"5m"``; what is neither is left for pydantic to refuse."""
    return seconds(value, "the time") if isinstance(value, (str, int, float)) and not isinstance(value, bool) else value


def _tuple(value: object) -> object:
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


Seconds: TypeAlias = Annotated[float, BeforeValidator(_seconds)]
Texts: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_tuple)]
Name: TypeAlias = Annotated[str, Field(min_length=1)]
Whole: TypeAlias = Annotated[int, Field(ge=0)]
Several: TypeAlias = Annotated[int, Field(ge=1)]


class Table(BaseModel):
    """A table of settings: unknown keys are errors, and values are of the type that is asked for."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class QueueSettings(Table):
    """``[tool.cloudq.queues.NAME]``, and ``[tool.cloudq.defaults]`` for what it does not say. Times are seconds or ``"5m"``."""

    runs_on: RunsOn | None = None
    """``None``: a function where the target has functions, else a container; nothing where the app's own target is Kubernetes."""
    memory: Several = 512
    """MB of a function's instance, or of a container."""
    cpu: Annotated[float, Field(gt=0)] = 0.25
    """vCPUs of a container."""
    timeout: Seconds | None = None
    """Of the function. ``None``: what its longest task needs."""
    concurrency: Several | None = None
    """Tasks at once in one function instance or worker. ``None``: 1 in a function, 10 in a container."""
    max_concurrency: Several | None = None
    """Instances of the function at once, by the event source (MaximumConcurrency) or the service's instances. ``None``: those reserved,
    or the provider's."""
    reserved_concurrency: Several | None = None
    """Of the function: a share of the account's, taken from all others."""
    batch_size: Several | None = None
    """Messages that a function gets at once. ``None``: 10, or 1 of an ordered queue without a store."""
    batch_window: Seconds = 0.0
    """How long the event source gathers them."""
    min_workers: Whole = 1
    max_workers: Several = 10
    """Containers."""
    backlog_per_worker: Several = 100
    """Waiting messages for each of which the containers grow by one."""
    fifo: bool | None = None
    """Whether the order is kept. ``None``: the name says it, by its ``.fifo``."""
    retention: Seconds = 4 * 86_400.0
    visibility: Seconds | None = None
    """How long a message is hidden once received. ``None``: six times the function's timeout and its window; a container's lease."""
    max_receives: Several | None = None
    """Deliveries after which the provider itself moves a message to the dead-letter queue. ``None``: by rule (see docs/deploy.md)."""
    existing: Name | None = None
    """ARN or topic of a queue that is there already, and stays as it is."""
    existing_dead_letter: Name | None = None
    sends_to: Texts | None = None
    """Queues that its tasks send to, beside its own. ``None``: all of the app's."""
    alarm_age: Seconds | None = None
    """Age of the oldest message that raises an alarm. ``None``: 15 minutes, or five more than its longest task may take."""


class AwsSettings(Table):
    """``[tool.cloudq.aws]``."""

    region: Name | None = None
    account: Name | None = None
    """Its 12 digits, for what is not made in the account itself: Kubernetes' manifests name roles and queues in full."""
    kms_key: Name | None = None
    """ARN of the key that encrypts queues, table and logs; else AWS's own keys do."""
    permission_boundary: Name | None = None
    """ARN of a policy that bounds every role."""
    subnets: Texts = ()
    security_groups: Texts = ()
    """Of functions and containers; without subnets functions run outside of a VPC."""
    artifacts: Name | None = None
    """A bucket of yours, where ``--apply`` puts the function's package."""


class GcpSettings(Table):
    """``[tool.cloudq.gcp]``."""

    project: Name | None = None
    region: Name | None = None
    kms_key: Name | None = None
    """``projects/P/locations/L/keyRings/R/cryptoKeys/K``."""
    network: Name | None = None
    subnetwork: Name | None = None


class PackageSettings(Table):
    """``[tool.cloudq.package]``: of the function's package, as shell patterns."""

    include: Texts = ()
    """Files and folders of the project that go along with its code."""
    exclude: Texts = ()
    """What stays, by its name in the package."""


class Stage(Table):
    """What a stage may say otherwise, ``[tool.cloudq.stages.prod]``: everything but the app."""

    name: Name | None = None
    """Of what is created, before the stage; the app's unless set."""
    prefix: str | None = None
    """Before every queue's name; ``NAME-STAGE-`` unless set."""
    target: Target | None = None
    python: Literal["3.11", "3.12", "3.13", "3.14"] = "3.13"
    architecture: Literal["arm64", "x86_64"] = "arm64"
    image: Name | None = None
    """The containers' image; else one is built."""
    defaults: QueueSettings = QueueSettings()
    queues: dict[str, QueueSettings] = {}
    store: bool | None = None
    """Whether a table for results and claims is created. ``None``: where a task needs one, or the code names one."""
    timer: bool | None = None
    """Whether what long delays need is created. ``None``: where schedules, retries or the host need it."""
    bodies: bool | None = None
    """Whether a bucket for large messages is created. ``None``: no."""
    environment: dict[str, str] = {}
    secrets: dict[str, str] = {}
    """Variable to the *name* of a secret in the provider's secret manager. Never values."""
    tags: dict[str, str] = {}
    alarms_topic: Name | None = None
    """Where alarms go: an SNS topic's ARN, or a notification channel. ``None``: alarms are there and tell nobody."""
    log_retention: Several = 30
    """Days."""
    templates: Name | None = None
    """A folder of templates of one's own, as seen from the project's; ``--templates`` goes before it."""
    package: PackageSettings = PackageSettings()
    aws: AwsSettings = AwsSettings()
    gcp: GcpSettings = GcpSettings()


class Settings(Stage):
    """``[tool.cloudq]``, one stage applied by ``read`` or ``parse``."""

    app: Name | None = None
    stages: dict[str, Stage] = {}

    def queue(self, name: str) -> QueueSettings:
        """What holds for a queue: its own table over ``defaults``."""
        own = self.queues.get(name)
        return self.defaults if own is None else self.defaults.model_copy(update=_said(own))


def read(path: Path, stage: str) -> Settings:
    """The settings in a pyproject.toml for ``stage``; raises Refused, or ConfigError where the file is no TOML."""
    try:
        document: Any = tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    tools: Any = document.get("tool", {})
    if not isinstance(tools, dict):
        raise ConfigError(f"{path}: tool must be a table")
    return parse(cast("dict[str, Any]", tools).get("cloudq", {}), stage)


def parse(table: Mapping[str, Any], stage: str) -> Settings:
    """The settings of a table for ``stage``, which must be one of its stages if it has any. Raises Refused with every mistake."""
    try:
        found = Settings.model_validate(table)
    except ValidationError as error:
        raise Refused([_problem(cast("Mapping[str, Any]", each)) for each in error.errors(include_url=False)]) from error
    problems = [
        Problem(key_path("stages", name), "no stage can have this name", "use 1 to 20 lower-case letters, digits and -, a letter first")
        for name in found.stages
        if not STAGE.fullmatch(name)
    ]
    if not STAGE.fullmatch(stage) or (found.stages and stage not in found.stages):
        fix = nearest(stage, found.stages) if found.stages else "use 1 to 20 lower-case letters, digits and -, a letter first"
        problems.append(Problem(f"stage {stage!r}", f"there is no such stage under {ROOT}.stages", fix))
    if problems:
        raise Refused(problems)
    return found if stage not in found.stages else _over(found, found.stages[stage])


STAGE: Final = re.compile(r"[a-z][a-z0-9-]{0,19}")


def _said(table: Table) -> dict[str, Any]:
    return {name: getattr(table, name) for name in table.model_fields_set}


def _over(base: Any, other: Table) -> Any:
    """``base`` with what ``other`` says; tables and dicts are merged, all else is replaced."""
    return base.model_copy(update={name: _merged(getattr(base, name), value) for name, value in _said(other).items()})


def _merged(kept: Any, value: Any) -> Any:
    if isinstance(value, Table):
        return _over(kept, value) if isinstance(kept, Table) else value
    if isinstance(value, dict):
        more = cast("dict[str, Any]", value)
        return {**kept, **{key: _merged(kept.get(key), each) for key, each in more.items()}}
    return value


def _problem(error: Mapping[str, Any]) -> Problem:
    """A mistake that pydantic found, with the path that the user wrote. It never shows a value: it may be a secret."""
    place: Sequence[Any] = [part for part in error["loc"] if part != "[key]"]
    where = key_path(*map(str, place))
    if error["type"] == "extra_forbidden":
        known = _keys(place[:-1])
        return Problem(where, "there is no such key", nearest(str(place[-1]), known))
    text = str(error["msg"]).removeprefix("Value error, ")
    for pydantic_s, ours in _WORDS.items():
        text = text.replace(pydantic_s, ours, 1)
    return Problem(where, "this is no value for it", text)


_WORDS: Final = {
    "Input should be": "write",
    "a valid tuple": 'a list: ["…"]',
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
}


def _keys(place: Sequence[Any]) -> list[str]:
    """The keys of the table at a path."""
    model: type[BaseModel] = Settings
    rest = iter(place)
    for part in rest:
        annotation: Any = model.model_fields[str(part)].annotation
        if get_origin(annotation) is dict:
            next(rest, None)  # the name that the user chose
            annotation = get_args(annotation)[1]
        model = annotation
    return list(model.model_fields)


def key_path(*keys: str) -> str:
    """The path of a setting, as TOML writes it: ``tool.cloudq.queues.emails.memory``."""
    return ".".join((ROOT, *map(_key, keys)))


def _key(name: str) -> str:
    """A key as TOML writes it."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)


def _quoted(text: str) -> str:
    return '"' + "".join(f"\\{each}" if each in '\\"' else each if each.isprintable() else f"\\U{ord(each):08X}" for each in text) + '"'
