"""The laboratory as tests and the command line hold it: start it, run programs in its nodes, break it.

    with Lab(engine="debian") as lab:
        lab.power_cut("alpha")
        lab.host("beta").run("crm_mon -1")

Leaving the block, or the death of this process by whatever signal, ends the laboratory and all that lives in it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from testinfra.host import Host

from vagrant import description
from vagrant.namespaces.backend import NsenterBackend

PROJECT = Path(__file__).resolve().parents[2]
UNSHARE = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
CONTROL = "run/lab/control"
REQUEST_TIMEOUT_S = 60.0


class LabError(Exception):
    """The laboratory refused a verb, or cannot be reached."""


class Lab:
    """One running laboratory. Several may run side by side: none leaves a name outside of its own namespaces."""

    def __init__(
        self,
        engine: str = "none",
        fencing: str = "power-switch",
        layers: tuple[Path, ...] = (),
        disk_directory: Path = Path("/var/tmp"),
        log: IO[str] | None = None,
    ) -> None:
        """Build the laboratory; it is wired and its nodes are booting when this returns.

        The content of each of `layers` is copied over each node's root; messages of the laboratory go to `log`.
        Raises LabError with the remedy when it cannot be built.
        """
        if os.geteuid() != 0:
            raise LabError("the laboratory makes namespaces and bridges; run it as root")
        command = [*UNSHARE, sys.executable, "-m", "vagrant.namespaces.supervisor", "--engine", engine]
        command += ["--fencing", fencing, "--disk-directory", str(disk_directory)]
        command += [word for layer in layers for word in ("--layer", str(layer))]
        self.description = description.read()
        self.process: subprocess.Popen[str] | None = subprocess.Popen(
            command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True,
        )  # fmt: skip
        self.unshare_pid = self.process.pid
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if line != "ready":
            self.process.kill()
            self.process.wait()
            raise LabError(
                f"the laboratory's supervisor ended before it was ready ({line or 'no message'}); see its messages"
            )

    def leave(self) -> None:
        """Let the laboratory stand when this process ends; until then every death of ours ends it."""
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write("stay\n")
        self.process.stdin.close()
        self.process = None

    @classmethod
    def running(cls, unshare_pid: int) -> Lab:
        """The laboratory that another process started; it stays when this object goes."""
        lab = cls.__new__(cls)
        lab.description = description.read()
        lab.process = None
        lab.unshare_pid = unshare_pid
        return lab

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the laboratory; idempotent."""
        if self.process is None or self.process.poll() is not None:
            return
        with contextlib.suppress(LabError, OSError):
            self.ask("down")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.kill(self.supervisor_pid, signal.SIGKILL)
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    @functools.cached_property
    def supervisor_pid(self) -> int:
        """Process id of the supervisor as this process sees it; its network namespace is the hub."""
        return _only_child(self.unshare_pid)

    # verbs

    def power_cut(self, node: str) -> None:
        self.ask("power-cut", node=node)

    def power_on(self, node: str) -> None:
        self.ask("power-on", node=node)

    def power_status(self, node: str) -> str:
        return str(self.ask("power-status", node=node))

    def pause(self, node: str) -> None:
        self.ask("pause", node=node)

    def resume(self, node: str) -> None:
        self.ask("resume", node=node)

    def nic_down(self, node: str, nic: str) -> None:
        """Pull the cable of `nic`, an interface or a network name: the node sees its carrier go."""
        self.ask("nic-down", node=node, nic=nic)

    def nic_up(self, node: str, nic: str) -> None:
        self.ask("nic-up", node=node, nic=nic)

    def cut(self, network: str, source: str | None = None, target: str | None = None) -> None:
        """Frames on `network` (from `source`, to `target`) get lost, and no NIC notices."""
        self.ask("cut", network=network, source=source, target=target)

    def heal(self, network: str | None = None) -> None:
        """End every cut, loss and delay, on one network or on all."""
        self.ask("heal", network=network)

    def loss(self, network: str, percent: int) -> None:
        self.ask("loss", network=network, percent=percent)

    def delay(self, network: str, delay_ms: int) -> None:
        """One way, in milliseconds; 0 ends it."""
        self.ask("delay", network=network, delay_ms=delay_ms)

    def disk(self, node: str, do: str, **arguments: Any) -> dict[str, Any]:
        """A request to the node's disk server: state, error, slow, hang, full, ok."""
        answer: dict[str, Any] = self.ask("disk", node=node, do=do, **arguments)
        return answer

    def disk_keep(self, keep: str) -> None:
        """What power cuts from now on leave of unflushed sectors: none, all or random."""
        self.ask("disk-keep", keep=keep)

    def serial(self, fault: str) -> None:
        """cut, heal, or noise PERCENT on the serial line."""
        self.ask("serial", fault=fault)

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.ask("status")
        return answer

    # programs in nodes

    def node_pid(self, node: str) -> int:
        """Process id of the node's init as this process sees it. Raises LabError when the node is off."""
        nodes = self.status()["nodes"]
        if node not in nodes:
            raise LabError(f"node {node}: is not in this laboratory; choose one of {', '.join(nodes)}")
        unshare_in_lab = nodes[node]["unshare_pid"]
        if unshare_in_lab is None:
            raise LabError(f"node {node} is off; power-on {node} first")
        for pid in _children(self.supervisor_pid):
            if _pid_in_own_namespace(pid) == unshare_in_lab:
                return _only_child(pid)
        raise LabError(f"node {node} has no init process; power-cut {node} and power-on again")

    def enter(self, node: str) -> list[str]:
        """The words that put a command into a node: [*lab.enter("alpha"), "ip", "addr"].

        A parent stays outside of the node; setpriv makes the command die with it. It is `timeout` without a limit,
        because nsenter would stop itself for ever when the node is paused.
        """
        words = ["nsenter", "-F", "-t", str(self.node_pid(node)), "-n", "-m", "-u", "-i", "-p", "-r", "-w", "--"]
        return [*words, "timeout", "--foreground", "0", "setpriv", "--pdeathsig", "KILL", "--"]

    def enter_hub(self) -> list[str]:
        """The words that put a command where all cables meet."""
        return ["nsenter", "-t", str(self.supervisor_pid), "-n", "-m", "--"]

    def popen(self, node: str, argv: list[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program in a node; it dies with the node."""
        return subprocess.Popen([*self.enter(node), *argv], env=CLEAN_ENVIRONMENT, **options)

    def run(
        self, node: str, argv: list[str], timeout_s: float = 30.0, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in a node to its end, its output captured as text."""
        return subprocess.run(
            [*self.enter(node), *argv], env=CLEAN_ENVIRONMENT, capture_output=True, text=True, timeout=timeout_s,
            check=False, **options,
        )  # fmt: skip

    def host(self, node: str) -> Host:
        """The node for testinfra; the object stays valid over power cycles."""
        return Host(NsenterBackend(functools.partial(self.enter, node), node))

    def ask(self, verb: str, timeout_s: float = REQUEST_TIMEOUT_S, **arguments: Any) -> Any:
        """One request to the supervisor. Raises LabError with its answer when it refuses."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            try:
                connection.connect(f"/proc/{self.supervisor_pid}/root/{CONTROL}")
                connection.sendall(json.dumps({"verb": verb, "arguments": arguments}).encode() + b"\n")
                line = connection.makefile("rb").readline()
            except OSError as error:
                raise LabError(f"laboratory {self.unshare_pid} does not answer ({error}); is it still up?") from error
        if not line:
            raise LabError(f"laboratory {self.unshare_pid} hung up; see the messages of its supervisor")
        answer = json.loads(line)
        if "error" in answer:
            raise LabError(answer["error"])
        return answer["result"]


CLEAN_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
}


def _children(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(word) for word in (task / "children").read_text(encoding="ascii").split()]
    return found


def _only_child(pid: int) -> int:
    children = _children(pid)
    if len(children) != 1:
        raise LabError(f"process {pid} has {len(children)} children, not one; the laboratory is going up or down")
    return children[0]


def _pid_in_own_namespace(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return -1
