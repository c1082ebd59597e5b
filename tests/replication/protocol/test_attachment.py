"""Each test crashes a node, in the shape of what its disk then holds, and takes the disk into use again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from replication.protocol.activity_log import ActivityLog, initialised_ring
from replication.protocol.attachment import Attachment, clean_stop, dump_metadata, prepare_attachment
from replication.protocol.bitmap import Bitmap
from replication.protocol.errors import MetadataError
from replication.protocol.metadata import EXTENT_BYTES, MetadataFlag, Superblock, internal_layout, just_created

LAYOUT = internal_layout(1 << 30)
BLOCKS = LAYOUT.data_bytes // 4096
F = MetadataFlag
PRIMARY = F.CONSISTENT | F.WAS_UP_TO_DATE | F.PRIMARY_IND


class MetadataArea:
    """What stands behind the data area."""

    def __init__(self, flags: MetadataFlag, la_size_sectors: int = LAYOUT.data_bytes // 512) -> None:
        self.data = bytearray(LAYOUT.capacity_bytes - LAYOUT.data_bytes)
        superblock = replace(just_created(LAYOUT), flags=flags, clean=False, la_size_sectors=la_size_sectors)
        self.write(LAYOUT.superblock_offset, superblock.encode())
        self.write(LAYOUT.al_offset, initialised_ring(LAYOUT))

    def write(self, offset: int, data: bytes) -> None:
        at = offset - LAYOUT.data_bytes
        assert 0 <= at <= len(self.data) - len(data)
        self.data[at : at + len(data)] = data

    def make_hot(self, log: ActivityLog, *extents: int) -> None:
        activation = log.activate(extents)
        assert activation is not None
        for write in activation.writes:
            self.write(*write)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset - LAYOUT.data_bytes :][:length])

    def attach(self) -> Attachment:
        return prepare_attachment(
            LAYOUT,
            self.read(LAYOUT.superblock_offset, 4096),
            self.read(LAYOUT.al_offset, LAYOUT.al_bytes),
            self.read(LAYOUT.bitmap_offset, LAYOUT.bitmap_bytes),
        )

    def superblock(self) -> Superblock:
        return Superblock.decode(self.read(LAYOUT.superblock_offset, 4096))


def out_of_sync(bitmap: Bitmap) -> set[int]:
    return {block for block in range(bitmap.block_count) if bitmap.data[block >> 3] >> (block & 7) & 1}


def blocks_of(*extents: int) -> set[int]:
    return {block for extent in extents for block in range(extent * 1024, min(extent * 1024 + 1024, BLOCKS))}


def test_a_crashed_primary_marks_its_hot_extents() -> None:
    area = MetadataArea(PRIMARY)
    area.make_hot(ActivityLog(67, LAYOUT), 3, 7, BLOCKS // 1024)
    attachment = area.attach()
    assert attachment.replayed_extents == {3, 7, BLOCKS // 1024}
    assert out_of_sync(attachment.bitmap) == blocks_of(3, 7, BLOCKS // 1024)
    assert attachment.superblock.flags == F.CONSISTENT | F.WAS_UP_TO_DATE | F.CRASHED_PRIMARY
    assert "crashed as Primary" in attachment.notes[0]


def test_a_secondary_marks_nothing_whatever_its_log_says() -> None:
    area = MetadataArea(F.CONSISTENT)
    area.make_hot(ActivityLog(67, LAYOUT), 3)
    attachment = area.attach()
    assert not attachment.bitmap.count
    assert not attachment.replayed_extents
    assert not attachment.notes
    assert F.CRASHED_PRIMARY not in attachment.superblock.flags


def test_bits_from_before_the_crash_stay() -> None:
    area = MetadataArea(PRIMARY)
    area.write(LAYOUT.bitmap_offset, b"\x05")
    area.make_hot(ActivityLog(67, LAYOUT), 3)
    assert out_of_sync(area.attach().bitmap) == {0, 2} | blocks_of(3)


def test_the_writes_leave_a_disk_that_says_the_same_and_is_in_use() -> None:
    area = MetadataArea(PRIMARY)
    area.make_hot(ActivityLog(67, LAYOUT), 3)
    first = area.attach()
    for write in first.writes:
        area.write(*write)
    second = area.attach()
    assert second.superblock == first.superblock == area.superblock()
    assert second.bitmap.data == first.bitmap.data
    assert area.read(LAYOUT.al_offset, LAYOUT.al_bytes) == initialised_ring(LAYOUT)
    assert not second.superblock.clean
    assert F.AL_CLEAN not in second.superblock.flags


@pytest.mark.parametrize("durable_blocks", range(12))
def test_a_second_crash_while_attaching_loses_nothing_and_costs_no_full_resync(durable_blocks: int) -> None:
    area = MetadataArea(PRIMARY)
    log = ActivityLog(67, LAYOUT)
    for extent in range(20):
        area.make_hot(log, extent)
    blocks = [
        (offset + at, data[at : at + 4096]) for offset, data in area.attach().writes for at in range(0, len(data), 4096)
    ]
    for write in blocks[:durable_blocks]:
        area.write(*write)
    attachment = area.attach()
    assert F.CRASHED_PRIMARY in attachment.superblock.flags
    assert out_of_sync(attachment.bitmap) == blocks_of(*range(20))


def test_an_unusable_log_costs_a_full_resync_and_not_the_disk() -> None:
    area = MetadataArea(PRIMARY)
    area.write(LAYOUT.al_offset, bytes(LAYOUT.al_bytes))
    attachment = area.attach()
    assert attachment.bitmap.count == BLOCKS
    assert F.CRASHED_PRIMARY in attachment.superblock.flags
    assert "activity log is unusable" in attachment.notes[0]


def test_a_log_with_holes_costs_a_full_resync() -> None:
    area = MetadataArea(PRIMARY)
    log = ActivityLog(67, LAYOUT)
    for extent in range(5):
        area.make_hot(log, extent)
    area.write(LAYOUT.ring_block_offset(2), bytes(4096))
    attachment = area.attach()
    assert attachment.bitmap.count == BLOCKS
    assert "gaps" in attachment.notes[0]


def test_an_unusable_log_of_a_secondary_does_not_matter() -> None:
    area = MetadataArea(F.CONSISTENT)
    area.write(LAYOUT.al_offset, bytes(LAYOUT.al_bytes))
    attachment = area.attach()
    assert not attachment.bitmap.count
    assert (LAYOUT.al_offset, initialised_ring(LAYOUT)) in attachment.writes


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (F.FULL_SYNC, "full synchronisation"),
        (F.CRASHED_PRIMARY | F.AL_DISABLED, "disabled"),
        (F.PRIMARY_IND | F.AL_DISABLED, "disabled"),
    ],
    ids=str,
)
def test_where_the_bitmap_cannot_be_trusted_every_block_counts(flags: MetadataFlag, reason: str) -> None:
    area = MetadataArea(flags)
    attachment = area.attach()
    assert attachment.bitmap.count == BLOCKS
    assert reason in attachment.notes[0]
    for write in attachment.writes:
        area.write(*write)
    assert not area.superblock().flags & (F.FULL_SYNC | F.AL_DISABLED)
    assert area.attach().bitmap.count == BLOCKS


def test_extents_beyond_a_mirror_that_became_smaller_are_ignored() -> None:
    area = MetadataArea(PRIMARY, la_size_sectors=4 * 8192 + 8)
    area.make_hot(ActivityLog(67, LAYOUT), 3, 4, 5, 100_000)
    attachment = area.attach()
    assert attachment.bitmap.block_count == 4097
    assert attachment.replayed_extents == {3, 4}
    assert out_of_sync(attachment.bitmap) == {*range(3 * 1024, 4097)}


def test_metadata_of_another_disk_is_not_used() -> None:
    area = MetadataArea(F.CONSISTENT)
    with pytest.raises(MetadataError, match="size of the metadata"):
        prepare_attachment(internal_layout(2 << 30), area.superblock().encode(), b"", b"")


def test_after_a_clean_stop_nothing_is_left_to_apply() -> None:
    area = MetadataArea(PRIMARY)
    area.make_hot(ActivityLog(67, LAYOUT), 3)
    for write in clean_stop(area.superblock(), LAYOUT):
        area.write(*write)
    assert area.superblock().clean
    assert area.superblock().flags == F.CONSISTENT | F.WAS_UP_TO_DATE | F.AL_CLEAN
    attachment = area.attach()
    assert not attachment.bitmap.count
    assert [offset for offset, _ in attachment.writes] == [LAYOUT.superblock_offset]


def test_a_crash_within_a_clean_stop_costs_no_full_resync() -> None:
    area = MetadataArea(PRIMARY)
    log = ActivityLog(67, LAYOUT)
    for extent in range(20):
        area.make_hot(log, extent)
    for offset, data in clean_stop(area.superblock(), LAYOUT):
        for at in range(0, len(data), 4096):
            area.write(offset + at, data[at : at + 4096])
            assert area.attach().bitmap.count in (0, 20 * EXTENT_BYTES // 4096)


def test_a_large_bitmap_is_written_in_few_pieces() -> None:
    layout = internal_layout(1 << 40)
    superblock = replace(just_created(layout), flags=F.FULL_SYNC)
    attachment = prepare_attachment(layout, superblock.encode(), initialised_ring(layout), bytes(layout.bitmap_bytes))
    assert len(attachment.writes) < 50
    assert sum(len(data) for _, data in attachment.writes[:-1]) == len(attachment.bitmap.data)


def test_a_dump_says_generations_and_what_is_marked() -> None:
    area = MetadataArea(PRIMARY)
    area.make_hot(ActivityLog(67, LAYOUT), 3)
    dump = dump_metadata(area.attach())
    assert "0x0000000000000004;" in dump
    assert "# replayed extent 3\n" in dump
    assert "# bits-set 1024;" in dump
