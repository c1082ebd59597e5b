"""The link is gone, or our disk is: what must be true before anybody hears of it.

Order on the loss of the peer: blocks that may differ are marked, the new generation is durable, and only then writes in
flight are answered. With fencing, they are answered once the handler has made sure that the peer cannot take over.
"""

from __future__ import annotations

from typing import Any

from replication.protocol import effects, replicate
from replication.protocol.epoch import TransferLog
from replication.protocol.errors import PeerError
from replication.protocol.options import Fencing
from replication.protocol.states import ConnectionState, DiskState, Role
from replication.protocol.volume_data import VolumeData

FENCED = {3, 4, 5, 7}
"""Exit codes of a fence-peer handler that let a Primary go on: inconsistent, outdated, unreachable, powered off."""
PEER_IS_OLD = {3, 4, 7}
FENCING_RETRY_S = 5.0


def link_lost(
    data: VolumeData, fact: str, why: ConnectionState = ConnectionState.NETWORK_FAILURE, stay_away: bool = False
) -> None:
    """End the connection, whatever its state. `stay_away`: StandAlone instead of trying again.

    Idempotent: without a connection only `stay_away` has an effect.
    """
    before = data.state
    if before.connection in (ConnectionState.STAND_ALONE, ConnectionState.DISCONNECTING):
        return
    session, data.session = data.session, None
    was_connected = before.connection >= ConnectionState.CONNECTED
    data.contacts_lost += was_connected
    if was_connected and (before.peer_disk >= DiskState.INCONSISTENT or before.peer is Role.PRIMARY):
        data.peer_role_at_loss = before.peer
        data.equal_at_loss = before.disk is DiskState.UP_TO_DATE and before.peer_disk is DiskState.UP_TO_DATE
    data.resync = None
    log, data.log = data.log, TransferLog(data.log.current.number + 1)
    primary = before.role is Role.PRIMARY
    for epoch in log.epochs():
        for offset, length in epoch.ranges:
            data.bitmap.set_range(offset, length)
    generation = None
    alone = primary and was_connected and before.disk is DiskState.UP_TO_DATE
    # a peer that is being synchronised may have finished, and nobody could tell us
    may_be_equal = before.connection is ConnectionState.SYNC_SOURCE and not data.bitmap.count
    if alone and (may_be_equal or (before.peer_disk >= DiskState.INCONSISTENT and data.generation.bitmap == 0)):
        if data.options.fencing is Fencing.RESOURCE_AND_STONITH:
            # it may be the peer that goes on; what was on its way is then all that differs, as after a crash
            data.named_later = data.crashed_primary = True
        else:
            generation = data.generation.went_on_alone(data.random_u64())
    peer_disk = before.peer_disk if before.peer_disk is DiskState.OUTDATED else DiskState.UNKNOWN
    lost: dict[str, Any] = {"peer": Role.UNKNOWN, "peer_disk": peer_disk, "resync_paused_by_peer": False}
    if stay_away:
        data.change(fact, generation, connection=ConnectionState.DISCONNECTING, **lost)
        data.change(fact, connection=ConnectionState.STAND_ALONE)
    elif (
        before.connection is not ConnectionState.UNCONNECTED and before.connection is not ConnectionState.WF_CONNECTION
    ):
        data.change(fact, generation, connection=why, **lost)
        data.change(fact, connection=ConnectionState.UNCONNECTED)
    if not stay_away and data.state.connection is ConnectionState.UNCONNECTED:
        data.change("trying again", connection=ConnectionState.WF_CONNECTION)
    if session is not None:
        data.out.append(effects.DropLink(fact))
    if alone:
        fence_peer(data)
    done = [entry[0] for entry in log.in_flight.values()]
    done += [request for epoch in log.epochs() for request in epoch.waiters]
    replicate.parts_done(data, done)
    replicate.pump(data)


def fence_peer(data: VolumeData) -> None:
    """A Primary goes on without its peer: have it made sure that the peer does not take over with what it has."""
    if data.options.fencing is Fencing.DONT_CARE:
        return
    if data.options.fencing is Fencing.RESOURCE_AND_STONITH:
        data.frozen = True
        data.change("waiting until the peer is fenced", suspended_fencing=True)
    data.fencing_since = data.now
    data.out.append(effects.CallHandler("fence-peer"))


def fencing_ended(data: VolumeData, exit_code: int) -> None:
    """What the fence-peer handler said. Without a yes, a frozen Primary stays frozen and asks again later."""
    if data.connected or data.fencing_since is None:
        return
    if exit_code not in FENCED:
        data.fencing_since = data.now
        data.fencing_again = data.now + FENCING_RETRY_S
        data.note(
            f"{data.subject}: fence-peer ended with {exit_code}; "
            + ("I/O stays frozen, and it is asked again" if data.frozen else f"{data.peer_name} may take over"),
            urgent=True,
        )
        return
    data.fencing_since = None
    fields: dict[str, Any] = {"suspended_fencing": False}
    if exit_code in PEER_IS_OLD:
        fields["peer_disk"] = DiskState.INCONSISTENT if exit_code == 3 else DiskState.OUTDATED
    generation = None
    if data.named_later:
        generation, data.crashed_primary = data.generation.went_on_alone(data.random_u64()), False
    data.change(f"fence-peer said {exit_code}", generation, **fields)
    thaw(data)


def tick(data: VolumeData) -> None:
    """Ask a fence-peer handler again that had said no."""
    if data.fencing_again is not None and data.now >= data.fencing_again:
        data.fencing_again = None
        if data.fencing_since is not None and not data.connected:
            data.out.append(effects.CallHandler("fence-peer"))


def thaw(data: VolumeData) -> None:
    """Answer what was held back and go on."""
    data.named_later = False
    data.fencing_since = data.fencing_again = None
    if data.state.suspended_fencing:
        data.change("no need to wait any more", suspended_fencing=False)
    if data.frozen:
        data.frozen = False
        held, data.held = data.held, []
        data.complete(held)
        replicate.pump(data)


def peer_misbehaved(data: VolumeData, error: PeerError) -> None:
    """The peer sent what it must not: drop it; for good when trying again cannot help."""
    data.note(f"{data.subject}: {data.peer_name}: {error.fact}" + (f"; {error.remedy}" if error.remedy else ""), True)
    link_lost(data, error.fact, ConnectionState.PROTOCOL_ERROR, stay_away=error.for_good)
    if error.for_good:
        data.reason, data.remedy = f"StandAlone: {error.fact}", error.remedy


def disk_failed(data: VolumeData, fact: str) -> None:
    """Our disk cannot be trusted any more. What it held is covered by its activity log and by the peer.

    A Primary's device fails with it; the peer hears nothing more from us until we are Secondary.
    """
    if data.state.disk <= DiskState.FAILED:
        return
    primary = data.state.role is Role.PRIMARY
    data.superblock = None  # nothing more is written there: its Primary mark and its log must stay as they are
    data.change(fact, disk=DiskState.FAILED)
    if primary:
        replicate.fail_clients(data)
    stay_away = primary or data.state.connection is ConnectionState.STAND_ALONE
    link_lost(data, fact, stay_away=stay_away)
    data.change(fact, disk=DiskState.DISKLESS)
    data.reason = f"the disk failed: {fact}"
    data.remedy = f"replace it, then: mirroradm down {data.options.resource}, mirroradm create-md, mirroradm up"
    data.activity_log = None
    data.on_flush.clear()
    data.flushing_extents.clear()
    data.written_extents.clear()
    for operation in (data.promoting, data.demoting, data.detaching):
        if operation is not None:
            data.answer(operation, data.refusal(data.reason, data.remedy, code=16))
    data.promoting = data.demoting = data.detaching = None
    data.named_later = False
    if primary:
        data.out.append(effects.DeviceFailed(fact))
    data.note(f"{data.subject}: {data.reason}", urgent=True)
