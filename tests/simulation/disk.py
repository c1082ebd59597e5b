"""A disk with a volatile cache: what was not flushed may be there or not after a power cut, sector by sector.

It fulfils the `Disk` port of replication/executor.py. The data area starts at 0; the metadata area lies wherever the
caller's offsets say (DRBD's "internal" place: at the end of the same device).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from replication.protocol.effects import Buffer
from replication.protocol.errors import DiskFailure

SECTOR_BYTES = 512
"""What a disk writes whole or not at all."""


Older = tuple[int, bytes]
"""What a sector held before a write that is not stable yet, and how many flushes had been started before that write."""


class SimulatedDisk:
    def __init__(self, size_bytes: int, rng: random.Random) -> None:
        """All zeroes. `rng` decides what survives a power cut."""
        self.size_bytes = size_bytes
        self.changed: Callable[[int, int], None] = lambda offset, length: None
        """Told (offset, length) of every change of what a read sees."""
        self.flush_started: Callable[[int], None] = lambda token: None
        """Told of each flush; whoever hears it calls `finish_flush` some time later."""
        self.reads_fail = False
        self.writes_fail = False
        self._rng = rng
        self._content = bytearray(size_bytes)
        self._older: dict[int, list[Older]] = {}
        self._flush_number = 0
        self._flushes: dict[int, int] = {}

    # The port

    def write(self, writes: list[tuple[int, Buffer]]) -> None:
        self._may_write()
        for offset, data in writes:
            self._put(offset, data)

    def read(self, offset: int, length: int) -> bytes:
        if self.reads_fail:
            raise DiskFailure("simulated disk", f"read of {length} bytes at {offset}: Input/output error")
        return self.content(offset, length)

    def zero(self, offset: int, length: int, may_unmap: bool) -> None:
        self._may_write()
        self._put(offset, bytes(length))

    def start_flush(self, token: int) -> None:
        self._flush_number += 1
        self._flushes[token] = self._flush_number
        self.flush_started(token)

    def persist(self, what: str, writes: list[tuple[int, bytes]]) -> None:
        self._may_write()
        for offset, data in writes:
            self._put(offset, data)
            self._settle(offset, len(data))

    # The world's side

    def content(self, offset: int, length: int) -> bytes:
        """What a read sees now, whether or not reads fail."""
        assert 0 <= offset <= self.size_bytes - length, (offset, length)
        return bytes(self._content[offset : offset + length])

    def finish_flush(self, token: int) -> None:
        """What was written before that flush began is stable. Raises DiskFailure while writes fail."""
        number = self._flushes.pop(token)
        self._may_write()
        still: dict[int, list[Older]] = {}
        for sector, older in self._older.items():
            if older[-1][0] >= number:
                still[sector] = [old for old in older if old[0] >= number]
        self._older = still

    def flush_now(self) -> None:
        """Everything written is stable; what fsync(2) does when the disk is opened."""
        self._older.clear()

    def possible(self, sector: int) -> list[bytes]:
        """Each content that the sector may have after a power cut now, the newest last."""
        older = [content for _, content in self._older.get(sector, ())]
        return [*older, self.content(sector * SECTOR_BYTES, SECTOR_BYTES)]

    def lose_power(self) -> None:
        """Each sector written since the last flush now holds any of its contents since."""
        unstable, self._older = self._older, {}
        self._flushes.clear()
        for sector, older in unstable.items():
            kept = self._rng.randrange(len(older) + 1)
            if kept < len(older):
                self._content[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES] = older[kept][1]
                self.changed(sector * SECTOR_BYTES, SECTOR_BYTES)

    def forget_flushes(self) -> None:
        """Whoever had started them died: nobody waits for their end."""
        self._flushes.clear()

    def write_torn(self, writes: list[tuple[int, Buffer]], *, stable: bool) -> None:
        """Some sectors of the last of `writes` begun, and all of those before it: the power went away in the middle."""
        begun = self._rng.randrange(len(writes)) if writes else 0
        for number, (offset, data) in enumerate(writes[: begun + 1]):
            for at in range(0, len(data), SECTOR_BYTES):
                if number < begun or self._rng.random() < 0.5:
                    self._put(offset + at, memoryview(data)[at : at + SECTOR_BYTES])
                    if stable:
                        self._settle(offset + at, SECTOR_BYTES)

    # Below: contents

    def _may_write(self) -> None:
        if self.writes_fail:
            raise DiskFailure("simulated disk", "write: Input/output error")

    def _put(self, offset: int, data: Buffer) -> None:
        length = len(data)
        assert 0 <= offset <= self.size_bytes - length, (offset, length)
        assert (offset | length) % SECTOR_BYTES == 0, (offset, length)
        content, number, older = self._content, self._flush_number, self._older
        for at in range(offset, offset + length, SECTOR_BYTES):
            sector = at // SECTOR_BYTES
            before = (number, bytes(content[at : at + SECTOR_BYTES]))
            if sector in older:
                older[sector].append(before)
            else:
                older[sector] = [before]
        content[offset : offset + length] = data
        self.changed(offset, length)

    def _settle(self, offset: int, length: int) -> None:
        """What the range holds now is stable."""
        for sector in range(offset // SECTOR_BYTES, (offset + length) // SECTOR_BYTES):
            self._older.pop(sector, None)
