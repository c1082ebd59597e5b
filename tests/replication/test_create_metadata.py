from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from replication.create_metadata import Existing, create, inspect, load
from replication.protocol.activity_log import ActivityLog, initialised_ring
from replication.protocol.attachment import clean_stop
from replication.protocol.errors import DiskFailure, MetadataError, Refusal
from replication.protocol.metadata import Layout, MetadataFlag, Superblock, internal_layout, just_created

MIB = 1 << 20
PACKAGES = {
    "wipefs": "util-linux",
    "mkswap": "util-linux",
    "losetup": "mount",
    "mkfs.ext4": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
}


@pytest.fixture(autouse=True, scope="module")
def programs() -> None:
    missing = sorted({package for program, package in PACKAGES.items() if not shutil.which(program)})
    assert not missing, f"apt-get install {' '.join(missing)}"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk of 64 MiB on which somebody once wrote."""
    return filled(tmp_path / "disk", 64 * MIB)


def filled(path: Path, size_bytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes - MIB // 2)
        file.seek(size_bytes - MIB // 2)
        file.write(b"\xa5" * (MIB // 2))
    return path


def run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=60)


def digest_of_data_area(path: Path, layout: Layout) -> int:
    return hash(path.read_bytes()[: layout.data_bytes])


# Creating


def test_a_new_disk_gets_metadata_and_keeps_its_data(disk: Path) -> None:
    layout = internal_layout(64 * MIB)
    before = digest_of_data_area(disk, layout)
    assert create(str(disk)) == layout
    assert digest_of_data_area(disk, layout) == before
    content = disk.read_bytes()
    assert not any(content[layout.bitmap_offset : layout.al_offset])
    assert content[layout.al_offset : layout.superblock_offset] == initialised_ring(layout)
    assert Superblock.decode(content[layout.superblock_offset :]) == just_created(layout)


def test_metadata_nobody_used_yet_may_be_made_again(disk: Path) -> None:
    create(str(disk))
    create(str(disk), al_stripes=2)
    with disk.open("rb") as file:
        assert inspect(file.fileno(), 64 * MIB, str(disk)).layout.al_stripes == 2


def test_a_disk_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MetadataError, match="larger disk"):
        create(str(filled(tmp_path / "small", MIB - 4096)))


def test_a_log_larger_than_its_ring_is_refused(disk: Path) -> None:
    with pytest.raises(Refusal, match="at most 6433"):
        create(str(disk), al_extents=6434)


def test_a_disk_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(DiskFailure, match="No such file"):
        create(str(tmp_path / "nothing"))


# What is in the way


def test_a_file_system_that_reaches_into_the_metadata_is_refused_with_what_to_shrink(disk: Path) -> None:
    run("mkfs.ext4", "-q", "-F", disk)
    layout = internal_layout(64 * MIB)
    before = disk.read_bytes()
    with pytest.raises(Refusal) as refused:
        create(str(disk), existing=Existing.OVERWRITE)
    assert f"{64 * MIB - layout.data_bytes} more" in refused.value.fact
    assert disk.read_bytes() == before


@pytest.mark.parametrize("features", ["64bit", "^64bit"])
def test_a_file_system_shrunk_as_told_is_accepted(disk: Path, features: str) -> None:
    run("mkfs.ext4", "-q", "-F", "-O", features, disk)
    with pytest.raises(Refusal) as refused:
        create(str(disk))
    run("sh", "-c", refused.value.remedy)
    create(str(disk))
    run("e2fsck", "-n", "-f", disk)


def test_xfs_cannot_shrink_and_the_disk_has_to_grow(tmp_path: Path) -> None:
    path = tmp_path / "xfs"
    path.touch()
    os.truncate(path, 320 * MIB)
    run("mkfs.xfs", "-q", path)
    with pytest.raises(Refusal, match="XFS cannot shrink"):
        create(str(path))
    os.truncate(path, 321 * MIB)
    create(str(path))


def test_swap_is_measured_too(disk: Path) -> None:
    run("mkswap", disk)
    with pytest.raises(Refusal, match="swap area has"):
        create(str(disk))
    run("mkswap", disk, str(63 * 1024))
    create(str(disk))


def dos_table(kind: int, start_sector: int, sectors: int) -> bytes:
    """The first sector of a disk with one partition."""
    entry = bytes([0, 0, 2, 0, kind, 0, 2, 0])
    entry += start_sector.to_bytes(4, "little") + sectors.to_bytes(4, "little")
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


def gpt_header(here: int, other: int, entries_at: int) -> bytes:
    """One of the two headers (LBAs of this one, the other one, the entries); the table is empty."""

    def header(checksum: int) -> bytes:
        fixed = struct.pack("<8sIIIIQQQQ", b"EFI PART", 0x10000, 92, checksum, 0, here, other, 34, 131038)
        return fixed + b"\x01" * 16 + struct.pack("<QIII", entries_at, 128, 128, zlib.crc32(bytes(128 * 128)))

    return header(zlib.crc32(header(0))).ljust(512, b"\0")


def test_a_partition_that_reaches_into_the_metadata_is_refused(disk: Path) -> None:
    end = internal_layout(64 * MIB).data_bytes // 512
    write(disk, 0, dos_table(0x83, 2048, end - 2048 + 1))
    with pytest.raises(Refusal, match="512 more than the metadata at the end leaves"):
        create(str(disk))
    write(disk, 0, dos_table(0x83, 2048, end - 2048))
    create(str(disk))


def test_a_gpt_keeps_its_copy_where_the_metadata_would_go(disk: Path) -> None:
    last = 64 * MIB // 512 - 1
    write(disk, 0, dos_table(0xEE, 1, last) + gpt_header(1, last, 2) + bytes(128 * 128))
    write(disk, (last - 32) * 512, bytes(128 * 128) + gpt_header(last, 1, last - 32))
    with pytest.raises(Refusal, match="GPT"):
        create(str(disk), existing=Existing.OVERWRITE)


@pytest.mark.parametrize(
    ("offset", "signature", "name"),
    [
        (0, b"LUKS\xba\xbe\x00\x02", "LUKS"),
        (64 * MIB - 64 * 1024, b"\xfc\x4e\x2b\xa9" + bytes(4) + (90).to_bytes(4, "little"), "software RAID"),
        (64 * MIB - 8192, raid_1_0 := b"\xfc\x4e\x2b\xa9\x01\x00\x00\x00", "software RAID"),
    ],
    ids=["LUKS", "RAID 0.90", "RAID 1.0"],
)
def test_what_may_use_the_end_of_the_disk_is_refused(disk: Path, offset: int, signature: bytes, name: str) -> None:
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(signature.ljust(4096, b"\0"))
        if signature == raid_1_0:  # it names the sector it stands in
            file.seek(offset + 144)
            file.write((offset // 512).to_bytes(8, "little"))
    with pytest.raises(Refusal, match=name):
        create(str(disk), existing=Existing.OVERWRITE)


@pytest.mark.parametrize("magic", [0x8374026A, 0x8374026D], ids=["DRBD 0.7", "DRBD 9"])
def test_foreign_metadata_goes_only_when_that_is_said(disk: Path, magic: int) -> None:
    with disk.open("r+b") as file:
        file.seek(internal_layout(64 * MIB).superblock_offset)
        file.write(bytes(60) + magic.to_bytes(4) + bytes(4096 - 64))
    with pytest.raises(Refusal, match="DRBD metadata"):
        create(str(disk))
    create(str(disk), existing=Existing.OVERWRITE)
    create(str(disk))


def test_metadata_of_a_mirror_goes_only_when_that_is_said(disk: Path) -> None:
    layout = create(str(disk))
    used = replace(just_created(layout), current_uuid=0x1234, la_size_sectors=8)
    write(disk, layout.superblock_offset, used.encode())
    with pytest.raises(Refusal, match="generation 0000000000001234"):
        create(str(disk))
    assert Superblock.decode(disk.read_bytes()[layout.superblock_offset :]) == used
    create(str(disk), existing=Existing.OVERWRITE)
    assert Superblock.decode(disk.read_bytes()[layout.superblock_offset :]).just_created


def test_a_metadata_device_of_another_disk_is_noticed_at_its_start(disk: Path) -> None:
    used = replace(just_created(internal_layout(64 * MIB)), current_uuid=0x1234)
    write(disk, 0, used.encode())
    with pytest.raises(Refusal, match="at its start"):
        create(str(disk))


# What is in use


@pytest.fixture
def loop(disk: Path) -> Iterator[str]:
    done = subprocess.run(["losetup", "--find", "--show", disk], check=True, capture_output=True, text=True)
    device = done.stdout.strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


def test_a_block_device_is_a_disk(loop: str) -> None:
    assert create(loop) == internal_layout(64 * MIB)


def test_a_block_device_somebody_holds_is_refused(loop: str) -> None:
    holder = os.open(loop, os.O_RDWR | os.O_EXCL)
    try:
        with pytest.raises(Refusal, match="in use; lsblk"):
            create(loop)
    finally:
        os.close(holder)


def test_a_mounted_disk_is_refused(loop: str, tmp_path: Path) -> None:
    run("mkfs.ext4", "-q", loop, "60M")
    (tmp_path / "mnt").mkdir()
    run("mount", loop, tmp_path / "mnt")
    try:
        with pytest.raises(Refusal, match="in use"):
            create(loop)
    finally:
        run("umount", tmp_path / "mnt")
    create(loop)


def test_a_file_system_on_a_block_device_is_shrunk_in_the_same_way(loop: str) -> None:
    run("mkfs.ext4", "-q", loop)
    with pytest.raises(Refusal) as refused:
        create(loop)
    run("sh", "-c", refused.value.remedy)
    create(loop)
    run("e2fsck", "-n", "-f", loop)


def test_a_file_that_a_loop_device_uses_is_refused(loop: str, disk: Path) -> None:
    with pytest.raises(Refusal, match=f"in use as {loop}"):
        create(str(disk))


def test_a_file_somebody_has_locked_is_refused(disk: Path) -> None:
    with disk.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(Refusal, match="lock"):
            create(str(disk))


# Taking into use


def write(disk: Path, offset: int, data: bytes) -> None:
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_crashed_primary_finds_its_hot_extents_marked_on_the_disk(disk: Path) -> None:
    layout = create(str(disk))
    flags = MetadataFlag.CONSISTENT | MetadataFlag.PRIMARY_IND
    used = replace(just_created(layout), flags=flags, la_size_sectors=layout.data_bytes // 512, clean=False)
    activation = ActivityLog(67, layout).activate([2, 3])
    assert activation is not None
    for offset, data in [(layout.superblock_offset, used.encode()), *activation.writes]:
        write(disk, offset, data)
    with disk.open("r+b") as file:
        first = load(file.fileno(), 64 * MIB, str(disk))
        again = load(file.fileno(), 64 * MIB, str(disk))
    assert first.replayed_extents == {2, 3}
    assert first.bitmap.data == again.bitmap.data
    assert again.superblock == first.superblock
    assert disk.read_bytes()[layout.bitmap_offset :][256 : 256 + 256] == b"\xff" * 256
    for offset, data in clean_stop(again.superblock, layout):
        write(disk, offset, data)
    with disk.open("rb") as file:
        assert inspect(file.fileno(), 64 * MIB, str(disk)).superblock.flags & MetadataFlag.CRASHED_PRIMARY


def test_looking_changes_nothing(disk: Path) -> None:
    create(str(disk))
    before = disk.read_bytes()
    with disk.open("rb") as file:
        inspect(file.fileno(), 64 * MIB, str(disk))
    assert disk.read_bytes() == before


def test_a_disk_without_metadata_is_left_alone(disk: Path) -> None:
    before = disk.read_bytes()
    with disk.open("r+b") as file, pytest.raises(MetadataError, match=f"{disk}: no DRBD"):
        load(file.fileno(), 64 * MIB, str(disk))
    assert disk.read_bytes() == before


def test_a_disk_shorter_than_said_is_a_failure(disk: Path) -> None:
    with disk.open("rb") as file, pytest.raises(DiskFailure, match="the disk ends"):
        load(file.fileno(), 128 * MIB, str(disk))
