from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from replication.attendant import Absence, Attendant, answer_pings
from replication.peer_stream import PeerStream
from replication.protocol.packets import ACK, HEADER, MAGIC_100, P_PING, P_PING_ACK, P_WRITE_ACK

PING = HEADER.pack(MAGIC_100, 0, P_PING, 0, 0)
PING_ACK = HEADER.pack(MAGIC_100, 0, P_PING_ACK, 0, 0)
WRITE_ACK = ACK.pack(MAGIC_100, 0, P_WRITE_ACK, ACK.size - HEADER.size, 0, 8, 1, 4096, 1)
DEADLINE_S = 10


class Line:
    """Our end as a stream, the peer's end as a socket."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        self.stream = PeerStream(ours, "meta stream", 65536)
        self.fed = bytearray()

    def heard(self) -> bytes:
        try:
            return self.peer.recv(65536)
        except BlockingIOError:
            return b""

    def read_on(self) -> bytes:
        """What the loop finds when it is back."""
        try:
            self.stream.receive()
        except Exception as error:
            return str(error).encode()
        self.stream.feed(lambda view: self.fed.extend(view) or len(view))  # type: ignore[func-returns-value]
        return bytes(self.fed)


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.peer.close()
    line.stream.close()


def test_a_ping_is_answered_and_gone(line: Line) -> None:
    line.peer.send(PING)
    assert not answer_pings(line.stream)
    assert line.heard() == PING_ACK
    assert line.read_on() == b""


def test_what_stands_before_a_ping_is_kept_for_the_loop_in_order(line: Line) -> None:
    line.peer.send(WRITE_ACK + PING + PING_ACK + PING + WRITE_ACK)
    assert answer_pings(line.stream), "the loop must look by itself"
    assert line.heard() == PING_ACK * 2
    assert line.read_on() == WRITE_ACK + PING_ACK + WRITE_ACK


def test_without_a_ping_nothing_is_touched(line: Line) -> None:
    line.peer.send(WRITE_ACK)
    assert not answer_pings(line.stream)
    assert line.stream.pending_bytes == 0
    assert line.read_on() == WRITE_ACK


def test_a_ping_that_has_half_arrived_waits(line: Line) -> None:
    line.peer.send(PING[:9])
    assert not answer_pings(line.stream)
    line.peer.send(PING[9:])
    answer_pings(line.stream)
    assert line.heard() == PING_ACK


def test_in_the_middle_of_a_packet_nothing_is_a_ping(line: Line) -> None:
    line.peer.send(WRITE_ACK[:20])
    line.stream.receive()
    line.peer.send(PING)  # bytes of that packet that look like one
    assert not answer_pings(line.stream)
    assert line.heard() == b""
    assert line.read_on() == WRITE_ACK[:20] + PING


def test_whole_packets_that_the_loop_is_working_on_do_not_hinder(line: Line) -> None:
    line.peer.send(WRITE_ACK * 2)
    line.stream.receive()
    seen = []

    def work(view: memoryview) -> int:
        seen.append(bytes(view))
        if len(seen) == 1:  # a disk call happens in here, and the peer pings
            line.peer.send(WRITE_ACK + PING)
            assert answer_pings(line.stream)
            assert line.heard() == PING_ACK
        return len(view)

    line.stream.feed(work)
    assert seen == [WRITE_ACK * 2, WRITE_ACK]


def test_while_our_own_packets_wait_no_answer_cuts_into_them(line: Line) -> None:
    while line.stream.send([WRITE_ACK * 100]):
        pass
    line.peer.send(PING)
    assert not answer_pings(line.stream)
    sent = bytearray()
    while not line.stream.send_backlog():
        sent += line.heard()
    while chunk := line.heard():
        sent += chunk
    assert len(sent) % len(WRITE_ACK) == 0
    assert PING_ACK not in sent


def test_a_dead_peer_is_left_for_the_loop_to_find(line: Line) -> None:
    line.peer.close()
    assert not answer_pings(line.stream)
    assert line.read_on() == b"the peer closed the meta stream"


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_sent_the_loop_gets_all_but_pings(line: Line, seed: int) -> None:
    rng = random.Random(seed)
    packets = [rng.choice([PING, PING_ACK, WRITE_ACK]) for _ in range(60)]
    wire = b"".join(packets)
    answers, sent = bytearray(), 0
    pings_left_to_the_loop = 0
    while sent < len(wire):
        step = rng.randint(1, 100)
        line.peer.send(wire[sent : sent + step])
        sent += step
        if rng.random() < 0.3:
            line.read_on()
            continue
        answer_pings(line.stream)
        answers += line.heard()
    received = line.read_on()
    at = 0
    kept = []
    while at < len(received):
        size = HEADER.size + HEADER.unpack_from(received, at)[3]
        kept.append(received[at : at + size])
        at += size
    pings_left_to_the_loop = kept.count(PING)
    assert [packet for packet in kept if packet != PING] == [packet for packet in packets if packet != PING]
    assert len(answers) // len(PING_ACK) + pings_left_to_the_loop == packets.count(PING)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)


def test_the_attendant_answers_while_the_loop_is_away(line: Line) -> None:
    absence = Absence()

    def attend(away_s: float) -> None:
        answer_pings(line.stream)

    attendant = Attendant(absence, attend)
    attendant.start()
    line.peer.settimeout(DEADLINE_S)
    try:
        with absence:  # a disk that hangs
            line.peer.send(PING)
            begin = time.monotonic()
            assert line.peer.recv(64) == PING_ACK
            assert time.monotonic() - begin < 0.5
    finally:
        attendant.stop()


def test_the_attendant_does_nothing_while_the_loop_is_here() -> None:
    absence = Absence()
    called: list[float] = []
    assert not absence.use(0.0, called.append)
    with absence:
        assert not absence.use(60.0, called.append), "it is away, but not for long"
        wait_for(lambda: absence.use(0.0, called.append))
    assert not absence.use(0.0, called.append)
    assert len(called) == 1


def test_the_loop_comes_back_only_when_the_attendant_is_done() -> None:
    absence = Absence()
    holding, let_go = threading.Event(), threading.Event()
    order: list[str] = []

    def attend(away_s: float) -> None:
        holding.set()
        let_go.wait(DEADLINE_S)
        order.append("attendant is done")

    def other() -> None:
        wait_for(lambda: absence.use(0.0, attend))

    thread = threading.Thread(target=other)
    with absence:
        thread.start()
        assert holding.wait(DEADLINE_S)
        threading.Timer(0.05, let_go.set).start()
    order.append("loop is back")
    thread.join()
    assert order == ["attendant is done", "loop is back"]


def test_going_away_costs_less_than_a_microsecond_or_so() -> None:
    absence = Absence()

    def cost_s() -> float:
        begin = time.perf_counter()
        for _ in range(10000):
            with absence:
                pass
        return (time.perf_counter() - begin) / 10000

    assert min(cost_s() for _ in range(20)) < 2e-6
