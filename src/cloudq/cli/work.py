"""``cloudq worker`` and ``cloudq dev``: processes that run tasks until they are told to stop."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cloudq import adapters, logs
from cloudq.app import CloudQ
from cloudq.cli import reload
from cloudq.cli.live import LiveHandler, banner
from cloudq.cli.output import duration, err, say
from cloudq.cli.state import State, state_of
from cloudq.errors import ConfigError
from cloudq.worker import StopReason, Worker, WorkerOptions


class LogFormat(StrEnum):
    """How logs look."""

    rich = "rich"
    plain = "plain"
    json = "json"


class LogLevel(StrEnum):
    """From which level on logs are shown."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


_RUN, _STOP, _LOG = "What it runs", "When it stops", "What it says"

Queues = Annotated[
    list[str] | None,
    typer.Option(
        "-Q",
        "--queues",
        metavar="NAME[=WEIGHT],…",
        help="Queues to work on, with weights. All that the app declares, if none.",
        rich_help_panel=_RUN,
    ),
]
Concurrency = Annotated[int, typer.Option("-c", "--concurrency", metavar="N", min=1, help="Tasks at once.", rich_help_panel=_RUN)]
Grace = Annotated[
    float, typer.Option(parser=duration, metavar="TIME", help="How long running tasks may go on after a stop.", rich_help_panel=_STOP)
]
Format = Annotated[
    LogFormat | None, typer.Option("--log-format", help="rich on a terminal, else plain.", show_default=False, rich_help_panel=_LOG)
]
Level = Annotated[LogLevel, typer.Option("--log-level", case_sensitive=False, rich_help_panel=_LOG)]
Folders = Annotated[
    list[Path] | None,
    typer.Option("--reload-dir", metavar="DIR", help="Watch this folder for changes; the current one, if none.", rich_help_panel=_RUN),
]


def worker(
    context: typer.Context,
    queues: Queues = None,
    concurrency: Concurrency = 10,
    processes: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Run tasks in this many child processes instead, one each at a time.", rich_help_panel=_RUN),
    ] = 0,
    max_tasks: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Replace the process (each child) after so many tasks.", rich_help_panel=_RUN)
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Stop after the first batch.", rich_help_panel=_STOP)] = False,
    drain: Annotated[bool, typer.Option("--drain", help="Stop once the queues are empty.", rich_help_panel=_STOP)] = False,
    grace: Grace = "25s",  # type: ignore[assignment]  # typer parses it
    schedules: Annotated[
        bool,
        typer.Option("--schedules", help="Fire the app's schedules from here, where no timer does; of one worker.", rich_help_panel=_RUN),
    ] = False,
    health_file: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Touched every 2 s while all is well, for a probe that looks at its age.", rich_help_panel=_LOG),
    ] = None,
    events: Annotated[
        bool, typer.Option("-E", "--events", help="Write events to the store, for `cloudq events`.", rich_help_panel=_LOG)
    ] = False,
    log_format: Format = None,
    log_level: Level = LogLevel.info,
    reload_: Annotated[bool, typer.Option("--reload", help="Start anew when a source file changes.", rich_help_panel=_RUN)] = False,
    reload_dir: Folders = None,
) -> None:
    """Run tasks until SIGTERM or Ctrl-C.

    What runs then may finish within --grace; a second signal ends it at once. Nothing is lost by either.

    [dim]cloudq worker --queues high=5,low=1 --concurrency 20[/]
    [dim]cloudq worker --processes 4 --max-tasks 1000[/]    tasks that compute, or leak
    [dim]cloudq worker --drain[/]                           in a cron job
    """
    options = WorkerOptions(
        queues=weights(queues or []),
        concurrency=concurrency,
        processes=processes,
        grace=grace,
        max_tasks=max_tasks,
        drain=drain,
        once=once,
        schedules=schedules,
        health_file=health_file,
    )
    folders = [*(reload_dir or [Path()])] if reload_ or reload_dir else None
    _work(state_of(context), "worker", options, log_format, log_level, folders, events=events)


def dev(
    context: typer.Context,
    queues: Queues = None,
    concurrency: Concurrency = 10,
    grace: Grace = "5s",  # type: ignore[assignment]  # typer parses it
    log_format: Format = None,
    log_level: Level = LogLevel.info,
    reload_: Annotated[
        bool, typer.Option("--reload/--no-reload", help="Start anew when a source file changes.", rich_help_panel=_RUN)
    ] = True,
    reload_dir: Folders = None,
    sqs_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65_535, metavar="PORT", help="Serve the memory broker on this port as SQS, to other processes.", rich_help_panel=_RUN
        ),
    ] = None,
    lie: Annotated[
        int | None, typer.Option(metavar="SEED", help="Let that SQS misbehave as the real one may.", rich_help_panel=_RUN)
    ] = None,
) -> None:
    """Work on your machine: broker, worker and timer in one process.

    It starts anew as you edit. With memory:// (what an app has until a broker is set) everything happens in this process,
    and what is queued is gone when it ends.

    [dim]cloudq -A shop.tasks:app dev[/]
    [dim]cloudq dev --sqs-port 9324[/]      a web process with AWS_ENDPOINT_URL=http://127.0.0.1:9324 and sqs:// sends here
    """
    if lie is not None and sqs_port is None:
        raise typer.BadParameter("it is the SQS of --sqs-port that lies", param_hint="--lie")
    served = None if sqs_port is None else f"sqs://127.0.0.1:{sqs_port}/" + ("" if lie is None else f"?lie={lie}")
    options = WorkerOptions(  # a short wait, so that a reload is quick
        queues=weights(queues or []), concurrency=concurrency, grace=grace, wait=2.0, schedules=True
    )
    _work(state_of(context), "dev", options, log_format, log_level, [*(reload_dir or [Path()])] if reload_ else None, served)


def weights(texts: list[str]) -> dict[str, int]:
    """``["high=5,low", "bulk"]`` as weights; a queue without one has 1."""
    found: dict[str, int] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        if not part:
            continue
        name, equals, weight = part.rpartition("=") if part.rpartition("=")[2].isdigit() else (part, "", "1")
        if not name or "=" in name or not 1 <= int(weight) <= 1000:
            raise typer.BadParameter(f"{part!r}: write a queue as name or name=weight, with a weight of 1 to 1000", param_hint="--queues")
        if name in found:
            raise typer.BadParameter(f"{name!r} stands twice", param_hint="--queues")
        found[name] = int(weight) if equals else 1
    return found


def _work(
    state: State,
    role: str,
    options: WorkerOptions,
    format: LogFormat | None,
    level: LogLevel,
    watched: list[Path] | None,
    served: str | None = None,
    *,
    events: bool = False,
) -> None:
    """Run a worker. ``served`` is a URL at which its broker is served to other processes; with ``events`` it writes them."""
    chosen = format or (LogFormat.rich if sys.stderr.isatty() else LogFormat.plain)
    _log(chosen, "DEBUG" if state.debug else level.value.upper())
    generation = reload.generation()
    if watched is not None and generation is None:
        state.reference()  # what can be said at once is said here
        raise typer.Exit(reload.Supervisor(watched, options.grace).run())
    if generation is not None:
        reload.end_with_parent()
    app = state.load()
    if role == "worker":
        _refuse_local(app, options)
    if events:
        app.conf.events = True
    runs = f"{options.processes} processes" if options.processes else f"{options.concurrency} at once"
    work = Worker(app, options)
    if chosen is LogFormat.rich and not generation:
        err().print(banner(app, role, runs, work.queues))
    if generation == 0 and app.broker.limits.local:
        say("memory:// starts empty: what is queued is lost when a change starts this anew", "dim")
    with adapters.serve(served, app.broker) if served else nullcontext() as endpoint:
        if endpoint and not generation:
            say(f"SQS is at {endpoint}: other processes reach it with AWS_ENDPOINT_URL={endpoint}", "dim")
        reason = work.run()
    app.close()
    if reason is StopReason.RECYCLE:
        logging.shutdown()
        reload.replace_process()


def _log(format: LogFormat, level: str) -> None:
    if format is LogFormat.rich:
        logs.install(LiveHandler(err()), level)
    else:
        logs.configure("json" if format is LogFormat.json else "plain", level)


def _refuse_local(app: CloudQ, options: WorkerOptions) -> None:
    if app.broker.limits.local:
        alone = "its children could not reach it" if options.processes else "no other process could send to this worker"
        raise ConfigError(
            f"memory:// lives inside one process, so {alone}: use `cloudq dev` on your machine, "
            "or set a broker that processes share (CLOUDQ_BROKER=sqs://…)"
        )
