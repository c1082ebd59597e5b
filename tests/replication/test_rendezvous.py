"""How nodes find each other, and who is let in."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from replication.protocol.effects import Stream
from replication.protocol.errors import MirrorError
from replication.protocol.packets import HEADER_80, MAGIC_80
from replication.rendezvous import UNIDENTIFIED_MAX
from tests.replication.peer_net import INITIAL_DATA, INITIAL_META, Net, everything, is_closed


@pytest.fixture
def net() -> Iterator[Net]:
    net = Net()
    yield net
    net.close()


# finding each other


def test_two_nodes_find_each_other_and_one_of_them_resolves_conflicts(net: Net) -> None:
    a, b = net.pair()
    assert sorted(a.ups + b.ups) == [False, True]
    a.link.send(Stream.DATA, [b"to b", b" on data"])
    b.link.send(Stream.META, [b"to a on meta"])
    net.until(lambda: bool(b.data and a.meta))
    assert (bytes(b.data), bytes(a.meta)) == (b"to b on data", b"to a on meta")


@pytest.mark.parametrize("first", [0, 1])
def test_a_node_that_comes_later_is_found(net: Net, first: int) -> None:
    a, b = net.node(first), net.node(1 - first)
    a.link.start()
    for _ in range(20):
        net.round()
    b.link.start()
    net.until(lambda: bool(a.ups and b.ups))


@pytest.mark.parametrize("seed", range(6))
def test_nodes_that_dial_at_the_same_time_find_each_other_all_the_same(net: Net, seed: int) -> None:
    a, b = net.node(0, seed=seed), net.node(1, seed=seed + 100)
    a.link.start()
    b.link.start()
    a.link.tick()  # both are dialing before either could see it
    b.link.tick()
    net.until(lambda: bool(a.ups and b.ups))
    assert sorted(a.ups + b.ups) == [False, True]


def test_over_ipv6_too(net: Net) -> None:
    net.hosts = ["::1", "::1"]  # there is one loopback address only: one node dials, the test answers
    node = net.node(0)
    data, _ = net.raw_pair(node)
    data.send(b"six")
    net.until(lambda: node.data == b"six")
    assert node.ups == [True]


def test_a_peer_that_only_dials_is_found(net: Net) -> None:
    node = net.node(0, connect_interval_s=60)
    net.raw_pair(node)
    assert node.ups == [True], "whoever accepts the meta stream resolves conflicts"


def test_a_peer_that_only_listens_is_found(net: Net) -> None:
    node = net.node(0)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(node.options.peer)
        listener.listen()
        listener.setblocking(False)
        node.link.start()
        said: dict[socket.socket, bytes] = {}

        def hear() -> bool:
            with suppress(BlockingIOError):
                sock, address = listener.accept()
                assert address[0] == node.options.local[0], "it dials from the address it was given"
                sock.setblocking(False)
                net.sockets.append(sock)
                said[sock] = b""
            for sock in said:
                said[sock] += everything(sock)
            return bool(node.ups)

        net.until(hear)
    assert list(said.values()) == [INITIAL_DATA, INITIAL_META]
    assert node.ups == [False]


def test_one_stream_alone_is_kept_and_the_other_is_dialed_at_once(net: Net) -> None:
    node = net.node(0, connect_interval_s=60)
    with socket.socket() as listener:
        node.link.start()
        net.round()  # its first attempt is refused
        net.round()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(node.options.peer)
        listener.listen()
        net.dial(node, INITIAL_META)
        listener.settimeout(0)
        accepted = []

        def dialed() -> bool:
            with suppress(BlockingIOError):
                accepted.append(listener.accept()[0])
                accepted[0].setblocking(False)
            return bool(accepted)

        net.until(dialed)
        net.sockets += accepted
        net.until(lambda: bool(node.ups))
        assert everything(accepted[0]) == INITIAL_DATA
        assert node.ups == [True]


def test_a_crossed_stream_replaces_the_older_one(net: Net) -> None:
    node = net.node(0, connect_interval_s=60)
    node.link.start()
    older = net.dial(node, INITIAL_DATA)
    for _ in range(3):
        net.round()  # the older one is known, and the other dialed in vain
    newer = net.dial(node, INITIAL_DATA)
    net.until(lambda: is_closed(older))
    net.dial(node, INITIAL_META)
    net.until(lambda: bool(node.ups))
    newer.send(b"I am the one")
    net.until(lambda: node.data == b"I am the one")


def test_streams_that_die_before_the_check_do_not_count(net: Net) -> None:
    node = net.node(0, ping_timeout_s=0.3)
    node.link.start()
    data = net.dial(node, INITIAL_DATA)
    net.dial(node, INITIAL_META)
    for _ in range(5):
        net.round()
    data.close()
    again = net.dial(node, INITIAL_DATA)
    net.until(lambda: bool(node.ups))
    again.send(b"alive")
    net.until(lambda: node.data == b"alive")


def test_what_is_sent_right_behind_the_first_packet_belongs_to_the_stream(net: Net) -> None:
    node = net.node(0, connect_interval_s=60)
    node.link.start()
    net.dial(node, INITIAL_DATA + b"features")
    net.dial(node, INITIAL_META)
    net.until(lambda: node.data == b"features")


# who is let in


def test_a_stranger_is_refused_counted_and_said_once(net: Net) -> None:
    node = net.node(0, connect_interval_s=60)
    node.link.start()
    strangers = [net.dial(node, INITIAL_DATA, source="127.0.0.99") for _ in range(3)]
    net.until(lambda: all(map(is_closed, strangers)))
    assert node.link.strangers == 3
    assert node.notes == ["refused a connection from 127.0.0.99, which is not the peer"]
    assert node.ups == []


GARBAGE = {
    "another protocol": b"GET / HTTP/1.1\r\n",
    "a wrong length": INITIAL_DATA[:7] + b"x",
    "another packet": HEADER_80.pack(MAGIC_80, 0xFFFE, 0),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=list(GARBAGE))
def test_garbage_is_shown_the_door_and_the_peer_still_gets_in(net: Net, garbage: bytes) -> None:
    node = net.node(0)
    node.link.start()
    sock = net.dial(node, garbage)
    net.until(lambda: is_closed(sock))
    assert node.notes == ["closed a connection that did not begin as a mirror's peer does"]
    net.raw_pair(node)


def test_who_says_nothing_is_shown_the_door_after_a_while(net: Net) -> None:
    node = net.node(0)
    node.link.start()
    silent, halfway = net.dial(node, b""), net.dial(node, INITIAL_DATA[:3])
    net.until(lambda: is_closed(silent) and is_closed(halfway))


def test_of_too_many_that_say_nothing_the_oldest_goes(net: Net) -> None:
    node = net.node(0, ping_timeout_s=60)
    node.link.start()
    crowd = []
    for _ in range(UNIDENTIFIED_MAX + 2):
        crowd.append(net.dial(node, b""))
        net.round()
    net.until(lambda: is_closed(crowd[0]) and is_closed(crowd[1]))
    assert not any(map(is_closed, crowd[2:]))


def test_an_address_that_is_not_ours_is_an_error_with_its_remedy(net: Net) -> None:
    net.hosts[0] = "192.0.2.1"
    with pytest.raises(MirrorError, match=r"link of r0: cannot listen on 192.0.2.1:\d+: .*; is the address configured"):
        net.node(0).link.start()


def test_a_port_that_is_taken_is_an_error_with_its_remedy(net: Net) -> None:
    net.node(0).link.start()
    with pytest.raises(MirrorError, match="Address already in use; see who has the port"):
        net.node(0).link.start()


@pytest.mark.parametrize(("hosts", "fact"), [(["alpha", "127.0.0.2"], "no IP address"), (["::1", "127.0.0.2"], "IPv6")])
def test_addresses_must_make_sense(net: Net, hosts: list[str], fact: str) -> None:
    net.hosts = hosts
    with pytest.raises(MirrorError, match=fact):
        net.node(0)
