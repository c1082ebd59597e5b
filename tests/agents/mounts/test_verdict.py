"""What the mount table says about a resource: device 7:3 is to be mounted at /srv/x."""

from __future__ import annotations

import pytest

from agents.mounts.mountinfo import Mount, parse
from agents.mounts.source import Wanted, names_of
from agents.mounts.verdict import View

SUCCESS, FAILED, NOT_RUNNING = 0, 1, 7
ROOT = "1 0 254:0 / / rw - ext4 /dev/vda rw"
OURS = "30 1 7:3 / /srv/x rw,relatime - ext4 /dev/loop3 rw"
WANTED = Wanted("/dev/mirror", number="7:3")
GONE = Wanted("/dev/mirror", is_unresolved=True)
ANYTHING = Wanted("/dev/mirror", number="7:3", accepts_anything=True)


def view(*lines: str, wanted: Wanted = WANTED) -> View:
    return View(parse("\n".join([ROOT, *lines])), "/srv/x", wanted, names_of)


@pytest.mark.parametrize(
    ("lines", "monitor", "probe", "words"),
    [
        ([], NOT_RUNNING, NOT_RUNNING, "nothing is mounted"),
        ([OURS], SUCCESS, SUCCESS, ""),
        (["30 1 7:3 / /srv/x ro - ext4 /dev/loop3 rw"], FAILED, FAILED, "read-only"),
        (["30 1 7:3 / /srv/x rw - ext4 /dev/loop3 ro"], FAILED, FAILED, "read-only"),
        (["30 1 7:3 / /srv/x rw - ext4 /dev/loop3 rw,emergency_ro"], FAILED, FAILED, "dead (emergency_ro)"),
        (["30 1 7:3 / /srv/x rw - ext4 /dev/loop3 rw,shutdown"], FAILED, FAILED, "dead (shutdown)"),
        (["30 1 8:1 / /srv/x rw - ext4 /dev/sda1 rw"], FAILED, NOT_RUNNING, "/dev/sda1 is mounted at /srv/x"),
        (["30 1 7:3 / /mnt rw - ext4 /dev/loop3 rw"], FAILED, NOT_RUNNING, "is mounted at /mnt and not at /srv/x"),
        ([OURS, "31 30 0:9 / /srv/x rw - tmpfs tmpfs rw"], FAILED, FAILED, "tmpfs is mounted over /srv/x"),
        (["29 1 0:9 / /srv/x rw - tmpfs tmpfs rw", "30 29 7:3 / /srv/x rw - ext4 /dev/loop3 rw"], SUCCESS, SUCCESS, ""),
        ([OURS, "31 30 0:9 / /srv/x/in rw - tmpfs tmpfs rw"], SUCCESS, SUCCESS, ""),
    ],
)
def test_what_a_monitor_and_a_probe_say(lines: list[str], monitor: int, probe: int, words: str) -> None:
    recurring = view(*lines).judge(wants_read_only=False, was_started=False, is_probe=False)
    assert (recurring.exit, words in recurring.reason) == (monitor, True)
    assert view(*lines).judge(wants_read_only=False, was_started=False, is_probe=True).exit == probe


def test_read_only_is_fine_where_it_is_wanted_but_a_dead_device_never() -> None:
    read_only = view("30 1 7:3 / /srv/x ro - ext4 /dev/loop3 ro")
    assert read_only.judge(wants_read_only=True, was_started=False, is_probe=False).exit == SUCCESS
    dead = view("30 1 7:3 / /srv/x ro - ext4 /dev/loop3 ro,shutdown")
    assert dead.judge(wants_read_only=True, was_started=False, is_probe=False).exit == FAILED


def test_what_a_killed_stop_left_elsewhere_is_ours_even_for_a_probe() -> None:
    left = view("30 1 7:3 / /mnt rw - ext4 /dev/loop3 rw")
    assert left.judge(wants_read_only=False, was_started=True, is_probe=True).exit == FAILED


def test_a_mount_whose_device_is_gone_is_a_failure_that_a_stop_can_end() -> None:
    gone = view(OURS, wanted=GONE)
    verdict = gone.judge(wants_read_only=False, was_started=False, is_probe=True)
    assert verdict.exit == FAILED
    assert "/dev/mirror does not exist now" in verdict.reason
    assert points(gone.to_unmount(gone.numbers(""))) == ["/srv/x"]


def points(mounts: list[Mount]) -> list[str]:
    return [mount.point for mount in mounts]


def test_a_stop_takes_inner_mounts_and_bind_mounts_first_and_the_directory_last() -> None:
    seen = view(
        OURS,
        "31 30 0:9 / /srv/x/in rw - tmpfs tmpfs rw",
        "32 31 8:1 / /srv/x/in/deep rw - ext4 /dev/sda1 rw",
        "33 1 7:3 /sub /bound rw - ext4 /dev/loop3 rw",
        "34 1 8:1 / /other rw - ext4 /dev/sda1 rw",
    )
    assert points(seen.to_unmount(seen.numbers(""))) == ["/bound", "/srv/x/in/deep", "/srv/x/in", "/srv/x"]


def test_a_stop_leaves_what_is_foreign() -> None:
    for line in ("30 1 8:1 / /srv/x rw - ext4 /dev/sda1 rw", "30 1 7:3 / /mnt rw - ext4 /dev/loop3 rw"):
        seen = view(line)
        assert seen.to_unmount(seen.numbers("")) == []


def test_a_stop_takes_mounts_elsewhere_that_a_start_of_this_boot_answers_for() -> None:
    seen = view("30 1 7:3 / /mnt rw - ext4 /dev/loop3 rw")
    assert points(seen.to_unmount(seen.numbers("7:3"))) == ["/mnt"]
    assert seen.to_unmount(seen.numbers("7:9")) == [], "the record is of another device"


def test_without_comparison_a_stop_reaches_no_further_than_the_directory() -> None:
    seen = view(
        "30 1 8:1 /home/x /srv/x rw - ext4 /dev/sda1 rw", "31 1 8:1 / /home rw - ext4 /dev/sda1 rw", wanted=ANYTHING
    )
    assert points(seen.to_unmount(seen.numbers(""))) == ["/srv/x"]


def test_the_root_file_system_is_never_unmounted_by_a_wrong_device() -> None:
    wrong = Wanted("/dev/vda", number="254:0")
    seen = view("30 1 254:0 /srv /srv/x rw - ext4 /dev/vda rw", wanted=wrong)
    assert points(seen.to_unmount(seen.numbers("254:0"))) == ["/srv/x"]
    seen = view(wanted=wrong)
    assert seen.to_unmount(seen.numbers("254:0")) == []
