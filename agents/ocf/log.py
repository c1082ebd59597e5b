"""Where an agent's log lines go: terminal, syslog, the cluster's log file, or standard error.

Sources: the conventions of the shell agents' helper (HA_LOGFACILITY, HA_LOGFILE, HA_DEBUGLOG, HA_debug), as the
executor passes them on from the cluster daemons.
"""

from __future__ import annotations

import posix
import syslog
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PRIORITY = {
    "crit": syslog.LOG_CRIT,
    "err": syslog.LOG_ERR,
    "warn": syslog.LOG_WARNING,
    "info": syslog.LOG_INFO,
    "debug": syslog.LOG_DEBUG,
}
STDERR = 2


class Log:
    """Writes lines tagged `<Type>(<instance>)[<pid>]`. A successful monitor logs nothing above debug."""

    def __init__(self, tag: str, environment: Mapping[str, str]) -> None:
        self.tag = f"{printable(tag)}[{posix.getpid()}]"
        self._facility = environment.get("HA_LOGFACILITY") or environment.get("HA_logfacility") or ""
        self._files = [environment.get("HA_LOGFILE") or environment.get("HA_logfile") or ""]
        self._debug = environment.get("HA_debug", "0") not in ("", "0")
        if environment.get("HA_DEBUGLOG"):
            self._files.append(environment["HA_DEBUGLOG"])

    def critical(self, text: str) -> None:
        self._write("crit", text)

    def error(self, text: str) -> None:
        self._write("err", text)

    def warning(self, text: str) -> None:
        self._write("warn", text)

    def info(self, text: str) -> None:
        self._write("info", text)

    def debug(self, text: str) -> None:
        if self._debug:
            self._write("debug", text)

    def _write(self, level: str, text: str) -> None:
        # syslog refuses NUL and halves of characters, but scripts print them and process names hold them
        text = printable(text)
        line = f"{time.strftime('%b %d %H:%M:%S')}  {self.tag}:    {level.upper()}: {text}\n"
        if posix.isatty(0):
            write_all(STDERR, line)
            return
        written = False
        if self._facility and self._facility != "none":
            syslog.openlog(
                self.tag,
                0,
                getattr(syslog, f"LOG_{self._facility.upper()}", syslog.LOG_DAEMON),
            )
            syslog.syslog(PRIORITY[level], f"{level.upper()}: {text}")
            written = True
        for path in self._files:
            written = (bool(path) and append(path, line)) or written
        if not written:
            write_all(STDERR, line)


def printable(text: str) -> str:
    return text.replace("\0", "?").encode("utf-8", "replace").decode()


def append(path: str, line: str) -> bool:
    """Append to a log file that must exist or be creatable; False when it is neither (a log never fails an action)."""
    try:
        descriptor = posix.open(path, posix.O_WRONLY | posix.O_APPEND | posix.O_CREAT | posix.O_CLOEXEC, 0o640)
    except OSError:
        return False
    written = write_all(descriptor, line)
    posix.close(descriptor)
    return written


def write_all(descriptor: int, text: str) -> bool:
    """Write without Python's buffers; False when the reader is gone or the disk is full."""
    data = text.encode("utf-8", "surrogateescape")
    try:
        while data:
            data = data[posix.write(descriptor, data) :]
    except OSError:
        return False
    return True
