"""vagrant/lab as one types it: several at once, interrupted, after a crash of the laboratory, with wrong words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.lab
COMMAND = Path(__file__).resolve().parents[2] / "vagrant" / "lab"


class Terminal:
    """The verbs of one laboratory, which its registry file names."""

    def __init__(self, registry: Path) -> None:
        self.registry = registry
        self.environment = {**os.environ, "MIRRORHA_LAB": str(registry)}

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *words], env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [COMMAND, *words], env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    @property
    def unshare(self) -> psutil.Process:
        return psutil.Process(json.loads(self.registry.read_text(encoding="utf-8"))["unshare_pid"])


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path / "lab.json")
    yield terminal
    terminal("down")


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)


def says(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refused verb prints."""
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_up_lets_go_of_the_pipe_it_prints_to(lab: Terminal) -> None:
    assert lab("up").returncode == 0  # a laboratory that held the pipe would let this wait for a minute
    assert "alpha    on" in lab("status").stdout
    assert lab("run", "alpha", "hostname").stdout == "alpha\n"
    assert lab("run", "alpha", "sh", "-c", "exit 7").returncode == 7
    assert {line.partition("=")[0] for line in lab("run", "alpha", "env").stdout.splitlines()} == {
        "PATH", "LANG", "HOME", "TERM",
    }  # fmt: skip
    assert says(lab("run", "gamma", "true")).startswith("lab: node gamma: is not in this laboratory; choose one of ")
    assert says(lab("up")) == "lab: one is up already; vagrant/lab down first\n"
    unshare = lab.unshare
    assert lab("down").returncode == 0
    assert ended(unshare)
    assert says(lab("down")) == "lab: no laboratory is up; vagrant/lab up\n"


def test_of_two_that_come_up_at_once_one_is_refused(lab: Terminal) -> None:
    both = [lab.start("up"), lab.start("up")]
    output = sorted(process.communicate(timeout=60)[0] for process in both)
    assert output[0].startswith("lab: one is up already")
    assert output[1].startswith("laboratory up")


@pytest.mark.parametrize("after_s", [0.3, 0.6, 0.9])
def test_an_up_that_is_killed_leaves_a_laboratory_that_down_ends_or_none(lab: Terminal, after_s: float) -> None:
    directory = str(lab.registry.parent)
    with lab.start("up") as command:
        try:
            command.wait(after_s)
        except subprocess.TimeoutExpired:
            command.kill()
    lab("down")
    deadline = time.monotonic() + 10
    while left := [process for process in psutil.process_iter() if _has_in_environment(process, directory)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.05)


def _has_in_environment(process: psutil.Process, text: str) -> bool:
    try:
        return process.pid != os.getpid() and text in process.environ().get("MIRRORHA_LAB", "")
    except psutil.Error:
        return False


def test_after_a_crash_of_the_laboratory_it_can_be_brought_up_again(lab: Terminal) -> None:
    lab("up")
    lab.unshare.kill()
    deadline = time.monotonic() + 10
    while lab("status").returncode == 0:
        assert time.monotonic() < deadline
    assert says(lab("status")) == "lab: no laboratory is up; vagrant/lab up\n"
    assert lab("up").returncode == 0


def test_down_ends_a_laboratory_whose_supervisor_does_not_answer(lab: Terminal) -> None:
    lab("up")
    unshare = lab.unshare
    unshare.children()[0].send_signal(signal.SIGSTOP)
    lab("down")
    assert ended(unshare)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "not JSON", '{"unshare_pid": 1, "start_time": "1"}'])
def test_a_registry_that_means_nothing_means_that_no_laboratory_is_up(lab: Terminal, text: str) -> None:
    lab.registry.write_text(text, encoding="utf-8")
    assert says(lab("status")) == "lab: no laboratory is up; vagrant/lab up\n"
