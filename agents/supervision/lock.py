"""One action that changes something at a time: two starts at once would start two applications."""

from __future__ import annotations

import fcntl
import posix
import time

from agents.ocf.state import ensure_directory

POLL_S = 0.05


class Lock:
    """A file lock that ends with the agent, however the agent ends. `with` yields whether it was got in time.

    Raises OSError when the file can be neither opened nor created.
    """

    def __init__(self, path: str, patience_s: float) -> None:
        flags = posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC
        ensure_directory(path.rpartition("/")[0])
        self.descriptor = posix.open(path, flags, 0o600)
        self.patience_s = patience_s

    def __enter__(self) -> bool:
        end = time.monotonic() + self.patience_s
        while True:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= end:
                    return False
                time.sleep(POLL_S)

    def __exit__(self, *error: object) -> None:
        posix.close(self.descriptor)


class Unlocked:
    """In place of a lock where none can be made."""

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *error: object) -> None:
        return
