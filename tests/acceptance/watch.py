"""Watchers in the nodes and in the client, as one context: start, let things happen, judge."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from tests.acceptance.cluster import ADDRESS, PORT, PROGRAMS
from tests.acceptance.observations import Outage, answered_twice, held_twice, outages, spells
from vagrant.namespaces.lab import Lab

FIRST_LINE_DEADLINE_S = 10.0


class Watch:
    """Address every 50 ms on both nodes and on the wire, and a client that never stops asking."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.directory = TemporaryDirectory(prefix="mirrorha-watch-")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.address_files: list[tuple[str, Path]] = []

    def __enter__(self) -> Watch:
        for node in self.lab.description.cluster_nodes:
            if self.lab.power_status(node.name) == "on":
                self.watch_node(node.name)
        nic = self.lab.description.networks["public"].nic
        self._start("client", "arp_watch.py", [nic, ADDRESS], self._file("arp"))
        self._start("client", "client.py", [ADDRESS, str(PORT)], self._file("client"))
        self.wait_for_answer()
        return self

    def watch_node(self, node: str) -> None:
        """Again after a power cycle: the watcher died with the node."""
        file = self._file(f"{node}.{len(self.address_files)}")
        self.address_files.append((node, file))
        self._start(node, "address_watch.py", [ADDRESS], file)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        if kind is not None:
            self.directory.cleanup()

    def wait_for_answer(self, timeout_s: float = 60.0) -> str:
        """Until the client's latest request was answered; the answer."""
        deadline = time.monotonic() + timeout_s
        while True:
            lines = self._lines(self._file("client"))
            if lines and len(lines[-1].split()) >= 3 and lines[-1].split()[2] != "-":
                return lines[-1]
            if time.monotonic() > deadline:
                raise AssertionError(f"the client got no answer within {timeout_s} s; last lines: {lines[-3:]}")
            time.sleep(0.05)

    def wait_for_silence(self, timeout_s: float = 30.0) -> None:
        """Until one request got no answer: the fault has reached the client."""
        deadline = time.monotonic() + timeout_s
        start = len(self._lines(self._file("client")))
        while not any(line.endswith(" -") for line in self._lines(self._file("client"))[start:]):
            if time.monotonic() > deadline:
                raise AssertionError(f"the client was served without a gap for {timeout_s} s")
            time.sleep(0.05)

    def outages(self) -> list[Outage]:
        return outages(self._lines(self._file("client")))

    def longest_outage_s(self) -> float:
        return max((outage.duration_s for outage in self.outages()), default=0.0)

    def assert_never_twice(self) -> None:
        """The address was held by at most one node at any time, and answered from one MAC at a time."""
        seen = [spell for node, file in self.address_files for spell in spells(node, self._lines(file))]
        assert seen, "the watchers saw the address nowhere: they prove nothing"
        assert held_twice(seen) == []
        answers = self._lines(self._file("arp"))
        assert answers, "nobody ever answered for the address on the wire: the watcher proves nothing"
        assert answered_twice(answers) == []

    def _file(self, name: str) -> Path:
        return Path(self.directory.name) / name

    def _lines(self, file: Path) -> list[str]:
        return file.read_text(encoding="utf-8").splitlines() if file.exists() else []

    def _start(self, node: str, program: str, arguments: list[str], output: Path) -> None:
        argv = ["/usr/bin/python3", "-I", str(PROGRAMS / program), *arguments]
        with output.open("wb") as file:
            self.processes.append(self.lab.popen(node, argv, stdout=file, stdin=subprocess.DEVNULL))
        deadline = time.monotonic() + FIRST_LINE_DEADLINE_S
        while program != "arp_watch.py" and not self._lines(output):
            assert time.monotonic() < deadline, f"{program} on {node} says nothing"
            time.sleep(0.01)
