"""A closed place for tests of agents that start and kill processes: PID, mount and IPC namespaces of its own.

The agents are laid over /usr/lib/ocf as installed. Everything inside dies with the process that holds the place, which
ends when its standard input closes, so nothing is left behind however a test run ends; and a bug in an agent that kills
too much finds nobody else to kill.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

OCF = "/usr/lib/ocf"
AGENTS = f"{OCF}/resource.d/mirrorha"
AGENT = f"{AGENTS}/Application"
LIMIT_S = 20
POLL_S = 0.01

# PID 1 inside: adopts and reaps orphans as a real init does, and ends with its standard input
INIT = "import signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); print('ready', flush=True); sys.stdin.read()"


@dataclass(frozen=True)
class Ran:
    """How an agent ended: exit code, exit reason ("" if none), all of standard error, wall time in seconds."""

    code: int
    reason: str
    errors: str
    output: str
    seconds: float


@dataclass(frozen=True)
class Seen:
    """One process inside, with the pids of the inside. `state` is the letter of /proc/<pid>/stat."""

    pid: int
    parent: int
    state: str
    command: str


@dataclass(frozen=True)
class Cell:
    """`directory` is the same path inside and outside, writable for everybody."""

    init: int
    directory: Path

    def enter(self, *arguments: str) -> list[str]:
        return ["nsenter", "-t", str(self.init), "-m", "-p", "-i", "--", *arguments]

    def run(self, *arguments: str) -> str:
        done = subprocess.run(self.enter(*arguments), capture_output=True, text=True, timeout=LIMIT_S, check=True)
        return done.stdout

    def spawn(self, *arguments: str, user: str = "root") -> subprocess.Popen[bytes]:
        """A process inside that has nothing to do with any agent. End it by `kill()`, or let the cell do so."""
        become = ["setpriv", f"--reuid={user}", "--clear-groups"] if user != "root" else []
        null = subprocess.DEVNULL
        return subprocess.Popen(self.enter(*become, *arguments), stdin=null, stdout=null, stderr=null)

    def processes(self) -> list[Seen]:
        """All inside but the init and whoever looks, zombies left out."""
        listing = self.run("ps", "-ww", "-eo", "pid=,ppid=,state=,args=")
        found = []
        for line in listing.splitlines():
            pid, parent, state, command = line.split(None, 3)
            if int(pid) > 1 and not command.startswith("ps -ww -eo") and state != "Z":
                found.append(Seen(int(pid), int(parent), state, command))
        return found

    def named(self, text: str) -> list[Seen]:
        return [process for process in self.processes() if text in process.command]

    def end_all(self) -> None:
        for process in self.processes():
            subprocess.run(self.enter("kill", "-9", str(process.pid)), check=False, stderr=subprocess.DEVNULL)

    def script(self, name: str, text: str, mode: int = 0o755) -> str:
        path = self.directory / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(mode)
        return str(path)


class Subject:
    """One resource of an agent inside a cell. `run_directory` holds its records."""

    def __init__(
        self,
        cell: Cell,
        instance: str,
        parameters: Mapping[str, str],
        timeout_s: float = 10,
        agent: str = "Application",
    ) -> None:
        self.cell = cell
        self.agent = agent
        self.instance = instance
        self.parameters = dict(parameters)
        self.timeout_s = timeout_s
        self.surroundings: dict[str, str] = {}  # more of what the manager passes on
        self.run_directory = cell.directory / f"run-{instance}"
        self.run_directory.mkdir(exist_ok=True)

    def command(self, action: str, *, timeout_s: float, is_probe: bool = False) -> list[str]:
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C",
            "OCF_ROOT": OCF,
            "OCF_RESOURCE_INSTANCE": self.instance,
            "HA_RSCTMP": str(self.run_directory),
            "HA_LOGFILE": str(self.cell.directory / "ha.log"),
            "OCF_RESKEY_CRM_meta_timeout": str(int(timeout_s * 1000)),
            **self.surroundings,
            **{f"OCF_RESKEY_{name}": value for name, value in self.parameters.items()},
        }
        if action == "monitor" and not is_probe:
            environment["OCF_RESKEY_CRM_meta_interval"] = "10000"
        words = [f"{name}={value}" for name, value in environment.items()]
        return self.cell.enter("env", "-i", *words, f"{AGENTS}/{self.agent}", action)

    def begin(self, action: str, *, timeout_s: float = 0, is_probe: bool = False) -> subprocess.Popen[str]:
        """Start an action in a process group of its own, as the executor does."""
        return subprocess.Popen(
            self.command(action, timeout_s=timeout_s or self.timeout_s, is_probe=is_probe),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def __call__(self, action: str, *, timeout_s: float = 0, is_probe: bool = False) -> Ran:
        """Run an action to its end: also that of its output, so a daemon that keeps a pipe open would be noticed."""
        begin = time.monotonic()
        process = self.begin(action, timeout_s=timeout_s, is_probe=is_probe)
        try:
            output, errors = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            kill_group(process)
            raise
        reasons = [line for line in errors.splitlines() if line.startswith("ocf-exit-reason:")]
        assert len(reasons) <= 1, f"several exit reasons: {reasons}"
        reason = reasons[0].removeprefix("ocf-exit-reason:") if reasons else ""
        return Ran(process.returncode, reason, errors, output, time.monotonic() - begin)

    def record(self, purpose: str = "life") -> Path:
        return self.run_directory / f"{self.agent}-{self.instance}-{purpose}"

    @property
    def log(self) -> str:
        path = self.cell.directory / "ha.log"
        return path.read_text() if path.exists() else ""


Make = Callable[..., Subject]
"""Makes a resource of these parameters."""


def kill_group(process: subprocess.Popen[str]) -> None:
    """As the executor does at a time-out: SIGKILL to the agent's process group, nothing before it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)


def wait_until(condition: Callable[[], object], limit_s: float = 5) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not within {limit_s} s"
        time.sleep(POLL_S)


@contextmanager
def cell(root: Path) -> Iterator[Cell]:
    """`root` is where the agents were installed to."""
    prepare = f'mount -t overlay overlay -o lowerdir={root}{OCF}:{OCF} {OCF} && exec /usr/bin/python3 -IS -c "{INIT}"'
    unshare = ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    # not below pytest's own directory, which every run on the machine closes to other users
    with tempfile.TemporaryDirectory(prefix="mirrorha-cell-") as name:
        directory = Path(name)
        directory.chmod(0o777)
        holder = subprocess.Popen(
            [*unshare, "sh", "-c", prepare], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "ready\n", "PID and mount namespaces need root"
            children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
            yield Cell(int(children[0]), directory)
        finally:
            holder.stdin.close()
            holder.wait(LIMIT_S)
            holder.stdout.close()
