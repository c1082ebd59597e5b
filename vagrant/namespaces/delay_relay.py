"""A cable that takes its time: two tap devices, and every frame of one comes out of the other some milliseconds later.

`delay_relay.py TAP_A TAP_B --ms N`, in the network namespace where the taps are or shall be. Prints `ready` when both
are there and up. A line on standard input, a number, is the new delay in milliseconds. Frames stay in order, also when
the delay shrinks. More than 64 MiB under way are dropped, as a switch drops. (The kernels we run on have no netem.)
"""

import argparse
import fcntl
import os
import select
import socket
import struct
import sys
import time
from collections import deque

QUEUED_BYTES_MAX = 64 << 20
FRAME_BYTES_MAX = 65_550
FRAMES_PER_TURN = 64
"""Frames read from one tap before due frames of the other direction get their turn."""
SPIN_S = 0.00005
"""A wait shorter than this ends late anyway: what is due so soon leaves at once."""

TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1


class Direction:
    """The frames under way from one tap to the other."""

    def __init__(self, source: int, target: int) -> None:
        self.source = source
        self.target = target
        self.queued_bytes = 0
        self.dropped_frames = 0
        self._frames: deque[tuple[float, bytes]] = deque()
        self._latest_due_s = 0.0

    def take_in(self, delay_s: float) -> None:
        """Read what has arrived; it is due `delay_s` from now, but never before a frame that came earlier."""
        for _ in range(FRAMES_PER_TURN):
            try:
                frame = os.read(self.source, FRAME_BYTES_MAX)
            except BlockingIOError:
                return
            if self.queued_bytes + len(frame) > QUEUED_BYTES_MAX:
                self.dropped_frames += 1
                continue
            self._latest_due_s = max(self._latest_due_s, time.monotonic() + delay_s)
            self._frames.append((self._latest_due_s, frame))
            self.queued_bytes += len(frame)

    def next_due_s(self) -> float | None:
        return self._frames[0][0] if self._frames else None

    def give_out(self) -> None:
        """Write what is due."""
        horizon_s = time.monotonic() + SPIN_S
        while self._frames and self._frames[0][0] <= horizon_s:
            frame = self._frames.popleft()[1]
            self.queued_bytes -= len(frame)
            try:
                os.write(self.target, frame)
            except OSError:
                self.dropped_frames += 1  # the interface is down or its queue is full: the frame is lost, as on a wire


class Orders:
    """New delays from standard input, in pieces of any size."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.ended = False
        self._received = b""

    def read(self) -> float | None:
        """The latest delay asked for, in seconds, or None."""
        data = os.read(self.descriptor, 4096)
        self.ended = not data
        *lines, self._received = (self._received + data)[-4096:].split(b"\n")
        delay_s = None
        for line in lines:
            try:
                delay_s = milliseconds(line.decode("ascii", "replace").strip()) / 1000
            except ValueError as error:
                print(f"delay relay: {error}", file=sys.stderr)
        return delay_s


def milliseconds(text: str) -> float:
    """A delay as people write it. Raises ValueError when it is no number from 0 to 60000."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 60_000:
        raise ValueError(f"delay {text!r} is no number from 0 to 60000; give milliseconds")
    return value


def open_tap(name: str) -> int:
    """The tap device of this name, made if it is not there, and brought up. Raises OSError."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0))
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | IFF_UP))
    return descriptor


def relay(tap_a: int, tap_b: int, delay_s: float, orders: Orders) -> None:
    """Pass frames both ways until the process is killed. Raises OSError when a tap is taken away."""
    directions = {tap_a: Direction(tap_a, tap_b), tap_b: Direction(tap_b, tap_a)}
    sources = [tap_a, tap_b, orders.descriptor]
    while True:
        due = [moment for moment in (direction.next_due_s() for direction in directions.values()) if moment is not None]
        # select, because poll and epoll count whole milliseconds
        patience_s = max(0.0, min(due) - time.monotonic()) if due else None
        for descriptor in select.select(sources, [], [], patience_s)[0]:
            if descriptor == orders.descriptor:
                changed_s = orders.read()
                delay_s = delay_s if changed_s is None else changed_s
                if orders.ended:
                    sources.remove(descriptor)
            else:
                directions[descriptor].take_in(delay_s)
        for direction in directions.values():
            direction.give_out()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="delay_relay.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("taps", nargs=2, metavar="TAP", help="names of the two tap devices")
    parser.add_argument("--ms", type=milliseconds, required=True, metavar="N", help="delay of each way")
    options = parser.parse_args(arguments)
    taps = []
    for name in options.taps:
        try:
            taps.append(open_tap(name))
        except OSError as error:
            remedy = "run as root with /dev/net/tun there, and give each tap to one relay"
            print(f"tap {name}: {error.strerror}; {remedy}", file=sys.stderr)
            return 1
    print("ready", flush=True)
    try:
        relay(taps[0], taps[1], options.ms / 1000, Orders(sys.stdin.fileno()))
    except OSError as error:
        print(f"taps {' and '.join(options.taps)}: {error.strerror}; start the relay again", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
