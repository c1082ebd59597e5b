"""The event loop, on real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from replication.loop import Loop

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    near.setblocking(False)
    with near, far:
        yield near, far


def test_a_socket_is_told_when_it_can_be_read_and_only_while_it_wants_to(loop: Loop, pair: Pair) -> None:
    near, far = pair
    calls: list[str] = []
    loop.add(near, lambda: calls.append("read"))
    loop.run_once(0)
    far.send(b"x")
    loop.run_once(0)
    loop.want_read(near, False)
    loop.run_once(0)
    loop.want_read(near, True)
    loop.run_once(0)
    assert calls == ["read", "read"]


def test_writing_is_heard_of_only_on_demand(loop: Loop, pair: Pair) -> None:
    near, _ = pair
    calls: list[str] = []
    loop.add(near, lambda: None, lambda: calls.append("write"))
    loop.run_once(0)
    assert calls == []
    loop.want_write(near, True)
    loop.run_once(0)
    assert calls == ["write"]


def test_who_is_removed_by_another_callback_of_the_same_round_is_not_called(loop: Loop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    calls: list[int] = []

    def hear(index: int) -> None:
        calls.append(index)
        loop.remove(pairs[1 - index][0])

    for index, (near, far) in enumerate(pairs):
        loop.add(near, partial(hear, index))
        far.send(b"x")
    loop.run_once(0)
    assert len(calls) == 1
    for sockets in pairs:
        for each in sockets:
            each.close()


def test_a_hang_up_is_heard_even_by_who_wants_nothing(loop: Loop, pair: Pair) -> None:
    near, far = pair
    calls: list[str] = []

    def gone() -> None:
        calls.append("gone")
        loop.remove(near)

    loop.add(near, lambda: calls.append("read"), on_hangup=gone)
    loop.want_read(near, False)
    far.close()
    loop.run_once(0)
    loop.run_once(0)
    assert calls == ["gone"]


def test_a_hang_up_that_nobody_wants_to_hear_of_does_not_wake_the_loop(loop: Loop, pair: Pair) -> None:
    near, far = pair
    calls: list[str] = []
    loop.add(near, lambda: calls.append("read"))
    loop.want_read(near, False)
    far.close()
    loop.run_once(0)
    assert calls == []
    loop.want_read(near, True)
    loop.run_once(0)
    assert calls == ["read"]


def test_what_is_to_be_done_soon_is_done_once_and_not_at_once(loop: Loop) -> None:
    calls: list[str] = []

    def first() -> None:
        calls.append("first")
        loop.call_soon(lambda: calls.append("second"))

    loop.call_soon(first)
    assert calls == []
    loop.run_once(-1)
    assert calls == ["first"]
    loop.run_once(-1)
    assert calls == ["first", "second"]


def test_another_thread_wakes_the_loop(loop: Loop) -> None:
    calls: list[int] = []
    other = threading.Thread(target=loop.call_soon_threadsafe, args=(lambda: calls.append(threading.get_ident()),))
    other.start()
    loop.run_once(10)
    other.join()
    assert calls == [threading.get_ident()]


def test_it_sleeps_when_nothing_happens_after_all(loop: Loop, pair: Pair) -> None:
    """It looks again for a moment after something happened; longer would burn the processor."""
    near, far = pair

    def take() -> None:
        near.recv(1)

    loop.add(near, take)
    far.send(b"x")
    loop.run_once(0)
    before = time.thread_time()
    loop.run_once(0.2)
    assert time.thread_time() - before < 0.1


def test_it_hears_of_what_happens_while_it_looks_for_a_moment(loop: Loop, pair: Pair) -> None:
    near, far = pair
    calls: list[bytes] = []
    loop.add(near, lambda: calls.append(near.recv(1)))
    for _ in range(200):
        far.send(b"x")
        loop.run_once(1.0)
    assert len(calls) == 200
