"""Indexes a folder twice with the tasks of tasks.py: in this process on memory, then by a worker process on SQS over HTTP.

    python demo.py [FOLDER]

It needs no account and no network: SQS is cloudq's own server, a process on 127.0.0.1. All else is as it would be in production.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from cloudq import AsyncResult, CloudQ, CloudQError, letters
from cloudq.worker import Worker, WorkerOptions

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
MOST_FILES = 300
"""Files at most, so that it stays a matter of seconds."""
PATIENCE = 90.0
"""Seconds that each half may take."""
LARGEST = 5_000_000
"""Bytes of a file at most, so that a folder of films does not take the evening."""
SKIPPED = {"__pycache__", "node_modules", "build", "dist"}
REGION = "eu-west-1"

console = Console(highlight=False)


def main(arguments: Sequence[str]) -> int:
    folder = Path(arguments[0] if arguments else REPOSITORY).expanduser().resolve()
    if len(arguments) > 1 or not folder.is_dir():
        console.print(f"{folder} is no folder; say: make demo FOLDER=path/to/folder", markup=False)
        return 2
    found = sorted(files_of(folder))
    files = found[:MOST_FILES]
    if not files:
        console.print(f"{folder} holds no files to index; say: make demo FOLDER=path/to/folder", markup=False)
        return 2
    console.print()
    some = f"the first {len(files)} of {len(found):,} files" if len(found) > len(files) else several(len(files), "file")
    console.print(f"[bold]An index of {escape(short(folder))}[/]: {some}, a task each")
    signal.signal(signal.SIGTERM, interrupted)
    for setting in [name for name in os.environ if name.startswith(("AWS_", "CLOUDQ_"))]:
        del os.environ[setting]  # the reader's own accounts stay out of this
    with tempfile.TemporaryDirectory(prefix="cloudq-demo-") as name:
        scratch = Path(name)
        logging.basicConfig(filename=scratch / "demo.log", level=logging.INFO)
        try:
            first = on_memory(folder, files)
            second = on_sqs(folder, files, scratch, first)
        except KeyboardInterrupt:
            console.print("\n  Stopped: the processes that the demo started have ended, and its files are gone.")
            return 130
        except (CloudQError, OSError) as error:  # TimeoutError is an OSError
            console.print(f"\n  The demo did not get through: {error}", markup=False, style="red")
            for log in sorted(scratch.glob("*.log")):
                console.print(f"\n  the end of {log.name}:\n{log.read_text(errors='replace')[-1500:]}", markup=False, style="dim")
            return 1
    return conclude(first, second)


# ---------------------------------------------------------------------- the two halves


def on_memory(folder: Path, files: Sequence[Path]) -> Tally:
    """Everything in this process: broker, store, worker."""
    heading(1, "One process: memory broker, memory store, worker threads")
    tasks = import_tasks(CLOUDQ_BROKER="memory://", CLOUDQ_STORE="memory://")
    worker = Worker(tasks.app, WorkerOptions(concurrency=10))
    worker.start()
    try:
        return index_folder(tasks, folder, files)
    finally:
        worker.stop()
        worker.join(30)
        tasks.app.close()


def on_sqs(folder: Path, files: Sequence[Path], scratch: Path, first: Tally) -> Tally:
    """A queue service over HTTP, results in a SQLite file, and the worker as a process of its own."""
    heading(2, "The same tasks.py on SQS over HTTP, results in SQLite, the worker a process")
    with ExitStack() as stack:
        tasks = import_tasks(
            CLOUDQ_BROKER=f"sqs://{REGION}/?prefix=demo-&wait=1",  # short polls: who stops waits for the last one
            CLOUDQ_STORE=f"sqlite:///{scratch / 'results.sqlite3'}",
            AWS_ACCESS_KEY_ID="demo",
            AWS_SECRET_ACCESS_KEY="demo",
            AWS_EC2_METADATA_DISABLED="true",
            AWS_CONFIG_FILE=os.devnull,
            AWS_SHARED_CREDENTIALS_FILE=os.devnull,
            NO_PROXY="127.0.0.1",
            no_proxy="127.0.0.1",
        )
        stack.callback(tasks.app.close)
        queues = [f"demo-{name}" for queue in tasks.app.queues for name in (queue, tasks.app.dead_letter_queue(queue))]
        os.environ["AWS_ENDPOINT_URL"] = endpoint = stack.enter_context(sqs_server(scratch / "sqs.log", queues))
        command = ["cloudq", "-A", "tasks:app", "worker"]
        worker = stack.enter_context(process([str(Path(sys.executable).with_name("cloudq")), *command[1:]], scratch / "worker.log"))
        console.print(f"  [dim]$ {shlex.join(command)}[/]")
        tally = index_folder(tasks, folder, files, first=first, alive=lambda: worker.poll() is None)
        count = requests(endpoint)
        console.print(f"  [dim]{count} requests to SQS, waiting polls included: {count / tally.sent:.1f} a task[/]")
        return tally


# ---------------------------------------------------------------------- the job: the same for both


@dataclass(frozen=True)
class Tally:
    """What was sent, and what became of it."""

    sent: int
    done: int
    dead: int
    words: Counter[str]


def index_folder(
    tasks: ModuleType, folder: Path, files: Sequence[Path], *, first: Tally | None = None, alive: Callable[[], bool] = lambda: True
) -> Tally:
    """Send a task a file, follow them, and show what they found: where it is the same as at first, just that."""
    app: CloudQ = tasks.app
    began = time.monotonic()
    entries = app.send_many(tasks.index.s(path) for path in files)
    gone = tasks.index.delay(folder / "a-file-that-is-gone.txt")
    comparing = tasks.find_duplicates.delay(files)
    sending = time.monotonic() - began
    console.print(f"  {len(files) + 2} calls sent in {sending:.2f} s\n")

    with progress_bars() as bars:
        indexed = bars.add_task("index", total=len(files))
        compared = bars.add_task("find_duplicates", total=len(files))
        for waiting in follow([*entries, comparing], alive):
            bars.update(indexed, completed=len(files) - sum(result is not comparing for result in waiting))
            bars.update(compared, completed=progress_of(comparing) if comparing in waiting else len(files))

    index = [result.get() for result in entries if result.successful()]
    words = Counter[str]()
    for entry in index:
        words += entry.words
    published = tasks.publish.delay(dict(words.most_common(100)))
    later = tasks.is_unchanged.options(delay="1s").delay(index[0].path, index[0].sha256)
    for _ in follow([published, later, gone], alive):
        pass
    taken = time.monotonic() - began

    console.print()
    show_retry(published)
    show_delay(later)
    queue = app.dead_letter_queue(app.conf.default_queue)
    dead = app.use_broker(lambda _: letters.scan(app, queue)).letters
    for letter in dead:
        say("dead", "red", f"{letter.task}: {letter.reason}, in {queue!r}")
    console.print()
    if first is not None and first.words == words:
        console.print("  The index is the same as before, word for word.")
    else:
        show_index(index, words, comparing.get())

    results = [*entries, gone, comparing, published, later]
    done = sum(result.successful() for result in results)
    console.print(f"\n  [bold]{len(results)} sent = {done} done + {len(dead)} dead[/], in {taken:.1f} s")
    return Tally(len(results), done, len(dead), words)


def follow(results: Sequence[AsyncResult[Any]], alive: Callable[[], bool]) -> Iterator[Sequence[AsyncResult[Any]]]:
    """Yield those that have not ended, until all have."""
    waiting, deadline = list(results), time.monotonic() + PATIENCE
    while waiting:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(waiting)} of {len(results)} tasks did not end within {PATIENCE:.0f} s")
        if not alive():
            raise OSError("the worker process has ended")
        time.sleep(0.05)
        waiting = [result for result in waiting if not result.ready()]
        yield waiting


def progress_of(result: AsyncResult[Any]) -> int:
    """What the task itself said by ``update_state``."""
    said = result.info
    return int(said["done"]) if isinstance(said, dict) else 0


# ---------------------------------------------------------------------- what a reader sees


def heading(number: int, text: str) -> None:
    console.print(f"\n[bold cyan]{number}[/]  [bold]{escape(text)}[/]\n")


def progress_bars() -> Progress:
    columns = TextColumn("  {task.description:<16}"), BarColumn(bar_width=36), MofNCompleteColumn()
    return Progress(*columns, console=console)


def say(word: str, style: str, text: str) -> None:
    console.print(f"  [{style}]{word:<8}[/] {escape(text)}")


def show_retry(result: AsyncResult[str]) -> None:
    attempts = (result.record or {})["attempt"] + 1
    say("retried", "yellow", f"publish: the server was busy; attempt {attempts}: {result.get()}")


def show_delay(result: AsyncResult[bool]) -> None:
    record = result.record or {}
    answer = "yes" if result.get() else "no"
    say("delayed", "cyan", f'is_unchanged: called with delay="1s", began {record["started"] - record["sent"]:.1f} s later: {answer}')


def show_index(index: Sequence[Any], words: Counter[str], duplicates: Sequence[Sequence[Path]]) -> None:
    files = {word: sum(word in entry.words for entry in index) for word, _ in words.most_common(5)}
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for title, justify in (("word", "left"), ("times", "right"), ("in files", "right")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for word, times in words.most_common(5):
        table.add_row(word, f"{times:,}", f"{files[word]:,}")
    console.print(Padding(table, (0, 0, 0, 2), expand=False))
    pictures = sum(entry.picture is not None for entry in index)
    facts = [
        f"{sum(entry.bytes for entry in index) / 1e6:,.1f} MB",
        f"{sum(entry.lines for entry in index):,} lines",
        f"{len(words):,} different words",
        *([several(pictures, "picture")] if pictures else []),
        several(sum(len(group) - 1 for group in duplicates), "duplicate"),
    ]
    console.print(f"  [dim]{' · '.join(facts)}[/]")


def conclude(first: Tally, second: Tally) -> int:
    if any(tally.sent != tally.done + tally.dead for tally in (first, second)):
        console.print("  The numbers do not add up: that is a bug in cloudq.", style="red")
        return 1
    console.print(
        f"\n[bold]{first.sent + second.sent} calls: {first.done + second.done} done, {first.dead + second.dead} kept as dead letters, "
        "none lost.[/]\n\n"
        "Next  examples/index_folder/tasks.py   what ran, twice, unchanged\n"
        "      README.md                        a first task of your own\n"
        "      make demo FOLDER=~/Documents     the same over your own files, only read\n"
    )
    return 0


def several(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def short(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) and path != home else str(path)


# ---------------------------------------------------------------------- what surrounds it


def files_of(folder: Path) -> Iterator[Path]:
    """The files below, without what is hidden, generated, linked, large, not ours to read or oddly named."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in SKIPPED]
        for path in (Path(place, name) for name in names if not name.startswith(".") and name.isprintable()):
            if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK) and path.stat().st_size <= LARGEST:
                yield path


def import_tasks(**settings: str) -> ModuleType:
    """Import tasks.py afresh, as a process with this environment would."""
    os.environ.update(settings)
    sys.modules.pop("tasks", None)
    return importlib.import_module("tasks")


@contextmanager
def sqs_server(log: Path, queues: Sequence[str]) -> Iterator[str]:
    """A server that speaks SQS and has these queues (in a cloud they are deployed: cloudq creates none); yields its endpoint."""
    made = [part for queue in queues for part in ("--queue", queue)]
    with process([sys.executable, "-m", "cloudq_aws.server", *made], log) as server:
        deadline = time.monotonic() + 30
        while not (said := log.read_text()).endswith("\n"):
            if server.poll() is not None or time.monotonic() > deadline:
                raise OSError("the SQS server did not start")
            time.sleep(0.02)
        yield said.strip()


@contextmanager
def process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process beside us until the block ends; Ctrl-C reaches us alone, and we end it."""
    with log.open("wb") as output:
        child = subprocess.Popen(command, cwd=HERE, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def requests(endpoint: str) -> int:
    """How many requests the server has answered."""
    with urllib.request.urlopen(f"{endpoint}/_cloudq/stats", timeout=10) as answer:
        return sum(json.load(answer)["requests"].values())


def interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
