"""A process that can be recognised later: pid, start time and boot id together never name another process.

Signals go through a pidfd that was opened before the start time was compared, so a reused pid is never hit.
"""

from __future__ import annotations

import posix

from agents.ocf.signals import pidfd_send_signal
from agents.ocf.state import boot_id, read_small


class Process:
    """`start_ticks`: field 22 of /proc/<pid>/stat, clock ticks since boot."""

    def __init__(self, pid: int, start_ticks: int, boot: str) -> None:
        self.pid = pid
        self.start_ticks = start_ticks
        self.boot = boot

    def __str__(self) -> str:
        return f"{self.pid} {self.start_ticks} {self.boot}"

    @classmethod
    def parse(cls, text: str) -> Process | None:
        """The inverse of str(); None for anything else."""
        words = text.split()
        if len(words) != 3 or not (words[0].isdigit() and words[1].isdigit()) or int(words[0]) < 2:
            return None
        return cls(int(words[0]), int(words[1]), words[2])

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this pid now; None when there is none, or only its zombie."""
        start = start_ticks(pid)
        return None if start is None else cls(pid, start, boot_id())

    def alive(self) -> bool:
        """Is it still the same process, and not a zombie?"""
        return start_ticks(self.pid) == self.start_ticks and boot_id() == self.boot

    def send(self, signal_number: int) -> bool:
        """Send a signal to exactly this process; False when it is gone."""
        try:
            descriptor = posix.pidfd_open(self.pid, 0)
        except ProcessLookupError:
            return False
        try:
            if not self.alive():
                return False
            pidfd_send_signal(descriptor, signal_number)
        except ProcessLookupError:
            return False
        finally:
            posix.close(descriptor)
        return True


def start_ticks(pid: int) -> int | None:
    """Start time of a living process in clock ticks since boot; None when it is gone or a zombie."""
    # the command name may hold blanks and brackets: the fields count from the last ")"
    fields = read_small(f"/proc/{pid}/stat").rpartition(")")[2].split()
    # a zombie that counts other threads (field 20) is a process whose first thread has ended: its files are still open
    if len(fields) < 20 or (fields[0] in ("Z", "X", "x") and int(fields[17]) < 2):
        return None
    return int(fields[19])
