"""The agent Filesystem on real disks: start, monitor and what they refuse."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from pathlib import Path

import pytest

from tests.agents.cell import Cell
from tests.agents.disks import Disk, disk_in

OK, FAILED, NOT_INSTALLED, MISCONFIGURED, NOT_RUNNING = 0, 1, 5, 6, 7
FS_IOC_SHUTDOWN = 0x8004587D
SHUTDOWN_WITHOUT_FLUSH = 2


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_file_system_comes_and_goes_and_every_step_may_be_repeated(room: Cell, kind: str) -> None:
    with disk_in(room, kind) as disk:
        fs = disk.resource()
        assert fs.probe().code == NOT_RUNNING
        assert fs.monitor().code == NOT_RUNNING
        assert fs("stop").code == OK
        assert fs("start").code == OK
        assert disk.is_mounted()
        assert fs("start").code == OK
        assert len(disk.mounts()) == 1, "the second start mounted nothing more"
        assert fs.probe().code == OK
        assert fs.monitor().code == OK
        assert fs("stop").code == OK
        assert fs("stop").code == OK
        assert not disk.mounts()
        assert fs.monitor().code == NOT_RUNNING


def test_nothing_but_the_lock_stays_on_record_after_a_stop(disk: Disk) -> None:
    fs = disk.resource()
    fs("start")
    fs.monitor(20)
    fs("stop")
    assert [path.name for path in fs.run_directory.iterdir()] == [fs.record("lock").name]


def test_a_directory_with_blanks_and_a_link_on_its_way_are_recognised(disk: Disk, room: Cell) -> None:
    real, link = room.directory / "real place", room.directory / "link"
    real.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(real)
    fs = disk.resource(directory=f"{link}/a b\\c//d/")
    assert fs("start").code == OK
    assert disk.mounts() == [f"{real}/a b\\c/d".replace("\\", "\\134").replace(" ", "\\040")]
    assert fs.monitor(20).code == OK
    assert fs("stop").code == OK
    assert not disk.mounts()


def test_an_image_file_is_recognised_behind_its_loop_device(disk: Disk, room: Cell) -> None:
    image = room.directory / "plain-image"
    image.write_bytes(disk.image.read_bytes())
    fs = disk.resource(device=str(image), options="noatime")
    assert fs("start").code == OK
    assert fs("start").code == OK
    assert fs.monitor(10).code == OK
    assert disk.resource(device=str(disk.image)).monitor().code == FAILED
    assert fs("stop").code == OK
    image.unlink()


def test_a_device_may_be_named_by_a_link(disk: Disk, room: Cell) -> None:
    link = Path("/dev") / f"mirrorha-test-{os.getpid()}"
    link.symlink_to(disk.device)
    try:
        fs = disk.resource(device=str(link))
        assert fs("start").code == OK
        assert fs.monitor(10).code == OK
        link.unlink()
        gone = fs.monitor()
        assert gone.code == FAILED
        assert f"{link} does not exist now" in gone.reason
        assert fs("stop").code == OK, "a stop works without the name of its device"
        assert not disk.mounts()
        missing = fs("start")
        assert missing.code == NOT_INSTALLED
        assert f"{link} does not exist" in missing.reason
        assert fs.probe().code == NOT_RUNNING
    finally:
        link.unlink(missing_ok=True)


def test_another_device_at_the_directory_is_a_failure_that_stop_leaves_alone(disk: Disk, other_disk: Disk) -> None:
    fs, other = disk.resource(), other_disk.resource(directory=str(disk.directory))
    assert other("start").code == OK
    refused = fs("start")
    assert refused.code == FAILED
    assert f"{other_disk.device} is mounted at {disk.directory}" in refused.reason
    assert fs.monitor().code == FAILED
    assert fs.probe().code == NOT_RUNNING, "a foreign mount is no second copy of ours"
    assert fs("stop").code == OK
    assert other_disk.mounts() == [str(disk.directory)]
    assert disk.resource(check_source="no").monitor().code == OK


def test_what_is_mounted_over_ours_hides_it_and_goes_with_the_stop(disk: Disk, other_disk: Disk, room: Cell) -> None:
    fs = disk.resource()
    fs("start")
    room.run("mount", other_disk.device, str(disk.directory))
    hidden = fs.monitor()
    assert hidden.code == FAILED
    assert f"{other_disk.device} is mounted over {disk.directory}" in hidden.reason
    assert fs("stop").code == OK
    assert not disk.mounts()
    assert not other_disk.mounts()


def test_a_device_that_an_administrator_mounted_elsewhere_is_not_started_and_not_taken_away(
    disk: Disk, room: Cell
) -> None:
    elsewhere = room.directory / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    room.run("mount", disk.device, str(elsewhere))
    fs = disk.resource()
    refused = fs("start")
    assert refused.code == FAILED
    assert f"is mounted at {elsewhere}" in refused.reason
    assert fs.probe().code == NOT_RUNNING
    assert fs("stop").code == OK
    assert disk.mounts() == [str(elsewhere)]


def test_a_mount_that_turned_read_only_fails_the_monitor(disk: Disk, room: Cell) -> None:
    fs = disk.resource()
    fs("start")
    room.run("mount", "-o", "remount,ro", str(disk.directory))
    failed = fs.monitor()
    assert failed.code == FAILED
    assert f"{disk.directory} is read-only" in failed.reason
    assert disk.resource(options="noatime,ro").monitor().code == OK
    assert fs("start").code == OK, "a start repairs it, when nobody uses it"
    assert fs.monitor().code == OK


def test_a_file_system_that_gave_up_fails_the_monitor_although_it_says_rw_and_lists_its_files(
    disk: Disk, room: Cell
) -> None:
    fs = disk.resource()
    fs("start")
    shut_down(room, disk.directory)
    assert "lost+found" in room.run("ls", str(disk.directory))
    failed = fs.monitor()
    assert failed.code == FAILED
    assert "is dead (shutdown)" in failed.reason
    assert fs("stop").code == OK


def test_xfs_does_not_say_that_it_gave_up_and_level_10_finds_out(room: Cell) -> None:
    with disk_in(room, "xfs") as disk:
        fs = disk.resource()
        fs("start")
        shut_down(room, disk.directory)
        assert fs.monitor(0).code == OK
        failed = fs.monitor(10)
        assert failed.code == FAILED
        assert "Input/output error" in failed.reason
        assert fs("stop").code == OK


def shut_down(room: Cell, directory: Path) -> None:
    """As after a lost device. The mount exists inside the room only, and is reached through its init."""
    descriptor = os.open(f"/proc/{room.init}/root{directory}", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_WITHOUT_FLUSH))
    finally:
        os.close(descriptor)


def test_level_10_reads_the_device_and_level_20_writes_a_status_file(disk: Disk, room: Cell) -> None:
    fs = disk.resource(statusfile_prefix=".status/deep/of-")
    fs("start")
    assert fs.monitor(10).code == OK
    assert "status" not in room.run("ls", "-A", str(disk.directory))
    assert fs.monitor(20).code == OK
    files = room.run("sh", "-c", f"cat {disk.directory}/.status/deep/of-{fs.instance}_*")
    assert f"{fs.instance} on " in files
    assert fs.monitor(20).code == OK
    assert disk.resource(options="ro").monitor(20).code == OK, "read-only by intention: not written"
    assert fs("stop").code == OK


def test_a_full_file_system_fails_level_20_and_says_so(disk: Disk, room: Cell) -> None:
    fs = disk.resource()
    fs("start")
    of = f"{disk.directory}/of-$size"
    fill = f"for size in 1M 1k; do dd if=/dev/zero of={of} bs=$size 2>/dev/null; sync -f {disk.directory}; done; true"
    room.run("sh", "-c", fill)
    failed = fs.monitor(20)
    assert failed.code == FAILED
    assert "No space left on device" in failed.reason
    assert fs.monitor(10).code == OK


def test_a_device_that_takes_no_writes_is_not_started_read_only_by_accident(disk: Disk, room: Cell) -> None:
    room.run("blockdev", "--setro", disk.device)
    try:
        fs = disk.resource()
        refused = fs("start")
        assert refused.code == FAILED
        assert "write-protected" in refused.reason
        assert not disk.mounts()
        assert disk.resource(options="ro")("start").code == OK
    finally:  # it would outlive the loop device and meet whoever gets its number next
        room.run("blockdev", "--setrw", disk.device)


def test_a_check_that_leaves_errors_refuses_the_start(room: Cell) -> None:
    with disk_in(room, "ext2") as disk:
        damage(disk.image)
        fs = disk.resource()
        refused = fs("start")
        assert refused.code == FAILED
        assert "fsck of" in refused.reason
        assert "errors are left" in refused.reason
        assert not disk.mounts()
        assert fs.record("change").exists() is False


def damage(image: Path) -> None:
    """Two inodes that claim the same blocks: nothing that fsck repairs without being asked."""
    for command in ("mkdir one", "mkdir two", "sif one block[0] 700", "sif two block[0] 700", "ssv state 2"):
        subprocess.run(["debugfs", "-w", "-R", command, str(image)], check=True, capture_output=True, timeout=20)


def test_what_is_repaired_starts_and_what_has_a_journal_is_not_checked_unless_forced(room: Cell, disk: Disk) -> None:
    with disk_in(room, "ext2") as plain:
        subprocess.run(["debugfs", "-w", "-R", "ssv state 0", str(plain.image)], check=True, capture_output=True)
        assert plain.resource()("start").code == OK
    damage(disk.image)
    assert disk.resource(run_fsck="force")("start").code == FAILED
    assert disk.resource(run_fsck="no")("start").code == OK


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"directory": "/"}, "can do without"),
        ({"directory": "/usr/"}, "can do without"),
        ({"directory": "srv"}, "absolute path"),
        ({"directory": "/srv/../etc"}, "absolute path without .."),
        ({"directory": ""}, "missing"),
        ({"device": ""}, "missing"),
        ({"fstype": ""}, "missing"),
        ({"options": "noatime,bind"}, "option bind"),
        ({"statusfile_prefix": "../x"}, "inside the mounted directory"),
        ({"force_unmount": "maybe"}, "true, safe, false"),
    ],
)
def test_what_no_node_could_run_is_refused_and_never_stopped(
    disk: Disk, parameters: dict[str, str], words: str
) -> None:
    fs = disk.resource(timeout_s=10, **parameters)
    for action in ("start", "validate-all"):
        refused = fs(action)
        assert refused.code == MISCONFIGURED
        assert words in refused.reason
    assert fs("stop").code == OK
    assert fs.probe().code == NOT_RUNNING


def test_a_kind_that_needs_a_program_of_its_own_is_a_lack_of_this_node(disk: Disk) -> None:
    refused = disk.resource(device="server:/export", fstype="glusterfs")("start")
    assert refused.code == NOT_INSTALLED
    assert "mount.glusterfs is not installed" in refused.reason


def test_what_the_kernel_refuses_to_mount_is_quoted(disk: Disk) -> None:
    refused = disk.resource(options="no_such_option")("start")
    assert refused.code == FAILED
    assert "wrong fs type, bad option" in refused.reason
    assert not disk.mounts()


def test_reload_changes_nothing(disk: Disk) -> None:
    fs = disk.resource()
    fs("start")
    assert fs("reload-agent").code == OK
    assert disk.is_mounted()


def test_a_device_named_by_its_uuid_is_known_by_udevs_link_and_later_by_the_record(disk: Disk) -> None:
    uuid = subprocess.run(
        ["blkid", "-p", "-s", "UUID", "-o", "value", disk.device], capture_output=True, text=True, check=True
    )
    link = Path("/dev/disk/by-uuid") / uuid.stdout.strip()
    is_new = not link.parent.exists()
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(disk.device)
    try:
        fs = disk.resource(device=f"UUID={link.name}")
        assert fs("start").code == OK
        assert fs.monitor(10).code == OK
        link.unlink()
        assert fs.monitor().code == OK, "what start recorded tells which device it is"
        assert fs("stop").code == OK
        assert not disk.mounts()
    finally:
        link.unlink(missing_ok=True)
        if is_new:
            link.parent.rmdir()
            link.parent.parent.rmdir()
