"""Changes both nodes have to agree to (P_STATE_CHG_REQ): what the peer asks of us, and what it answered.

One request at a time in each direction. Who asks is told yes or no on the meta stream; when both ask at once, the node
that accepted the meta stream says "later", and the other serves it first.
"""

from __future__ import annotations

import enum
from typing import Any

from replication.protocol import handshake, loss, packets, replicate, resync
from replication.protocol.effects import Stream
from replication.protocol.errors import PeerError
from replication.protocol.options import Fencing
from replication.protocol.packets import STATE_CHANGE_BODY, STATE_CHANGE_REPLY_BODY
from replication.protocol.states import ConnectionState, DiskState, Role
from replication.protocol.takeover import hand_over_record
from replication.protocol.volume_data import Change, Session, StateRequest, VolumeData

MASK_ROLE, MASK_CONNECTION, MASK_DISK = 0x3, 0x1F0, 0x1E00
ANSWER_S = 10.0
"""How long the peer may take to answer a request: it may have to flush first."""


class Reply(enum.IntEnum):
    """What a node answers to a request for a state change."""

    SUCCESS = 1
    NOTHING_TO_DO = 2
    TWO_PRIMARIES = -1
    NO_UP_TO_DATE_DISK = -2
    CONNECTED_OUTDATES = -6
    PRIMARY_REFUSES = -7
    RESYNC_RUNNING = -8
    FAILED_BY_PEER = -10
    DEVICE_IN_USE = -12
    NO_VERIFY_ALGORITHM = -14
    NOT_SUPPORTED = -17
    TRANSIENT_STATE = -18
    CONCURRENT_CHANGE = -19


REPLY_WORDS = {
    Reply.TWO_PRIMARIES: "it is Primary itself",
    Reply.NO_UP_TO_DATE_DISK: "no UpToDate disk would be left",
    Reply.PRIMARY_REFUSES: "it is Primary and wants this side outdated first",
    Reply.RESYNC_RUNNING: "a resync is running",
    Reply.DEVICE_IN_USE: "its device is in use",
    Reply.TRANSIENT_STATE: "it is in the middle of another change",
    Reply.CONCURRENT_CHANGE: "it asked for a change at the same moment",
}


# requests that the peer sends


def volume_request_arrived(data: VolumeData, session: Session, body: memoryview) -> None:
    _answer_peer(data, session, body, packets.P_STATE_CHG_REPLY)


def connection_request_arrived(data: VolumeData, session: Session, body: memoryview) -> None:
    _answer_peer(data, session, body, packets.P_CONN_ST_CHG_REPLY)


def _answer_peer(data: VolumeData, session: Session, body: memoryview, reply_command: int) -> None:
    mask, value = STATE_CHANGE_BODY.unpack(body)
    role = Role(value & 3) if mask & MASK_ROLE == MASK_ROLE and value & 3 in (Role.PRIMARY, Role.SECONDARY) else None
    wanted = value >> 4 & 31
    connection = ConnectionState(wanted) if mask & MASK_CONNECTION and wanted in set(ConnectionState) else None
    disk = DiskState(value >> 9 & 15) if mask & MASK_DISK and (value >> 9 & 15) in set(DiskState) else None
    proceed = None
    if data.request is not None and session.resolve_conflicts:
        reply = Reply.CONCURRENT_CHANGE
    elif data.state.connection < ConnectionState.CONNECTED or data.demoting is not None:
        reply = Reply.TRANSIENT_STATE
    elif connection is ConnectionState.DISCONNECTING:
        reply = Reply.SUCCESS
        proceed = lambda: _peer_disconnects(data, disk)  # noqa: E731
    elif role is Role.PRIMARY:
        reply = _may_peer_promote(data, by_force=disk is DiskState.UP_TO_DATE)
        proceed = lambda: _peer_promoted(data, disk)  # noqa: E731
    elif connection in (ConnectionState.STARTING_SYNC_S, ConnectionState.STARTING_SYNC_T):
        reply = _may_peer_invalidate(data, connection)
        proceed = lambda: _peer_invalidates(data, connection)  # noqa: E731
    elif connection is ConnectionState.VERIFY_S:
        reply = Reply.NO_VERIFY_ALGORITHM
    elif disk is DiskState.FAILED:
        reply = Reply.NO_UP_TO_DATE_DISK if data.state.disk is not DiskState.UP_TO_DATE else Reply.SUCCESS
    else:
        reply = Reply.NOT_SUPPORTED
    data.send(Stream.META, packets.packet(reply_command, STATE_CHANGE_REPLY_BODY.pack(reply)))
    if reply > 0 and proceed is not None:
        proceed()


def _may_peer_promote(data: VolumeData, *, by_force: bool) -> Reply:
    if data.state.role is Role.PRIMARY:
        return Reply.TWO_PRIMARIES
    if by_force and data.state.connection is not ConnectionState.CONNECTED:
        return Reply.RESYNC_RUNNING  # its data are half ours
    return Reply.NOTHING_TO_DO if data.state.peer is Role.PRIMARY else Reply.SUCCESS


def _peer_promoted(data: VolumeData, disk: DiskState | None) -> None:
    fields: dict[str, Any] = {"peer": Role.PRIMARY}
    if disk is DiskState.UP_TO_DATE:
        fields["peer_disk"] = DiskState.UP_TO_DATE
    data.change(f"{data.peer_name} became Primary", **fields)
    handshake.role_changed(data, Role.PRIMARY)


def _peer_disconnects(data: VolumeData, its_disk: DiskState | None) -> None:
    replicate.close_epoch(data)
    if its_disk is DiskState.OUTDATED:
        data.change(f"{data.peer_name} outdates itself", peer_disk=DiskState.OUTDATED)
    loss.link_lost(data, f"{data.peer_name} disconnects", ConnectionState.TEAR_DOWN)
    link_gone(data)


def _may_peer_invalidate(data: VolumeData, wanted: ConnectionState) -> Reply:
    if data.state.connection is not ConnectionState.CONNECTED:
        return Reply.RESYNC_RUNNING
    source_disk = data.state.disk if wanted is ConnectionState.STARTING_SYNC_T else data.state.peer_disk
    if source_disk is not DiskState.UP_TO_DATE:
        return Reply.NO_UP_TO_DATE_DISK
    if wanted is ConnectionState.STARTING_SYNC_S and data.state.role is Role.PRIMARY:
        return Reply.DEVICE_IN_USE
    return Reply.SUCCESS


def _peer_invalidates(data: VolumeData, wanted: ConnectionState) -> None:
    if wanted is ConnectionState.STARTING_SYNC_T:
        _begin_full_sync_as_source(data)
    else:
        _begin_full_sync_as_target(data)


def _begin_full_sync_as_source(data: VolumeData) -> None:
    data.change("full resync", connection=ConnectionState.STARTING_SYNC_S, peer_disk=DiskState.INCONSISTENT)
    _mark_everything(data)
    resync.start_as_source(data)


def _begin_full_sync_as_target(data: VolumeData) -> None:
    data.change(
        "full resync", connection=ConnectionState.STARTING_SYNC_T, disk=min(data.state.disk, DiskState.OUTDATED)
    )  # fmt: skip
    _mark_everything(data)
    data.change("waiting for the source", connection=ConnectionState.WF_SYNC_UUID)


def _mark_everything(data: VolumeData) -> None:
    data.full_sync = True
    data.persist_superblock()
    data.bitmap.set_all()
    data.persist_bitmap()


# requests of ours


def ask(data: VolumeData, request: StateRequest) -> None:
    """Ask the peer, after a ping: one that does not answer is dropped instead of believed."""
    assert data.session is not None
    session = data.session
    data.request = request

    def peer_is_alive() -> None:
        if data.request is not request or data.session is not session:
            return
        if request.change is Change.PROMOTE and data.state.peer is Role.PRIMARY:
            data.request = None
            _peer_was_first(data, request)
        else:
            request.sent = True
            command = packets.P_CONN_ST_CHG_REQ if request.whole_connection else packets.P_STATE_CHG_REQ
            body = STATE_CHANGE_BODY.pack(request.mask, request.value)
            data.send(Stream.DATA, packets.packet(command, body))

    session.after_ping.append(peer_is_alive)
    if session.ping_sent is None:
        session.ping_sent = data.now
        data.send(Stream.META, packets.packet(packets.P_PING))


def reply_arrived(data: VolumeData, session: Session, code: int) -> None:
    """The peer's yes or no. Raises PeerError for an answer to nothing."""
    request = data.request
    if request is None or not request.sent:
        raise PeerError("answered a request that we did not make")
    data.request = None
    if code < 0:
        words = REPLY_WORDS.get(code, f"code {code}")  # type: ignore[call-overload]
        if code == Reply.PRIMARY_REFUSES and request.change is Change.DISCONNECT:
            _disconnected(data, request)
            return
        if code in (Reply.CONCURRENT_CHANGE, Reply.TRANSIENT_STATE) and request.change is Change.DISCONNECT:
            # whoever wants to leave does not have to say so twice; `tick` ends it in any case
            request.sent = False
            ask(data, request)
            return
        data.answer(
            request.operation,
            data.refusal(
                f"{data.peer_name} refused to {request.change.value}: {words}",
                "try again" if code in (Reply.CONCURRENT_CHANGE, Reply.TRANSIENT_STATE) else "",
            ),
        )
        return
    _AGREED[request.change](data, request)


def _promoted_together(data: VolumeData, request: StateRequest) -> None:
    if data.state.peer is Role.PRIMARY:
        _peer_was_first(data, request)
        handshake.send_state(data)
    else:
        become_primary(data, f"{data.peer_name} agreed", request.operation)


def _peer_was_first(data: VolumeData, request: StateRequest) -> None:
    data.answer(request.operation, data.refusal(f"not promoted: {data.peer_name} became Primary at the same moment"))


def _promoted_by_force(data: VolumeData, request: StateRequest) -> None:
    """The peer's decision on what we send now makes it the target."""
    data.change(
        "by force",
        generation=data.generation.lost_peer(data.random_u64()).with_role_bit(True),
        role=Role.PRIMARY,
        disk=DiskState.UP_TO_DATE,
    )
    handshake.send_uuids(data)
    handshake.send_state(data)
    data.answer(request.operation)


def _disconnected(data: VolumeData, request: StateRequest) -> None:
    if request.mask & MASK_DISK and data.state.disk in (DiskState.UP_TO_DATE, DiskState.CONSISTENT):
        data.change("disconnecting from a Primary", disk=DiskState.OUTDATED)
    stand_alone(data, request.operation)


def _invalidated(data: VolumeData, request: StateRequest) -> None:
    if data.state.connection is ConnectionState.CONNECTED:
        _begin_full_sync_as_target(data)
    data.answer(request.operation)


def sync_uuid_arrived(data: VolumeData, session: Session, body: memoryview) -> None:
    """The source begins. On its own stream this may overtake the yes to our request to be invalidated."""
    request, connection = data.request, data.state.connection
    asked = request is not None and request.sent and request.change is Change.INVALIDATE
    if asked and connection is ConnectionState.CONNECTED:
        _begin_full_sync_as_target(data)
    resync.sync_uuid_arrived(data, session, body)


def _invalidated_remote(data: VolumeData, request: StateRequest) -> None:
    _begin_full_sync_as_source(data)
    data.answer(request.operation)


_AGREED = {
    Change.PROMOTE: _promoted_together,
    Change.PROMOTE_BY_FORCE: _promoted_by_force,
    Change.DISCONNECT: _disconnected,
    Change.INVALIDATE: _invalidated,
    Change.INVALIDATE_REMOTE: _invalidated_remote,
}


def link_gone(data: VolumeData) -> None:
    """A request that the peer can no longer answer: a disconnect is done by that, the rest is refused."""
    request, data.request = data.request, None
    if request is not None:
        if request.change is Change.DISCONNECT:
            _disconnected(data, request)
        else:
            data.answer(
                request.operation,
                data.refusal(
                    f"contact to {data.peer_name} was lost while it was asked to {request.change.value}",
                    f"mirroradm status {data.options.resource}",
                ),
            )
    look_if_demoted(data)


def tick(data: VolumeData) -> None:
    request = data.request
    if request is not None and data.now >= request.deadline:
        data.request = None
        if request.change is Change.DISCONNECT:
            _disconnected(data, request)
        else:
            data.answer(
                request.operation, data.refusal(f"{data.peer_name} did not answer in {ANSWER_S:g} s", "try again")
            )


def request_change(
    data: VolumeData, change: Change, operation: int, mask: int, value: int, whole: bool = False
) -> None:
    ask(data, StateRequest(change, operation, data.now + ANSWER_S, mask, value, whole))


def become_primary(data: VolumeData, reason: str, operation: int, forced: bool = False) -> None:
    """The generation says so durably before anybody may write: without the peer it is a new one."""
    generation, before = data.generation, data.generation.name
    goes_alone = not data.connected and data.state.peer_disk not in (DiskState.INCONSISTENT, DiskState.OUTDATED)
    if goes_alone and not forced and data.options.fencing is Fencing.RESOURCE_AND_STONITH:
        data.named_later = True
    elif data.state.peer_disk < DiskState.INCONSISTENT or not data.connected or forced:
        generation = generation.went_on_alone(data.random_u64())
    fields: dict[str, Any] = {"role": Role.PRIMARY}
    if forced or data.state.disk is not DiskState.UP_TO_DATE:
        fields["disk"] = DiskState.UP_TO_DATE
    if not data.size_bytes and data.layout is not None:
        handshake.set_size(data, data.layout.data_bytes)
    if data.record.get("right"):
        # a right is used up by the promotion it allowed: a crash from here on is a question again
        data.save_record({key: value for key, value in data.record.items() if key != "right"})
    data.change(reason, generation=generation.with_role_bit(True), **fields)
    if goes_alone:
        loss.fence_peer(data)  # it may believe that we were Primary, or equal, when it last saw us
    if data.connected:
        if generation.name != before:
            handshake.send_uuids(data)
        handshake.send_state(data)
    data.answer(operation)


def stand_alone(data: VolumeData, operation: int) -> None:
    if data.state.connection is not ConnectionState.STAND_ALONE:
        loss.link_lost(data, "asked to disconnect", stay_away=True)
    data.answer(operation)


def look_if_demoted(data: VolumeData) -> None:
    """Is everything stable that a demotion waits for?"""
    if data.demoting is None or not data.demote_flushed or not data.log.is_empty or data.waiting or data.frozen:
        return
    operation, data.demoting = data.demoting, None
    data.persist_bitmap()
    if not data.connected and not data.named_later:
        # nobody has newer data than we. Demoted while frozen we cannot say so: the peer may have gone on
        data.save_record(data.record | hand_over_record(data.generation.name))
    data.named_later = False
    data.change("demoted", generation=data.generation.with_role_bit(False), role=Role.SECONDARY)
    if data.connected:
        handshake.send_state(data)
    data.answer(operation)
