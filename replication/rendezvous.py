"""How two nodes come to their two TCP streams: both listen, both dial, and the first packet of a stream says its name.

Whoever opens a stream sends one header with the command P_INITIAL_DATA or P_INITIAL_META; whoever accepts it sends
nothing. A node dials the stream that is missing, the data stream first, then waits about connect-int for the other
side to dial the other one. If it accepts one it dials the missing one at once, so as a rule each node opens one.

Both may open the same stream at the same time. Then each keeps the one it accepted and closes the one it opened, and so
may lose both; to break the symmetry, each tosses a coin whether to dial again now or to wait. DRBD does the same, so
two of ours, two of the kernel's, and one of each find each other.

When both streams exist they are left alone for one ping-timeout, and count if neither was closed by then.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from replication.loop import Loop
from replication.peer_stream import close_gently, tune
from replication.protocol.effects import Stream
from replication.protocol.errors import MirrorError
from replication.protocol.packets import HEADER_80, MAGIC_80

P_INITIAL_META, P_INITIAL_DATA = 0xFFF1, 0xFFF2
FIRST_PACKET = {
    Stream.DATA: HEADER_80.pack(MAGIC_80, P_INITIAL_DATA, 0),
    Stream.META: HEADER_80.pack(MAGIC_80, P_INITIAL_META, 0),
}
_NAMED_BY = {packet: stream for stream, packet in FIRST_PACKET.items()}

UNIDENTIFIED_MAX = 8
"""Accepted sockets that have not said yet which stream they are; one more, and the oldest of them is closed."""
NOTE_INTERVAL_S = 60.0
"""What is said of strangers and of garbage is said once in this time, with the count."""


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """Addresses are numeric, IPv4 or IPv6. Times in seconds. Defaults are DRBD's."""

    resource: str
    local: tuple[str, int]
    peer: tuple[str, int]
    connect_interval_s: float = 10.0
    timeout_s: float = 6.0
    ko_count: int = 7
    ping_interval_s: float = 10.0
    ping_timeout_s: float = 0.5
    send_buffer_bytes: int = 0
    """0: automatic."""
    receive_buffer_bytes: int = 0


@dataclass(slots=True)
class _Found:
    sock: socket.socket
    accepted: bool


@dataclass(slots=True)
class _Unidentified:
    sock: socket.socket
    until: float
    said: bytes = b""


class Rendezvous:
    """Looks for the peer between `begin` and `end`, or until `found(data, meta, accepted_meta)` was called."""

    def __init__(
        self,
        options: LinkOptions,
        loop: Loop,
        random: Callable[[], float],
        clock: Callable[[], float],
        found: Callable[[socket.socket, socket.socket, bool], None],
        note: Callable[[str], None],
    ) -> None:
        """`random` gives numbers in [0, 1), `clock` monotonic seconds. Raises MirrorError for bad addresses."""
        self.options = options
        self.strangers = 0
        """Connections refused because of where they came from."""
        self.garbage = 0
        """Connections whose first packet was none."""
        self._loop, self._random, self._clock, self._found, self._note = loop, random, clock, found, note
        self._family, self._local = self._address(options.local)
        peer_family, self._peer = self._address(options.peer)
        if peer_family != self._family:
            raise self._error("one address is IPv4, the other IPv6", "give both of one family")
        self._peer_host = _host(self._peer)
        self._listener: socket.socket | None = None
        self._dialing: socket.socket | None = None
        self._dialing_until = 0.0
        self._next_dial = 0.0
        self._streams: dict[Stream, _Found] = {}
        self._check_at: float | None = None
        self._unidentified: list[_Unidentified] = []
        self._noted: dict[str, float] = {}

    @property
    def running(self) -> bool:
        return self._listener is not None

    def begin(self, dial_in_s: float) -> None:
        """Listen from now on, and dial after so long. Raises MirrorError when it cannot listen."""
        assert not self.running
        listener = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(self._local)
            listener.listen(UNIDENTIFIED_MAX)
        except OSError as error:
            listener.close()
            remedy = "is the address configured on this node?" if error.errno == errno.EADDRNOTAVAIL else ""
            if error.errno == errno.EADDRINUSE:
                remedy = "see who has the port: ss -tlnp"
            raise self._error(f"cannot listen on {_text(self._local)}: {error.strerror}", remedy) from error
        self._listener = listener
        self._next_dial = self._clock() + dial_in_s
        self._loop.add(listener, self._accept)

    def end(self) -> None:
        """Close all that is not handed over. May be called at any time."""
        self._hang_up()
        for stream in list(self._streams):
            self._lose(stream)
        for newcomer in list(self._unidentified):
            self._dismiss(newcomer)
        if self._listener is not None:
            self._loop.remove(self._listener)
            self._listener.close()
            self._listener = None

    def tick(self) -> None:
        """Every 50 to 100 ms while it is running."""
        now = self._clock()
        for newcomer in [it for it in self._unidentified if it.until <= now]:
            self._count_garbage(newcomer)
        if self._dialing is not None and self._dialing_until <= now:
            self._hang_up()
            self._next_dial = now
        if self._check_at is not None:
            if self._check_at <= now:
                self._check()
        else:
            self._drop_dead()
            if self._dialing is None and self._next_dial <= now:
                self._dial()

    # dialing

    def _dial(self) -> None:
        now = self._clock()
        self._next_dial = now + self.interval_s()
        sock = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._tune(sock)  # before it connects: buffer sizes decide the window scale
            sock.bind((self._local[0], 0, *self._local[2:]))
            outcome = sock.connect_ex(self._peer)
        except OSError as error:
            sock.close()
            self._say("dial", f"cannot dial from {_host(self._local)}: {error.strerror}")
            return
        if outcome not in (0, errno.EINPROGRESS):
            sock.close()
            self._say("dial", f"cannot dial {_text(self._peer)}: {os.strerror(outcome)}")
            return
        self._dialing, self._dialing_until = sock, self._next_dial
        self._loop.add(sock, self._dialed, self._dialed)
        self._loop.want_read(sock, False)
        self._loop.want_write(sock, True)

    def _dialed(self) -> None:
        sock = self._dialing
        if sock is None or (outcome := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) == errno.EINPROGRESS:
            return
        self._loop.remove(sock)
        self._dialing = None
        missing = self._missing()
        if outcome or not missing:
            # refused is how a node looks that is not up yet; the other stream may have come in while we dialed
            sock.close()
            return
        try:
            sock.send(FIRST_PACKET[missing[0]])
        except OSError:
            sock.close()
            return
        self._next_dial = self._clock() + self.interval_s()
        self._take(missing[0], _Found(sock, accepted=False))

    def _hang_up(self) -> None:
        if self._dialing is not None:
            self._loop.remove(self._dialing)
            self._dialing.close()
            self._dialing = None

    # answering

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, address = self._listener.accept()
        except OSError:
            return  # it gave up before we looked, or we are out of descriptors: the listener stays
        if _host(address) != self._peer_host:
            sock.close()
            self.strangers += 1
            self._say("strangers", f"refused a connection from {_host(address)}, which is not the peer", self.strangers)
            return
        if len(self._unidentified) >= UNIDENTIFIED_MAX:
            self._dismiss(self._unidentified[0])
        sock.setblocking(False)
        newcomer = _Unidentified(sock, self._clock() + 4 * self.options.ping_timeout_s)
        self._unidentified.append(newcomer)
        self._loop.add(sock, lambda: self._identify(newcomer))

    def _identify(self, newcomer: _Unidentified) -> None:
        try:
            # not a byte more than the first packet: the rest is the stream's
            said = newcomer.sock.recv(HEADER_80.size - len(newcomer.said))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            said = b""
        if not said and not newcomer.said:
            self._dismiss(newcomer)  # found the other stream before it said anything; nothing to complain about
            return
        newcomer.said += said
        if said and len(newcomer.said) < HEADER_80.size:
            return
        stream = _NAMED_BY.get(newcomer.said)
        if stream is None:
            self._count_garbage(newcomer)
            return
        self._loop.remove(newcomer.sock)
        self._unidentified.remove(newcomer)
        self._tune(newcomer.sock)
        self._drop_dead()
        crossed = stream in self._streams
        if crossed:
            self._lose(stream)
        waits = crossed and self._random() < 0.5
        self._next_dial = self._clock() + (self.interval_s() if waits else 0.0)
        self._take(stream, _Found(newcomer.sock, accepted=True))
        if not waits and self._missing() and self._dialing is None:
            self._dial()

    def _count_garbage(self, newcomer: _Unidentified) -> None:
        self._dismiss(newcomer)
        self.garbage += 1
        self._say("garbage", "closed a connection that did not begin as a mirror's peer does", self.garbage)

    def _dismiss(self, newcomer: _Unidentified) -> None:
        self._loop.remove(newcomer.sock)
        self._unidentified.remove(newcomer)
        newcomer.sock.close()

    # what there is

    def _missing(self) -> list[Stream]:
        return [stream for stream in Stream if stream not in self._streams]

    def _take(self, stream: Stream, found: _Found) -> None:
        self._streams[stream] = found
        self._check_at = None if self._missing() else self._clock() + self.options.ping_timeout_s

    def _lose(self, stream: Stream) -> None:
        close_gently(self._streams.pop(stream).sock)
        self._check_at = None

    def _drop_dead(self) -> None:
        for stream in [stream for stream, found in self._streams.items() if not _is_open(found.sock)]:
            self._lose(stream)

    def _check(self) -> None:
        self._drop_dead()
        if self._missing():
            self._next_dial = self._clock()
            return
        data, meta = self._streams[Stream.DATA], self._streams[Stream.META]
        self._streams.clear()
        self._check_at = None
        self.end()
        self._found(data.sock, meta.sock, meta.accepted)

    def interval_s(self) -> float:
        """connect-int, up to a seventh more or less: two nodes that began together do not go on together."""
        return self.options.connect_interval_s * (1 + (2 * self._random() - 1) / 7)

    # small things

    def _tune(self, sock: socket.socket) -> None:
        tune(
            sock,
            keepalive_s=self.options.ping_interval_s,
            send_bytes=self.options.send_buffer_bytes,
            receive_bytes=self.options.receive_buffer_bytes,
        )

    def _say(self, kind: str, text: str, count: int = 0) -> None:
        now = self._clock()
        if now - self._noted.get(kind, -NOTE_INTERVAL_S) >= NOTE_INTERVAL_S:
            self._noted[kind] = now
            self._note(text + (f" ({count} so far)" if count > 1 else ""))

    def _address(
        self, address: tuple[str, int]
    ) -> tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]:
        host, port = address
        try:
            family, _, _, _, resolved = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            )[0]
        except OSError as error:
            raise self._error(f"{host} is no IP address", "addresses are numeric, as in DRBD's files") from error
        return family, resolved  # type: ignore[return-value]

    def _error(self, fact: str, remedy: str) -> MirrorError:
        return MirrorError(f"link of {self.options.resource}", fact, remedy)


def _host(address: tuple[object, ...]) -> str:
    """The address alone, without port and scope, in the form that can be compared."""
    return str(ipaddress.ip_address(str(address[0]).partition("%")[0]))


def _text(address: tuple[object, ...]) -> str:
    host = _host(address)
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


def _is_open(sock: socket.socket) -> bool:
    """As far as one can know without sending: the peer has not closed or reset it."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except (BlockingIOError, InterruptedError):
        return True
    except OSError:
        return False
