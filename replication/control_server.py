"""The daemon's end of the control socket: a thread of its own, so that `status` answers while a disk hangs.

The thread never waits for a client, and for the main loop only by deadline. `status` is called in it. Every other verb
becomes a Ticket that the main loop takes up when it can. No client can delay another: one request of each is handled a
round, an answer not taken stops further ones, and all buffers and times have limits.
"""

from __future__ import annotations

import collections
import contextlib
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from replication.control import (
    BACKLOG_LIMIT_BYTES,
    CLIENT_LIMIT,
    IDLE_LIMIT_S,
    REQUEST_LIMIT_BYTES,
    Request,
    Status,
    Verb,
    address_of,
    encode_reply,
    make_private,
)
from replication.errors import MirrorError, Unavailable

Result = dict[str, Any] | MirrorError


class Ticket:
    """One verb on its way through the main loop.

    The main loop calls `begin` before it acts, and the ticket itself with the result, then or later, from any thread.
    Whether an operator who has given up finds the thing done afterwards is thereby decided once: by `begin`.
    """

    def __init__(self, deliver: Callable[[Ticket, Result], None]) -> None:
        self._deliver = deliver
        self._lock = threading.Lock()
        self._begun = False
        self._withdrawn = False
        self._answered = False

    def begin(self) -> bool:
        """False: the caller has left or its deadline is over; do nothing."""
        with self._lock:
            self._begun = not self._withdrawn
            return self._begun

    def withdraw(self) -> bool:
        """False: too late, it has begun."""
        with self._lock:
            self._withdrawn = not self._begun
            return self._withdrawn

    def __call__(self, result: Result) -> None:
        """The first result counts."""
        with self._lock:
            if self._answered:
                return
            self._answered = True
        self._deliver(self, result)


class _Client:
    def __init__(self, connection: socket.socket, now: float) -> None:
        self.connection = connection
        self.inbound = bytearray()
        self.outbound = bytearray()
        self.progress_at = now
        """When it last sent us something, took something, or was given something to take."""
        self.ticket: Ticket | None = None
        self.verb = ""
        self.timeout_s = 0.0
        self.deadline = 0.0
        self.listens = False
        self.leaving = False
        """Gets what is in `outbound`, then the connection is closed."""

    def deadline_at(self) -> float | None:
        if self.ticket:
            return self.deadline
        return None if self.listens and not self.outbound else self.progress_at + IDLE_LIMIT_S

    def has_request(self) -> bool:
        free = not (self.ticket or self.outbound or self.listens or self.leaving)
        return free and (b"\n" in self.inbound or len(self.inbound) > REQUEST_LIMIT_BYTES)


class ControlServer:
    """Serves one resource's socket from `start` to `close`.

    `status` gives a snapshot and must not wait for the main loop. `post` hands a verb to the main loop: called in our
    thread, it stores its three arguments, wakes the main loop and returns; it may raise MirrorError to refuse at once.
    While somebody listens to events, `status` is looked at every `tick_s`, so that progress is seen without `publish`.
    """

    def __init__(
        self,
        path: Path,
        status: Callable[[], Status],
        post: Callable[[str, dict[str, Any], Ticket], None],
        *,
        tick_s: float = 1.0,
    ) -> None:
        self._path = path
        self._status = status
        self._post = post
        self._tick_s = tick_s
        self._tick_at = 0.0
        self._last_status: Status | None = None
        self._clients: dict[socket.socket, _Client] = {}
        self._inbox: collections.deque[tuple[Ticket, Result] | dict[str, Any]] = collections.deque()
        """What other threads have for us; appending is atomic."""
        self._awake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waking = threading.Lock()
        self._ending = False
        self._failure: BaseException | None = None
        self._listener = self._listen()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._awake, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    # called by the main loop ------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def publish(self, event: dict[str, Any]) -> None:
        """Tell listeners: {"status": …} after a change (once `status` itself would say so), or {"helper": …}."""
        self._inbox.append(event)
        self._wake()

    def check(self) -> None:
        """Raises what ended the thread, if something did: a bug of ours, and the main loop is to end by it too."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Answers given before are still sent as far as the clients take them at once. The socket is removed."""
        with self._waking:
            self._ending = True
            os.eventfd_write(self._awake, 1)
        if self._thread.ident is not None:
            self._thread.join()
        for client in list(self._clients.values()):
            self._drop(client)
        self._selector.close()
        self._listener.close()
        self._path.unlink(missing_ok=True)
        os.close(self._awake)

    # the thread -------------------------------------------------------------------------------------------------------

    def _listen(self) -> socket.socket:
        make_private(self._path.parent)
        self._path.unlink(missing_ok=True)  # of a daemon that died: whoever serves a resource holds its lock
        listener = socket.socket(socket.AF_UNIX)
        try:
            with address_of(self._path) as address:
                listener.bind(address)
            self._path.chmod(0o600)
            listener.listen(CLIENT_LIMIT)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        return listener

    def _run(self) -> None:
        try:
            while not self._ending:
                self._round()
            self._take_inbox()
        except BaseException as failure:
            self._failure = failure
            raise

    def _round(self) -> None:
        for key, events in self._selector.select(self._patience_s(time.monotonic())):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj == self._awake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._awake)
            elif isinstance(key.data, _Client):
                if events & selectors.EVENT_READ:
                    self._receive(key.data)
                if events & selectors.EVENT_WRITE and key.data.connection in self._clients:
                    self._send(key.data)
        self._take_inbox()
        for client in list(self._clients.values()):
            if client.has_request():
                self._handle(client)
        self._keep_time(time.monotonic())

    def _patience_s(self, now: float) -> float | None:
        if any(client.has_request() for client in self._clients.values()):
            return 0.0
        times = [at for client in self._clients.values() if (at := client.deadline_at()) is not None]
        if any(client.listens for client in self._clients.values()):
            times.append(self._tick_at)
        return max(min(times) - now, 0.0) if times else None

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # no file descriptor left; the queue stays readable, do not spin on it
            time.sleep(0.01)
            return
        connection.setblocking(False)
        if len(self._clients) >= CLIENT_LIMIT and not self._make_room():
            connection.close()
            return
        client = self._clients[connection] = _Client(connection, time.monotonic())
        self._selector.register(connection, selectors.EVENT_READ, client)
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            self._dismiss(client, Unavailable("control socket", f"user {uid} may not ask", "ask as root"))

    def _make_room(self) -> bool:
        """Drop the client that has been idle longest, if one is."""
        idle = [client for client in self._clients.values() if not client.ticket and not client.listens]
        if idle:
            self._drop(min(idle, key=lambda client: client.progress_at))
        return bool(idle)

    def _receive(self, client: _Client) -> None:
        try:
            data = client.connection.recv(REQUEST_LIMIT_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        client.progress_at = time.monotonic()
        client.inbound += data
        self._watch(client)

    def _send(self, client: _Client) -> None:
        try:
            sent = client.connection.send(client.outbound) if client.outbound else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(client)
            return
        if sent:
            del client.outbound[:sent]
            client.progress_at = time.monotonic()
        if client.leaving and not client.outbound:
            self._drop(client)
        else:
            self._watch(client)

    def _watch(self, client: _Client) -> None:
        """Read only while there is room; write only while there is something."""
        room = not client.leaving and len(client.inbound) <= REQUEST_LIMIT_BYTES
        events = selectors.EVENT_READ * room | selectors.EVENT_WRITE * bool(client.outbound)
        registered = client.connection in self._selector.get_map()
        if not events:
            if registered:
                self._selector.unregister(client.connection)
        elif registered:
            self._selector.modify(client.connection, events, client)
        else:
            self._selector.register(client.connection, events, client)

    def _say(self, client: _Client, data: bytes) -> None:
        if not client.outbound:
            client.progress_at = time.monotonic()
        client.outbound += data
        if client.listens and len(client.outbound) > BACKLOG_LIMIT_BYTES:
            self._drop(client)
        else:
            self._send(client)

    def _dismiss(self, client: _Client, error: MirrorError) -> None:
        client.leaving = True
        client.inbound.clear()
        self._say(client, encode_reply(error))

    def _drop(self, client: _Client) -> None:
        if client.ticket:
            client.ticket.withdraw()
        if client.connection in self._selector.get_map():
            self._selector.unregister(client.connection)
        del self._clients[client.connection]
        client.connection.close()

    def _handle(self, client: _Client) -> None:
        end = client.inbound.find(b"\n")
        if not 0 <= end < REQUEST_LIMIT_BYTES:
            fact = f"a request of more than {REQUEST_LIMIT_BYTES} bytes"
            self._dismiss(client, Unavailable("control socket", fact, "send one line of JSON for each request"))
            return
        line = bytes(client.inbound[:end])
        del client.inbound[: end + 1]
        self._watch(client)
        try:
            request = Request.decode(line)
            if request.verb is Verb.STATUS:
                self._say(client, encode_reply(self._status()))
            elif request.verb is Verb.EVENTS:
                client.listens = True
                self._say(client, _event({"status": self._status()}))
            else:
                client.ticket = Ticket(self._deliver)
                client.verb, client.timeout_s = request.verb.value, request.timeout_s
                client.deadline = time.monotonic() + request.timeout_s
                self._post(client.verb, request.arguments, client.ticket)
        except MirrorError as error:
            client.ticket = None
            self._say(client, encode_reply(error))

    def _deliver(self, ticket: Ticket, result: Result) -> None:
        self._inbox.append((ticket, result))
        self._wake()

    def _wake(self) -> None:
        with self._waking:  # a late ticket must not write into a descriptor that means something else by now
            if not self._ending:
                os.eventfd_write(self._awake, 1)

    def _take_inbox(self) -> None:
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, dict):
                self._tell(item)
                continue
            ticket, result = item
            for client in list(self._clients.values()):
                if client.ticket is ticket:
                    client.ticket = None
                    self._say(client, encode_reply(result))

    def _tell(self, event: dict[str, Any]) -> None:
        self._last_status = event.get("status", self._last_status)
        line = _event(event)
        for client in list(self._clients.values()):
            if client.listens:
                self._say(client, line)

    def _keep_time(self, now: float) -> None:
        for client in list(self._clients.values()):
            at = client.deadline_at()
            if at is None or now < at:
                continue
            if client.ticket:
                error = self._too_late(client, client.ticket.withdraw())
                client.ticket = None
                self._say(client, encode_reply(error))
            else:
                self._drop(client)
        if now >= self._tick_at and any(client.listens for client in self._clients.values()):
            self._tick_at = now + self._tick_s
            status = self._status()
            if status != self._last_status:
                self._tell({"status": status})

    def _too_late(self, client: _Client, withdrawn: bool) -> Unavailable:
        status = self._status()
        fact = f"{client.verb} not done within {client.timeout_s:.1f} s, and "
        fact += "withdrawn" if withdrawn else "not yet given up: it may still be done"
        blocked_s = status.get("mirror", {}).get("blocked-by-disk-s")
        if blocked_s is not None:
            fact += f" (the disk has not answered for {blocked_s:.0f} s)"
        name = status.get("name", "")
        return Unavailable(f"mirror {name}", fact, f"mirroradm status {name}, or a longer --timeout")


def _event(event: dict[str, Any]) -> bytes:
    return encode_reply(event).replace(b'{"ok":', b'{"event":', 1)
