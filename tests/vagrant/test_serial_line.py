"""The serial line: pace, order, faults, and the bytes that a real line would lose."""

import os
import select
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vagrant.namespaces.serial_line import FIFO_BYTES, Fault, Wire, after_order, disturbed

PROGRAM = Path(__file__).resolve().parents[2] / "vagrant" / "namespaces" / "serial_line.py"
DEADLINE_S = 20.0
SILENCE_S = 0.2


class Cable:
    """A running serial line and the two terminals, opened as a node would open them."""

    def __init__(self, directory: Path, baud: int = 115_200) -> None:
        self.links = [directory / "alpha", directory / "beta"]
        self.process = subprocess.Popen(
            ["/usr/bin/python3", "-IS", str(PROGRAM), *map(str, self.links), "--baud", str(baud)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        self.descriptors: set[int] = set()

    def open(self, end: int) -> int:
        descriptor = os.open(self.links[end], os.O_RDWR | os.O_NOCTTY)
        self.descriptors.add(descriptor)
        return descriptor

    def close(self, descriptor: int) -> None:
        self.descriptors.discard(descriptor)
        os.close(descriptor)

    def order(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[Cable]:
    running = Cable(tmp_path)
    try:
        yield running
    finally:
        running.stop()


def receive(descriptor: int, count: int, patience_s: float = DEADLINE_S) -> bytes:
    """Up to `count` bytes; fewer when none comes within the patience."""
    data = b""
    while len(data) < count and select.select([descriptor], [], [], patience_s)[0]:
        data += os.read(descriptor, count - len(data))
    return data


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def test_every_byte_value_passes_unchanged_both_ways(cable: Cable) -> None:
    alpha, beta = cable.open(0), cable.open(1)
    everything = bytes(range(256)) * 2
    write_all(alpha, everything)
    write_all(beta, everything[::-1])
    assert receive(beta, 512) == everything
    assert receive(alpha, 512) == everything[::-1]


def test_bytes_take_the_time_that_the_line_speed_says(tmp_path: Path) -> None:
    cable = Cable(tmp_path, baud=19_200)
    try:
        alpha, beta = cable.open(0), cable.open(1)
        began = time.monotonic()
        write_all(alpha, bytes(960))  # half a second at ten bits a byte
        assert len(receive(beta, 960)) == 960
        assert 0.49 <= time.monotonic() - began < 0.9
    finally:
        cable.stop()


def test_a_writer_who_is_faster_than_the_line_has_to_wait(cable: Cable) -> None:
    alpha, beta = cable.open(0), cable.open(1)
    os.set_blocking(alpha, False)
    taken = 0

    def fill() -> None:
        nonlocal taken
        while taken < 1 << 20:
            taken += os.write(alpha, bytes(1024))

    with pytest.raises(BlockingIOError):
        fill()
    assert taken < 65536
    assert len(receive(beta, taken)) == taken


def test_a_cut_line_carries_nothing_and_a_healed_one_carries_what_comes_then(cable: Cable) -> None:
    alpha, beta = cable.open(0), cable.open(1)
    cable.order("cut")
    until_silent = time.monotonic() + DEADLINE_S
    while time.monotonic() < until_silent:  # the order takes a moment
        os.write(alpha, b"?")
        if not receive(beta, 1, SILENCE_S):
            break
    write_all(alpha, b"lost")
    assert receive(beta, 1, SILENCE_S) == b""
    cable.order("heal")
    answer = b""
    while not answer:
        assert time.monotonic() < until_silent
        os.write(alpha, b"!")
        answer = receive(beta, 1, SILENCE_S)
    assert answer == b"!"


def test_a_noisy_line_flips_bits_in_the_share_ordered_and_loses_no_byte(cable: Cable) -> None:
    alpha, beta = cable.open(0), cable.open(1)
    cable.order("noise 100")
    deadline = time.monotonic() + DEADLINE_S
    while True:
        os.write(alpha, b"\0")
        if receive(beta, 1) != b"\0":
            break
        assert time.monotonic() < deadline
    cable.order("nonsense")  # refused, and the line lives on
    cable.order("noise 25")
    write_all(alpha, bytes(2000))
    received = receive(beta, 2000)
    assert len(received) == 2000
    assert 300 < sum(byte != 0 for byte in received) < 800  # 500 expected; some pass before the order


def test_a_port_that_nobody_has_open_hears_nothing(cable: Cable) -> None:
    alpha = cable.open(0)
    write_all(alpha, b"nobody is there")
    termios.tcdrain(alpha)
    assert receive(alpha, 1, SILENCE_S) == b""
    beta = cable.open(1)
    assert receive(beta, 1, SILENCE_S) == b""
    write_all(alpha, b"hello")
    assert receive(beta, 5) == b"hello"


def test_a_node_that_comes_back_does_not_read_what_was_meant_for_the_one_before(cable: Cable) -> None:
    alpha, beta = cable.open(0), cable.open(1)
    write_all(alpha, b"unread")
    select.select([beta], [], [], DEADLINE_S)
    cable.close(beta)
    write_all(alpha, b"while it is down")
    assert receive(alpha, 1, SILENCE_S) == b""
    assert receive(cable.open(1), 1, SILENCE_S) == b""


def test_what_a_reader_does_not_take_in_time_is_overrun_and_the_line_lives_on(tmp_path: Path) -> None:
    cable = Cable(tmp_path, baud=1_000_000)
    try:
        alpha, beta = cable.open(0), cable.open(1)
        write_all(alpha, bytes(100_000))
        received = receive(beta, 100_000, SILENCE_S)
        assert 1000 < len(received) < 100_000
        write_all(alpha, b"fresh")
        assert receive(beta, 5) == b"fresh"
    finally:
        cable.stop()


def test_the_terminals_stay_raw_for_each_new_opener(cable: Cable) -> None:
    for _ in range(2):
        descriptor = cable.open(0)
        local_modes = termios.tcgetattr(descriptor)[3]
        assert not local_modes & (termios.ECHO | termios.ICANON | termios.ISIG)
        cable.close(descriptor)


def test_an_idle_line_costs_no_processor_time(cable: Cable) -> None:
    stat = Path(f"/proc/{cable.process.pid}/stat")

    def ticks() -> int:
        return sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13]))

    before = ticks()
    beta = cable.open(1)
    assert receive(beta, 1, 0.5) == b""
    assert ticks() - before <= 2


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 0.01)), max_size=30))
def test_no_byte_is_through_before_its_time_and_none_is_lost(steps: list[tuple[int, float]]) -> None:
    wire = Wire(115_200)
    now_s, sent, received = 5.0, b"", b""
    for count, pause_s in steps:
        data = bytes(min(count, wire.room()))
        wire.put(data, now_s)
        sent += data
        now_s += pause_s
        received += wire.take(now_s)
        assert len(received) <= (now_s - 5.0) * 11_520 + 1e-6
    assert received + wire.take(now_s + FIFO_BYTES * wire.byte_s + 1e-6) == sent


@pytest.mark.parametrize(
    ("before", "line", "after"),
    [
        (Fault(), "cut", Fault(cut=True)),
        (Fault(cut=True, noise_percent=5), "heal", Fault()),
        (Fault(cut=True), "noise 2.5", Fault(cut=True, noise_percent=2.5)),
        (Fault(noise_percent=5), "noise 0", Fault()),
    ],
)
def test_orders_change_the_fault(before: Fault, line: str, after: Fault) -> None:
    assert after_order(before, line) == after


@pytest.mark.parametrize("line", ["", "noise", "noise many", "noise 101", "noise nan", "cut it"])
def test_a_wrong_order_is_refused_with_the_right_ones(line: str) -> None:
    with pytest.raises(ValueError, match="write cut, heal, or noise PERCENT"):
        after_order(Fault(), line)


def test_noise_is_one_bit_in_a_byte_and_the_same_for_the_same_seed() -> None:
    first = disturbed(bytes(1000), 10, Random(4))
    assert first == disturbed(bytes(1000), 10, Random(4))
    assert {byte.bit_count() for byte in first} == {0, 1}
    assert 50 < sum(byte != 0 for byte in first) < 150
