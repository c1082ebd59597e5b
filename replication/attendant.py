"""Whoever stays awake while the loop waits for the disk.

The loop carries out disk calls itself, and a disk may take seconds, or for ever. The peer, however, gives up a node
that leaves its pings unanswered for half a second. So the loop says when it is away (`Absence`), and a thread
(`Attendant`) answers pings meanwhile, and only meanwhile: what the loop owns is touched by one of the two at any time.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

from replication.peer_stream import PeerStream, StreamEnded
from replication.protocol.packets import HEADER, MAGIC_100, P_PING, P_PING_ACK

PATIENCE_S = 0.05
"""A loop that is away for less is not attended. With the period of looking it makes a ping wait 0.1 s at most."""
PEEK_BYTES = 64 * 1024

_PING = HEADER.pack(MAGIC_100, 0, P_PING, 0, 0)
_PING_ACK = HEADER.pack(MAGIC_100, 0, P_PING_ACK, 0, 0)


class Absence:
    """The loop's word that it is away: `with absence:` around each call that may block. Not to be nested.

    Made by the loop's thread, which holds the guard from then on and lends it out only while it is away. In and out
    costs less than half a microsecond while nobody else wants the guard.
    """

    __slots__ = ("_guard", "since")

    def __init__(self) -> None:
        self.since: float | None = None
        """Monotonic time at which the loop went away; None while it is here."""
        self._guard = threading.Lock()
        self._guard.acquire()

    def __enter__(self) -> None:
        self.since = time.monotonic()
        self._guard.release()

    def __exit__(self, *_: object) -> None:
        self._guard.acquire()
        self.since = None

    def use(self, longer_than_s: float, action: Callable[[float], None]) -> bool:
        """From another thread: call `action` with the seconds the loop has been away; it stays away so long.

        False, and nothing is called, if the loop is here or went away less than `longer_than_s` ago. `action` must not
        block: the loop may be waiting.
        """
        since = self.since
        if since is None or time.monotonic() - since <= longer_than_s or not self._guard.acquire(blocking=False):
            return False
        try:
            # read again: it may have come and gone since
            since = self.since
            if since is None or (away_s := time.monotonic() - since) <= longer_than_s:
                return False
            action(away_s)
            return True
        finally:
            self._guard.release()


class Attendant:
    """A thread that calls `attend(seconds away)` every 50 ms for as long as the loop stays away."""

    def __init__(self, absence: Absence, attend: Callable[[float], None], patience_s: float = PATIENCE_S) -> None:
        self._absence = absence
        self._attend = attend
        self._patience_s = patience_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="attendant", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._patience_s):
            self._absence.use(self._patience_s, self._attend)


def answer_pings(meta: PeerStream) -> bool:
    """Take the pings out of what the meta stream's socket holds, and answer them. For use while the loop is away.

    Other packets before a ping go, in order, where the loop will find them: into the stream's buffer. True if the loop
    must be told, once it is back, to look at the stream although its poll sees nothing there.

    A ping may overtake what is unread: it asks whether we live. Nothing is done while the stream stands in the middle
    of a packet in either direction.
    """
    if meta.backlog or not meta.ends_between_packets():
        return False
    try:
        seen = memoryview(meta.sock.recv(min(PEEK_BYTES, meta.room_bytes), socket.MSG_PEEK | socket.MSG_DONTWAIT))
        others, end, pings = _up_to_last_ping(seen)
        if not pings:
            return False
        meta.send([_PING_ACK] * pings)
        meta.sock.recv(end, socket.MSG_DONTWAIT)
    except (OSError, StreamEnded):
        return False  # nothing there; or a dead stream, as the loop will see itself
    meta.append(others)
    return bool(others) or meta.backlog


def _up_to_last_ping(seen: memoryview) -> tuple[bytes, int, int]:
    """What is no ping before the last ping; where that ends; how many pings."""
    others, kept, end, pings, at = bytearray(), 0, 0, 0, 0
    while at + HEADER.size <= len(seen):
        magic, _, _, length, _ = HEADER.unpack_from(seen, at)
        if magic != MAGIC_100:
            break
        after = at + HEADER.size + length
        if seen[at:after] == _PING:
            others += seen[kept:at]
            kept = end = after
            pings += 1
        at = after
    return bytes(others), end, pings
