"""Bytes of the two streams -> what they mean. Runs of writes and of acks are read in place and handled as one batch.

Everything else goes to the part that knows it: `handshake`, `resync`, `agreement`.
"""

from __future__ import annotations

from collections.abc import Callable

from replication.protocol import agreement, effects, handshake, packets, replicate, resync
from replication.protocol.effects import Stream
from replication.protocol.errors import PeerError
from replication.protocol.packets import (
    ACK,
    BARRIER_BODY,
    BLOCK,
    BLOCK_BODY,
    DP_FLUSH,
    DP_FUA,
    DP_MAY_SET_IN_SYNC,
    DP_SEND_RECEIVE_ACK,
    DP_SEND_WRITE_ACK,
    HEADER,
    ID_SYNCER,
    LENGTH,
    MAGIC_100,
    META_LENGTH,
    OUT_OF_SYNC_BODY,
    P_BARRIER,
    P_BARRIER_ACK,
    P_BITMAP,
    P_COMPRESSED_BITMAP,
    P_CONN_ST_CHG_REPLY,
    P_CONN_ST_CHG_REQ,
    P_DATA,
    P_DATA_REPLY,
    P_DATA_REQUEST,
    P_DELAY_PROBE,
    P_NEG_ACK,
    P_NEG_RS_DREPLY,
    P_OUT_OF_SYNC,
    P_PING,
    P_PING_ACK,
    P_PROTOCOL,
    P_PROTOCOL_UPDATE,
    P_RECV_ACK,
    P_RS_CANCEL,
    P_RS_DATA_REPLY,
    P_RS_DATA_REQUEST,
    P_RS_IS_IN_SYNC,
    P_RS_THIN_REQ,
    P_RS_WRITE_ACK,
    P_SIZES,
    P_STATE,
    P_STATE_CHG_REPLY,
    P_STATE_CHG_REQ,
    P_SYNC_PARAM89,
    P_SYNC_UUID,
    P_TRIM,
    P_UNPLUG_REMOTE,
    P_UUIDS,
    P_WRITE_ACK,
    P_ZEROES,
    ZEROES_BODY,
)
from replication.protocol.requests import Request
from replication.protocol.states import ConnectionState, DiskState, Role
from replication.protocol.volume_data import Session, Stage, VolumeData

_PING_ACK = packets.packet(P_PING_ACK)
_BLOCK_ACKS = frozenset((P_WRITE_ACK, P_RS_WRITE_ACK, P_RECV_ACK, P_NEG_ACK))
# looked up once: a member of an enum costs ten times what a global does
_PARAMETERS, _DECIDED = Stage.PARAMETERS, Stage.DECIDED
_INCONSISTENT, _PRIMARY, _META_STREAM = DiskState.INCONSISTENT, Role.PRIMARY, Stream.META
_SYNC_TARGET, _PAUSED_SYNC_T = ConnectionState.SYNC_TARGET, ConnectionState.PAUSED_SYNC_T


class Holding(Exception):
    """The data stream has to wait for a flush; not an error."""


def receive_data(data: VolumeData, view: memoryview) -> tuple[int, bool]:
    """Handle every whole packet in `view`; returns (bytes consumed, is the stream held by a barrier).

    Raises PeerError for what the protocol forbids; nothing behind it is looked at.
    """
    session = data.session
    if session is None:
        return len(view), False
    at, end = 0, len(view)
    if session.stage < _PARAMETERS:
        at = handshake.receive_early(data, session, view)
        if session.stage < Stage.PARAMETERS:
            return at, False
    while end - at >= HEADER.size:
        magic, volume, command, length, pad = HEADER.unpack_from(view, at)
        if command == P_DATA and magic == MAGIC_100:
            consumed = _writes(data, session, view, at)
            if consumed == 0:
                break
            at += consumed
            continue
        if magic != MAGIC_100 or pad:
            raise PeerError(f"header has magic 0x{magic:08x} and pad {pad} on the data stream")
        limits = LENGTH.get(command)
        if limits is None:
            raise PeerError(f"unknown {packets.name(command)} on the data stream")
        if not limits[0] <= length <= limits[1]:
            raise PeerError(f"{packets.name(command)} has length {length}, not {limits[0]} to {limits[1]}")
        if end - at < HEADER.size + length:
            break
        body = view[at + HEADER.size : at + HEADER.size + length]
        at += HEADER.size + length
        if volume:
            raise PeerError(f"{packets.name(command)} for volume {volume}; this mirror has volume 0 only")
        if command == P_BARRIER:
            _barrier(data, session, body)
            if session.features & packets.Feature.BARRIERS_ASK:
                continue
            return at, True
        handler = _DATA.get(command)
        if handler is None:
            raise PeerError(f"{packets.name(command)} is not expected on the data stream")
        handler(data, session, body)
        if data.session is not session:
            return at, False
    return at, False


def _writes(data: VolumeData, session: Session, view: memoryview, at: int) -> int:
    """A run of P_DATA from `at` on. The peer's epoch, its order and its acks; returns the bytes consumed."""
    _must_serve(data, session, "P_DATA")
    end, start = len(view), at
    size_bytes, unpack, fixed = data.size_bytes, BLOCK.unpack_from, BLOCK.size
    usable = data.state.disk >= _INCONSISTENT
    syncing = data.state.connection is _SYNC_TARGET or data.state.connection is _PAUSED_SYNC_T
    writes: list[tuple[int, effects.Buffer]] = []
    acks = bytearray()
    stable_acks = bytearray()
    count = received = 0
    sequence = session.sequence
    while end - at >= fixed:
        magic, volume, command, length, _, sector, block_id, _, flags = unpack(view, at)
        if command != P_DATA or magic != MAGIC_100:
            break
        size, offset = length - 24, sector << 9
        if not 0 < size <= packets.REQUEST_BYTES_MAX or size & 511 or volume or offset + size > size_bytes:
            if count:
                break  # what came before it counts; the next call begins with this one
            raise PeerError(
                f"P_DATA of {size} bytes at {offset} for volume {volume}: the device has {size_bytes} bytes in sectors"
            )
        if end - at < fixed + size:
            break
        payload = at + fixed
        at = payload + size
        count += 1
        received += size
        if usable:
            writes.append((offset, view[payload:at]))
            kind = P_WRITE_ACK
            if flags & DP_MAY_SET_IN_SYNC and syncing:
                # cleared bits become durable only after a flush: see resync.checkpoint
                data.bitmap.clear_range(offset, size, size_bytes)
                kind = P_RS_WRITE_ACK
            elif flags & DP_SEND_RECEIVE_ACK:
                kind = P_RECV_ACK
            elif not flags & DP_SEND_WRITE_ACK:
                continue
        else:
            kind = P_NEG_ACK
        sequence += 1
        ack = ACK.pack(MAGIC_100, 0, kind, 24, 0, sector, block_id, size, sequence & 0xFFFFFFFF)
        if flags & (DP_FUA | DP_FLUSH):
            stable_acks += ack
        else:
            acks += ack
    if count:
        session.sequence = sequence
        session.epoch_count += count
        data.counters["received"] += received
        if writes:
            _note_diskless_primary(data, writes)
            data.out.append(effects.WriteData(writes))
        if acks:
            data.out.append(effects.Send(_META_STREAM, [acks]))
        if stable_acks:
            _after_flush(data, session, bytes(stable_acks))
        if data.resync is not None:
            resync.look_for_end(data)
    return at - start


def _must_serve(data: VolumeData, session: Session, what: str) -> None:
    """Raises PeerError unless the peer may write to us now."""
    if session.stage is not _DECIDED:
        raise PeerError(f"{what} before the handshake was over")
    if data.state.role is _PRIMARY:
        raise PeerError(f"{what} although this node is Primary", for_good=True)


def _note_diskless_primary(data: VolumeData, writes: list[tuple[int, effects.Buffer]]) -> None:
    """A Primary without a disk keeps no record of what it writes here: we do."""
    if data.state.peer_disk < _INCONSISTENT and data.state.peer is _PRIMARY:
        for offset, buffer in writes:
            data.set_out_of_sync(offset, len(buffer))


def _after_flush(data: VolumeData, session: Session, packet: bytes) -> None:
    """Send on the meta stream when everything written now is stable, if the connection is still the same then."""

    def send() -> None:
        if data.session is session:
            data.send(Stream.META, packet)

    data.flush(send)


def _barrier(data: VolumeData, session: Session, body: memoryview) -> None:
    """End of an epoch: flush, then acknowledge. A kernel's Primary also wants nothing read before that."""
    _must_serve(data, session, "P_BARRIER")
    count, session.epoch_count = session.epoch_count, 0
    barrier = int.from_bytes(body[:4], "big")
    _after_flush(data, session, packets.BARRIER.pack(MAGIC_100, 0, P_BARRIER_ACK, 8, 0, barrier, count))


def _zeroes(data: VolumeData, session: Session, body: memoryview) -> None:
    """P_TRIM and P_ZEROES. Trimmed storage reads as zeroes here, so that both sides stay equal."""
    _must_serve(data, session, "P_ZEROES")
    sector, block_id, _, flags, size = ZEROES_BODY.unpack(body)
    offset = sector << 9
    if not 0 < size <= 128 << 20 or size & 511 or offset + size > data.size_bytes:
        raise PeerError(f"zeroes for {offset}+{size} do not fit the device of {data.size_bytes} bytes")
    session.epoch_count += 1
    session.sequence += 1
    kind = P_WRITE_ACK
    if data.state.disk < DiskState.INCONSISTENT:
        kind = P_NEG_ACK
    else:
        if data.state.peer is Role.PRIMARY and data.state.peer_disk < DiskState.INCONSISTENT:
            data.set_out_of_sync(offset, size)
        data.out.append(effects.Zero(offset, size, bool(flags & packets.DP_DISCARD)))
        if flags & DP_MAY_SET_IN_SYNC and data.state.connection is ConnectionState.SYNC_TARGET:
            data.bitmap.clear_range(offset, size, data.size_bytes)
            kind = P_RS_WRITE_ACK
        elif flags & DP_SEND_RECEIVE_ACK:
            kind = P_RECV_ACK
        elif not flags & DP_SEND_WRITE_ACK:
            return
    ack = ACK.pack(MAGIC_100, 0, kind, 24, 0, sector, block_id, size, session.sequence & 0xFFFFFFFF)
    if flags & (DP_FUA | DP_FLUSH):
        _after_flush(data, session, ack)
    else:
        data.send(Stream.META, ack)
    resync.look_for_end(data)


def _out_of_sync(data: VolumeData, session: Session, body: memoryview) -> None:
    sector, size, _ = OUT_OF_SYNC_BODY.unpack(body)
    offset = sector << 9
    if not 0 < size <= 128 << 20 or offset + size > data.size_bytes:
        raise PeerError(f"P_OUT_OF_SYNC for {offset}+{size} does not fit the device of {data.size_bytes} bytes")
    data.set_out_of_sync(offset, size)


def _read_request(data: VolumeData, session: Session, body: memoryview) -> None:
    """A Primary without a usable disk reads here."""
    sector, block_id, size, _ = BLOCK_BODY.unpack(body)
    offset = resync.checked_range(data, "P_DATA_REQUEST", sector, size)
    if data.state.disk is not DiskState.UP_TO_DATE:
        data.send(Stream.META, packets.block_packet(packets.P_NEG_DREPLY, offset, block_id, size, 0))
        return
    data.out.append(effects.SendBlock(_reply_header(P_DATA_REPLY, offset, block_id, size), offset, size))


def _reply_header(command: int, offset: int, block_id: int, size: int) -> bytes:
    return packets.block_packet(command, offset, block_id, 0, 0, length=24 + size)


def _nothing(data: VolumeData, session: Session, body: memoryview) -> None:
    """Packets that may come and mean nothing to us: hints, and what only tunes the peer's speed."""


def _unasked(data: VolumeData, session: Session, body: memoryview) -> None:
    raise PeerError("answered a read that we did not ask for")


_DATA: dict[int, Callable[[VolumeData, Session, memoryview], None]] = {
    P_TRIM: _zeroes,
    P_ZEROES: _zeroes,
    P_OUT_OF_SYNC: _out_of_sync,
    P_DATA_REQUEST: _read_request,
    P_DATA_REPLY: _unasked,
    P_RS_DATA_REQUEST: resync.block_wanted,
    P_RS_THIN_REQ: resync.block_wanted,
    P_RS_DATA_REPLY: resync.block_arrived,
    P_BITMAP: lambda data, session, body: resync.bitmap_arrived(data, session, P_BITMAP, body),
    P_COMPRESSED_BITMAP: lambda data, session, body: resync.bitmap_arrived(data, session, P_COMPRESSED_BITMAP, body),
    P_SYNC_UUID: agreement.sync_uuid_arrived,
    P_PROTOCOL: handshake.protocol_arrived,
    P_PROTOCOL_UPDATE: _nothing,
    P_SYNC_PARAM89: handshake.sync_param_arrived,
    P_SIZES: handshake.sizes_arrived,
    P_UUIDS: handshake.uuids_arrived,
    P_STATE: handshake.state_arrived,
    P_STATE_CHG_REQ: agreement.volume_request_arrived,
    P_CONN_ST_CHG_REQ: agreement.connection_request_arrived,
    P_UNPLUG_REMOTE: _nothing,
    P_DELAY_PROBE: _nothing,
}


def receive_meta(data: VolumeData, view: memoryview) -> int:
    """Handle every whole packet on the meta stream; returns the bytes consumed. Raises PeerError."""
    session = data.session
    if session is None:
        return len(view)
    done: list[Request] = []
    try:
        return _meta_packets(data, session, view, done)
    finally:
        # what was acknowledged before a packet that is forbidden is acknowledged
        if done:
            replicate.parts_done(data, done)


def _meta_packets(data: VolumeData, session: Session, view: memoryview, done: list[Request]) -> int:
    """Requests with a part done are left in `done`."""
    at: int = 0
    end = len(view)
    while end - at >= HEADER.size:
        magic, _, command, length, pad = HEADER.unpack_from(view, at)
        if magic != MAGIC_100 or pad:
            raise PeerError(f"header has magic 0x{magic:08x} and pad {pad} on the meta stream")
        if session.stage < _PARAMETERS and command not in (P_PING, P_PING_ACK, P_DELAY_PROBE):
            raise PeerError(f"{packets.name(command)} on the meta stream of a peer that has not proved itself")
        if META_LENGTH.get(command, -1) != length:
            for_good = session.stage >= Stage.PARAMETERS
            raise PeerError(f"{packets.name(command)} of {length} bytes on the meta stream", for_good=for_good)
        if end - at < HEADER.size + length:
            break
        if command in _BLOCK_ACKS:
            at = _acks(data, view, at, done)
            continue
        body = view[at + HEADER.size : at + HEADER.size + length]
        at += HEADER.size + length
        if done:
            replicate.parts_done(data, done)
            done.clear()
        _meta(data, session, command, body)
        if data.session is not session:
            return at
    return at


def _acks(data: VolumeData, view: memoryview, at: int, done: list[Request]) -> int:
    """A run of block acks from `at` on; requests with a part done are added to `done`. Returns where it ends."""
    in_flight, unpack, size_of = data.log.in_flight, ACK.unpack_from, ACK.size
    end = len(view)
    cleared = False
    while end - at >= size_of:
        magic, _, command, length, pad, sector, block_id, size, _ = unpack(view, at)
        if magic != MAGIC_100 or pad or length != 24:
            break
        if command in (P_WRITE_ACK, P_RECV_ACK):
            entry = in_flight.pop(block_id, None)
            if entry is None:
                raise PeerError(f"acknowledged a write (id {block_id}) that is not in flight")
            done.append(entry[0])
        elif command == P_RS_WRITE_ACK:
            if block_id != ID_SYNCER:
                entry = in_flight.pop(block_id, None)
                if entry is None:
                    raise PeerError(f"acknowledged a write (id {block_id}) that is not in flight")
                done.append(entry[0])
                resync.peer_wrote(data, entry[1], entry[2])
            else:
                resync.peer_wrote(data, resync.checked_range(data, "P_RS_WRITE_ACK", sector, size), size)
            cleared = True
        elif command == P_NEG_ACK:
            entry = in_flight.pop(block_id, None)
            if entry is not None:
                replicate_failed(data, entry[1], entry[2])
                done.append(entry[0])
            elif block_id == ID_SYNCER:
                resync.block_failed(data)
        else:
            break
        at += size_of
    if cleared:
        resync.look_for_end(data)
    return at


def replicate_failed(data: VolumeData, offset: int, length: int) -> None:
    """The peer could not write: out of sync there, in a generation of our own before the client hears of it."""
    data.set_out_of_sync(offset, length)
    if data.generation.bitmap == 0 and data.state.role is Role.PRIMARY:
        data.change("the peer failed a write", generation=data.generation.lost_peer(data.random_u64()))


def _meta(data: VolumeData, session: Session, command: int, body: memoryview) -> None:
    if command == P_PING:
        data.send(Stream.META, _PING_ACK)
    elif command == P_PING_ACK:
        session.ping_sent = None
        waiting, session.after_ping = session.after_ping, []
        for proceed in waiting:
            proceed()
    elif command == P_BARRIER_ACK:
        number, set_size = BARRIER_BODY.unpack(body)
        replicate.barrier_acknowledged(data, number, set_size)
        agreement.look_if_demoted(data)
    elif command in (P_STATE_CHG_REPLY, P_CONN_ST_CHG_REPLY):
        agreement.reply_arrived(data, session, int.from_bytes(body, "big", signed=True))
    elif command in (P_RS_IS_IN_SYNC, P_RS_CANCEL, P_NEG_RS_DREPLY):
        sector, _, size, _ = BLOCK_BODY.unpack(body)
        if command == P_NEG_RS_DREPLY:
            resync.read_failed(data, resync.checked_range(data, packets.name(command), sector, size), size)
    elif command != P_DELAY_PROBE:
        raise PeerError(f"{packets.name(command)} is not expected on the meta stream")
