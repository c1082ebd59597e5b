"""Where a disk's metadata stands, and its superblock: DRBD 8.4's "v08" format, internal placement.

From the end of the disk backwards: up to seven spare sectors, the superblock (4 KiB), the ring of the activity log
(activity_log.py), the bitmap of blocks out of sync (bitmap.py). What lies before them is the data area.

drbdmeta(8) of Debian's drbd-utils reads and writes the same: `drbdmeta --force 0 v08 DISK internal dump-md`.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from replication.protocol.errors import MetadataError

SECTOR_BYTES = 512
BLOCK_BYTES = 4096
"""Unit in which all metadata is read and written; also what one bit of the bitmap stands for."""
EXTENT_BYTES = 4 * 1024 * 1024
"""What one entry of the activity log keeps hot."""
SMALLEST_DISK_BYTES = 1024 * 1024

JUST_CREATED_UUID = 4
"""Current UUID of a disk that never took part in anything."""
AL_EXTENTS_DEFAULT = 1237

_BLOCK_SECTORS = BLOCK_BYTES // SECTOR_BYTES
_SECTORS_PER_BITMAP_SECTOR = 8 * SECTOR_BYTES * _BLOCK_SECTORS
_LARGEST_RING_BLOCKS = 1024 * 1024
_SUBJECT = "metadata"
_CREATE = "mirroradm create-md makes new metadata"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything stands. All offsets in bytes from the start of the disk, all of them multiples of 4096."""

    capacity_bytes: int
    data_bytes: int
    """Size of the data area, which starts at 0: what the mirror can offer at most."""
    bitmap_offset: int
    bitmap_bytes: int
    al_offset: int
    al_bytes: int
    superblock_offset: int
    al_stripes: int
    al_stripe_size_4k: int
    """Blocks of 4 KiB in one stripe of the activity log's ring."""

    @property
    def ring_blocks(self) -> int:
        return self.al_stripes * self.al_stripe_size_4k

    @property
    def al_extents_max(self) -> int:
        """One block may always be torn; the others must be able to name every slot."""
        return min(65534, (self.ring_blocks - 1) * 919)

    def ring_block_offset(self, transaction: int) -> int:
        """Where the block of this transaction goes. Neighbours go to different stripes."""
        turn, stripe = divmod(transaction % self.ring_blocks, self.al_stripes)
        return self.al_offset + (stripe * self.al_stripe_size_4k + turn) * BLOCK_BYTES


def superblock_offset(capacity_bytes: int) -> int:
    """Where the superblock of internal metadata stands; negative when the disk has no room for one."""
    return (capacity_bytes // BLOCK_BYTES - 1) * BLOCK_BYTES


def internal_layout(capacity_bytes: int, *, al_stripes: int = 1, al_stripe_size_4k: int = 8) -> Layout:
    """The layout of internal metadata on a disk of `capacity_bytes`.

    Raises MetadataError when the disk is too small, or when no ring of an activity log has such stripes.
    """
    ring_blocks = al_stripes * al_stripe_size_4k
    if al_stripes < 1 or al_stripe_size_4k < 1 or not 2 <= ring_blocks <= _LARGEST_RING_BLOCKS:
        raise MetadataError(
            _SUBJECT,
            f"{al_stripes} stripes of {al_stripe_size_4k} blocks are no ring of an activity log",
            "the usual is 1 stripe of 8 blocks",
        )
    if capacity_bytes < SMALLEST_DISK_BYTES:
        raise MetadataError(
            _SUBJECT, f"the disk has {capacity_bytes} bytes, {SMALLEST_DISK_BYTES} are the least", "use a larger disk"
        )
    capacity_sectors = capacity_bytes // SECTOR_BYTES
    bitmap_sectors = -(-capacity_sectors // _SECTORS_PER_BITMAP_SECTOR)
    bitmap_bytes = -(-bitmap_sectors // _BLOCK_SECTORS) * BLOCK_BYTES
    superblock = superblock_offset(capacity_bytes)
    al_offset = superblock - ring_blocks * BLOCK_BYTES
    bitmap_offset = al_offset - bitmap_bytes
    if bitmap_offset <= 0:
        raise MetadataError(
            _SUBJECT,
            f"a ring of {ring_blocks} blocks leaves no data area on a disk of {capacity_bytes} bytes",
            "use a larger disk or a smaller activity log",
        )
    return Layout(
        capacity_bytes=capacity_bytes,
        data_bytes=bitmap_offset,
        bitmap_offset=bitmap_offset,
        bitmap_bytes=bitmap_bytes,
        al_offset=al_offset,
        al_bytes=ring_blocks * BLOCK_BYTES,
        superblock_offset=superblock,
        al_stripes=al_stripes,
        al_stripe_size_4k=al_stripe_size_4k,
    )


class MetadataFlag(enum.IntFlag):
    CONSISTENT = 1
    PRIMARY_IND = 2
    """The node is Primary now; found at the next attach: it crashed as Primary."""
    CONNECTED_IND = 4
    FULL_SYNC = 8
    """Every block counts as out of sync, whatever the bitmap says: it was being filled."""
    WAS_UP_TO_DATE = 16
    PEER_OUT_DATED = 32
    CRASHED_PRIMARY = 64
    """Crashed as Primary, and the two disks were not UpToDate together since."""
    AL_CLEAN = 128
    """The activity log was applied: the disk may be attached as it is."""
    AL_DISABLED = 256
    """The activity log was not kept, so after a crash as Primary nothing says which blocks may differ."""


class Magic(enum.IntEnum):
    """Names a superblock's format; all formats have it at the same place."""

    DRBD_07 = 0x8374026A
    CLEAN = 0x8374026B
    UNCLEAN = 0x8374026C
    """In use, or left so by a crash. DRBD's kernel module leaves it even at an orderly end, and then wants
    `drbdmeta apply-al` before it attaches again."""
    DRBD_9 = 0x8374026D


_LAYOUT = struct.Struct(">6Q 8x II I i I i I I I I")


def magic_of(data: bytes | bytearray | memoryview) -> int:
    """What stands where a superblock of any DRBD format has its magic number; see Magic."""
    return int.from_bytes(data[60:64])


@dataclass(frozen=True, slots=True)
class Superblock:
    """Sizes and offsets in sectors of 512 bytes, offsets relative to the superblock itself (negative: before it)."""

    la_size_sectors: int
    """Size of the device as the two nodes last agreed on it; 0: they never did."""
    current_uuid: int
    bitmap_uuid: int
    history0: int
    history1: int
    device_uuid: int
    flags: MetadataFlag
    clean: bool
    """Not in use, as the magic number says it."""
    md_size_sectors: int
    al_offset_sectors: int
    al_extents: int
    bm_offset_sectors: int
    bytes_per_bit: int
    peer_max_bio_size: int
    al_stripes: int
    al_stripe_size_4k: int

    def encode(self) -> bytes:
        """The 4096 bytes on disk."""
        return _LAYOUT.pack(
            self.la_size_sectors,
            self.current_uuid,
            self.bitmap_uuid,
            self.history0,
            self.history1,
            self.device_uuid,
            self.flags,
            Magic.CLEAN if self.clean else Magic.UNCLEAN,
            self.md_size_sectors,
            self.al_offset_sectors,
            self.al_extents,
            self.bm_offset_sectors,
            self.bytes_per_bit,
            self.peer_max_bio_size,
            self.al_stripes,
            self.al_stripe_size_4k,
        ).ljust(BLOCK_BYTES, b"\0")

    @staticmethod
    def decode(data: bytes | bytearray | memoryview) -> Superblock:
        """Raises MetadataError when this is no superblock of DRBD 8.4, and says what it is if that is known."""
        if len(data) < _LAYOUT.size:
            raise MetadataError(_SUBJECT, f"a superblock cut off after {len(data)} bytes", _CREATE)
        magic = magic_of(data)
        if magic not in (Magic.CLEAN, Magic.UNCLEAN):
            raise MetadataError(_SUBJECT, *_what_else(magic))
        size, current, bitmap, history0, history1, device, flags, _, *geometry = _LAYOUT.unpack_from(data)
        md_size, al_offset, al_extents, bm_offset, bytes_per_bit, peer_max_bio_size, stripes, stripe_size = geometry
        if not stripes and not stripe_size:  # written before there were stripes
            stripes, stripe_size = 1, 8
        return Superblock(
            la_size_sectors=size,
            current_uuid=current,
            bitmap_uuid=bitmap,
            history0=history0,
            history1=history1,
            device_uuid=device,
            flags=MetadataFlag(flags),
            clean=magic == Magic.CLEAN,
            md_size_sectors=md_size,
            al_offset_sectors=al_offset,
            al_extents=al_extents,
            bm_offset_sectors=bm_offset,
            bytes_per_bit=bytes_per_bit,
            peer_max_bio_size=peer_max_bio_size,
            al_stripes=stripes,
            al_stripe_size_4k=stripe_size,
        )

    def layout(self, capacity_bytes: int) -> Layout:
        """The layout of a disk with this superblock; checked. Raises MetadataError as `check` and `internal_layout`."""
        layout = internal_layout(capacity_bytes, al_stripes=self.al_stripes, al_stripe_size_4k=self.al_stripe_size_4k)
        self.check(layout)
        return layout

    def check(self, layout: Layout) -> None:
        """Raises MetadataError when the superblock does not describe `layout`."""
        for name, found, expected in (
            ("bytes per bit of the bitmap", self.bytes_per_bit, BLOCK_BYTES),
            ("stripes of the activity log", self.al_stripes, layout.al_stripes),
            ("blocks per stripe of the activity log", self.al_stripe_size_4k, layout.al_stripe_size_4k),
            ("size of the metadata in sectors", self.md_size_sectors, _md_size_sectors(layout)),
            ("offset of the activity log in sectors", self.al_offset_sectors, _relative(layout, layout.al_offset)),
            ("offset of the bitmap in sectors", self.bm_offset_sectors, _relative(layout, layout.bitmap_offset)),
        ):
            if found != expected:
                raise MetadataError(
                    _SUBJECT,
                    f"{name} is {found}, and {expected} on a disk of {layout.capacity_bytes} bytes",
                    f"if the disk was resized, give it its former size back; {_CREATE}",
                )
        if self.la_size_sectors * SECTOR_BYTES > layout.data_bytes:
            raise MetadataError(
                _SUBJECT,
                f"the mirror has {self.la_size_sectors * SECTOR_BYTES} bytes, the data area {layout.data_bytes}",
                "give the disk its former size back",
            )

    def data_blocks(self, layout: Layout) -> int:
        """Blocks of 4 KiB that the mirror has: as agreed with the peer, else all that the data area holds."""
        size_bytes = self.la_size_sectors * SECTOR_BYTES or layout.data_bytes
        return -(-size_bytes // BLOCK_BYTES)

    @property
    def just_created(self) -> bool:
        """Nothing was ever mirrored from or to this disk."""
        used = self.la_size_sectors or self.bitmap_uuid or self.history0 or self.history1
        return self.current_uuid == JUST_CREATED_UUID and not used and not self.flags & ~MetadataFlag.AL_CLEAN


def just_created(layout: Layout, al_extents: int = AL_EXTENTS_DEFAULT) -> Superblock:
    """The superblock of a disk that is new to mirroring."""
    return Superblock(
        la_size_sectors=0,
        current_uuid=JUST_CREATED_UUID,
        bitmap_uuid=0,
        history0=0,
        history1=0,
        device_uuid=0,
        flags=MetadataFlag.AL_CLEAN,
        clean=True,
        md_size_sectors=_md_size_sectors(layout),
        al_offset_sectors=_relative(layout, layout.al_offset),
        al_extents=al_extents,
        bm_offset_sectors=_relative(layout, layout.bitmap_offset),
        bytes_per_bit=BLOCK_BYTES,
        peer_max_bio_size=0,
        al_stripes=layout.al_stripes,
        al_stripe_size_4k=layout.al_stripe_size_4k,
    )


def _relative(layout: Layout, offset_bytes: int) -> int:
    return (offset_bytes - layout.superblock_offset) // SECTOR_BYTES


def _md_size_sectors(layout: Layout) -> int:
    return (layout.superblock_offset + BLOCK_BYTES - layout.bitmap_offset) // SECTOR_BYTES


def _what_else(magic: int) -> tuple[str, str]:
    """Fact and remedy for a superblock that is not ours."""
    if magic == Magic.DRBD_9:
        return (
            f"DRBD 9 metadata (magic {magic:#010x}), which DRBD 8.4 and the mirror cannot read",
            f"convert it with drbdmeta, or give it up: {_CREATE}",
        )
    if magic == Magic.DRBD_07:
        return f"DRBD 0.7 metadata (magic {magic:#010x})", f"convert it with drbdmeta, or give it up: {_CREATE}"
    return f"no DRBD 8.4 superblock at the end of the disk (magic {magic:#010x})", f"was the disk resized? {_CREATE}"
