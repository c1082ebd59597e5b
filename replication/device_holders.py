"""Who still uses a block device: file systems on it, processes that have it open, and devices built on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from replication.mounts import mounts_everywhere, mounts_here


def holders(path: str, ignored_processes: frozenset[int]) -> list[str]:
    """The users of /dev/NAME, each in words ("mounted at /srv", "process 412 (dd)"); empty if none can be seen.

    A file system that was unmounted lazily, and processes of a PID namespace beside ours, hold a device unseen.
    Only names are read, no file is touched: a stat() might wait for a file system that hangs.
    """
    return [*_mounted(path), *_built_on(path), *_opened(path, ignored_processes)]


def _mounted(path: str) -> Iterator[str]:
    device = Path(f"/sys/class/block/{os.path.basename(path)}/dev").read_text(encoding="ascii").strip()
    here = {mount.mount_point for mount in mounts_here() if device == mount.device or path == mount.source}
    yield from (f"mounted at {point}" for point in sorted(here))
    elsewhere: dict[str, int] = {}
    for process, mount in mounts_everywhere():
        if (device == mount.device or path == mount.source) and mount.mount_point not in here:
            elsewhere.setdefault(mount.mount_point, process)
    yield from (
        f"mounted at {point} in the mount namespace of process {process}{_name(process)}"
        for point, process in sorted(elsewhere.items())
    )


def _built_on(path: str) -> Iterator[str]:
    for other in sorted(os.listdir(f"/sys/class/block/{os.path.basename(path)}/holders")):
        yield f"part of /dev/{other}"
    for line in Path("/proc/swaps").read_text(encoding="utf-8").splitlines()[1:]:
        if line.split()[0] == path:
            yield "in use as swap"


def _opened(path: str, ignored_processes: frozenset[int]) -> Iterator[str]:
    for process in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        if process in ignored_processes:
            continue
        try:
            files = os.listdir(f"/proc/{process}/fd")
        except OSError:  # it ended meanwhile
            continue
        for file in files:
            try:
                if os.readlink(f"/proc/{process}/fd/{file}") == path:
                    yield f"open in process {process}{_name(process)}"
                    break
            except OSError:
                continue


def _name(process: int) -> str:
    try:
        return f" ({Path(f'/proc/{process}/comm').read_text(encoding='utf-8', errors='replace').strip()})"
    except OSError:
        return ""
