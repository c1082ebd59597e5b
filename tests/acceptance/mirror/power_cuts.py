"""Power cuts under load, each as one function: the Primary alone, or both nodes at the same moment.

Tests judge a few; the long runs mirror-power-cuts and mirror-double-cuts many. All raise AssertionError when something
acknowledged is lost, or the mirror needs more help than an operator is told to give.
"""

from __future__ import annotations

import contextlib
import enum
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.acceptance.mirror.pair import MirrorPair, connection, in_sync, is_disconnected
from tests.acceptance.mirror.writers import Application, Fio, Writer
from vagrant.namespaces.lab import Lab

MOUNT_POINT = "/mnt/mirror"
FIRST_ACKNOWLEDGED = 20
"""Records each writer has safe before anything is broken."""
MORE_MAX = 200
"""The cut comes at a random one of the next so many records of a random writer."""
REFUSED = 11
Figures = dict[str, Any]


@dataclass(frozen=True)
class FileSystem:
    name: str
    make: tuple[str, ...]
    mount_options: str
    judge: tuple[str, ...]
    """Reads only; ends with 0 when the file system has no fault, its log having been replayed by a mount."""


EXT4 = FileSystem(
    "ext4", ("mkfs.ext4", "-q", "-F", "-E", "nodiscard", "-J", "size=8"), "errors=remount-ro", ("e2fsck", "-fn")
)
XFS = FileSystem("xfs", ("mkfs.xfs", "-q", "-f", "-K", "--unsupported"), "nouuid", ("xfs_repair", "-n"))


class Permit(enum.Enum):
    """The two ways in which an operator says that a host may go on, though it may lack data."""

    FIRST = "permit, then primary"
    AT_ONCE = "primary --accept-loss"


class Beside(enum.Enum):
    """What else keeps the mirror busy."""

    NOTHING = "nothing"
    FIO = "fio"


@dataclass(frozen=True)
class Load:
    file_system: FileSystem
    applications: tuple[Application, ...]
    beside: Beside = Beside.NOTHING


@contextlib.contextmanager
def laboratory() -> Iterator[MirrorPair]:
    """A pair in sync, in a laboratory whose disks lose at a power cut whatever sectors chance takes."""
    with Lab(engine="none") as lab:
        lab.disk_keep("random")
        pair = MirrorPair(lab)
        pair.create()
        yield pair


def cut_primary(pair: MirrorPair, primary: str, load: Load, permit: Permit, chance: random.Random) -> Figures:
    """Cut `primary` under load; the other is promoted by hand, judged, and the first one comes back as its standby."""
    standby = pair.other(primary)
    start = time.monotonic()
    with working(pair, primary, load) as work:
        work.wait_for_a_moment(chance)
        pair.lab.power_cut(primary)
        be_refused(pair, standby, f"not promoted: peer {primary} ")  # noticed yet, or not
        pair.wait(standby, f"the loss of {primary} noticed", is_disconnected)
        be_refused(pair, standby, f"peer {primary} was Primary when contact was lost")
        accept_loss(pair, standby, permit)
        records = work.judge(standby)
    received_kib = come_back(pair, primary)
    leave_equal(pair, standby)
    return figures(start, load, records) | {"victim": primary, "resynced_kib": received_kib}


def cut_both(pair: MirrorPair, primary: str, load: Load, permit: Permit, chance: random.Random) -> Figures:
    """Cut both under load. Only the former standby starts again, and must have all that was acknowledged."""
    standby = pair.other(primary)
    start = time.monotonic()
    with working(pair, primary, load) as work:
        work.wait_for_a_moment(chance)
        cut_at_once(pair, chance)
        pair.power_on(standby)
        be_refused(pair, standby, f"peer {primary} was not seen since {standby} started")
        accept_loss(pair, standby, permit)
        records = work.judge(standby)
    received_kib = come_back(pair, primary)
    leave_equal(pair, standby)
    return figures(start, load, records) | {"restarted": standby, "resynced_kib": received_kib}


def cut_at_once(pair: MirrorPair, chance: random.Random) -> None:
    """Both stop before either is cut: the second one must not have the time to miss the first, and go on alone."""
    nodes = chance.sample(pair.nodes, 2)
    for node in nodes:
        pair.lab.pause(node)
    for node in nodes:
        pair.lab.power_cut(node)


class Work:
    """The writers of one round, on one mounted file system."""

    def __init__(self, pair: MirrorPair, node: str, load: Load) -> None:
        self.pair, self.load, self.writers = pair, load, list[Writer]()
        self.fio = Fio(pair, node, MOUNT_POINT) if load.beside is Beside.FIO else None
        self.writers = [Writer(pair, node, application, MOUNT_POINT) for application in load.applications]

    def wait_for_a_moment(self, chance: random.Random) -> None:
        for writer in self.writers:
            writer.wait_for(FIRST_ACKNOWLEDGED)
        writer = chance.choice(self.writers)
        writer.wait_for(writer.acknowledged() + chance.randint(1, MORE_MAX))
        if self.fio is not None:
            self.fio.assert_running()

    def judge(self, node: str) -> dict[str, int]:
        """What is on the device of `node` now: file system without a fault, and all that was acknowledged."""
        pair = self.pair
        mount(pair, node, self.load.file_system)  # replays the log
        pair.run(node, "umount", MOUNT_POINT)
        pair.run(node, *self.load.file_system.judge, pair.device)
        mount(pair, node, self.load.file_system)
        records = {writer.application.name: writer.verify(node) for writer in self.writers}
        if self.fio is not None:
            self.fio.verify(node)
        return records

    def close(self) -> None:
        for writer in self.writers:
            writer.close()
        if self.fio is not None:
            self.fio.close()


@contextlib.contextmanager
def working(pair: MirrorPair, node: str, load: Load) -> Iterator[Work]:
    """A new file system on the mirror's device, mounted on `node`, and the load at work there."""
    pair.promote(node)
    pair.run(node, *load.file_system.make, pair.device)
    mount(pair, node, load.file_system)
    work = Work(pair, node, load)
    try:
        yield work
    finally:
        work.close()


def mount(pair: MirrorPair, node: str, file_system: FileSystem) -> None:
    pair.run(node, "mkdir", "-p", MOUNT_POINT)
    pair.run(node, "mount", "-t", file_system.name, "-o", file_system.mount_options, pair.device, MOUNT_POINT)


def be_refused(pair: MirrorPair, node: str, why: str) -> None:
    answer = pair.adm(node, "primary", pair.name, check=False)
    assert (answer.returncode, why in answer.stderr) == (REFUSED, True), (
        f"{node}: primary was to be refused because {why}: exit {answer.returncode}: {answer.stderr}\n{pair.logs()}"
    )


def accept_loss(pair: MirrorPair, node: str, permit: Permit) -> None:
    word = f"--accept-loss={node}"
    if permit is Permit.FIRST:
        pair.adm(node, "permit", pair.name, word)
        pair.promote(node)
    else:
        pair.adm(node, "primary", pair.name, word)


def come_back(pair: MirrorPair, node: str) -> int:
    """The node that was cut boots, and is brought up to date without a word from anybody; KiB that it was sent."""
    pair.power_on(node)
    pair.wait([node, pair.other(node)], "in sync again", in_sync, 120.0)
    status = pair.status(node)
    assert status["role"] == "Secondary", f"{node}: came back as {status['role']}"
    assert connection(status)["peer-role"] == "Primary", f"{node}: does not see its peer as Primary"
    received_kib = int(connection(status)["peer_devices"][0]["received"])
    assert received_kib * 1024 < pair.size_bytes(), f"{node}: was sent everything, not what it lacked\n{pair.logs()}"
    return received_kib


def leave_equal(pair: MirrorPair, primary: str) -> None:
    """Both Secondary, both disks the same."""
    pair.run(primary, "umount", MOUNT_POINT)
    pair.demote(primary)
    pair.wait_in_sync()
    assert pair.data_areas_differ() == [], f"the disks differ in these MiB\n{pair.logs()}"


def figures(start: float, load: Load, records: dict[str, int]) -> Figures:
    return {
        "file_system": load.file_system.name,
        "acknowledged": records,
        "beside": load.beside.value,
        "lost": 0,
        "seconds": round(time.monotonic() - start, 1),
    }
