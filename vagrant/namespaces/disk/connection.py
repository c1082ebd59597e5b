"""One NBD client of the disk: its buffers, and the requests that a fault holds back.

Memory is bounded by not reading.
"""

import errno
import socket
import time
from collections import deque
from typing import NamedTuple, Protocol

from vagrant.namespaces.disk import nbd

RECEIVE_BYTES = 2 << 20
"""Usual size of a receive buffer; it grows to one request of the largest size, and shrinks again."""
UNSENT_BYTES_MAX = 8 << 20
HELD_BYTES_MAX = 16 << 20
HELD_COUNT_MAX = 256
PIECES_PER_SEND = 64


class Disk(Protocol):
    """What a connection asks of the disk that it belongs to."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def hung(self) -> bool:
        """Whether requests have to wait without an end in sight."""

    @property
    def latency_s(self) -> float:
        """How long a request that arrives now has to wait before it is carried out."""

    def carry_out(self, request: nbd.Request) -> tuple[int, bytes]:
        """Error number (0: none) and what was read."""


class _Held(NamedTuple):
    due_s: float
    request: nbd.Request


class Connection:
    """Feed it by `readable` and `writable`; look at `wants_to_read`, `wants_to_write` and `finished` after each."""

    def __init__(self, peer: socket.socket, disk: Disk) -> None:
        self.peer = peer
        self.finished = False
        self._disk = disk
        self._handshake: nbd.Handshake | None = nbd.Handshake(disk.size_bytes)
        self._received = bytearray(RECEIVE_BYTES)
        self._start = self._end = 0
        self._needed = nbd.REQUEST.size
        self._held: deque[_Held] = deque()
        self._held_bytes = 0
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._leaving = False
        self._send(self._handshake.greeting())

    @property
    def held_count(self) -> int:
        return len(self._held)

    def wants_to_read(self) -> bool:
        return not self._leaving and self._has_room()

    def wants_to_write(self) -> bool:
        return bool(self._unsent)

    def next_due_s(self) -> float | None:
        """When the first request that a fault holds back is due, on the monotonic clock; None if that is not known."""
        return self._held[0].due_s if self._held and not self._disk.hung and self._unsent_has_room() else None

    def readable(self) -> None:
        """Take what has arrived. Raises nbd.PeerError, OSError; the connection is over then."""
        self._make_space()
        with memoryview(self._received) as buffer, buffer[self._end :] as free:
            try:
                count = self.peer.recv_into(free)
            except BlockingIOError:
                return
        if count == 0:
            self.finished = True
            return
        self._end += count
        self.advance()

    def writable(self) -> None:
        """Send what is waiting, then take up requests that waited for room."""
        self._drain()
        self.advance()

    def advance(self) -> None:
        """Carry out all that may be carried out now, and send the answers as far as the peer takes them."""
        while not self.finished:
            if self._handshake is not None:
                self._negotiate(self._handshake)
            before = self._start, len(self._held)
            self._carry_out_held()
            if self._handshake is None:
                self._take_requests()
            self._drain()
            if (self._start, len(self._held)) == before or self._unsent:
                break
        if self._leaving and not self._held and not self._unsent:
            self.finished = True

    def release(self) -> None:
        """The fault that held requests back is over: all of them are due. Call `advance` when the disk runs."""
        self._held = deque(held._replace(due_s=0.0) for held in self._held)

    def _negotiate(self, handshake: nbd.Handshake) -> None:
        data = bytes(self._received[self._start : self._end])
        self._start = self._end = 0
        self._send(handshake.receive(data))
        if handshake.stage is nbd.Stage.NEGOTIATING:
            return
        self._handshake = None
        if handshake.stage is nbd.Stage.CLOSED:
            self._leaving = True
            return
        self._end = len(handshake.rest)
        self._received = bytearray(max(RECEIVE_BYTES, self._end))
        self._received[: self._end] = handshake.rest

    def _take_requests(self) -> None:
        with memoryview(self._received) as buffer:
            while not self._leaving and self._has_room():
                with buffer[self._start : self._end] as received:
                    request = nbd.next_request(received)
                    if isinstance(request, int):
                        self._needed = request
                        return
                    self._start += nbd.REQUEST.size + len(request.payload)
                    if request.command == nbd.Command.DISCONNECT:
                        self._leaving = True
                    else:
                        self._take(request)

    def _take(self, request: nbd.Request) -> None:
        if not self._held and not self._disk.hung and not self._disk.latency_s:
            self._answer(request)
            return
        due_s = time.monotonic() + self._disk.latency_s
        self._held.append(_Held(due_s, request._replace(payload=memoryview(bytes(request.payload)))))
        self._held_bytes += len(request.payload)

    def _carry_out_held(self) -> None:
        while self._held and self._unsent_has_room() and not self._disk.hung:
            due_s, request = self._held[0]
            if due_s > time.monotonic():
                break
            self._held.popleft()
            self._held_bytes -= len(request.payload)
            self._answer(request)

    def _answer(self, request: nbd.Request) -> None:
        error, data = self._disk.carry_out(request)
        self._send(nbd.reply(request.cookie, error))
        if data:
            self._send(data)

    def _has_room(self) -> bool:
        return self._unsent_has_room() and self._held_bytes < HELD_BYTES_MAX and len(self._held) < HELD_COUNT_MAX

    def _unsent_has_room(self) -> bool:
        return self._unsent_bytes < UNSENT_BYTES_MAX

    def _make_space(self) -> None:
        pending = self._end - self._start
        wanted = max(RECEIVE_BYTES, self._needed)
        if not pending:
            self._start = self._end = 0
        if len(self._received) < wanted or (not pending and len(self._received) > wanted):
            grown = bytearray(wanted)
            grown[:pending] = self._received[self._start : self._end]
            self._received, self._start, self._end = grown, 0, pending
        elif self._start + max(self._needed, pending + 1) > len(self._received):
            self._received[:pending] = self._received[self._start : self._end]
            self._start, self._end = 0, pending

    def _send(self, data: bytes) -> None:
        if data:
            self._unsent.append(memoryview(data))
            self._unsent_bytes += len(data)

    def _drain(self) -> None:
        while self._unsent:
            pieces = [self._unsent[index] for index in range(min(PIECES_PER_SEND, len(self._unsent)))]
            try:
                sent = self.peer.sendmsg(pieces)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EPIPE, errno.ECONNRESET):
                    self.finished = True
                    return
                raise
            self._unsent_bytes -= sent
            for piece in pieces:
                if sent < len(piece):
                    self._unsent[0] = piece[sent:]
                    break
                sent -= len(piece)
                self._unsent.popleft()
