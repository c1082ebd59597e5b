"""NBD server -> nbdfuse (a file) -> loop device, for kernels without an NBD client of their own.

What was found out, and is relied on:
- Direct I/O on both layers (the file open with O_DIRECT, the loop told so) doubles the speed and keeps each page in
  memory once.
- One connection (`-C 1`). Two or four made no difference above the noise on two cores, with a server of one thread or
  of many; over one, the server sees all requests in one batch and needs no promise about flushes across connections.
- FUSE admits 12 requests in the background by default and the loop's I/O is of that kind; 128, what the loop itself
  can have under way, brought a fifth more writes at depth 32.
- nbdfuse aborts when its server goes, and never connects anew. It must not be stopped by SIGTERM, so it inherits that
  signal ignored; SIGKILL always works and gives everybody who waits for the file ECONNABORTED, then ENOTCONN.
- nbdfuse cannot lock its memory; OOM score and I/O flusher state it inherits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from replication.attach import DeviceSpec
from replication.errors import Refusal
from replication.hardening import die_with_parent
from replication.loop_device import LoopDevice
from replication.mounts import detach_mounts, is_mount_point, mount, mounts_here, unmount

POLL_S = 0.01
READY_LIMIT_S = 10.0
UNMOUNT_LIMIT_S = 2.0
"""For an unmount, and then for nbdfuse to end of itself. All data is with the server by then: killing loses nothing."""
BACKGROUND_REQUESTS = 128
FUSE_CONTROL = Path("/sys/fs/fuse/connections")


class NbdfuseLoop:
    """One such stack; made by `attach`, ended by `let_go` and `finish`, or by the end of this process."""

    PROGRAM = "nbdfuse"

    def __init__(self, spec: DeviceSpec, server: subprocess.Popen[bytes], loop: LoopDevice) -> None:
        self._spec = spec
        self.server = server
        """nbdfuse; when it ends, the device is dead."""
        self._loop = loop
        self.path = loop.path

    @classmethod
    def attach(cls, spec: DeviceSpec) -> NbdfuseLoop:
        """Build it; on Refusal what was begun ends with this process."""
        spec.mount_directory.mkdir(parents=True, exist_ok=True)
        image = spec.mount_directory / image_name(spec.device)
        server = _start_nbdfuse(spec, image)
        _admit_more_requests(spec.mount_directory)
        try:
            file = os.open(image, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            raise _refusal(
                spec, f"{image} cannot be opened for writing ({error.strerror})", _server_alive(spec)
            ) from error
        try:
            size_bytes = os.fstat(file).st_size
            if size_bytes == 0 or size_bytes % spec.sector_size_bytes:
                raise _refusal(
                    spec,
                    f"{size_bytes} bytes are no number of {spec.sector_size_bytes} byte sectors",
                    "shrink it by the rest, or use sectors of 512 bytes",
                )
            loop = LoopDevice.over(file, spec.sector_size_bytes)
        except OSError as error:
            raise _refusal(
                spec, f"no loop device can be made ({error.strerror})", "is the loop module loaded?"
            ) from error
        finally:
            os.close(file)
        return cls(spec, server, loop)

    def let_go(self) -> bool:
        """Give the loop device up. False: it is gone. True: somebody opened it just now, and we hold it as before."""
        self._loop.let_go()
        return self._loop.regain()

    def finish(self) -> None:
        """After the loop has gone: unmount nbdfuse and wait for its end, or kill it."""
        deadline = time.monotonic() + UNMOUNT_LIMIT_S
        directory = str(self._spec.mount_directory)
        # an unmount waits unkillably for a server that hangs, and ours with it: another process has to do it
        while is_mount_point(directory) and time.monotonic() < deadline:
            if _unmount_within(directory, deadline):
                break
            time.sleep(POLL_S)
        try:
            self.server.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()


def image_name(device: Path) -> str:
    """The file of a device: its loop device is recognised by that name ("dev!mirrorha!r0!0")."""
    return str(device).strip("/").replace("/", "!")


def nbdfuse_command(spec: DeviceSpec, image: Path, pid_file: Path) -> list[str]:
    return ["nbdfuse", "-C", "1", "-P", str(pid_file), str(image), "--unix", str(spec.socket)]


def _start_nbdfuse(spec: DeviceSpec, image: Path) -> subprocess.Popen[bytes]:
    parent = os.getpid()
    pid_file = spec.mount_directory.with_name(spec.mount_directory.name + ".pid")
    pid_file.unlink(missing_ok=True)
    try:
        server = subprocess.Popen(
            nbdfuse_command(spec, image, pid_file),
            stdin=subprocess.DEVNULL,
            stdout=2,  # our stdout is for reports
            preexec_fn=lambda: die_with_parent(signal.SIGKILL, parent),
        )
    except FileNotFoundError:
        raise _refusal(spec, "the program nbdfuse is missing", "apt-get install libnbd-bin") from None
    deadline = time.monotonic() + READY_LIMIT_S
    while not pid_file.exists():  # it writes this when the file is there; looking at the file itself might hang
        status = server.poll()
        if status is not None:
            raise _refusal(spec, f"nbdfuse ended with status {status}", _server_alive(spec))
        if time.monotonic() > deadline:
            raise _refusal(spec, f"nbdfuse offered no file within {READY_LIMIT_S:g} s", _server_alive(spec))
        time.sleep(POLL_S)
    pid_file.unlink()
    return server


def _admit_more_requests(mount_directory: Path) -> None:
    """As well as we can: without it the device works, slower."""
    devices = [mount.device for mount in mounts_here() if mount.mount_point == str(mount_directory)]
    try:
        with _fuse_control(mount_directory) as connections:
            for device in devices:
                control = connections / device.partition(":")[2] / "max_background"
                control.write_text(f"{BACKGROUND_REQUESTS}\n", encoding="ascii")
    except OSError as error:
        os.write(2, f"attach: {mount_directory}: stays at FUSE's default of requests at a time: {error}\n".encode())


@contextlib.contextmanager
def _fuse_control(mount_directory: Path) -> Iterator[Path]:
    """FUSE's control file system: where systemd mounts it, else for a moment in a place of our own."""
    if is_mount_point(str(FUSE_CONTROL)):
        yield FUSE_CONTROL
        return
    own = mount_directory.with_name(mount_directory.name + ".control")
    own.mkdir(exist_ok=True)
    try:
        mount("fusectl", str(own))
        try:
            yield own
        finally:
            detach_mounts(str(own))
    finally:
        own.rmdir()


def _unmount_within(directory: str, deadline: float) -> bool:
    """Unmounted? False if it is in use, or hung until the deadline."""
    child = os.fork()
    if child == 0:
        try:
            unmount(directory)
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) in (0, errno.EINVAL, errno.ENOENT)
        time.sleep(POLL_S)
    return False


def _server_alive(spec: DeviceSpec) -> str:
    return f"does the NBD server of {spec.socket} answer, and allow writing?"


def _refusal(spec: DeviceSpec, fact: str, remedy: str) -> Refusal:
    return Refusal(f"device {spec.device}", fact, remedy)
