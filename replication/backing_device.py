"""The disk under the mirror: a block device or a file, with DRBD's internal metadata at its end.

Two ways to reach it (`BackingMode`). BUFFERED writes into the page cache: a write costs a copy, not a wait, reads are
often answered from memory, and flushes do the work. It needs PR_SET_IO_FLUSHER (prctl(2), CAP_SYS_RESOURCE):
without it, a write of ours that must wait for free memory may wait for dirty pages of the very device we serve, which
only we can write out. Where that is refused, DIRECT it is: nothing of ours is dirty in the page cache, at the price of
waiting for the disk with each write.

Metadata goes through a descriptor of its own, opened with O_DSYNC: each write is stable when it returns.

Data and metadata calls wait in the loop's thread, inside the loop's `Absence`. Flushes, and reads that would wait, are
in threads, and what comes of them is reported in the loop.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import queue
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from replication.attendant import Absence
from replication.disk_file import PIECE_BYTES, BufferedFile, DirectFile, DiskFile
from replication.flusher import Flusher
from replication.protocol.effects import Buffer, Effect, FlushData, ReadForClients
from replication.protocol.errors import DiskFailure, MirrorError
from replication.protocol.requests import EIO, Request
from replication.zeroing import Zeroing


class BackingMode(enum.Enum):
    BUFFERED = "buffered"
    DIRECT = "direct"


READERS = {BackingMode.BUFFERED: 2, BackingMode.DIRECT: 8}
"""Threads for clients' reads. Past the page cache every read waits, so it takes more of them to keep a disk busy."""
CLOSE_PATIENCE_S = 1.0

_ZEROES = bytes(PIECE_BYTES)


@dataclass(frozen=True, slots=True)
class DiskReports:
    """Where the outcome of what waits in threads goes. All but the first are called in the loop's thread."""

    call_soon_threadsafe: Callable[[Callable[[], None]], None]
    on_flushed: Callable[[list[int]], None]
    """Tokens of `start_flush` for which one flush was enough."""
    on_read: Callable[[list[Request]], None]
    """These are answered: `data` holds what was read, or `error` is EIO. Also from inside `read_for_clients`."""
    on_failure: Callable[[Effect, str], None]
    """A flush or a client's read failed: effect and fact for `Volume.disk_failed`."""


class BackingDevice:
    """Fulfils the `Disk` port of replication/executor.py. Nobody else may use the disk while it is open."""

    def __init__(self, path: str | Path, mode: BackingMode, reports: DiskReports, absence: Absence) -> None:
        """Raises MirrorError if it is not there, is in use, or cannot be opened so."""
        self.path = Path(path)
        self.mode = mode
        self.data_bytes = 0
        """Writes and reads of data stay below this; see `limit_data`."""
        self._reports = reports
        self._absence = absence
        self._descriptors: list[int] = []
        try:
            self._data_fd, meta_fd = self._open()
            self.capacity_bytes = self._measure()
            """At the time of opening."""
            self._data = self._file(self._data_fd)
            self._meta = self._file(meta_fd)
        except OSError as error:
            self._close_descriptors()
            raise self._error(f"cannot be opened: {_why(error)}", self._remedy(error)) from error
        except MirrorError:
            self._close_descriptors()
            raise
        self._zeroing = Zeroing(self._data_fd)
        self._flusher = Flusher(self._data_fd, self._flushed, self._flush_failed)
        self._reads: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=self._read_in_thread, name="reader", daemon=True) for _ in range(READERS[mode])
        ]
        for thread in self._readers:
            thread.start()

    @property
    def blocked_since(self) -> float | None:
        """Monotonic time since when the loop waits for the disk; None while it does not."""
        return self._absence.since

    def limit_data(self, data_bytes: int) -> None:
        """Where the data area ends, as the metadata says. Raises MirrorError if the disk is smaller than that."""
        if data_bytes > self.capacity_bytes:
            raise self._error(
                f"holds {self.capacity_bytes} bytes; its metadata speaks of {data_bytes} of data: it was made smaller",
                "give it back its size before it is used",
            )
        self.data_bytes = data_bytes

    def check_capacity(self) -> None:
        """Raises DiskFailure if the disk went away, or became smaller since it was opened."""
        try:
            now_bytes = self._measure()
        except OSError as error:
            raise self._failure("size", error) from error
        if now_bytes < self.capacity_bytes:
            raise DiskFailure(str(self.path), f"shrank from {self.capacity_bytes} to {now_bytes} bytes while in use")

    # the port

    def write(self, writes: list[tuple[int, Buffer]]) -> None:
        limit = self.data_bytes
        for offset, buffer in writes:
            assert 0 <= offset <= limit - len(buffer), f"data write at {offset} of {len(buffer)} bytes"
        try:
            with self._absence:
                self._data.write(writes)
        except OSError as error:
            raise self._failure(f"write at {writes[0][0]}", error) from error

    def read(self, offset: int, length: int) -> bytearray:
        assert 0 <= offset <= self.data_bytes - length, f"read at {offset} of {length} bytes"
        try:
            with self._absence:
                return self._data.read(offset, length)
        except OSError as error:
            raise self._failure(f"read of {length} bytes at {offset}", error) from error

    def zero(self, offset: int, length: int, may_unmap: bool) -> None:
        assert 0 <= offset <= self.data_bytes - length, f"zeroing at {offset} of {length} bytes"
        try:
            with self._absence:
                if length and not self._zeroing.zero(offset, length, may_unmap):
                    self._write_zeroes(offset, offset + length)
        except OSError as error:
            raise self._failure(f"zeroing of {length} bytes at {offset}", error) from error

    def _write_zeroes(self, offset: int, end: int) -> None:
        for at in range(offset, end, PIECE_BYTES):
            self._data.write([(at, memoryview(_ZEROES)[: min(PIECE_BYTES, end - at)])])

    def start_flush(self, token: int) -> None:
        if (failure := self._flusher.failure) is not None:
            raise self._failure("flush (an earlier one failed, and what was lost is lost)", failure)
        self._flusher.start(token)

    def persist(self, what: str, writes: list[tuple[int, bytes]]) -> None:
        try:
            with self._absence:
                for offset, data in writes:
                    assert self.data_bytes <= offset <= self.capacity_bytes - len(data), f"{what} at {offset}"
                    self._meta.write([(offset, data)])
        except OSError as error:
            raise self._failure(f"write of {what}", error) from error

    # what is no effect

    def read_metadata(self, offset: int, length: int) -> bytes:
        """`offset` as for `persist`. Raises DiskFailure."""
        try:
            with self._absence:
                return bytes(self._meta.read(offset, length))
        except OSError as error:
            raise self._failure(f"read of metadata at {offset}", error) from error

    def read_for_clients(self, requests: list[Request]) -> None:
        """Answers READ requests by `on_read`: now what is in memory, the rest when the disk gave it."""
        at_once = []
        for request in requests:
            data = self._data.read_cached(request.offset, request.length)
            if data is None:
                self._reads.put(request)
            else:
                request.data = memoryview(data)
                at_once.append(request)
        if at_once:
            self._reports.on_read(at_once)

    def close(self) -> None:
        """End the threads and let go of the disk.

        A disk that does not answer keeps its thread, and the device stays ours until the process ends.
        """
        for _ in self._readers:
            self._reads.put(None)
        for thread in self._readers:
            thread.join(CLOSE_PATIENCE_S)
        self._data.close()
        self._meta.close()
        if self._flusher.close(CLOSE_PATIENCE_S) and not any(thread.is_alive() for thread in self._readers):
            self._close_descriptors()

    # threads

    def _flushed(self, tokens: list[int]) -> None:
        self._reports.call_soon_threadsafe(lambda: self._reports.on_flushed(tokens))

    def _flush_failed(self, tokens: list[int], error: OSError) -> None:
        self._report_failure(FlushData(tokens[0]), self._failure("flush", error))

    def _report_failure(self, effect: Effect, failure: DiskFailure) -> None:
        self._reports.call_soon_threadsafe(lambda: self._reports.on_failure(effect, str(failure)))

    def _read_in_thread(self) -> None:
        while (request := self._reads.get()) is not None:
            try:
                request.data = memoryview(self._data.read(request.offset, request.length))
            except OSError as error:
                request.error = EIO
                failure = self._failure(f"read of {request.length} bytes at {request.offset}", error)
                self._report_failure(ReadForClients([request]), failure)
            self._report_read([request])

    def _report_read(self, requests: list[Request]) -> None:
        self._reports.call_soon_threadsafe(lambda: self._reports.on_read(requests))

    # opening

    def _open(self) -> tuple[int, int]:
        direct = os.O_DIRECT if self.mode is BackingMode.DIRECT else 0
        flags = os.O_RDWR | os.O_CLOEXEC | direct
        kind = os.stat(self.path).st_mode
        if stat.S_ISBLK(kind):
            data_fd = self._keep(os.open(self.path, flags | os.O_EXCL))
        elif stat.S_ISREG(kind):
            data_fd = self._keep(os.open(self.path, flags))
            try:
                fcntl.flock(data_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._error("is in use by another process", f"see who has it: fuser -v {self.path}") from None
        else:
            raise self._error("is neither a block device nor a file", "name a disk, partition, logical volume or file")
        # by its descriptor: the name may stand for another one by now
        return data_fd, self._keep(os.open(f"/proc/self/fd/{data_fd}", flags | os.O_DSYNC))

    def _keep(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor

    def _close_descriptors(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _file(self, descriptor: int) -> DiskFile:
        return DirectFile(descriptor) if self.mode is BackingMode.DIRECT else BufferedFile(descriptor)

    def _measure(self) -> int:
        # all other calls name their offset, so the file position is nobody's
        return os.lseek(self._data_fd, 0, os.SEEK_END)

    def _remedy(self, error: OSError) -> str:
        if error.errno == errno.ENOENT:
            return "check the option `disk`, and whether the disk is there"
        if error.errno == errno.EBUSY:
            return f"it is mounted, or in use by another program: see lsblk {self.path} and fuser -v {self.path}"
        if error.errno == errno.EINVAL and self.mode is BackingMode.DIRECT:
            return "its file system knows no direct I/O: choose buffered I/O"
        return ""

    # saying what is wrong

    def _error(self, fact: str, remedy: str) -> MirrorError:
        return MirrorError(f"disk {self.path}", fact, remedy)

    def _failure(self, doing: str, error: OSError) -> DiskFailure:
        return DiskFailure(f"disk {self.path}", f"{doing} failed: {_why(error)}")


def _why(error: OSError) -> str:
    return error.strerror or str(error)
