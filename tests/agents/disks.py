"""Disks for tests of the Filesystem agent: image files behind loop devices that vanish with the test process."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replication.loop_device import LoopDevice
from tests.agents.cell import LIMIT_S, Cell, Ran, Subject, wait_until

PACKAGES = {
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "blockdev": "util-linux",
    "nbdkit": "nbdkit",
    "nbdfuse": "libnbd-bin",
    "strace": "strace",
    "python3": "python3",
}
MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "ext2": ("mkfs.ext2", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
}
SIZE_BYTES = {"ext4": 16 << 20, "ext2": 8 << 20, "xfs": 320 << 20}
NUMBERS = itertools.count()


@dataclass(frozen=True)
class Disk:
    """`device` is a block device over `image`, `directory` a place to mount it that does not exist yet."""

    room: Cell
    image: Path
    device: str
    directory: Path
    kind: str

    def resource(self, *, timeout_s: float = 10, **parameters: str) -> Filesystem:
        wanted = {"device": self.device, "directory": str(self.directory), "fstype": self.kind, **parameters}
        return Filesystem(self.room, f"fs{next(NUMBERS)}", wanted, timeout_s)

    def mounts(self) -> list[str]:
        """Where it is mounted inside, in the kernel's order."""
        lines = self.room.run("cat", "/proc/self/mountinfo").splitlines()
        return [line.split()[4] for line in lines if line.split(" - ")[1].split()[1] == self.device]

    def is_mounted(self) -> bool:
        return str(self.directory) in self.mounts()


class Filesystem(Subject):
    """One resource of the agent Filesystem."""

    def __init__(self, room: Cell, instance: str, parameters: dict[str, str], timeout_s: float) -> None:
        super().__init__(room, instance, parameters, timeout_s, agent="Filesystem")

    def monitor(self, level: int = 0, **options: Any) -> Ran:
        self.surroundings = {"OCF_CHECK_LEVEL": str(level)} if level else {}
        try:
            return self("monitor", **options)
        finally:
            self.surroundings = {}

    def probe(self) -> Ran:
        return self("monitor", is_probe=True)


@contextmanager
def disk_in(room: Cell, kind: str) -> Iterator[Disk]:
    number = next(NUMBERS)
    image = room.directory / f"image{number}"
    image.touch()
    os.truncate(image, SIZE_BYTES[kind])
    subprocess.run([*MAKE[kind], str(image)], check=True, timeout=LIMIT_S, stdout=subprocess.DEVNULL)
    with loop_over(image) as device:
        yield Disk(room, image, device, room.directory / f"mounted{number}", kind)
        room.end_all()
        unmount_all(room)
    image.unlink()


@contextmanager
def loop_over(path: Path) -> Iterator[str]:
    """Path of a loop device over a file. It clears itself when nobody uses it any more, even if we are killed."""
    file = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        loop = LoopDevice.over(file, 512)
    finally:
        os.close(file)
    try:
        yield loop.path
    finally:
        loop.let_go()


def unmount_all(room: Cell) -> None:
    """Whatever a test has left mounted below the room's directory."""
    lines = room.run("cat", "/proc/self/mountinfo").splitlines()
    for point in reversed([line.split()[4] for line in lines]):
        if point.startswith(f"{room.directory}/"):
            subprocess.run(room.enter("umount", "-l", point), check=False, timeout=LIMIT_S)


def hold(room: Cell, directory: Path, *, ignores_term: bool = False) -> subprocess.Popen[bytes]:
    """A process inside that has a file open there: `mirrorha-holder` by name."""
    trap = "signal.signal(signal.SIGTERM, signal.SIG_IGN);" if ignores_term else ""
    program = (
        f"import signal, time; {trap} held = open('{directory}/held', 'w');"
        "open('/proc/self/comm', 'w').write('holder'); time.sleep(600)"
    )
    process = room.spawn("/usr/bin/python3", "-IS", "-c", program)
    wait_until(lambda: any(seen.startswith("holder") for seen in names(room)))
    return process


def names(room: Cell) -> list[str]:
    return room.run("ps", "-eo", "comm=").split()
