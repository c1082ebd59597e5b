"""The bitmap on the wire: the bytes a kernel sends, round trips, and what a broken peer may send."""

from __future__ import annotations

import contextlib
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.protocol.bitmap import Bitmap
from replication.protocol.bitmap_code import BitmapReceiver, BitmapSender, encode_run, word_bytes
from replication.protocol.errors import PeerError
from replication.protocol.packets import P_BITMAP, P_COMPRESSED_BITMAP

HEADER_BYTES = 16
PLAIN_BITS = 510 * 64
TEBIBYTE_BLOCKS = 1 << 28


def bitmap_with(block_count: int, *runs: tuple[int, int]) -> Bitmap:
    bitmap = Bitmap(block_count)
    for first, end in runs:
        bitmap.set_blocks(first, end)
    return bitmap


def arrived(packets: list[tuple[int, bytes]], block_count: int) -> Bitmap:
    """What a receiver has after these packets, which must be a whole transfer and no more."""
    bitmap = Bitmap(block_count)
    receiver = BitmapReceiver(bitmap, HEADER_BYTES)
    ends = [receiver.receive(command, payload) for command, payload in packets]
    assert ends == [False] * (len(packets) - 1) + [True]
    return bitmap


@pytest.mark.parametrize(
    ("runs", "wire"),
    [
        ([(0, 16374)], "b27fc51e00"),
        ([], "327fc51e00"),
        ([(500, 505), (4800, 4848)], "223fc360fc58bef7ffaa1700"),
    ],
)
def test_our_bytes_are_those_that_the_kernel_sends(runs: list[tuple[int, int]], wire: str) -> None:
    bitmap = bitmap_with(16374, *runs)
    packets = list(BitmapSender(bitmap, HEADER_BYTES, use_rle=True))
    assert packets == [(P_COMPRESSED_BITMAP, bytes.fromhex(wire))]
    assert arrived(packets, 16374).data == bitmap.data


@pytest.mark.parametrize(
    ("length", "value", "bits"),
    [
        (1, 0b00, 2),
        (2, 0b10, 2),
        (3, 0b001, 3),
        (5, 0b011, 5),
        (16, 0b1110111, 7),
        (17, 0x0F, 10),
        (304, 0x1F | 255 << 6, 14),
        (305, 0x3F, 21),
        (8496, 0x3F | 8191 << 8, 21),
        (8497, 0x7F, 29),
        (2105648, 0x7F | 2097151 << 8, 29),
        (2105649, 0xBF, 42),
        (17181974832, 0xBF | (2**34 - 1) << 8, 42),
        (17181974833, 0xFF, 64),
    ],
)
def test_a_run_takes_the_code_of_its_level(length: int, value: int, bits: int) -> None:
    assert encode_run(length) == (value, bits)


def test_plain_packets_carry_whole_words_and_an_empty_one_ends_them() -> None:
    block_count = PLAIN_BITS + 65
    bitmap = bitmap_with(block_count, (3, 9), (PLAIN_BITS + 60, block_count))
    packets = list(BitmapSender(bitmap, HEADER_BYTES, use_rle=False))
    assert [(command, len(payload)) for command, payload in packets] == [
        (P_BITMAP, 4080),
        (P_BITMAP, 16),
        (P_BITMAP, 0),
    ]
    assert arrived(packets, block_count).data == bitmap.data


def test_with_the_short_header_a_plain_packet_has_one_word_more() -> None:
    packets = list(BitmapSender(Bitmap(PLAIN_BITS + 64), 8, use_rle=False))
    assert [len(payload) for _, payload in packets] == [4088, 0]


def test_a_dense_stretch_goes_plain_between_two_coded_ones() -> None:
    block_count = 400_000
    bitmap = bitmap_with(block_count, (70, 90), (300_001, 300_050))
    bitmap.merge_words(150_000 // 8, random.Random(5).randbytes(10_000))
    packets = list(BitmapSender(bitmap, HEADER_BYTES, use_rle=True))
    kinds = [command for command, _ in packets]
    assert kinds[0] == kinds[-1] == P_COMPRESSED_BITMAP
    assert P_BITMAP in kinds
    assert sum(len(payload) for _, payload in packets) < word_bytes(block_count) // 2
    assert arrived(packets, block_count).data == bitmap.data


def test_a_code_no_shorter_than_its_bits_is_not_used() -> None:
    [first, _] = BitmapSender(bitmap_with(64, *((bit, bit + 1) for bit in range(0, 64, 2))), HEADER_BYTES, use_rle=True)
    assert first == (P_BITMAP, b"\x55" * 8)


def test_what_is_marked_at_the_receiver_stays_marked() -> None:
    ours, theirs = bitmap_with(1000, (1, 2), (500, 600)), bitmap_with(1000, (590, 700))
    receiver = BitmapReceiver(ours, HEADER_BYTES)
    for command, payload in BitmapSender(theirs, HEADER_BYTES, use_rle=True):
        receiver.receive(command, payload)
    assert ours.data == bitmap_with(1000, (1, 2), (500, 700)).data
    assert ours.count == 201


bitmaps = st.builds(
    lambda block_count, runs, noise, seed: _made(block_count, runs, noise, seed),
    st.integers(1, 120_000),
    st.lists(st.tuples(st.integers(0, 120_000), st.integers(1, 400) | st.integers(1, 90_000)), max_size=60),
    st.lists(st.tuples(st.integers(0, 15_000), st.integers(1, 6000)), max_size=2),
    st.integers(0, 1000),
)


def _made(block_count: int, runs: list[tuple[int, int]], noise: list[tuple[int, int]], seed: int) -> Bitmap:
    bitmap = Bitmap(block_count)
    for first, length in runs:
        bitmap.set_blocks(min(first, block_count), min(first + length, block_count))
    for first_byte, length in noise:
        part = random.Random(seed).randbytes(length)[: max(len(bitmap.data) - first_byte, 0)]
        bitmap.merge_words(min(first_byte, len(bitmap.data)), part)
    return bitmap


@given(bitmaps, st.booleans(), st.sampled_from([8, 16]))
def test_every_bitmap_survives_the_wire(bitmap: Bitmap, use_rle: bool, header_bytes: int) -> None:
    copy = Bitmap(bitmap.block_count)
    receiver = BitmapReceiver(copy, header_bytes)
    done = False
    for command, payload in BitmapSender(bitmap, header_bytes, use_rle):
        assert not done
        assert len(payload) + header_bytes <= 4096
        done = receiver.receive(command, memoryview(payload))
    assert done
    assert copy.data == bitmap.data
    assert copy.count == bitmap.count


@given(st.lists(st.tuples(st.sampled_from([P_BITMAP, P_COMPRESSED_BITMAP, 0x13]), st.binary(max_size=300)), max_size=4))
def test_whatever_a_broken_peer_sends_is_refused_or_merged(packets: list[tuple[int, bytes]]) -> None:
    bitmap = Bitmap(2100)
    receiver = BitmapReceiver(bitmap, HEADER_BYTES)
    for command, payload in packets:
        try:
            receiver.receive(command, payload)
        except PeerError:
            break
    assert int.from_bytes(bitmap.data, "little").bit_count() == bitmap.count
    assert int.from_bytes(bitmap.data, "little") >> 2100 == 0


@given(st.binary(min_size=1, max_size=60), st.integers(0, 7), st.booleans())
def test_random_codes_are_refused_or_merged(code: bytes, unused: int, first_is_set: bool) -> None:
    bitmap = Bitmap(60_000)
    with contextlib.suppress(PeerError):
        BitmapReceiver(bitmap, HEADER_BYTES).receive(
            P_COMPRESSED_BITMAP, bytes([2 | unused << 4 | first_is_set << 7]) + code
        )
    assert int.from_bytes(bitmap.data, "little").bit_count() == bitmap.count


@pytest.mark.parametrize(
    ("command", "payload", "fact"),
    [
        (0x13, b"", "packet 0x13 is not part of a bitmap"),
        (P_BITMAP, b"", "of 0 bytes came where 4080 have to come"),
        (P_BITMAP, bytes(4072), "of 4072 bytes came"),
        (P_BITMAP, bytes(4088), "of 4088 bytes came"),
        (P_COMPRESSED_BITMAP, b"", "has 0 bytes"),
        (P_COMPRESSED_BITMAP, b"\x02", "has 1 bytes"),
        (P_COMPRESSED_BITMAP, b"\x02" + bytes(4080), "has 4081 bytes"),
        (P_COMPRESSED_BITMAP, b"\x01\x00", "code 1 of a compressed"),
        (P_COMPRESSED_BITMAP, b"\x72\x00", "is cut off"),
        (P_COMPRESSED_BITMAP, b"\x02\x3f\x00", "is cut off"),
        (P_COMPRESSED_BITMAP, b"\x02" + b"\xff" * 8, "reaches block"),
    ],
)
def test_a_malformed_packet_says_what_is_wrong(command: int, payload: bytes, fact: str) -> None:
    with pytest.raises(PeerError, match=fact):
        BitmapReceiver(Bitmap(PLAIN_BITS * 2), HEADER_BYTES).receive(command, payload)


def test_nothing_may_follow_the_end_of_the_bitmap() -> None:
    receiver = BitmapReceiver(Bitmap(64), HEADER_BYTES)
    assert not receiver.receive(P_BITMAP, bytes(8))
    assert receiver.receive(P_BITMAP, b"")
    with pytest.raises(PeerError, match="after the end"):
        receiver.receive(P_BITMAP, b"")


def test_after_the_last_word_only_the_empty_packet_may_come() -> None:
    receiver = BitmapReceiver(Bitmap(60), HEADER_BYTES)
    receiver.receive(P_BITMAP, bytes(8))
    with pytest.raises(PeerError, match="8 bytes came where 0"):
        receiver.receive(P_BITMAP, bytes(8))


@pytest.mark.parametrize("fill", ["nothing", "everything"])
def test_a_tebibyte_in_one_colour_is_one_small_packet(fill: str) -> None:
    bitmap = Bitmap(TEBIBYTE_BLOCKS)
    if fill == "everything":
        bitmap.set_all()
    started = time.perf_counter()
    [(command, payload)] = BitmapSender(bitmap, HEADER_BYTES, use_rle=True)
    assert BitmapReceiver(Bitmap(TEBIBYTE_BLOCKS), HEADER_BYTES).receive(command, payload)
    assert len(payload) < 10
    assert time.perf_counter() - started < 3, "takes 0.03 s where nothing else runs"


def test_a_dense_tebibyte_is_sent_plain_without_trying_long() -> None:
    bitmap = Bitmap(TEBIBYTE_BLOCKS, bytearray(random.Random(3).randbytes(1 << 20) * 32))
    started = time.perf_counter()
    packets = list(BitmapSender(bitmap, HEADER_BYTES, use_rle=True))
    assert {command for command, _ in packets} == {P_BITMAP}
    assert time.perf_counter() - started < 5, "takes 0.1 s where nothing else runs"
