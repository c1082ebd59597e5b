"""A null-modem cable between two pseudo-terminals, at the pace of a real serial line.

`serial_line.py LINK_A LINK_B [--baud 115200]` makes LINK_A and LINK_B as symbolic links to the two terminals, prints
`ready`, and then carries bytes both ways: one start bit, eight of data, one stop bit. Lines on standard input order
faults: `cut`, `heal`, `noise PERCENT` (flips one bit in that share of the bytes; 0 ends it).

As on a real line, the sender waits for the line and not for the receiver: who has the port closed, or does not read in
time, loses bytes.
"""

import argparse
import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections import deque
from random import Random
from typing import NamedTuple

BITS_PER_BYTE = 10
FIFO_BYTES = 256
"""Bytes taken over from a sender ahead of the line; the terminal itself holds back the rest of what it writes."""
BAUD_MAX = 1_000_000
"""What FIFO_BYTES can keep busy from one tick to the next."""
TICK_S = 0.001
"""Shortest wait: bytes that come due within it leave together, as a port's own buffer hands them over."""


class Fault(NamedTuple):
    """What is wrong with the line at present."""

    cut: bool = False
    noise_percent: float = 0.0


def after_order(fault: Fault, line: str) -> Fault:
    """The fault after one order. Raises ValueError with what to write instead."""
    match line.split():
        case ["cut"]:
            return fault._replace(cut=True)
        case ["heal"]:
            return Fault()
        case ["noise", share]:
            try:
                percent = float(share)
            except ValueError:
                percent = -1.0
            if 0 <= percent <= 100:
                return fault._replace(noise_percent=percent)
    raise ValueError(f"order {line!r} is not known; write cut, heal, or noise PERCENT with 0 to 100")


def disturbed(data: bytes, noise_percent: float, chance: Random) -> bytes:
    """The bytes with one bit flipped in about `noise_percent` of them."""
    if not noise_percent:
        return data
    return bytes(byte ^ (1 << chance.randrange(8)) if chance.random() * 100 < noise_percent else byte for byte in data)


class Wire:
    """One direction of the line: when is which byte through? Decides only; time is an argument, in seconds."""

    def __init__(self, baud: int) -> None:
        self.byte_s = BITS_PER_BYTE / baud
        self._bytes: deque[int] = deque()
        self._first_due_s = 0.0

    def room(self) -> int:
        """How many bytes may be put in."""
        return FIFO_BYTES - len(self._bytes)

    def put(self, data: bytes, now_s: float) -> None:
        """Bytes for the line; they begin when the ones before them are through, but not before now."""
        assert len(data) <= self.room(), "the sender has to wait for room"
        if not self._bytes:
            self._first_due_s = max(self._first_due_s, now_s + self.byte_s)
        self._bytes += data

    def next_due_s(self) -> float | None:
        """When the first byte is through, or None."""
        return self._first_due_s if self._bytes else None

    def take(self, now_s: float) -> bytes:
        """The bytes that are through."""
        if not self._bytes or self._first_due_s > now_s:
            return b""
        count = min(len(self._bytes), int((now_s - self._first_due_s) / self.byte_s) + 1)
        self._first_due_s += count * self.byte_s
        return bytes(self._bytes.popleft() for _ in range(count))


class Port:
    """One end: a pseudo-terminal in raw mode whose other side a node opens."""

    def __init__(self, link: str) -> None:
        self.controller, terminal = os.openpty()
        os.set_blocking(self.controller, False)
        tty.setraw(terminal)
        self.path = os.ttyname(terminal)
        os.close(terminal)  # from here on the terminal counts as closed until a node opens it
        self._was_open = False
        temporary = f"{link}.{os.getpid()}"
        os.symlink(self.path, temporary)
        os.replace(temporary, link)

    def is_open(self) -> bool:
        """Whether anybody has the terminal open. A port that was closed forgets what nobody read."""
        probe = select.poll()
        probe.register(self.controller, 0)
        is_open = not probe.poll(0)
        if self._was_open and not is_open:
            terminal = os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            termios.tcflush(terminal, termios.TCIFLUSH)
            os.close(terminal)
        self._was_open = is_open
        return is_open

    def read(self, count: int) -> bytes:
        try:
            return os.read(self.controller, count)
        except OSError:  # nothing there, or closed at the other side
            return b""

    def write(self, data: bytes) -> None:
        """Hand over what came through the line; what does not fit is overrun and lost."""
        if self.is_open():
            try:
                os.write(self.controller, data)
            except OSError:
                return


class Line:
    """Both directions, and the faults that they share."""

    def __init__(self, ports: list[Port], baud: int, seed: int) -> None:
        self.ports = ports
        self.fault = Fault()
        self._wires = [Wire(baud), Wire(baud)]
        self._chance = Random(seed)
        self._orders = b""

    def run(self) -> None:
        """Carry bytes until the process is killed."""
        events = select.epoll()
        orders = sys.stdin.fileno()
        for port in self.ports:
            # Edges, because a closed terminal would be reported for ever.
            events.register(port.controller, select.EPOLLIN | select.EPOLLET)
        with contextlib.suppress(PermissionError):  # a file or /dev/null: there will be no orders
            events.register(orders, select.EPOLLIN)
        print("ready", flush=True)
        while True:
            due = [moment for moment in (wire.next_due_s() for wire in self._wires) if moment is not None]
            patience_s = max(TICK_S, min(due) - time.monotonic()) if due else None
            for descriptor, _ in events.poll(patience_s):
                if descriptor == orders and not self._take_orders(orders):
                    events.unregister(orders)
            for index, wire in enumerate(self._wires):
                self._carry(wire, self.ports[index], self.ports[1 - index])

    def _carry(self, wire: Wire, source: Port, target: Port) -> None:
        through = wire.take(time.monotonic())
        if through and not self.fault.cut:
            target.write(disturbed(through, self.fault.noise_percent, self._chance))
        while wire.room():
            data = source.read(wire.room())
            if not data:
                break
            wire.put(data, time.monotonic())

    def _take_orders(self, descriptor: int) -> bool:
        data = os.read(descriptor, 4096)
        *lines, self._orders = (self._orders + data)[-4096:].split(b"\n")
        for line in lines:
            try:
                self.fault = after_order(self.fault, line.decode("ascii", "replace"))
            except ValueError as error:
                print(f"serial line: {error}", file=sys.stderr)
        return bool(data)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="serial_line.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("links", nargs=2, metavar="LINK", help="where the two ends shall be found")
    parser.add_argument("--baud", type=int, default=115_200, help="bits per second (default: 115200)")
    parser.add_argument("--seed", type=int, default=1, help="which bytes noise hits (default: 1)")
    options = parser.parse_args(arguments)
    if not 50 <= options.baud <= BAUD_MAX:
        parser.error(f"--baud {options.baud} is no line speed; give 50 to {BAUD_MAX}")
    ports = []
    for link in options.links:
        try:
            ports.append(Port(link))
        except OSError as error:
            remedy = "name a path in a writable directory, on a system with /dev/ptmx"
            print(f"serial port {link}: {error.strerror}; {remedy}", file=sys.stderr)
            return 1
    Line(ports, options.baud, options.seed).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
