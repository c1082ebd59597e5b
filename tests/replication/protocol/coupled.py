"""Two volumes coupled in memory, without network, threads or time: what one sends is what the other is fed.

    pair = MirrorPair()
    pair.declare_equal()
    pair.promote(pair.alpha)
    pair.write(pair.alpha, offset=4096, data=b"paid")
    assert pair.beta.disk.read(4096, 4) == b"paid"

The effects are carried out by the daemon's own executor, on a disk that is memory. Each side keeps a `trail`: what was
done, in order, in words ("persist superblock", "send P_DATA", "write", "complete"), so that a test can say what has to
come before what. Buffers are scribbled over as soon as the contract lets their owner use them again.
"""

from __future__ import annotations

import copy
import itertools
import random
from typing import Any

from replication.executor import Executor
from replication.protocol import packets
from replication.protocol.effects import (
    Answer,
    Buffer,
    Effect,
    Effects,
    FlushData,
    Note,
    StateChanged,
    Stream,
)
from replication.protocol.errors import DiskFailure, MirrorError, PeerError
from replication.protocol.options import VolumeOptions
from replication.protocol.requests import EIO, FLUSH, READ, TRIM, WRITE, WRITE_ZEROES, Request
from replication.protocol.states import ConnectionState, DiskState, Role
from replication.protocol.volume import Force, Volume
from tests.replication.protocol.memory_disk import MemoryDisk

MIB = 1 << 20
DISK_BYTES = 16 * MIB
"""Four extents of the activity log, the last one cut off by the metadata."""
SECRET = "correct horse"
SCRIBBLE = b"\xee"
ROUNDS_MAX = 200_000


class Clients:
    """Those who use the device of one side."""

    def __init__(self, side: Side) -> None:
        self._side = side

    def complete(self, requests: list[Request]) -> None:
        self._side.trail.append("complete")
        self._side.completed += requests

    def read(self, requests: list[Request]) -> None:
        for request in requests:
            try:
                request.data = memoryview(self._side.disk.read(request.offset, request.length))
            except DiskFailure:
                request.error = EIO
        self._side.completed += requests

    def device_failed(self, fact: str) -> None:
        self._side.device_failed = fact


class Side:
    """One node: a volume, its executor, and all the ports of the executor."""

    def __init__(self, pair: MirrorPair, options: VolumeOptions, disk_bytes: int) -> None:
        self.pair = pair
        self.options = options
        self.name = options.local_name
        self.trail: list[str] = []
        self.disk = MemoryDisk(disk_bytes, self.trail)
        self.flushes_at_once = True
        self.handler_exit: int | None = None
        """What a handler ends with, at once; None: it runs until the test says."""
        self.handlers: list[str] = []
        self.record: dict[str, Any] = {}
        self.inbox: dict[Stream, bytearray] = {}
        self.linked = False
        self.linked_to_nobody = False
        self.ended = False
        """The peer has closed the streams: heard once all that came before is read."""
        self.notes: list[str] = []
        self.answers: dict[int, MirrorError | None] = {}
        self.completed: list[Request] = []
        self.device_failed = ""
        self._buffers: list[bytearray] = []
        self.start()

    def start(self, *, attach: bool = True) -> None:
        """Boot from what is on the disk."""
        random_u64 = random.Random(f"{self.name}{next(self.pair.numbers)}")
        self.volume = Volume(self.options, lambda: random_u64.getrandbits(64), self.pair.now)
        self.executor = Executor(self._disk_failed, self.disk, self, Clients(self), self, self)
        if attach:
            attachment = self.disk.attachment()
            self.disk.persist("attach", attachment.writes)
            self.act(self.volume.attach(attachment, copy.deepcopy(self.record), self.pair.now))

    def replace_disk(self, disk_bytes: int) -> None:
        """A new, empty disk, and a start with it."""
        self.disk = MemoryDisk(disk_bytes, self.trail)
        self.record = {}
        self.start()

    def act(self, effects: Effects) -> None:
        self.executor.carry_out(effects)

    # what a test looks at

    # methods, because a type checker believes that a property stays what it was asserted to be

    def connection(self) -> ConnectionState:
        return self.volume.state.connection

    def holding(self) -> bool:
        return self.volume.holding

    def accepting(self) -> bool:
        return self.volume.accepting

    @property
    def words(self) -> str:
        """Role, connection, own disk and the peer's: what an operator reads first."""
        state = self.volume.state
        return f"{state.role} {state.connection} {state.disk}/{state.peer_disk}"

    @property
    def status(self) -> dict[str, Any]:
        return self.volume.status(self.pair.now)

    @property
    def out_of_sync_blocks(self) -> int:
        return self.volume.data.bitmap.count

    @property
    def durable_disk_state(self) -> DiskState:
        """What the disk would be after a crash now."""
        flags = self.disk.attachment().superblock.flags
        if not flags & 1:
            return DiskState.INCONSISTENT
        return DiskState.UP_TO_DATE if flags & 16 else DiskState.OUTDATED

    def does(self, *steps: str) -> bool:
        """Whether the trail has these steps in this order, whatever lies between."""
        rest = iter(self.trail)
        return all(step in rest for step in steps)

    def refusal(self, operation: int) -> MirrorError:
        error = self.answers[operation]
        assert error is not None, "it was done"
        return error

    # the ports of the executor, as far as they are not the disk

    def send(self, stream: Stream, buffers: list[Buffer]) -> None:
        data = b"".join(buffers)
        self.pair.wire[self.name, stream] += data
        self._note_packets(data)
        peer = self.pair.other(self)
        if self.linked and peer.linked and not self.linked_to_nobody:
            peer.inbox[stream] += data

    def drop(self, fact: str) -> None:
        self.trail.append("drop")
        self.pair.unplug(self)

    def save(self, record: dict[str, Any]) -> None:
        self.trail.append("record")
        self.record = copy.deepcopy(record)

    def state_changed(self, effect: StateChanged) -> None:
        after = effect.after
        self.trail.append(f"{after.role} {after.connection} {after.disk}/{after.peer_disk}")

    def note(self, effect: Note) -> None:
        self.notes.append(effect.text)

    def answer(self, effect: Answer) -> None:
        assert effect.operation not in self.answers, "answered twice"
        self.trail.append("answer")
        self.answers[effect.operation] = effect.error

    def call_handler(self, name: str) -> None:
        self.trail.append(f"handler {name}")
        self.handlers.append(name)

    # what happens to it

    def submit(self, *requests: Request) -> None:
        self.act(self.volume.submit(list(requests), self.pair.now))
        if self.volume.accepting:
            self._scribble()

    def request(
        self, command: int, offset: int = 0, data: bytes = b"", length: int | None = None, flags: int = 0
    ) -> Request:
        """A request of a client whose buffer is used again as soon as it may be."""
        buffer = bytearray(data)
        self._buffers.append(buffer)
        view = memoryview(buffer) if command == WRITE else None
        return Request(
            "client", command, flags, next(self.pair.numbers), offset, len(data) if length is None else length, view
        )

    def finish_flush(self) -> None:
        """The oldest flush that runs ends now."""
        self.act(self.volume.flushed(self.disk.finish_flush(), self.pair.now))

    def handler_ends(self, exit_code: int) -> None:
        self.act(self.volume.handler_done(self.handlers.pop(0), exit_code, self.pair.now))

    def step(self) -> bool:
        """One thing that is due; False when there is none."""
        if self.flushes_at_once and self.disk.flushing:
            if self.disk.fails:
                self.disk.flushing.clear()
                self.act(self.volume.disk_failed(FlushData(0), "Input/output error", self.pair.now))
            else:
                self.finish_flush()
            return True
        if self.handlers and self.handler_exit is not None:
            self.handler_ends(self.handler_exit)
            return True
        if self.volume.accepting:
            self._scribble()
        fed = [self.feed(stream) for stream in self.pair.stream_order()]
        if any(fed):
            return True
        if self.ended and not self.volume.holding:
            self.linked = self.ended = False
            self.act(self.volume.link_down("the peer closed the data stream", self.pair.now))
            return True
        return False

    def run(self) -> None:
        """Until this side has done all it can without the other."""
        while self.step():
            pass

    def feed(self, stream: Stream) -> bool:
        """Give the volume what has come, in pieces as the pair has them; whether it took something."""
        inbox = self.inbox.get(stream)
        if not inbox or not self.linked or (stream is Stream.DATA and self.volume.holding):
            return False
        came = memoryview(bytearray(inbox))
        for size in self.pair.sizes(len(inbox)):
            consumed = self._offer(stream, came[:size])
            if consumed or not self.linked:
                if self.inbox.get(stream) is inbox:
                    del inbox[:consumed]
                return True
        return False

    def give(self, stream: Stream, piece: bytearray) -> int:
        """Exactly these bytes; how many of them are done with."""
        return self._offer(stream, memoryview(piece))

    def _offer(self, stream: Stream, view: memoryview) -> int:
        receive = self.volume.receive_data if stream is Stream.DATA else self.volume.receive_meta
        consumed = 0
        try:
            consumed, effects = receive(view, self.pair.now)
        except PeerError as error:
            effects = self.volume.peer_error(error, self.pair.now)
            self.trail.append("peer error")
        if effects:
            self.act(effects)
        view[:consumed] = SCRIBBLE * consumed  # from here on nobody may use it
        return consumed

    def tick(self) -> None:
        self.act(self.volume.tick(self.pair.now))

    def _disk_failed(self, effect: Effect, fact: str) -> list[Effect]:
        return self.volume.disk_failed(effect, fact, self.pair.now)

    def _scribble(self) -> None:
        for buffer in self._buffers:
            buffer[:] = SCRIBBLE * len(buffer)
        self._buffers.clear()

    def _note_packets(self, data: bytes) -> None:
        self.trail += [f"send {packets.name(command)}" for command, _ in split_packets(data)]


class MirrorPair:
    """Two sides, a cable and a clock. Keyword arguments are options of both; `alpha` and `beta` those of one."""

    def __init__(
        self,
        *,
        alpha: dict[str, Any] | None = None,
        beta: dict[str, Any] | None = None,
        disk_bytes: int = DISK_BYTES,
        beta_disk_bytes: int | None = None,
        piece_bytes: int | None = None,
        **both: Any,
    ) -> None:
        """`piece_bytes`: how much more of a stream comes at once; None: all of it."""
        self.now = 100.0
        self.numbers = itertools.count(1)
        self.piece_bytes = piece_bytes
        self.meta_first = False
        self.wire: dict[tuple[str, Stream], bytearray] = {
            (name, stream): bytearray() for name in ("alpha", "beta") for stream in Stream
        }
        """All that was ever sent, whether it arrived or not."""
        common: dict[str, Any] = {"resync_rate_max": 0} | both
        self.alpha = Side(self, VolumeOptions("r0", "alpha", "beta", **common | (alpha or {})), disk_bytes)
        self.beta = Side(
            self, VolumeOptions("r0", "beta", "alpha", **common | (beta or {})), beta_disk_bytes or disk_bytes
        )

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.alpha, self.beta

    def other(self, side: Side) -> Side:
        return self.beta if side is self.alpha else self.alpha

    def stream_order(self) -> list[Stream]:
        return [Stream.META, Stream.DATA] if self.meta_first else [Stream.DATA, Stream.META]

    def sizes(self, available: int) -> list[int]:
        """How much of what came is offered, one try after the other."""
        if self.piece_bytes is None:
            return [available]
        return [*range(self.piece_bytes, available, self.piece_bytes), available]

    # how it begins

    def connect(self) -> None:
        """Both look for each other, and find each other."""
        for side in self.sides:
            if side.volume.state.connection is ConnectionState.STAND_ALONE:
                self.ask(side, "connect")
        self.plug()
        self.run()

    def declare_equal(self) -> None:
        """Connected and UpToDate without a first resync."""
        self.connect()
        assert self.done(self.ask(self.alpha, "new_current_uuid"))
        assert self.equal

    def first_resync(self) -> None:
        """alpha is Primary by force, and beta has got everything."""
        self.connect()
        self.promote(self.alpha, Force.OVERWRITE)
        assert self.equal

    def with_primary(self) -> Side:
        """Equal, alpha Primary, nothing on the trail; returns alpha."""
        self.declare_equal()
        self.promote(self.alpha)
        self.forget_trails()
        return self.alpha

    @property
    def equal(self) -> bool:
        """Connected, UpToDate on both sides, and the two data areas are."""
        states = {(side.volume.state.connection, side.volume.state.disk) for side in self.sides}
        return states == {(ConnectionState.CONNECTED, DiskState.UP_TO_DATE)} and self.same_data

    @property
    def same_data(self) -> bool:
        size = self.alpha.volume.size_bytes
        return size == self.beta.volume.size_bytes and self.alpha.disk.content[:size] == self.beta.disk.content[:size]

    def out_of_sync(self) -> tuple[int, int]:
        """Blocks marked, on alpha and on beta."""
        return self.alpha.out_of_sync_blocks, self.beta.out_of_sync_blocks

    # what moves

    def plug(self, *, accepts_meta: Side | None = None) -> None:
        """A new connection; `accepts_meta` (alpha) is who decides ties."""
        for side in self.sides:
            side.inbox = {stream: bytearray() for stream in Stream}
            side.linked, side.ended, side.linked_to_nobody = side.volume.wants_link, False, False
        for side in self.sides:
            if side.linked:
                side.act(side.volume.link_up(side is (accepts_meta or self.alpha), self.now))

    def unplug(self, side: Side) -> None:
        """`side` has closed its streams; what it sent still arrives."""
        side.linked = False
        side.inbox = {}
        if self.other(side).linked:
            self.other(side).ended = True

    def cut(self) -> None:
        """Both lose the connection at this moment, with all that was on its way."""
        for side in self.sides:
            was_linked, side.linked, side.ended, side.inbox = side.linked, False, False, {}
            if was_linked:
                side.act(side.volume.link_down("cable cut", self.now))
        self.run()

    def silence(self, side: Side) -> None:
        """Nothing that `side` is sent or sends arrives any more, and nobody notices."""
        self.other(side).linked_to_nobody = side.linked_to_nobody = True

    def crash(self, side: Side, *, power_cut: bool = True) -> None:
        """The process is gone, and what was in the disk's cache; the peer sees the connection end."""
        if power_cut:
            side.disk.lose_power()
        side.disk.flushing.clear()
        side.handlers.clear()
        self.unplug(side)
        other = self.other(side)
        other.run()

    def restart(self, side: Side) -> None:
        """After a crash, or instead of one: from what is on the disk."""
        side.start()

    def run(self) -> None:
        """Until nothing moves any more."""
        for _ in range(ROUNDS_MAX):
            moved = [side.step() for side in self.sides]
            if not any(moved):
                return
        raise AssertionError("it goes on for ever")

    def pass_time(self, seconds: float, step: float = 0.05) -> None:
        """The clock of both goes on, and both are told of it; what moves meanwhile moves."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now = min(self.now + step, end)
            for side in self.sides:
                side.tick()
            self.run()

    def packets(self, side: Side, stream: Stream) -> list[tuple[int, bytes]]:
        """All that `side` ever sent on that stream: command and body."""
        return split_packets(bytes(self.wire[side.name, stream]))

    # what operators and clients do

    def ask(self, side: Side, what: str, *arguments: Any, **named: Any) -> int:
        """Ask without waiting: the number of the operation."""
        operation = next(self.numbers)
        side.act(getattr(side.volume, what)(operation, *arguments, now=self.now, **named))
        return operation

    def done(self, operation: int) -> bool:
        """Whether the operation was carried out, once nothing moves any more."""
        self.run()
        answers = self.alpha.answers | self.beta.answers
        assert operation in answers, "not answered"
        return answers[operation] is None

    def refused(self, operation: int) -> MirrorError:
        """Why it was not carried out."""
        assert not self.done(operation), "it was carried out"
        error = (self.alpha.answers | self.beta.answers)[operation]
        assert error is not None
        return error

    def promote(self, side: Side, force: Force = Force.NO) -> None:
        assert self.done(self.ask(side, "promote", force=force)), self.alpha.answers | self.beta.answers
        assert side.volume.state.role is Role.PRIMARY

    def demote(self, side: Side) -> None:
        assert self.done(self.ask(side, "demote"))
        assert side.volume.state.role is Role.SECONDARY

    def write(self, side: Side, offset: int, data: bytes, flags: int = 0) -> Request:
        """A write, answered."""
        return self._answered(side, side.request(WRITE, offset, data, flags=flags))

    def flush(self, side: Side) -> Request:
        return self._answered(side, side.request(FLUSH))

    def flush_without_waiting(self, side: Side) -> Request:
        request = side.request(FLUSH)
        side.submit(request)
        self.run()
        return request

    def trim(self, side: Side, offset: int, length: int) -> Request:
        return self._answered(side, side.request(TRIM, offset, length=length))

    def zero(self, side: Side, offset: int, length: int, flags: int = 0) -> Request:
        return self._answered(side, side.request(WRITE_ZEROES, offset, length=length, flags=flags))

    def read(self, side: Side, offset: int, length: int) -> bytes:
        request = self._answered(side, side.request(READ, offset, length=length))
        assert request.data is not None, "no data came"
        return bytes(request.data)

    def forget_trails(self) -> None:
        for side in self.sides:
            side.trail.clear()
            side.completed.clear()

    def _answered(self, side: Side, request: Request) -> Request:
        side.submit(request)
        self.run()
        assert request in side.completed, "not answered"
        return request


def block(letter: bytes, count: int = 1) -> bytes:
    """`count` blocks of 4096 bytes."""
    return letter * (4096 * count)


def split_packets(data: bytes) -> list[tuple[int, bytes]]:
    """Command and body of each packet; the first one of a data stream has the old header."""
    found = []
    at = 0
    while at < len(data):
        if data[at : at + 4] == packets.MAGIC_80.to_bytes(4, "big"):
            _, command, length = packets.HEADER_80.unpack_from(data, at)
            at += packets.HEADER_80.size
        else:
            _, _, command, length, _ = packets.HEADER.unpack_from(data, at)
            at += packets.HEADER.size
        found.append((command, data[at : at + length]))
        at += length
    return found
