"""What else lives on a disk, and how far it reaches: before metadata is written at the end of it.

The signatures come from wipefs(8), the sizes from the file systems' own superblocks.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from replication.protocol.errors import DiskFailure, Refusal

_WIPEFS_TIMEOUT_S = 60
_SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Occupant:
    """One file system, partition table or the like."""

    kind: str
    """As wipefs calls it: ext4, xfs, dos, gpt, LVM2_member ..."""
    end_bytes: int | None
    """What it uses lies before this offset; None: it does not say, or it uses the end of the disk."""


def occupants(fd: int, path: str) -> list[Occupant]:
    """What lives on the open disk at `path`, except DRBD's metadata.

    Raises DiskFailure when it cannot be read, Refusal when there is no wipefs to look with.
    """
    try:
        return [
            Occupant(kind, _END[kind](fd) if kind in _END else None)
            for kind in dict.fromkeys(_signatures(path))
            if kind != "drbd"
        ]
    except OSError as error:
        raise DiskFailure(path, f"reading what is on it: {error.strerror}") from error


def refuse_what_is_in_the_way(fd: int, path: str, data_bytes: int) -> None:
    """Raises Refusal when anything but DRBD's metadata uses, or may use, what lies behind the data area."""
    for occupant in occupants(fd, path):
        kind, end = occupant.kind, occupant.end_bytes
        if end is None:
            raise Refusal(
                path,
                f"it holds {_NAMES.get(kind, kind)}, which may use the end of the disk, where the metadata goes",
                f"give another disk or a partition; or, if all of it may go: wipefs --all {path}",
            )
        if end > data_bytes:
            raise Refusal(
                path,
                f"its {_NAMES.get(kind, kind)} has {end} bytes, "
                f"{end - data_bytes} more than the metadata at the end leaves",
                _shrink(kind, path, data_bytes, end - data_bytes) + _grow_back(kind, fd, path),
            )


def _signatures(path: str) -> list[str]:
    try:
        done = subprocess.run(
            ["wipefs", "--json", "--no-act", "--output", "TYPE", "--", path],
            capture_output=True,
            text=True,
            timeout=_WIPEFS_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise Refusal(path, "wipefs is not there to see what is on it", "apt-get install util-linux") from error
    except subprocess.TimeoutExpired as error:
        raise DiskFailure(path, f"wipefs did not end in {_WIPEFS_TIMEOUT_S} s") from error
    if done.returncode:
        raise DiskFailure(path, f"wipefs: {done.stderr.strip() or done.returncode}")
    if not done.stdout.strip():
        return []
    return [str(signature["type"]) for signature in json.loads(done.stdout)["signatures"]]


def _shrink(kind: str, path: str, data_bytes: int, excess_bytes: int) -> str:
    if kind.startswith("ext"):
        return f"e2fsck -f -p {path} && resize2fs {path} {data_bytes // 1024}K"
    if kind == "xfs":
        return f"XFS cannot shrink: enlarge the disk by {excess_bytes} bytes or more, or copy the files elsewhere"
    if kind == "btrfs":
        return f"mount it, and: btrfs filesystem resize {data_bytes} MOUNTPOINT"
    if kind == "swap":
        return f"swapoff {path}; mkswap {path} {data_bytes // 1024}"
    return f"make it smaller by {excess_bytes} bytes or more"


def _grow_back(kind: str, fd: int, path: str) -> str:
    """resize2fs cuts a file off behind the file system; a device keeps its size."""
    status = os.fstat(fd)
    return f" && truncate -s {status.st_size} {path}" if kind.startswith("ext") and stat.S_ISREG(status.st_mode) else ""


def _little(fd: int, offset: int, length: int) -> int:
    return int.from_bytes(os.pread(fd, length, offset), "little")


def _big(fd: int, offset: int, length: int) -> int:
    return int.from_bytes(os.pread(fd, length, offset), "big")


def _end_of_ext(fd: int) -> int:
    start, uses_64_bits = 1024, 0x80
    blocks = _little(fd, start + 4, 4)
    if _little(fd, start + 96, 4) & uses_64_bits:
        blocks |= _little(fd, start + 336, 4) << 32
    return blocks * 1024 << _little(fd, start + 24, 4)


def _end_of_xfs(fd: int) -> int:
    return _big(fd, 4, 4) * _big(fd, 8, 8)


def _end_of_btrfs(fd: int) -> int:
    start = 64 * 1024
    return _little(fd, start + 112, 8)


def _end_of_swap(fd: int) -> int | None:
    for page_bytes in (4096, 8192, 16384, 32768, 65536):
        if os.pread(fd, 10, page_bytes - 10) == b"SWAPSPACE2":
            return (_little(fd, 1028, 4) + 1) * page_bytes
    return None


def _end_of_dos(fd: int) -> int:
    """Logical partitions lie inside the extended one, which is one of the four."""
    entries = [446 + 16 * index for index in range(4)]
    return max(_little(fd, at + 8, 4) + _little(fd, at + 12, 4) for at in entries) * _SECTOR_BYTES


_END: dict[str, Callable[[int], int | None]] = {
    "ext2": _end_of_ext,
    "ext3": _end_of_ext,
    "ext4": _end_of_ext,
    "xfs": _end_of_xfs,
    "btrfs": _end_of_btrfs,
    "swap": _end_of_swap,
    "dos": _end_of_dos,
}

_NAMES = {
    "gpt": "a GPT partition table",
    "PMBR": "a GPT partition table",
    "dos": "partition table",
    "LVM2_member": "an LVM physical volume",
    "crypto_LUKS": "an encrypted volume (LUKS)",
    "linux_raid_member": "a member of a Linux software RAID",
    "zfs_member": "a member of a ZFS pool",
    "ext2": "ext2 file system",
    "ext3": "ext3 file system",
    "ext4": "ext4 file system",
    "xfs": "XFS file system",
    "btrfs": "btrfs file system",
    "swap": "swap area",
}
