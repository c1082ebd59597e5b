"""The device of a volume, /dev/mirrorha/RESOURCE/VOLUME, as the daemon sees it: a helper process and its events.

mirrord serves the very requests that making and removing a device cause, so it must never wait for either. A process of
its own (attach_helper.py) does both and holds the device in between. Whatever ends that process ends the device: it
dies with mirrord's main thread, and `DeviceProcess.kill` is always possible and never waits.

What stays behind in one case only: a file system of the application still mounted on a device whose server is gone.
It answers EIO until it is unmounted, and then everything below it vanishes.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

LINE_BYTES_MAX = 65536


class Method(enum.Enum):
    """How the kernel gets at our NBD server."""

    AUTO = "auto"
    """The kernel's own client where there is one, else nbdfuse and a loop device."""
    KERNEL_NBD = "nbd"
    NBDFUSE_AND_LOOP = "loop"


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device to be made."""

    socket: Path
    """Where its NBD server listens."""
    device: Path
    """The symbolic link that users know; directories above it are made, and removed when empty."""
    mount_directory: Path
    """Where nbdfuse is mounted; only for this device. A lock file stands beside it, and stays."""
    sector_size_bytes: int = 4096
    """512 or 4096. A file system made for 512 cannot be mounted on 4096 if its blocks or log sectors are smaller."""
    method: Method = Method.AUTO

    def arguments(self) -> list[str]:
        return [
            *("--socket", str(self.socket), "--device", str(self.device)),
            *("--mount-directory", str(self.mount_directory)),
            *("--sector-size", str(self.sector_size_bytes), "--method", self.method.value),
        ]


@dataclass(frozen=True, slots=True)
class Ready:
    """The device is there; `path` is what the link points to."""

    path: str


@dataclass(frozen=True, slots=True)
class Detached:
    """The device is gone, as `request_detach` wanted; `Ended` follows."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Not done: the device could not be made, and `Ended` follows; or it is in use, and goes on as it was."""

    subject: str
    fact: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The device ceased under its users; `Ended` follows.

    Heard when its client ends. nbdfuse that loses its connection ends at the next request only: if the server drops the
    connection of an idle device, it has to say so itself.
    """

    subject: str
    fact: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The helper is gone, and link and mounts with it: the last event. Negative status: the signal that killed it."""

    exit_status: int


DeviceEvent = Ready | Detached | Refused | Lost | Ended


class DeviceProcess:
    """The helper of one device, from its start to its `Ended`. No call waits for it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._orders = process.stdin
        self._reports = process.stdout
        os.set_blocking(self._orders.fileno(), False)
        os.set_blocking(self._reports.fileno(), False)
        self._unfinished = b""
        self._ended = False

    @classmethod
    def start(cls, spec: DeviceSpec) -> DeviceProcess:
        """Begin to make the device; call it from the main thread, whose end is the helper's end.

        What the helper has to say to people goes to our stderr. Raises OSError if no process can be started.
        """
        return cls(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "replication.attach_helper",
                    "attach",
                    *spec.arguments(),
                    "--parent",
                    str(os.getpid()),
                ],
                cwd=Path(__file__).resolve().parents[1],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        )

    @property
    def process_id(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """To be watched for reading: then `read_event` until None. After `Ended`, unwatch it and `close`."""
        return self._reports.fileno()

    def read_event(self) -> DeviceEvent | None:
        """What happened next, or None if nothing yet; None for ever after `Ended`."""
        if self._ended:
            return None
        while b"\n" not in self._unfinished:
            try:
                data = os.read(self.fileno(), LINE_BYTES_MAX)
            except BlockingIOError:
                return None
            if not data:
                return self._read_end()
            self._unfinished += data
        line, _, self._unfinished = self._unfinished.partition(b"\n")
        return parse_event(line)

    def request_detach(self) -> None:
        """Ask for the end of the device. Answered by `Detached`, or `Refused` while anybody uses it."""
        self._order("detach")

    def kill(self) -> None:
        """End the device at once, used or not, nothing flushed. Frees whoever waits for it, with EIO."""
        if self._process.poll() is None:  # else its number may be another's
            os.killpg(self._process.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        """Exit status of the helper; None while it runs. Its remains are gone only when `Ended` was read."""
        return self._process.poll()

    def _order(self, verb: str) -> None:
        # dead, and `Ended` will say so; or deaf to a pipe that is full of the same order
        with contextlib.suppress(BrokenPipeError, BlockingIOError):
            os.write(self._orders.fileno(), verb.encode() + b"\n")

    def _read_end(self) -> Ended | None:
        status = self._process.poll()
        if status is None:
            return None  # its descriptors are closed and it is just ending: we are called again at once
        self._ended = True
        return Ended(status)

    def close(self) -> None:
        """After `Ended`, once nobody watches it any more."""
        self._orders.close()
        self._reports.close()


def parse_event(line: bytes) -> DeviceEvent:
    """One line of the helper's output."""
    match json.loads(line):
        case {"ready": str(path)}:
            return Ready(path)
        case {"detached": True}:
            return Detached()
        case {"error": {"subject": str(subject), "fact": str(fact), "remedy": str(remedy)}}:
            return Refused(subject, fact, remedy)
        case {"lost": {"subject": str(subject), "fact": str(fact), "remedy": str(remedy)}}:
            return Lost(subject, fact, remedy)
    raise AssertionError(f"the attach helper said {line!r}")
