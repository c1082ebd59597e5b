"""A link that is up: what comes, what goes, and how it ends."""

from __future__ import annotations

import errno
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from replication.peer_connection import DATA_BYTES, STRANGER_BYTES
from replication.protocol.effects import Stream
from replication.protocol.packets import HEADER, MAGIC_100, P_PING, P_PING_ACK
from tests.replication.peer_net import DEADLINE_S, INITIAL_DATA, INITIAL_META, Net, everything, is_closed

PING, PING_ACK = (HEADER.pack(MAGIC_100, 0, command, 0, 0) for command in (P_PING, P_PING_ACK))


@pytest.fixture
def net() -> Iterator[Net]:
    net = Net()
    yield net
    net.close()


# losing each other


@pytest.mark.parametrize("which", [0, 1])
def test_when_the_peer_closes_one_stream_both_end_and_it_is_said_once(net: Net, which: int) -> None:
    node = net.node(0, connect_interval_s=60)
    streams = net.raw_pair(node)
    streams[which].close()
    net.until(lambda: bool(node.downs))
    assert node.downs == [f"the peer closed the {('data', 'meta')[which]} stream"]
    net.until(lambda: is_closed(streams[1 - which]))
    for _ in range(5):
        net.round()
    assert len(node.downs) == 1


def test_a_reset_is_reported_later_and_once_even_while_sending(net: Net) -> None:
    node = net.node(0, connect_interval_s=60)
    data, _ = net.raw_pair(node)
    data.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    data.close()  # with a reset
    for _ in range(10):
        node.link.send(Stream.DATA, [b"anybody?"])
    assert node.downs == [], "not from inside send"
    net.until(lambda: bool(node.downs))
    assert node.downs == [f"data stream: {os.strerror(errno.ECONNRESET)}"]


def test_after_a_loss_the_peer_is_let_in_at_once(net: Net) -> None:
    node = net.node(0, connect_interval_s=3600)
    data, _ = net.raw_pair(node)
    data.close()
    net.until(lambda: bool(node.downs))
    net.round()
    net.dial(node, INITIAL_DATA)
    net.dial(node, INITIAL_META)
    net.until(lambda: len(node.ups) == 2)


def test_a_port_that_was_taken_meanwhile_is_said_once_and_tried_again(net: Net) -> None:
    node = net.node(0)
    data, _ = net.raw_pair(node)
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(node.options.local)
        thief.listen()
        data.close()
        net.until(lambda: bool(node.notes))
        for _ in range(5):
            net.round()
    assert len(node.notes) == 1
    assert "Address already in use" in node.notes[0]
    net.round()
    net.dial(node, INITIAL_DATA)
    net.dial(node, INITIAL_META)
    net.until(lambda: len(node.ups) == 2)


def test_two_nodes_that_lost_each_other_meet_again(net: Net) -> None:
    a, b = net.pair()
    a.link.drop("timeout")
    net.until(lambda: len(a.ups) == 2 and len(b.ups) == 2)
    assert (a.downs, len(b.downs)) == ([], 1)


def test_whoever_drops_the_link_is_not_told_and_its_last_words_arrive(net: Net) -> None:
    a, b = net.pair()
    b.link.send(Stream.DATA, [b"unread" * 1000])
    a.link.send(Stream.DATA, [b"good"])
    a.link.send(Stream.DATA, [b"bye"])
    a.link.drop("disconnect requested")
    net.until(lambda: bool(b.downs))
    assert a.downs == []
    assert b.data == b"goodbye"


def test_a_link_dropped_after_it_broke_is_not_reported_any_more(net: Net) -> None:
    node = net.node(0, connect_interval_s=60)
    data, _ = net.raw_pair(node)
    data.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    data.close()
    for _ in range(3):
        node.link.send(Stream.DATA, [b"anybody?"])
    node.link.drop("no")
    for _ in range(5):
        net.round()
    assert node.downs == []


def test_a_stopped_link_neither_listens_nor_dials(net: Net) -> None:
    a, b = net.pair()
    a.link.stop()
    net.until(lambda: bool(b.downs))
    for _ in range(60):
        net.round()
    assert (len(a.ups), len(b.ups), a.downs) == (1, 1, [])
    with pytest.raises(ConnectionRefusedError):
        net.dial(a, b"")
    a.link.start()
    net.until(lambda: len(a.ups) == 2 and len(b.ups) == 2)


def test_sending_without_a_link_does_nothing(net: Net) -> None:
    node = net.node(0)
    node.link.send(Stream.DATA, [b"hello?"])
    node.link.drop("again")
    assert node.downs == []


def test_a_consumer_may_drop_the_link_that_feeds_it(net: Net) -> None:
    node = net.node(0, connect_interval_s=60)
    calls = []

    def take(view: memoryview) -> int:
        calls.append(len(view))
        node.link.drop("nonsense")
        return 1

    node.take = take
    data, _ = net.raw_pair(node)
    data.send(b"nonsense")
    net.until(lambda: bool(calls) and is_closed(data))
    assert calls == [8]
    assert node.downs == []


# what comes


def test_what_is_not_consumed_is_offered_again_with_more(net: Net) -> None:
    node = net.node(0, connect_interval_s=60)
    packets: list[bytes] = []

    def take(view: memoryview) -> int:  # packets of five bytes
        if len(view) < 5:
            return 0
        packets.append(bytes(view[:5]))
        return 5

    node.take = take
    data, _ = net.raw_pair(node)
    message = bytes(range(250))
    for at in range(0, 250, 7):
        data.send(message[at : at + 7])
        net.round()
    net.until(lambda: len(packets) == 50)
    assert b"".join(packets) == message


def test_nobody_unauthenticated_makes_us_hold_much(net: Net) -> None:
    node = net.node(0, connect_interval_s=60)
    node.take = lambda view: 0
    data, _ = net.raw_pair(node)
    data.send(bytes(STRANGER_BYTES + 1))
    net.until(lambda: bool(node.downs))
    assert node.downs == [f"the peer sent a packet of more than {STRANGER_BYTES} bytes on the data stream"]


def test_once_authenticated_large_packets_fit_and_nothing_is_lost_on_the_way(net: Net) -> None:
    node = net.node(0, connect_interval_s=60)
    content = random.Random(1).randbytes(3 * DATA_BYTES + 12345)
    size = 1 << 20
    got = bytearray()

    def take(view: memoryview) -> int:
        if not got:
            node.link.authenticated()
        want = min(size, len(content) - len(got)) if got else 100
        if len(view) < want:
            return 0
        got.extend(view[:want])
        return want

    node.take = take
    data, _ = net.raw_pair(node)
    sent = 0

    def done() -> bool:
        nonlocal sent
        with suppress(BlockingIOError):
            sent += data.send(memoryview(content)[sent : sent + 700000])
        return len(got) == len(content)

    net.until(done)
    assert got == content


def test_a_paused_stream_holds_its_tongue_and_goes_on_where_it_was(net: Net) -> None:
    node = net.node(0, connect_interval_s=60)

    def take(view: memoryview) -> int:  # a barrier after the first two bytes
        node.data += view[:2]
        if len(node.data) == 2:
            node.link.pause_data()
        return 2

    node.take = take
    data, meta = net.raw_pair(node)
    data.send(b"aabb")
    net.until(lambda: node.data == b"aa")
    data.send(b"cc")
    meta.send(b"still here")
    net.until(lambda: node.meta == b"still here")
    assert node.data == b"aa"
    node.link.resume_data()
    assert node.data == b"aabb"
    net.until(lambda: node.data == b"aabbcc")


def test_a_peer_that_resets_while_we_are_paused_is_noticed(net: Net) -> None:
    node = net.node(0, connect_interval_s=60)
    data, _ = net.raw_pair(node)
    node.link.pause_data()
    data.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    data.close()
    net.until(lambda: bool(node.downs))
    assert node.downs == ["the peer reset the data stream"]


# what goes


def test_buffers_that_the_socket_does_not_take_wait_and_it_is_said(net: Net) -> None:
    node = net.node(0, connect_interval_s=60)
    data, _ = net.raw_pair(node)
    content = random.Random(2).randbytes(48 << 20)
    view = memoryview(content)
    for at in range(0, len(content), 1 << 20):
        node.link.send(Stream.DATA, [view[at : at + (1 << 19)], view[at + (1 << 19) : at + (1 << 20)]])
    assert node.backlogs == [True]
    assert node.link.backlog
    node.link.send(Stream.META, [b"meta is not behind it"])
    received = bytearray()

    def drained() -> bool:
        received.extend(everything(data))
        return len(received) == len(content)

    net.until(drained)
    net.until(lambda: node.backlogs == [True, False])
    assert received == content


def test_thousands_of_small_buffers_go_in_order(net: Net) -> None:
    node = net.node(0, connect_interval_s=60)
    data, _ = net.raw_pair(node)
    node.link.send(Stream.DATA, [number.to_bytes(4, "big") for number in range(5000)])
    received = bytearray()

    def all_there() -> bool:
        received.extend(everything(data))
        return len(received) == 20000

    net.until(all_there)
    assert received == b"".join(number.to_bytes(4, "big") for number in range(5000))


@pytest.mark.parametrize("end", ["drop", "loss"])
def test_buffers_that_wait_are_free_when_the_link_ends(net: Net, end: str) -> None:
    node = net.node(0, connect_interval_s=60)
    data, _ = net.raw_pair(node)
    node.link.send(Stream.DATA, [bytes(32 << 20)])
    assert node.backlogs == [True]
    if end == "drop":
        node.link.drop("enough")
        assert node.backlogs == [True], "not from inside drop"
    else:
        data.close()
    net.until(lambda: node.backlogs == [True, False])
    assert not node.link.backlog


# while the loop is away


def test_pings_are_answered_while_the_loop_does_not_run(net: Net) -> None:
    node = net.node(0, connect_interval_s=60)
    _, meta = net.raw_pair(node)
    meta.send(PING_ACK + PING)
    deadline = time.monotonic() + DEADLINE_S
    answer = b""
    while not answer and time.monotonic() < deadline:
        node.link.answer_pings_meanwhile()
        answer = everything(meta)
    assert answer == PING_ACK
    net.until(lambda: node.meta == PING_ACK)
