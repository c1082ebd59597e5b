"""The disk of one side, in memory: data, metadata, and a cache that a power cut empties."""

from __future__ import annotations

from replication.protocol.activity_log import initialised_ring
from replication.protocol.attachment import Attachment, prepare_attachment
from replication.protocol.effects import Buffer
from replication.protocol.errors import DiskFailure
from replication.protocol.metadata import internal_layout, just_created


class MemoryDisk:
    """Data and metadata of one side. A power cut takes back what was written and not flushed since."""

    def __init__(self, size_bytes: int, trail: list[str]) -> None:
        self.trail = trail
        self.layout = internal_layout(size_bytes)
        self.content = bytearray(size_bytes)
        self.fails = False
        self.flushing: list[tuple[int, int]] = []
        """(token, how much of `_volatile` it makes stable)."""
        self._volatile: list[tuple[int, bytes]] = []
        self.create_metadata()

    def create_metadata(self) -> None:
        layout = self.layout
        self._put(layout.superblock_offset, just_created(layout).encode())
        self._put(layout.al_offset, initialised_ring(layout))
        self._put(layout.bitmap_offset, bytes(layout.bitmap_bytes))

    def write(self, writes: list[tuple[int, Buffer]]) -> None:
        self._must_work()
        self.trail.append("write")
        for offset, data in writes:
            self._must_be_data(offset, len(data))
            self._volatile.append((offset, bytes(self.content[offset : offset + len(data)])))
            self._put(offset, data)

    def read(self, offset: int, length: int) -> bytes:
        self._must_be_data(offset, length)
        return bytes(self.content[offset : offset + length])

    def zero(self, offset: int, length: int, may_unmap: bool) -> None:
        self.write([(offset, bytes(length))])
        self.trail[-1] = "unmap" if may_unmap else "zero"

    def start_flush(self, token: int) -> None:
        self._must_work()
        self.trail.append("flush")
        self.flushing.append((token, len(self._volatile)))

    def finish_flush(self) -> int:
        """The oldest one; returns its token."""
        token, count = self.flushing.pop(0)
        del self._volatile[:count]
        self.flushing = [(other, max(0, left - count)) for other, left in self.flushing]
        return token

    def persist(self, what: str, writes: list[tuple[int, bytes]]) -> None:
        self._must_work()
        self.trail.append(f"persist {what}")
        for offset, data in writes:
            assert offset >= self.layout.bitmap_offset, f"{what} at {offset} would overwrite data"
            assert offset + len(data) <= len(self.content), f"{what} at {offset} is beyond the disk"
            self._put(offset, data)

    def lose_power(self) -> None:
        for offset, before in reversed(self._volatile):
            self._put(offset, before)
        self._volatile.clear()
        self.flushing.clear()

    def attachment(self) -> Attachment:
        """What a start would make of the metadata."""
        layout, content = self.layout, self.content
        return prepare_attachment(
            layout,
            content[layout.superblock_offset : layout.superblock_offset + 4096],
            content[layout.al_offset : layout.al_offset + layout.al_bytes],
            content[layout.bitmap_offset : layout.bitmap_offset + layout.bitmap_bytes],
        )

    def _put(self, offset: int, data: Buffer) -> None:
        self.content[offset : offset + len(data)] = data

    def _must_work(self) -> None:
        if self.fails:
            raise DiskFailure("disk in memory", "Input/output error")

    def _must_be_data(self, offset: int, length: int) -> None:
        self._must_work()
        assert 0 <= offset <= self.layout.data_bytes - length, f"{offset}+{length} is not in the data area"
