"""The Primary's half of replication: requests of clients -> activity log, peer, local disk, answers.

The loop in `_carry` is the hot path: it runs once for each write of a batch, so it packs into one buffer, keeps payload
as views, and leaves everything that can be decided once for the batch outside.
"""

from __future__ import annotations

import enum

from replication.protocol import effects, packets
from replication.protocol.effects import Stream
from replication.protocol.packets import (
    BLOCK,
    DP_DISCARD,
    DP_FUA,
    DP_MAY_SET_IN_SYNC,
    DP_SEND_WRITE_ACK,
    DP_SYNC,
    DP_ZEROES,
    EXTENT_SHIFT,
    MAGIC_100,
    P_BARRIER,
    P_DATA,
    P_OUT_OF_SYNC,
    P_ZEROES,
    REQUEST_BYTES_MAX,
    ZEROES_BYTES_MAX,
)
from replication.protocol.requests import (
    EIO,
    ESHUTDOWN,
    FLAG_FUA,
    FLAG_NO_HOLE,
    FLUSH,
    READ,
    TRIM,
    WRITE,
    Request,
)
from replication.protocol.states import ConnectionState, DiskState, Role
from replication.protocol.volume_data import Piece, VolumeData

EXTENT_BYTES = 1 << EXTENT_SHIFT

# looked up once: a member of an enum costs ten times what a global does
_PRIMARY, _UP_TO_DATE, _INCONSISTENT = Role.PRIMARY, DiskState.UP_TO_DATE, DiskState.INCONSISTENT
_CONNECTED, _AHEAD = ConnectionState.CONNECTED, ConnectionState.AHEAD
_WF_BITMAP_S, _WF_BITMAP_T = ConnectionState.WF_BITMAP_S, ConnectionState.WF_BITMAP_T
_STARTING_SYNC_S = ConnectionState.STARTING_SYNC_S
_DATA_STREAM = Stream.DATA


class Remote(enum.Enum):
    """What the peer gets of a write."""

    DATA = "data"
    NOTICE = "notice"
    """Only that these sectors are out of sync: it is about to get them by resync."""
    NOTHING = "nothing"


_DATA, _NOTICE, _NOTHING = Remote.DATA, Remote.NOTICE, Remote.NOTHING


def remote_of(data: VolumeData) -> Remote:
    state = data.state
    connection = state.connection
    if connection < _CONNECTED:
        return _NOTHING
    if connection is _WF_BITMAP_S or connection is _STARTING_SYNC_S:
        return _NOTICE
    if state.peer_disk is _UP_TO_DATE:
        return _DATA
    syncing = _WF_BITMAP_T <= connection < _AHEAD
    return _DATA if state.peer_disk is _INCONSISTENT and syncing else _NOTHING


def submit(data: VolumeData, requests: list[Request]) -> None:
    """Take what clients ask. Everything is answered sooner or later, with an error if it must be."""
    if data.state.role is not _PRIMARY or data.state.disk is not _UP_TO_DATE:
        error = EIO if data.state.role is _PRIMARY else ESHUTDOWN
        for request in requests:
            request.error = error
        data.out.append(effects.Complete(requests))
        return
    waiting = data.waiting
    reads: list[Request] = []
    for request in requests:
        command = request.command
        if command == WRITE and request.length <= REQUEST_BYTES_MAX:
            request.pending = 1
            waiting.append((request, request.offset, request.length, request.data))
        elif command == READ:
            reads.append(request)
        elif command == FLUSH:
            request.pending = 1
            waiting.append((request, 0, 0, None))
        else:
            pieces = _pieces(data, request)
            request.pending = len(pieces)
            waiting.extend(pieces)
    if reads:
        data.out.append(effects.ReadForClients(reads))
    pump(data)


def _pieces(data: VolumeData, request: Request) -> list[Piece]:
    """A request larger than a packet, in order. Pieces of zeroes end where an extent does."""
    assert data.activity_log is not None
    pieces: list[Piece] = []
    at, end = request.offset, request.offset + request.length
    extents = max(1, min(ZEROES_BYTES_MAX >> EXTENT_SHIFT, data.options.al_extents // 4))
    while at < end:
        if request.command == WRITE:
            length = min(REQUEST_BYTES_MAX, end - at)
            assert request.data is not None
            start = at - request.offset
            pieces.append((request, at, length, request.data[start : start + length]))
        else:
            length = min(end, ((at >> EXTENT_SHIFT) + extents) << EXTENT_SHIFT) - at
            pieces.append((request, at, length, None))
        at += length
    return pieces


def pump(data: VolumeData) -> None:
    """Carry as much of what waits as the activity log has room for."""
    waiting = data.waiting
    if data.frozen:
        return
    data.starved = False
    while waiting:
        batch = list(waiting)
        size = _make_hot(data, batch)
        if size == 0:
            # every extent holds something that is not stable on both sides: see to it that it will be
            data.starved = True
            close_epoch(data)
            _flush_for_room(data)
            return
        if size == len(batch):
            waiting.clear()
        else:
            del batch[size:]
            for _ in range(size):
                waiting.popleft()
        _carry(data, batch)


def _make_hot(data: VolumeData, batch: list[Piece]) -> int:
    """Have the extents of the batch in the activity log, durably; returns for how many pieces there was room."""
    log = data.activity_log
    assert log is not None
    hot, touch = log.hot, log.touch
    size = len(batch)
    while size:
        wanted: set[int] = set()
        for _, offset, length, _ in batch[:size] if size < len(batch) else batch:
            if length:
                first, last = offset >> EXTENT_SHIFT, (offset + length - 1) >> EXTENT_SHIFT
                wanted.add(first)
                if last != first:
                    wanted.update(range(first, last + 1))
        cold = []
        for extent in wanted:
            if extent in hot:
                touch(extent)
            else:
                cold.append(extent)
        if not cold:
            data.batch_extents = wanted
            return size
        activation = log.activate(sorted(cold), data.held_extents() | wanted)
        if activation is not None:
            for extent in activation.evicted:
                data.persist_bitmap(extent)
            data.counters["al-writes"] += len(activation.writes)
            data.out.append(effects.Persist("activity-log", list(activation.writes)))
            data.batch_extents = wanted
            return size
        size //= 2
    return 0


def _carry(data: VolumeData, batch: list[Piece]) -> None:
    """Send, write and account for pieces whose extents are hot."""
    remote = remote_of(data)
    sending = remote is _DATA
    log, session, bitmap, now = data.log, data.session, data.bitmap, data.now
    epoch = log.current
    in_flight = log.in_flight
    block_id = data.next_block_id
    sequence = session.sequence if session is not None else 0
    flags = DP_SYNC | DP_SEND_WRITE_ACK
    if data.state.connection > _CONNECTED:
        flags |= DP_MAY_SET_IN_SYNC
    headers = bytearray(BLOCK.size * len(batch))
    headers_view = memoryview(headers)
    pack_into, header_size = BLOCK.pack_into, BLOCK.size
    at = 0
    vector: list[effects.Buffer] = []
    writes: list[tuple[int, effects.Buffer]] = []
    done: list[Request] = []
    stable_wanted: list[Request] = []
    written = 0

    for request, offset, length, payload in batch:
        command = request.command
        if command == WRITE:
            assert payload is not None
            written += length
            if sending:
                request_flags = flags
                if request.flags & FLAG_FUA:
                    request_flags |= DP_FUA
                    stable_wanted.append(request)
                sequence += 1
                pack_into(
                    headers, at, MAGIC_100, 0, P_DATA, 24 + length, 0, offset >> 9, block_id,
                    sequence & 0xFFFFFFFF, request_flags,
                )  # fmt: skip
                vector.append(headers_view[at : at + header_size])
                vector.append(payload)
                at += header_size
                in_flight[block_id] = (request, offset, length, now)
                block_id += 1
                epoch.count += 1
                epoch.ranges.append((offset, length))
            else:
                bitmap.set_range(offset, length)
                if remote is _NOTICE:
                    vector.append(_out_of_sync(offset, length))
                if request.flags & FLAG_FUA:
                    stable_wanted.append(request)
                done.append(request)
            writes.append((offset, payload))
        elif command == FLUSH:
            data.next_block_id, log.last_write = block_id, now
            if session is not None:
                session.sequence = sequence
            _emit(data, vector, writes)
            vector, writes = [], []
            _remember_extents(data, sending)
            _flush(data, request)
            epoch = log.current
        else:
            _emit(data, vector, writes)
            vector, writes = [], []
            may_unmap = command == TRIM or not request.flags & FLAG_NO_HOLE
            if sending:
                sequence += 1
                zero_flags = flags | DP_ZEROES | (DP_DISCARD if may_unmap else 0)
                if request.flags & FLAG_FUA:
                    zero_flags |= DP_FUA
                    stable_wanted.append(request)
                data.send(
                    Stream.DATA,
                    packets.ZEROES.pack(
                        MAGIC_100, 0, P_ZEROES, 28, 0, offset >> 9, block_id, sequence & 0xFFFFFFFF, zero_flags, length
                    ),
                )
                in_flight[block_id] = (request, offset, length, now)
                block_id += 1
                epoch.count += 1
                epoch.ranges.append((offset, length))
            else:
                bitmap.set_range(offset, length)
                if remote is Remote.NOTICE:
                    data.send(Stream.DATA, _out_of_sync(offset, length))
                if request.flags & FLAG_FUA:
                    stable_wanted.append(request)
                done.append(request)
            data.out.append(effects.Zero(offset, length, may_unmap))
    data.next_block_id = block_id
    if session is not None:
        session.sequence = sequence
    data.counters["written"] += written
    _emit(data, vector, writes)
    log.last_write = now
    _remember_extents(data, sending)
    if stable_wanted:
        _make_stable(data, stable_wanted)
    elif len(data.written_extents) * 2 > data.al_extents:
        _flush_for_room(data)
    if done:
        parts_done(data, done)
    if log.current.count >= data.options.max_epoch_size:
        close_epoch(data)


def _emit(data: VolumeData, vector: list[effects.Buffer], writes: list[tuple[int, effects.Buffer]]) -> None:
    """What has gathered so far, before something that must come after it. The peer's part first: it takes longer."""
    if vector:
        data.out.append(effects.Send(_DATA_STREAM, vector))
    if writes:
        data.out.append(effects.WriteData(writes))


def _remember_extents(data: VolumeData, sending: bool) -> None:
    """What was written stays hot until it is stable here and on the peer. Too many held do no harm, too few do."""
    data.written_extents |= data.batch_extents
    if sending:
        data.log.current.extents |= data.batch_extents


def _flush_for_room(data: VolumeData) -> None:
    """Extents that are only waiting for our own disk may cool down after this."""
    if data.written_extents and not data.flushing_extents:
        data.flush(lambda: None)


def _out_of_sync(offset: int, length: int) -> bytes:
    return packets.OUT_OF_SYNC.pack(MAGIC_100, 0, P_OUT_OF_SYNC, 16, 0, offset >> 9, length, 0)


def _flush(data: VolumeData, request: Request) -> None:
    """Answer when our disk is flushed and every epoch with earlier writes is stable on the peer."""
    data.unanswered[id(request)] = request
    close_epoch(data)
    if data.log.closed:
        request.pending += 1
        data.log.closed[-1].waiters.append(request)
    data.flush(lambda: parts_done(data, [request]))


def _make_stable(data: VolumeData, requests: list[Request]) -> None:
    """FUA: one flush for all of the batch; the peer does the same before it acknowledges them."""
    for request in requests:
        request.pending += 1
        data.unanswered[id(request)] = request
    data.flush(lambda: parts_done(data, requests))
    close_epoch(data)


def parts_done(data: VolumeData, requests: list[Request]) -> None:
    """One part of each is done; those with none left are answered."""
    ready = []
    for request in requests:
        request.pending = pending = request.pending - 1
        if pending == 0:
            ready.append(request)
    if data.unanswered:
        for request in ready:
            data.unanswered.pop(id(request), None)
    data.complete(ready)


def close_epoch(data: VolumeData) -> None:
    """Send the barrier of the current epoch, if it holds anything."""
    ended = data.log.close(data.now)
    if ended is not None:
        data.send(Stream.DATA, packets.BARRIER.pack(packets.MAGIC_100, 0, P_BARRIER, 8, 0, ended.number, 0))


def barrier_acknowledged(data: VolumeData, number: int, set_size: int) -> None:
    """Everything up to this epoch is stable on the peer. Raises PeerError for an ack that does not fit."""
    epoch = data.log.acknowledged(number, set_size)
    if epoch.waiters:
        parts_done(data, epoch.waiters)
    if data.starved:
        pump(data)


def fail_clients(data: VolumeData, error: int = EIO) -> None:
    """Our disk is gone: whatever clients wait for has failed. Nothing of it was acknowledged."""
    requests: dict[int, Request] = {id(piece[0]): piece[0] for piece in data.waiting}
    requests |= {id(entry[0]): entry[0] for entry in data.log.in_flight.values()}
    requests |= data.unanswered
    requests |= {id(request): request for request in data.held}
    data.unanswered = {}
    data.waiting.clear()
    data.held = []
    data.frozen = False
    for request in requests.values():
        request.error = error
        request.pending = -1_000_000  # parts that still come in must not answer it a second time
    if requests:
        data.out.append(effects.Complete(list(requests.values())))
