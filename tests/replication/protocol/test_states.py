from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from replication.protocol.states import NEXT_CONNECTION, NEXT_DISK, ConnectionState, DiskState, Role, State

C, D = ConnectionState, DiskState


@pytest.mark.parametrize(
    ("state", "number"),
    [
        (State(Role.SECONDARY, Role.UNKNOWN, C.WF_CONNECTION, D.INCONSISTENT, D.UNKNOWN), 0x0000C882),
        (State(Role.SECONDARY, Role.SECONDARY, C.CONNECTED, D.UP_TO_DATE, D.UP_TO_DATE), 0x000110AA),
        (State(Role.SECONDARY, Role.PRIMARY, C.WF_BITMAP_T, D.INCONSISTENT, D.DISKLESS), 0x000008E6),
    ],
)
def test_states_have_the_numbers_that_drbd_was_seen_to_send(state: State, number: int) -> None:
    assert state.encode() == number
    assert State.decode(number) == state


def test_a_captured_state_with_an_up_to_date_peer_is_read_as_what_it_was() -> None:
    state = State.decode(0x000108E6)
    assert (state.role, state.peer, state.connection) == (Role.SECONDARY, Role.PRIMARY, C.WF_BITMAP_T)
    assert (state.disk, state.peer_disk) == (D.INCONSISTENT, D.UP_TO_DATE)


def test_each_flag_has_a_bit_of_its_own() -> None:
    flags = (
        "suspended_by_user",
        "resync_paused_by_dependency",
        "resync_paused_by_peer",
        "resync_paused_by_user",
        "suspended_no_data",
        "suspended_fencing",
    )
    plain = State().encode()
    for bit, name in enumerate(flags, 17):
        fields: dict[str, Any] = {name: True}
        state = dataclasses.replace(State(), **fields)
        assert state.encode() == plain | 1 << bit
        assert State.decode(state.encode()) == state


@pytest.mark.parametrize("number", [3, 3 << 2, 24 << 4 | 2, 9 << 9 | 2, 15 << 13 | 2])
def test_a_number_that_no_state_has_is_an_error(number: int) -> None:
    with pytest.raises(ValueError, match="is not a valid"):
        State.decode(number)


def test_states_are_spelled_as_drbd_spells_them() -> None:
    spelled = [str(state) for state in (C.STAND_ALONE, C.WF_BITMAP_S, C.WF_SYNC_UUID, C.STARTING_SYNC_T)]
    assert spelled == ["StandAlone", "WFBitMapS", "WFSyncUUID", "StartingSyncT"]
    assert [str(disk) for disk in (D.UNKNOWN, D.UP_TO_DATE, D.DISKLESS)] == ["DUnknown", "UpToDate", "Diskless"]
    assert (C.WF_REPORT_PARAMS.link, C.SYNC_SOURCE.link, C.STAND_ALONE.link) == (
        "Connecting",
        "Connected",
        "StandAlone",
    )
    assert (C.CONNECTED.replication, C.SYNC_TARGET.replication, C.TEAR_DOWN.replication) == (
        "Established",
        "SyncTarget",
        "Off",
    )


def test_stand_alone_is_only_left_by_connecting() -> None:
    assert NEXT_CONNECTION[C.STAND_ALONE] == {C.UNCONNECTED}


def test_stand_alone_is_only_reached_by_disconnecting() -> None:
    assert {state for state, following in NEXT_CONNECTION.items() if C.STAND_ALONE in following} == {C.DISCONNECTING}


def test_a_link_may_be_lost_in_every_state_that_has_one() -> None:
    reasons = {C.DISCONNECTING, C.TIMEOUT, C.BROKEN_PIPE, C.NETWORK_FAILURE, C.PROTOCOL_ERROR, C.TEAR_DOWN}
    for state in C:
        if state >= C.WF_CONNECTION:
            assert reasons <= NEXT_CONNECTION[state], state


def test_a_target_passes_the_sync_uuid_before_it_is_one() -> None:
    before = {state for state, following in NEXT_CONNECTION.items() if C.SYNC_TARGET in following}
    assert before == {C.WF_SYNC_UUID, C.PAUSED_SYNC_T, C.BEHIND}


def test_a_failed_disk_only_becomes_diskless() -> None:
    assert NEXT_DISK[D.FAILED] == {D.DISKLESS}


def test_every_disk_in_use_may_fail() -> None:
    assert all(D.FAILED in NEXT_DISK[disk] for disk in D if disk >= D.NEGOTIATING and disk is not D.UNKNOWN)


def test_a_disk_is_never_unknown_to_its_own_node() -> None:
    assert all(D.UNKNOWN not in following for following in NEXT_DISK.values())
