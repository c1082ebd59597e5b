"""How long requests wait: `stalls.py FILE BLOCKS OTHER SOCKET` until its standard input closes.

Every 20 ms each of three threads makes a request and tells it in a line: what it is, when it was issued, when it was
answered (monotonic seconds).

    r   a random block of 4 KiB of FILE is read, past the page cache
    w   a block of OTHER is written, past the page cache, and flushed
    n   a random block is read by NBD from the server at SOCKET, past the kernel altogether

A request that fails is the last line: "e" and what the system said.
"""

from __future__ import annotations

import mmap
import os
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

BLOCK_BYTES = 4096
INTERVAL_S = 0.02
OTHER_BLOCKS = 64


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


NBD_EXPORT_NAME, NBD_READ = 1, 0
NBD_REQUEST, NBD_REPLY_BYTES = struct.Struct(">IHHQQI"), 16
NBD_REQUEST_MAGIC = 0x25609513


class Requests(threading.Thread):
    """One kind of them, one at a time."""

    def __init__(self, word: str, request: Callable[[], None], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.word, self.request, self.stop = word, request, stop

    def run(self) -> None:
        due = time.monotonic()
        while not self.stop.is_set():
            issued = time.monotonic()
            try:
                self.request()
            except OSError as error:
                say(f"e {error}")
                os._exit(1)
            say(f"{self.word} {issued:.4f} {time.monotonic():.4f}")
            due = max(due + INTERVAL_S, time.monotonic())
            self.stop.wait(max(0.0, due - time.monotonic()))


def reading(path: str, blocks: int) -> Callable[[], None]:
    file, buffer = os.open(path, os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, BLOCK_BYTES)

    def request() -> None:
        os.preadv(file, [buffer], random.randrange(blocks) * BLOCK_BYTES)

    return request


def writing(path: str) -> Callable[[], None]:
    file, buffer = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600), mmap.mmap(-1, BLOCK_BYTES)

    def request() -> None:
        os.pwrite(file, buffer, random.randrange(OTHER_BLOCKS) * BLOCK_BYTES)
        os.fsync(file)

    return request


def reading_by_nbd(path: str) -> Callable[[], None]:
    """The oldest handshake of the protocol: greeting, our flags, and an export without a name."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    answers = connection.makefile("rb")
    answers.read(18)
    connection.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", NBD_EXPORT_NAME, 0))
    size_bytes, _flags = struct.unpack(">QH", answers.read(10))

    def request() -> None:
        offset = random.randrange(size_bytes // BLOCK_BYTES) * BLOCK_BYTES
        connection.sendall(NBD_REQUEST.pack(NBD_REQUEST_MAGIC, 0, NBD_READ, 0, offset, BLOCK_BYTES))
        head = answers.read(NBD_REPLY_BYTES)
        if len(head) != NBD_REPLY_BYTES or any(head[4:8]) or len(answers.read(BLOCK_BYTES)) != BLOCK_BYTES:
            raise OSError(f"{path}: a read by NBD failed")

    return request


def main() -> None:
    path, blocks, other, server = sys.argv[1:]
    stop = threading.Event()
    kinds = {"r": reading(path, int(blocks)), "w": writing(other), "n": reading_by_nbd(server)}
    workers = [Requests(word, request, stop) for word, request in kinds.items()]
    for worker in workers:
        worker.start()
    sys.stdin.read()
    stop.set()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
