"""The packets of DRBD 8.4's wire protocol, version 100 and 101: numbers, flags and layouts.

Integers are big endian. A `block_id` and a `barrier` belong to whoever made them: the other side only gives them back.
Structures of the hot path (`BLOCK`, `ACK`) include their header, so that one unpack reads both.
"""

from __future__ import annotations

import enum
from struct import Struct

MAGIC_80, MAGIC_100 = 0x83740267, 0x8620EC20
PROTOCOL_MIN, PROTOCOL_MAX = 100, 101
"""From 100 there is one header format, volumes, and explicit requests for acknowledgements."""

SECTOR_BYTES = 512
BLOCK_BYTES = 4096
EXTENT_SHIFT = 22
"""An activity log extent is 4 MiB."""
REQUEST_BYTES_MAX = 1 << 20
ZEROES_BYTES_MAX = 64 << 20
"""DRBD takes 128 MiB; less keeps the extents of one packet few."""
ID_SYNCER = 2**64 - 1
"""block_id of resync traffic."""
UUID_JUST_CREATED = 4
SECRET_BYTES_MAX = 64

# commands; plain integers, because the hot path compares them
P_DATA, P_DATA_REPLY, P_RS_DATA_REPLY, P_BARRIER, P_BITMAP = 0x00, 0x01, 0x02, 0x03, 0x04
P_UNPLUG_REMOTE, P_DATA_REQUEST, P_RS_DATA_REQUEST = 0x07, 0x08, 0x09
P_PROTOCOL, P_UUIDS, P_SIZES, P_STATE, P_SYNC_UUID = 0x0B, 0x0C, 0x0D, 0x0E, 0x0F
P_AUTH_CHALLENGE, P_AUTH_RESPONSE, P_STATE_CHG_REQ = 0x10, 0x11, 0x12
P_PING, P_PING_ACK, P_RECV_ACK, P_WRITE_ACK, P_RS_WRITE_ACK = 0x13, 0x14, 0x15, 0x16, 0x17
P_NEG_ACK, P_NEG_DREPLY, P_NEG_RS_DREPLY, P_BARRIER_ACK, P_STATE_CHG_REPLY = 0x19, 0x1A, 0x1B, 0x1C, 0x1D
P_RS_IS_IN_SYNC, P_SYNC_PARAM89, P_COMPRESSED_BITMAP, P_DELAY_PROBE = 0x22, 0x23, 0x24, 0x27
P_OUT_OF_SYNC, P_RS_CANCEL, P_CONN_ST_CHG_REQ, P_CONN_ST_CHG_REPLY = 0x28, 0x29, 0x2A, 0x2B
P_PROTOCOL_UPDATE, P_TRIM, P_RS_THIN_REQ, P_ZEROES = 0x2D, 0x31, 0x32, 0x36
P_CONNECTION_FEATURES = 0xFFFE

NAMES: dict[int, str] = {
    value: name for name, value in list(globals().items()) if name.startswith("P_") and isinstance(value, int)
}
"""Command -> name, for messages."""


class Feature(enum.IntFlag):
    NONE = 0
    TRIM = 1
    THIN_RESYNC = 2
    WRITE_SAME = 4
    """P_SIZES carries queue limits, and equal generations with a Primary may be resolved (rule 41)."""
    ZEROES = 8
    BARRIERS_ASK = 1 << 30
    """Known to mirrord only: a barrier asks when all before it is stable, and orders nothing. Our clients' flushes and
    FUA writes are answered after the ack, so nobody has sent a write that relies on it. A kernel's Primary answers
    flushes earlier and counts on the order; it does not set this bit."""


FEATURES = Feature.TRIM | Feature.WRITE_SAME | Feature.ZEROES | Feature.BARRIERS_ASK

# dp_flags of P_DATA, P_TRIM and P_ZEROES
DP_SYNC, DP_MAY_SET_IN_SYNC, DP_FUA, DP_FLUSH, DP_DISCARD = 2, 4, 16, 32, 64
DP_SEND_RECEIVE_ACK, DP_SEND_WRITE_ACK, DP_ZEROES = 128, 256, 1024


class UuidFlag(enum.IntFlag):
    """Sixth word of P_UUIDS."""

    NONE = 0
    DISCARD_MY_DATA = 1
    CRASHED_PRIMARY = 2
    WILL_BE_INCONSISTENT = 4
    SKIP_INITIAL_SYNC = 8


HEADER_80 = Struct(">IHH")
HEADER = Struct(">IHHII")
"""magic, volume, command, length of what follows, pad."""
BLOCK = Struct(">IHHIIQQII")
"""Header and P_DATA: sector, block_id, sequence number, dp_flags. Requests: sector, block_id, size in bytes, pad."""
ZEROES = Struct(">IHHIIQQIII")
"""Header and P_TRIM or P_ZEROES: as P_DATA, then the size in bytes."""
ACK = Struct(">IHHIIQQII")
"""Header and block ack: sector, block_id, size in bytes, sequence number."""
OUT_OF_SYNC = Struct(">IHHIIQII")
"""Header and P_OUT_OF_SYNC: sector, size in bytes, pad."""
BARRIER = Struct(">IHHIIII")
"""Header and P_BARRIER (barrier, pad) or P_BARRIER_ACK (barrier, set_size)."""
BLOCK_BODY = Struct(">QQII")
ZEROES_BODY = Struct(">QQIII")
OUT_OF_SYNC_BODY = Struct(">QII")
BARRIER_BODY = Struct(">II")
"""The same without their header, for packets that are not on the hot path."""
FEATURES_BODY = Struct(">IIII56x")
"""protocol_min, feature flags, protocol_max, pad."""
PROTOCOL_BODY = Struct(">IIIIII")
"""protocol, after-sb-0pri, -1pri, -2pri, flags, two primaries; then the integrity algorithm with its NUL."""
PROTOCOL_DISCARD_MY_DATA = 1
SYNC_PARAM_BODY = Struct(">I64s64sIIII")
"""resync-rate, verify-alg, csums-alg, c-plan-ahead, c-delay-target, c-fill-target, c-max-rate."""
SIZES_BODY = Struct(">QQQIHH")
"""d_size, u_size, c_size in sectors, max_bio_size in bytes, queue order type, flags."""
QUEUE_LIMITS_BODY = Struct(">IIIIIBBBx")
"""physical and logical block size, alignment offset, io_min, io_opt, discard, discard zeroes, write same."""
UUIDS_BODY = Struct(">6Q")
STATE_BODY = Struct(">I")
STATE_CHANGE_BODY = Struct(">II")
STATE_CHANGE_REPLY_BODY = Struct(">i")
SYNC_UUID_BODY = Struct(">Q")

CHALLENGE_BYTES = 64
CHALLENGE_BYTES_MAX = 128
BITMAP_HEADER_BYTES = HEADER.size
"""What a bitmap packet's header takes of its 4096 bytes."""

HANDSHAKE_LENGTH_MAX = {
    P_CONNECTION_FEATURES: 72,
    P_AUTH_CHALLENGE: CHALLENGE_BYTES_MAX,
    P_AUTH_RESPONSE: 128,
}
"""What a peer that has not proved itself may send, and how much of it."""
LENGTH: dict[int, tuple[int, int]] = {
    P_DATA: (24 + SECTOR_BYTES, 24 + REQUEST_BYTES_MAX),
    P_RS_DATA_REPLY: (24 + SECTOR_BYTES, 24 + REQUEST_BYTES_MAX),
    P_DATA_REPLY: (24 + SECTOR_BYTES, 24 + REQUEST_BYTES_MAX),
    P_BARRIER: (8, 8),
    P_BITMAP: (0, 4096),
    P_COMPRESSED_BITMAP: (1, 4096),
    P_UNPLUG_REMOTE: (0, 0),
    P_DATA_REQUEST: (24, 24),
    P_RS_DATA_REQUEST: (24, 24),
    P_RS_THIN_REQ: (24, 24),
    P_PROTOCOL: (25, 24 + SECRET_BYTES_MAX),
    P_PROTOCOL_UPDATE: (25, 24 + SECRET_BYTES_MAX),
    P_SYNC_PARAM89: (148, 148),
    P_SIZES: (32, 56),
    P_UUIDS: (48, 48),
    P_STATE: (4, 4),
    P_SYNC_UUID: (8, 8),
    P_STATE_CHG_REQ: (8, 8),
    P_CONN_ST_CHG_REQ: (8, 8),
    P_DELAY_PROBE: (8, 8),
    P_OUT_OF_SYNC: (16, 16),
    P_TRIM: (28, 28),
    P_ZEROES: (28, 28),
}
"""Command on the data stream -> shortest and longest length. What is not here is unknown there."""
META_LENGTH: dict[int, int] = {
    P_PING: 0,
    P_PING_ACK: 0,
    P_RECV_ACK: 24,
    P_WRITE_ACK: 24,
    P_RS_WRITE_ACK: 24,
    P_NEG_ACK: 24,
    P_NEG_DREPLY: 24,
    P_NEG_RS_DREPLY: 24,
    P_BARRIER_ACK: 8,
    P_STATE_CHG_REPLY: 4,
    P_CONN_ST_CHG_REPLY: 4,
    P_RS_IS_IN_SYNC: 24,
    P_RS_CANCEL: 24,
    P_DELAY_PROBE: 8,
}
"""Command on the meta stream -> its length."""


def header(command: int, length: int) -> bytes:
    """The 16 bytes before a packet, volume 0."""
    return HEADER.pack(MAGIC_100, 0, command, length, 0)


def packet(command: int, body: bytes = b"") -> bytes:
    """A whole small packet."""
    return HEADER.pack(MAGIC_100, 0, command, len(body), 0) + body


def features_packet(features: Feature = FEATURES) -> bytes:
    """The first packet on the data stream; it alone has the old header."""
    return HEADER_80.pack(MAGIC_80, P_CONNECTION_FEATURES, FEATURES_BODY.size) + FEATURES_BODY.pack(
        PROTOCOL_MIN, features, PROTOCOL_MAX, 0
    )


def block_packet(command: int, offset_bytes: int, block_id: int, third: int, fourth: int, length: int = 24) -> bytes:
    """A block request, reply header or ack; what `third` and `fourth` mean depends on the command (`BLOCK`, `ACK`)."""
    return BLOCK.pack(MAGIC_100, 0, command, length, 0, offset_bytes >> 9, block_id, third, fourth)


def name(command: int) -> str:
    """For messages; also of commands nobody knows."""
    return NAMES.get(command, f"command 0x{command:02x}")
