"""The link to the peer: two TCP streams, from looking for the peer to the loss of it.

    start ─▶ looking (rendezvous.py) ─▶ up ─▶ lost or dropped ─▶ looking again, unless stopped
                                        │
             on_up, then on_data and on_meta with what comes; on_down once, if it was lost and not dropped

Nothing here knows what the packets mean.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

from replication.attendant import answer_pings
from replication.loop import Loop
from replication.peer_stream import PeerStream, StreamEnded, limit_silence
from replication.protocol.effects import Buffer, Stream
from replication.protocol.errors import MirrorError
from replication.rendezvous import LinkOptions, Rendezvous

STRANGER_BYTES = 8 * 1024
"""Receive buffer of each stream until `authenticated`: the packets before are small."""
DATA_BYTES = (4 << 20) + (64 << 10)
META_BYTES = 256 << 10
_DATA = Stream.DATA  # looked up once: a member of an enum costs ten times what a global does


class PeerConnection:
    """Fulfils the `Link` port of replication/executor.py. All calls and callbacks in the loop's thread.

    on_up(resolve_conflicts)    both streams stand; True on the node that accepted the meta stream
    on_down(fact)               the link was lost. Once, and never from inside `send` or `drop`
    on_data(view), on_meta(view)    what has come and was not consumed; return how many bytes of it you are done with.
                                The view is good until they return. They may call any method here
    on_backlog(waiting)         True: buffers given to `send` on the data stream are still in use, their owners must not
                                reuse them; False: all are free again. True comes from inside `send`
    on_note(text)               for the log
    """

    def __init__(
        self,
        options: LinkOptions,
        loop: Loop,
        random: Callable[[], float],
        *,
        on_up: Callable[[bool], None],
        on_down: Callable[[str], None],
        on_data: Callable[[memoryview], int],
        on_meta: Callable[[memoryview], int],
        on_backlog: Callable[[bool], None],
        on_note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`random` gives numbers in [0, 1), `clock` monotonic seconds. Raises MirrorError for bad addresses."""
        self._options = options
        self._loop = loop
        self._on_up, self._on_down, self._on_backlog, self._on_note = on_up, on_down, on_backlog, on_note
        self._on_data, self._on_meta = on_data, on_meta
        self._rendezvous = Rendezvous(options, loop, random, clock, self._found, on_note)
        self._started = False
        self._data: PeerStream | None = None
        self._meta: PeerStream | None = None
        self._paused = False
        self._waiting = False
        self._said_why_not = False
        self._lost_fact = ""
        """Why the link is lost, while on_down is still to be called."""

    @property
    def is_up(self) -> bool:
        return self._data is not None

    @property
    def backlog(self) -> bool:
        return self._waiting

    @property
    def strangers(self) -> int:
        """Connections refused because they came from another address than the peer's."""
        return self._rendezvous.strangers

    # looking for the peer

    def start(self) -> None:
        """Look for the peer, now and again after each loss. Raises MirrorError when it cannot listen."""
        if not self._started:
            self._rendezvous.begin(0.0)
            self._started = True

    def stop(self) -> None:
        """Neither look for the peer nor keep it. No on_down."""
        self._started = False
        self._rendezvous.end()
        self._lost_fact = ""
        self._close()

    def tick(self) -> None:
        """Every 50 to 100 ms."""
        if self._rendezvous.running:
            self._rendezvous.tick()
        elif self._started and self._data is None:
            self._look_again()

    def _look_again(self) -> None:
        try:
            self._rendezvous.begin(self._rendezvous.interval_s())
        except MirrorError as error:  # somebody took our port, or the address went away: both may come back
            if not self._said_why_not:
                self._on_note(str(error))
            self._said_why_not = True

    def _found(self, data: socket.socket, meta: socket.socket, accepted_meta: bool) -> None:
        # A peer whose disk hangs closes its window of the data stream and is given ko-count timeouts; what goes over
        # the meta stream is read whatever the disk does.
        limit_silence(data, self._options.timeout_s * self._options.ko_count)
        limit_silence(meta, self._options.timeout_s)
        self._data = PeerStream(data, "data stream", STRANGER_BYTES)
        self._meta = PeerStream(meta, "meta stream", STRANGER_BYTES)
        self._paused = self._said_why_not = False
        self._loop.add(data, self._data_readable, self._writable, self._data_gone)
        self._loop.add(meta, self._meta_readable, self._writable)
        self._on_up(accepted_meta)

    def authenticated(self) -> None:
        """The peer is who it should be: from now on its packets may be large."""
        if self._data is not None and self._meta is not None:
            self._data.grow(DATA_BYTES)
            self._meta.grow(META_BYTES)

    # what comes

    def pause_data(self) -> None:
        """Do not offer data, nor read it from the socket, until `resume_data`."""
        if not self._paused and self._data is not None:
            self._paused = True
            self._loop.want_read(self._data.sock, False)

    def resume_data(self) -> None:
        """Offers what is here already, from inside this call unless it is made from on_data."""
        if self._paused and self._data is not None:
            self._paused = False
            self._loop.want_read(self._data.sock, True)
            self._data.feed(self._take_data)

    def _take_data(self, view: memoryview) -> int:
        return 0 if self._paused else self._on_data(view)

    def _data_readable(self) -> None:
        self._read(self._data, self._take_data)

    def _meta_readable(self) -> None:
        self._read(self._meta, self._on_meta)

    def _read(self, stream: PeerStream | None, consumer: Callable[[memoryview], int]) -> None:
        if stream is None:
            return
        try:
            stream.receive()
        except StreamEnded as ended:
            self._lost(str(ended))
            return
        stream.feed(consumer)

    def _data_gone(self) -> None:
        self._lost("the peer reset the data stream")

    # what goes

    def send(self, stream: Stream, buffers: list[Buffer]) -> None:
        """Never raises: if the link is dead the buffers are dropped, and on_down comes later."""
        pipe = self._data if stream is _DATA else self._meta
        if pipe is None:
            return
        had_backlog = pipe.backlog
        try:
            if pipe.send(buffers) or had_backlog:
                return
        except StreamEnded as ended:
            self._lost_later(str(ended))
            return
        self._loop.want_write(pipe.sock, True)
        if pipe is self._data:
            self._waiting = True
            self._on_backlog(True)

    def _writable(self) -> None:
        for pipe in (self._data, self._meta):
            if pipe is None or pipe.sock.fileno() < 0:  # closed by what the other one's end brought about
                continue
            try:
                drained = pipe.send_backlog()
            except StreamEnded as ended:
                self._lost(str(ended))
                return
            if drained:
                self._drained(pipe)

    def _drained(self, pipe: PeerStream) -> None:
        self._loop.want_write(pipe.sock, False)
        if pipe is self._data:
            self._no_more_waiting()

    def _no_more_waiting(self) -> None:
        # a link that came up since may have a backlog of its own
        if self._waiting and (self._data is None or not self._data.backlog):
            self._waiting = False
            self._on_backlog(False)

    # while the loop is away

    def answer_pings_meanwhile(self) -> None:
        """From the attendant's thread, while the loop is away in a disk call."""
        if self._meta is not None and answer_pings(self._meta):
            self._loop.call_soon_threadsafe(self._look_at_meta)

    def _look_at_meta(self) -> None:
        if self._meta is not None:
            self._loop.want_write(self._meta.sock, self._meta.backlog)
            self._meta.feed(self._on_meta)

    # the end

    def drop(self, fact: str) -> None:
        """Close both streams after what was sent, as far as the sockets take it now. No on_down."""
        for pipe in (self._data, self._meta):
            if pipe is not None:
                with contextlib.suppress(StreamEnded):
                    pipe.send_backlog()
        self._lost_fact = ""
        self._close()

    def _lost(self, fact: str) -> None:
        self._close()
        self._no_more_waiting()
        self._on_down(fact)

    def _lost_later(self, fact: str) -> None:
        self._close()
        self._lost_fact = fact
        self._loop.call_soon(self._tell_of_loss)

    def _tell_of_loss(self) -> None:
        fact, self._lost_fact = self._lost_fact, ""
        if fact:
            self._on_down(fact)

    def _close(self) -> None:
        """Of what ends here nothing is offered or reported any more; waiting buffers are free from the next round."""
        for pipe in (self._data, self._meta):
            if pipe is not None:
                self._loop.remove(pipe.sock)
                pipe.close()
        self._data = self._meta = None
        if self._waiting:
            self._loop.call_soon(self._no_more_waiting)
