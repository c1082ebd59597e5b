"""Small records an agent leaves for its next action, in the per-boot directory (HA_RSCTMP, /run/resource-agents).

A record is a hint: whoever reads one verifies it against the kernel before acting on it. It carries the boot id and
counts as absent after a reboot, even where the directory survives one.
"""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SIZE_LIMIT_BYTES = 1 << 20


def boot_id() -> str:
    """The kernel's name for this boot; "" where /proc is not mounted."""
    return read_small("/proc/sys/kernel/random/boot_id").strip()


def read_small(path: str) -> str:
    """Content of a small file; "" when it cannot be read."""
    try:
        descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return ""
    try:
        data = b""
        while len(data) < SIZE_LIMIT_BYTES and (chunk := posix.read(descriptor, 65536)):
            data += chunk
    except OSError:
        return ""
    finally:
        posix.close(descriptor)
    return data.decode("utf-8", "surrogateescape")


def ensure_directory(path: str) -> None:
    """Make the per-boot directory where no tmpfiles service did (containers, small systems). Raises OSError."""
    try:
        posix.mkdir(path, 0o755)
    except FileExistsError:
        return


class Record:
    """A file of `key=value` lines, replaced whole by rename, so that a kill leaves the old or the new one."""

    def __init__(self, directory: str, name: str) -> None:
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        self.directory = directory
        self.path = f"{directory}/{safe}"

    def read(self) -> dict[str, str]:
        """What was written during this boot; {} when there is nothing usable."""
        pairs: dict[str, str] = {}
        for line in read_small(self.path).split("\n"):
            key, separator, value = line.partition("=")
            if separator:
                pairs[key] = "\\".join(part.replace("\\n", "\n") for part in value.split("\\\\"))
        if pairs.pop("boot_id", None) != boot_id():
            return {}
        return pairs

    def write(self, pairs: Mapping[str, str]) -> None:
        """Replace the record. Raises OSError (full disk, read-only /run); the caller decides whether that matters."""
        lines = [f"boot_id={boot_id()}\n"]
        for key, value in pairs.items():
            escaped = value.replace("\\", "\\\\").replace("\n", "\\n")
            lines.append(f"{key}={escaped}\n")
        ensure_directory(self.directory)
        temporary = f"{self.path}.new"  # one name, so that a killed writer leaves at most one, and remove() knows it
        data = "".join(lines).encode("utf-8", "surrogateescape")
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_NOFOLLOW | posix.O_CLOEXEC
        descriptor = posix.open(temporary, flags, 0o600)
        try:
            while data:
                data = data[posix.write(descriptor, data) :]
        except OSError:
            posix.unlink(temporary)
            raise
        finally:
            posix.close(descriptor)
        posix.rename(temporary, self.path)

    def remove(self) -> None:
        """Forget the record; nothing happens when there is none or the directory is read-only."""
        for path in (f"{self.path}.new", self.path):
            try:
                posix.unlink(path)
            except OSError:
                continue
