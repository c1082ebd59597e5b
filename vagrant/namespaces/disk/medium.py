"""The magnetic side of the disk: an unlinked sparse file with the newest contents, and the cache that knows what is
volatile of it. The end of the process is the end of both, so a killed laboratory leaves no disk behind."""

import errno
import fcntl
import os
import struct
from random import Random

from vagrant.namespaces.disk.cache import SECTOR_BYTES, Keep, Loss, WriteCache

PIECE_BYTES = 1 << 20
"""Largest piece that becomes stable as a whole when the journal is over its bound."""

ZEROES = memoryview(bytes(PIECE_BYTES + 2 * SECTOR_BYTES))

_UNRESERVE = 0x4030582B  # FS_IOC_UNRESVSP64: fallocate's hole punching as an ioctl, so that ctypes need not be loaded
_SPACE = struct.Struct("hhqqIi16x")  # type, whence, start, length, system id, process id


class Medium:
    """Contents of one disk of `size_bytes`. Any offset and length inside it may be read and written."""

    def __init__(self, directory: str, size_bytes: int, seed: int, journal_bytes: int) -> None:
        """Raises OSError if no file can be made in `directory`."""
        self.size_bytes = size_bytes
        self.seed = seed
        self.power_losses = 0
        self.cache = WriteCache(journal_bytes)
        self._file = _unlinked_file(directory)
        os.ftruncate(self._file, size_bytes)

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Newest contents, also those that are still volatile. Raises OSError."""
        return os.pread(self._file, length_bytes, offset_bytes)

    def write(self, offset_bytes: int, data: memoryview, *, stable: bool) -> None:
        """Write; `stable` is forced unit access. Raises OSError, after which any part may have been written."""
        for start in range(0, len(data), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            if not stable:  # what is stable at once has no older version to come back to
                self._remember(offset_bytes + start, len(piece))
            os.pwrite(self._file, piece, offset_bytes + start)
        if stable:
            self._settle(offset_bytes, len(data))

    def write_zeroes(self, offset_bytes: int, length_bytes: int, *, stable: bool) -> None:
        """Zero the range and keep its space allocated. Raises OSError."""
        for start in range(0, length_bytes, PIECE_BYTES):
            self.write(offset_bytes + start, ZEROES[: min(PIECE_BYTES, length_bytes - start)], stable=stable)

    def give_back(self, offset_bytes: int, length_bytes: int, *, stable: bool) -> None:
        """Give the range back; it reads as zeroes. What was never written needs no journal: it is zero already."""
        written = self._written_ranges(offset_bytes, length_bytes)
        if not stable:
            for start, length in written:
                for piece_start in range(start, start + length, PIECE_BYTES):
                    self._remember(piece_start, min(PIECE_BYTES, start + length - piece_start))
        if length_bytes and not self._punch_hole(offset_bytes, length_bytes):
            for start, length in written:
                os.pwrite(self._file, bytes(length), start)
        if stable:
            self._settle(offset_bytes, length_bytes)

    def flush(self) -> None:
        """All that was written before survives every later power cut."""
        self.cache.flush()

    def would_allocate(self, offset_bytes: int, length_bytes: int) -> bool:
        """Whether writing the range needs space that the disk does not use yet."""
        if not length_bytes:
            return False
        return os.lseek(self._file, offset_bytes, os.SEEK_HOLE) < offset_bytes + length_bytes

    def lose_power(self, keep: Keep, seed: int | None) -> tuple[int, Loss]:
        """Apply a power cut; the seed that decided (by default another one for each cut), and what it did."""
        used = self.seed + self.power_losses if seed is None else seed
        self.power_losses += 1
        loss = self.cache.lose_power(keep, Random(used).randrange)
        for offset_bytes, contents in loss.restore:
            os.pwrite(self._file, contents, offset_bytes)
        return used, loss

    def _remember(self, offset_bytes: int, length_bytes: int) -> None:
        start, end = _whole_sectors(offset_bytes, length_bytes)
        before = self.cache.write(start, end - start)
        if self._is_hole(start, end):  # reading one would cost far more than knowing it
            before[:] = ZEROES[: end - start]
        else:
            os.preadv(self._file, [before], start)

    def _settle(self, offset_bytes: int, length_bytes: int) -> None:
        start, end = _whole_sectors(offset_bytes, length_bytes)
        self.cache.settle(start, end - start)

    def _is_hole(self, start: int, end: int) -> bool:
        try:
            return os.lseek(self._file, start, os.SEEK_DATA) >= end
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return True  # only a hole up to the end of the file

    def _written_ranges(self, offset_bytes: int, length_bytes: int) -> list[tuple[int, int]]:
        ranges = []
        position, end = offset_bytes, offset_bytes + length_bytes
        while position < end:
            try:
                start = os.lseek(self._file, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # only a hole up to the end of the file
            if start >= end:
                break
            position = min(os.lseek(self._file, start, os.SEEK_HOLE), end)
            ranges.append((start, position - start))
        return ranges

    def _punch_hole(self, offset_bytes: int, length_bytes: int) -> bool:
        try:
            fcntl.ioctl(self._file, _UNRESERVE, _SPACE.pack(0, os.SEEK_SET, offset_bytes, length_bytes, 0, 0))
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):
                raise
            return False
        return True


def _whole_sectors(offset_bytes: int, length_bytes: int) -> tuple[int, int]:
    end = offset_bytes + length_bytes
    return offset_bytes // SECTOR_BYTES * SECTOR_BYTES, -(-end // SECTOR_BYTES) * SECTOR_BYTES


def _unlinked_file(directory: str) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT) or not os.path.isdir(directory):
            raise
    path = os.path.join(directory, f".disk.{os.getpid()}")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return descriptor
