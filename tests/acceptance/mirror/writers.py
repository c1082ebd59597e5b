"""Applications that know what was acknowledged to them: started in a node, judged in whichever node has the data next.

A writer's standard output is a file of this machine, which no power cut of the laboratory reaches: each line there is
the number of a record, from 1 upwards, whose commit (or fsync) had returned. After the cut, each record up to the last
line must be on the disk.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.mirror.pair import MirrorPair

POLL_S = 0.005
CHECK_TIMEOUT_S = 120.0
TAIL_BYTES = 64
"""More than two lines have."""


@dataclass(frozen=True)
class Application:
    """One of `programs/*_writer.py`."""

    name: str
    program: str
    place: str
    """Its file or directory, below the mount point."""
    needs: tuple[tuple[str, str], ...] = ()
    """(a file it cannot do without, the command that brings it)."""


BLOCKS = Application("blocks", "block_writer.py", "blocks")
SQLITE = Application("sqlite", "sqlite_writer.py", "rows.sqlite", (("/usr/bin/sqlite3", "apt-get install sqlite3"),))
POSTGRES = Application(
    "postgres", "postgres_writer.py", "cluster",
    (("/usr/lib/postgresql/15/bin/postgres", "apt-get install postgresql-15"),),
)  # fmt: skip


class Writer:
    """An application at work in a node, until that node loses its power or the writer is stopped."""

    def __init__(self, pair: MirrorPair, node: str, application: Application, mount_point: str) -> None:
        """Raises AssertionError with the command to type when a program is missing."""
        for file, remedy in application.needs:
            assert Path(file).exists(), f"{file} is missing: {remedy}"
        self.pair, self.application = pair, application
        self.place = f"{mount_point}/{application.place}"
        self._acknowledged = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._words = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = pair.lab.popen(
            node, pair.program(application.program, "write", self.place), stdin=subprocess.DEVNULL,
            stdout=self._acknowledged, stderr=self._words,
        )  # fmt: skip

    def acknowledged(self) -> int:
        """The number of the last record that the application knows to be safe."""
        descriptor = self._acknowledged.fileno()
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES))
        whole_lines = tail[: tail.rfind(b"\n") + 1].split()
        return int(whole_lines[-1]) if whole_lines else 0

    def wait_for(self, acknowledged: int, timeout_s: float = 60.0) -> None:
        """Until so many records are safe. Raises AssertionError when the application ends or gets stuck."""
        self._wait(lambda: self.acknowledged() >= acknowledged, f"record {acknowledged} safe", timeout_s)

    def stop(self) -> None:
        """SIGKILL, as a planned switch does to what did not stop by itself."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(30)

    def verify(self, node: str) -> int:
        """Every acknowledged record is there, on `node`; how many those were. Raises AssertionError with those lost."""
        self.process.wait(30)
        last = self.acknowledged()
        command = self.pair.program(self.application.program, "check", self.place, str(last))
        result = self.pair.lab.run(node, command, CHECK_TIMEOUT_S)
        assert result.returncode == 0, (
            f"{node}: {self.application.name}, {last} records acknowledged: {result.stderr}\n{self.pair.logs()}"
        )
        return last

    def close(self) -> None:
        self.stop()
        self._acknowledged.close()
        self._words.close()

    def _wait(self, fulfilled: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not fulfilled():
            assert self.process.poll() is None, f"{self.application.name} ended: {self._said()}"
            assert time.monotonic() < deadline, (
                f"{self.application.name}: after {timeout_s} s still not: {what}; it is at {self.acknowledged()};"
                f" it says: {self._said()}\n{self.pair.logs()}"
            )
            time.sleep(POLL_S)

    def _said(self) -> str:
        return os.pread(self._words.fileno(), 4096, 0).decode(errors="replace")


class Fio:
    """fio twice: a file written to its end and synced before the cut, and a load that the cut interrupts."""

    def __init__(self, pair: MirrorPair, node: str, mount_point: str) -> None:
        """Returns when the first file is written and synced."""
        assert Path("/usr/bin/fio").exists(), "fio is missing: apt-get install fio"
        self.pair, self.mount_point = pair, mount_point
        pair.run(node, *self._job("--do_verify=0", "--end_fsync=1"))
        options = ["--direct=1", "--iodepth=8", "--fsync=64", "--time_based", "--runtime=1h", "--ioengine=libaio"]
        load = f"fio --name=load --filename={mount_point}/load --size=16M --rw=randwrite --bsrange=4k-64k".split()
        self.load = pair.lab.popen(
            node, [*load, *options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def assert_running(self) -> None:
        assert self.load.poll() is None, f"the load by fio ended with {self.load.returncode}"

    def verify(self, node: str) -> None:
        """The file written before the cut has its checksums. Raises AssertionError."""
        self.pair.run(node, *self._job("--verify_only", "--verify_fatal=1"))

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.load.kill()
        self.load.wait(30)

    def _job(self, *options: str) -> list[str]:
        return [
            "fio", "--name=whole", f"--filename={self.mount_point}/whole", "--size=16M", "--rw=randwrite",
            "--bsrange=4k-64k", "--ioengine=libaio", "--direct=1", "--iodepth=16", "--verify=crc32c",
            "--verify_state_save=0", "--randseed=11", "--output-format=terse", *options,
        ]  # fmt: skip
