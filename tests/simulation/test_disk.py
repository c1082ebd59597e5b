"""The simulated disk: what is stable, what a power cut may take, and what it tears."""

from __future__ import annotations

import random

import pytest

from replication.protocol.errors import DiskFailure
from tests.simulation.disk import SECTOR_BYTES, SimulatedDisk

OLD, NEW, NEWEST = (bytes([byte]) * SECTOR_BYTES for byte in (1, 2, 3))


def disk_with(content: bytes, seed: int = 0) -> SimulatedDisk:
    disk = SimulatedDisk(64 * SECTOR_BYTES, random.Random(seed))
    disk.persist("start", [(0, content)])
    return disk


def after_power_cuts(prepare: list[tuple[int, bytes]], length: int) -> set[bytes]:
    """What fifty disks hold that were cut after these writes."""
    found = set()
    for seed in range(50):
        disk = disk_with(OLD * 8, seed)
        disk.write(list(prepare))
        disk.lose_power()
        found.add(disk.content(0, length))
    return found


def test_what_is_written_is_read_at_once() -> None:
    disk = disk_with(OLD)
    disk.write([(0, NEW)])
    assert disk.read(0, SECTOR_BYTES) == NEW


def test_an_unflushed_write_may_be_lost_or_not() -> None:
    assert after_power_cuts([(0, NEW)], SECTOR_BYTES) == {OLD, NEW}


def test_any_of_several_unflushed_writes_may_be_what_is_left() -> None:
    assert after_power_cuts([(0, NEW), (0, NEWEST)], SECTOR_BYTES) == {OLD, NEW, NEWEST}


def test_a_write_of_eight_sectors_may_be_torn_between_any_of_them() -> None:
    found = after_power_cuts([(0, NEW * 8)], 8 * SECTOR_BYTES)
    assert len(found) > 20
    assert all(
        {image[at : at + SECTOR_BYTES] for at in range(0, len(image), SECTOR_BYTES)} <= {OLD, NEW} for image in found
    )


def test_what_was_flushed_is_there_after_a_power_cut() -> None:
    for seed in range(20):
        disk = disk_with(OLD, seed)
        disk.write([(0, NEW)])
        disk.start_flush(1)
        disk.finish_flush(1)
        disk.lose_power()
        assert disk.content(0, SECTOR_BYTES) == NEW


def test_a_flush_covers_only_what_was_written_before_it_began() -> None:
    disk = disk_with(OLD)
    disk.write([(0, NEW)])
    disk.start_flush(1)
    disk.write([(0, NEWEST)])
    disk.finish_flush(1)
    assert disk.possible(0) == [NEW, NEWEST]


def test_what_was_persisted_is_stable_and_no_more_than_that() -> None:
    disk = disk_with(OLD * 2)
    disk.write([(0, NEW)])
    disk.persist("superblock", [(SECTOR_BYTES, NEW)])
    assert disk.possible(0) == [OLD, NEW]
    assert disk.possible(1) == [NEW]


def test_zeroes_read_as_zeroes() -> None:
    disk = disk_with(OLD * 2)
    disk.zero(0, SECTOR_BYTES, may_unmap=True)
    assert disk.read(0, 2 * SECTOR_BYTES) == bytes(SECTOR_BYTES) + OLD


def test_a_torn_write_leaves_old_and_new_sectors() -> None:
    found = set()
    for seed in range(30):
        disk = disk_with(OLD * 2, seed)
        disk.write_torn([(0, NEW * 2)], stable=True)
        disk.lose_power()
        found.add(disk.content(0, 2 * SECTOR_BYTES))
    assert found == {OLD * 2, OLD + NEW, NEW + OLD, NEW * 2}


def test_a_failing_disk_says_so_and_writes_nothing() -> None:
    disk = disk_with(OLD)
    disk.writes_fail = disk.reads_fail = True
    with pytest.raises(DiskFailure, match="Input/output error"):
        disk.write([(0, NEW)])
    with pytest.raises(DiskFailure, match="Input/output error"):
        disk.read(0, SECTOR_BYTES)
    assert disk.content(0, SECTOR_BYTES) == OLD


def test_whoever_watches_is_told_of_every_change_even_of_those_a_power_cut_takes_back() -> None:
    for seed in range(20):
        disk = disk_with(OLD, seed)
        seen: list[tuple[int, int]] = []
        disk.changed = lambda offset, length, seen=seen: seen.append((offset, length))  # type: ignore[misc]
        disk.write([(0, NEW)])
        disk.lose_power()
        taken_back = disk.content(0, SECTOR_BYTES) == OLD
        assert seen == [(0, SECTOR_BYTES)] * (2 if taken_back else 1)
