"""The transfer log: what was sent and is not yet known to be stable on the peer, cut into epochs by barriers.

A write leaves `in_flight` when the peer has written it; it leaves the log when its epoch's barrier ack says that it is
stable there. Until then its extents stay hot in the activity log, and when the link dies its blocks are out of sync.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from replication.protocol.errors import PeerError
from replication.protocol.requests import Request


class Epoch:
    """Writes between two barriers, of all clients together."""

    __slots__ = ("closed_at", "count", "extents", "number", "ranges", "waiters")

    def __init__(self, number: int) -> None:
        self.number = number
        self.count = 0
        """Packets the peer has to count."""
        self.extents: set[int] = set()
        self.ranges: list[tuple[int, int]] = []
        """(offset, length) in bytes of each write."""
        self.waiters: list[Request] = []
        """Flushes and FUA writes answered when this epoch and all before it are stable on the peer."""
        self.closed_at = 0.0


class TransferLog:
    """Epochs of one connection, oldest first; `current` takes writes, `closed` wait for their barrier acks."""

    def __init__(self, first_number: int = 1) -> None:
        self.current = Epoch(first_number)
        self.closed: deque[Epoch] = deque()
        self.in_flight: dict[int, tuple[Request, int, int, float]] = {}
        """block_id -> request, offset, length, when it was sent."""
        self.last_write = 0.0

    def close(self, now: float) -> Epoch | None:
        """End the current epoch; returns it when it needs a barrier, None when it is empty."""
        if self.current.count == 0:
            return None
        ended = self.current
        ended.closed_at = now
        self.closed.append(ended)
        self.current = Epoch((ended.number + 1) & 0xFFFFFFFF)
        return ended

    def acknowledged(self, number: int, set_size: int) -> Epoch:
        """The epoch that a barrier ack releases. Raises PeerError when it is not the oldest, or counts otherwise."""
        if not self.closed or self.closed[0].number != number:
            expected = self.closed[0].number if self.closed else "none"
            raise PeerError(f"acknowledged barrier {number}, expected {expected}")
        epoch = self.closed[0]
        if epoch.count != set_size:
            raise PeerError(f"counted {set_size} writes in epoch {number}, we sent {epoch.count}")
        return self.closed.popleft()

    def epochs(self) -> Iterator[Epoch]:
        """All that are not known to be stable on the peer."""
        yield from self.closed
        if self.current.count or self.current.waiters:
            yield self.current

    def held_extents(self) -> set[int]:
        """Extents that must stay hot."""
        return set().union(*(epoch.extents for epoch in self.epochs()))

    @property
    def is_empty(self) -> bool:
        return not self.in_flight and not self.closed and not self.current.count

    def oldest(self) -> float | None:
        """When the oldest thing was sent that the peer has not answered: a write, or a barrier."""
        times = [epoch.closed_at for epoch in list(self.closed)[:1]]
        if self.in_flight:
            times.append(next(iter(self.in_flight.values()))[3])
        return min(times, default=None)
