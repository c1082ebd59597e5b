"""The activity log: which extents of 4 MiB may hold blocks that the two nodes have differently, should this one crash.

In memory it is a table of `al_extents` slots, each free or holding the number of a hot extent. On disk it is a ring of
4 KiB blocks, each one transaction: up to 64 changed slots, and, in turns of 919, what the slots held before it. So the
last few blocks always name every slot, and the ring needs no clean-up. One block may be torn, the newest: its
transaction was not durable, so nothing was written under its protection yet.
"""

from __future__ import annotations

import enum
import struct
from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from replication.protocol.crc32c import crc32c
from replication.protocol.errors import MetadataError
from replication.protocol.metadata import BLOCK_BYTES, Layout

MAGIC = 0x69CB65A2
UPDATES_MAX = 64
"""Slots that one transaction can change."""
CONTEXT_SLOTS = 919
"""Slots whose former content one transaction repeats."""
FREE = 0xFFFFFFFF
"""Stands for an extent where a slot has none."""

_NO_SLOT = 0xFFFF
_HEAD = struct.Struct(f">IIIHHHH 16x {UPDATES_MAX}H {UPDATES_MAX}I")
_CONTEXT = struct.Struct(f">{CONTEXT_SLOTS}I")
_CHECKSUM = slice(8, 12)
_NUMBERS = 1 << 32
"""Transaction numbers go round at this."""
_SUBJECT = "activity log"


class Kind(enum.IntEnum):
    UPDATE = 0
    INITIALISED = 0xFFFF
    """Holds no transaction: the ring was emptied here."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """One block of the ring."""

    kind: Kind
    number: int
    updates: tuple[tuple[int, int], ...]
    """(slot, extent); the extent may be FREE."""
    al_extents: int
    context_start: int
    context: bytes
    """919 extents as on disk (32 bits, big endian): what the slots from context_start on held before the updates."""

    def context_items(self) -> list[tuple[int, int]]:
        """(slot, extent) of the context, without what would stand beyond the table."""
        extents = _CONTEXT.unpack(self.context)
        return list(enumerate(extents[: max(0, self.al_extents - self.context_start)], self.context_start))


def encode_transaction(transaction: Transaction) -> bytes:
    """The 4096 bytes on disk, checksum included."""
    updates = transaction.updates
    unused = UPDATES_MAX - len(updates)
    initialised = transaction.kind is Kind.INITIALISED
    head = _HEAD.pack(
        MAGIC,
        transaction.number,
        0,
        transaction.kind,
        len(updates),
        transaction.al_extents,
        transaction.context_start,
        *[slot for slot, _ in updates],
        *[0 if initialised else _NO_SLOT] * unused,
        *[extent for _, extent in updates],
        *[0 if initialised else FREE] * unused,
    )
    block = bytearray(head + transaction.context)
    block[_CHECKSUM] = crc32c(block).to_bytes(4)
    return bytes(block)


def decode_transaction(block: bytes | bytearray | memoryview) -> Transaction:
    """Raises MetadataError for a block that is damaged, torn or something else."""
    if len(block) != BLOCK_BYTES:
        raise MetadataError(_SUBJECT, f"a block of {len(block)} bytes")
    magic, number, checksum, kind, count, al_extents, context_start, *slots_and_extents = _HEAD.unpack_from(block)
    if magic != MAGIC:
        raise MetadataError(_SUBJECT, f"a block with the magic number {magic:#010x}")
    plain = bytearray(block)
    plain[_CHECKSUM] = bytes(4)
    if crc32c(plain) != checksum:
        raise MetadataError(_SUBJECT, f"the block of transaction {number} is damaged: wrong checksum")
    if kind not in (Kind.UPDATE, Kind.INITIALISED):
        raise MetadataError(_SUBJECT, f"transaction {number} is of the unknown kind {kind}")
    slots, extents = slots_and_extents[:count], slots_and_extents[UPDATES_MAX : UPDATES_MAX + count]
    if count > UPDATES_MAX or context_start >= max(1, al_extents) or any(slot >= al_extents for slot in slots):
        raise MetadataError(_SUBJECT, f"transaction {number} does not fit a table of {al_extents} slots")
    context = bytes(block[_HEAD.size :])
    return Transaction(Kind(kind), number, tuple(zip(slots, extents, strict=True)), al_extents, context_start, context)


INITIALISED_BLOCK = encode_transaction(Transaction(Kind.INITIALISED, 0, (), 0, 0, bytes(_CONTEXT.size)))


def initialised_ring(layout: Layout) -> bytes:
    """The whole ring, empty."""
    return INITIALISED_BLOCK * layout.ring_blocks


@dataclass(frozen=True, slots=True)
class Replay:
    """What a ring says."""

    extents: frozenset[int]
    """Hot when the newest transaction was written."""
    newest_transaction: int | None
    """None: the ring is empty."""
    invalid_blocks: int
    complete: bool
    """False: blocks are missing that no torn write explains, so further extents may have been hot."""


def ring_in_order(layout: Layout, al_data: bytes | bytearray | memoryview) -> list[bytes]:
    """The blocks of the ring, in the order in which transactions fill them."""
    offsets = (layout.ring_block_offset(number) - layout.al_offset for number in range(layout.ring_blocks))
    return [bytes(al_data[offset : offset + BLOCK_BYTES]) for offset in offsets]


def replay(ring_blocks: Sequence[bytes]) -> Replay:
    """The table as the transactions left it. Blocks in the order of `ring_in_order`.

    Raises MetadataError when no block is valid.
    """
    transactions: list[Transaction] = []
    invalid: list[int] = []
    empty: set[int] = set()
    for index, block in enumerate(ring_blocks):
        try:
            transaction = decode_transaction(block)
        except MetadataError:
            invalid.append(index)
            continue
        if transaction.kind is Kind.INITIALISED:
            empty.add(index)
        else:
            transactions.append(transaction)
    if len(invalid) == len(ring_blocks):
        raise MetadataError(_SUBJECT, "none of its blocks is valid", "every block of the disk may differ")
    if not transactions:
        return Replay(frozenset(), None, len(invalid), len(invalid) <= 1)
    somewhere = transactions[0].number
    transactions.sort(key=lambda transaction: _signed(transaction.number - somewhere))
    table: dict[int, int] = {}
    named: set[int] = set()
    for transaction in transactions:
        context = transaction.context_items()
        named.update(slot for slot, _ in context)
        table.update(context)
        table.update(transaction.updates)
    first, newest = transactions[0].number, transactions[-1]
    without_gap = _signed(newest.number - first) == len(transactions) - 1
    # either all slots are named, or the first transaction is the first there was since the ring was emptied
    from_the_start = (first - 1) % len(ring_blocks) in empty
    complete = len(invalid) <= 1 and without_gap and (from_the_start or len(named) >= newest.al_extents)
    return Replay(frozenset(table.values()) - {FREE}, newest.number, len(invalid), complete)


def _signed(difference: int) -> int:
    """Of two numbers that go round, how far one is ahead of the other."""
    return (difference + _NUMBERS // 2) % _NUMBERS - _NUMBERS // 2


@dataclass(frozen=True, slots=True)
class Activation:
    """What makes extents hot. First the bitmap pages of the evicted extents must be durable, then the writes, in order,
    and only then may the data of the new extents be touched, here or at the peer."""

    evicted: list[int]
    writes: list[tuple[int, bytes]]
    """(offset in bytes from the start of the disk, 4096 bytes)"""


class ActivityLog:
    """The table in memory, and the transactions that keep its picture on disk.

    The ring on disk must be empty (`initialised_ring`) when this begins, or go on at `first_transaction` from a table
    that was empty too.
    """

    def __init__(self, al_extents: int, layout: Layout, first_transaction: int = 0) -> None:
        """Raises MetadataError when the ring is too small for so many slots."""
        if not 1 <= al_extents <= layout.al_extents_max:
            raise MetadataError(
                _SUBJECT,
                f"{al_extents} extents do not fit into a ring of {layout.ring_blocks} blocks",
                f"set al-extents to 1..{layout.al_extents_max}, or create the metadata with a larger ring",
            )
        self.al_extents = al_extents
        self._layout = layout
        self._next_transaction = first_transaction % _NUMBERS
        self._hot: OrderedDict[int, int] = OrderedDict()
        """Extent to slot, the one not used for longest first."""
        self._free = list(range(al_extents - 1, -1, -1))
        # as on disk, with free slots behind the last, so that any context is one slice of it
        self._slots = bytearray(b"\xff" * (4 * (al_extents + CONTEXT_SLOTS)))
        self._context_start = 0

    @property
    def hot(self) -> Mapping[int, int]:
        """The hot extents (and their slots), for `extent in log.hot`."""
        return self._hot

    def is_hot(self, extent: int) -> bool:
        return extent in self._hot

    def touch(self, extent: int) -> None:
        """It was used just now. Raises KeyError when it is not hot."""
        self._hot.move_to_end(extent)

    def activate(self, wanted: Sequence[int], held: Container[int] = ()) -> Activation | None:
        """Make all of `wanted` hot, for which others may have to go: neither wanted ones nor those in `held`.

        None, and nothing changed, when not enough of the others may go; always so for more than `al_extents` at once.
        """
        hot, free = self._hot, self._free
        distinct = dict.fromkeys(wanted)
        missing = [extent for extent in distinct if extent not in hot]
        evicted = self._evictable(len(missing) - len(free), distinct, held)
        if evicted is None:
            return None
        for extent in distinct:
            if extent in hot:
                hot.move_to_end(extent)
        slots = [hot.pop(extent) for extent in evicted]
        slots += [free.pop() for _ in range(len(missing) - len(slots))]
        updates = list(zip(slots, missing, strict=True))
        for slot, extent in updates:
            hot[extent] = slot
        writes = [self._write(updates[at : at + UPDATES_MAX]) for at in range(0, len(updates), UPDATES_MAX)]
        return Activation(evicted, writes)

    def _evictable(self, count: int, wanted: Container[int], held: Container[int]) -> list[int] | None:
        if count <= 0:
            return []
        chosen = []
        for extent in self._hot:
            if extent not in held and extent not in wanted:
                chosen.append(extent)
                if len(chosen) == count:
                    return chosen
        return None

    def _write(self, updates: list[tuple[int, int]]) -> tuple[int, bytes]:
        start, number = self._context_start, self._next_transaction
        context = bytes(self._slots[4 * start : 4 * (start + CONTEXT_SLOTS)])
        block = encode_transaction(Transaction(Kind.UPDATE, number, tuple(updates), self.al_extents, start, context))
        for slot, extent in updates:
            self._slots[4 * slot : 4 * slot + 4] = extent.to_bytes(4)
        self._next_transaction = (number + 1) % _NUMBERS
        self._context_start = start + CONTEXT_SLOTS if start + CONTEXT_SLOTS < self.al_extents else 0
        return self._layout.ring_block_offset(number), block
