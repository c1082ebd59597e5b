"""Role, disk and connection states, with the numbers they have on the wire, and the tables of what may follow what.

Numbers and names are DRBD 8.4's: one connection state says both how the link is and what the replication does. The
ranks of disk states mean something: many rules compare them with < and >.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Role(enum.IntEnum):
    UNKNOWN = 0
    """Only ever said of a peer."""
    PRIMARY = 1
    SECONDARY = 2

    def __str__(self) -> str:
        return self.name.capitalize()


class DiskState(enum.IntEnum):
    DISKLESS = 0
    ATTACHING = 1
    FAILED = 2
    NEGOTIATING = 3
    INCONSISTENT = 4
    """A mixture of two images; never usable by itself."""
    OUTDATED = 5
    """Consistent, and known to be old."""
    UNKNOWN = 6
    """Said of the peer's disk while there is no contact."""
    CONSISTENT = 7
    """Consistent; whether it is the newest is known once the peer was seen or fenced."""
    UP_TO_DATE = 8

    def __str__(self) -> str:
        return _DISK_WORDS[self]


class ConnectionState(enum.IntEnum):
    STAND_ALONE = 0
    DISCONNECTING = 1
    UNCONNECTED = 2
    TIMEOUT = 3
    BROKEN_PIPE = 4
    NETWORK_FAILURE = 5
    PROTOCOL_ERROR = 6
    TEAR_DOWN = 7
    WF_CONNECTION = 8
    WF_REPORT_PARAMS = 9
    CONNECTED = 10
    STARTING_SYNC_S = 11
    STARTING_SYNC_T = 12
    WF_BITMAP_S = 13
    WF_BITMAP_T = 14
    WF_SYNC_UUID = 15
    SYNC_SOURCE = 16
    SYNC_TARGET = 17
    VERIFY_S = 18
    VERIFY_T = 19
    PAUSED_SYNC_S = 20
    PAUSED_SYNC_T = 21
    AHEAD = 22
    BEHIND = 23

    def __str__(self) -> str:
        return _CONNECTION_WORDS[self]

    @property
    def link(self) -> str:
        """The word DRBD 9's tools show as `connection:`."""
        if self >= ConnectionState.CONNECTED:
            return "Connected"
        return "Connecting" if self in (ConnectionState.WF_CONNECTION, ConnectionState.WF_REPORT_PARAMS) else str(self)

    @property
    def replication(self) -> str:
        """The word DRBD 9's tools show as `replication:`."""
        if self < ConnectionState.CONNECTED:
            return "Off"
        return "Established" if self is ConnectionState.CONNECTED else str(self)


_DISK_WORDS = {
    state: {"UNKNOWN": "DUnknown"}.get(state.name, state.name.title().replace("_", "")) for state in DiskState
}
_CONNECTION_WORDS = {
    state: state.name.title().replace("_", "").replace("Wf", "WF").replace("Bitmap", "BitMap").replace("Uuid", "UUID")
    for state in ConnectionState
}

NEXT_CONNECTION: dict[ConnectionState, frozenset[ConnectionState]]
"""Which connection state may follow which, for us. Any state may be left for the reason the link went."""
NEXT_DISK: dict[DiskState, frozenset[DiskState]]
"""Which disk state may follow which, for our own disk. Any may fail."""

_C, _D = ConnectionState, DiskState
_LOST = frozenset(
    {_C.DISCONNECTING, _C.UNCONNECTED, _C.TIMEOUT, _C.BROKEN_PIPE, _C.NETWORK_FAILURE, _C.PROTOCOL_ERROR, _C.TEAR_DOWN}
)
NEXT_CONNECTION = {
    _C.STAND_ALONE: frozenset({_C.UNCONNECTED}),
    _C.DISCONNECTING: frozenset({_C.STAND_ALONE}),
    _C.UNCONNECTED: frozenset({_C.WF_CONNECTION, _C.DISCONNECTING}),
    **{state: frozenset({_C.UNCONNECTED, _C.DISCONNECTING}) for state in _LOST - {_C.DISCONNECTING, _C.UNCONNECTED}},
    _C.WF_CONNECTION: frozenset({_C.WF_REPORT_PARAMS}) | _LOST,
    _C.WF_REPORT_PARAMS: frozenset({_C.CONNECTED, _C.WF_BITMAP_S, _C.WF_BITMAP_T}) | _LOST,
    _C.CONNECTED: frozenset(
        {_C.STARTING_SYNC_S, _C.STARTING_SYNC_T, _C.WF_BITMAP_S, _C.WF_BITMAP_T, _C.WF_SYNC_UUID, _C.BEHIND}
    )
    | _LOST,
    _C.STARTING_SYNC_S: frozenset({_C.SYNC_SOURCE}) | _LOST,
    _C.STARTING_SYNC_T: frozenset({_C.WF_SYNC_UUID}) | _LOST,
    _C.WF_BITMAP_S: frozenset({_C.SYNC_SOURCE}) | _LOST,
    _C.WF_BITMAP_T: frozenset({_C.WF_SYNC_UUID}) | _LOST,
    _C.WF_SYNC_UUID: frozenset({_C.SYNC_TARGET, _C.PAUSED_SYNC_T}) | _LOST,
    _C.SYNC_SOURCE: frozenset({_C.CONNECTED, _C.PAUSED_SYNC_S}) | _LOST,
    _C.SYNC_TARGET: frozenset({_C.CONNECTED, _C.PAUSED_SYNC_T}) | _LOST,
    _C.PAUSED_SYNC_S: frozenset({_C.SYNC_SOURCE, _C.CONNECTED}) | _LOST,
    _C.PAUSED_SYNC_T: frozenset({_C.SYNC_TARGET, _C.CONNECTED}) | _LOST,
    _C.BEHIND: frozenset({_C.SYNC_TARGET, _C.PAUSED_SYNC_T}) | _LOST,
    _C.VERIFY_S: _LOST,
    _C.VERIFY_T: _LOST,
    _C.AHEAD: _LOST,
}
NEXT_DISK = {
    _D.DISKLESS: frozenset({_D.ATTACHING}),
    _D.ATTACHING: frozenset({_D.NEGOTIATING, _D.INCONSISTENT, _D.OUTDATED, _D.CONSISTENT, _D.UP_TO_DATE, _D.FAILED}),
    _D.FAILED: frozenset({_D.DISKLESS}),
    _D.NEGOTIATING: frozenset({_D.INCONSISTENT, _D.OUTDATED, _D.CONSISTENT, _D.UP_TO_DATE, _D.FAILED}),
    _D.INCONSISTENT: frozenset({_D.UP_TO_DATE, _D.OUTDATED, _D.FAILED}),
    _D.OUTDATED: frozenset({_D.INCONSISTENT, _D.UP_TO_DATE, _D.CONSISTENT, _D.FAILED}),
    _D.UNKNOWN: frozenset(),
    _D.CONSISTENT: frozenset({_D.INCONSISTENT, _D.OUTDATED, _D.UP_TO_DATE, _D.FAILED}),
    _D.UP_TO_DATE: frozenset({_D.INCONSISTENT, _D.OUTDATED, _D.CONSISTENT, _D.FAILED}),
}


@dataclass(frozen=True, slots=True)
class State:
    """What a node says of itself and of its peer: the fields of P_STATE."""

    role: Role = Role.SECONDARY
    peer: Role = Role.UNKNOWN
    connection: ConnectionState = ConnectionState.STAND_ALONE
    disk: DiskState = DiskState.DISKLESS
    peer_disk: DiskState = DiskState.UNKNOWN
    suspended_by_user: bool = False
    resync_paused_by_dependency: bool = False
    resync_paused_by_peer: bool = False
    resync_paused_by_user: bool = False
    suspended_no_data: bool = False
    suspended_fencing: bool = False

    def encode(self) -> int:
        """The u32 of P_STATE."""
        return (
            self.role
            | self.peer << 2
            | self.connection << 4
            | self.disk << 9
            | self.peer_disk << 13
            | self.suspended_by_user << 17
            | self.resync_paused_by_dependency << 18
            | self.resync_paused_by_peer << 19
            | self.resync_paused_by_user << 20
            | self.suspended_no_data << 21
            | self.suspended_fencing << 22
        )

    @staticmethod
    def decode(value: int) -> State:
        """Raises ValueError for a number no state has."""
        return State(
            Role(value & 3),
            Role(value >> 2 & 3),
            ConnectionState(value >> 4 & 31),
            DiskState(value >> 9 & 15),
            DiskState(value >> 13 & 15),
            bool(value >> 17 & 1),
            bool(value >> 18 & 1),
            bool(value >> 19 & 1),
            bool(value >> 20 & 1),
            bool(value >> 21 & 1),
            bool(value >> 22 & 1),
        )
