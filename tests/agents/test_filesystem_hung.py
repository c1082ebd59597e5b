"""A device that does not answer: the agent does, in time, and leaves no more than one child waiting for it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.agents.cell import LIMIT_S, Cell, Ran, kill_group, wait_until
from tests.agents.disks import MAKE, NUMBERS, Disk, loop_over

OK, FAILED = 0, 1
SIZE = "32M"


@dataclass(frozen=True)
class SlowDisk(Disk):
    """A disk whose server can be stopped and continued."""

    server: subprocess.Popen[bytes]

    def hang(self) -> None:
        self.server.send_signal(signal.SIGSTOP)

    def answer(self) -> None:
        self.server.send_signal(signal.SIGCONT)

    def waiting(self) -> list[int]:
        """Processes of agents that wait for the device."""
        return [seen.pid for seen in self.room.processes() if seen.state == "D" and "resource.d" in seen.command]


@pytest.fixture
def slow_disk(room: Cell) -> Iterator[SlowDisk]:
    """nbdkit serves memory, nbdfuse makes a file of it, a loop device a disk: as a mirror's device is made."""
    number = next(NUMBERS)
    base = room.directory / f"slow{number}"
    base.mkdir()
    socket, file = base / "socket", base / "file"
    file.touch()
    server = subprocess.Popen(["nbdkit", "-f", "-U", str(socket), "memory", SIZE])
    try:
        wait_until(socket.exists)
        fuse = subprocess.Popen(["nbdfuse", str(file), f"nbd+unix:///?socket={socket}"])
        try:
            wait_until(lambda: file.stat().st_size > 0)
            with loop_over(file) as device:
                subprocess.run([*MAKE["ext4"], device], check=True, timeout=LIMIT_S, stdout=subprocess.DEVNULL)
                disk = SlowDisk(room, file, device, room.directory / f"mounted{number}", "ext4", server)
                try:
                    yield disk
                finally:
                    disk.answer()
                    wait_until(lambda: not disk.waiting())
                    room.end_all()
                    for point in reversed(disk.mounts()):
                        room.run("umount", point)
        finally:
            unmount(str(file))
            with suppress(subprocess.TimeoutExpired):
                fuse.wait(5)
            fuse.kill()
            fuse.wait(LIMIT_S)
    finally:
        server.kill()
        server.wait(LIMIT_S)


def unmount(path: str) -> None:
    """FUSE can be busy for a moment after its last user has gone."""
    wait_until(
        lambda: (
            subprocess.run(["umount", path], check=False, capture_output=True).returncode == 0
            or f" {path} " not in Path("/proc/self/mountinfo").read_text()
        )
    )


@pytest.mark.parametrize("level", [10, 20])
def test_a_hung_device_fails_the_monitor_in_time_and_only_one_child_waits_for_it(
    slow_disk: SlowDisk, level: int
) -> None:
    fs = slow_disk.resource(io_timeout="500ms")
    assert fs("start").code == OK
    assert fs.monitor(level).code == OK
    slow_disk.hang()
    assert fs.monitor(0).code == OK, "the mount table cannot know"
    first = fs.monitor(level)
    assert first.code == FAILED
    assert f"access to {slow_disk.directory} hung" in first.reason
    assert 0.5 <= first.seconds < 2
    for _ in range(3):
        again = fs.monitor(level)
        assert again.code == FAILED
        assert "still hangs" in again.reason
        assert again.seconds < 0.5
    assert len(slow_disk.waiting()) <= 1
    slow_disk.answer()
    wait_until(lambda: not slow_disk.waiting())
    assert fs.monitor(level).code == OK
    assert fs("stop").code == OK


def test_a_device_that_dies_is_seen_at_once_by_level_10_and_by_the_mount_table_after_the_next_write(
    slow_disk: SlowDisk,
) -> None:
    fs = slow_disk.resource(options="errors=remount-ro")
    fs("start")
    slow_disk.server.kill()
    slow_disk.server.wait(LIMIT_S)
    failed = fs.monitor(10)
    assert failed.code == FAILED
    assert "direct read of" in failed.reason
    assert "Input/output error" in failed.reason
    write = f"echo x >{slow_disk.directory}/written; sync -f {slow_disk.directory}; true"
    slow_disk.room.run("sh", "-c", write)
    wait_until(lambda: fs.monitor(0).code == FAILED)
    assert "emergency_ro" in fs.monitor(0).reason
    assert "rw" in slow_disk.room.run("findmnt", "-no", "VFS-OPTIONS", str(slow_disk.directory)).split(",")
    stopped = fs("stop")
    assert stopped.code == OK, stopped.reason


def test_an_access_longer_than_the_operation_ends_before_the_manager_does_it(slow_disk: SlowDisk) -> None:
    fs = slow_disk.resource(io_timeout="1h")
    fs("start")
    slow_disk.hang()
    failed = fs.monitor(10, timeout_s=3)
    assert failed.code == FAILED
    assert "hung" in failed.reason
    assert failed.seconds < 3 * 0.9


def test_a_stop_whose_umount_hangs_fails_and_the_next_waits_for_that_umount(slow_disk: SlowDisk) -> None:
    fs = slow_disk.resource()
    fs("start")
    slow_disk.room.run("dd", "if=/dev/urandom", f"of={slow_disk.directory}/unwritten", "bs=1M", "count=4")
    slow_disk.hang()
    failed = fs("stop", timeout_s=3)
    assert failed.code == FAILED
    assert "hung" in failed.reason
    assert failed.seconds < 3
    # by now the mount table may know nothing of it any more, but its data are still on their way
    assert fs.monitor().code in (OK, FAILED), "never called stopped"
    again = fs("stop", timeout_s=3)
    assert again.code == FAILED
    assert "still hangs" in again.reason
    slow_disk.answer()
    last = fs("stop")
    assert last.code == OK, last.reason
    assert not slow_disk.mounts()


def test_a_start_whose_mount_hangs_fails_and_a_later_stop_finds_what_became_of_it(slow_disk: SlowDisk) -> None:
    fs = slow_disk.resource()
    slow_disk.hang()
    drop_caches(slow_disk)
    failed = fs("start", timeout_s=3)
    assert failed.code == FAILED
    assert "hung" in failed.reason
    assert fs("stop", timeout_s=3).code == FAILED, "the mount may still come true"
    slow_disk.answer()
    stopped = fs("stop")
    assert stopped.code == OK, stopped.reason
    assert not slow_disk.mounts()


def drop_caches(disk: SlowDisk) -> None:
    """Forget what mkfs left in the page cache of this one device."""
    descriptor = os.open(disk.device, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def test_a_monitor_that_is_killed_leaves_its_child_on_record(slow_disk: SlowDisk) -> None:
    fs = slow_disk.resource(io_timeout="20s")
    fs("start")
    slow_disk.hang()
    fs.surroundings = {"OCF_CHECK_LEVEL": "10"}
    process = fs.begin("monitor", timeout_s=30)
    wait_until(slow_disk.waiting)
    kill_group(process)
    seen: Ran = fs("monitor")
    assert seen.code == FAILED
    assert "still hangs" in seen.reason
    assert len(slow_disk.waiting()) <= 1
