"""One node as the supervisor holds it: its mains switch, its disk, its processes."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from vagrant.description import Node

HERE = Path(__file__).parent
PYTHON = ["/usr/bin/python3", "-IS"]
UNSHARE = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
START_DEADLINE_S = 10.0
PAUSE_DEADLINE_S = 5.0


class Power(enum.Enum):
    OFF = "off"
    ON = "on"
    PAUSED = "paused"


class MachineError(Exception):
    """The node cannot do what was asked. Names the node, the fact and the remedy."""

    def __init__(self, node: str, fact: str, remedy: str) -> None:
        super().__init__(f"node {node}: {fact}; {remedy}")
        self.node, self.fact, self.remedy = node, fact, remedy


class Machine:
    """A node's hardware. Cables belong to the hub; the supervisor keeps the two in step."""

    def __init__(self, node: Node, directory: Path, layers: list[str], shared: list[str], disk_directory: str) -> None:
        self.node = node
        self.directory = directory
        self.shared = shared
        self.power = Power.OFF
        self.boots = 0
        self.programs: list[list[str]] = []
        """What the node starts at boot, beside its disk controller."""
        self.serial: dict[str, str] | None = None
        self.outlets: list[str] = []
        """Unix sockets of the laboratory that appear in the node's /run/lab."""
        self.unshare: subprocess.Popen[str] | None = None
        self.stopped_before_pause: set[int] = set()
        self.disk: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True)
        self.root_upper.mkdir()
        for layer in layers:
            for entry in sorted(Path(layer).iterdir()):  # not the directory itself: "/" keeps its own mode
                shutil.copytree(entry, self.root_upper / entry.name, symlinks=True, dirs_exist_ok=True)
        if node.disk is not None:
            self.disk = subprocess.Popen(
                [*PYTHON, str(HERE / "disk" / "server.py"), "--size", str(node.disk.size_bytes),
                 "--socket", str(self.disk_socket), "--control", str(self.disk_control),
                 "--directory", disk_directory, "--seed", str(node.disk.seed)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # ours says when the laboratory is ready
            )  # fmt: skip

    @property
    def root_upper(self) -> Path:
        """What the node wrote, and what is laid into its file system before the first boot."""
        return self.directory / "upper"

    @property
    def disk_socket(self) -> Path:
        return self.directory / "disk.nbd"

    @property
    def disk_control(self) -> Path:
        return self.directory / "disk.control"

    def start(self) -> None:
        """Switch the mains on; returns at once. `wait_until_mounted` and `let_boot` follow."""
        if self.power is not Power.OFF:
            raise MachineError(self.node.name, f"is {self.power.value} already", f"power-cut {self.node.name} first")
        self.boots += 1
        work = self.directory / f"work{self.boots}"
        boot = {
            "name": self.node.name,
            "root": str(self.directory / "root"),
            "upper": str(self.root_upper),
            "work": str(work),
            "shared": self.shared,
            "sockets": [*self.outlets, *([str(self.disk_socket)] if self.disk else [])],
            "serial": self.serial,
            "programs": [*self._disk_programs(), *self.programs],
        }
        self.unshare = subprocess.Popen(
            [*UNSHARE, *PYTHON, str(HERE / "node_init.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.unshare.stdin is not None
        self.unshare.stdin.write(json.dumps(boot) + "\n")
        self.unshare.stdin.flush()
        self.power = Power.ON

    def wait_until_mounted(self) -> int:
        """Wait for the node's file system; returns the process id of its init. Raises MachineError."""
        assert self.unshare is not None and self.unshare.stdout is not None
        line = self.unshare.stdout.readline().strip()
        if line != "mounted":
            self.unshare.kill()
            self.unshare.wait()
            self.power = Power.OFF
            raise MachineError(
                self.node.name, f"its init ended before the file system was ready ({line or 'no message'})",
                "see the messages above; are you root, and does this kernel have overlay file systems?",
            )  # fmt: skip
        return self.init_pid

    def let_boot(self) -> None:
        assert self.unshare is not None and self.unshare.stdin is not None
        self.unshare.stdin.write("go\n")
        self.unshare.stdin.close()

    @property
    def init_pid(self) -> int:
        """Process id of the node's init, as the laboratory sees it. Raises MachineError when the node is off."""
        if self.unshare is None:
            raise MachineError(self.node.name, "is off", f"power-on {self.node.name} first")
        children = Path(f"/proc/{self.unshare.pid}/task/{self.unshare.pid}/children").read_text(encoding="ascii")
        if not children.split():
            raise MachineError(self.node.name, "has no init process", f"power-cut {self.node.name} and power-on again")
        return int(children.split()[0])

    def kill(self) -> None:
        """The last act of a power cut: nothing in the node runs another instruction."""
        if self.unshare is None:
            return
        init_pid = None
        with contextlib.suppress(MachineError, OSError):
            init_pid = self.init_pid
        # its mounts must outlive its processes: nbdfuse, as the last one to leave, would unmount while it exits what
        # it serves itself, and the kernel would wait for that for ever
        mounts = None
        with contextlib.suppress(OSError):  # it halted by itself
            mounts = os.open(f"/proc/{self.unshare.pid}/ns/mnt", os.O_RDONLY)
        # unshare first, which takes init with it: one that outlives a killed init complains, since it cannot die alike
        self.unshare.kill()
        self.unshare.wait()
        if init_pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(init_pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(init_pid, 0)  # an orphan is a child of PID 1, which we are
        if mounts is not None:
            os.close(mounts)
        if self.unshare.stdout is not None:
            self.unshare.stdout.close()
        self.unshare = None
        self.power = Power.OFF
        for leftover in self.directory.glob("work*"):
            shutil.rmtree(leftover, ignore_errors=True)

    @property
    def ended_by_itself(self) -> bool:
        """Whether the node's init is gone without a power cut, as after `reboot -f` in the node."""
        return self.unshare is not None and self.unshare.poll() is not None

    def processes(self) -> list[int]:
        """Every process that lives in the node's PID namespace, init first."""
        init = self.init_pid
        namespace = os.readlink(f"/proc/{init}/ns/pid")
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{entry}/ns/pid") == namespace:
                        found.append(int(entry))
        return sorted(found)

    def pause(self) -> None:
        """Stop every process of the node, as a hypervisor stops a machine. Raises MachineError."""
        if self.power is not Power.ON:
            remedy = "resume" if self.power is Power.PAUSED else "power-on"
            raise MachineError(self.node.name, f"is {self.power.value}", f"{remedy} {self.node.name} first")
        self.stopped_before_pause = {pid for pid in self.processes() if _state(pid) == "T"}
        deadline = time.monotonic() + PAUSE_DEADLINE_S
        while running := [pid for pid in self.processes() if _state(pid) not in ("T", "Z", "X")]:
            for pid in running:  # again and again: a process may fork while we walk
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            if time.monotonic() > deadline:
                if all(_state(pid) == "D" for pid in running):
                    break  # waits in the kernel and stops as soon as it comes back
                raise MachineError(self.node.name, f"processes {running} do not stop", "power-cut it instead")
            time.sleep(0.001)
        self.power = Power.PAUSED

    def resume(self) -> None:
        if self.power is not Power.PAUSED:
            raise MachineError(
                self.node.name, f"is {self.power.value}, not paused", "see `status`; only a paused node can go on"
            )
        for pid in self.processes():
            if pid not in self.stopped_before_pause:  # a program that hangs goes on hanging
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        self.power = Power.ON

    def tell_disk(self, **request: Any) -> dict[str, Any]:
        """One request to the disk server. Raises MachineError when the node has no disk or the disk refuses."""
        if self.disk is None:
            raise MachineError(self.node.name, "has no disk", "give it one in lab.toml")
        self._wait_for_disk()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(START_DEADLINE_S)
            connection.connect(str(self.disk_control))
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer: dict[str, Any] = json.loads(connection.makefile("rb").readline())
        if "error" in answer:
            raise MachineError(self.node.name, f"its disk says: {answer['error']}", str(answer.get("remedy", "")))
        return answer

    def _disk_programs(self) -> list[list[str]]:
        if self.node.disk is None:
            return []
        return [[*PYTHON, str(HERE / "attach_disk.py"), "/run/lab/disk.nbd", self.node.disk.device]]

    def _wait_for_disk(self) -> None:
        assert self.disk is not None
        deadline = time.monotonic() + START_DEADLINE_S
        while not (self.disk_socket.exists() and self.disk_control.exists()):
            if self.disk.poll() is not None or time.monotonic() > deadline:
                raise MachineError(self.node.name, "its disk server did not start", "see the messages above")
            time.sleep(0.002)


def _state(pid: int) -> str:
    """The state letter of proc(5); X for a process that is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "X"
    return stat.rpartition(")")[2].split()[0]
