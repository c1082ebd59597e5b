"""The bytes, against what DRBD 8.4's kernel module sends: offsets and numbers are written out here on purpose."""

from __future__ import annotations

import hashlib
import hmac
import struct

import pytest

from replication.protocol import packets
from replication.protocol.effects import Stream
from replication.protocol.packets import (
    FEATURES,
    P_AUTH_CHALLENGE,
    P_AUTH_RESPONSE,
    P_BARRIER,
    P_BARRIER_ACK,
    P_CONN_ST_CHG_REQ,
    P_CONNECTION_FEATURES,
    P_DATA,
    P_PROTOCOL,
    P_RS_DATA_REQUEST,
    P_RS_WRITE_ACK,
    P_SIZES,
    P_STATE,
    P_STATE_CHG_REPLY,
    P_STATE_CHG_REQ,
    P_SYNC_PARAM89,
    P_SYNC_UUID,
    P_UUIDS,
    P_WRITE_ACK,
    P_ZEROES,
)
from replication.protocol.requests import FLAG_FUA, FLAG_NO_HOLE
from replication.protocol.volume import Force
from tests.replication.protocol.coupled import SECRET, MirrorPair, Side, block

DATA, META = Stream.DATA, Stream.META


def bodies(pair: MirrorPair, side: Side, stream: Stream, wanted: int) -> list[bytes]:
    return [body for command, body in pair.packets(side, stream) if command == wanted]


def one(pair: MirrorPair, side: Side, stream: Stream, wanted: int) -> bytes:
    found = bodies(pair, side, stream, wanted)
    assert found, f"{packets.name(wanted)} was not sent"
    return found[0]


def flags_of(body: bytes) -> int:
    return int.from_bytes(body[20:24], "big")


def test_the_first_packet_has_the_old_header_and_72_bytes() -> None:
    packet = packets.features_packet()
    assert packet[:8].hex() == "83740267fffe0048"
    assert len(packet) == 8 + 72
    lowest, flags, highest, pad = struct.unpack_from(">IIII", packet, 8)
    assert (lowest, highest, pad) == (100, 101, 0)
    assert flags == FEATURES
    assert flags & 0xF == 0b1101
    assert packet[24:] == bytes(56)


def test_all_other_packets_have_the_header_of_16_bytes() -> None:
    assert packets.packet(packets.P_PING).hex() == "8620ec20000000130000000000000000"
    assert packets.header(P_DATA, 24 + 4096).hex() == "8620ec20000000000000101800000000"


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (packets.BLOCK, 16 + 24),
        (packets.ZEROES, 16 + 28),
        (packets.ACK, 16 + 24),
        (packets.OUT_OF_SYNC, 16 + 16),
        (packets.BARRIER, 16 + 8),
        (packets.FEATURES_BODY, 72),
        (packets.PROTOCOL_BODY, 24),
        (packets.SYNC_PARAM_BODY, 148),
        (packets.SIZES_BODY, 32),
        (packets.QUEUE_LIMITS_BODY, 24),
        (packets.UUIDS_BODY, 48),
    ],
)
def test_structures_are_packed(layout: struct.Struct, size: int) -> None:
    assert layout.size == size


def test_parameters_come_in_drbds_order() -> None:
    pair = MirrorPair()
    pair.connect()
    for side in pair.sides:
        sent = [command for command, _ in pair.packets(side, DATA)]
        assert sent[:6] == [P_CONNECTION_FEATURES, P_PROTOCOL, P_SYNC_PARAM89, P_SIZES, P_UUIDS, P_STATE]


def test_a_challenge_of_64_bytes_is_answered_with_its_keyed_hash() -> None:
    pair = MirrorPair(hmac_algorithm="sha256", shared_secret=SECRET)
    pair.connect()
    sent = [command for command, _ in pair.packets(pair.alpha, DATA)]
    assert sent[:4] == [P_CONNECTION_FEATURES, P_AUTH_CHALLENGE, P_AUTH_RESPONSE, P_PROTOCOL]
    challenge = one(pair, pair.alpha, DATA, P_AUTH_CHALLENGE)
    assert len(challenge) == 64
    response = one(pair, pair.beta, DATA, P_AUTH_RESPONSE)
    assert response == hmac.new(SECRET.encode(), challenge, hashlib.sha256).digest()


def test_a_diskless_node_says_nothing_of_generations_and_offers_no_size() -> None:
    pair = MirrorPair()
    pair.beta.start(attach=False)
    pair.connect()
    sent = [command for command, _ in pair.packets(pair.beta, DATA)]
    assert P_UUIDS not in sent
    assert one(pair, pair.beta, DATA, P_SIZES)[:8] == bytes(8)
    assert int.from_bytes(one(pair, pair.beta, DATA, P_STATE), "big") >> 9 & 15 == 0


def test_protocol_c_without_policies_integrity_or_second_primary() -> None:
    pair = MirrorPair()
    pair.connect()
    assert one(pair, pair.alpha, DATA, P_PROTOCOL) == struct.pack(">IIIIII", 3, 0, 0, 0, 0, 0) + b"\0"


def test_discard_my_data_is_the_first_flag_of_both_packets_that_have_it() -> None:
    pair = MirrorPair()
    pair.ask(pair.alpha, "connect", discard_my_data=True)
    pair.connect()
    assert one(pair, pair.alpha, DATA, P_PROTOCOL)[16:20] == b"\0\0\0\1"
    assert one(pair, pair.alpha, DATA, P_UUIDS)[47] & 1


def test_parameters_of_the_resync_are_drbds_defaults() -> None:
    pair = MirrorPair(resync_rate_max=100 << 20)
    pair.connect()
    body = one(pair, pair.alpha, DATA, P_SYNC_PARAM89)
    assert len(body) == 148
    assert struct.unpack_from(">I", body, 0) == (250,)
    assert body[4:132] == bytes(128)
    assert struct.unpack_from(">IIII", body, 132) == (20, 10, 100, 102400)


def test_sizes_are_in_sectors_and_requests_at_most_a_mebibyte() -> None:
    pair = MirrorPair()
    pair.connect()
    body = one(pair, pair.alpha, DATA, P_SIZES)
    assert len(body) == 56
    largest, wanted, current, request_bytes, order, flags = struct.unpack_from(">QQQIHH", body)
    assert largest == pair.alpha.disk.layout.data_bytes // 512
    assert (wanted, current, request_bytes, order, flags) == (0, 0, 1 << 20, 0, 0)


def test_a_fresh_disk_has_generation_4_and_nothing_else() -> None:
    pair = MirrorPair()
    pair.connect()
    current, bitmap, history0, history1, bits, flags = struct.unpack(">6Q", one(pair, pair.alpha, DATA, P_UUIDS))
    assert (current, bitmap, history0, history1, bits) == (4, 0, 0, 0, 0)
    assert flags & ~4 == 0  # 4 counts only while a disk is being attached


def test_the_first_state_says_wf_connection_and_the_second_what_was_agreed() -> None:
    pair = MirrorPair()
    pair.connect()
    first, second = bodies(pair, pair.alpha, DATA, P_STATE)[:2]
    assert first.hex() == "0000c882"
    assert second == struct.pack(">I", 2 | 2 << 2 | 10 << 4 | 4 << 9 | 4 << 13)


def test_two_good_secondaries_say_so_in_one_number() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    pair.cut()
    pair.connect()
    assert bodies(pair, pair.alpha, DATA, P_STATE)[-1].hex() == "000110aa"


def test_to_declare_disks_equal_is_flag_8_and_no_state_follows() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    command, body = pair.packets(pair.alpha, DATA)[-1]
    assert command == P_UUIDS
    assert struct.unpack(">6Q", body)[5] == 8
    assert struct.unpack(">6Q", body)[:2] == (pair.beta.volume.data.generation.current, 0)


def test_a_forced_first_promotion_is_request_generations_state_and_the_peers_decision() -> None:
    pair = MirrorPair()
    pair.connect()
    already = len(pair.packets(pair.alpha, DATA)), len(pair.packets(pair.beta, DATA))
    pair.promote(pair.alpha, Force.OVERWRITE)
    asked = pair.packets(pair.alpha, DATA)[already[0] :]
    answered = pair.packets(pair.beta, DATA)[already[1] :]
    assert asked[0] == (P_STATE_CHG_REQ, bytes.fromhex("00001e0300001001"))
    assert [command for command, _ in asked[1:3]] == [P_UUIDS, P_STATE]
    state = int.from_bytes(asked[2][1], "big")
    assert (state & 3, state >> 4 & 31, state >> 9 & 15) == (1, 10, 8)
    assert [command for command, _ in answered[:2]] == [P_UUIDS, P_STATE]
    assert answered[1][1].hex() == "000108e6"
    assert bodies(pair, pair.beta, META, P_STATE_CHG_REPLY) == [struct.pack(">i", 1)]


@pytest.mark.parametrize(
    ("what", "command", "body"),
    [
        ("promote", P_STATE_CHG_REQ, "0000000300000001"),
        ("invalidate", P_STATE_CHG_REQ, "000001f0000000c0"),
        ("invalidate_remote", P_STATE_CHG_REQ, "000001f0000000b0"),
        ("disconnect", P_CONN_ST_CHG_REQ, "000001f000000010"),
    ],
)
def test_requests_have_drbds_masks_and_values(what: str, command: int, body: str) -> None:
    pair = MirrorPair()
    pair.declare_equal()
    assert pair.done(pair.ask(pair.alpha, what))
    assert bodies(pair, pair.alpha, DATA, command) == [bytes.fromhex(body)]


def test_a_secondary_that_leaves_its_primary_outdates_itself_in_the_same_request() -> None:
    pair = MirrorPair()
    pair.with_primary()
    assert pair.done(pair.ask(pair.beta, "disconnect"))
    assert bodies(pair, pair.beta, DATA, P_CONN_ST_CHG_REQ) == [bytes.fromhex("00001ff000000a10")]


def test_a_write_is_sector_id_sequence_flags_and_payload() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 8192, block(b"w"))
    pair.write(alpha, 4096, block(b"v"))
    first, second = bodies(pair, alpha, DATA, P_DATA)
    sector, block_id, sequence, flags = struct.unpack_from(">QQII", first)
    assert (sector, sequence, flags) == (16, 1, 0x102)
    assert first[24:] == block(b"w")
    assert struct.unpack_from(">I", second, 16) == (2,)
    assert second[8:16] != first[8:16]
    ack = bodies(pair, pair.beta, META, P_WRITE_ACK)[0]
    assert struct.unpack(">QQII", ack) == (16, block_id, 4096, 1)


def test_flags_of_writes_are_those_drbd_was_seen_to_send() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 0, block(b"f"), flags=FLAG_FUA)
    assert flags_of(one(pair, alpha, DATA, P_DATA)) == 0x112
    pair.zero(alpha, 4096, 4096, flags=FLAG_NO_HOLE)
    assert flags_of(bodies(pair, alpha, DATA, P_ZEROES)[-1]) == 0x502
    pair.zero(alpha, 4096, 4096)
    assert flags_of(bodies(pair, alpha, DATA, P_ZEROES)[-1]) == 0x542
    assert struct.unpack_from(">I", bodies(pair, alpha, DATA, P_ZEROES)[-1], 24) == (4096,)


def test_a_write_during_a_resync_may_set_in_sync_and_is_answered_as_a_resync_write() -> None:
    pair = MirrorPair(resync_rate_max=1)
    pair.connect()
    pair.promote(pair.alpha, Force.OVERWRITE)
    assert pair.beta.words == "Secondary SyncTarget Inconsistent/UpToDate"
    pair.write(pair.alpha, 4096, block(b"d"))
    assert flags_of(one(pair, pair.alpha, DATA, P_DATA)) == 0x106
    assert struct.unpack_from(">Q", bodies(pair, pair.beta, META, P_RS_WRITE_ACK)[-1])[0] == 8


def test_a_barrier_comes_back_byte_for_byte_with_the_number_of_writes() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    for number in range(3):
        pair.write(alpha, number * 4096, block(b"w"))
    pair.zero(alpha, 65536, 4096)
    pair.flush(alpha)
    (barrier,) = bodies(pair, alpha, DATA, P_BARRIER)
    assert barrier[4:] == bytes(4)
    assert bodies(pair, pair.beta, META, P_BARRIER_ACK) == [barrier[:4] + struct.pack(">I", 4)]


def test_resync_traffic_has_all_64_bits_of_its_id_set() -> None:
    pair = MirrorPair(disk_bytes=2 << 20)
    pair.first_resync()
    asked = bodies(pair, pair.beta, DATA, P_RS_DATA_REQUEST)
    replies = bodies(pair, pair.alpha, DATA, packets.P_RS_DATA_REPLY)
    acks = bodies(pair, pair.beta, META, P_RS_WRITE_ACK)
    assert asked
    assert len(asked) == len(replies) == len(acks)
    for request, reply, ack in zip(asked, replies, acks, strict=True):
        sector, block_id, size, pad = struct.unpack(">QQII", request)
        assert (block_id, pad) == (2**64 - 1, 0)
        assert 0 < size <= 1 << 20
        assert reply[:24] == struct.pack(">QQII", sector, block_id, 0, 0)
        assert len(reply) == 24 + size
        assert ack[:20] == struct.pack(">QQI", sector, block_id, size)
    (named,) = struct.unpack(">Q", bodies(pair, pair.alpha, DATA, P_SYNC_UUID)[0])
    assert named & ~1 == pair.beta.volume.data.generation.history0


def test_the_bitmap_of_a_full_resync_is_the_code_that_drbd_sends() -> None:
    # 16374 blocks, as in a capture: everything is out of sync
    pair = MirrorPair(disk_bytes=16374 * 4096 + 10 * 4096)
    assert pair.alpha.disk.layout.data_bytes == 16374 * 4096
    pair.connect()
    pair.promote(pair.alpha, Force.OVERWRITE)
    assert one(pair, pair.alpha, DATA, packets.P_COMPRESSED_BITMAP).hex() == "b27fc51e00"
