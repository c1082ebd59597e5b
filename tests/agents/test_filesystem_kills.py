"""The manager's time-out is SIGKILL without warning: whatever the agent was about to do, the next action must cope.

strace kills the agent right before the n-th of each of its calls that can change anything. Its children live on,
which is worse than what a manager does: a mount that nobody waits for any more still comes true.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.agents.cell import Cell, kill_group
from tests.agents.disks import Disk, Filesystem, hold

OK, NOT_RUNNING = 0, 7
CHANGING_CALLS = ("clone", "flock", "pidfd_send_signal", "rename", "unlink", "write", "wait4")
TURN_LIMIT = 60
SEED = 20_417


def killed_at_each_step(fs: Filesystem, action: str, prepare: Callable[[], object]) -> Iterator[str]:
    """Run the action killed before the first, second … of each changing call; for each until an action survives."""
    steps = 0
    for call in CHANGING_CALLS:
        for turn in range(1, TURN_LIMIT):
            prepare()
            inject = f"inject={call}:signal=KILL:when={turn}"
            command = fs.command(action, timeout_s=10)
            command[-2:-2] = ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=30)
            if done.returncode == 0:
                break
            assert done.returncode in (-9, 137), done.stderr
            steps += 1
            yield f"{call} {turn}"
        else:
            pytest.fail(f"{action} calls {call} {TURN_LIMIT} times and more")
    assert steps > 12, "strace killed hardly anything: the test would prove nothing"


def test_a_start_killed_anywhere_is_undone_by_the_next_stop(disk: Disk) -> None:
    fs = disk.resource()
    seen = set()
    for step in killed_at_each_step(fs, "start", lambda: fs("stop")):
        seen.add(disk.is_mounted())
        stopped = fs("stop")
        assert stopped.code == OK, f"{step}: {stopped.errors}"
        assert fs.monitor().code == NOT_RUNNING, step
        assert not disk.mounts(), step
    assert seen == {True, False}, "no kill fell before, or none after, the mount"


def test_a_start_killed_anywhere_is_resumed_by_the_next_start(disk: Disk) -> None:
    fs = disk.resource()
    for step in killed_at_each_step(fs, "start", lambda: fs("stop")):
        again = fs("start")
        assert again.code == OK, f"{step}: {again.errors}"
        assert len(disk.mounts()) == 1, step
        assert fs.monitor(10).code == OK, step


def test_a_stop_killed_anywhere_is_finished_by_the_next_stop(disk: Disk, room: Cell) -> None:
    fs = disk.resource()

    def prepare() -> None:
        assert fs("start").code == OK
        room.run("mkdir", "-p", f"{disk.directory}/inside", f"{disk.directory}-bound")
        room.run("mount", "-t", "tmpfs", "tmpfs", f"{disk.directory}/inside")
        room.run("mount", "--bind", str(disk.directory), f"{disk.directory}-bound")
        hold(room, disk.directory)

    seen = set()
    for step in killed_at_each_step(fs, "stop", prepare):
        seen.add(len(disk.mounts()))
        stopped = fs("stop")
        assert stopped.code == OK, f"{step}: {stopped.errors}"
        assert fs.monitor().code == NOT_RUNNING, step
        assert not disk.mounts(), step
    assert {0, 2} <= seen, "no kill fell before, or none after, the unmounts"


def test_after_a_kill_of_the_whole_group_at_any_moment_a_stop_leaves_nothing(disk: Disk) -> None:
    chance = random.Random(SEED)
    fs = disk.resource()
    for turn in range(12):
        after_s = chance.uniform(0.005, 0.08)
        process = fs.begin("start")
        time.sleep(after_s)  # the moment is the test, not a wait
        kill_group(process)
        stopped = fs("stop")
        story = f"turn {turn} of seed {SEED}: start killed after {after_s:.4f} s"
        assert stopped.code == OK, f"{story}: {stopped.reason}"
        assert fs.monitor().code == NOT_RUNNING, story
        assert not disk.mounts(), story
