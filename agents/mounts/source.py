"""Is the mounted device the configured one?

A device has several names: the path that was configured, what that path points to, major:minor, for a loop device the
file behind it. Both sides are a set of names, and one name in common is proof. All but the look-ups at the end is pure.
"""

from __future__ import annotations

import posix

from agents.ocf.state import read_small

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from agents.mounts.mountinfo import Mount

LOOP_MAJOR = "7:"

TAGS = {"UUID": "by-uuid", "LABEL": "by-label", "PARTUUID": "by-partuuid", "PARTLABEL": "by-partlabel"}
"""Ways to name a block device by what is on it -> directory of links that udev keeps below /dev/disk."""
# kinds whose server is another machine or another program, which may hang for ever
REMOTE = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "ceph", "9p", "afs", "lustre", "glusterfs", "autofs")
)
HELPERS = {"nfs": "nfs", "nfs4": "nfs", "cifs": "cifs", "smb3": "cifs", "glusterfs": "glusterfs"}
"""Kind -> the <kind> of the mount.<kind> program without which it cannot be mounted."""
LINK_SAFE = frozenset("#+-.:=@_")

SAME, OTHER, UNKNOWN = "same", "other", "unknown"


def is_remote(kind: str) -> bool:
    return kind in REMOTE or kind.partition(".")[0] == "fuse"


def tag_of(device: str) -> tuple[str, str] | None:
    """("UUID", value) of a device named by its content; None for all others."""
    name, separator, value = device.partition("=")
    return (name, value.strip('"')) if separator and name in TAGS else None


def is_block(device: str) -> bool:
    """Does the configuration name a block device? (else a file, a server, or just a word such as tmpfs)"""
    return tag_of(device) is not None or device.startswith("/dev/")


def link_for(tag: str, value: str) -> str:
    """Where udev would keep the link of such a device: odd characters as \\x and two hexadecimal digits."""
    safe = ""
    for character in value:
        is_plain = character.isascii() and not (character.isalnum() or character in LINK_SAFE)
        safe += f"\\x{ord(character):02x}" if is_plain else character
    return f"/dev/disk/{TAGS[tag]}/{safe}"


class Wanted:
    """The configured device: all `names` under which it may be mounted.

    number            major:minor of a block device, "" if it has none or could not be found
    is_unresolved     it is a block device that does not exist now, so that nothing can be compared with it
    accepts_anything  whatever is mounted counts as the configured device
    """

    def __init__(
        self,
        device: str,
        *,
        names: Iterable[str] = (),
        number: str = "",
        is_unresolved: bool = False,
        accepts_anything: bool = False,
    ) -> None:
        self.device = device
        self.number = number
        self.is_unresolved = is_unresolved
        self.accepts_anything = accepts_anything
        self.names = frozenset(tidy(name) for name in (device, number, *names) if name)

    def compare(self, names: Iterable[str]) -> str:
        """SAME, OTHER, or UNKNOWN, with the names of something mounted."""
        if self.accepts_anything or not self.names.isdisjoint(map(tidy, names)):
            return SAME
        return UNKNOWN if self.is_unresolved else OTHER


def tidy(name: str) -> str:
    """server:/path/ and server:/path are one; so are //server/share/ and //server/share."""
    return name.rstrip("/") or name


def names_of(mount: Mount, *, source_number: str = "", backing_file: str = "") -> frozenset[str]:
    """Under which names a mounted device may be configured.

    A block device goes by its number and never by the path in the table, which may be another device's by now.

    source_number   major:minor of the path that the table shows as source (btrfs shows a number of its own)
    backing_file    the file behind a loop device, "" for all others
    """
    first = mount.number if mount.is_on_block_device else mount.source
    return frozenset(name for name in (first, source_number, backing_file) if name)


def look_up_names(mount: Mount) -> frozenset[str]:
    """Under which names this mounted device may be configured. Looks at device nodes only."""
    backing_file = ""
    if mount.number.startswith(LOOP_MAJOR):
        backing_file = read_small(f"/sys/dev/block/{mount.number}/loop/backing_file").rstrip("\n")
    is_device = not mount.is_on_block_device and mount.source.startswith("/dev/")
    return names_of(mount, source_number=number_of(mount.source) if is_device else "", backing_file=backing_file)


def number_of(path: str) -> str:
    """major:minor of a block device below /dev; "" when it does not exist. Other paths are not touched."""
    if not path.startswith("/dev/"):
        return ""
    try:
        status = posix.stat(path)
    except OSError:
        return ""
    if status.st_mode & 0o170000 != 0o060000:
        return ""
    return f"{posix.major(status.st_rdev)}:{posix.minor(status.st_rdev)}"


def device_of(number: str) -> str:
    """Path of the block device with this number, by the kernel's own name; "" when there is none."""
    for line in read_small(f"/sys/dev/block/{number}/uevent").split("\n"):
        name, _, value = line.partition("=")
        if name == "DEVNAME":
            return f"/dev/{value}"
    return ""


def link_target(path: str) -> str:
    try:
        return posix.readlink(path)
    except OSError:
        return ""
