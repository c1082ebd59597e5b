"""From two bitmaps to two equal disks: bitmap exchange, requests of the target, answers of the source, the end.

The target pulls. Both streams are read in order and every write is done before the next packet is looked at, so a block
of the resync can never overtake a newer write of the application, on either side.

What a target has cleared in its bitmap becomes durable only after a flush of its data (`_checkpoint`): when it loses
its power, the bits on its disk still cover everything that was only in its cache, and the next exchange brings them
back.
"""

from __future__ import annotations

from replication.protocol import effects, packets
from replication.protocol.bitmap_code import BitmapReceiver, BitmapSender
from replication.protocol.effects import Stream
from replication.protocol.errors import PeerError
from replication.protocol.packets import BLOCK_BYTES, ID_SYNCER, P_RS_DATA_REPLY, P_RS_DATA_REQUEST
from replication.protocol.states import ConnectionState, DiskState, Role
from replication.protocol.volume_data import Resync, Session, VolumeData

REQUEST_BYTES = 256 * 1024
"""Longest resync request; shorter where fewer neighbouring blocks are out of sync."""
CHECKPOINT_BYTES = 64 << 20
CHECKPOINT_S = 2.0


def checked_range(data: VolumeData, what: str, sector: int, size: int) -> int:
    """Offset in bytes. Raises PeerError unless it is a range of the device that one packet may name."""
    offset = sector << 9
    if not 0 < size <= packets.REQUEST_BYTES_MAX or size & 511 or offset + size > data.size_bytes:
        raise PeerError(f"{what} for {offset}+{size} does not fit the device of {data.size_bytes} bytes")
    return offset


# the exchange


def begin_as_source(data: VolumeData) -> None:
    """WFBitMapS: our bitmap goes first."""
    _send_bitmap(data)
    assert data.session is not None
    data.session.bitmap_receiver = BitmapReceiver(data.bitmap, packets.BITMAP_HEADER_BYTES)


def begin_as_target(data: VolumeData) -> None:
    """WFBitMapT: wait for the source's bitmap."""
    assert data.session is not None
    data.session.bitmap_receiver = BitmapReceiver(data.bitmap, packets.BITMAP_HEADER_BYTES)


def _send_bitmap(data: VolumeData) -> None:
    for command, payload in BitmapSender(data.bitmap, packets.BITMAP_HEADER_BYTES, data.options.use_rle):
        data.send(Stream.DATA, packets.header(command, len(payload)), bytes(payload))


def bitmap_arrived(data: VolumeData, session: Session, command: int, body: memoryview) -> None:
    """One packet of the peer's bitmap; the last one moves the exchange on."""
    state = data.state.connection
    if session.bitmap_receiver is None or state not in (ConnectionState.WF_BITMAP_S, ConnectionState.WF_BITMAP_T):
        raise PeerError(f"sent its bitmap while {state}")
    if not session.bitmap_receiver.receive(command, bytes(body)):
        return
    session.bitmap_receiver = None
    if state is ConnectionState.WF_BITMAP_S:
        data.persist_bitmap()
        start_as_source(data)
        return

    def stable() -> None:
        if data.session is session and data.state.connection is ConnectionState.WF_BITMAP_T:
            # both bitmaps are durable here before anything is cleared: see _checkpoint
            data.persist_bitmap()
            _send_bitmap(data)
            data.change("bitmaps are exchanged", connection=ConnectionState.WF_SYNC_UUID)

    # a resync that was cut off may have cleared bits of blocks that are still only in the disk's cache
    data.flush(stable)


def start_as_source(data: VolumeData) -> None:
    """SyncSource: a new bitmap UUID names the mixture that the target is about to become."""
    peer = data.session.peer.generation if data.session is not None else None
    data.change(
        "bitmaps are exchanged",
        generation=data.generation.became_sync_source(data.random_u64(), peer.current if peer is not None else 0),
        connection=ConnectionState.SYNC_SOURCE,
        peer_disk=DiskState.INCONSISTENT,
    )
    data.full_sync = False
    data.persist_superblock()
    data.resync = Resync(data.now, data.bitmap.count, target=False)
    data.send(Stream.DATA, packets.packet(packets.P_SYNC_UUID, packets.SYNC_UUID_BODY.pack(data.generation.bitmap)))


def sync_uuid_arrived(data: VolumeData, session: Session, body: memoryview) -> None:
    """SyncTarget: durably Inconsistent before the first block."""
    (uuid,) = packets.SYNC_UUID_BODY.unpack(body)
    if data.state.connection not in (ConnectionState.WF_SYNC_UUID, ConnectionState.BEHIND):
        raise PeerError(f"sent a sync UUID while {data.state.connection}")
    data.change(
        f"resync from {data.peer_name}",
        generation=data.generation.became_sync_target(uuid),
        connection=ConnectionState.SYNC_TARGET,
        disk=DiskState.INCONSISTENT,
        peer_disk=DiskState.UP_TO_DATE,
    )
    data.full_sync = False
    data.persist_superblock()
    data.resync = Resync(
        data.now, data.bitmap.count, target=True, allowance_at=data.now, checkpoint_at=data.now,
        allowance=float(REQUEST_BYTES * 4),
    )  # fmt: skip
    request_more(data)
    look_for_end(data)


# the source


def block_wanted(data: VolumeData, session: Session, body: memoryview) -> None:
    """Answer with what the disk holds at this point of the stream."""
    sector, block_id, size, _ = packets.BLOCK_BODY.unpack(body)
    offset = checked_range(data, "P_RS_DATA_REQUEST", sector, size)
    if data.state.connection not in (ConnectionState.SYNC_SOURCE, ConnectionState.PAUSED_SYNC_S):
        raise PeerError(f"asked for a resync block while {data.state.connection}")
    header = packets.block_packet(P_RS_DATA_REPLY, offset, block_id, 0, 0, length=24 + size)
    data.out.append(effects.SendBlock(header, offset, size))
    data.counters["sent"] += size


def peer_wrote(data: VolumeData, offset: int, length: int) -> None:
    """The peer has this range: our bits for blocks it covers wholly may go."""
    data.bitmap.clear_range(offset, length, data.size_bytes)


def block_failed(data: VolumeData) -> None:
    """The target could not write a block; its bit stays."""
    if data.resync is not None:
        data.resync.failed_blocks += 1


def source_sees_target_finished(data: VolumeData) -> None:
    """The target says UpToDate: it has flushed. Raises PeerError when we know of blocks it cannot have."""
    if data.bitmap.count:
        raise PeerError(f"says it is UpToDate while {data.bitmap.count} blocks are out of sync")
    data.resync = None
    data.persist_bitmap()  # first: a bitmap without a UUID must have no bits
    data.change(
        f"{data.peer_name} has everything",
        generation=data.generation.resync_finished_source(),
        connection=ConnectionState.CONNECTED,
        peer_disk=DiskState.UP_TO_DATE,
    )
    if data.session is not None:
        data.session.peer.generation = data.generation  # the next resync of this connection begins from here
    data.out.append(effects.CallHandler("unfence-peer"))


# the target


def request_more(data: VolumeData) -> None:
    """Ask for the next blocks, as many as may be in flight and as the rate allows."""
    resync = data.resync
    if resync is None or not resync.target or data.state.connection is not ConnectionState.SYNC_TARGET:
        return
    rate = data.options.resync_rate_max
    if rate:
        resync.allowance = min(
            resync.allowance + (data.now - resync.allowance_at) * rate, float(max(rate, 4 * REQUEST_BYTES))
        )
        resync.allowance_at = data.now
    bitmap, outstanding = data.bitmap, resync.outstanding
    vector: list[effects.Buffer] = []
    while len(outstanding) < data.options.resync_in_flight and (not rate or resync.allowance > 0):
        block = bitmap.next_set(resync.cursor)
        if block is None:
            if outstanding or resync.cursor == 0:
                break
            resync.cursor = 0  # what was marked behind the cursor meanwhile
            continue
        offset = block * BLOCK_BYTES
        limit = REQUEST_BYTES - offset % REQUEST_BYTES
        blocks = bitmap.run_length(block, limit // BLOCK_BYTES)
        length = min(blocks * BLOCK_BYTES, data.size_bytes - offset)
        resync.cursor = block + blocks
        if offset in outstanding:
            continue
        outstanding[offset] = length
        resync.allowance -= length
        vector.append(packets.block_packet(P_RS_DATA_REQUEST, offset, ID_SYNCER, length, 0))
    if vector:
        data.out.append(effects.Send(Stream.DATA, vector))


def block_arrived(data: VolumeData, session: Session, body: memoryview) -> None:
    """Write it, clear its bits in memory, acknowledge, ask for more."""
    sector, block_id, _, _ = packets.BLOCK_BODY.unpack(body[:24])
    size = len(body) - 24
    offset = checked_range(data, "P_RS_DATA_REPLY", sector, size)
    resync = data.resync
    if resync is None or not resync.target or resync.outstanding.pop(offset, None) != size or block_id != ID_SYNCER:
        raise PeerError(f"sent a resync block at {offset}+{size} that we did not ask for")
    session.sequence += 1
    data.out.append(effects.WriteData([(offset, body[24:])]))
    data.counters["received"] += size
    data.bitmap.clear_range(offset, size, data.size_bytes)
    data.send(
        Stream.META,
        packets.block_packet(packets.P_RS_WRITE_ACK, offset, ID_SYNCER, size, session.sequence & 0xFFFFFFFF),
    )
    resync.unflushed_bytes += size
    request_more(data)
    look_for_end(data)


def read_failed(data: VolumeData, offset: int, length: int) -> None:
    """The source could not read a block for us: we stay Inconsistent."""
    resync = data.resync
    if resync is not None and resync.target and resync.outstanding.pop(offset, None) is not None:
        resync.failed_blocks += length // BLOCK_BYTES
        data.note(
            f"{data.subject}: {data.peer_name} cannot read {length} bytes at {offset}; resync will not finish", True
        )


def tick(data: VolumeData) -> None:
    """Requests that the rate held back, and the checkpoints of a target."""
    resync = data.resync
    if resync is None:
        return
    if not resync.marks or data.now - resync.marks[-1][0] >= 1.0:
        resync.marks.append((data.now, data.bitmap.count))
    if resync.target:
        request_more(data)
        due = resync.unflushed_bytes >= CHECKPOINT_BYTES or data.now - resync.checkpoint_at >= CHECKPOINT_S
        if due and resync.unflushed_bytes and not resync.checkpointing:
            _checkpoint(data, resync)
    elif data.now - resync.checkpoint_at >= CHECKPOINT_S:
        resync.checkpoint_at = data.now
        if data.state.role is not Role.PRIMARY:  # a Primary's pages are written when their extent cools down
            data.persist_bitmap()


def _checkpoint(data: VolumeData, resync: Resync) -> None:
    """Flush, then write the pages as they were when the flush began: what was cleared later is not stable yet."""
    resync.checkpointing = True
    resync.checkpoint_at = data.now
    resync.unflushed_bytes = 0
    pages = data.bitmap.take_dirty_pages()

    def stable() -> None:
        resync.checkpointing = False
        assert data.layout is not None
        writes = []
        for offset, page in pages:
            # a bit set since then must not get lost either
            now = bytes(data.bitmap.data[offset : offset + len(page)])
            both = int.from_bytes(page, "little") | int.from_bytes(now, "little")
            writes.append((data.layout.bitmap_offset + offset, both.to_bytes(len(page), "little")))
        if writes:
            data.counters["bm-writes"] += len(writes)
            data.out.append(effects.Persist("bitmap", writes))

    data.flush(stable)


def look_for_end(data: VolumeData) -> None:
    """When the target's last bit is clear: have everything arrive, flush, and be UpToDate."""
    resync, session = data.resync, data.session
    if resync is None or session is None or not resync.target or resync.finishing:
        return
    if data.bitmap.count or resync.outstanding or data.state.connection is not ConnectionState.SYNC_TARGET:
        return
    resync.finishing = True

    def all_acks_are_through() -> None:
        if data.session is session and data.resync is resync:
            data.flush(stable)

    def stable() -> None:
        if data.session is not session or data.resync is not resync:
            return
        if data.bitmap.count or resync.outstanding:
            resync.finishing = False
            request_more(data)
            return
        finish_as_target(data, session)

    session.after_ping.append(all_acks_are_through)
    if session.ping_sent is None:
        session.ping_sent = data.now
        data.send(Stream.META, packets.packet(packets.P_PING))


def finish_as_target(data: VolumeData, session: Session) -> None:
    """Everything is here and stable: bitmap, then generation and UpToDate, then the peer hears of it."""
    data.persist_bitmap()
    data.resync = None
    peer = session.peer.generation
    assert peer is not None
    data.change(
        "resync finished",
        generation=data.generation.resync_finished_target(peer),
        connection=ConnectionState.CONNECTED,
        disk=DiskState.UP_TO_DATE,
        peer_disk=DiskState.UP_TO_DATE,
    )
    session.peer.generation = data.generation
    data.send(Stream.DATA, packets.packet(packets.P_STATE, packets.STATE_BODY.pack(data.state.encode())))
