"""Touch a device and a directory to see whether they answer. Runs in a child: each of these calls may hang for ever.

Only what goes past the page cache proves anything, hence O_DIRECT. Python can align a buffer for it with mmap alone.
"""

from __future__ import annotations

import errno
import mmap
import posix

BLOCK_BYTES = 4096


def read_device(path: str) -> None:
    """Read one block from the device itself. Raises OSError."""
    descriptor = open_past_cache(path, posix.O_RDONLY)
    try:
        with mmap.mmap(-1, BLOCK_BYTES) as buffer:
            if posix.preadv(descriptor, [buffer], 0) == 0:
                raise OSError(errno.EIO, "the device is empty", path)
    finally:
        posix.close(descriptor)


def look_into(directory: str) -> None:
    """Ask the file system for its state and the directory for its content. Raises OSError."""
    posix.statvfs(directory)
    with posix.scandir(directory) as entries:
        next(entries, None)


def write_and_read(path: str, text: str) -> None:
    """Write a status file through to the device and read it back from there. Raises OSError."""
    block = text.encode("utf-8", "replace")[: BLOCK_BYTES - 1].ljust(BLOCK_BYTES - 1) + b"\n"
    make_directories(path.rpartition("/")[0], 0o700)
    # whoever may write into the directory must not redirect us by a link
    flags = posix.O_CREAT | posix.O_NOFOLLOW | posix.O_SYNC
    with mmap.mmap(-1, BLOCK_BYTES) as buffer:
        buffer[:] = block
        descriptor = open_past_cache(path, posix.O_WRONLY | flags)
        try:
            written = posix.pwritev(descriptor, [buffer], 0)
            posix.fsync(descriptor)
        finally:
            posix.close(descriptor)
        buffer[:] = bytes(BLOCK_BYTES)
        descriptor = open_past_cache(path, posix.O_RDONLY | posix.O_NOFOLLOW)
        try:
            posix.preadv(descriptor, [buffer], 0)
        finally:
            posix.close(descriptor)
        if written != BLOCK_BYTES or buffer[:] != block:
            raise OSError(errno.EIO, "the status file does not read as it was written", path)


def open_past_cache(path: str, flags: int) -> int:
    """Open with O_DIRECT; without where the file system does not know it (tmpfs, some in user space)."""
    try:
        return posix.open(path, flags | posix.O_DIRECT | posix.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return posix.open(path, flags | posix.O_CLOEXEC, 0o600)


def make_directories(path: str, mode: int) -> None:
    """With all above them. Raises OSError."""
    found = ""
    for word in path.split("/"):
        if word:
            found += f"/{word}"
            try:
                posix.mkdir(found, mode)
            except OSError as error:
                # EROFS and EACCES are also said of a directory that exists
                if error.errno != errno.EEXIST and not is_directory(found):
                    raise


def is_directory(path: str) -> bool:
    try:
        return posix.stat(path).st_mode & 0o170000 == 0o040000
    except OSError:
        return False


def claim_device(path: str) -> None:
    """Raises OSError (EBUSY) while somebody uses this block device exclusively, as a file system mounted anywhere does.

    A device that cannot be opened for another reason is gone or broken, and in nobody's use.
    """
    try:
        posix.close(posix.open(path, posix.O_RDONLY | posix.O_EXCL | posix.O_NONBLOCK | posix.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise
