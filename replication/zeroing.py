"""Making a range of a file or block device read as zeroes without writing them: fallocate(2)."""

from __future__ import annotations

import ctypes
import errno
import os

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16

_CANNOT = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENODEV}
"""What file systems and disks say that do not know it, or not for this range."""

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_fallocate.restype = ctypes.c_int


class Zeroing:
    """Of one open file. Remembers what it cannot do."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unknown: set[int] = set()

    def zero(self, offset: int, length: int, may_unmap: bool) -> bool:
        """False: not done, write zeroes. Raises OSError when the disk failed."""
        return (may_unmap and self._try(PUNCH_HOLE, offset, length)) or self._try(ZERO_RANGE, offset, length)

    def _try(self, way: int, offset: int, length: int) -> bool:
        if way in self._unknown:
            return False
        while _fallocate(self._descriptor, way | KEEP_SIZE, offset, length):
            error = ctypes.get_errno()
            if error == errno.EINTR:
                continue
            if error not in _CANNOT:
                raise OSError(error, os.strerror(error))
            if error in (errno.EOPNOTSUPP, errno.ENOSYS):
                self._unknown.add(way)
            return False
        return True
