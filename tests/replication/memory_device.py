"""A device that is a piece of memory behind a front end, and a client for it that says exactly what it is told to."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from replication.frontend import Frontend
from replication.loop import Loop
from replication.protocol.nbd import GREETING, Export
from replication.protocol.requests import READ, TRIM, WRITE, WRITE_ZEROES, Request

MIB = 1 << 20
SIZE = 64 * MIB
DEADLINE_S = 60
SYSTEM_PYTHON = "/usr/bin/python3"
BINDINGS = Path("/usr/lib/python3/dist-packages/nbd.py")
"""libnbd's; they belong to the system's interpreter, not to ours."""
PACKAGES = {
    "nbdinfo": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "qemu-io": "qemu-utils",
    "fio": "fio",
    "python3": "python3",
}

Buffer = bytes | memoryview


class MemoryDevice:
    """A volume that is memory. While `holds`, requests wait in `held` until `release`."""

    def __init__(self, loop: Loop, path: Path) -> None:
        self.loop = loop
        self.path = path
        self.bytes = memoryview(bytearray(SIZE))
        self.seen: list[Request] = []
        self.held: list[Request] = []
        self.holds = False
        self.closes_with = 0
        self.pauses = False
        self.resumes = False
        """In every round of the loop."""
        self.notes: list[str] = []
        export = Export(SIZE, description="r0 on alpha")
        self.frontend = Frontend(loop, path, export, self.submit, self.notes.append)

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.path}"

    def submit(self, requests: list[Request]) -> None:
        self.seen += requests
        if self.closes_with:
            self.frontend.close(self.closes_with)
        if self.pauses:
            self.frontend.pause()
        if self.holds:
            self.held += requests
        else:
            self.finish(requests)

    def finish(self, requests: list[Request]) -> None:
        for request in requests:
            window = self.bytes[request.offset : request.offset + request.length]
            if request.command == WRITE:
                assert request.data is not None
                window[:] = request.data
            elif request.command == READ:
                request.data = memoryview(bytes(window))
            elif request.command in (TRIM, WRITE_ZEROES):
                window[:] = bytes(request.length)
        self.frontend.complete(requests)

    def release(self) -> None:
        held, self.held = self.held, []
        self.finish(held)

    def run_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            self.loop.run_once(0.01)
            if self.resumes:
                self.frontend.resume()

    def run_quiet(self) -> None:
        """Until nothing moves any more: on one machine what was sent on a unix socket has arrived."""
        for _ in range(100):
            self.loop.run_once(0)

    def run(self, *command: str, expected: int = 0) -> str:
        """A client program, to its end: what it said."""
        assert shutil.which(command[0]), f"{command[0]} is missing: apt-get install {PACKAGES[Path(command[0]).name]}"
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                self.run_until(lambda: process.poll() is not None)
            finally:
                process.kill()
            assert process.stdout is not None
            output = process.stdout.read()
        assert process.returncode == expected, output
        return output

    def nbdsh(self, *lines: str) -> str:
        """Lines of Python with `h` connected."""
        assert BINDINGS.exists(), "the Python module nbd is missing: apt-get install python3-libnbd"
        return self.run(
            SYSTEM_PYTHON, "-m", "nbd", "--uri", self.uri, *(part for line in lines for part in ("-c", line))
        )

    def connect(self) -> RawClient:
        """A client past its handshake."""
        client = RawClient(self)
        client.send(b"\0\0\0\3" + b"IHAVEOPT" + struct.pack(">IIIH", 7, 6, 0, 0))
        client.receive(len(GREETING) + (20 + 12) + (20 + 14) + 20)
        return client


class RawClient:
    """Says exactly what it is told to say."""

    def __init__(self, memory: MemoryDevice) -> None:
        self.memory = memory
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(memory.path))
        self.sock.setblocking(False)

    def send(self, data: bytes) -> None:
        """All of it, while the server runs."""
        left = memoryview(data)

        def push() -> bool:
            nonlocal left
            left = left[self.push(left) :]
            return not left

        self.memory.run_until(push)

    def push(self, data: Buffer) -> int:
        """What the socket takes now."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    def receive(self, count: int) -> bytes:
        """So many bytes, while the server runs."""
        received = bytearray()

        def pull() -> bool:
            try:
                piece = self.sock.recv(count - len(received))
                assert piece, f"closed after {len(received)} bytes"
                received.extend(piece)
            except BlockingIOError:
                pass
            return len(received) == count

        self.memory.run_until(pull)
        return bytes(received)

    def replies(self, count: int) -> dict[int, int]:
        """Cookie -> error, of replies without data."""
        found = list(struct.iter_unpack(">IIQ", self.receive(16 * count)))
        assert {magic for magic, _, _ in found} == {0x67446698}
        return {cookie: error for _, error, cookie in found}

    def is_closed(self) -> bool:
        """By the server; what it said before is thrown away."""
        try:
            while self.sock.recv(MIB):
                pass
        except BlockingIOError:
            return False
        except ConnectionResetError:
            pass
        return True


def header(command: int, offset: int = 0, length: int = 0, cookie: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


def write(offset: int, data: bytes, cookie: int = 0, flags: int = 0) -> bytes:
    return header(WRITE, offset, len(data), cookie, flags) + data
