"""Reading and writing a file or block device at offsets: through the page cache, or past it.

Both kinds write a list in its order where its ranges overlap, and retry nothing but what was cut short.
"""

from __future__ import annotations

import errno
import mmap
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from replication.protocol.effects import Buffer

IOV_MAX = os.sysconf("SC_IOV_MAX")
PIECE_BYTES = 1 << 20
"""Direct I/O goes in pieces of this size: that of the largest request of the wire."""
WRITERS = 7
"""Threads for direct writes. The caller is one more, so eight pieces of a list are on their way at once."""

Run = tuple[int, int, list[Buffer]]
"""Where it begins, where it ends, and what is there."""


class DiskFile(Protocol):
    """All raise OSError."""

    def write(self, writes: list[tuple[int, Buffer]]) -> None:
        """Written when it returns."""

    def read(self, offset: int, length: int) -> bytearray:
        """Exactly so much, into a buffer of its own. From any thread."""

    def read_cached(self, offset: int, length: int) -> bytearray | None:
        """The same if it can be had without waiting for the disk, else None."""

    def close(self) -> None:
        """Ends its threads. The descriptor stays open: it is its owner's."""


def runs(writes: list[tuple[int, Buffer]], bytes_max: int) -> Iterator[Run]:
    """Neighbours in the list that are neighbours on the disk, joined up to IOV_MAX buffers and `bytes_max`.

    A single buffer larger than that stays whole.
    """
    it = iter(writes)
    begin, first = next(it)
    end = begin + len(first)
    run = [first]
    for offset, buffer in it:
        after = offset + len(buffer)
        if offset == end and after - begin <= bytes_max and len(run) < IOV_MAX:
            run.append(buffer)
        else:
            yield begin, end, run
            begin, run = offset, [buffer]
        end = after
    yield begin, end, run


class BufferedFile:
    """Through the page cache."""

    RUN_BYTES_MAX = 64 << 20

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._knows_nowait = True

    def write(self, writes: list[tuple[int, Buffer]]) -> None:
        if len(writes) == 1:
            offset, buffer = writes[0]
            if (written := os.pwrite(self._descriptor, buffer, offset)) != len(buffer):
                self._write_rest(offset, offset + len(buffer), [buffer], written)
        elif writes:
            for begin, end, run in runs(writes, self.RUN_BYTES_MAX):
                if (written := os.pwritev(self._descriptor, run, begin)) != end - begin:
                    self._write_rest(begin, end, run, written)

    def _write_rest(self, begin: int, end: int, run: list[Buffer], written: int) -> None:
        # cut short by a full disk or its end: the next call says which; or by 2 GiB, and then it goes on
        while begin + written < end:
            at, skip, rest = begin + written, written, []
            for buffer in run:
                if skip < len(buffer):
                    rest.append(memoryview(buffer)[skip:])
                skip = max(0, skip - len(buffer))
            count = os.pwritev(self._descriptor, rest, at)
            if count == 0:
                raise OSError(errno.ENOSPC, f"the disk took nothing at {at}")
            written += count

    def read(self, offset: int, length: int) -> bytearray:
        into = bytearray(length)
        view = memoryview(into)
        done = 0
        while done < length:
            count = os.preadv(self._descriptor, [view[done:]], offset + done)
            if count == 0:
                raise _ends_at(offset + done)
            done += count
        return into

    def read_cached(self, offset: int, length: int) -> bytearray | None:
        if not self._knows_nowait:
            return None
        into = bytearray(length)
        try:
            return into if os.preadv(self._descriptor, [into], offset, os.RWF_NOWAIT) == length else None
        except BlockingIOError:
            return None
        except OSError as error:
            self._knows_nowait = error.errno != errno.EOPNOTSUPP
            return None  # whoever waits for it hears of any other error

    def close(self) -> None:
        pass


class DirectFile:
    """Past the page cache, with O_DIRECT.

    That wants memory, offsets and lengths aligned to the disk's logical blocks, and views of clients' buffers are not:
    so everything is copied through a piece of aligned memory that each thread has of its own. Pieces of one list are
    written in parallel, unless ranges overlap. What covers only a part of a logical block is read, changed and
    written.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._own = threading.local()
        self._align = self._find_alignment()
        self._jobs: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._writers: list[threading.Thread] = []

    def write(self, writes: list[tuple[int, Buffer]]) -> None:
        if not writes:
            return
        pieces = list(self._pieces(writes))
        if len(pieces) == 1 or not self._parallel(pieces):
            for piece in pieces:
                self._write_piece(piece)
            return
        self._start_writers()
        for piece in pieces[1:]:
            self._jobs.put(piece)
        outcomes = [_attempt(self._write_piece, pieces[0])]
        # all of them, failed or not: their buffers are in use until then
        outcomes += [self._outcomes.get() for _ in pieces[1:]]
        for error in outcomes:
            if error is not None:
                raise error

    def read(self, offset: int, length: int) -> bytearray:
        into = bytearray(length)
        done = 0
        while done < length:
            skip = (offset + done) % self._align
            count = min(length - done, PIECE_BYTES - skip)
            into[done : done + count] = self._load(offset + done - skip, skip + count)[skip : skip + count]
            done += count
        return into

    def read_cached(self, offset: int, length: int) -> bytearray | None:
        return None

    def close(self) -> None:
        for _ in self._writers:
            self._jobs.put(None)
        for thread in self._writers:
            thread.join()
        self._writers = []

    def _find_alignment(self) -> int:
        """512, unless the disk has larger logical blocks: then it refuses to read 512 bytes at 512."""
        try:
            os.preadv(self._descriptor, [self._memory()[:512]], 512)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            os.preadv(self._descriptor, [self._memory()[:4096]], 4096)
            return 4096
        return 512

    def _memory(self) -> memoryview:
        """This thread's aligned memory."""
        try:
            view: memoryview = self._own.view
        except AttributeError:
            view = self._own.view = memoryview(mmap.mmap(-1, PIECE_BYTES))
        return view

    def _pieces(self, writes: list[tuple[int, Buffer]]) -> Iterator[Run]:
        for begin, end, run in runs(writes, PIECE_BYTES):
            if end - begin <= PIECE_BYTES - begin % self._align:
                yield begin, end, run
                continue
            whole = memoryview(run[0]) if len(run) == 1 else memoryview(b"".join(run))
            at = begin
            while at < end:
                until = min(end, at - at % self._align + PIECE_BYTES)
                yield at, until, [whole[at - begin : until - begin]]
                at = until

    def _parallel(self, pieces: list[Run]) -> bool:
        last = 0
        for begin, end, _ in sorted(pieces, key=lambda piece: piece[0]):
            if begin < last or begin % self._align or end % self._align:
                return False
            last = end
        return True

    def _write_piece(self, piece: Run) -> None:
        begin, end, run = piece
        skip = begin % self._align
        length = skip + end - begin
        padded = -(-length // self._align) * self._align
        memory = self._memory()
        if skip or padded != length:
            self._load(begin - skip, length)
        at = skip
        for buffer in run:
            memory[at : at + len(buffer)] = buffer
            at += len(buffer)
        self._store(begin - skip, padded)

    def _store(self, offset: int, length: int) -> None:
        memory, done = self._memory(), 0
        while done < length:
            count = os.pwritev(self._descriptor, [memory[done:length]], offset + done)
            if count == 0:
                raise OSError(errno.ENOSPC, f"the disk took nothing at {offset + done}")
            done += count

    def _load(self, offset: int, length: int) -> memoryview:
        """At least so much, into this thread's memory; `offset` is aligned."""
        memory, done = self._memory(), 0
        padded = -(-length // self._align) * self._align
        while done < length:
            count = os.preadv(self._descriptor, [memory[done:padded]], offset + done)
            if count == 0:
                raise _ends_at(offset + done)
            done += count
        return memory

    def _start_writers(self) -> None:
        if not self._writers:
            self._writers = [
                threading.Thread(target=self._write_jobs, name="writer", daemon=True) for _ in range(WRITERS)
            ]
            for thread in self._writers:
                thread.start()

    def _write_jobs(self) -> None:
        while (piece := self._jobs.get()) is not None:
            self._outcomes.put(_attempt(self._write_piece, piece))


def _attempt(action: Callable[[Run], None], piece: Run) -> Exception | None:
    """Its error, to be raised by whoever waits; a bug of ours too, or they would wait for ever."""
    try:
        action(piece)
    except Exception as error:
        return error
    return None


def _ends_at(offset: int) -> OSError:
    return OSError(errno.ENXIO, f"the disk ends at {offset}: it became smaller than it was")
