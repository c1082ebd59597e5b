"""One of the two TCP streams to the peer: what came and is not consumed yet, what is to go and could not yet."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

from replication.protocol.effects import Buffer
from replication.protocol.packets import HEADER, MAGIC_100

IOV_MAX = os.sysconf("SC_IOV_MAX")
ROOM_BYTES_MIN = 128 * 1024
"""With less room than this (or half of a small buffer) behind what came, that is moved to the front first."""
DRAIN_BYTES_MAX = 4 << 20


class StreamEnded(Exception):
    """The stream is of no use any more; the text is the fact."""


class PeerStream:
    """`name` is for messages: "data stream" or "meta stream".

    What is given to `feed` are views into one buffer that is used again: whoever is fed must be done with them when
    it returns. Until `grow`, the buffer has `size_bytes`.
    """

    def __init__(self, sock: socket.socket, name: str, size_bytes: int) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.name = name
        self._buffer = memoryview(bytearray(size_bytes))
        self._start = self._end = 0
        self._outbox: deque[memoryview] = deque()
        self._feeding = self._closed = False

    # what comes

    def grow(self, size_bytes: int) -> None:
        """A larger buffer. May be called by whoever is being fed: the old one stays valid for it."""
        larger = memoryview(bytearray(size_bytes))
        pending = self._end - self._start
        larger[:pending] = self._buffer[self._start : self._end]
        self._buffer, self._start, self._end = larger, 0, pending

    def receive(self) -> None:
        """Take what the socket holds, as far as there is room. Raises StreamEnded."""
        room = len(self._buffer) - self._end
        if room < ROOM_BYTES_MIN and (room == 0 or self._start >= len(self._buffer) // 2):
            pending = self._end - self._start
            self._buffer[:pending] = self._buffer[self._start : self._end]
            self._start, self._end = 0, pending
        if self._end == len(self._buffer):
            raise StreamEnded(f"the peer sent a packet of more than {len(self._buffer)} bytes on the {self.name}")
        try:
            count = self.sock.recv_into(self._buffer[self._end :])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise StreamEnded(f"{self.name}: {error.strerror}") from error
        if count == 0:
            raise StreamEnded(f"the peer closed the {self.name}")
        self._end += count

    def feed(self, consumer: Callable[[memoryview], int]) -> None:
        """Offer what came, again and again while `consumer` takes some of it; it returns how many bytes it took."""
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._start < self._end and not self._closed:
                taken = consumer(self._buffer[self._start : self._end])
                if taken == 0:
                    return
                self._start += taken
            self._start = self._end = 0
        finally:
            self._feeding = False

    @property
    def pending_bytes(self) -> int:
        """Received and not consumed."""
        return self._end - self._start

    @property
    def room_bytes(self) -> int:
        """Behind what came; `append` takes so much."""
        return len(self._buffer) - self._end

    def append(self, packets: bytes | memoryview) -> None:
        """Behind what came, as if received now. Views that somebody is being fed stay as they are."""
        self._buffer[self._end : self._end + len(packets)] = packets
        self._end += len(packets)

    def ends_between_packets(self) -> bool:
        """True if what came and is not consumed are whole packets."""
        return whole_packets(self._buffer[self._start : self._end]) == self._end - self._start

    # what goes

    @property
    def backlog(self) -> bool:
        """Something waits for room in the socket; its buffers must not be reused yet."""
        return bool(self._outbox)

    def send(self, buffers: Sequence[Buffer]) -> bool:
        """All of them, at once as far as the socket takes them; False if some wait now. Raises StreamEnded."""
        if self._outbox or len(buffers) > IOV_MAX:
            self._outbox.extend(memoryview(buffer) for buffer in buffers if len(buffer))
            return self.send_backlog()
        try:
            sent = self.sock.sendmsg(buffers) if len(buffers) > 1 else self.sock.send(buffers[0])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            raise StreamEnded(f"{self.name}: {error.strerror}") from error
        if sent != sum(map(len, buffers)):
            self._outbox.extend(memoryview(buffer) for buffer in buffers if len(buffer))
            self._forget(sent)
        return not self._outbox

    def send_backlog(self) -> bool:
        """What waits, as far as the socket takes it; True when nothing waits any more. Raises StreamEnded."""
        while outbox := self._outbox:
            chunk = [outbox[i] for i in range(min(IOV_MAX, len(outbox)))]
            try:
                sent = self.sock.sendmsg(chunk)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                raise StreamEnded(f"{self.name}: {error.strerror}") from error
            self._forget(sent)
        return True

    def _forget(self, sent: int) -> None:
        outbox = self._outbox
        while sent:
            first = outbox[0]
            if len(first) > sent:
                outbox[0] = first[sent:]
                return
            sent -= len(first)
            outbox.popleft()

    def close(self) -> None:
        """What waits is forgotten, and nothing is fed any more. What was sent still arrives, if the peer lives."""
        self._closed = True
        self._outbox.clear()
        close_gently(self.sock)


def whole_packets(view: memoryview) -> int:
    """Bytes of the whole packets (of protocol 100 and later) at the front of `view`."""
    at = 0
    while at + HEADER.size <= len(view):
        magic, _, _, length, _ = HEADER.unpack_from(view, at)
        if magic != MAGIC_100 or at + HEADER.size + length > len(view):
            break
        at += HEADER.size + length
    return at


def close_gently(sock: socket.socket) -> None:
    """Closing a socket that holds unread bytes resets the connection, and the peer loses what we sent last.

    Therefore they are read first, as far as they are here already.
    """
    try:
        sock.setblocking(False)
        sock.shutdown(socket.SHUT_WR)
        drained = 0
        while drained < DRAIN_BYTES_MAX and (chunk := sock.recv(65536)):
            drained += len(chunk)
    except OSError:
        pass  # nothing to drain, or nobody there
    finally:
        sock.close()


def tune(sock: socket.socket, *, keepalive_s: float, send_bytes: int, receive_bytes: int) -> None:
    """Options of a TCP stream to the peer. Sizes of 0 leave the kernel's automatic ones."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(keepalive_s)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
    if send_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)


def limit_silence(sock: socket.socket, silence_s: float) -> None:
    """How long sent bytes may stay without acknowledgement, and also how long the peer may keep its receive window
    closed, before the kernel ends the connection: TCP_USER_TIMEOUT of tcp(7)."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(silence_s * 1000))
