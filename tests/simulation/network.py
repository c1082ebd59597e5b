"""Two byte streams in each direction between two nodes: ordered, delayed, delivered in pieces, cut, reset.

A cut loses nothing at once, as with TCP: what is on its way waits, and arrives when the cut heals before either end
gave up. An end that gave up meanwhile is noticed by the other only when a piece gets through again.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from replication.protocol.effects import Buffer, Stream

PIECE_CHANCE = 0.2
"""How often what was sent at once arrives in several pieces."""
CONGESTED_BYTES = 512 * 1024
"""A sender with more than this on its way is told to wait."""


class Clock(Protocol):
    now: float

    def after(self, delay_s: float, label: str, action: Callable[[], None]) -> None: ...


@dataclass(slots=True)
class Pipe:
    """One stream in one direction."""

    sender: int
    stream: Stream
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    """(when it arrives, piece), in order."""
    waiting_bytes: int = 0
    last_due: float = 0.0
    armed: bool = False
    """A delivery is scheduled."""


class End:
    """One node's end of a session. `inbox` is what has arrived and was not read."""

    def __init__(self, session: Session, node: int) -> None:
        self.session = session
        self.node = node
        self.inbox: dict[Stream, bytearray] = {stream: bytearray() for stream in Stream}
        self.lost = ""
        """Why no more will come: the fact the owner is told of."""
        self.closed = False
        """The owner has closed it."""
        self.wake: Callable[[], None] = lambda: None
        """Called when something arrived, or was lost."""

    def send(self, stream: Stream, buffers: list[Buffer]) -> None:
        if not self.closed and not self.lost:
            self.session.put(self.node, stream, b"".join(buffers))

    def drop(self) -> None:
        """Close both streams; what was sent still arrives, unless something else happens to it."""
        if not self.closed:
            self.closed = True
            self.session.end_closed(self.node)

    @property
    def congested(self) -> bool:
        return self.session.pipes[self.node, Stream.DATA].waiting_bytes > CONGESTED_BYTES

    def lose(self, fact: str) -> None:
        if not self.closed and not self.lost:
            self.lost = fact
            self.wake()


class Session:
    def __init__(self, network: Network, number: int) -> None:
        self.number = number
        self._network = network
        self.ends = (End(self, 0), End(self, 1))
        self.pipes = {(node, stream): Pipe(node, stream) for node in (0, 1) for stream in Stream}

    @property
    def over(self) -> bool:
        return all(end.closed or end.lost for end in self.ends)

    def put(self, sender: int, stream: Stream, data: bytes) -> None:
        pipe = self.pipes[sender, stream]
        for piece in self._network.pieces(data):
            pipe.last_due = max(pipe.last_due, self._network.arrival())
            pipe.waiting.append((pipe.last_due, piece))
            pipe.waiting_bytes += len(piece)
        self.arm(pipe)

    def arm(self, pipe: Pipe) -> None:
        if pipe.waiting and not pipe.armed and not self._network.cut[pipe.sender]:
            pipe.armed = True
            clock = self._network.clock
            delay_s = max(pipe.waiting[0][0] - clock.now, 0.0)
            clock.after(delay_s, "deliver", lambda: self._deliver(pipe))

    def end_closed(self, node: int) -> None:
        """The other end reads what was sent before, then learns it; pieces towards the closed end find a reset."""
        self._network.clock.after(self._network.delay(), "closed", lambda: self._tell_closed(node))

    def reset(self) -> None:
        """Both ends are told, and what was on its way is gone."""
        for pipe in self.pipes.values():
            pipe.waiting.clear()
            pipe.waiting_bytes = 0
        for end in self.ends:
            end.lose("connection reset")

    def vanish(self, node: int) -> None:
        """The node has no power: it sends nothing any more, not even a reset, until it is asked again."""
        end = self.ends[node]
        end.closed = True
        for stream in Stream:
            pipe = self.pipes[node, stream]
            pipe.waiting.clear()
            pipe.waiting_bytes = 0

    def _deliver(self, pipe: Pipe) -> None:
        pipe.armed = False
        if self._network.cut[pipe.sender]:
            return
        receiver = self.ends[1 - pipe.sender]
        arrived = False
        while pipe.waiting and pipe.waiting[0][0] <= self._network.clock.now:
            _, piece = pipe.waiting.popleft()
            pipe.waiting_bytes -= len(piece)
            if receiver.closed:
                if self._network.answers(1 - pipe.sender):
                    self.ends[pipe.sender].lose("connection reset by peer")
            elif not receiver.lost:
                receiver.inbox[pipe.stream] += piece
                arrived = True
        self.arm(pipe)
        if arrived:
            receiver.wake()

    def _tell_closed(self, node: int) -> None:
        if any(self.pipes[node, stream].waiting for stream in Stream) or self._network.cut[node]:
            if not self.ends[1 - node].closed and not self.ends[1 - node].lost:
                self._network.clock.after(self._network.delay() + 0.01, "closed", lambda: self._tell_closed(node))
            return
        self.ends[1 - node].lose("closed by the peer")


class Network:
    """`cut[n]` holds what node n sends."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self.clock = clock
        self.cut = [False, False]
        self.latency_s = 0.0005
        self.session: Session | None = None
        self.answers: Callable[[int], bool] = lambda node: True
        """Whether the machine of that node has power, to answer a piece for a closed stream with a reset."""
        self._rng = rng
        self._sessions = 0

    def connect(self) -> Session | None:
        """A new session, when pieces pass both ways and both ends of the former one are done with it."""
        if any(self.cut) or (self.session is not None and not self.session.over):
            return None
        self._sessions += 1
        self.session = Session(self, self._sessions)
        return self.session

    def set_cut(self, sender: int, *, cut: bool) -> None:
        self.cut[sender] = cut
        if not cut and self.session is not None:
            for stream in Stream:
                self.session.arm(self.session.pipes[sender, stream])

    def reset(self) -> None:
        if self.session is not None:
            self.session.reset()

    def vanish(self, node: int) -> None:
        if self.session is not None:
            self.session.vanish(node)

    # What chance decides

    def delay(self) -> float:
        rare = self._rng.random()
        return self.latency_s * (1 + (20 if rare < 0.02 else 1) * self._rng.random())

    def arrival(self) -> float:
        return self.clock.now + self.delay()

    def pieces(self, data: bytes) -> list[bytes]:
        if len(data) < 2 or self._rng.random() > PIECE_CHANCE:
            return [data] if data else []
        marks = sorted(self._rng.randrange(1, len(data)) for _ in range(self._rng.randrange(1, 3)))
        cuts = [0, *marks, len(data)]
        return [data[start:end] for start, end in itertools.pairwise(cuts) if end > start]
