"""Two clients of the device, wherever it is served: stamped writes, flushes, zeroes, and reads that are checked."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replication.protocol.metadata import EXTENT_BYTES
from replication.protocol.requests import (
    FLAG_FUA,
    FLAG_NO_HOLE,
    FLUSH,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Request,
)
from replication.protocol.states import Role
from tests.simulation.disk import SECTOR_BYTES
from tests.simulation.history import stamped

if TYPE_CHECKING:
    from tests.simulation.node import Node
    from tests.simulation.world import World

DEPTH = 8
"""Requests that are not answered, of both clients together."""
HOT_SPOTS = 24
"""Places the clients write to, 4 KiB aligned, scattered over all extents."""


@dataclass(slots=True)
class Asked:
    """A request on its way: what the oracle has to know of it."""

    node: int
    request: Request
    version: int
    sectors: range
    buffer: bytearray | None
    covered: dict[int, int] | None = None
    """For a FLUSH: what it covers."""


class Workload:
    def __init__(self, world: World, device_bytes: int) -> None:
        self._world = world
        self._rng = random.Random(world.rng.random())
        self._device_bytes = device_bytes
        self._asked: dict[int, Asked] = {}
        self._busy: set[int] = set()
        """Sectors of writes that are not answered: nobody writes or reads them meanwhile."""
        self.going = True
        self.writes_answered = 0
        extents = -(-device_bytes // EXTENT_BYTES)
        places = []
        for _ in range(HOT_SPOTS):
            extent = self._rng.randrange(extents)
            end = min((extent + 1) * EXTENT_BYTES, device_bytes)
            at = self._rng.choice([0, EXTENT_BYTES - 8192, self._rng.randrange(EXTENT_BYTES)])
            places.append(min(extent * EXTENT_BYTES + at, end - 32768) & ~4095)
        self._places = places

    @property
    def idle(self) -> bool:
        return not self._asked

    def asks(self, node: Node) -> bool:
        """Whether that node still owes an answer."""
        return any(asked.node == node.index for asked in self._asked.values())

    def start(self) -> None:
        self._world.after(0.01, "clients", self._step)

    def _step(self) -> None:
        pause_s = self._rng.choice([0.003, 0.01, 0.03, 0.3])
        self._world.after(pause_s * (0.5 + self._rng.random()), "clients", self._step)
        node = next((node for node in self._world.nodes if node.running and node.role is Role.PRIMARY), None)
        both = [node for node in self._world.nodes if node.running and node.role is Role.PRIMARY]
        if len(both) == 2:
            node = self._rng.choice(both)
        if node is None or not self.going or self._world.manager.demoting(node):
            return
        assert node.volume is not None
        if not node.volume.accepting or (node.end is not None and node.end.congested):
            return
        room = DEPTH - len(self._asked)
        batch = [asked for _ in range(min(room, self._rng.randrange(1, 5))) if (asked := self._next(node)) is not None]
        if not batch:
            return
        for asked in batch:
            self._asked[id(asked.request)] = asked
        volume = node.volume
        node.submit([asked.request for asked in batch])
        if node.volume is volume and volume.accepting:
            for asked in batch:
                if asked.buffer is not None:
                    asked.buffer[:] = b"\xee" * len(asked.buffer)

    def _next(self, node: Node) -> Asked | None:
        client = self._rng.randrange(2)
        cookie = self._world.next_number()
        kind = self._rng.random()
        if kind < 0.06:
            request = Request(client, FLUSH, 0, cookie, 0, 0)
            return Asked(node.index, request, 0, range(0), None, self._world.oracle.lines[node.index].to_be_flushed())
        offset, length = self._range()
        sectors = range(offset // SECTOR_BYTES, (offset + length) // SECTOR_BYTES)
        if not self._busy.isdisjoint(sectors):
            return None
        if kind < 0.2:
            return Asked(node.index, Request(client, READ, 0, cookie, offset, length), 0, sectors, None)
        self._busy.update(sectors)
        version = self._world.next_number()
        flags = FLAG_FUA if self._rng.random() < 0.06 else 0
        oracle = self._world.oracle
        if kind < 0.28:
            command = self._rng.choice([TRIM, WRITE_ZEROES])
            flags |= FLAG_NO_HOLE if command == WRITE_ZEROES and self._rng.random() < 0.5 else 0
            oracle.zeroing.add(version)
            oracle.submitted(node, version, sectors)
            return Asked(node.index, Request(client, command, flags, cookie, offset, length), version, sectors, None)
        buffer = bytearray(stamped(version, offset, length))
        oracle.submitted(node, version, sectors)
        request = Request(client, WRITE, flags, cookie, offset, length, memoryview(buffer))
        return Asked(node.index, request, version, sectors, buffer)

    def _range(self) -> tuple[int, int]:
        """Mostly one aligned block; at times odd sectors, or several blocks."""
        place = self._rng.choice(self._places)
        kind = self._rng.random()
        if kind < 0.7:
            return place + 4096 * self._rng.randrange(4), 4096
        sectors = self._rng.randrange(1, 33)
        return place + SECTOR_BYTES * self._rng.randrange(16), SECTOR_BYTES * sectors

    # answers

    def completed(self, node: Node, requests: list[Request]) -> None:
        for request in requests:
            asked = self._asked.pop(id(request), None)
            self._world.oracle.check(asked is not None, "a request is answered once", repr(request))
            assert asked is not None
            if request.command != READ:
                self._busy.difference_update(asked.sectors)
            if not request.error:
                self.writes_answered += request.command == WRITE
                self._world.oracle.answered(node, asked)

    def has_read(self, node: Node, request: Request, content: bytes) -> None:
        asked = self._asked.pop(id(request))
        self._world.oracle.has_read(node, asked.sectors, content)

    def node_died(self, node: Node) -> None:
        """Whatever was asked of it is never answered; it may have been done or not."""
        for key in [key for key, asked in self._asked.items() if asked.node == node.index]:
            self._busy.difference_update(self._asked.pop(key).sectors)
