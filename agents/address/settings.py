"""Per-interface kernel settings that several virtual addresses share, and who still needs them.

Every started address leaves a claim. The first one on an interface remembers the old settings, the last one to stop
puts them back. A lock per interface orders them; the kernel drops it when its holder is killed.
"""

from __future__ import annotations

import posix
import time
from fcntl import LOCK_EX, LOCK_NB, flock

from agents.address.model import Link
from agents.ocf.log import Log
from agents.ocf.state import Record, ensure_directory, read_small

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

# promote_secondaries: deleting a primary address leaves its secondaries alive
# arp_notify: the kernel itself announces all addresses on a MAC change or bond failover, between monitors
WANTED = {"promote_secondaries": "1", "arp_notify": "1"}


# A lock is held for milliseconds. Who holds it longer is frozen, and a stop that waits for ever fences the node.
PATIENCE_S = 3.0
POLL_S = 0.002


class InterfaceLock:
    """Exclusive among our agents on this node. Where the directory is not writable, or the holder does not let go
    within `patience_s`, there is no lock: better than no stop.
    """

    def __init__(self, directory: str, nic: str, patience_s: float, log: Log) -> None:
        self.path = f"{directory}/VirtualIP-{nic}.lock"
        self.patience_s = patience_s
        self.log = log
        self._descriptor = -1

    def __enter__(self) -> InterfaceLock:
        try:
            ensure_directory(self.path.rpartition("/")[0])
            self._descriptor = posix.open(self.path, posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC, 0o600)
            self._wait()
        except OSError:
            self._close()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def _wait(self) -> None:
        end = time.monotonic() + self.patience_s
        while True:
            try:
                return flock(self._descriptor, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end:
                    self.log.warning(f"{self.path} is held by another process; going on without it")
                    return None
            time.sleep(POLL_S)

    def _close(self) -> None:
        if self._descriptor >= 0:
            posix.close(self._descriptor)
            self._descriptor = -1


class Claims:
    """The addresses that VirtualIP resources of this node have started, read from their records."""

    SUFFIX = "-claim"

    def __init__(self, directory: str, own: Record) -> None:
        self.directory = directory
        self.own = own

    def of_others(self) -> dict[str, str]:
        """Address -> interface, without our own claim."""
        try:
            names = posix.listdir(self.directory)
        except OSError:
            return {}
        found = {}
        for name in names:
            path = f"{self.directory}/{name}"
            if name.startswith("VirtualIP-") and name.endswith(self.SUFFIX) and path != self.own.path:
                claim = Record(self.directory, name).read()
                if claim.get("ip") and claim.get("nic"):
                    found[claim["ip"]] = claim["nic"]
        return found


def path_of(nic: str, name: str) -> str:
    return f"/proc/sys/net/ipv4/conf/{nic}/{name}"


def apply(nic: str, values: dict[str, str], log: Log) -> dict[str, str]:
    """Write settings that differ. Returns the former values of all; a refusal (read-only /proc) is a warning."""
    former = {}
    for name, value in values.items():
        path = path_of(nic, name)
        former[name] = read_small(path).strip()
        if former[name] in (value, ""):
            continue
        try:
            descriptor = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC)
            try:
                posix.write(descriptor, value.encode())
            finally:
                posix.close(descriptor)
        except OSError as error:
            log.warning(f"{path} stays {former[name]} instead of {value}: {error.strerror}")
    return former


def settings_record(directory: str, nic: str) -> Record:
    return Record(directory, f"VirtualIP-{nic}.settings")


def claim(directory: str, own: Record, link: Link, ip: str, patience_s: float, log: Log) -> None:
    """Before anything is touched: settings of the interface safe for secondaries, and ourselves on the list."""
    nic = link.name
    with InterfaceLock(directory, nic, patience_s, log):
        remembered = settings_record(directory, nic)
        try:
            if not remembered.read():
                remembered.write({name: read_small(path_of(nic, name)).strip() for name in WANTED})
            own.write({"ip": ip, "nic": nic, "index": str(link.index)})
        except OSError as error:
            log.warning(f"no record of this start in {directory}: {error.strerror}")
        apply(nic, WANTED, log)


def release(directory: str, own: Record, patience_s: float, log: Log) -> None:
    """Take ourselves off the list; the last one on the interface puts its settings back."""
    nic = own.read().get("nic", "")
    if not nic:
        own.remove()
        return
    with InterfaceLock(directory, nic, patience_s, log):
        own.remove()
        restore(directory, own, nic, log)


def leave(directory: str, own: Record, nic: str, patience_s: float, log: Log) -> None:
    """As `release`, for an interface that our claim does not name any more, since the address moved to another."""
    with InterfaceLock(directory, nic, patience_s, log):
        restore(directory, own, nic, log)


def restore(directory: str, own: Record, nic: str, log: Log) -> None:
    """Put the settings of an interface back unless others need them. The caller holds its lock."""
    if nic not in Claims(directory, own).of_others().values():
        remembered = settings_record(directory, nic)
        apply(nic, {name: value for name, value in remembered.read().items() if name in WANTED}, log)
        remembered.remove()
