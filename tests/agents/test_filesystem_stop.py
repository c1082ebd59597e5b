"""The agent Filesystem lets go: who holds it is named and ended, what nobody may end is named, the device is free."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.agents.cell import Cell, wait_until
from tests.agents.disks import Disk, hold, loop_over, names

OK, FAILED, NOT_RUNNING = 0, 1, 7


def is_free(disk: Disk) -> bool:
    """Nobody uses the device exclusively, as a mounted file system does."""
    try:
        os.close(os.open(disk.device, os.O_RDONLY | os.O_EXCL))
    except OSError:
        return False
    return True


def test_a_holder_that_obeys_sigterm_is_named_in_the_log_and_costs_little_time(disk: Disk, room: Cell) -> None:
    fs = disk.resource()
    fs("start")
    process = hold(room, disk.directory)
    stopped = fs("stop")
    assert stopped.code == OK
    assert stopped.seconds < 2
    process.wait(5)
    assert "(holder), since it holds" in fs.log
    assert "SIGTERM to process" in fs.log
    assert is_free(disk)


def test_a_holder_that_ignores_sigterm_is_killed_after_two_thirds_of_the_time(disk: Disk, room: Cell) -> None:
    fs = disk.resource()
    fs("start")
    process = hold(room, disk.directory, ignores_term=True)
    stopped = fs("stop", timeout_s=5)
    assert stopped.code == OK, stopped.reason
    assert 5 * 0.8 * 0.5 < stopped.seconds < 5 * 0.8
    assert process.wait(5) != 0
    assert "SIGKILL to process" in fs.log
    assert is_free(disk)


def test_a_fast_stop_waits_four_seconds_and_no_longer(disk: Disk, room: Cell) -> None:
    fs = disk.resource(fast_stop="yes")
    fs("start")
    hold(room, disk.directory, ignores_term=True)
    stopped = fs("stop", timeout_s=60)
    assert stopped.code == OK
    assert 3.5 < stopped.seconds < 6


@pytest.mark.parametrize("word", ["false", "no"])
def test_where_nobody_may_be_ended_the_stop_fails_at_once_and_names_the_holder(
    disk: Disk, room: Cell, word: str
) -> None:
    fs = disk.resource(force_unmount=word)
    fs("start")
    hold(room, disk.directory)
    refused = fs("stop")
    assert refused.code == FAILED
    assert "(holder)" in refused.reason
    assert f"{disk.directory} is held by process" in refused.reason
    assert refused.seconds < 2
    assert "holder" in names(room)
    assert disk.is_mounted()
    assert fs.monitor().code == OK
    room.end_all()
    assert fs("stop").code == OK


@pytest.mark.parametrize("how", ["cwd", "exe", "map", "root"])
def test_every_way_to_hold_a_file_system_is_found(disk: Disk, room: Cell, how: str) -> None:
    fs = disk.resource()
    fs("start")
    room.run("cp", "/bin/sleep", f"{disk.directory}/rest")
    commands = {
        "cwd": ("sh", "-c", f"cd {disk.directory}; exec sleep 701"),
        "exe": (f"{disk.directory}/rest", "701"),
        "map": (
            "python3",
            "-c",
            f"import mmap, os, time; f = os.open('{disk.directory}/rest', os.O_RDONLY);"
            "m = mmap.mmap(f, 4096, prot=mmap.PROT_READ); os.close(f); d = os.listdir('/proc/self/fd');"
            "[os.close(int(n)) for n in d if int(n) > 2 and os.path.exists('/proc/self/fd/' + n)];"
            "open('/proc/self/comm', 'w').write('mapper'); time.sleep(701)",
        ),
        "root": ("python3", "-c", f"import os, time; os.chroot('{disk.directory}'); time.sleep(701)"),
    }
    process = room.spawn(*commands[how])
    wait_until(lambda: is_busy(room, disk))
    stopped = fs("stop")
    assert stopped.code == OK, stopped.reason
    assert process.wait(5) != 0
    assert "SIGTERM to process" in fs.log


def is_busy(room: Cell, disk: Disk) -> bool:
    """Would an unmount fail? Asked without doing it: MNT_EXPIRE first marks only."""
    done = subprocess.run(
        room.enter(
            "python3",
            "-c",
            "import ctypes, sys; l = ctypes.CDLL(None, use_errno=True);"
            f"l.umount2(b'{disk.directory}', 4); sys.exit(ctypes.get_errno() == 16)",
        ),
        check=False,
    )
    return done.returncode == 1


def test_who_only_stands_beside_is_left_alone(disk: Disk, room: Cell) -> None:
    fs = disk.resource()
    fs("start")
    sibling = Path(f"{disk.directory}x")
    sibling.mkdir()
    bystander = hold(room, sibling)
    assert fs("stop").code == OK
    assert bystander.poll() is None


def test_what_is_mounted_inside_goes_first_and_bind_mounts_elsewhere_too(
    disk: Disk, other_disk: Disk, room: Cell
) -> None:
    fs = disk.resource()
    fs("start")
    inside, bound = disk.directory / "in side", room.directory / f"bound{os.getpid()}"
    for path in (inside, inside / "deeper", bound):
        room.run("mkdir", "-p", str(path))
    room.run("mount", other_disk.device, str(inside))
    room.run("mkdir", "-p", str(inside / "deeper"))
    room.run("mount", "-t", "tmpfs", "tmpfs", str(inside / "deeper"))
    room.run("mount", "--bind", str(disk.directory), str(bound))
    hold(room, inside / "deeper")
    stopped = fs("stop")
    assert stopped.code == OK, stopped.reason
    assert not disk.mounts()
    assert not other_disk.mounts()
    assert "tmpfs " + str(inside) not in room.run("cat", "/proc/mounts")
    assert is_free(disk)


def test_a_loop_device_over_a_file_on_it_is_named_at_once_and_nobody_is_ended(disk: Disk, room: Cell) -> None:
    fs = disk.resource()
    fs("start")
    path = disk.directory / "inner-image"
    room.run("truncate", "-s", "1M", str(path))
    with loop_over(Path(f"/proc/{room.init}/root{path}")) as inner:
        refused = fs("stop", timeout_s=20)
        assert refused.code == FAILED
        assert f"held by loop device {inner}" in refused.reason
        assert refused.seconds < 3
    assert fs("stop").code == OK


def test_a_file_system_still_mounted_in_another_namespace_is_not_stopped(disk: Disk, room: Cell) -> None:
    fs = disk.resource()
    fs("start")
    process = room.spawn("unshare", "-m", "--propagation", "private", "sleep", "702")
    wait_until(lambda: room.named("sleep 702") and "sleep" in names(room))
    refused = fs("stop", timeout_s=20)
    assert refused.code == FAILED
    assert "still mounted in the mount namespace of process" in refused.reason
    assert "(sleep)" in refused.reason
    assert refused.seconds < 3
    assert not disk.mounts()
    assert fs.probe().code == NOT_RUNNING
    process.kill()
    room.end_all()
    assert fs("stop").code == OK
    assert is_free(disk)


def test_the_caller_of_the_agent_is_never_ended(disk: Disk, room: Cell) -> None:
    fs = disk.resource()
    fs("start")
    command = fs.command("stop", timeout_s=10)
    agent = command[command.index("env") :]
    # the caller's working directory is on the file system
    caller = room.enter("sh", "-c", f'cd {disk.directory}; "$@"; echo $?', "caller", *agent)
    done = subprocess.run(caller, capture_output=True, text=True, check=False, timeout=20)
    assert done.stdout.strip() == "1", done.stderr
    assert "(sh), which no stop may end" in done.stderr
    assert fs("stop").code == OK


def test_the_manager_is_never_ended_by_name(disk: Disk, room: Cell) -> None:
    fs = disk.resource()
    fs("start")
    room.run("cp", "/bin/sleep", str(room.directory / "corosync"))
    room.spawn("sh", "-c", f"cd {disk.directory}; exec {room.directory}/corosync 703")
    wait_until(lambda: "corosync" in names(room))
    wait_until(lambda: is_busy(room, disk))
    refused = fs("stop")
    assert refused.code == FAILED
    assert "(corosync), which no stop may end" in refused.reason


def test_a_stop_works_when_the_directory_of_records_is_read_only(disk: Disk, room: Cell) -> None:
    fs = disk.resource()
    fs("start")
    room.run("mount", "--bind", "-o", "ro", str(fs.run_directory), str(fs.run_directory))
    hold(room, disk.directory)
    stopped = fs("stop")
    assert stopped.code == OK, stopped.reason
    assert not disk.mounts()
