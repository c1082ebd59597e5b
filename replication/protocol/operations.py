"""What an operator asks of a volume. Each ends in an answer: done, or refused with fact and remedy."""

from __future__ import annotations

import enum

from replication.protocol import handshake, packets, replicate
from replication.protocol.agreement import (
    MASK_CONNECTION,
    MASK_DISK,
    MASK_ROLE,
    become_primary,
    look_if_demoted,
    request_change,
    stand_alone,
)
from replication.protocol.errors import MirrorError
from replication.protocol.packets import UuidFlag
from replication.protocol.requests import ESHUTDOWN
from replication.protocol.states import ConnectionState, DiskState, Role
from replication.protocol.takeover import Standing, eligible, permit_record
from replication.protocol.volume_data import Change, VolumeData


class Force(enum.Enum):
    NO = "no"
    OVERWRITE = "overwrite"
    """Take a disk that is not known to be good as the truth; the peer's data will be overwritten."""


def standing(data: VolumeData) -> Standing:
    """What decides whether this side may become Primary now."""
    state = data.state
    # a Secondary without a disk cannot tell whether its data were newer than ours: it counts as not seen
    speaks_for_its_data = state.peer_disk >= DiskState.INCONSISTENT or state.peer is Role.PRIMARY
    return Standing(
        policy=data.options.takeover,
        fencing=data.options.fencing,
        disk=state.disk,
        peer_disk=state.peer_disk,
        connected=data.connected and speaks_for_its_data,
        peer_role_now=state.peer,
        peer_role_at_loss=data.peer_role_at_loss,
        was_equal_at_loss=data.equal_at_loss,
        record=data.record,
        generation=data.generation.name,
        local_name=data.options.local_name,
        peer_name=data.options.peer_name,
        resource=data.options.resource,
    )


def promote(data: VolumeData, operation: int, force: Force) -> None:
    """Become Primary, if nothing forbids it; asks the peer when there is one.

    What came as a Secondary is made stable first: as Primary our activity log speaks only of what we write ourselves.
    """
    if data.state.role is Role.PRIMARY:
        data.answer(operation)
    elif error := _why_not_promoted(data, force):
        data.answer(operation, error)
    else:
        data.promoting = operation
        contacts_lost = data.contacts_lost
        data.flush(lambda: _promote_stable(data, operation, force, contacts_lost))


def _why_not_promoted(data: VolumeData, force: Force) -> MirrorError | None:
    return _busy(data) or (_may_force(data) if force is Force.OVERWRITE else eligible(standing(data)))


def _promote_stable(data: VolumeData, operation: int, force: Force, contacts_lost: int) -> None:
    """Everything may have changed during the flush."""
    data.promoting = None
    if error := _why_not_promoted(data, force):
        data.answer(operation, error)
    elif data.contacts_lost != contacts_lost:
        # whoever asked did so beside a peer; that it is gone now, and switched off, he has not said
        data.answer(operation, data.refusal(f"contact with {data.peer_name} was lost meanwhile", "ask again"))
    elif force is Force.OVERWRITE and data.state.disk is not DiskState.UP_TO_DATE:
        if data.connected:
            value = Role.PRIMARY | DiskState.UP_TO_DATE << 9
            request_change(data, Change.PROMOTE_BY_FORCE, operation, MASK_ROLE | MASK_DISK, value)
        else:
            become_primary(data, "by force", operation, forced=True)
    elif data.connected:
        request_change(data, Change.PROMOTE, operation, MASK_ROLE, Role.PRIMARY)
    else:
        become_primary(data, "without the peer", operation)


def _busy(data: VolumeData) -> MirrorError | None:
    if data.request is not None:
        return data.refusal(f"it is being asked of {data.peer_name} to {data.request.change.value}", "try again")
    if data.state.connection is ConnectionState.WF_REPORT_PARAMS:
        return data.refusal(f"the handshake with {data.peer_name} is not over", "try again")
    if data.demoting is not None or data.promoting is not None:
        return data.refusal("another change of its role is under way", "try again")
    return None


def _may_force(data: VolumeData) -> MirrorError | None:
    state = data.state
    if state.disk < DiskState.INCONSISTENT:
        return data.refusal("has no disk to take as the truth", f"mirroradm up {data.options.resource}", code=16)
    if data.connected and state.peer_disk > DiskState.INCONSISTENT:
        if state.disk is DiskState.UP_TO_DATE:
            return eligible(standing(data))
        return data.refusal(
            f"{data.peer_name} holds better data ({state.peer_disk}) than this side ({state.disk})",
            f"promote {data.peer_name}, or wait for the resync",
        )
    if data.connected and state.connection is not ConnectionState.CONNECTED:
        return data.refusal(f"{state.connection} is running", "wait until it has ended")
    if data.connected and state.peer is Role.PRIMARY:
        return eligible(standing(data))
    return None


def permit(data: VolumeData, operation: int, accept_loss: str) -> None:
    """The operator accepts what may be only on the peer; holds for the generation that is here now."""
    if accept_loss != data.options.local_name:
        data.answer(
            operation,
            data.refusal(
                f'the host that would go on without newer data is {data.options.local_name}, not "{accept_loss}"',
                f"mirroradm permit {data.options.resource} --accept-loss={data.options.local_name}",
                code=1,
            ),
        )
    elif standing(data).connected:
        data.answer(
            operation,
            data.refusal(
                f"{data.peer_name} is connected; nothing has to be lost",
                "if it has just died, that is noticed in a moment: try again",
            ),
        )
    elif data.state.disk < DiskState.OUTDATED:
        data.answer(
            operation,
            data.refusal(f"the disk here is {data.state.disk}, no image an application could use", code=17),
        )
    else:
        data.save_record(data.record | permit_record(data.generation.name, accept_loss))
        data.answer(operation)


def demote(data: VolumeData, operation: int) -> None:
    """Become Secondary, once everything is stable on both sides. The device must be gone already."""
    if data.state.role is not Role.PRIMARY:
        data.answer(operation)
        return
    if data.state.disk < DiskState.INCONSISTENT:
        data.change("demoted", role=Role.SECONDARY)
        data.answer(operation)
        return
    if error := _busy(data):
        data.answer(operation, error)
        return
    if data.frozen:
        # its device is gone, so nobody waits any more for what was held back; none of it was acknowledged
        replicate.fail_clients(data, ESHUTDOWN)
        data.fencing_since = data.fencing_again = None
        data.change("demoted before the peer was fenced", suspended_fencing=False)
    data.demoting = operation
    replicate.close_epoch(data)

    def stable() -> None:
        if data.demoting == operation:
            data.demote_flushed = True
            look_if_demoted(data)

    data.demote_flushed = False
    data.flush(stable)


def connect(data: VolumeData, operation: int, discard_my_data: bool) -> None:
    connection = data.state.connection
    if discard_my_data and data.state.role is Role.PRIMARY:
        data.answer(
            operation,
            data.refusal(
                "a Primary cannot discard its data", f"stop its user, then: mirroradm secondary {data.options.resource}"
            ),
        )
        return
    if connection is not ConnectionState.STAND_ALONE:
        if discard_my_data and data.session is not None:
            data.answer(operation, data.refusal(f"is {connection} already", "disconnect first"))
            return
        data.discard_my_data = data.discard_my_data or discard_my_data
        data.answer(operation)
        return
    data.discard_my_data = discard_my_data
    data.reason = data.remedy = ""
    data.change("asked to connect", connection=ConnectionState.UNCONNECTED)
    data.change("asked to connect", connection=ConnectionState.WF_CONNECTION)
    data.answer(operation)


def disconnect(data: VolumeData, operation: int) -> None:
    """Leave politely. A Secondary that leaves a Primary is outdated from then on, and says so."""
    state = data.state
    if data.connected:
        if error := _busy(data):
            data.answer(operation, error)
            return
        replicate.close_epoch(data)
        mask, value = MASK_CONNECTION, ConnectionState.DISCONNECTING << 4
        if state.peer is Role.PRIMARY and state.role is not Role.PRIMARY and state.disk >= DiskState.OUTDATED:
            mask, value = mask | MASK_DISK, value | DiskState.OUTDATED << 9
        request_change(data, Change.DISCONNECT, operation, mask, value, whole=True)
    else:
        stand_alone(data, operation)


def invalidate(data: VolumeData, operation: int) -> None:
    """Our data are declared bad: everything comes from the peer."""
    state = data.state
    if state.role is Role.PRIMARY:
        data.answer(
            operation,
            data.refusal("this side is Primary; its data cannot be overwritten under its user", "demote it first"),
        )
    elif state.disk < DiskState.INCONSISTENT:
        data.answer(operation, data.refusal("has no disk", code=16))
    elif data.connected:
        error = _busy(data)
        if error is None and state.connection is not ConnectionState.CONNECTED:
            error = data.refusal(f"{state.connection} is running", "wait until it has ended")
        if error is None and state.peer_disk is not DiskState.UP_TO_DATE:
            error = data.refusal(f"{data.peer_name} has no UpToDate data to take ({state.peer_disk})", code=17)
        if error is not None:
            data.answer(operation, error)
        else:
            request_change(data, Change.INVALIDATE, operation, MASK_CONNECTION, ConnectionState.STARTING_SYNC_T << 4)
    else:
        data.bitmap.set_all()
        data.persist_bitmap()  # first: a crash in between must not leave an Inconsistent disk with few blocks marked
        data.change("invalidated", disk=DiskState.INCONSISTENT)
        data.answer(operation)


def invalidate_remote(data: VolumeData, operation: int) -> None:
    """The peer's data are declared bad: everything goes there from here."""
    state = data.state
    error: MirrorError | None = _busy(data)
    if error is None and not data.connected:
        error = data.refusal(f"{data.peer_name} is not connected", f"mirroradm connect {data.options.resource}")
    elif error is None and state.connection is not ConnectionState.CONNECTED:
        error = data.refusal(f"{state.connection} is running", "wait until it has ended")
    elif error is None and state.peer is Role.PRIMARY:
        error = data.refusal(f"{data.peer_name} is Primary; its data cannot be overwritten under its user")
    elif error is None and state.disk is not DiskState.UP_TO_DATE:
        error = data.refusal(f"the data here are {state.disk}", code=17)
    if error is not None:
        data.answer(operation, error)
    else:
        request_change(data, Change.INVALIDATE_REMOTE, operation, MASK_CONNECTION, ConnectionState.STARTING_SYNC_S << 4)


def outdate(data: VolumeData, operation: int) -> None:
    """Our data are declared old."""
    state = data.state
    if state.role is Role.PRIMARY:
        data.answer(operation, data.refusal("this side is Primary"))
    elif data.connected:
        data.answer(operation, data.refusal(f"{data.peer_name} is connected", "mirroradm disconnect first"))
    elif state.disk < DiskState.OUTDATED:
        data.answer(operation, data.refusal(f"the disk is {state.disk} already", code=5))
    else:
        if state.disk is not DiskState.OUTDATED:
            data.change("outdated by the operator", disk=DiskState.OUTDATED)
        data.answer(operation)


def new_current_uuid(data: VolumeData, operation: int) -> None:
    """Both disks are declared equal as they are, and good: no first resync."""
    state = data.state
    fresh = packets.UUID_JUST_CREATED
    if state.connection is not ConnectionState.CONNECTED or data.session is None:
        data.answer(operation, data.refusal(f"{data.peer_name} is not connected"))
        return
    peer = data.session.peer.generation
    if data.generation.current != fresh or peer is None or peer.current != fresh:
        data.answer(
            operation,
            data.refusal("only two disks fresh from create-md can be declared equal", "mirroradm create-md on both"),
        )
        return
    data.bitmap.clear_all()
    data.persist_bitmap()
    data.change(
        "both disks are declared equal",
        generation=data.generation.cleared(data.random_u64()),
        disk=DiskState.UP_TO_DATE,
        peer_disk=DiskState.UP_TO_DATE,
    )
    data.session.peer.generation = data.generation
    handshake.send_uuids(data, UuidFlag.SKIP_INITIAL_SYNC)
    data.answer(operation)
