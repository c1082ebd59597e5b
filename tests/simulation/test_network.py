"""The simulated network: ordered streams, cuts that wait, resets that do not."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from replication.protocol.effects import Stream
from tests.simulation.network import Network, Session


class SteppedClock:
    """Runs what is due, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def after(self, delay_s: float, label: str, action: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._number, action))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = end


def connected(seed: int = 0) -> tuple[SteppedClock, Network, Session]:
    clock = SteppedClock()
    network = Network(clock, random.Random(seed))
    session = network.connect()
    assert session is not None
    return clock, network, session


def test_bytes_arrive_in_order_however_they_were_cut_into_pieces() -> None:
    for seed in range(20):
        clock, _, session = connected(seed)
        sent = b""
        for number in range(50):
            part = bytes([number]) * 10
            session.ends[0].send(Stream.DATA, [part[:3], part[3:]])
            sent += part
        clock.run(1.0)
        assert bytes(session.ends[1].inbox[Stream.DATA]) == sent


def test_a_short_cut_delays_and_loses_nothing() -> None:
    clock, network, session = connected()
    network.set_cut(0, cut=True)
    session.ends[0].send(Stream.DATA, [b"late"])
    clock.run(1.0)
    assert not session.ends[1].inbox[Stream.DATA]
    network.set_cut(0, cut=False)
    clock.run(1.0)
    assert bytes(session.ends[1].inbox[Stream.DATA]) == b"late"


def test_a_cut_one_way_lets_the_other_way_pass() -> None:
    clock, network, session = connected()
    network.set_cut(0, cut=True)
    session.ends[1].send(Stream.META, [b"heard"])
    clock.run(1.0)
    assert bytes(session.ends[0].inbox[Stream.META]) == b"heard"


def test_nobody_connects_across_a_cut() -> None:
    _, network, session = connected()
    session.reset()
    network.set_cut(1, cut=True)
    assert network.connect() is None


def test_a_reset_is_told_to_both_ends_and_takes_what_was_on_its_way() -> None:
    clock, network, session = connected()
    session.ends[0].send(Stream.DATA, [b"lost"])
    network.reset()
    clock.run(1.0)
    assert [end.lost for end in session.ends] == ["connection reset", "connection reset"]
    assert not session.ends[1].inbox[Stream.DATA]


def test_what_was_sent_before_an_orderly_end_arrives_before_the_end() -> None:
    clock, _, session = connected()
    session.ends[0].send(Stream.DATA, [b"last words"])
    session.ends[0].drop()
    clock.run(1.0)
    assert bytes(session.ends[1].inbox[Stream.DATA]) == b"last words"
    assert session.ends[1].lost


def test_an_end_that_lost_its_power_is_noticed_by_nobody_who_does_not_ask() -> None:
    clock, network, session = connected()
    network.answers = lambda node: False
    network.vanish(0)
    session.ends[1].send(Stream.META, [b"ping"])
    clock.run(5.0)
    assert not session.ends[1].lost


def test_a_machine_with_power_answers_for_a_connection_it_does_not_know() -> None:
    clock, network, session = connected()
    network.vanish(0)
    session.ends[1].send(Stream.META, [b"ping"])
    clock.run(5.0)
    assert session.ends[1].lost == "connection reset by peer"
