from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from replication.protocol.errors import MetadataError
from replication.protocol.metadata import (
    BLOCK_BYTES,
    Layout,
    MetadataFlag,
    Superblock,
    internal_layout,
    just_created,
)

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
SIZES = st.integers(MIB, 64 * TIB)


def u64() -> st.SearchStrategy[int]:
    return st.integers(0, 2**64 - 1)


def test_the_layout_of_64_mib_is_the_one_drbd_makes() -> None:
    layout = internal_layout(64 * MIB)
    assert layout == Layout(
        capacity_bytes=64 * MIB,
        data_bytes=130992 * 512,
        bitmap_offset=130992 * 512,
        bitmap_bytes=4096,
        al_offset=131000 * 512,
        al_bytes=32 * KIB,
        superblock_offset=131064 * 512,
        al_stripes=1,
        al_stripe_size_4k=8,
    )


@given(SIZES)
def test_nothing_overlaps_and_the_bitmap_has_a_bit_for_every_block(capacity: int) -> None:
    layout = internal_layout(capacity)
    assert layout.data_bytes == layout.bitmap_offset
    assert layout.bitmap_offset + layout.bitmap_bytes == layout.al_offset
    assert layout.al_offset + layout.al_bytes == layout.superblock_offset
    assert capacity - BLOCK_BYTES < layout.superblock_offset + BLOCK_BYTES <= capacity
    assert layout.bitmap_bytes * 8 * BLOCK_BYTES >= layout.data_bytes
    assert not layout.data_bytes % BLOCK_BYTES


@pytest.mark.parametrize("capacity", [0, 4096, MIB - 1])
def test_a_disk_too_small_is_refused(capacity: int) -> None:
    with pytest.raises(MetadataError, match="larger disk"):
        internal_layout(capacity)


def test_a_ring_that_leaves_no_data_area_is_refused() -> None:
    with pytest.raises(MetadataError, match="no data area"):
        internal_layout(MIB, al_stripes=32)


@pytest.mark.parametrize(("stripes", "size"), [(0, 8), (1, 1), (-1, -8), (1 << 20, 2)])
def test_impossible_stripes_are_refused(stripes: int, size: int) -> None:
    with pytest.raises(MetadataError, match="no ring"):
        internal_layout(TIB, al_stripes=stripes, al_stripe_size_4k=size)


def test_neighbouring_transactions_go_to_different_stripes() -> None:
    layout = internal_layout(GIB, al_stripes=2, al_stripe_size_4k=8)
    blocks = [(layout.ring_block_offset(number) - layout.al_offset) // BLOCK_BYTES for number in range(18)]
    assert blocks == [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15, 0, 8]


@given(
    capacity=SIZES,
    uuids=st.tuples(u64(), u64(), u64(), u64(), u64()),
    flags=st.integers(0, 511),
    clean=st.booleans(),
    peer_max_bio_size=st.integers(0, 2**32 - 1),
)
def test_a_superblock_survives_the_disk(
    capacity: int, uuids: tuple[int, int, int, int, int], flags: int, clean: bool, peer_max_bio_size: int
) -> None:
    layout = internal_layout(capacity)
    superblock = replace(
        just_created(layout, 6433),
        la_size_sectors=layout.data_bytes // 512,
        current_uuid=uuids[0],
        bitmap_uuid=uuids[1],
        history0=uuids[2],
        history1=uuids[3],
        device_uuid=uuids[4],
        flags=MetadataFlag(flags),
        clean=clean,
        peer_max_bio_size=peer_max_bio_size,
    )
    data = superblock.encode()
    assert len(data) == BLOCK_BYTES
    assert Superblock.decode(data) == superblock
    assert superblock.layout(capacity) == layout


@given(st.binary(max_size=200))
def test_whatever_is_read_is_a_superblock_or_a_metadata_error(data: bytes) -> None:
    try:
        superblock = Superblock.decode(data)
    except MetadataError:
        return
    assert Superblock.decode(superblock.encode()) == superblock


def with_magic(magic: int) -> bytes:
    return bytes(60) + magic.to_bytes(4) + bytes(BLOCK_BYTES - 64)


def test_what_else_may_stand_there_is_called_by_its_name() -> None:
    with pytest.raises(MetadataError, match="DRBD 9"):
        Superblock.decode(with_magic(0x8374026D))
    with pytest.raises(MetadataError, match=r"DRBD 0\.7"):
        Superblock.decode(with_magic(0x8374026A))
    with pytest.raises(MetadataError, match=r"no DRBD 8\.4 superblock"):
        Superblock.decode(with_magic(0))


def test_a_superblock_from_before_there_were_stripes_means_one_of_32_kib() -> None:
    old = replace(just_created(internal_layout(64 * MIB)), al_stripes=0, al_stripe_size_4k=0)
    assert Superblock.decode(old.encode()).layout(64 * MIB) == internal_layout(64 * MIB)


@given(SIZES, SIZES)
def test_a_superblock_does_not_fit_a_disk_of_another_size(capacity: int, other: int) -> None:
    here, there = internal_layout(capacity), internal_layout(other)
    superblock = replace(just_created(here), la_size_sectors=here.data_bytes // 512)
    assume(there.bitmap_bytes != here.bitmap_bytes or there.data_bytes < here.data_bytes)
    with pytest.raises(MetadataError, match="size"):
        superblock.check(there)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bytes_per_bit": 65536},
        {"md_size_sectors": 72},
        {"al_offset_sectors": -72},
        {"bm_offset_sectors": -80},
        {"al_stripes": 2},
        {"al_stripe_size_4k": 16},
        {"la_size_sectors": 131072},
    ],
    ids=str,
)
def test_a_superblock_that_describes_another_layout_is_not_used(wrong: dict[str, int]) -> None:
    layout = internal_layout(64 * MIB)
    superblock = just_created(layout)
    superblock.check(layout)
    with pytest.raises(MetadataError):
        Superblock.decode(replace(superblock, **wrong).encode()).check(layout)  # type: ignore[arg-type]


def test_what_took_part_in_nothing_is_just_created() -> None:
    fresh = just_created(internal_layout(64 * MIB))
    assert fresh.just_created
    assert not replace(fresh, la_size_sectors=8).just_created
    assert not replace(fresh, current_uuid=5).just_created
    assert not replace(fresh, bitmap_uuid=5).just_created
    assert not replace(fresh, flags=MetadataFlag.PRIMARY_IND).just_created


def test_the_mirror_is_as_large_as_agreed_else_as_the_data_area() -> None:
    layout = internal_layout(64 * MIB)
    fresh = just_created(layout)
    assert fresh.data_blocks(layout) == 130992 // 8
    assert replace(fresh, la_size_sectors=80001).data_blocks(layout) == 10001
