"""Who holds a file system. Pure: what /proc says about a process in, how it holds the file system out.

Nothing here touches the file system: where a process is and what it has open are texts in /proc. A path alone may mean
what lies hidden beneath another mount, so an open file also shows the identifier of its mount.
"""

from __future__ import annotations

from agents.mounts.mountinfo import Mount, is_below, unescape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agents.supervision.belonging import Entry

# What runs the cluster, or serves the device under the file system, is never ended for the sake of one resource.
MANAGERS = frozenset(("corosync", "clusterd", "sbd", "mirrord", "nbdfuse", "systemd", "systemd-udevd", "dlm_controld"))
MANAGER_PREFIX = "pacemaker"  # pacemakerd, pacemaker-execd, pacemaker-controld …
KERNEL_THREADS = 2  # their parent, and itself one


class Target:
    """What is to be unmounted, as seen from one mount namespace.

    identifiers   of the mounts
    points        where they are mounted
    numbers       major:minor of the block devices among them
    """

    def __init__(self, mounts: Iterable[Mount], numbers: Iterable[str] = ()) -> None:
        found = list(mounts)
        self.identifiers = frozenset(mount.identifier for mount in found)
        self.points = tuple(dict.fromkeys(mount.point for mount in found))
        self.numbers = frozenset(numbers)

    def covers(self, path: str) -> bool:
        """Does this path, as the kernel shows it, lie on one of the mounts? (deleted files show " (deleted)")"""
        path = path.removesuffix(" (deleted)")
        return any(is_below(path, point) for point in self.points)


def target_elsewhere(mounts: Sequence[Mount], numbers: Iterable[str]) -> Target:
    """The same block devices in another mount namespace, whose table this is."""
    wanted = frozenset(numbers)
    return Target((mount for mount in mounts if mount.number in wanted), wanted)


def holds_by_place(target: Target, places: Mapping[str, str]) -> str:
    """How ("cwd", "root", "exe") a process holds the target by one of these links; "" if it does not."""
    return next((how for how, path in places.items() if target.covers(path)), "")


def holds_by_descriptor(target: Target, path: str, details: str) -> bool:
    """`path`: where the descriptor's link points; `details`: its text in fdinfo, "" when it could not be read."""
    if not path.startswith("/") or not target.covers(path):
        return False
    identifier = mount_of_descriptor(details)
    return identifier is None or identifier in target.identifiers


def mount_of_descriptor(details: str) -> int | None:
    for line in details.split("\n"):
        name, _, value = line.partition(":")
        if name == "mnt_id" and value.strip().isdigit():
            return int(value)
    return None


def holds_by_memory(target: Target, maps: str) -> bool:
    """`maps`: the process's memory map (proc_pid_maps(5)). Its devices are those of the super block, in hexadecimal."""
    for line in maps.split("\n"):
        words = line.split(None, 5)
        if (
            len(words) == 6
            and words[5].startswith("/")
            and (target.covers(words[5]) or decimal(words[3]) in target.numbers)
        ):
            return True
    return False


def decimal(number: str) -> str:
    """`fd:0a` -> `253:10`."""
    major, _, minor = number.partition(":")
    try:
        return f"{int(major, 16)}:{int(minor, 16)}"
    except ValueError:
        return ""


def may_be_ended(entry: Entry, spared: frozenset[int]) -> bool:
    """`spared`: the agent, whoever called it, and init."""
    if entry.pid in spared or KERNEL_THREADS in (entry.pid, entry.parent):
        return False
    return entry.name not in MANAGERS and not entry.name.startswith(MANAGER_PREFIX)


def swap_files(text: str, target: Target) -> list[str]:
    """Swap files on the target; `text` is /proc/swaps."""
    paths = [unescape(line.split()[0]) for line in text.split("\n")[1:] if line.startswith("/")]
    return [path for path in paths if target.covers(path)]


def exports(text: str, target: Target) -> list[str]:
    """Directories on the target that the kernel's NFS server exports; `text` is /proc/fs/nfsd/exports."""
    paths = [unescape(line.split()[0]) for line in text.split("\n") if line.startswith("/")]
    return [path for path in paths if target.covers(path)]
