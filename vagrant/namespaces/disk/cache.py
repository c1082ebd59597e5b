"""What a disk's volatile write cache may do with the writes that no flush has covered yet.

The medium always shows the newest contents, as a running disk does. The cache only remembers, in the order of the
writes, what each of them replaced. That is all a power cut needs: every sector then falls back to one of the versions
it had since it was last made stable. Sectors decide independently of each other, so one write may be torn, a later
write may survive an earlier one, and a sector written three times may come back as the second time left it.

Nothing here reads, writes or draws lots by itself: the medium hands in what was replaced, and gets back what to
restore.
"""

from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

SECTOR_BYTES = 512
"""Grain of a power cut: a sector is old or new, never a mixture (ATA and NVMe promise no more than one sector)."""

ENTRIES_MAX = 65536
"""Journal entries at most, so that many small ones stay bounded too."""


class Keep(StrEnum):
    """Which unflushed sectors survive a power cut."""

    NONE = "none"
    ALL = "all"
    RANDOM = "random"


class Loss(NamedTuple):
    """What a power cut did: sectors that could be lost, kept as newest, fallen back; and what to write back where."""

    at_risk: int
    kept: int
    lost: int
    restore: list[tuple[int, bytes]]


class _Entry(NamedTuple):
    offset_bytes: int
    length_bytes: int
    place: int | None  # of the pre-image; None: all earlier versions of the range are out of the question


class WriteCache:
    """The unflushed writes of one disk, oldest first, with what they replaced in a ring of `bound_bytes`.

    When the ring is full the oldest writes become stable of their own accord, which a real disk may do at any time.
    """

    def __init__(self, bound_bytes: int) -> None:
        self.bound_bytes = bound_bytes
        self._journal: deque[_Entry] = deque()
        self._ring = memoryview(bytearray(bound_bytes))
        self._place = 0  # counts on for ever; modulo the size of the ring it is an index

    def write(self, offset_bytes: int, length_bytes: int) -> memoryview:
        """Whole sectors are about to be written, and are volatile then.

        Returns where to put the contents that they replace; fill it before the next call. A write must not be longer
        than the bound.
        """
        assert offset_bytes % SECTOR_BYTES == 0 and length_bytes % SECTOR_BYTES == 0, "the journal holds whole sectors"
        assert length_bytes <= self.bound_bytes, "the write has to be journalled in pieces"
        index = self._place % self.bound_bytes
        if index + length_bytes > self.bound_bytes:  # a pre-image lies in one piece: skip the end of the ring
            self._place += self.bound_bytes - index
            index = 0
        self._journal.append(_Entry(offset_bytes, length_bytes, self._place))
        self._place += length_bytes
        self._forget()
        return self._ring[index : index + length_bytes]

    def settle(self, offset_bytes: int, length_bytes: int) -> None:
        """The newest contents of this range, whole sectors, are stable (forced unit access)."""
        assert offset_bytes % SECTOR_BYTES == 0 and length_bytes % SECTOR_BYTES == 0, "the journal holds whole sectors"
        if self._journal:
            self._journal.append(_Entry(offset_bytes, length_bytes, None))
            self._forget()

    def flush(self) -> None:
        """All that was written before is stable."""
        self._journal.clear()

    def unflushed_sectors(self) -> int:
        """How many sectors a power cut could change now."""
        return len(self._older_versions())

    def lose_power(self, keep: Keep, pick: Callable[[int], int]) -> Loss:
        """Choose for each sector at risk the version that survives; afterwards nothing is volatile any more.

        `pick(n)` draws a number from 0 to n - 1: RANDOM gives every version since the last flush, the stable and the
        newest one included, the same chance.
        """
        versions = self._older_versions()
        restore: dict[int, bytes] = {}
        if keep is not Keep.ALL:
            for sector in sorted(versions):
                older = versions[sector]
                survivor = 0 if keep is Keep.NONE else pick(len(older) + 1)
                if survivor < len(older):
                    restore[sector] = bytes(older[survivor])
        self.flush()
        return Loss(len(versions), len(versions) - len(restore), len(restore), _runs(restore))

    def _forget(self) -> None:
        """Forgetting the oldest pre-image makes exactly that write stable.

        A settled range at the head says nothing any more: no older version is left that it could rule out.
        """
        while self._journal:
            place = self._journal[0].place
            if place is not None and place + self.bound_bytes >= self._place and len(self._journal) <= ENTRIES_MAX:
                break
            self._journal.popleft()

    def _older_versions(self) -> dict[int, list[memoryview]]:
        """Sector number -> versions that may come back, the stable one first, the newest (on the medium) left out."""
        versions: dict[int, list[memoryview]] = {}
        for offset_bytes, length_bytes, place in self._journal:
            first = offset_bytes // SECTOR_BYTES
            count = length_bytes // SECTOR_BYTES
            if place is None:
                for sector in range(first, first + count):
                    versions.pop(sector, None)
                continue
            start = place % self.bound_bytes
            for index in range(count):
                piece = self._ring[start + index * SECTOR_BYTES : start + (index + 1) * SECTOR_BYTES]
                versions.setdefault(first + index, []).append(piece)
        return versions


def _runs(sectors: dict[int, bytes]) -> list[tuple[int, bytes]]:
    """Neighbouring sectors joined to (offset in bytes, contents), in order of offset."""
    runs: list[tuple[int, list[bytes]]] = []
    following = -1
    for sector in sorted(sectors):
        if sector != following:
            runs.append((sector * SECTOR_BYTES, []))
        runs[-1][1].append(sectors[sector])
        following = sector + 1
    return [(offset_bytes, b"".join(pieces)) for offset_bytes, pieces in runs]
