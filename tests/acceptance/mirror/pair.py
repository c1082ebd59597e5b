"""Two nodes of a laboratory with one mirror between them, as an acceptance test holds it.

    with Lab(engine="none") as lab:
        pair = MirrorPair(lab)
        pair.create()
        pair.promote("alpha")

Changes go through `mirroradm` in the node; what is only looked at (`status`, processes, memory) is asked from outside,
past the node's own programs, since it is asked often.
"""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from replication import generate
from replication.config import DIRECTORY, Handlers, Host, MirrorOptions
from replication.control import RUNTIME_DIRECTORY, MirrorClient, NotRunning, Verb, daemon_pid
from replication.errors import MirrorError
from replication.protocol.options import Fencing
from vagrant.namespaces.lab import PROJECT, Lab, LabError

PROGRAMS = Path(__file__).parent / "programs"
PORT = 7788
POLL_S = 0.02
ADM_TIMEOUT_S = 90.0
LOG_LINES = 25
PIECE_BYTES = 1 << 20

Status = dict[str, Any]


class MirrorPair:
    """One resource on both cluster nodes of `lab`, replicated over its `data` network.

    Loop devices are everybody's on a machine: whoever asks for `leftovers` while other tests run needs a `name` that is
    nobody else's.
    """

    def __init__(
        self,
        lab: Lab,
        name: str = "r0",
        *,
        fencing: Fencing = Fencing.DONT_CARE,
        handlers: Handlers = Handlers(),  # noqa: B008 (frozen)
        mirror: MirrorOptions = MirrorOptions(),  # noqa: B008 (frozen)
    ) -> None:
        """Writes the resource's files on both nodes; nothing runs yet. Raises ConfigError for what makes none."""
        self.lab, self.name = lab, name
        self.nodes = [node.name for node in lab.description.cluster_nodes]
        self.device = f"/dev/mirrorha/{name}/0"
        self.nbd_socket = str(RUNTIME_DIRECTORY / name / "0.nbd")
        disks = {node: lab.description.nodes[node].disk for node in self.nodes}
        self.disks = {node: disk.device for node, disk in disks.items() if disk is not None}
        addresses = {node: str(lab.description.nodes[node].addresses["data"].ip) for node in self.nodes}
        first, second = (Host(node, addresses[node], PORT, 0, self.disks[node]) for node in self.nodes)
        files = generate.render(name, (first, second), fencing=fencing, handlers=handlers, mirror=mirror)
        self.resource = files.resource
        for node in self.nodes:
            self._write(node, DIRECTORY / f"{name}.res", files.res)
            self._write(node, DIRECTORY / f"{name}.toml", files.toml)

    def create(self) -> None:
        """From empty disks to a connected pair of two Secondaries in sync.

        New disks of a laboratory hold zeroes, so they are declared equal instead of being synchronised.
        """
        for node in self.nodes:
            self._wait_for_disk(node)
            self.adm(node, "create-md", self.name)
        for node in self.nodes:
            self.up(node)
        self.wait_connected()
        self.adm(self.nodes[0], "new-current-uuid", "--clear-bitmap", self.name)
        self.wait_in_sync()

    # what an operator does

    def adm(self, node: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`mirroradm` in the node. Raises AssertionError with its words unless it says yes, or `check` is off."""
        python = [sys.executable, "-B", "-m", "replication.commands.mirroradm"]
        result = self.lab.run(node, ["env", "-C", str(PROJECT), *python, *arguments], ADM_TIMEOUT_S)
        if check and result.returncode != 0:
            raise AssertionError(
                f"{node}: mirroradm {' '.join(arguments)}: exit {result.returncode}: {result.stderr}\n{self.logs()}"
            )
        return result

    def up(self, node: str) -> None:
        self.adm(node, "up", self.name)

    def down(self, node: str, *, force: bool = False) -> None:
        self.adm(node, "down", *(["--force"] if force else []), self.name)

    def promote(self, node: str) -> None:
        """Raises AssertionError with the reason when it is refused."""
        self.adm(node, "primary", self.name)

    def demote(self, node: str) -> None:
        self.adm(node, "secondary", self.name)

    def power_on(self, node: str) -> None:
        """After a power cut: the node is back, and its mirror up as a service manager would have it."""
        self.lab.power_on(node)
        self._wait_for_disk(node)
        self.up(node)

    # what an application does

    def run(self, node: str, *argv: str, timeout_s: float = 60.0) -> str:
        """A program in the node; its output. Raises AssertionError when it fails."""
        result = self.lab.run(node, list(argv), timeout_s)
        if result.returncode != 0:
            raise AssertionError(f"{node}: {' '.join(argv)}: exit {result.returncode}: {result.stderr}\n{self.logs()}")
        return result.stdout

    def program(self, name: str, *arguments: str) -> list[str]:
        """The words that run one of `programs/`."""
        return ["/usr/bin/python3", "-I", str(PROGRAMS / name), *arguments]

    # what it looks like

    def status(self, node: str) -> Status:
        """As `mirroradm status --json` shows it. Raises MirrorError when no mirrord answers."""
        return self._client(node).ask(Verb.STATUS, 5.0)

    def wait(
        self, nodes: str | Iterable[str], what: str, fulfilled: Callable[[Status], bool], timeout_s: float = 30.0
    ) -> None:
        """Until each node's status is as wanted. Raises AssertionError with the last ones, and the logs."""
        deadline = time.monotonic() + timeout_s
        for node in [nodes] if isinstance(nodes, str) else nodes:
            while True:
                seen: Status | str
                try:
                    seen = self.status(node)
                    if fulfilled(seen):
                        break
                except MirrorError as error:
                    seen = str(error)
                if time.monotonic() > deadline:
                    raise AssertionError(
                        f"{node}: after {timeout_s} s still not: {what}; last seen: {seen}\n{self.logs()}"
                    )
                time.sleep(POLL_S)

    def wait_connected(self, timeout_s: float = 30.0) -> None:
        self.wait(self.nodes, "connected", lambda status: connection(status)["connection-state"] == "Connected",
                  timeout_s)  # fmt: skip

    def wait_in_sync(self, timeout_s: float = 60.0) -> None:
        """Both sides connected, UpToDate, with no block out of sync, as both say."""
        self.wait(self.nodes, "in sync", in_sync, timeout_s)

    def logs(self) -> str:
        """The last lines of both daemons' logs, for a failure's message."""
        found = []
        for node in self.nodes:
            try:
                path = self._root(node) / "var/log/mirrorha" / f"mirror-{self.name}.log"
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
            except (OSError, LabError) as error:
                lines = [str(error)]
            found.append("\n".join([f"--- log of {node}", *lines]))
        return "\n".join(found)

    # the daemons as processes

    def mirrord_pid(self, node: str) -> int | None:
        """As this process numbers it, by the lock on the daemon's pid file; None without a daemon."""
        return daemon_pid(self.name, self._runtime(node))

    def kill_mirrord(self, node: str) -> None:
        """kill -9, and wait for its end. Raises AssertionError when none runs."""
        pid = self.mirrord_pid(node)
        assert pid, f"{node}: no mirrord runs"
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10.0
        while self.mirrord_pid(node) is not None:
            assert time.monotonic() < deadline, f"{node}: mirrord {pid} outlives SIGKILL"
            time.sleep(POLL_S)

    def memory_kib(self, node: str) -> dict[str, int]:
        """VmRSS and VmHWM of the node's mirrord. Raises AssertionError when none runs."""
        pid = self.mirrord_pid(node)
        assert pid, f"{node}: no mirrord runs"
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        return {key: int(value) for key, value in re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", text, re.MULTILINE)}

    # the judges

    def data_areas_differ(self) -> list[int]:
        """Which MiB of the two disks' data areas are not the same; empty is what everybody wants.

        Only for two sides that write nothing: both Secondary, or down. What is compared is what the disks themselves
        would answer: their servers' files, once the nodes have written out what they cached.
        """
        size_bytes = self.size_bytes()
        for node in self.nodes:
            self.run(node, "blockdev", "--flushbufs", self.disks[node])
        one, other = (self._medium(node) for node in self.nodes)
        try:
            return [
                start // PIECE_BYTES
                for start in range(0, size_bytes, PIECE_BYTES)
                if os.pread(one, min(PIECE_BYTES, size_bytes - start), start)
                != os.pread(other, min(PIECE_BYTES, size_bytes - start), start)
            ]
        finally:
            os.close(one)
            os.close(other)

    def data_areas_equal(self) -> bool:
        return not self.data_areas_differ()

    def size_bytes(self) -> int:
        """Of the mirrored data area, as the first side that runs says."""
        for node in self.nodes:
            try:
                return int(self.status(node)["devices"][0]["size"]) * 1024
            except NotRunning:
                continue
        raise AssertionError("no side of the mirror runs: nobody knows its size")

    def leftovers(self, node: str) -> list[str]:
        """What there is of the mirror's device on the node, one line each. On a Secondary it must be nothing."""
        found: list[str] = json.loads(self.run(node, *self.program("leftovers.py", self.name)))
        return found

    def wait_for_no_leftovers(self, node: str, timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        while left := self.leftovers(node):
            assert time.monotonic() < deadline, f"{node}: left behind: {left}\n{self.logs()}"
            time.sleep(POLL_S)

    def other(self, node: str) -> str:
        (other,) = [name for name in self.nodes if name != node]
        return other

    # into the laboratory

    def _medium(self, node: str) -> int:
        """A descriptor of the file without a name in which the node's disk server keeps its contents."""
        size_bytes = self.lab.description.nodes[node].disk.size_bytes  # type: ignore[union-attr]
        for process in psutil.Process(self.lab.supervisor_pid).children():
            if any(f"/{node}/disk.nbd" in word for word in process.cmdline()):
                for file in Path(f"/proc/{process.pid}/fd").iterdir():
                    facts = file.stat()
                    if stat.S_ISREG(facts.st_mode) and facts.st_size == size_bytes:
                        return os.open(file, os.O_RDONLY)
        raise AssertionError(f"{node}: its disk server is not found below the laboratory's supervisor")

    def _client(self, node: str) -> MirrorClient:
        return MirrorClient(self.name, self._runtime(node))

    def _root(self, node: str) -> Path:
        return Path(f"/proc/{self.lab.node_pid(node)}/root")

    def _runtime(self, node: str) -> Path:
        return self._root(node) / RUNTIME_DIRECTORY.relative_to("/")

    def _write(self, node: str, path: Path, content: str) -> None:
        command = f"mkdir -p {path.parent} && umask 077 && cat > {path}"
        result = self.lab.run(node, ["sh", "-c", command], input=content)
        assert result.returncode == 0, f"{node}: {path}: {result.stderr}"

    def _wait_for_disk(self, node: str) -> None:
        """The node's disk controller comes up after the node does."""
        disk = self.disks[node]
        result = self.lab.run(node, ["timeout", "15", "sh", "-c", f"until test -b {disk}; do sleep 0.02; done"])
        assert result.returncode == 0, f"{node}: has no {disk}"


def connection(status: Status) -> dict[str, Any]:
    """The one connection in a status."""
    found: dict[str, Any] = status["connections"][0]
    return found


def peer_device(status: Status) -> dict[str, Any]:
    found: dict[str, Any] = connection(status)["peer_devices"][0]
    return found


def disk_state(status: Status) -> str:
    return str(status["devices"][0]["disk-state"])


def in_sync(status: Status) -> bool:
    peer = peer_device(status)
    return bool(
        connection(status)["connection-state"] == "Connected"
        and peer["replication-state"] == "Established"
        and disk_state(status) == peer["peer-disk-state"] == "UpToDate"
        and peer["out-of-sync"] == 0
    )


def is_disconnected(status: Status) -> bool:
    """The loss of the peer has been noticed."""
    return str(connection(status)["connection-state"]) != "Connected"
