"""The output of a program that may still be running: what was its last line?"""

from __future__ import annotations

import posix

from agents.ocf.node import Completed
from agents.supervision.launch import User, tail


class Output:
    """A log file, from its present end on. Without path there is never a line."""

    def __init__(self, path: str, user: User) -> None:
        self.path = path
        self.user = user
        self.begin = 0
        try:
            self.begin = posix.stat(path).st_size if path else 0
        except OSError:
            return

    def last_line(self) -> str:
        """Only of a file that the program's user owns: root must not show the content of whatever a link points to."""
        flags = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC
        try:
            descriptor = posix.open(self.path, flags) if self.path else -1
        except OSError:
            return ""
        if descriptor < 0:
            return ""
        try:
            status = posix.fstat(descriptor)
            if status.st_uid != self.user.user_id or status.st_mode & 0o170000 != 0o100000:
                return ""
            return Completed(0, tail(descriptor, self.begin), False).last_line
        finally:
            posix.close(descriptor)
