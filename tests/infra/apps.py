"""Three apps that every target must be able to write: a small one, one with every feature, and one whose names and values mean harm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from cloudq import CloudQ, Queue, Retry, chain, cron, every
from cloudq.deploy import checks
from cloudq.deploy.plan import Plan, plan_of
from cloudq.deploy.providers import provider_of
from cloudq.deploy.settings import Settings, Target, parse

HOSTILE: Final = (
    "\"quoted\" 'too' ${aws:x} $HOME %{if true} {{ jinja }} [[ ours ]] key: value # - * & ! | > \\ \n\ttab é 日本 😀 \u2028 \u0085 OFF"
)
"""What means something to a reader of one format or another, as one value."""


def quickstart() -> CloudQ:
    """The README's."""
    app = CloudQ("shop")
    app.reference = "tasks:app"

    @app.task(retry=Retry(max_retries=5, on=(ConnectionError,)), timeout="30s")
    def send_receipt(order: int, to: str) -> str:
        return f"{order} {to}"

    return app


def everything(interval: str = "7m") -> CloudQ:
    """Every feature that infrastructure depends on. Google's scheduler cannot keep each ``interval``."""
    app = CloudQ("shop", queues=[Queue(name="reports", dead_letter="failed-reports")])
    app.reference = "shop.tasks:app"

    @app.task(name="shop.receipt", queue="emails", timeout="30s", retry=Retry(max_retries=8, max_delay="6h"), schedule=every(interval))
    def receipt() -> None: ...

    @app.task(name="shop.render", queue="reports", timeout="25m", schedule=[cron("0 9 * * 1-5", tz="Europe/Berlin"), cron("30 0 1 * 1")])
    def render(pages: int = 1) -> int:
        return pages

    @app.task(name="shop.charge", queue="orders.fifo", timeout="1m", idempotency_key="{order}")
    def charge(order: int) -> int:
        return order

    @app.task(name="shop.tenants", queue="fair", timeout="1m")
    def tenants() -> None: ...

    @app.task(name="shop.legacy", queue="legacy", timeout="1m")
    def legacy() -> None: ...

    @app.task(name="shop.elsewhere", queue="elsewhere", timeout="1m")
    def elsewhere() -> None: ...

    app.schedule("nightly", chain(render.si(3), receipt.si()), cron("15 2 * * *", tz="America/New_York"))
    app.schedule("fair tick", tenants.si().set(tenant="a"), every("1h"))
    return app


def adversarial() -> CloudQ:
    """Names as odd as cloudq takes them."""
    app = CloudQ('a "shop": ${x}')
    app.reference = "tasks:app"

    @app.task(name='it\'s: "${task}" #1 \\', queue="default", timeout="30s")
    def odd() -> None: ...

    @app.task(name="null", queue="null", timeout="30s", schedule=every("1h"))
    def null() -> None: ...

    @app.task(name="yes", queue="on-off_1e3", timeout="30s")
    def yes() -> None: ...

    app.schedule('it\'s: "${schedule}" #1 \\ {{x}} [[y]] <aws.scheduler.scheduled-time>', odd.si(), cron("*/5 * * * *"))
    return app


APPS: Final[Mapping[str, Callable[[], CloudQ]]] = {"quickstart": quickstart, "everything": everything, "adversarial": adversarial}

_AWS: Final[dict[str, Any]] = {
    "region": "eu-west-1",
    "account": "123456789012",
    "kms_key": "arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-3333-4444-555555555555",
    "permission_boundary": "arn:aws:iam::123456789012:policy/boundary",
    "subnets": ["subnet-0a1b2c3d", "subnet-1a1b2c3d"],
    "security_groups": ["sg-0a1b2c3d"],
}
_GCP: Final[dict[str, Any]] = {
    "project": "shop-123456",
    "region": "europe-west1",
    "kms_key": "projects/shop-123456/locations/europe-west1/keyRings/ring/cryptoKeys/key",
    "network": "projects/shop-123456/global/networks/net",
    "subnetwork": "projects/shop-123456/regions/europe-west1/subnetworks/sub",
}
_EXISTING: Final = {
    "aws": ("arn:aws:sqs:eu-west-1:123456789012:shop-dev-legacy", "arn:aws:sqs:eu-west-1:123456789012:shop-dev-legacy-dlq"),
    "gcp": ("projects/shop-123456/topics/shop-dev-legacy", "projects/shop-123456/topics/shop-dev-legacy-dlq"),
    "local": (None, None),
}
_ALARMS: Final = {
    "aws": "arn:aws:sns:eu-west-1:123456789012:alarms",
    "gcp": "projects/shop-123456/notificationChannels/1234567890",
    "local": None,
}


def settings_of(name: str, target: Target) -> dict[str, Any]:
    """``[tool.cloudq]`` of one of the apps, for a target."""
    provider = "gcp" if target.startswith("gcp") else "local" if target == "compose" else "aws"
    gcp, aws = ({key: of[key] for key in keys} for of, keys in ((_GCP, ("project", "region")), (_AWS, ("region", "account"))))
    place: dict[str, Any] = {"gcp": gcp} if provider == "gcp" else {"aws": aws}
    functions = target in ("aws-sam", "aws-cloudformation", "aws-terraform", "gcp-terraform")
    image = {} if functions and provider == "aws" else {"image": "registry.example.com/shop/worker:1.2.3"}
    if name == "quickstart":
        return {**place, **image}
    if name == "adversarial":
        return {
            **place,
            **image,
            "environment": {"HOSTILE": HOSTILE, "OFF": "OFF", "NULL": "null", "NUMBER": "1e3", "TIME": "12:30:00", "EMPTY": ""},
        }
    existing, dead = _EXISTING[provider]
    many = {"batch_size": 100, "batch_window": "2s", "max_concurrency": 50} if provider == "aws" and functions else {"concurrency": 20}
    whole = {"existing": existing, "existing_dead_letter": dead} if existing else {}
    return {
        "image": "registry.example.com/shop/worker:1.2.3",
        "store": True,
        "timer": True,
        "bodies": True,
        "environment": {"LOG_LEVEL": "INFO"},
        "secrets": {"STRIPE_KEY": "prod-stripe"},
        "tags": {"team": "payments"},
        "alarms_topic": _ALARMS[provider],
        "log_retention": 90,
        "aws" if provider != "gcp" else "gcp": _GCP if provider == "gcp" else _AWS,
        "defaults": {"memory": 512},
        "queues": {
            "emails": many,
            "reports": {"runs_on": "container", "memory": 2048, "cpu": 1.0, "min_workers": 0, "max_workers": 20, "backlog_per_worker": 5},
            "orders.fifo": {"retention": "10d", "alarm_age": "5m"},
            "fair": {"runs_on": "container", "sends_to": ["emails"]},
            "legacy": {**whole, **({"runs_on": "container"} if not functions else {})},
            "elsewhere": {"runs_on": "none"},
        },
    }


GOOGLE: Final[Mapping[str, Any]] = {"aws": {}, "gcp": _GCP, "alarms_topic": _ALARMS["gcp"], "queues": {}}
"""Over the settings for Kubernetes: beside Google's queues."""


def plan(name: str, target: Target, more: Mapping[str, Any] | None = None) -> tuple[Plan, Settings]:
    """The plan of one of the apps and its settings, with ``more`` over them; there must be nothing wrong with it."""
    settings = parse({**settings_of(name, target), **(more or {})}, "dev")
    app = everything("6m") if name == "everything" and provider_of(target, settings).name == "gcp" else APPS[name]()
    made = plan_of(app, settings, target=target, stage="dev")
    problems = [each for each in checks.check(made, settings) if each.level == "error"]
    assert not problems, "\n".join(map(str, problems))
    assert made.provider == provider_of(target, settings).name
    return made, settings
