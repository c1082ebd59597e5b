from __future__ import annotations

import pytest

from agents.mounts.mountinfo import Mount
from agents.mounts.source import OTHER, SAME, UNKNOWN, Wanted, is_block, is_remote, link_for, names_of, tag_of

RW = frozenset(("rw",))


def mount(number: str, source: str, kind: str = "ext4") -> Mount:
    return Mount(1, 0, number, "/", "/srv/x", RW, kind, source, RW)


def test_a_block_device_is_known_by_its_number_and_not_by_the_path_in_the_table() -> None:
    wanted = Wanted("/dev/mirrorha/r0/0", number="7:3")
    assert wanted.compare(names_of(mount("7:3", "/dev/loop3"))) == SAME
    assert wanted.compare(names_of(mount("7:4", "/dev/mirrorha/r0/0"))) == OTHER


def test_btrfs_shows_a_number_of_its_own_and_is_known_by_that_of_its_source() -> None:
    wanted = Wanted("/dev/disk/by-id/x", number="8:17")
    assert wanted.compare(names_of(mount("0:55", "/dev/sdb1", "btrfs"), source_number="8:17")) == SAME
    assert wanted.compare(names_of(mount("0:55", "/dev/sdb2", "btrfs"), source_number="8:18")) == OTHER


def test_an_image_file_is_known_by_the_file_behind_its_loop_device() -> None:
    wanted = Wanted("/srv/link.img", names=("/srv/real.img",))
    assert wanted.compare(names_of(mount("7:3", "/dev/loop3"), backing_file="/srv/real.img")) == SAME
    assert wanted.compare(names_of(mount("7:3", "/dev/loop3"), backing_file="/srv/other.img")) == OTHER


@pytest.mark.parametrize(
    ("configured", "mounted", "verdict"),
    [
        ("server:/export", "server:/export", SAME),
        ("server:/export/", "server:/export", SAME),
        ("//server/share", "//server/share/", SAME),
        ("server:/", "server:/", SAME),
        ("server:/export", "other:/export", OTHER),
        ("tmpfs", "tmpfs", SAME),
    ],
)
def test_a_share_is_known_by_its_name(configured: str, mounted: str, verdict: str) -> None:
    assert Wanted(configured).compare(names_of(mount("0:50", mounted, "nfs4"))) == verdict


def test_a_device_that_does_not_exist_now_can_be_compared_with_nothing() -> None:
    assert Wanted("/dev/gone", is_unresolved=True).compare(names_of(mount("7:3", "/dev/gone"))) == UNKNOWN


def test_without_comparison_everything_counts() -> None:
    assert Wanted("/dev/a", number="8:1", accepts_anything=True).compare(frozenset(("8:2",))) == SAME


@pytest.mark.parametrize(
    ("device", "tag", "block"),
    [
        ("UUID=1234-ab", ("UUID", "1234-ab"), True),
        ('LABEL="my data"', ("LABEL", "my data"), True),
        ("PARTUUID=x", ("PARTUUID", "x"), True),
        ("/dev/sda1", None, True),
        ("/srv/image", None, False),
        ("server:/a=b", None, False),
        ("UUID=", ("UUID", ""), True),
    ],
)
def test_devices_have_names_of_several_kinds(device: str, tag: tuple[str, str] | None, block: bool) -> None:
    assert tag_of(device) == tag
    assert is_block(device) == block


def test_links_of_udev_escape_what_is_odd() -> None:
    assert link_for("UUID", "1a-2b") == "/dev/disk/by-uuid/1a-2b"
    assert link_for("LABEL", "my data/1") == "/dev/disk/by-label/my\\x20data\\x2f1"
    assert link_for("LABEL", "größe") == "/dev/disk/by-label/größe"


@pytest.mark.parametrize(
    ("kind", "answer"), [("nfs4", True), ("fuse.sshfs", True), ("fuseblk", False), ("ext4", False)]
)
def test_kinds_whose_server_may_hang(kind: str, answer: bool) -> None:
    assert is_remote(kind) == answer
