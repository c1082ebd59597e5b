"""What stands on a disk when a node takes it into use or puts it away: the same as `drbdmeta apply-al` and more.

The blocks that a crash may have left different are marked before anything else happens, the activity log starts empty,
and the superblock says that the disk is in use. A damaged activity log costs a full resynchronisation, not the disk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from replication.protocol.activity_log import Replay, initialised_ring, replay, ring_in_order
from replication.protocol.bitmap import Bitmap, bitmap_bytes
from replication.protocol.errors import MetadataError
from replication.protocol.metadata import (
    BLOCK_BYTES,
    EXTENT_BYTES,
    Layout,
    MetadataFlag,
    Superblock,
)

_BLOCKS_PER_EXTENT = EXTENT_BYTES // BLOCK_BYTES
_LARGEST_WRITE_BYTES = 1024 * 1024

Write = tuple[int, bytes]
"""Offset in bytes from the start of the disk, and what goes there."""


@dataclass
class Attachment:
    """A disk taken into use."""

    layout: Layout
    superblock: Superblock
    """As it stands on the disk once the writes are done."""
    bitmap: Bitmap
    """Of as many blocks as the nodes last agreed on; before they ever did, of all that the data area holds."""
    replayed_extents: frozenset[int]
    """Extents of 4 MiB that were hot when this node crashed as Primary, and are marked now."""
    stages: tuple[list[Write], ...]
    """What must be durable, each stage before the next begins. Until the last one is done nobody may become Primary."""
    notes: tuple[str, ...] = ()
    """What an operator should read in the log."""

    @property
    def writes(self) -> list[Write]:
        """All stages in order, for a disk that makes each write durable before the next."""
        return [write for stage in self.stages for write in stage]


def prepare_attachment(
    layout: Layout,
    superblock_data: bytes | bytearray | memoryview,
    al_data: bytes | bytearray | memoryview,
    bitmap_data: bytes | bytearray | memoryview,
) -> Attachment:
    """What taking the disk with these three areas into use amounts to.

    A crash at any moment of the writes is harmless: the bits are durable before the mark of the crashed Primary goes,
    and only then the activity log is emptied, which nobody reads any more without that mark.

    Raises MetadataError when the superblock is not ours or does not describe `layout`.
    """
    superblock = Superblock.decode(superblock_data)
    superblock.check(layout)
    block_count = superblock.data_blocks(layout)
    bitmap = Bitmap(block_count, bytearray(bitmap_data[: bitmap_bytes(block_count)]))
    crashed = MetadataFlag.PRIMARY_IND in superblock.flags
    found = _replay(layout, al_data) if crashed else None
    reasons = _reasons_for_a_full_resync(superblock, found)
    extents: frozenset[int] = frozenset()
    if reasons:
        bitmap.set_all()
    elif isinstance(found, Replay):
        # a mirror that became smaller leaves extents behind that no longer exist
        extents = frozenset(extent for extent in found.extents if extent * _BLOCKS_PER_EXTENT < block_count)
        for extent in extents:
            first = extent * _BLOCKS_PER_EXTENT
            bitmap.set_blocks(first, min(first + _BLOCKS_PER_EXTENT, block_count))
    in_use = _in_use(superblock, crashed)
    ring = initialised_ring(layout)
    stages = (
        [(layout.bitmap_offset + offset, data) for offset, data in _joined(bitmap.take_dirty_pages())],
        [(layout.superblock_offset, in_use.encode())],
        [(layout.al_offset, ring)] if bytes(al_data) != ring else [],
    )
    notes = tuple(f"every block is marked out of sync: {reason}" for reason in reasons)
    if crashed and not reasons:
        notes = (f"this node crashed as Primary: {len(extents)} extents of 4 MiB are marked out of sync",)
    return Attachment(layout, in_use, bitmap, extents, tuple(stage for stage in stages if stage), notes)


def clean_stop(superblock: Superblock, layout: Layout) -> list[Write]:
    """What to write, each durably before the next, so that the disk is clean: for DRBD's kernel module too.

    The data, and the bitmap, must be durable before.
    """
    writes: list[Write] = []
    secondary = replace(superblock, flags=superblock.flags & ~MetadataFlag.PRIMARY_IND, clean=False)
    if MetadataFlag.PRIMARY_IND in superblock.flags:
        # else a crash in the middle of the next write leaves a Primary's log with holes
        writes.append((layout.superblock_offset, secondary.encode()))
    writes.append((layout.al_offset, initialised_ring(layout)))
    clean = replace(secondary, flags=secondary.flags | MetadataFlag.AL_CLEAN, clean=True)
    writes.append((layout.superblock_offset, clean.encode()))
    return writes


def dump_metadata(attachment: Attachment) -> str:
    """The metadata as text, for people, in the words of `drbdmeta dump-md`."""
    layout, superblock, bitmap = attachment.layout, attachment.superblock, attachment.bitmap
    uuids = (superblock.current_uuid, superblock.bitmap_uuid, superblock.history0, superblock.history1)
    flags = superblock.flags & ~MetadataFlag.AL_CLEAN
    lines = [
        'version "v08";',
        "",
        f"# md_size_sect {superblock.md_size_sectors}",
        f"# md_offset {layout.superblock_offset}",
        f"# al_offset {layout.al_offset}",
        f"# bm_offset {layout.bitmap_offset}",
        "",
        "uuid {",
        "    " + " ".join(f"0x{uuid:016X};" for uuid in uuids),
        f"    flags 0x{flags:08X};",
        "}",
        f"# al-extents {superblock.al_extents};",
        f"la-size-sect {superblock.la_size_sectors};",
        f"bm-byte-per-bit {superblock.bytes_per_bit};",
        f"device-uuid 0x{superblock.device_uuid:016X};",
        f"la-peer-max-bio-size {superblock.peer_max_bio_size};",
        f"al-stripes {superblock.al_stripes};",
        f"al-stripe-size-4k {superblock.al_stripe_size_4k};",
        f"# bits-set {bitmap.count};",
    ]
    lines += [f"# replayed extent {extent}" for extent in sorted(attachment.replayed_extents)]
    lines += [f"# {note}" for note in attachment.notes]
    return "\n".join(lines) + "\n"


def _replay(layout: Layout, al_data: bytes | bytearray | memoryview) -> Replay | str:
    """What the ring says, or why it says nothing."""
    try:
        return replay(ring_in_order(layout, al_data))
    except MetadataError as error:
        return error.fact


def _reasons_for_a_full_resync(superblock: Superblock, found: Replay | str | None) -> list[str]:
    """`found` is None when this node did not crash as Primary just now."""
    reasons = []
    if MetadataFlag.FULL_SYNC in superblock.flags:
        reasons.append("a full synchronisation was being prepared")
    crashed = found is not None or MetadataFlag.CRASHED_PRIMARY in superblock.flags
    if crashed and MetadataFlag.AL_DISABLED in superblock.flags:
        reasons.append("this node crashed as Primary with its activity log disabled")
    elif isinstance(found, str):
        reasons.append(f"this node crashed as Primary, and its activity log is unusable: {found}")
    elif found is not None and not found.complete:
        reasons.append(
            f"this node crashed as Primary, and its activity log has gaps ({found.invalid_blocks} invalid blocks)"
        )
    return reasons


def _in_use(superblock: Superblock, crashed: bool) -> Superblock:
    """What was wrong before is in the bitmap by now, except that the peer has not heard of the crash."""
    settled = MetadataFlag.PRIMARY_IND | MetadataFlag.FULL_SYNC | MetadataFlag.AL_CLEAN | MetadataFlag.AL_DISABLED
    flags = superblock.flags & ~settled
    return replace(superblock, flags=flags | MetadataFlag.CRASHED_PRIMARY if crashed else flags, clean=False)


def _joined(pages: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Neighbours as one write."""
    joined: list[tuple[int, bytes]] = []
    run: list[bytes] = []
    start = length = 0
    for offset, page in pages:
        if run and (offset != start + length or length >= _LARGEST_WRITE_BYTES):
            joined.append((start, b"".join(run)))
            run = []
        if not run:
            start, length = offset, 0
        run.append(page)
        length += len(page)
    if run:
        joined.append((start, b"".join(run)))
    return joined
