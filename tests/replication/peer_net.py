"""Nodes in one process that find each other over real sockets on 127.0.0.x, and peers that misbehave."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from replication.loop import Loop
from replication.peer_connection import PeerConnection
from replication.protocol.packets import HEADER_80, MAGIC_80
from replication.rendezvous import LinkOptions

DEADLINE_S = 15
INITIAL_DATA, INITIAL_META = (HEADER_80.pack(MAGIC_80, command, 0) for command in (0xFFF2, 0xFFF1))


class Node:
    """One PeerConnection, and all it reports."""

    def __init__(self, loop: Loop, options: LinkOptions, seed: int = 1) -> None:
        self.ups: list[bool] = []
        self.downs: list[str] = []
        self.data = bytearray()
        self.meta = bytearray()
        self.backlogs: list[bool] = []
        self.notes: list[str] = []
        self.take: Callable[[memoryview], int] = self._take_all
        self.options = options
        self.link = PeerConnection(
            options,
            loop,
            random.Random(seed).random,
            on_up=self.ups.append,
            on_down=self.downs.append,
            on_data=lambda view: self.take(view),
            on_meta=self._take_meta,
            on_backlog=self.backlogs.append,
            on_note=self.notes.append,
        )

    def _take_all(self, view: memoryview) -> int:
        self.data += view
        return len(view)

    def _take_meta(self, view: memoryview) -> int:
        self.meta += view
        return len(view)


class Net:
    """Nodes that share one loop, each with an address that no other test uses."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.nodes: list[Node] = []
        self.sockets: list[socket.socket] = []
        number = os.getpid() % 250
        self.hosts = [f"127.0.{number + 1}.{last}" for last in (1, 2)]
        self.ports = free_ports()

    def node(
        self, which: int, *, connect_interval_s: float = 0.3, ping_timeout_s: float = 0.05, seed: int | None = None
    ) -> Node:
        ends = list(zip(self.hosts, self.ports, strict=True))
        options = LinkOptions(
            "r0",
            ends[which],
            ends[1 - which],
            connect_interval_s=connect_interval_s,
            ping_timeout_s=ping_timeout_s,
        )
        node = Node(self.loop, options, which if seed is None else seed)
        self.nodes.append(node)
        return node

    def pair(self) -> tuple[Node, Node]:
        """Two that are up."""
        a, b = self.node(0), self.node(1)
        a.link.start()
        b.link.start()
        self.until(lambda: bool(a.ups and b.ups))
        return a, b

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, [(node.ups, node.downs, node.notes) for node in self.nodes]
            self.round()

    def round(self) -> None:
        self.loop.run_once(0.01)
        for node in self.nodes:
            node.link.tick()

    def dial(self, node: Node, first: bytes, source: str | None = None) -> socket.socket:
        """As the peer of `node`, or from elsewhere."""
        sock = socket.create_connection(
            node.options.local, timeout=DEADLINE_S, source_address=(source or node.options.peer[0], 0)
        )
        self.sockets.append(sock)
        sock.sendall(first)
        sock.setblocking(False)
        return sock

    def raw_pair(self, node: Node) -> tuple[socket.socket, socket.socket]:
        """Both streams to a node that is up, and was found by us."""
        node.link.start()
        data, meta = self.dial(node, INITIAL_DATA), self.dial(node, INITIAL_META)
        self.until(lambda: bool(node.ups))
        return data, meta

    def close(self) -> None:
        for node in self.nodes:
            node.link.stop()
        for sock in self.sockets:
            sock.close()
        self.loop.close()


def free_ports() -> list[int]:
    """Two that nobody listens on, below those that the kernel gives to whoever dials."""
    found: list[int] = []
    while len(found) < 2:
        port = random.randrange(10000, 32000)
        with suppress(OSError), socket.create_server(("", port)):
            found.append(port)
    return found


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def everything(sock: socket.socket) -> bytes:
    received = bytearray()
    with suppress(BlockingIOError, ConnectionError):
        while chunk := sock.recv(1 << 20):
            received += chunk
    return bytes(received)
