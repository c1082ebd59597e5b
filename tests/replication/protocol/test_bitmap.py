"""The bitmap against a plain list of booleans, and the figures that a large disk needs."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.protocol.bitmap import BLOCK_BYTES, PAGE_BYTES, Bitmap

TEBIBYTE_BLOCKS = 1 << 28
SOME_BLOCKS = 3 * 32768 + 77
"""Three full pages of bitmap and a bit of a fourth."""


def bits_of(bitmap: Bitmap) -> list[bool]:
    return [bool(bitmap.data[block >> 3] >> (block & 7) & 1) for block in range(len(bitmap.data) * 8)]


def test_a_new_bitmap_is_clear_and_padded_to_whole_pages() -> None:
    bitmap = Bitmap(10)
    assert (bitmap.count, len(bitmap.data), bitmap.next_set(0), bitmap.dirty_pages) == (0, PAGE_BYTES, None, set())


def test_bits_on_the_disk_beyond_the_last_block_are_dropped() -> None:
    bitmap = Bitmap(11, bytearray(b"\xff" * 2 * PAGE_BYTES))
    assert bitmap.count == 11
    assert bitmap.data == b"\xff\x07" + bytes(PAGE_BYTES - 2)


def test_a_bitmap_too_short_for_its_device_is_not_accepted() -> None:
    with pytest.raises(ValueError, match="needs 8192 bytes, not 4096"):
        Bitmap(32769, bytearray(PAGE_BYTES))


def test_marking_rounds_outwards_and_unmarking_inwards() -> None:
    bitmap = Bitmap(100)
    device_bytes = 100 * BLOCK_BYTES
    assert bitmap.set_range(5 * BLOCK_BYTES - 1, 2) == 2
    assert bitmap.set_range(5 * BLOCK_BYTES + 512, 512) == 0
    assert bitmap.clear_range(4 * BLOCK_BYTES + 1, 2 * BLOCK_BYTES - 1, device_bytes) == 1
    assert bitmap.next_set(0) == 4
    assert bitmap.any_set(5 * BLOCK_BYTES - 1, 1)
    assert not bitmap.any_set(5 * BLOCK_BYTES, BLOCK_BYTES)
    assert bitmap.count == 1


def test_a_range_without_length_touches_nothing() -> None:
    bitmap = Bitmap(100)
    assert bitmap.set_range(512, 0) == 0
    bitmap.set_all()
    assert bitmap.clear_range(BLOCK_BYTES, 0, 100 * BLOCK_BYTES) == 0
    assert not bitmap.any_set(512, 0)


def test_a_range_up_to_the_end_of_the_device_covers_its_short_last_block() -> None:
    device_bytes = 9 * BLOCK_BYTES + 1024
    bitmap = Bitmap(10)
    assert bitmap.set_range(9 * BLOCK_BYTES, 1024) == 1
    assert bitmap.clear_range(9 * BLOCK_BYTES, 512, device_bytes) == 0
    assert bitmap.clear_range(9 * BLOCK_BYTES + 512, 512, device_bytes) == 0
    assert bitmap.clear_range(9 * BLOCK_BYTES, 1024, device_bytes) == 1


def test_a_range_beyond_the_device_is_our_bug() -> None:
    bitmap = Bitmap(10)
    with pytest.raises(AssertionError):
        bitmap.set_range(10 * BLOCK_BYTES, 1)
    with pytest.raises(AssertionError):
        bitmap.set_blocks(8, 11)


ranges = st.tuples(
    st.sampled_from(["set", "clear", "merge", "set_all", "clear_all"]),
    st.integers(0, SOME_BLOCKS) | st.sampled_from([0, 32767, 32768, 65536]),
    st.integers(1, SOME_BLOCKS) | st.integers(1, 64),
)


@given(st.lists(ranges, max_size=12), st.integers(0, SOME_BLOCKS - 1), st.integers(1, 40000))
def test_whatever_is_done_to_it_it_behaves_like_a_list_of_booleans(
    steps: list[tuple[str, int, int]], probe: int, limit: int
) -> None:
    bitmap = Bitmap(SOME_BLOCKS)
    written = bytearray(bitmap.data)
    plain = bytearray(SOME_BLOCKS)
    for action, first, length in steps:
        end = min(first + length, SOME_BLOCKS)
        if action == "set":
            expected = plain[first:end].count(0)
            assert bitmap.set_range(first * BLOCK_BYTES, max(end - first, 0) * BLOCK_BYTES) == expected
            plain[first:end] = b"\1" * max(end - first, 0)
        elif action == "clear":
            expected = plain[first:end].count(1)
            cleared = bitmap.clear_range(
                first * BLOCK_BYTES, max(end - first, 0) * BLOCK_BYTES, SOME_BLOCKS * BLOCK_BYTES
            )
            assert cleared == expected
            plain[first:end] = bytes(max(end - first, 0))
        elif action == "merge":
            words = random.Random(first * length).randbytes(min(length // 8, len(bitmap.data) - first // 8))
            bitmap.merge_words(first // 8, words)
            for block in range(first // 8 * 8, min((first // 8 + len(words)) * 8, SOME_BLOCKS)):
                plain[block] |= words[(block >> 3) - first // 8] >> (block & 7) & 1
        elif action == "set_all":
            bitmap.set_all()
            plain = bytearray(b"\1" * SOME_BLOCKS)
        else:
            bitmap.clear_all()
            plain = bytearray(SOME_BLOCKS)
        for position, page in bitmap.take_dirty_pages():
            written[position : position + PAGE_BYTES] = page
    packed = int(plain[::-1].translate(bytes.maketrans(b"\0\1", b"01")), 2).to_bytes(len(bitmap.data), "little")
    assert bitmap.data == packed
    assert written == bitmap.data
    assert bitmap.count == plain.count(1)
    found = plain.find(1, probe)
    assert bitmap.next_set(probe) == (None if found < 0 else found)
    clear = plain.find(0, probe)
    assert bitmap.next_clear(probe) == (None if clear < 0 else clear)
    run_end = clear if clear >= 0 else SOME_BLOCKS
    assert bitmap.run_length(probe, limit) == min(run_end - probe, limit)
    length = min(limit, SOME_BLOCKS - probe)
    assert bitmap.any_set(probe * BLOCK_BYTES, length * BLOCK_BYTES) == (1 in plain[probe : probe + length])


def test_only_changed_pages_are_to_be_written_and_only_once() -> None:
    bitmap = Bitmap(SOME_BLOCKS)
    bitmap.set_blocks(1, 2)
    bitmap.set_blocks(70000, 70001)
    bitmap.set_blocks(1, 2)
    bitmap.clear_blocks(40000, 50000)
    pages = bitmap.take_dirty_pages()
    assert [position for position, _ in pages] == [0, 2 * PAGE_BYTES]
    assert all(len(page) == PAGE_BYTES for _, page in pages)
    assert bitmap.take_dirty_pages() == []


def test_the_page_of_one_extent_is_taken_without_the_others() -> None:
    bitmap = Bitmap(SOME_BLOCKS)
    bitmap.set_blocks(0, 1)
    bitmap.set_blocks(32768 + 5, 32768 + 6)
    assert bitmap.take_dirty_pages(extent=70) == []
    [(position, page)] = bitmap.take_dirty_pages(extent=33)
    assert (position, page[0]) == (PAGE_BYTES, 32)
    assert bitmap.take_dirty_pages(extent=33) == []
    assert bitmap.dirty_pages == {0}


def test_bits_beyond_the_last_block_are_never_set_by_the_peer() -> None:
    bitmap = Bitmap(11)
    bitmap.merge_words(0, b"\xff" * 8)
    assert bitmap.count == 11
    assert sum(bits_of(bitmap)) == 11


def test_a_tebibyte_is_searched_and_filled_in_a_moment() -> None:
    started = time.perf_counter()
    bitmap = Bitmap(TEBIBYTE_BLOCKS)
    bitmap.set_blocks(TEBIBYTE_BLOCKS - 1, TEBIBYTE_BLOCKS)
    assert bitmap.next_set(0) == TEBIBYTE_BLOCKS - 1
    bitmap.set_all()
    assert bitmap.count == TEBIBYTE_BLOCKS
    assert bitmap.next_clear(3) is None
    bitmap.clear_all()
    assert bitmap.count == 0
    assert time.perf_counter() - started < 5, "takes 0.15 s where nothing else runs"


def test_a_small_write_is_marked_in_about_a_microsecond() -> None:
    bitmap = Bitmap(TEBIBYTE_BLOCKS)
    started = time.perf_counter()
    for block in range(0, 700_000, 7):
        bitmap.set_range(block * BLOCK_BYTES, BLOCK_BYTES)
    assert (time.perf_counter() - started) / 100_000 < 20e-6, "takes 0.8 us where nothing else runs"
