"""From two fresh streams to an agreement on who has which data: features, authentication, parameters, decision."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from replication.protocol import packets, resync
from replication.protocol.bitmap import PAGE_BYTES, Bitmap, bitmap_bytes
from replication.protocol.decision import Decision, Outcome, Policies, decide
from replication.protocol.effects import Stream
from replication.protocol.errors import PeerError
from replication.protocol.generation import Generation, Side
from replication.protocol.packets import BLOCK_BYTES, SECTOR_BYTES, UuidFlag
from replication.protocol.states import ConnectionState, DiskState, Role, State
from replication.protocol.volume_data import Session, Stage, VolumeData

SAID_BEFORE_CONNECTED = ConnectionState.WF_CONNECTION
"""What P_STATE says of the connection until the decision is made."""


def begin(data: VolumeData, resolve_conflicts: bool) -> None:
    """Both streams are up."""
    data.session = Session(resolve_conflicts, data.now, last_receive=data.now)
    data.change("connection is up", connection=ConnectionState.WF_REPORT_PARAMS)
    data.send(Stream.DATA, packets.features_packet(data.options.features))


def receive_early(data: VolumeData, session: Session, view: memoryview) -> int:
    """Packets of a peer that has not proved itself: one of a few, short ones. Returns the bytes consumed."""
    at = 0
    while session.stage < Stage.PARAMETERS:
        first = session.stage is Stage.FEATURES
        head = packets.HEADER_80 if first else packets.HEADER
        if len(view) - at < head.size:
            break
        if first:
            magic, command, length = head.unpack_from(view, at)
        else:
            magic, _, command, length, _ = head.unpack_from(view, at)
        wanted = {
            Stage.FEATURES: packets.P_CONNECTION_FEATURES,
            Stage.CHALLENGE: packets.P_AUTH_CHALLENGE,
            Stage.RESPONSE: packets.P_AUTH_RESPONSE,
        }[session.stage]
        if magic != (packets.MAGIC_80 if first else packets.MAGIC_100):
            raise PeerError(f"header has magic 0x{magic:08x} where {packets.name(wanted)} is due")
        if command != wanted:
            raise PeerError(
                f"sent {packets.name(command)} where {packets.name(wanted)} is due",
                "is cram-hmac-alg set on both nodes?" if not first else "",
                for_good=not first,
            )
        if length > packets.HANDSHAKE_LENGTH_MAX[wanted]:
            raise PeerError(f"{packets.name(command)} has length {length}")
        if len(view) - at < head.size + length:
            break
        body = bytes(view[at + head.size : at + head.size + length])
        at += head.size + length
        {
            Stage.FEATURES: _features_arrived,
            Stage.CHALLENGE: _challenge_arrived,
            Stage.RESPONSE: _response_arrived,
        }[session.stage](data, session, body)
    return at


def _features_arrived(data: VolumeData, session: Session, body: bytes) -> None:
    if len(body) != packets.FEATURES_BODY.size:
        raise PeerError(f"P_CONNECTION_FEATURES has length {len(body)}")
    lowest, flags, highest, _ = packets.FEATURES_BODY.unpack(body)
    highest = highest or lowest
    if lowest > packets.PROTOCOL_MAX or highest < packets.PROTOCOL_MIN:
        raise PeerError(
            f"speaks protocol {lowest} to {highest}, we speak {packets.PROTOCOL_MIN} to {packets.PROTOCOL_MAX}",
            for_good=True,
        )
    session.protocol_version = min(highest, packets.PROTOCOL_MAX)
    session.features = packets.Feature(flags & data.options.features)
    if not data.options.hmac_algorithm:
        _send_parameters(data, session)
        return
    session.own_challenge = b"".join(data.random_u64().to_bytes(8, "big") for _ in range(packets.CHALLENGE_BYTES // 8))
    session.stage = Stage.CHALLENGE
    data.send(Stream.DATA, packets.packet(packets.P_AUTH_CHALLENGE, session.own_challenge))


def _digest(data: VolumeData, challenge: bytes) -> bytes:
    return hmac.new(
        data.options.shared_secret.encode(), challenge, lambda: hashlib.new(data.options.hmac_algorithm)
    ).digest()


def _challenge_arrived(data: VolumeData, session: Session, body: bytes) -> None:
    if len(body) < packets.CHALLENGE_BYTES:
        raise PeerError(f"challenge of {len(body)} bytes", for_good=True)
    if hmac.compare_digest(body, session.own_challenge):
        raise PeerError("sent our own challenge back: it has no secret of its own", for_good=True)
    session.stage = Stage.RESPONSE
    data.send(Stream.DATA, packets.packet(packets.P_AUTH_RESPONSE, _digest(data, body)))


def _response_arrived(data: VolumeData, session: Session, body: bytes) -> None:
    if not hmac.compare_digest(body, _digest(data, session.own_challenge)):
        raise PeerError(
            "does not know the shared secret", "compare shared-secret in the .res files of both nodes", for_good=True
        )
    _send_parameters(data, session)


# parameters


def _send_parameters(data: VolumeData, session: Session) -> None:
    session.stage = Stage.PARAMETERS
    options = data.options
    flags = packets.PROTOCOL_DISCARD_MY_DATA if data.discard_my_data else 0
    body = packets.PROTOCOL_BODY.pack(
        3, options.after_sb_0pri, options.after_sb_1pri, options.after_sb_2pri, flags, 0
    )  # fmt: skip
    data.send(Stream.DATA, packets.packet(packets.P_PROTOCOL, body + b"\0"))
    rate = min(options.resync_rate_max >> 10, 0xFFFFFFFF)
    data.send(
        Stream.DATA,
        packets.packet(packets.P_SYNC_PARAM89, packets.SYNC_PARAM_BODY.pack(250, b"", b"", 20, 10, 100, rate)),
    )
    send_sizes(data, session)
    send_uuids(data)
    send_state(data)
    session.state_sent = True


def send_sizes(data: VolumeData, session: Session) -> None:
    largest = data.layout.data_bytes if data.layout is not None and data.state.disk >= DiskState.NEGOTIATING else 0
    body = packets.SIZES_BODY.pack(
        largest // SECTOR_BYTES, 0, data.size_bytes // SECTOR_BYTES, packets.REQUEST_BYTES_MAX, 0, 0
    )  # fmt: skip
    if session.features & packets.Feature.WRITE_SAME:
        body += packets.QUEUE_LIMITS_BODY.pack(BLOCK_BYTES, SECTOR_BYTES, 0, BLOCK_BYTES, 0, 1, 1, 0)
    data.send(Stream.DATA, packets.packet(packets.P_SIZES, body))


def send_uuids(data: VolumeData, extra: int = 0) -> None:
    """Our generations, when we have a disk."""
    if data.state.disk < DiskState.NEGOTIATING:
        return
    flags = UuidFlag(extra)
    if data.discard_my_data:
        flags |= UuidFlag.DISCARD_MY_DATA
    if data.crashed_primary:
        flags |= UuidFlag.CRASHED_PRIMARY
    if data.state.disk is DiskState.INCONSISTENT:
        flags |= UuidFlag.WILL_BE_INCONSISTENT
    generation = data.generation
    data.send(
        Stream.DATA,
        packets.packet(
            packets.P_UUIDS,
            packets.UUIDS_BODY.pack(
                generation.current, generation.bitmap, generation.history0, generation.history1,
                data.bitmap.count, flags,
            ),
        ),
    )  # fmt: skip


def send_state(data: VolumeData) -> None:
    state = data.state
    value = state.encode()
    if state.connection is ConnectionState.WF_REPORT_PARAMS:
        value = value & ~(31 << 4) | SAID_BEFORE_CONNECTED << 4
    data.send(Stream.DATA, packets.packet(packets.P_STATE, packets.STATE_BODY.pack(value)))


MIRRORED = {5: 6, 6: 5}
"""discard-local on one node is discard-remote on the other."""


def protocol_arrived(data: VolumeData, session: Session, body: memoryview) -> None:
    """Everything in it must equal our own configuration."""
    protocol, *policies, flags, two_primaries = packets.PROTOCOL_BODY.unpack(body[: packets.PROTOCOL_BODY.size])
    integrity = bytes(body[packets.PROTOCOL_BODY.size :]).rstrip(b"\0").decode("ascii", "replace")
    options = data.options
    own = [int(options.after_sb_0pri), int(options.after_sb_1pri), int(options.after_sb_2pri)]

    def differs(option: str, theirs: object, ours: object) -> PeerError:
        return PeerError(
            f"is configured with {option} {theirs}, we with {ours}", "make both nodes' .res files equal", for_good=True
        )

    if protocol != 3:
        raise differs("protocol", {1: "A", 2: "B"}.get(protocol, protocol), "C")
    for option, theirs, ours in zip(("after-sb-0pri", "after-sb-1pri", "after-sb-2pri"), policies, own, strict=True):
        if MIRRORED.get(theirs, theirs) != ours:
            raise differs(option, theirs, ours)
    if two_primaries:
        raise differs("allow-two-primaries", "yes", "no")
    if integrity:
        raise differs("data-integrity-alg", integrity, "none")
    session.peer.discards_its_data = bool(flags & packets.PROTOCOL_DISCARD_MY_DATA)
    if session.peer.discards_its_data and data.discard_my_data:
        raise PeerError("wants to discard its data, and so do we: nobody would keep any", for_good=True)
    session.peer.protocol_seen = True


def sync_param_arrived(data: VolumeData, session: Session, body: memoryview) -> None:
    """Its numbers only steer speed, ours is our own; the digests must be ours: none."""
    _, verify, checksum, *_ = packets.SYNC_PARAM_BODY.unpack(body)
    for option, name in (("verify-alg", verify), ("csums-alg", checksum)):
        if name.rstrip(b"\0"):
            raise PeerError(
                f"is configured with {option} {name.rstrip(bytes(1)).decode('ascii', 'replace')}, we with none",
                "make both nodes' .res files equal",
                for_good=True,
            )


def sizes_arrived(data: VolumeData, session: Session, body: memoryview) -> None:
    """The device is as large as the smaller disk; one that holds data never shrinks."""
    largest, wanted, current, _, _, _ = packets.SIZES_BODY.unpack(body[: packets.SIZES_BODY.size])
    peer = session.peer
    peer.disk_size_bytes, peer.wanted_size_bytes = largest * SECTOR_BYTES, wanted * SECTOR_BYTES
    peer.current_size_bytes = current * SECTOR_BYTES
    if data.layout is None or data.state.disk < DiskState.NEGOTIATING or not largest:
        return
    size = min(data.layout.data_bytes, peer.disk_size_bytes, peer.wanted_size_bytes or data.layout.data_bytes)
    if session.stage is Stage.DECIDED and data.size_bytes:
        if peer.disk_size_bytes < data.size_bytes:
            raise PeerError(f"attaches a disk with room for {peer.disk_size_bytes} of {data.size_bytes} bytes")
        return
    if data.state.disk < DiskState.OUTDATED:
        # growing is an operator's wish; a new disk beside one that holds data takes the size of the data
        size = min(size, peer.current_size_bytes or data.size_bytes or size)
    if size < data.size_bytes and data.state.disk >= DiskState.OUTDATED:
        raise PeerError(
            f"its disk has room for {size} bytes, and {data.size_bytes} bytes of data are here",
            "give it a larger disk",
            for_good=True,
        )
    if data.size_bytes and size > data.size_bytes and data.state.disk >= DiskState.OUTDATED:
        size = data.size_bytes  # growing is an operator's wish, never a side effect of connecting
    set_size(data, size)


def set_size(data: VolumeData, size_bytes: int) -> None:
    """Take the agreed size: the bitmap covers it, the superblock says it."""
    if size_bytes == data.size_bytes:
        return
    blocks = -(-size_bytes // BLOCK_BYTES)
    old = data.bitmap
    data.bitmap = Bitmap(blocks, bytearray(old.data[: bitmap_bytes(blocks)].ljust(bitmap_bytes(blocks), b"\0")))
    data.bitmap.dirty_pages.update(page for page in old.dirty_pages if page * PAGE_BYTES < len(data.bitmap.data))
    data.bitmap.set_blocks(old.block_count, blocks)  # what was not there before is not known to be equal
    data.size_bytes = size_bytes
    data.persist_superblock()


def uuids_arrived(data: VolumeData, session: Session, body: memoryview) -> None:
    """The peer's generations. When it says so, take them over: both disks are declared equal."""
    current, bitmap, history0, history1, bits, flags = packets.UUIDS_BODY.unpack(body)
    peer = session.peer
    peer.generation = Generation(current, bitmap, history0, history1)
    peer.bits_set, peer.flags = bits, UuidFlag(flags & 15)
    skip = peer.flags & UuidFlag.SKIP_INITIAL_SYNC and data.state.connection is ConnectionState.CONNECTED
    if skip and data.generation.current == packets.UUID_JUST_CREATED:
        data.bitmap.clear_all()
        data.persist_bitmap()
        data.change(
            f"{data.peer_name} declared both disks equal",
            generation=Generation(current & ~1, 0, 0, 0),
            disk=DiskState.UP_TO_DATE,
            peer_disk=DiskState.UP_TO_DATE,
        )
        send_state(data)  # what we said on connecting may reach the peer only after its declaration


# the decision


def state_arrived(data: VolumeData, session: Session, body: memoryview) -> None:
    """What the peer says of itself; when it is time to, decide who syncs whom."""
    try:
        peer = State.decode(packets.STATE_BODY.unpack(body)[0])
    except ValueError as error:
        raise PeerError(f"sent a state that is none ({error})") from error
    if not session.peer.protocol_seen:
        raise PeerError("sent its state before its parameters")
    has_disk = peer.disk >= DiskState.NEGOTIATING and peer.disk is not DiskState.UNKNOWN
    if has_disk and session.peer.generation is None:
        raise PeerError(f"says that its disk is {peer.disk}, without its generations")
    before, session.peer.state = session.peer.state, peer
    own = data.state
    if own.connection is ConnectionState.WF_REPORT_PARAMS:
        _decide(data, session, peer, new=True)
        return
    if own.connection < ConnectionState.CONNECTED:
        return
    if peer.disk is DiskState.NEGOTIATING and own.connection is not ConnectionState.CONNECTED:
        raise PeerError(f"attaches a disk while {own.connection}")
    forced = (
        own.connection is ConnectionState.CONNECTED
        and own.disk is DiskState.INCONSISTENT
        and peer.disk is DiskState.UP_TO_DATE
    )
    starting = (
        own.connection is ConnectionState.CONNECTED
        and ConnectionState.STARTING_SYNC_S <= peer.connection <= ConnectionState.WF_BITMAP_T
        and session.peer.generation is not None
    )
    if forced or starting or peer.disk is DiskState.NEGOTIATING:
        if forced and before is not None and before.role is not peer.role:
            data.change(f"{data.peer_name} is {peer.role}", peer=peer.role)
        _decide(data, session, peer, new=False)
        return
    finished = peer.connection is ConnectionState.CONNECTED and peer.disk is DiskState.UP_TO_DATE
    if own.connection in (ConnectionState.SYNC_SOURCE, ConnectionState.PAUSED_SYNC_S) and finished:
        resync.source_sees_target_finished(data)
        own = data.state
    _follow(data, own, peer)


def _follow(data: VolumeData, own: State, peer: State) -> None:
    """Take over what the peer says of its role and disk, outside of decisions."""
    peer_disk = peer.disk
    if ConnectionState.WF_BITMAP_S <= own.connection <= ConnectionState.PAUSED_SYNC_T:
        if peer_disk < DiskState.INCONSISTENT:
            raise PeerError(f"lost its disk while {own.connection}")
        peer_disk = own.peer_disk  # both sides know better than what was on its way
    fields: dict[str, Any] = {}
    if peer.role is not own.peer:
        fields["peer"] = peer.role
    if peer_disk is not own.peer_disk:
        fields["peer_disk"] = peer_disk
    lost_disk = own.peer_disk >= DiskState.INCONSISTENT and peer_disk < DiskState.INCONSISTENT
    generation = None
    if lost_disk and own.disk is DiskState.UP_TO_DATE and data.generation.bitmap == 0:
        # what is written from now on is only here
        generation = data.generation.lost_peer(data.random_u64())
        for epoch in data.log.epochs():
            for offset, length in epoch.ranges:
                data.set_out_of_sync(offset, length)
    if fields or generation:
        data.change(f"{data.peer_name} says so", generation=generation, **fields)
    role_changed(data, peer.role)


def role_changed(data: VolumeData, now: Role) -> None:
    """A peer that is Primary ends whatever right this side had to take over."""
    if now is Role.PRIMARY and data.record.get("right"):
        data.save_record({key: value for key, value in data.record.items() if key != "right"})


def own_side(data: VolumeData) -> Side:
    return Side(
        generation=data.generation,
        bits_set=data.bitmap.count,
        role=data.state.role,
        disk=data.state.disk,
        crashed_primary=data.crashed_primary,
        discard_my_data=data.discard_my_data,
    )


def _decide(data: VolumeData, session: Session, peer: State, new: bool) -> None:
    own = data.state
    peer_disk = peer.disk
    if peer_disk is DiskState.NEGOTIATING:
        inconsistent = session.peer.flags & UuidFlag.WILL_BE_INCONSISTENT
        peer_disk = DiskState.INCONSISTENT if inconsistent else DiskState.CONSISTENT
    session.stage = Stage.DECIDED
    if own.disk < DiskState.INCONSISTENT or peer_disk < DiskState.INCONSISTENT or session.peer.generation is None:
        if own.role is Role.PRIMARY and peer.role is Role.PRIMARY:
            raise PeerError("is Primary, and so are we", for_good=True)
        _connected(data, session, peer, peer_disk, new)
        return
    options = data.options
    decision = decide(
        own_side(data),
        Side(
            generation=session.peer.generation,
            bits_set=session.peer.bits_set,
            role=peer.role,
            disk=peer_disk,
            crashed_primary=bool(session.peer.flags & UuidFlag.CRASHED_PRIMARY),
            discard_my_data=session.peer.discards_its_data,
            attaching=peer.disk is DiskState.NEGOTIATING,
        ),
        own_name=options.local_name,
        peer_name=options.peer_name,
        resolve_conflicts=session.resolve_conflicts,
        write_same_feature=bool(session.features & packets.Feature.WRITE_SAME),
        protocol_version=session.protocol_version,
        policies=Policies(options.after_sb_0pri, options.after_sb_1pri, options.after_sb_2pri),
    )
    if decision.outcome is Outcome.REFUSE:
        raise PeerError(decision.text, decision.remedy, for_good=True)
    data.note(f"{data.subject}: {decision.text} (rule {decision.verdict.rule})")
    data.discard_my_data = False
    data.generation = decision.verdict.own
    session.peer.generation = decision.verdict.peer
    if decision.outcome is Outcome.NONE:
        _connected(data, session, peer, peer_disk, new)
    else:
        _begin_resync(data, decision, peer, peer_disk)


def _connected(data: VolumeData, session: Session, peer: State, peer_disk: DiskState, new: bool) -> None:
    """No resync. What was only Consistent or Outdated is UpToDate now that the peer agrees."""
    own = data.state
    disk = own.disk
    agreed = own.disk in (DiskState.CONSISTENT, DiskState.OUTDATED) and peer_disk >= DiskState.CONSISTENT
    both_waiting = own.disk is DiskState.OUTDATED and peer_disk is DiskState.OUTDATED
    if agreed or both_waiting or (own.disk is DiskState.CONSISTENT and peer_disk is DiskState.OUTDATED):
        disk = DiskState.UP_TO_DATE
    if peer_disk in (DiskState.CONSISTENT, DiskState.OUTDATED) and disk >= DiskState.CONSISTENT:
        peer_disk = DiskState.UP_TO_DATE
    data.change(
        "handshake: no resync needed",
        connection=ConnectionState.CONNECTED,
        peer=peer.role,
        disk=disk,
        peer_disk=peer_disk,
    )
    role_changed(data, peer.role)
    if new:
        send_state(data)


def _begin_resync(data: VolumeData, decision: Decision, peer: State, peer_disk: DiskState) -> None:
    source = decision.outcome.is_source
    if decision.outcome.is_full:
        data.full_sync = True
        data.persist_superblock()
        data.bitmap.set_all()
        data.persist_bitmap()
    if source:
        data.change(
            decision.text,
            connection=ConnectionState.WF_BITMAP_S,
            disk=DiskState.UP_TO_DATE,
            peer=peer.role,
            peer_disk=min(max(peer_disk, DiskState.INCONSISTENT), DiskState.CONSISTENT),
        )
    else:
        data.change(
            decision.text,
            connection=ConnectionState.WF_BITMAP_T,
            disk=min(data.state.disk, DiskState.OUTDATED),
            peer=peer.role,
            peer_disk=DiskState.UP_TO_DATE,
        )
    role_changed(data, peer.role)
    if peer.connection not in (ConnectionState.WF_BITMAP_S, ConnectionState.WF_BITMAP_T):
        # the peer of a decision inside a connection decides on this; in a new one it only reads it
        if peer.connection is ConnectionState.CONNECTED:
            send_uuids(data)
        send_state(data)
    elif peer.connection is ConnectionState.WF_BITMAP_T and source:
        send_state(data)
    if source:
        resync.begin_as_source(data)
    else:
        resync.begin_as_target(data)
