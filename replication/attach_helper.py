"""The process that makes, holds and ends the device of one volume.

    python -m replication.attach_helper attach --socket S --device D --mount-directory M --parent PID

stdin: the line "detach". stdout, one JSON object a line: {"ready": "/dev/loop3"}; {"detached": true}; {"error": {...}}
for what was not done; {"lost": {...}} when the device ceased under its users. stderr: lines for people.

However it ends, so does the device: the loop device clears itself with our last descriptor, nbdfuse dies with us, and
an undertaker, forked first and of a session of its own, then takes away mount, link and directories. It keeps stdout
open and a lock beside the mount directory until it has finished, so the reader of our stdout knows when all is gone,
and the next helper of the same device waits for it. If undertaker and helper are both killed, what they left is taken
away by the next one: whoever has the lock knows that it is nobody's.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import json
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path

from replication import kernel_nbd
from replication.attach import DeviceSpec, Method
from replication.device_holders import holders
from replication.errors import MirrorError, Refusal
from replication.hardening import die_with_parent, harden
from replication.kernel_nbd import KernelNbd
from replication.loop_device import loops_over
from replication.mounts import detach_mounts, mounts_here
from replication.nbdfuse_loop import NbdfuseLoop, image_name

BLKFLSBUF = 0x1261
POLL_S = 0.02
LOCK_LIMIT_S = 5.0
PASSING_USE_S = 1.0
"""So long a process may have the device open before detach is refused: udev looks into devices after each change."""
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""A service manager sends them to all processes of a service; but we are needed until mirrord has demoted."""


class Helper:
    """The device from `attach` to its end. `write_end` of a pipe keeps the undertaker waiting."""

    def __init__(self, spec: DeviceSpec, undertaker: int, write_end: int) -> None:
        self._spec = spec
        self._undertaker = undertaker
        self._write_end = write_end
        self._stack = self._attach()

    def hold(self) -> int:
        """Obey stdin until there is nothing to hold any more; returns our exit status."""
        poll = select.poll()
        server_end = os.pidfd_open(self._stack.server.pid)
        poll.register(server_end, select.POLLIN)
        poll.register(0, select.POLLIN)
        unfinished = b""
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if server_end in ready:
                return self._lose()
            data = os.read(0, 4096)
            if not data:  # mirrord is gone, and the server with it
                self._stack.server.kill()
                return 0
            *lines, unfinished = (unfinished + data).split(b"\n")
            if b"detach" in lines and self._detach():
                return 0

    def _attach(self) -> NbdfuseLoop | KernelNbd:
        spec = self._spec
        kernel = spec.method is Method.KERNEL_NBD or (spec.method is Method.AUTO and kernel_nbd.available())
        stack = KernelNbd.attach(spec) if kernel else NbdfuseLoop.attach(spec)
        self._publish(stack.path)
        report({"ready": stack.path})
        return stack

    def _publish(self, path: str) -> None:
        while True:
            self._spec.device.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._spec.device.symlink_to(path)
                return
            except FileNotFoundError:  # the end of another volume of this resource took the directory away
                continue

    def _detach(self) -> bool:
        """Only if nobody uses it. All or nothing: when refused, the device is there as before."""
        try:
            while not self._let_go():
                pass  # somebody opened it in the last moment; the next turn hears who
        except OSError as error:
            fact = f"its buffers cannot be flushed ({error.strerror}); it stays"
            remedy = "see the log of its disks; to give up what was not written, take the volume down by force"
            report({"error": as_data(Refusal(f"device {self._spec.device}", fact, remedy))})
            return False
        except Refusal as refusal:
            report({"error": as_data(refusal)})
            return False
        self._stack.finish()
        os.close(self._write_end)
        os.waitpid(self._undertaker, 0)
        report({"detached": True})
        return True

    def _let_go(self) -> bool:
        """False if it is still there, and held by us as before. Raises Refusal (in use) or OSError (not flushed)."""
        claim = self._claim()
        try:
            os.fsync(claim)
            fcntl.ioctl(claim, BLKFLSBUF)
        finally:
            os.close(claim)
        self._spec.device.unlink(missing_ok=True)  # before its number can be another's
        if self._stack.let_go():
            self._publish(self._stack.path)
            return False
        return True

    def _claim(self) -> int:
        """A descriptor that excludes mounts and other exclusive users; raises Refusal if anybody uses the device."""
        path = self._stack.path
        ours = frozenset((os.getpid(), self._stack.server.pid))
        deadline = time.monotonic() + PASSING_USE_S
        while True:
            claim = open_exclusively(path)
            users = holders(path, ours)
            if claim is not None and not users:
                return claim
            if claim is not None:
                os.close(claim)
            if time.monotonic() > deadline or any(user.startswith("mounted") for user in users):
                what = ", ".join(users) or "held by the kernel for somebody who cannot be seen from here"
                remedy = "end its users first" if users else "was a file system on it unmounted lazily?"
                raise Refusal(f"device {self._spec.device} ({path})", f"in use: {what}", remedy)
            time.sleep(POLL_S)

    def _lose(self) -> int:
        status = self._stack.server.wait()
        lost = Refusal(
            f"device {self._spec.device} ({self._stack.path})",
            f"{self._stack.PROGRAM} ended with status {status}",
            "unmount what is on it; its NBD server has probably ended",
        )
        report({"lost": as_data(lost)})
        return 1


def open_exclusively(path: str) -> int | None:
    """None while it is mounted, or claimed otherwise. O_EXCL on a block device: open(2)."""
    try:
        return os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return None


def lock(spec: DeviceSpec) -> int:
    """A descriptor that holds the lock on this device; raises Refusal if another helper keeps it."""
    path = spec.mount_directory.with_name(spec.mount_directory.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_LIMIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                fact = f"another attach helper has it (lock {path})"
                raise Refusal(f"device {spec.device}", fact, "take the volume down there first") from None
        time.sleep(POLL_S)


def fork_undertaker(spec: DeviceSpec) -> tuple[int, int]:
    """The undertaker's process, and the end of a pipe whose closing, by us or by our death, is its sign."""
    read_end, write_end = os.pipe()
    undertaker = os.fork()
    if undertaker:
        os.close(read_end)
        return undertaker, write_end
    status = 1
    try:
        os.setsid()  # so that whoever kills our process group spares it
        os.close(write_end)
        os.close(0)
        Path("/proc/self/comm").write_text("undertaker", encoding="ascii")
        os.read(read_end, 1)
        bury(spec)
        status = 0
    except OSError as error:
        log(spec, f"not all could be taken away: {error}")
    finally:
        os._exit(status)


def bury(spec: DeviceSpec) -> list[str]:
    """Take away whatever there still is of a device that nobody holds; returns what that was. Waits for no server."""
    found = []
    if spec.device.is_symlink():
        found.append(f"link {spec.device} -> {os.readlink(spec.device)}")
        spec.device.unlink(missing_ok=True)
    if detach_mounts(str(spec.mount_directory)):
        found.append(f"mount {spec.mount_directory}")
    for directory in (spec.mount_directory, spec.device.parent):
        try:
            directory.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY):
                raise
    return found


def clear_remains(spec: DeviceSpec) -> None:
    """What former helpers left, with a line in the log for each. Raises Refusal if the name is taken."""
    for what in bury(spec):
        log(spec, f"taken away, left by a former helper: {what}")
    if spec.device.exists():
        raise Refusal(f"device {spec.device}", "the name is taken by something that is no link", "remove it")
    sources = {mount.source: mount.mount_point for mount in mounts_here()}
    for path in loops_over(image_name(spec.device)):
        if path in sources:
            log(spec, f"its former device {path} is dead, and still mounted at {sources[path]}: unmount that")


def report(line: dict[str, object]) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens: stdin will tell the same
        os.write(1, json.dumps(line).encode() + b"\n")


def as_data(error: MirrorError) -> dict[str, str]:
    return {"subject": error.subject, "fact": error.fact, "remedy": error.remedy}


def log(spec: DeviceSpec, text: str) -> None:
    sys.stderr.write(f"attach {spec.device}: {text}\n")
    sys.stderr.flush()


def run(spec: DeviceSpec, parent: int) -> int:
    die_with_parent(signal.SIGKILL, parent)
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # nbdfuse aborts when its server ends: no news, no core
    os.chdir("/")
    Path("/proc/self/comm").write_text("mirror-attach", encoding="ascii")
    for warning in harden():
        log(spec, warning)
    try:
        lock(spec)
        undertaker, write_end = fork_undertaker(spec)
        clear_remains(spec)
        helper = Helper(spec, undertaker, write_end)
    except Refusal as refusal:
        report({"error": as_data(refusal)})
        return 1
    return helper.hold()


def main() -> int:
    parser = argparse.ArgumentParser(prog="attach_helper", description="Holds the device of one volume.")
    parser.add_argument("verb", choices=["attach"])
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--device", type=Path, required=True)
    parser.add_argument("--mount-directory", type=Path, required=True)
    parser.add_argument("--sector-size", type=int, choices=[512, 4096], default=4096, help="bytes")
    parser.add_argument("--method", type=Method, choices=list(Method), default=Method.AUTO)
    parser.add_argument("--parent", type=int, default=os.getppid(), help="process whose end is ours")
    asked = parser.parse_args()
    spec = DeviceSpec(asked.socket, asked.device, asked.mount_directory, asked.sector_size, asked.method)
    return run(spec, asked.parent)


if __name__ == "__main__":
    sys.exit(main())
