"""The demo of the README, on a small folder: what it says happened, and what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloudq.testing.suite import is_busy

DEMO = Path(__file__).parents[2] / "examples/index_folder/demo.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five files to index: a picture, two texts that are the same, one in a folder below, and a name with a space."""
    made = tmp_path / "to index"
    (made / "below").mkdir(parents=True)
    (made / "one.txt").write_text("seven silver swans swam\nsilently seaward\n")
    (made / "below" / "same.txt").write_text("seven silver swans swam\nsilently seaward\n")
    (made / "two words.txt").write_text("silver\n" * 7)
    (made / "empty.txt").touch()
    (made / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", 640, 480))
    (made / ".hidden").write_text("not of the index")
    return made


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where the demo makes its temporary files."""
    made = tmp_path / "scratch"
    made.mkdir()
    return made


def start(folder: Path, scratch: Path) -> subprocess.Popen[str]:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background has it ignored, as its children would
    env = {**os.environ, "TMPDIR": str(scratch), "COLUMNS": "100", "CLOUDQ_BROKER": "nowhere://", "AWS_PROFILE": "nobody"}
    return subprocess.Popen([sys.executable, str(DEMO), str(folder)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(process: subprocess.Popen[str]) -> None:
    """So that it ends its own children, too."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()


def living(scratch: Path) -> list[int]:
    """The processes that were started with this folder for temporary files, where the system tells."""
    found: list[int] = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"TMPDIR={scratch}".encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def finished(folder: Path, scratch: Path) -> str:
    process = start(folder, scratch)
    try:
        said, _ = process.communicate(timeout=300)
    finally:
        end(process)
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
def test_the_demo_accounts_for_every_call_on_both_brokers_and_leaves_nothing_behind(finished: str, scratch: Path) -> None:
    assert re.findall(r"(\d+) sent = (\d+) done \+ (\d+) dead", finished) == [("9", "8", "1")] * 2
    assert "18 calls: 16 done, 2 kept as dead letters, none lost." in finished
    assert finished.count("5/5") == 4
    assert finished.count("attempt 3: 6 words published") == 2
    assert finished.count("FileNotFoundError") == 2
    assert "The index is the same as before, word for word." in finished
    waits = [float(wait) for wait in re.findall(r"began ([\d.]+) s later: yes", finished)]
    assert len(waits) == 2
    assert min(waits) >= 1.0
    assert re.search(r"silver +9 +3\n", finished), finished
    assert "1 picture " in finished
    assert "1 duplicate\n" in finished
    assert not list(scratch.iterdir())
    assert "\x1b" not in finished, "piped output has no colours"


@pytest.mark.slow
def test_ctrl_c_ends_the_demo_and_the_processes_that_it_started(folder: Path, scratch: Path) -> None:
    for _ in range(3):  # where this process is held up, the demo may come to its end before the signal
        code, said, processes = interrupted(folder, scratch)
        if (code, processes) == (130, 3) or not is_busy():
            break
    assert code == 130, said
    assert processes == 3 or not Path("/proc").exists(), "the demo, its SQS server and its worker"
    assert "Stopped" in said
    assert "Traceback" not in said
    assert not living(scratch)
    assert not list(scratch.iterdir())


def interrupted(folder: Path, scratch: Path) -> tuple[int, str, int]:
    """Start the demo, and press Ctrl-C once its worker is ready: its exit code, what it said, and how many processes there were."""
    process = start(folder, scratch)
    try:
        deadline = time.monotonic() + 120
        while not any("ready" in log.read_text() for log in scratch.glob("*/worker.log")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        processes = len(living(scratch))
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    finally:
        end(process)
    return process.returncode, said, processes


def test_a_folder_that_is_none_is_said_in_a_line(tmp_path: Path, scratch: Path) -> None:
    process = start(tmp_path / "none", scratch)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "is no folder; say: make demo FOLDER=path/to/folder" in " ".join(said.split())
