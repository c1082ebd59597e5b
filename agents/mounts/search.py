"""Search the whole machine for whoever holds a file system. Runs in a child: some files of /proc can hang.

A process that waits for a dead disk may hold the lock of its memory map, and whoever reads that map waits with it. So
all processes are asked for their places and open files first, which never blocks, and for their maps last; and each
finding is printed at once, so that a search that hangs has still said what it found.
"""

from __future__ import annotations

import posix

from agents.mounts.holders import (
    Target,
    exports,
    holds_by_descriptor,
    holds_by_memory,
    holds_by_place,
    may_be_ended,
    swap_files,
    target_elsewhere,
)
from agents.mounts.mountinfo import read_long, read_mounts
from agents.ocf.log import write_all
from agents.ocf.state import read_small
from agents.supervision.belonging import Entry, untouchable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

HOLDER, SPARED, KERNEL, NAMESPACE = "holder", "spared", "kernel", "namespace"
PLACES = ("cwd", "root", "exe")


class Findings:
    """holders     processes that may be ended, with how they hold it
    spared      processes that hold it and are never ended
    kernel      users without a process: loop devices, swap files, exports
    namespaces  processes in whose mount namespace one of the devices is mounted too
    """

    def __init__(self) -> None:
        self.holders: list[Entry] = []
        self.spared: list[Entry] = []
        self.kernel: list[str] = []
        self.namespaces: list[str] = []


def read_findings(text: str) -> Findings:
    """The inverse of what `search` prints; a last line that was cut off is left out."""
    findings = Findings()
    for line in text.split("\n")[:-1]:
        kind, _, rest = line.partition(" ")
        if kind in (HOLDER, SPARED):
            pid, parent, start, state, name = rest.split(" ", 4)
            entry = Entry(int(pid), int(parent), 0, 0, int(start), name, state=state)
            (findings.holders if kind == HOLDER else findings.spared).append(entry)
        elif kind == KERNEL:
            findings.kernel.append(rest)
        elif kind == NAMESPACE:
            findings.namespaces.append(rest)
    return findings


def search(target: Target, agent: int, *, with_maps: bool) -> None:
    """Print all who hold the target. `agent`: pid of the agent, who is spared with its ancestors."""
    own = namespace_of("self")
    table = read_table()
    spared = untouchable(table, agent)
    # the same devices may be mounted in other namespaces, under other names
    targets: dict[str, Target] = {own: target, "": target}
    found: set[int] = set()
    say = printer(found, spared)
    for entry in table.values():
        if entry.pid == posix.getpid():
            continue
        namespace = namespace_of(str(entry.pid))
        if namespace not in targets:
            targets[namespace] = target_elsewhere(read_mounts(str(entry.pid)), target.numbers)
            if targets[namespace].points and namespace:
                write_line(f"{NAMESPACE} {entry.pid} ({entry.name})")
        if targets[namespace].points and holds_without_memory(targets[namespace], entry.pid):
            say(entry)
    for text in kernel_users(target):
        write_line(f"{KERNEL} {text}")
    for entry in table.values() if with_maps else ():
        there = targets.get(namespace_of(str(entry.pid)), target)
        if entry.pid not in found and there.points and holds_by_memory(there, read_long(f"/proc/{entry.pid}/maps")):
            say(entry)


def printer(found: set[int], spared: frozenset[int]) -> Callable[[Entry], None]:
    def say(entry: Entry) -> None:
        found.add(entry.pid)
        kind = HOLDER if may_be_ended(entry, spared) else SPARED
        write_line(f"{kind} {entry.pid} {entry.parent} {entry.start_ticks} {entry.state} {entry.name}")

    return say


def write_line(text: str) -> None:
    write_all(1, text.replace("\n", "?") + "\n")


def read_table() -> dict[int, Entry]:
    """All processes by pid, from the one file of theirs that never blocks."""
    table = {}
    for name in posix.listdir("/proc"):
        entry = read_entry(int(name)) if name.isdigit() else None
        if entry is not None:
            table[entry.pid] = entry
    return table


def read_entry(pid: int) -> Entry | None:
    head, _, tail = read_small(f"/proc/{pid}/stat").rpartition(")")
    fields = tail.split()
    if len(fields) < 20 or (fields[0] in "ZXx" and int(fields[17]) < 2):
        return None
    numbers = int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19])
    return Entry(pid, *numbers, head.partition("(")[2], state=fields[0])


def holds_without_memory(target: Target, pid: int) -> bool:
    places = {how: link_of(f"/proc/{pid}/{how}") for how in PLACES}
    if holds_by_place(target, places):
        return True
    try:
        numbers = posix.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for number in numbers:
        path = link_of(f"/proc/{pid}/fd/{number}")
        if target.covers(path) and holds_by_descriptor(target, path, read_small(f"/proc/{pid}/fdinfo/{number}")):
            return True
    return False


def kernel_users(target: Target) -> list[str]:
    """Whoever uses the target without being a process. Loop devices are asked through sysfs, never themselves."""
    found = [f"swap file {path}" for path in swap_files(read_small("/proc/swaps"), target)]
    found += [f"NFS export {path}" for path in exports(read_small("/proc/fs/nfsd/exports"), target)]
    for name in posix.listdir("/sys/block"):
        if name.startswith("loop"):
            path = read_small(f"/sys/block/{name}/loop/backing_file").rstrip("\n")
            if path and target.covers(path):
                found.append(f"loop device /dev/{name} over {path}")
    return found


def link_of(path: str) -> str:
    """Where a symbolic link points; "" for anything else, and for what we may not see."""
    try:
        return posix.readlink(path)
    except OSError:
        return ""


def namespace_of(pid: str) -> str:
    return link_of(f"/proc/{pid}/ns/mnt")
