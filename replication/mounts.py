"""What is mounted, here and in other mount namespaces; and taking mounts away."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo, proc(5)."""

    mount_point: str
    kind: str
    """Type of the file system: "ext4", "fuse.nbdfuse"."""
    source: str
    device: str
    """"major:minor" of the file system; made up by the kernel for btrfs, FUSE and their like."""


def mounts_here() -> list[Mount]:
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"))


def mounts_everywhere() -> Iterator[tuple[int, Mount]]:
    """Each mount of each mount namespace that can be seen from here, with the lowest process that lives in it."""
    seen: set[str] = set()
    for process in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            namespace = os.readlink(f"/proc/{process}/ns/mnt")
            if namespace in seen:
                continue
            text = Path(f"/proc/{process}/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:  # it ended meanwhile
            continue
        seen.add(namespace)
        for mount in parse_mountinfo(text):
            yield process, mount


def parse_mountinfo(text: str) -> list[Mount]:
    mounts = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        _, _, device, _, mount_point, *_ = before.split(" ")
        kind, source, *_ = after.split(" ")
        mounts.append(Mount(_unescape(mount_point), kind, _unescape(source), device))
    return mounts


def is_mount_point(path: str) -> bool:
    """Read from mountinfo, since a stat() of a mount whose server hangs would hang too."""
    return any(mount.mount_point == path for mount in mounts_here())


def mount(kind: str, path: str) -> None:
    """Mount a file system that needs no source, by its type; OSError as mount(2)."""
    if _libc.mount(os.fsencode(kind), os.fsencode(path), os.fsencode(kind), 0, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def unmount(path: str) -> None:
    """umount2(2): OSError EBUSY while anybody uses it."""
    _umount2(path, UMOUNT_NOFOLLOW)


def detach_mounts(path: str) -> int:
    """Take everything mounted at `path` out of the tree without asking its server; returns how many there were.

    Whoever still uses such a mount keeps it; nobody can find it any more.
    """
    count = 0
    while is_mount_point(path):
        try:
            _umount2(path, UMOUNT_NOFOLLOW | MNT_DETACH)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: gone meanwhile
                raise
        count += 1
    return count


def _umount2(path: str, flags: int) -> None:
    if _libc.umount2(os.fsencode(path), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def _unescape(field: str) -> str:
    r"""Blanks and the like stand there in octal: "\040"."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
