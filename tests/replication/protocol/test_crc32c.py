from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.protocol.crc32c import crc32c


def bit_by_bit(data: bytes, value: int) -> int:
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
    ids=["zeroes", "ones", "rising", "falling"],
)
def test_the_examples_of_rfc_3720_come_out(data: bytes, checksum: int) -> None:
    assert crc32c(data, 0xFFFFFFFF) ^ 0xFFFFFFFF == checksum


@given(st.binary(max_size=700), st.integers(0, 0xFFFFFFFF))
def test_the_quick_way_and_the_plain_one_agree_for_any_length(data: bytes, value: int) -> None:
    assert crc32c(data, value) == bit_by_bit(data, value)


def test_a_whole_block_has_the_checksum_of_its_bits() -> None:
    block = bytes(n * n % 251 for n in range(4096))
    assert crc32c(block) == bit_by_bit(block, 0)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_it_goes_on_where_it_was_left(first: bytes, second: bytes) -> None:
    assert crc32c(second, crc32c(first)) == crc32c(first + second)


def test_any_buffer_will_do() -> None:
    block = bytes(range(256)) * 16
    assert crc32c(bytearray(block)) == crc32c(memoryview(block)) == crc32c(block)
