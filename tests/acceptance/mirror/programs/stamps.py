"""A load that can be judged afterwards: every sector of 512 bytes says which write it is from.

`stamps.py write FILE BLOCKS FIRST THREADS` writes stamped blocks of 4 KiB at random places past the page cache until
its standard input closes, then flushes and ends. FIRST is the number of its first write. It tells, a line each, with
the monotonic time in seconds:

    i NUMBER BLOCK TIME     a write is issued
    a NUMBER TIME           it was answered
    f NUMBER TIME           a flush is issued; it covers every write answered in the lines above
    F NUMBER TIME           it was answered
    e TEXT                  the file failed; this is the last line

`stamps.py read FILE BLOCKS` prints, for each block, the numbers in its eight sectors: 0 for one that was never written,
-1 for one that holds something else.
"""

from __future__ import annotations

import itertools
import mmap
import os
import random
import struct
import sys
import threading
import time
import zlib

BLOCK_BYTES, SECTOR_BYTES = 4096, 512
HEAD = struct.Struct("<QIII")  # write number, block, sector in it, CRC of these and of the filling
WRITES_BETWEEN_FLUSHES = 24
READ_BLOCKS = 256


def stamp(number: int, block: int, sector: int) -> bytes:
    filling = number.to_bytes(4, "little") * ((SECTOR_BYTES - HEAD.size) // 4)
    crc = zlib.crc32(filling, zlib.crc32(struct.pack("<QII", number, block, sector)))
    return HEAD.pack(number, block, sector, crc) + filling


def number_in(piece: bytes, block: int, sector: int) -> int:
    if not any(piece):
        return 0
    number = int(HEAD.unpack_from(piece)[0])
    return number if piece == stamp(number, block, sector) else -1


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")  # one system call: lines of different threads do not mix


class Writer:
    def __init__(self, path: str, blocks: int, first: int, threads: int) -> None:
        self.file = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.blocks, self.threads = blocks, threads
        self.numbers = itertools.count(first)
        self.flushes = itertools.count(1)
        self.taking = threading.Lock()
        self.stop = threading.Event()

    def work(self, index: int) -> None:
        """One thread owns each n-th block, so that two writes of one block are never under way at once."""
        chance = random.Random(f"{index} {time.monotonic_ns()}")
        buffer = mmap.mmap(-1, BLOCK_BYTES)
        try:
            while not self.stop.is_set():
                for _ in range(WRITES_BETWEEN_FLUSHES):
                    if self.stop.is_set():
                        break
                    self.write(chance.randrange(self.blocks // self.threads) * self.threads + index, buffer)
                self.flush()
        except OSError as error:
            say(f"e {error}")
            os._exit(1)

    def write(self, block: int, buffer: mmap.mmap) -> None:
        with self.taking:
            number = next(self.numbers)
        buffer[:] = b"".join(stamp(number, block, sector) for sector in range(BLOCK_BYTES // SECTOR_BYTES))
        say(f"i {number} {block} {time.monotonic():.4f}")
        if os.pwrite(self.file, buffer, block * BLOCK_BYTES) != BLOCK_BYTES:
            raise OSError(f"a part of block {block} was not written")
        say(f"a {number} {time.monotonic():.4f}")

    def flush(self) -> None:
        with self.taking:
            number = next(self.flushes)
        say(f"f {number} {time.monotonic():.4f}")
        os.fsync(self.file)
        say(f"F {number} {time.monotonic():.4f}")


def write(path: str, blocks: int, first: int, threads: int) -> None:
    try:
        writer = Writer(path, blocks, first, threads)
    except OSError as error:
        say(f"e {error}")
        sys.exit(1)
    workers = [threading.Thread(target=writer.work, args=(index,), daemon=True) for index in range(threads)]
    for worker in workers:
        worker.start()
    sys.stdin.read()
    writer.stop.set()
    for worker in workers:
        worker.join()


def read(path: str, blocks: int) -> None:
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, READ_BLOCKS * BLOCK_BYTES)
    for first in range(0, blocks, READ_BLOCKS):
        count = min(READ_BLOCKS, blocks - first)
        with memoryview(buffer)[: count * BLOCK_BYTES] as view:
            if os.preadv(file, [view], first * BLOCK_BYTES) != count * BLOCK_BYTES:
                sys.exit(f"{path} is too short")
        for block in range(count):
            pieces = (
                buffer[start : start + SECTOR_BYTES]
                for start in range(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES, SECTOR_BYTES)
            )
            print(*(number_in(piece, first + block, sector) for sector, piece in enumerate(pieces)))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2], *map(int, sys.argv[3:6]))
    else:
        read(sys.argv[2], int(sys.argv[3]))
