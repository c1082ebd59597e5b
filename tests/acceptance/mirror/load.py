"""A file system on the mirror with a file full of stamps, and the client that writes it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.acceptance.mirror.oracle import Oracle
from tests.acceptance.mirror.pair import MirrorPair

MOUNT_POINT = "/mnt"
FILE = f"{MOUNT_POINT}/stamps"
BLOCKS = 4096
THREADS = 4
END_DEADLINE_S = 40.0
"""Longer than a write may wait for a peer."""


class StampedFile:
    """Follows the mirror's file system from node to node; what clients were told is remembered all the time."""

    def __init__(self, pair: MirrorPair) -> None:
        self.pair = pair
        self.oracle = Oracle()
        self._directory = TemporaryDirectory(prefix="mirrorha-load-")
        self._logs = 0

    def create(self, node: str) -> None:
        """Makes the file system on the Primary `node` and leaves it mounted; the file has all its blocks."""
        pair = self.pair
        pair.run(node, "mkfs.ext4", "-q", "-F", "-E", "nodiscard", pair.device)
        self.mount(node)
        pair.run(node, "dd", "if=/dev/zero", f"of={FILE}", "bs=4096", f"count={BLOCKS}", "conv=fsync", "status=none")

    def mount(self, node: str) -> None:
        self.pair.run(node, "mount", self.pair.device, MOUNT_POINT)

    def unmount(self, node: str, timeout_s: float = 10.0) -> None:
        """Also one whose device has died. Raises AssertionError when it stays in use."""
        deadline = time.monotonic() + timeout_s
        while (result := self.pair.lab.run(node, ["umount", MOUNT_POINT])).returncode != 0:
            assert time.monotonic() < deadline, f"{node}: {result.stderr}"
            time.sleep(0.05)

    @contextmanager
    def client(self, node: str) -> Iterator[Client]:
        """A client that writes until it is told to end, or its device dies; then the oracle has learnt its log."""
        self._logs += 1
        client = Client(self.pair, node, Path(self._directory.name) / f"{self._logs}", self.oracle)
        try:
            yield client
        finally:
            client.kill()
            self.oracle.learn(client.lines())

    def assert_nothing_lost(self, node: str) -> None:
        """Every sector holds what a flush covered, or something later; read through the device on `node`, mounted."""
        words = self.pair.program("stamps.py", "read", FILE, str(BLOCKS))
        lines = self.pair.run(node, *words).splitlines()
        assert len(lines) == BLOCKS
        losses = self.oracle.losses(lines)
        assert not losses, f"{len(losses)} sectors lost, such as {losses[:3]}\n{self.pair.logs()}"


class Client:
    """One process that writes stamps in a node; its log is outside of the node."""

    def __init__(self, pair: MirrorPair, node: str, log: Path, oracle: Oracle) -> None:
        self.node, self.log = node, log
        words = pair.program("stamps.py", "write", FILE, str(BLOCKS), str(oracle.next_number), str(THREADS))
        with log.open("wb") as output:
            self.process = pair.lab.popen(node, words, stdin=subprocess.PIPE, stdout=output)
        deadline = time.monotonic() + 10.0
        while b"\nF " not in log.read_bytes():
            assert time.monotonic() < deadline, f"{node}: no flush of the client is answered: {self.lines()[-3:]}"
            assert self.process.poll() is None, f"{node}: the client ended: {self.lines()[-3:]}"
            time.sleep(0.01)

    def end(self) -> None:
        """Let it flush and end. Raises AssertionError when its file failed."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        status = self.process.wait(END_DEADLINE_S)
        assert status == 0, f"{self.node}: the client's file failed: {self.lines()[-1:]}"

    def wait_until_failed(self) -> None:
        """Its device has died under it, and it was told so instead of being left to wait."""
        assert self.process.wait(END_DEADLINE_S) == 1
        assert self.lines()[-1].startswith("e ")

    def lines(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines()

    def kill(self) -> None:
        """Whatever its state."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
