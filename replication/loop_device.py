"""A loop device that exists only while somebody needs it. Names of linux/loop.h.

A loop is recognised by the last part of its backing file's name in sysfs. Asking the device itself (LOOP_GET_STATUS64)
would make the kernel ask the file, and that file may be one whose server hangs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

LOOP_CLR_FD, LOOP_CONFIGURE, LOOP_CTL_GET_FREE = 0x4C01, 0x4C0A, 0x4C82
LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO = 4, 16
BLKROSET = 0x125D
FLAGS_OFFSET, INFO_BYTES, RESERVED_BYTES = 52, 232, 64
"""struct loop_info64: where lo_flags stands, its size; and what follows it in struct loop_config."""


class LoopDevice:
    """A block device over the file `file_name`. It clears itself when the last descriptor goes, be it by SIGKILL.

    `path` is /dev/loopN; `descriptor` keeps it.
    """

    def __init__(self, path: str, descriptor: int, file_name: str) -> None:
        self.path = path
        self.descriptor = descriptor
        self.file_name = file_name

    @classmethod
    def over(cls, file: int, sector_size_bytes: int) -> LoopDevice:
        """Put a free loop device over the open `file`; the loop keeps the file itself, the caller may close it.

        With direct I/O, so `file` should be open with O_DIRECT. Raises OSError.
        """
        info = bytearray(INFO_BYTES)
        struct.pack_into("=I", info, FLAGS_OFFSET, LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO)
        configuration = struct.pack("=II", file, sector_size_bytes) + info + bytes(RESERVED_BYTES)
        file_name = os.path.basename(os.readlink(f"/proc/self/fd/{file}"))
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            while True:
                path = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.ioctl(descriptor, LOOP_CONFIGURE, configuration)
                    # `blockdev --setro` by whoever had this number before us outlives the loop it was meant for
                    fcntl.ioctl(descriptor, BLKROSET, struct.pack("=i", 0))
                    return cls(path, descriptor, file_name)
                except OSError as error:
                    os.close(descriptor)
                    if error.errno != errno.EBUSY:  # somebody else took this number between the two calls
                        raise
        finally:
            os.close(control)

    def let_go(self) -> None:
        """Clear it, or, while others use it, have it cleared by the last of them: LOOP_CLR_FD answers 0 to both.

        On return a device that nobody else uses is gone, on kernels that clear it at the last close too.
        """
        try:
            fcntl.ioctl(self.descriptor, LOOP_CLR_FD)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        os.close(self.descriptor)
        self.descriptor = -1

    def regain(self) -> bool:
        """After `let_go`: False if the device is gone; True if somebody kept it alive, and now we hold it again."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        if backing_file_name(self.path) != self.file_name:
            os.close(descriptor)
            return False
        self.descriptor = descriptor
        return True


def backing_file_name(path: str) -> str | None:
    """The last part of the name of the file under /dev/loopN; None if there is none."""
    try:
        name = Path(f"/sys/block/{os.path.basename(path)}/loop/backing_file").read_text(
            encoding="utf-8", errors="surrogateescape"
        )
    except OSError:  # cleared, or just being cleared
        return None
    return os.path.basename(name.rstrip("\n"))


def loops_over(file_name: str) -> list[str]:
    """Paths of the loop devices whose backing file is called so, in whatever directory."""
    names = sorted(loop.name for loop in Path("/sys/block").glob("loop*"))
    return [f"/dev/{name}" for name in names if backing_file_name(f"/dev/{name}") == file_name]
