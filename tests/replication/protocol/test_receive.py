"""What a Secondary does with writes, and what nobody may send."""

from __future__ import annotations

import pytest

from replication.protocol import packets
from replication.protocol.effects import Stream
from replication.protocol.packets import (
    BARRIER,
    BLOCK,
    DP_FUA,
    DP_SEND_WRITE_ACK,
    FEATURES,
    MAGIC_100,
    P_BARRIER,
    P_BARRIER_ACK,
    P_DATA,
    P_NEG_ACK,
    P_OUT_OF_SYNC,
    P_RS_WRITE_ACK,
    P_TRIM,
    P_WRITE_ACK,
    P_ZEROES,
    Feature,
)
from replication.protocol.requests import WRITE
from replication.protocol.states import ConnectionState
from replication.protocol.volume import Force
from tests.replication.protocol.coupled import MirrorPair, Side, block

DATA, META = Stream.DATA, Stream.META
TOO_LARGE = 1 << 40
OF_A_KERNEL = FEATURES & ~Feature.BARRIERS_ASK


def write_packet(
    offset: int, payload: bytes, flags: int = DP_SEND_WRITE_ACK, block_id: int = 7, length: int | None = None
) -> bytes:
    size = 24 + len(payload) if length is None else length
    return BLOCK.pack(MAGIC_100, 0, P_DATA, size, 0, offset >> 9, block_id, 1, flags) + payload


def zeroes_packet(offset: int, size: int, command: int = P_ZEROES) -> bytes:
    return packets.ZEROES.pack(MAGIC_100, 0, command, 28, 0, offset >> 9, 7, 1, DP_SEND_WRITE_ACK | 64, size)


def barrier_packet(number: int) -> bytes:
    return BARRIER.pack(MAGIC_100, 0, P_BARRIER, 8, 0, number, 0)


def ack_packet(command: int, block_id: int, offset: int = 0, size: int = 4096) -> bytes:
    return packets.block_packet(command, offset, block_id, size, 1)


def standby(features: Feature = FEATURES) -> tuple[MirrorPair, Side]:
    """beta, whose Primary alpha says what the test says."""
    pair = MirrorPair(alpha={"features": features})
    pair.with_primary()
    return pair, pair.beta


def dropped(side: Side) -> bool:
    """For this time: it tries again."""
    return side.connection() is ConnectionState.WF_CONNECTION


# writes


def test_a_run_of_writes_is_written_and_acknowledged_at_once() -> None:
    _pair, beta = standby()
    beta.give(DATA, bytearray(b"".join(write_packet(number * 4096, block(b"w")) for number in range(3))))
    assert beta.trail == ["write", *["send P_WRITE_ACK"] * 3]
    assert beta.disk.read(0, 3 * 4096) == block(b"w", 3)


def test_a_packet_that_is_not_whole_waits() -> None:
    _pair, beta = standby()
    packet = write_packet(0, block(b"w"))
    for length in (3, 15, 16, 39, 40, 4000, len(packet) - 1):
        assert beta.give(DATA, bytearray(packet[:length])) == 0
    assert beta.trail == []
    assert beta.give(DATA, bytearray(packet)) == len(packet)


def test_nothing_behind_a_barrier_is_written_before_its_flush() -> None:
    _pair, beta = standby(OF_A_KERNEL)
    beta.flushes_at_once = False
    stream = write_packet(0, block(b"1")) + barrier_packet(9) + write_packet(0, block(b"2"))
    beta.inbox[DATA] += stream
    beta.run()
    assert beta.holding()
    assert beta.disk.read(0, 4096) == block(b"1")
    assert "send P_BARRIER_ACK" not in beta.trail
    beta.finish_flush()
    assert not beta.holding()
    beta.run()
    assert beta.does("write", "send P_WRITE_ACK", "flush", "send P_BARRIER_ACK", "write")
    assert beta.disk.read(0, 4096) == block(b"2")


def test_a_barrier_of_our_own_kind_only_asks_and_is_answered_after_a_flush() -> None:
    pair, beta = standby()
    beta.flushes_at_once = False
    beta.inbox[DATA] += write_packet(0, block(b"1")) + barrier_packet(9) + write_packet(0, block(b"2"))
    beta.run()
    assert not beta.holding()
    assert beta.disk.read(0, 4096) == block(b"2")
    assert "send P_BARRIER_ACK" not in beta.trail
    beta.finish_flush()
    acks = [body for command, body in pair.packets(beta, META) if command == P_BARRIER_ACK]
    assert acks == [bytes([0, 0, 0, 9, 0, 0, 0, 1])]


def test_a_barrier_ack_counts_the_writes_of_its_own_epoch() -> None:
    pair, beta = standby()
    beta.inbox[DATA] += write_packet(0, block(b"1")) * 2 + barrier_packet(5) + zeroes_packet(0, 512) + barrier_packet(9)
    beta.run()
    acks = [body for command, body in pair.packets(beta, META) if command == P_BARRIER_ACK]
    assert acks == [bytes([0, 0, 0, 5, 0, 0, 0, 2]), bytes([0, 0, 0, 9, 0, 0, 0, 1])]


def test_a_fua_write_is_acknowledged_after_a_flush_and_does_not_stop_others() -> None:
    _pair, beta = standby()
    beta.flushes_at_once = False
    fua = write_packet(0, block(b"1"), DP_SEND_WRITE_ACK | DP_FUA, block_id=1)
    beta.give(DATA, bytearray(fua + write_packet(4096, block(b"2"), block_id=2)))
    assert beta.trail == ["write", "send P_WRITE_ACK", "flush"]
    beta.finish_flush()
    assert beta.trail[-1] == "send P_WRITE_ACK"


def test_an_ack_of_an_old_connection_is_not_sent_on_a_new_one() -> None:
    pair, beta = standby(OF_A_KERNEL)
    beta.flushes_at_once = False
    beta.give(DATA, bytearray(write_packet(0, block(b"1")) + barrier_packet(9)))
    assert beta.holding()
    pair.cut()
    pair.connect()
    pair.forget_trails()
    beta.flushes_at_once = True
    pair.run()
    assert "send P_BARRIER_ACK" not in beta.trail
    assert pair.beta.connection() is ConnectionState.CONNECTED


def test_a_held_stream_does_not_hold_the_next_connection() -> None:
    pair, beta = standby(OF_A_KERNEL)
    beta.flushes_at_once = False
    beta.give(DATA, bytearray(barrier_packet(9)))
    assert beta.holding()
    pair.cut()
    assert not beta.holding()


def test_writes_for_a_lost_disk_are_refused_one_by_one() -> None:
    pair, beta = standby()
    pair.cut()
    beta.start(attach=False)
    pair.connect()
    beta.volume.data.size_bytes = pair.alpha.volume.size_bytes
    beta.give(DATA, bytearray(write_packet(0, block(b"1"))))
    assert pair.packets(beta, META)[-1][0] == P_NEG_ACK


def test_trim_is_obeyed_although_nobody_agreed_to_it() -> None:
    pair, beta = standby()
    beta.give(DATA, bytearray(write_packet(0, block(b"1")) + zeroes_packet(512, 1024, P_TRIM)))
    assert beta.disk.read(0, 4096) == b"1" * 512 + bytes(1024) + b"1" * 2560
    assert pair.packets(beta, META)[-1][0] == P_WRITE_ACK


def test_pings_are_answered_while_a_flush_runs() -> None:
    _pair, beta = standby()
    beta.flushes_at_once = False
    beta.give(DATA, bytearray(barrier_packet(9)))
    beta.give(META, bytearray(packets.packet(packets.P_PING)))
    assert beta.trail[-1] == "send P_PING_ACK"


# what the protocol forbids


@pytest.mark.parametrize(
    ("packet", "words"),
    [
        (write_packet(TOO_LARGE, block(b"x")), "the device has"),
        (write_packet(0, b"x" * 100), "P_DATA of 100 bytes"),
        (write_packet(0, b""), "P_DATA of 0 bytes"),
        (write_packet(0, b"", length=10), "P_DATA of -14 bytes"),
        (write_packet(0, b"", length=0xFFFFFFFF), "P_DATA of"),
        (zeroes_packet(TOO_LARGE, 4096), "do not fit the device"),
        (zeroes_packet(0, 0), "do not fit the device"),
        (zeroes_packet(0, 0xFFFFFE00), "do not fit the device"),
        (zeroes_packet(0, 1000), "do not fit the device"),
        (packets.OUT_OF_SYNC.pack(MAGIC_100, 0, P_OUT_OF_SYNC, 16, 0, TOO_LARGE, 4096, 0), "does not fit the device"),
        (packets.OUT_OF_SYNC.pack(MAGIC_100, 0, P_OUT_OF_SYNC, 16, 0, 0, 0, 0), "does not fit the device"),
        (packets.packet(0x7F), "unknown command 0x7f"),
        (packets.packet(packets.P_STATE, b"\0" * 5), "P_STATE has length 5"),
        (packets.packet(packets.P_UUIDS, b"\0" * 40), "P_UUIDS has length 40"),
        (packets.packet(packets.P_DATA_REPLY, b"\0" * 1024), "a read that we did not ask for"),
        (packets.block_packet(packets.P_RS_DATA_REPLY, 0, 1, 0, 0, length=24 + 512) + bytes(512), "did not ask for"),
        (packets.block_packet(packets.P_RS_DATA_REQUEST, 0, 1, 4096, 0), "asked for a resync block while"),
        (packets.packet(packets.P_BITMAP), "sent its bitmap while Connected"),
        (packets.packet(packets.P_SYNC_UUID, bytes(8)), "sent a sync UUID while Connected"),
        (b"\x83\x74\x02\x67" + bytes(12), "header has magic 0x83740267"),
        (packets.HEADER.pack(MAGIC_100, 0, packets.P_STATE, 4, 1) + bytes(4), "pad 1"),
        (packets.HEADER.pack(MAGIC_100, 1, packets.P_STATE, 4, 0) + bytes(4), "volume 0 only"),
        (BLOCK.pack(MAGIC_100, 2, P_DATA, 24 + 512, 0, 0, 1, 1, 0) + bytes(512), "for volume 2"),
    ],
)
def test_a_forbidden_packet_ends_the_connection_and_changes_nothing(packet: bytes, words: str) -> None:
    _pair, beta = standby()
    before = bytes(beta.disk.content[: beta.volume.size_bytes])
    beta.give(DATA, bytearray(packet))
    assert dropped(beta)
    assert any(words in note for note in beta.notes), beta.notes
    assert beta.disk.content[: beta.volume.size_bytes] == before


def test_what_came_before_a_forbidden_packet_is_done() -> None:
    _pair, beta = standby()
    beta.give(DATA, bytearray(write_packet(0, block(b"g")) + write_packet(TOO_LARGE, block(b"x"))))
    assert beta.disk.read(0, 4096) == block(b"g")
    assert beta.does("write", "send P_WRITE_ACK", "drop")


def test_the_end_of_the_device_is_the_last_byte_that_can_be_written() -> None:
    _pair, beta = standby()
    size = beta.volume.size_bytes
    beta.give(DATA, bytearray(write_packet(size - 512, b"e" * 512)))
    assert beta.disk.read(size - 512, 512) == b"e" * 512
    beta.give(DATA, bytearray(write_packet(size - 512, b"e" * 1024)))
    assert dropped(beta)


@pytest.mark.parametrize("packet", [write_packet(0, block(b"x")), zeroes_packet(0, 4096), barrier_packet(1)])
def test_nobody_writes_to_a_primary(packet: bytes) -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    alpha.give(DATA, bytearray(packet))
    assert alpha.connection() is ConnectionState.STAND_ALONE
    assert alpha.disk.read(0, 4096) == bytes(4096)


@pytest.mark.parametrize("packet", [write_packet(0, block(b"x")), zeroes_packet(0, 4096), barrier_packet(1)])
def test_nobody_writes_before_the_handshake_is_over(packet: bytes) -> None:
    pair = MirrorPair()
    pair.declare_equal()
    pair.cut()
    pair.plug()
    pair.beta.give(DATA, bytearray(packets.features_packet()))
    pair.beta.give(DATA, bytearray(packet))
    assert dropped(pair.beta)
    assert pair.beta.disk.read(0, 4096) == bytes(4096)


# the meta stream


def test_an_ack_of_an_unknown_write_ends_the_connection() -> None:
    for command in (P_WRITE_ACK, P_RS_WRITE_ACK):
        pair = MirrorPair()
        alpha = pair.with_primary()
        alpha.give(META, bytearray(ack_packet(command, 4711)))
        assert dropped(alpha)


def test_a_write_is_acknowledged_once() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    request = alpha.request(WRITE, 0, block(b"w"))
    alpha.submit(request)
    (block_id,) = alpha.volume.data.log.in_flight
    alpha.give(META, bytearray(ack_packet(P_WRITE_ACK, block_id) * 2))
    assert dropped(alpha)
    assert alpha.completed == [request]


def test_a_negative_ack_of_an_unknown_write_only_counts_as_one() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    alpha.give(META, bytearray(ack_packet(P_NEG_ACK, 4711)))
    assert alpha.connection() is ConnectionState.CONNECTED


@pytest.mark.parametrize(("number", "count"), [(1, 0), (1, 2), (2, 1), (0, 1)])
def test_a_barrier_ack_that_does_not_fit_ends_the_connection_and_marks_the_epoch(number: int, count: int) -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.beta.flushes_at_once = False
    pair.write(alpha, 0, block(b"w"))
    pair.pass_time(0.3)
    first = alpha.volume.data.log.closed[0].number
    ack = BARRIER.pack(MAGIC_100, 0, P_BARRIER_ACK, 8, 0, first + number - 1, count)
    alpha.give(META, bytearray(ack))
    assert dropped(alpha)
    assert alpha.out_of_sync_blocks == 1


@pytest.mark.parametrize(
    "packet",
    [
        packets.packet(packets.P_STATE_CHG_REPLY, b"\0\0\0\1"),
        packets.packet(packets.P_CONN_ST_CHG_REPLY, b"\0\0\0\1"),
        packets.packet(packets.P_PING, b"\0"),
        packets.packet(0x77),
        packets.packet(packets.P_NEG_DREPLY, bytes(24)),
        b"\0" * 16,
    ],
)
def test_what_does_not_belong_on_the_meta_stream_ends_the_connection(packet: bytes) -> None:
    pair = MirrorPair()
    pair.declare_equal()
    pair.alpha.give(META, bytearray(packet))
    assert pair.alpha.connection() in (ConnectionState.WF_CONNECTION, ConnectionState.STAND_ALONE)


def test_a_stranger_cannot_send_us_away_for_good_on_the_meta_stream() -> None:
    pair = MirrorPair(hmac_algorithm="sha256", shared_secret="s")
    pair.ask(pair.alpha, "connect")
    for packet in (packets.packet(0x77), packets.packet(P_BARRIER_ACK, bytes(8)), ack_packet(P_WRITE_ACK, 1)):
        pair.plug()
        pair.alpha.give(META, bytearray(packet))
        assert dropped(pair.alpha)


def test_a_ping_is_answered_before_the_handshake_is_over() -> None:
    pair = MirrorPair(hmac_algorithm="sha256", shared_secret="s")
    pair.ask(pair.alpha, "connect")
    pair.plug()
    pair.alpha.give(META, bytearray(packets.packet(packets.P_PING)))
    assert pair.alpha.trail[-1] == "send P_PING_ACK"


def test_a_resync_ack_beyond_the_device_ends_the_connection() -> None:
    pair = MirrorPair(resync_rate_max=1)
    pair.connect()
    pair.promote(pair.alpha, Force.OVERWRITE)
    marked = pair.alpha.out_of_sync_blocks
    pair.alpha.give(META, bytearray(ack_packet(P_RS_WRITE_ACK, packets.ID_SYNCER, TOO_LARGE)))
    assert dropped(pair.alpha)
    assert pair.alpha.out_of_sync_blocks == marked
