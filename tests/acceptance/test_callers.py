"""A call works wherever it is made: in a web view, a running loop, a forked child, threads, and when the interpreter ends."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
import textwrap
import threading
import time
import types
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloudq import CloudQ, ConfigError, SendUnknown, adapters
from cloudq.broker import Broker
from cloudq.errors import Closed
from cloudq.io import drive
from cloudq.message import parse
from cloudq.worker import Worker, WorkerOptions
from tests.proxy import Fault, Hang, Request, proxy
from tests.servers import SQSServer, moto, unique, use
from tests.waiting import until

URL = "sqs://eu-west-1/?lease=5&wait=1"


@pytest.fixture(scope="module")
def sqs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SQSServer]:
    """One server that is none of ours: these tests are about callers, and long."""
    with moto(tmp_path_factory.mktemp("moto")) as server:
        yield server
        server.boto3.close()


def make(sqs: SQSServer, **settings: object) -> CloudQ:
    """An app on SQS with a queue of its own and one task."""
    queue = unique()
    sqs.make_queue(queue, dead_letter=f"{queue}-dlq")
    return with_task(CloudQ("callers", broker=URL, default_queue=queue, **settings))


def with_task(app: CloudQ) -> CloudQ:
    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    return app


def sent(sqs: SQSServer, app: CloudQ) -> list[list[int]]:
    """The arguments of all messages in the app's queue."""
    url = sqs.boto3.get_queue_url(QueueName=app.conf.default_queue)["QueueUrl"]
    found: list[list[int]] = []
    while batch := sqs.boto3.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
        found += [parse(message["Body"])["args"] for message in batch]
    return sorted(found)


def forked(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked child, as a pre-fork server does; returns the child's pid. It exits with 0 where all went well."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            os.write(2, f"child: {error!r}\n".encode())
        finally:
            os._exit(code)
    return pid


def exit_code(pid: int, within: float = 60.0) -> int:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return -9


# ---------------------------------------------------------------------- web views, loops, threads


def test_delay_works_in_a_flask_view(sqs: SQSServer) -> None:
    from flask import Flask
    from werkzeug.serving import make_server

    app, web = make(sqs), Flask("web")

    @web.get("/add/<int:x>")
    def view(x: int) -> str:
        return str(app["add"].delay(x, 1).id)

    @web.get("/async/<int:x>")
    async def aview(x: int) -> str:
        return (await app["add"].adelay(x, 1)).id

    server = make_server("127.0.0.1", 0, web, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        paths = ["add/1", "add/2"] + (["async/3"] if _has_asgiref() else [])

        def get(path: str) -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/{path}", timeout=60) as answer:
                return str(answer.read().decode())

        with ThreadPoolExecutor(3) as pool:
            ids = list(pool.map(get, paths))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert len(set(ids)) == len(paths)
    assert sent(sqs, app) == [[x + 1, 1] for x in range(len(paths))]
    app.close()


def _has_asgiref() -> bool:
    from importlib.util import find_spec

    return find_spec("asgiref") is not None


def test_delay_and_adelay_work_in_a_running_loop_and_in_one_after_another(sqs: SQSServer) -> None:
    app = make(sqs)

    async def main(base: int) -> None:
        app["add"].delay(base, 0)
        await app["add"].adelay(base, 1)
        await asyncio.gather(*(app["add"].adelay(base, y) for y in range(2, 6)))

    asyncio.run(main(1))
    asyncio.run(main(2))
    assert sent(sqs, app) == [[base, y] for base in (1, 2) for y in range(6)]
    app.close()


def test_delay_works_from_many_threads_at_once(sqs: SQSServer) -> None:
    app = make(sqs)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda x: app["add"].delay(x, 0), range(40)))
    assert sent(sqs, app) == [[x, 0] for x in range(40)]
    app.close()


def test_delay_works_again_after_close(sqs: SQSServer) -> None:
    app = make(sqs)
    app["add"].delay(1, 0)
    app.close()
    app["add"].delay(2, 0)
    app.close()
    assert sent(sqs, app) == [[1, 0], [2, 0]]


def test_delay_from_the_io_thread_itself_raises_closed_at_once(sqs: SQSServer) -> None:
    app = make(sqs)

    async def main() -> float:
        began = time.monotonic()
        with pytest.raises(Closed, match="I/O thread"):
            app["add"].delay(1, 0)
        with pytest.raises(Closed, match="I/O thread"):
            app.send_many([app["add"].s(1, 0)])
        await app["add"].adelay(2, 0)
        return time.monotonic() - began

    assert app.io.run(main()) < 20  # a call may wait for 30 s
    assert sent(sqs, app) == [[2, 0]]
    app.close()


# ---------------------------------------------------------------------- forks


def test_a_forked_child_sends_although_its_parent_has_sent_before(sqs: SQSServer) -> None:
    app = make(sqs)
    app["add"].delay(0, 0)
    children = [forked(lambda x=x: app["add"].delay(x, 0)) for x in (1, 2, 3)]  # type: ignore[misc]
    app["add"].delay(4, 0)
    assert [exit_code(pid) for pid in children] == [0, 0, 0]
    app["add"].delay(5, 0)
    assert sent(sqs, app) == [[x, 0] for x in range(6)]
    app.close()


def test_a_child_forked_while_other_threads_are_sending_sends_what_is_its_own(sqs: SQSServer) -> None:
    app, stop = make(sqs), threading.Event()
    count = 0

    def busy() -> None:
        nonlocal count
        while not stop.is_set():
            app["add"].delay(0, count)
            count += 1

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        children = [forked(lambda x=x: app["add"].delay(1, x)) for x in range(4)]  # type: ignore[misc]
        codes = [exit_code(pid) for pid in children]
    finally:
        stop.set()
        thread.join()
    assert codes == [0] * 4
    found = sent(sqs, app)
    assert found == [[0, y] for y in range(count)] + [[1, x] for x in range(4)]
    app.close()


def test_a_child_forked_while_another_thread_imports_a_driver_can_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = tmp_path / "began"
    (tmp_path / "slowly.py").write_text(f"import pathlib, time\npathlib.Path({str(began)!r}).touch()\ntime.sleep(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    app, opened = with_task(CloudQ("callers", broker="memory://")), adapters.open_broker

    def slowly(url: str, context: adapters.AdapterContext) -> Broker:
        importlib.import_module("slowly")
        return opened(url, context)

    monkeypatch.setattr(adapters, "open_broker", slowly)
    thread = threading.Thread(target=lambda: app.broker)
    thread.start()
    until(began.exists, "the import's beginning")
    assert exit_code(forked(lambda: app["add"].delay(1, 2)), within=20) == 0
    thread.join()


def test_a_child_forked_while_threads_use_the_memory_drivers_can_call() -> None:
    app, stop = with_task(CloudQ("callers", broker="memory://", store="memory://", queues=["busy"])), threading.Event()

    def busy() -> None:
        while not stop.is_set():
            app["add"].apply_async((1, 2), countdown=0.001, queue="busy")

    def child() -> None:
        assert app["add"].delay(1, 2).state == "QUEUED"
        app["add"].apply_async((1, 2), countdown=5_000)
        worker = Worker(app, WorkerOptions(concurrency=2, wait=0.5, queues={"default": 1}))
        result = app["add"].delay(20, 3)
        worker.start()
        assert result.get(timeout=60) == 23
        worker.stop()
        worker.join(60)

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        codes = [exit_code(forked(child)) for _ in range(8)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 8


# ---------------------------------------------------------------------- the interpreter's end


def ends(code: str, env: dict[str, str] | None = None) -> None:
    """``code`` runs in a process of its own, which ends soon after its last line, with 0 and no word on stderr."""
    command = [sys.executable, "-W", "error", "-c", f"{textwrap.dedent(code)}\nimport time\nprint(time.time())"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **(env or {})})
    assert (ran.returncode, ran.stderr) == (0, "")
    assert time.time() - float(ran.stdout) < 20  # what a call may wait for, and a worker at its end, is longer


DEFINE = """
from cloudq import CloudQ
app = CloudQ("ends", broker={broker!r}, store="memory://", default_queue={queue!r}, send_timeout=60)
@app.task(name="add")
def add(x: int, y: int) -> int: return x + y
"""


def test_a_process_with_an_unclosed_app_ends_at_once(sqs: SQSServer) -> None:
    app = make(sqs)
    ends(DEFINE.format(broker=URL, queue=app.conf.default_queue) + "add.delay(1, 2)")
    assert sent(sqs, app) == [[1, 2]]


@pytest.mark.parametrize("broker", ["memory", "sqs"])
def test_a_process_with_a_running_worker_and_calls_not_yet_worked_off_ends_at_once(sqs: SQSServer, broker: str) -> None:
    app = make(sqs)
    code = """
    @app.task
    async def forever() -> None:
        import asyncio
        await asyncio.sleep(1_000)

    from cloudq.worker import Worker, WorkerOptions
    Worker(app, WorkerOptions(concurrency=2)).start()
    forever.delay()
    for x in range(20):
        add.apply_async((x, 0), countdown=30 if x % 2 else 0)
    """
    url = URL if broker == "sqs" else "memory://"
    ends(DEFINE.format(broker=url, queue=app.conf.default_queue) + textwrap.dedent(code))


def test_a_process_with_sends_that_never_come_to_an_end_ends_all_the_same(sqs: SQSServer, tmp_path: Path) -> None:
    app, asked = make(sqs), tmp_path / "asked"
    code = """
    import os, threading, time
    def call():
        try:
            add.delay(1, 2)
        except Exception:
            pass
    threading.Thread(target=call, daemon=True).start()
    while not os.path.exists(os.environ["ASKED"]):
        time.sleep(0.02)
    """

    def hang(request: Request) -> Fault | None:
        if request.action != "SendMessageBatch":
            return None
        asked.touch()
        return Hang()

    with proxy(sqs.endpoint) as between:
        between.decide = hang
        env = {"AWS_ENDPOINT_URL": between.endpoint, "ASKED": str(asked)}
        ends(DEFINE.format(broker=URL, queue=app.conf.default_queue) + textwrap.dedent(code), env)


def test_a_call_in_an_exit_handler_of_the_user_is_sent_or_refused_and_never_hangs(sqs: SQSServer) -> None:
    app = make(sqs)
    code = """
    import atexit
    atexit.register(lambda: add.delay(3, 4))
    add.delay(1, 2)
    """
    ends(DEFINE.format(broker=URL, queue=app.conf.default_queue) + textwrap.dedent(code))
    assert sent(sqs, app) == [[1, 2], [3, 4]]


# ---------------------------------------------------------------------- what cannot work says so


def test_uwsgi_without_threads_is_told_what_to_set(sqs: SQSServer, monkeypatch: pytest.MonkeyPatch) -> None:
    app, uwsgi = make(sqs), types.ModuleType("uwsgi")
    uwsgi.opt = {"http": b":8000"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    with pytest.raises(ConfigError, match="enable-threads"):
        app["add"].delay(1, 2)
    uwsgi.opt["enable-threads"] = True
    app["add"].delay(1, 2)
    assert sent(sqs, app) == [[1, 2]]
    app.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_call_whose_broker_hangs_is_unknown_in_time_and_its_repetition_runs_once(
    sqs: SQSServer, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    ran: list[int] = []
    with proxy(sqs.endpoint) as between:
        use({**sqs.env, "AWS_ENDPOINT_URL": between.endpoint}, monkeypatch)
        app = make(sqs, store="memory://")

        @app.task(name="note")
        def note(x: int) -> int:
            ran.append(x)
            return x

        note.delay(0)  # what takes long is not the connection
        app.sender.patience = 3.0
        between.decide = lambda request: Hang() if request.action == "SendMessageBatch" and request.number == 2 else None
        began = time.monotonic()
        with pytest.raises(SendUnknown) as caught:
            asyncio.run(note.adelay(1)) if asynchronous else note.delay(1)
        assert time.monotonic() - began < 20  # by default it may take 30 s
        app.sender.patience = 60.0
        assert caught.value.task_id in str(caught.value)
        for _ in range(2):
            again = note.options(task_id=caught.value.task_id).delay(1)
        assert again.id == caught.value.task_id
        worker = Worker(app, WorkerOptions(concurrency=4, wait=1.0))
        worker.start()
        try:
            assert again.get(timeout=60) == 1
            deadline = time.monotonic() + 60
            while sqs.depth(app.conf.default_queue) and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            worker.stop()
            worker.join(60)
            app.close()
    assert sorted(ran) == [0, 1]


def test_the_memory_broker_is_local_and_needs_no_thread() -> None:
    app = with_task(CloudQ("callers", broker="memory://"))
    before = set(threading.enumerate())
    app["add"].delay(1, 2)
    assert set(threading.enumerate()) <= before
    assert drive(app.broker.stats("default")).ready == 1
