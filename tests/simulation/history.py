"""What clients were told, and therefore what each node's disk may hold: the oracle of the simulation.

Every write has a version, and each 512-byte sector of it says which version and which sector it is. For each node and
sector the oracle keeps its *line*: the versions that the sector may hold, oldest first. An acknowledgement makes the
older ones impossible; a power cut makes those possible again that no flush has covered; a node that was resynchronised
takes over the line of its source.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from tests.simulation.disk import SECTOR_BYTES

_STAMP = struct.Struct(">QQ")
_COPIES = SECTOR_BYTES // _STAMP.size
ZEROES = bytes(SECTOR_BYTES)
INITIAL = 0
"""The version of what nobody wrote yet: zeroes."""


def stamped(version: int, offset_bytes: int, length_bytes: int) -> bytes:
    """What a client writes there as that version."""
    first = offset_bytes // SECTOR_BYTES
    return b"".join(
        _STAMP.pack(version, sector) * _COPIES for sector in range(first, first + length_bytes // SECTOR_BYTES)
    )


def version_of(sector: int, content: bytes) -> int | None:
    """The version a sector holds; INITIAL for zeroes; None for what nobody ever wrote there."""
    if content == ZEROES:
        return INITIAL
    version, stamped_sector = _STAMP.unpack_from(content)
    whole = stamped_sector == sector and content == _STAMP.pack(version, sector) * _COPIES
    return int(version) if whole else None


Past = tuple[tuple[int, ...], int]
"""Versions the sector may hold after a power cut, oldest first; index of the oldest it may hold without one."""
_UNTOUCHED: Past = ((INITIAL,), 0)


class Line:
    """What one node's sectors may hold. Versions of TRIM and WRITE_ZEROES read as INITIAL: see `zeroing`."""

    def __init__(self, zeroing: set[int]) -> None:
        self._zeroing = zeroing
        self._past: dict[int, Past] = {}
        self._not_flushed: dict[int, int] = {}
        """sector -> newest acknowledged version, where no flush covered it yet."""

    def copy(self) -> Line:
        twin = Line(self._zeroing)
        twin._past = dict(self._past)
        twin._not_flushed = dict(self._not_flushed)
        return twin

    def sectors(self) -> Iterable[int]:
        return self._past.keys()

    def submitted(self, version: int, sectors: range) -> None:
        """It may be there from now on."""
        for sector in sectors:
            versions, oldest = self._past.get(sector, _UNTOUCHED)
            self._past[sector] = ((*versions, version), oldest)

    def acknowledged(self, version: int, sectors: range) -> None:
        """It is there, or a later one."""
        for sector in sectors:
            versions, oldest = self._past.get(sector, _UNTOUCHED)
            if version in versions:
                self._past[sector] = (versions, max(oldest, versions.index(version)))
                self._not_flushed[sector] = version

    def to_be_flushed(self) -> dict[int, int]:
        """What a flush that begins now covers."""
        return dict(self._not_flushed)

    def flushed(self, covered: dict[int, int]) -> None:
        """What no power cut can take away any more."""
        for sector, version in covered.items():
            versions, oldest = self._past.get(sector, _UNTOUCHED)
            if version in versions:
                at = versions.index(version)
                self._past[sector] = (versions[at:], max(oldest - at, 0))
                if self._not_flushed.get(sector) == version:
                    del self._not_flushed[sector]

    def lost_power(self) -> None:
        for sector in self._not_flushed:
            self._past[sector] = (self._past[sector][0], 0)
        self._not_flushed.clear()

    def objection(self, sector: int, content: bytes) -> str:
        """Why the sector must not hold this; empty when it may."""
        versions, oldest = self._past.get(sector, _UNTOUCHED)
        return self._compare(sector, content, versions[oldest:])

    def objection_to_stable(self, sector: int, content: bytes) -> str:
        """Why the sector must not hold this after a power cut now; empty when it may."""
        return self._compare(sector, content, self._past.get(sector, _UNTOUCHED)[0])

    def _compare(self, sector: int, content: bytes, allowed: tuple[int, ...]) -> str:
        found = version_of(sector, content)
        if found is None:
            return f"sector {sector} holds what nobody wrote there: {content[:16].hex()}..."
        if found in allowed or (found == INITIAL and not self._zeroing.isdisjoint(allowed)):
            return ""
        words = "zeroes" if found == INITIAL else f"version {found}"
        return f"sector {sector} holds {words}, it must hold one of {list(allowed)}"
