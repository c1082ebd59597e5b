"""The mount table as the kernel tells it (/proc/self/mountinfo, proc_pid_mountinfo(5)).

It is the one source that answers without touching a file system: a directory query on a dead server or disk hangs.
All but the reading at the end is pure: text in, mounts out.
"""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

FIELDS_BEFORE_OPTIONAL = 6
LINK_LIMIT = 40  # as the kernel's own
READ_LIMIT = 10
# options of a super block whose device failed: ext4 says emergency_ro or shutdown and goes on to say rw beside it
DEAD_WORDS = ("emergency_ro", "shutdown")


class Mount:
    """One line of the table.

    number    major:minor of the super block; major 0 = no block device of its own (network, memory, btrfs)
    root      what of the file system is mounted; "/" = all of it, else a bind mount or subvolume
    options   of this mount; `super_options` of the file system
    """

    def __init__(
        self,
        identifier: int,
        parent: int,
        number: str,
        root: str,
        point: str,
        options: frozenset[str],
        kind: str,
        source: str,
        super_options: frozenset[str],
    ) -> None:
        self.identifier = identifier
        self.parent = parent
        self.number = number
        self.root = root
        self.point = point
        self.options = options
        self.kind = kind
        self.source = source
        self.super_options = super_options

    def __repr__(self) -> str:
        return f"Mount({self.identifier} in {self.parent}, {self.source} {self.number} on {self.point})"

    @property
    def is_on_block_device(self) -> bool:
        return not self.number.startswith("0:")

    @property
    def is_read_only(self) -> bool:
        return "ro" in self.options or "ro" in self.super_options

    @property
    def death(self) -> str:
        """The option by which the file system says that it has given up on its device; "" if it has not."""
        return next((word for word in DEAD_WORDS if word in self.super_options), "")


def parse(text: str) -> list[Mount]:
    """All mounts, in the kernel's order. Lines that do not look like one are left out."""
    return [mount for mount in map(parse_line, text.split("\n")) if mount is not None]


def parse_line(line: str) -> Mount | None:
    words = line.split(" ")
    try:
        dash = words.index("-", FIELDS_BEFORE_OPTIONAL)
        kind, source, super_options = words[dash + 1 : dash + 4]
        return Mount(
            int(words[0]),
            int(words[1]),
            words[2],
            unescape(words[3]),
            unescape(words[4]),
            frozenset(words[5].split(",")),
            kind,
            unescape(source),
            frozenset(super_options.split(",")),
        )
    except ValueError:
        return None


def unescape(text: str) -> str:
    """Blanks and other odd bytes are written as backslash and three octal digits."""
    if "\\" not in text:
        return text
    first, *parts = text.encode("utf-8", "surrogateescape").split(b"\\")
    data = first
    for part in parts:
        digits = part[:3]
        is_octal = len(digits) == 3 and digits.isdigit() and not set(digits) & set(b"89") and int(digits, 8) < 256
        data += bytes((int(digits, 8),)) + part[3:] if is_octal else b"\\" + part
    return data.decode("utf-8", "surrogateescape")


def is_below(path: str, point: str) -> bool:
    """Is `path` the directory `point` or inside it?"""
    return path == point or path.startswith(point if point.endswith("/") else point + "/")


def stack_at(mounts: Iterable[Mount], point: str) -> list[Mount]:
    """What is mounted at exactly this directory, the visible one last."""
    here = [mount for mount in mounts if mount.point == point]
    # what is mounted over a mount has it as its parent; the kernel's order need not tell
    identifiers = {mount.identifier for mount in here}
    ordered = [mount for mount in here if mount.parent not in identifiers]
    while len(ordered) < len(here):
        placed = {mount.identifier for mount in ordered}
        upper = [mount for mount in here if mount.parent in placed and mount.identifier not in placed]
        if not upper:
            break
        ordered += upper
    return ordered


def with_descendants(mounts: Sequence[Mount], wanted: Iterable[Mount]) -> list[Mount]:
    """These mounts and all that is mounted inside or over them, in the order in which they can be unmounted.

    Of two that stand in no relation, the one given (or mounted) later comes first.
    """
    children: dict[int, list[Mount]] = {}
    for mount in mounts:
        children.setdefault(mount.parent, []).append(mount)
    done: set[int] = set()
    order: list[Mount] = []
    for mount in reversed(list(wanted)):
        if mount.identifier in done:
            continue
        # in a loop and not by recursion: mounts can be nested as deeply as a path is long
        trail = [(mount, False)]
        while trail:
            one, is_emptied = trail.pop()
            if is_emptied:
                order.append(one)
            elif one.identifier not in done:
                done.add(one.identifier)
                trail.append((one, True))
                trail += [(child, False) for child in children.get(one.identifier, ()) if child.identifier not in done]
    return order


def resolve(
    path: str, mounts: Iterable[Mount], link_target: Callable[[str], str], is_remote: Callable[[str], bool]
) -> str:
    """The path without symbolic links, as the table would show it, without touching any mount point.

    link_target   where a symbolic link points; "" for anything else
    is_remote     is this kind of file system one whose server may hang? What lies inside is not looked at.
    """
    points = {mount.point: mount for mount in mounts}
    remote = [mount.point for mount in points.values() if is_remote(mount.kind)]
    left = [word for word in reversed(path.split("/")) if word and word != "."]
    found = ""
    links = 0
    while left:
        word = left.pop()
        if word == "..":
            found = found.rpartition("/")[0]
            continue
        step = f"{found}/{word}"
        target = ""
        if links < LINK_LIMIT and step not in points and not any(is_below(step, point) for point in remote):
            target = link_target(step)
        if target:
            links += 1
            found = "" if target.startswith("/") else found
            left += [word for word in reversed(target.split("/")) if word and word != "."]
        else:
            found = step
    return found or "/"


def read_mounts(pid: str = "self") -> list[Mount]:
    """The mounts that a process sees; [] when it is gone.

    The kernel hands the table out in pieces, and a change between two of them may lose a line. Twice the same is whole.
    """
    path = f"/proc/{pid}/mountinfo"
    text = read_long(path)
    for _ in range(READ_LIMIT):
        again = read_long(path)
        if again == text:
            break
        text = again
    return parse(text)


def read_long(path: str) -> str:
    """A file of /proc, however long; "" when it cannot be read."""
    try:
        descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return ""
    chunks = []
    try:
        while chunk := posix.read(descriptor, 65536):
            chunks.append(chunk)
    except OSError:
        return ""
    finally:
        posix.close(descriptor)
    return b"".join(chunks).decode("utf-8", "surrogateescape")
