"""The device as its clients see it: an NBD server on a unix socket, which exists only while this node is Primary.

One receive, one pass of the parser, one `submit` and one send serve everything a client has asked for meanwhile. The
payload of a WRITE is never copied here: it is a view into the client's receive buffer, which is filled again only after
`submit` returned and while the front end is not paused.

Clients are bounded in number, in requests under way, and in bytes they have asked for and not fetched; a client over a
bound is not read from until it is below again.
"""

from __future__ import annotations

import mmap
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from replication.errors import MirrorError
from replication.loop import Loop
from replication.protocol.effects import Buffer
from replication.protocol.nbd import (
    GREETING,
    PAYLOAD_BYTES_MAX,
    REPLY_BYTES,
    REQUEST_BYTES,
    ClientError,
    Export,
    Handshake,
    Parser,
    Phase,
    pack_replies,
)
from replication.protocol.requests import ESHUTDOWN, FLUSH, READ, WRITE, Request

CLIENTS_MAX = 8
REQUESTS_MAX = 1024
"""Requests of one client under way; the kernel's client has at most 128."""
UNSENT_BYTES_MAX = 8 << 20
"""Bytes one client has asked for and not fetched; one more READ is taken below it."""

_BUFFER_BYTES = PAYLOAD_BYTES_MAX + (64 << 10)
_CHEAP_MOVE_BYTES = 8 << 10
"""So few bytes are always moved to the front of the buffer: the part in use then stays in the processor's cache."""
_SEND_BUFFERS_MAX = 1024
"""Linux's IOV_MAX."""
_TRANSMISSION = Phase.TRANSMISSION  # looked up once: a member of an enum costs ten times what a global does


@dataclass(frozen=True, slots=True)
class Opener:
    """A process that holds the device open. `name` is its command, as far as it could be read."""

    pid: int
    uid: int
    name: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.name})"


@dataclass(slots=True)
class Counters:
    """Requests that succeeded, and their bytes, since the daemon started. TRIM and WRITE_ZEROES count as zeroing."""

    read_requests: int = 0
    read_bytes: int = 0
    write_requests: int = 0
    write_bytes: int = 0
    zero_requests: int = 0
    zero_bytes: int = 0
    flush_requests: int = 0

    def count(self, requests: Iterable[Request]) -> None:
        for request in requests:
            command = request.command
            if request.error:
                continue
            if command == WRITE:
                self.write_requests += 1
                self.write_bytes += request.length
            elif command == READ:
                self.read_requests += 1
                self.read_bytes += request.length
            elif command == FLUSH:
                self.flush_requests += 1
            else:
                self.zero_requests += 1
                self.zero_bytes += request.length


class _Client:
    """One connection: what came and is not parsed, what is under way, what is not sent."""

    def __init__(self, sock: socket.socket, export: Export) -> None:
        self.sock = sock
        self.opener = _opener(sock)
        self.handshake = Handshake(export)
        self.parser = Parser(self, export)
        self.is_open = True
        self.is_leaving = False
        """It is closed after its last reply."""
        self.is_lent = False
        """Whoever paused us may still need what stands in the buffer."""
        self.is_read = True
        """Whether the loop watches it for reading."""
        # of these pages only those exist that were ever written to
        self.buffer = memoryview(mmap.mmap(-1, _BUFFER_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self.start = self.end = 0
        self.under_way: set[Request] = set()
        self.read_bytes_under_way = 0
        self.unsent: deque[Buffer] = deque()
        self.unsent_bytes = 0
        self.heads = memoryview(bytearray(REQUESTS_MAX * REPLY_BYTES))

    @property
    def transmits(self) -> bool:
        return self.handshake.phase is _TRANSMISSION

    @property
    def is_served(self) -> bool:
        return self.is_open and not self.is_leaving and self.handshake.phase is _TRANSMISSION

    @property
    def waiting(self) -> memoryview:
        """What came and is not yet handed over."""
        return self.buffer[self.start : self.end]

    @property
    def has_request(self) -> bool:
        """At least the head of one."""
        return self.transmits and self.end - self.start >= REQUEST_BYTES

    @property
    def request_room(self) -> int:
        return REQUESTS_MAX - max(len(self.under_way), len(self.unsent))

    @property
    def byte_room(self) -> int:
        return UNSENT_BYTES_MAX - self.unsent_bytes - self.read_bytes_under_way

    @property
    def is_over_bound(self) -> bool:
        return (
            len(self.under_way) >= REQUESTS_MAX
            or len(self.unsent) >= REQUESTS_MAX
            or self.unsent_bytes + self.read_bytes_under_way >= UNSENT_BYTES_MAX
        )

    def receive(self) -> bool:
        """Take what the socket has, as far as the buffer has room. False: the client is gone. Raises OSError."""
        waiting = self.end - self.start
        if not waiting:
            self.start = self.end = 0
        elif self.start and (waiting <= _CHEAP_MOVE_BYTES or self.start + self.parser.needed_bytes > _BUFFER_BYTES):
            self.buffer[:waiting] = self.waiting
            self.start, self.end = 0, waiting
        if self.end == _BUFFER_BYTES:  # whole requests, held back until now
            return True
        try:
            count = self.sock.recv_into(self.buffer[self.end :])
        except BlockingIOError:
            return True
        self.end += count
        return count > 0

    def send(self, buffers: list[Buffer]) -> None:
        """Send now what goes, keep the rest. Raises OSError."""
        if not self.unsent:
            sent = self._transmit(buffers[:_SEND_BUFFERS_MAX])
            if sent == len(buffers[0]) and len(buffers) == 1:
                return
            buffers = _without(buffers, sent)
        heads = self.heads.obj
        for buffer in buffers:
            # the heads are overwritten by the next replies; data of a READ is ours to keep
            kept = bytes(buffer) if isinstance(buffer, memoryview) and buffer.obj is heads else buffer
            self.unsent.append(kept)
            self.unsent_bytes += len(kept)

    def send_rest(self) -> None:
        """Raises OSError."""
        while self.unsent:
            chosen = [self.unsent.popleft() for _ in range(min(len(self.unsent), _SEND_BUFFERS_MAX))]
            sent = self._transmit(chosen)
            self.unsent_bytes -= sent
            rest = _without(chosen, sent)
            self.unsent.extendleft(reversed(rest))
            if rest:
                break

    def _transmit(self, buffers: list[Buffer]) -> int:
        try:
            return self.sock.send(buffers[0]) if len(buffers) == 1 else self.sock.sendmsg(buffers)
        except BlockingIOError:
            return 0


class Frontend:
    """Serves `export` on the unix socket `path`. `submit` gets every batch of valid requests, in order of arrival.

    The payload in `Request.data` is used up when `submit` returns, unless it called `pause`: then it stays until
    `resume`. `note` is told, once each, of clients that were turned away or closed for what they said.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        export: Export,
        submit: Callable[[list[Request]], None],
        note: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.counters = Counters()
        self._loop = loop
        self._path = path
        self._export = export
        self._submit = submit
        self._note = note
        self._listener: socket.socket | None = None
        self._clients: list[_Client] = []
        self._is_paused = False
        self._is_resuming = False
        self._is_stopping = False

    @property
    def is_paused(self) -> bool:
        """False once `resume` has been called, too."""
        return self._is_paused and not self._is_resuming

    @property
    def openers(self) -> list[Opener]:
        """Who holds the device open: clients past their handshake."""
        return [client.opener for client in self._clients if client.transmits]

    def start(self) -> None:
        """Listen; only the socket's owner may connect. Raises MirrorError."""
        assert self._listener is None, f"{self._path} is served already"
        self._is_paused = self._is_resuming = self._is_stopping = False
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            if self._path.is_socket():  # a daemon that died left it; a living one holds the resource's lock
                self._path.unlink()
            listener.bind(str(self._path))
            self._path.chmod(0o600)  # in time: before listen() nobody can connect
            listener.listen(CLIENTS_MAX)
        except OSError as error:
            listener.close()
            raise MirrorError(
                f"NBD socket {self._path}", f"cannot listen: {error}", "its directory must exist and be writable"
            ) from error
        self._listener = listener
        self._loop.add(listener, self._accept)

    def begin_stop(self) -> None:
        """From now on nobody new gets the device, and new requests are answered ESHUTDOWN; those under way end."""
        self._set_stopping(True)

    def cancel_stop(self) -> None:
        self._set_stopping(False)

    def close(self, error: int = ESHUTDOWN) -> None:
        """Answer what is under way with `error`, as far as the clients take it at once, and close everything.

        A later `complete` of those requests does nothing. Closing what is closed does nothing.
        """
        for client in self._clients[:]:
            pending = list(client.under_way)
            for request in pending:
                request.error = error
            self._answer(client, pending)
            if client.is_open:
                self._drop(client)
        if self._listener is not None:
            self._loop.remove(self._listener)
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)

    def pause(self) -> None:
        """Hand nothing more over. Called inside `submit`, it also keeps what was just handed over as it is."""
        self._is_paused, self._is_resuming = True, False

    def resume(self) -> None:
        """Go on, soon: `submit` is not called from in here."""
        if self._is_paused and not self._is_resuming:
            self._is_resuming = True
            self._loop.call_soon(self._go_on)

    def complete(self, requests: list[Request]) -> None:
        """Answer them, each with its error. `data` of a successful READ is what was read; it is kept until it is sent,
        so nobody may change it. Requests of clients that are gone are forgotten. Never calls `submit`.
        """
        for client, its_requests in _by_client(requests):
            assert isinstance(client, _Client)
            if not client.is_open:
                continue
            was_over_bound = client.is_over_bound
            before = len(client.under_way)
            client.under_way.difference_update(its_requests)
            assert before - len(client.under_way) == len(its_requests), f"answered twice, among {its_requests}"
            if client.read_bytes_under_way:
                client.read_bytes_under_way -= sum(r.length for r in its_requests if r.command == READ)
            self._answer(client, its_requests)
            self.counters.count(its_requests)
            if was_over_bound or client.is_leaving:
                self._settle(client, was_over_bound)

    # one client

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:  # it gave up before we came
            return
        if len(self._clients) >= CLIENTS_MAX:
            self._note(f"{self._path}: {_opener(sock)} is turned away: {CLIENTS_MAX} clients at most")
            sock.close()
            return
        sock.setblocking(False)
        client = _Client(sock, self._export)
        client.handshake.stopping = client.parser.stopping = self._is_stopping
        self._clients.append(client)
        self._loop.add(
            sock,
            partial(self._on_readable, client),
            partial(self._on_writable, client),
            partial(self._drop, client),
        )
        self._send(client, [GREETING])

    def _on_readable(self, client: _Client) -> None:
        if self._is_held_back(client):
            self._want_read(client, False)
            return
        try:
            is_there = client.receive()
        except OSError:
            is_there = False
        if is_there:
            self._hand_over(client)
        else:
            self._drop(client)

    def _is_held_back(self, client: _Client) -> bool:
        """Whether it is not read from now. While paused, a client may still say that it leaves."""
        if self._is_paused and (client.is_lent or client.has_request):
            return True
        return client.is_over_bound or client.is_leaving

    def _on_writable(self, client: _Client) -> None:
        was_over_bound = client.is_over_bound
        try:
            client.send_rest()
        except OSError:
            self._drop(client)
            return
        if not client.unsent:
            self._loop.want_write(client.sock, False)
        self._settle(client, was_over_bound)

    def _settle(self, client: _Client, was_over_bound: bool) -> None:
        """After something left the client: it may be done, or may say more."""
        if not client.is_open:
            return
        if client.is_leaving:
            if not client.under_way and not client.unsent:
                self._drop(client)
        elif was_over_bound and not client.is_over_bound:
            self._loop.call_soon(partial(self._continue, client))

    def _continue(self, client: _Client) -> None:
        if client.is_open and not client.is_leaving:
            self._want_read(client, True)
            self._hand_over(client)

    def _go_on(self) -> None:
        """All clients, not the next that happens to be readable, since the first of them may well pause us again; and
        each time another one first, since else the others would starve.
        """
        if not self._is_resuming:
            return
        self._is_paused = self._is_resuming = False
        self._clients.extend(self._clients[:1])
        del self._clients[:1]
        clients = self._clients[:]
        for client in clients:
            client.is_lent = False
        for client in clients:
            self._continue(client)

    def _hand_over(self, client: _Client) -> None:
        """All complete requests in the buffer go to the volume, as far as pauses and bounds allow."""
        try:
            if not client.transmits:
                self._negotiate(client)
            while client.start < client.end and client.is_served and not self._is_paused:
                if client.is_over_bound:
                    break
                batch = client.parser.parse(client.waiting, client.request_room, client.byte_room)
                if not batch.consumed:
                    break
                client.start += batch.consumed
                if batch.requests:
                    client.under_way.update(batch.requests)
                    client.read_bytes_under_way += batch.read_bytes
                    self._submit(batch.requests)
                    client.is_lent = self._is_paused
                if not client.is_open:
                    return
                if batch.answered:
                    self._answer(client, batch.answered)
                if client.parser.disconnecting:
                    self._let_go(client)
            if self._is_paused and client.is_served and client.parser.sees_disconnect(client.waiting):
                self._let_go(client)
        except ClientError as error:
            self._note(f"{self._path}: {client.opener} is closed: {error.fact}")
            self._drop(client)

    def _negotiate(self, client: _Client) -> None:
        consumed, answer = client.handshake.receive(client.waiting)
        client.start += consumed
        if answer:
            self._send(client, [answer])
        if client.handshake.phase is Phase.ENDED:
            self._let_go(client)

    def _let_go(self, client: _Client) -> None:
        if client.is_open:
            client.is_leaving = True
            self._want_read(client, False)
            self._settle(client, was_over_bound=False)

    def _answer(self, client: _Client, requests: list[Request]) -> None:
        if requests:
            self._send(client, pack_replies(requests, client.heads))

    def _send(self, client: _Client, buffers: list[Buffer]) -> None:
        try:
            client.send(buffers)
        except OSError:
            self._drop(client)
            return
        if client.unsent:
            self._loop.want_write(client.sock, True)

    def _want_read(self, client: _Client, wanted: bool) -> None:
        if client.is_read is not wanted:
            client.is_read = wanted
            self._loop.want_read(client.sock, wanted)

    def _drop(self, client: _Client) -> None:
        """Close it. What it has under way goes on without it; nobody hears the replies."""
        client.is_open = False
        self._clients.remove(client)
        self._loop.remove(client.sock)
        client.sock.close()
        client.under_way.clear()
        client.unsent.clear()
        client.buffer = memoryview(b"")  # requests under way still hold theirs

    def _set_stopping(self, stopping: bool) -> None:
        self._is_stopping = stopping
        for client in self._clients:
            client.handshake.stopping = client.parser.stopping = stopping


def _by_client(requests: list[Request]) -> Iterable[tuple[object, list[Request]]]:
    first = requests[0].client if requests else None
    if len(requests) == 1 or all(request.client is first for request in requests):
        return ((first, requests),) if requests else ()
    groups: dict[object, list[Request]] = {}
    for request in requests:
        groups.setdefault(request.client, []).append(request)
    return groups.items()


def _without(buffers: list[Buffer], sent_bytes: int) -> list[Buffer]:
    """What is left of them when so many bytes are gone."""
    for index, buffer in enumerate(buffers):
        if sent_bytes < len(buffer):
            return [memoryview(buffer)[sent_bytes:], *buffers[index + 1 :]]
        sent_bytes -= len(buffer)
    return []


def _opener(sock: socket.socket) -> Opener:
    pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        name = "?"
    return Opener(pid, uid, name)
