"""Which blocks differ between the two sides: one bit for each 4096 bytes of the device, 1 = out of sync.

Bit n is bit n % 8 of byte n // 8, as the metadata area and the wire have it. A disk of 1 TiB has 32 MiB of bitmap, so
nothing here works bit by bit: long stretches are compared, filled and counted a page (4096 bytes of bitmap, 128 MiB of
device) at a time.
"""

from __future__ import annotations

BLOCK_BYTES = 4096
"""Bytes of the device that one bit stands for."""
PAGE_BYTES = 4096
"""Unit in which the bitmap is written to the metadata area."""
EXTENT_BITMAP_BYTES = 128
"""Bytes of bitmap that stand for one extent (4 MiB) of the activity log."""

_BLOCK_SHIFT = 12
_PAGE_SHIFT = 15
_PAGE_BITS = 1 << _PAGE_SHIFT
_EXTENT_TO_PAGE_SHIFT = 5
_GLANCE_BITS = 512
"""A search looks this far first: where bits are dense the answer is near, and short integers are cheap."""
_ALL_CLEAR = bytes(PAGE_BYTES)
_ALL_SET = b"\xff" * PAGE_BYTES


def bitmap_bytes(block_count: int) -> int:
    """Bytes that `block_count` bits take, padded to whole pages."""
    return -(-block_count // _PAGE_BITS) * PAGE_BYTES


class Bitmap:
    """The bits of one device, how many are set, and which pages differ from what is on the disk.

    `data` may be read freely. Whoever changes it by other means than these methods breaks `count` and `dirty_pages`.
    Ranges beyond `block_count` are a bug of the caller, and asserted: check what a peer says before.
    """

    __slots__ = ("block_count", "count", "data", "dirty_pages")

    def __init__(self, block_count: int, data: bytearray | None = None) -> None:
        """`data` is what the metadata area holds; it is taken over, and bits beyond the last block are dropped.

        Raises ValueError when `data` is too short.
        """
        size_bytes = bitmap_bytes(block_count)
        if data is None:
            data = bytearray(size_bytes)
        elif len(data) < size_bytes:
            raise ValueError(f"a bitmap of {block_count} bits needs {size_bytes} bytes, not {len(data)}")
        elif len(data) > size_bytes:
            data = data[:size_bytes]
        self.block_count = block_count
        self.data = data
        self.dirty_pages: set[int] = set()
        """Pages changed in memory since they were last taken to be written."""
        used_bytes = (block_count + 7) >> 3
        data[used_bytes:] = bytes(size_bytes - used_bytes)
        if block_count & 7:
            data[used_bytes - 1] &= (1 << (block_count & 7)) - 1
        self.count = sum(_count_page(data, at) for at in range(0, size_bytes, PAGE_BYTES))

    # The device's view: byte ranges

    def set_range(self, offset_bytes: int, length_bytes: int) -> int:
        """Mark every block that the range touches; the number of those not marked before."""
        first = offset_bytes >> _BLOCK_SHIFT
        end = (offset_bytes + length_bytes + BLOCK_BYTES - 1) >> _BLOCK_SHIFT
        if end - first != 1 or not length_bytes:
            return self.set_blocks(first, end) if length_bytes else 0
        # One block: each small write of a disconnected Primary comes here.
        assert 0 <= first < self.block_count, (first, self.block_count)
        old = self.data[first >> 3]
        new = old | 1 << (first & 7)
        if new == old:
            return 0
        self.data[first >> 3] = new
        self.count += 1
        self.dirty_pages.add(first >> _PAGE_SHIFT)
        return 1

    def clear_range(self, offset_bytes: int, length_bytes: int, device_bytes: int) -> int:
        """Unmark the blocks that the range covers wholly; the number of those marked before.

        A last block shorter than 4096 bytes is covered by a range that reaches the end of the device.
        """
        first = (offset_bytes + BLOCK_BYTES - 1) >> _BLOCK_SHIFT
        end_bytes = offset_bytes + length_bytes
        end = self.block_count if end_bytes >= device_bytes else end_bytes >> _BLOCK_SHIFT
        return self.clear_blocks(first, end) if first < end else 0

    def any_set(self, offset_bytes: int, length_bytes: int) -> bool:
        """Whether any block that the range touches is marked."""
        first = offset_bytes >> _BLOCK_SHIFT
        end = (offset_bytes + length_bytes + BLOCK_BYTES - 1) >> _BLOCK_SHIFT
        return length_bytes > 0 and self._skip(first, min(end, self.block_count), _ALL_CLEAR) < end

    # Blocks

    def set_blocks(self, first: int, end: int) -> int:
        """Mark the blocks from `first` up to but not including `end`; the number of those not marked before."""
        return self._fill(first, end, _ALL_SET)

    def clear_blocks(self, first: int, end: int) -> int:
        """Unmark the blocks from `first` up to but not including `end`; the number of those marked before."""
        return self._fill(first, end, _ALL_CLEAR)

    def set_all(self) -> None:
        self._fill(0, self.block_count, _ALL_SET)

    def clear_all(self) -> None:
        self._fill(0, self.block_count, _ALL_CLEAR)

    def next_set(self, from_block: int) -> int | None:
        """The first marked block at or after `from_block`."""
        found = self._skip(from_block, self.block_count, _ALL_CLEAR)
        return found if found < self.block_count else None

    def next_clear(self, from_block: int) -> int | None:
        """The first unmarked block at or after `from_block`."""
        found = self._skip(from_block, self.block_count, _ALL_SET)
        return found if found < self.block_count else None

    def run_length(self, from_block: int, limit_blocks: int) -> int:
        """How many blocks in a row are marked from `from_block` on, counting no further than `limit_blocks`."""
        end = min(from_block + limit_blocks, self.block_count)
        return max(self._skip(from_block, end, _ALL_SET) - from_block, 0)

    # The peer's and the disk's view: bytes of bitmap

    def merge_words(self, byte_position: int, data: bytes | bytearray | memoryview) -> None:
        """Mark in addition what `data`, a part of another bitmap that starts at `byte_position`, has marked.

        Bits beyond the last block are ignored.
        """
        assert 0 <= byte_position <= len(self.data) - len(data), (byte_position, len(data))
        end_position = min(byte_position + len(data), (self.block_count + 7) >> 3)
        at = byte_position
        while at < end_position:
            page_end = min((at | PAGE_BYTES - 1) + 1, end_position)
            theirs = int.from_bytes(data[at - byte_position : page_end - byte_position], "little")
            if page_end << 3 > self.block_count:
                theirs &= (1 << (self.block_count - (at << 3))) - 1
            if theirs:
                ours = int.from_bytes(self.data[at:page_end], "little")
                merged = ours | theirs
                if merged != ours:
                    self.data[at:page_end] = merged.to_bytes(page_end - at, "little")
                    self.count += merged.bit_count() - ours.bit_count()
                    self.dirty_pages.add(at // PAGE_BYTES)
            at = page_end

    def take_dirty_pages(self, extent: int | None = None) -> list[tuple[int, bytes]]:
        """Changed pages as (byte offset in the bitmap, content), lowest first; they count as written from now on.

        With `extent` only the page that holds the bits of that extent (4 MiB) of the activity log.
        """
        if extent is None:
            pages = sorted(self.dirty_pages)
        else:
            page = extent >> _EXTENT_TO_PAGE_SHIFT
            pages = [page] if page in self.dirty_pages else []
        self.dirty_pages.difference_update(pages)
        return [(page * PAGE_BYTES, bytes(self.data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])) for page in pages]

    # Below: the two loops over pages

    def _fill(self, first: int, end: int, filler: bytes) -> int:
        """Make the bits from `first` to `end` those of `filler`; the number of bits that changed."""
        if first >= end:
            return 0
        assert 0 <= first < end <= self.block_count, (first, end, self.block_count)
        data, setting, total, at = self.data, filler is _ALL_SET, 0, first
        while at < end:
            page = at >> _PAGE_SHIFT
            stop = min((page + 1) << _PAGE_SHIFT, end)
            first_byte, end_byte = at >> 3, (stop + 7) >> 3
            if stop - at < _PAGE_BITS:
                old = int.from_bytes(data[first_byte:end_byte], "little")
                mask = ((1 << (stop - at)) - 1) << (at & 7)
                new = old | mask if setting else old & ~mask
                changed = (old ^ new).bit_count()
                if changed:
                    data[first_byte:end_byte] = new.to_bytes(end_byte - first_byte, "little")
            elif data.startswith(filler, first_byte):
                changed = 0
            else:
                set_before = _count_page(data, first_byte)
                changed = _PAGE_BITS - set_before if setting else set_before
                data[first_byte:end_byte] = filler
            if changed:
                total += changed
                self.dirty_pages.add(page)
            at = stop
        self.count += total if setting else -total
        return total

    def _skip(self, at: int, end: int, filler: bytes) -> int:
        """The first block from `at` on whose bit is not as in `filler`; `end` when there is none before it."""
        data, skipping_set = self.data, filler is _ALL_SET
        stop = at + _GLANCE_BITS
        while at < end:
            page_end = (at | _PAGE_BITS - 1) + 1
            if not at & _PAGE_BITS - 1 and stop > at + _GLANCE_BITS and data.startswith(filler, at >> 3):
                at = page_end
                stop = at + _PAGE_BITS
                continue
            stop = min(stop, page_end, end)
            bits = int.from_bytes(data[at >> 3 : (stop + 7) >> 3], "little") >> (at & 7)
            if skipping_set:
                bits = ~bits
            found = at + (bits & -bits).bit_length() - 1 if bits else stop
            if found < stop:
                return found
            at = stop
            stop = at + _PAGE_BITS
        return end


def _count_page(data: bytearray, at: int) -> int:
    if data.startswith(_ALL_CLEAR, at):
        return 0
    return int.from_bytes(data[at : at + PAGE_BYTES], "little").bit_count()
