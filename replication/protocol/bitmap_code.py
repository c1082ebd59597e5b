"""The bitmap on the wire: plain words, or run lengths where those are shorter.

A transfer is a sequence of packets, each going on where the last one ended:

P_BITMAP             plain: as many 64 bit words (little endian) as fit, or as are left; after the last word a further,
                     empty packet ends the transfer
P_COMPRESSED_BITMAP  one byte (bits 0-3: 2, the only code; bits 4-6: unused bits of the last byte; bit 7: the first run
                     is of set bits), then run lengths of alternating polarity. One that reaches the last bit ends
                     the transfer by itself

A run length is a variable length integer in a bit stream, least significant bit of each byte first: a prefix says its
level, and the rest is its distance from the level's shortest run. A plain packet after a compressed one starts with the
word that holds the next bit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from replication.protocol.bitmap import Bitmap
from replication.protocol.errors import PeerError
from replication.protocol.packets import P_BITMAP, P_COMPRESSED_BITMAP

_PACKET_BYTES = 4096
"""Header and payload of one packet together never exceed this."""
_WORD_BYTES = 8
_RUN_LENGTHS = 2
_FIRST_RUN_SET = 0x80
_DENSE_RUN_BLOCKS = 128
"""Where runs are shorter on average, plain words are sent: they cost less time here than the code saves on the wire."""
_OUTLOOK_BYTES = 4096

# (prefix bits, prefix value, bits in all), shortest first; runs of a level begin where those of the one before end.
_LEVELS = (
    (1, 0x00, 2),
    (2, 0x01, 3),
    (3, 0x03, 5),
    (4, 0x07, 7),
    (5, 0x0F, 10),
    (6, 0x1F, 14),
    (8, 0x3F, 21),
    (8, 0x7F, 29),
    (8, 0xBF, 42),
    (8, 0xFF, 64),
)
_LONGEST_CODE_BITS = 64


def _levels() -> Iterator[tuple[int, int, int, int, int]]:
    shortest = 1
    for prefix_bits, prefix, total_bits in _LEVELS:
        longest = shortest + (1 << (total_bits - prefix_bits)) - 1
        yield shortest, longest, prefix_bits, prefix, total_bits
        shortest = longest + 1


_ENCODE = tuple(_levels())
_DECODE = [
    next(
        (prefix_bits, total_bits, (1 << total_bits) - 1, shortest)
        for shortest, _, prefix_bits, prefix, total_bits in _ENCODE
        if byte & (1 << prefix_bits) - 1 == prefix
    )
    for byte in range(256)
]
"""By the low eight bits of the stream: (prefix bits, bits in all, mask of those, shortest run)."""


def encode_run(length: int) -> tuple[int, int]:
    """The code of a run of `length` (at least 1) blocks, and how many bits it takes."""
    for shortest, longest, prefix_bits, prefix, total_bits in _ENCODE:
        if length <= longest:
            return prefix | (length - shortest) << prefix_bits, total_bits
    raise AssertionError(length)


_SHORT_RUNS = [(0, 0), *(encode_run(length) for length in range(1, 2048))]
"""By length, as `encode_run` says."""
_BITS = [tuple(bit for bit in range(8) if byte >> bit & 1) for byte in range(256)]
_NOT_ZERO = re.compile(rb"[^\0]", re.DOTALL)


class BitmapSender:
    """The packets that carry a whole bitmap: iterate for (command, payload).

    Each packet is made from the bitmap as it is at that moment, so a bit set later on in the device still goes out.
    """

    def __init__(self, bitmap: Bitmap, header_size: int, use_rle: bool) -> None:
        """`header_size` is that of the packet headers agreed on, in bytes: it bounds the payload."""
        self._bitmap = bitmap
        self._plain_bytes = (_PACKET_BYTES - header_size) // _WORD_BYTES * _WORD_BYTES
        self._code_bits = (_PACKET_BYTES - header_size - 1) * 8
        self._use_rle = use_rle

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        bitmap = self._bitmap
        at = 0
        while at < bitmap.block_count:
            coded = self._encode(at) if self._use_rle else None
            if coded is not None:
                payload, at = coded
                yield P_COMPRESSED_BITMAP, payload
                if at == bitmap.block_count:
                    return
            else:
                first_byte = at // 64 * _WORD_BYTES
                end_byte = min(first_byte + self._plain_bytes, word_bytes(bitmap.block_count))
                at = min(end_byte * 8, bitmap.block_count)
                yield P_BITMAP, bytes(bitmap.data[first_byte:end_byte])
        yield P_BITMAP, b""

    def _encode(self, start: int) -> tuple[bytes, int] | None:
        """Payload, and where it ends; None when plain words are the better choice from here."""
        code = bytearray()
        pending, pending_bits = 0, 0
        at, bits_left = start, self._code_bits
        for end in self._run_ends(start):
            length = end - at
            value, value_bits = _SHORT_RUNS[length] if length < len(_SHORT_RUNS) else encode_run(length)
            if value_bits > bits_left:
                break
            bits_left -= value_bits
            pending |= value << pending_bits
            pending_bits += value_bits
            if pending_bits >= 512:
                code += (pending & (1 << 512) - 1).to_bytes(64, "little")
                pending >>= 512
                pending_bits -= 512
            at = end
        code += pending.to_bytes((pending_bits + 7) >> 3, "little")
        cut_short = at < self._bitmap.block_count and at - start < _OUTLOOK_BYTES * 8
        if cut_short or len(code) * 8 >= at - start:
            return None
        first_is_set = self._bitmap.data[start >> 3] >> (start & 7) & 1
        return bytes([_RUN_LENGTHS | -pending_bits % 8 << 4 | _FIRST_RUN_SET * first_is_set]) + code, at

    def _run_ends(self, at: int) -> Iterator[int]:
        """Where the runs from `at` on end. Stops before the last one where the bitmap gets too dense for the code."""
        data, block_count = self._bitmap.data, self._bitmap.block_count
        while at < block_count:
            is_set = data[at >> 3] >> (at & 7) & 1
            found = self._bitmap.next_clear(at) if is_set else self._bitmap.next_set(at)
            at = block_count if found is None else found
            yield at
            first_byte = at >> 3
            bits = int.from_bytes(data[first_byte : first_byte + _OUTLOOK_BYTES], "little")
            # A bit of `edges` is set where the bit of the bitmap differs from the one before; the first are behind us.
            edges = (bits ^ bits << 1) >> (at & 7) + 1 << (at & 7) + 1
            if edges.bit_count() * _DENSE_RUN_BLOCKS > _OUTLOOK_BYTES * 8:
                return
            for match in _NOT_ZERO.finditer(edges.to_bytes(_OUTLOOK_BYTES + 1, "little"), 0, _OUTLOOK_BYTES):
                base = first_byte + match.start() << 3
                for bit in _BITS[match[0][0]]:
                    at = base + bit
                    yield at


class BitmapReceiver:
    """Takes the packets of the peer's bitmap and marks what it has marked, in addition to what is marked here."""

    def __init__(self, bitmap: Bitmap, header_size: int) -> None:
        """`header_size` is that of the packet headers agreed on, in bytes: it bounds the payload."""
        self._bitmap = bitmap
        self._plain_bytes = (_PACKET_BYTES - header_size) // _WORD_BYTES * _WORD_BYTES
        self._code_bytes = _PACKET_BYTES - header_size - 1
        self._at = 0
        self._complete = False

    def receive(self, command: int, payload: bytes | bytearray | memoryview) -> bool:
        """Merge one packet; True when it was the last. Raises PeerError when it is not what has to come now."""
        if self._complete:
            raise PeerError("a bitmap packet came after the end of the bitmap")
        if command == P_BITMAP:
            self._receive_words(payload)
        elif command == P_COMPRESSED_BITMAP:
            self._receive_runs(payload)
        else:
            raise PeerError(f"packet 0x{command:02x} is not part of a bitmap")
        return self._complete

    def _receive_words(self, payload: bytes | bytearray | memoryview) -> None:
        total_bytes = word_bytes(self._bitmap.block_count)
        first_byte = total_bytes if self._at == self._bitmap.block_count else self._at // 64 * _WORD_BYTES
        wanted = min(self._plain_bytes, total_bytes - first_byte)
        if len(payload) != wanted:
            raise PeerError(f"a bitmap packet of {len(payload)} bytes came where {wanted} have to come")
        if not wanted:
            self._complete = True
            return
        self._bitmap.merge_words(first_byte, payload)
        self._at = min((first_byte + wanted) * 8, self._bitmap.block_count)

    def _receive_runs(self, payload: bytes | bytearray | memoryview) -> None:
        if not 2 <= len(payload) <= self._code_bytes + 1:
            raise PeerError(f"a compressed bitmap packet has {len(payload)} bytes, not 2 to {self._code_bytes + 1}")
        kind = payload[0]
        if kind & 0x0F != _RUN_LENGTHS:
            raise PeerError(f"the code {kind & 0x0F} of a compressed bitmap packet is not known")
        bits_left = (len(payload) - 1) * 8 - (kind >> 4 & 7)
        bitmap, block_count, at, is_set = self._bitmap, self._bitmap.block_count, self._at, bool(kind & _FIRST_RUN_SET)
        pending, pending_bits, next_byte = 0, 0, 1
        while bits_left:
            if pending_bits < _LONGEST_CODE_BITS and next_byte < len(payload):
                more = payload[next_byte : next_byte + 64]
                pending |= int.from_bytes(more, "little") << pending_bits
                pending_bits += 8 * len(more)
                next_byte += len(more)
            prefix_bits, total_bits, mask, shortest = _DECODE[pending & 0xFF]
            if total_bits > bits_left:
                raise PeerError("a run length of a compressed bitmap packet is cut off")
            end = at + shortest + ((pending & mask) >> prefix_bits)
            if end > block_count:
                raise PeerError(f"a compressed bitmap packet reaches block {end} of {block_count}")
            if is_set:
                bitmap.set_blocks(at, end)
            at = end
            is_set = not is_set
            pending >>= total_bits
            pending_bits -= total_bits
            bits_left -= total_bits
        self._at = at
        self._complete = at == block_count


def word_bytes(block_count: int) -> int:
    """Bytes of the 64 bit words that hold `block_count` bits."""
    return (block_count + 63) // 64 * _WORD_BYTES
