"""Makes the metadata of a new disk, and takes the disk of a node into use.

Nothing is ever written over that somebody may miss: what else lives on the disk is looked for first.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from replication.disk_signatures import refuse_what_is_in_the_way
from replication.protocol.activity_log import initialised_ring
from replication.protocol.attachment import Attachment, Write, prepare_attachment
from replication.protocol.errors import DiskFailure, MetadataError, Refusal
from replication.protocol.metadata import (
    AL_EXTENTS_DEFAULT,
    BLOCK_BYTES,
    JUST_CREATED_UUID,
    Layout,
    Magic,
    Superblock,
    internal_layout,
    just_created,
    magic_of,
    superblock_offset,
)

_CHUNK_BYTES = 1024 * 1024


class Existing(enum.Enum):
    """What to do with metadata that was in use."""

    REFUSE = "refuse"
    OVERWRITE = "overwrite"
    """The disk forgets its generations: it can only become the target of a full synchronisation, or a new mirror."""


def create(
    path: str,
    *,
    existing: Existing = Existing.REFUSE,
    al_extents: int = AL_EXTENTS_DEFAULT,
    al_stripes: int = 1,
    al_stripe_size_4k: int = 8,
) -> Layout:
    """New internal metadata at the end of the disk (or file) at `path`. The data area is left as it is.

    Raises Refusal when the disk is in use, when something on it reaches to where the metadata goes, or when it has
    metadata already and `existing` does not allow to overwrite it; MetadataError when the disk is too small;
    DiskFailure when it cannot be read or written. A crash in between leaves a disk without metadata.
    """
    with _exclusively(path) as fd, _failures_of(path):
        layout = internal_layout(_size(fd), al_stripes=al_stripes, al_stripe_size_4k=al_stripe_size_4k)
        if not 1 <= al_extents <= layout.al_extents_max:
            raise Refusal(
                path,
                f"{al_extents} extents do not fit into a ring of {layout.ring_blocks} blocks",
                f"at most {layout.al_extents_max}",
            )
        refuse_what_is_in_the_way(fd, path, layout.data_bytes)
        if existing is Existing.REFUSE:
            _refuse_metadata(fd, path)
        superblock = just_created(layout, al_extents).encode()
        _write_durably(fd, [(layout.superblock_offset, bytes(BLOCK_BYTES))])
        _write_durably(fd, [(layout.al_offset, initialised_ring(layout)), *_zeroes(layout)])
        _write_durably(fd, [(layout.superblock_offset, superblock)])
        return layout


def inspect(fd: int, capacity_bytes: int, path: str) -> Attachment:
    """What `load` would do to this disk. Writes nothing. Raises MetadataError, and DiskFailure when reading fails."""
    with _failures_of(path):
        offset = superblock_offset(capacity_bytes)
        data = _read(fd, offset, BLOCK_BYTES) if offset >= 0 else b""
        try:
            layout = Superblock.decode(data).layout(capacity_bytes)
        except MetadataError as error:
            raise MetadataError(path, error.fact, error.remedy) from error
        al_data = _read(fd, layout.al_offset, layout.al_bytes)
        return prepare_attachment(layout, data, al_data, _read(fd, layout.bitmap_offset, layout.bitmap_bytes))


def load(fd: int, capacity_bytes: int, path: str) -> Attachment:
    """Take the disk into use: what a crash may have left different is marked, and all of it is durable.

    `path` is for messages. Raises MetadataError, nothing written, when the metadata is not ours or not of this size;
    DiskFailure when reading or writing fails.
    """
    attachment = inspect(fd, capacity_bytes, path)
    with _failures_of(path):
        for stage in attachment.stages:
            _write_durably(fd, stage)
    return attachment


def _refuse_metadata(fd: int, path: str) -> None:
    for offset in (superblock_offset(_size(fd)), 0):
        data = _read(fd, offset, BLOCK_BYTES)
        magic = magic_of(data)
        if magic not in set(Magic):
            continue
        fact = f"it holds DRBD metadata (magic {magic:#010x})"
        with suppress(MetadataError):
            superblock = Superblock.decode(data)
            if superblock.just_created:
                continue
            fact = f"it holds metadata of a mirror, generation {superblock.current_uuid:016X}"
            if superblock.current_uuid == JUST_CREATED_UUID:
                fact = "it holds metadata of a mirror that has not synchronised yet"
        raise Refusal(
            path,
            fact + ("" if offset else ", at its start: another disk may be using it as metadata device"),
            "if it may go: mirroradm create-md --force",
        )


@contextmanager
def _exclusively(path: str) -> Iterator[int]:
    """The disk, open for us alone."""
    try:
        block_device = stat.S_ISBLK(os.stat(path).st_mode)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if block_device else 0))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Refusal(path, "it is in use", f"lsblk {path} shows what uses it; end that first") from error
        raise DiskFailure(path, f"opening it: {error.strerror}") from error
    try:
        if not block_device:
            _refuse_a_file_in_use(fd, path)
        yield fd
    finally:
        os.close(fd)


def _refuse_a_file_in_use(fd: int, path: str) -> None:
    """The kernel keeps nobody out of a file; but who uses one says so by a lock, or is a loop device."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Refusal(path, "it is in use: another program holds its lock", f"fuser {path} names it") from error
    except OSError as error:
        raise DiskFailure(path, f"locking it: {error.strerror}") from error
    target = os.path.realpath(path)
    for backing_file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # detached while we look
            if backing_file.read_text().rstrip("\n") == target:
                device = backing_file.parts[3]
                raise Refusal(path, f"it is in use as /dev/{device}", f"losetup -d /dev/{device}, or use that device")


@contextmanager
def _failures_of(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskFailure(path, error.strerror or str(error)) from error


def _size(fd: int) -> int:
    return os.lseek(fd, 0, os.SEEK_END)


def _read(fd: int, offset: int, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = os.pread(fd, min(length - len(data), _CHUNK_BYTES), offset + len(data))
        if not part:
            raise OSError(errno.EIO, f"the disk ends at {offset + len(data)}, {length} bytes from {offset} were wanted")
        data += part
    return bytes(data)


def _write_durably(fd: int, writes: Iterable[Write]) -> None:
    for offset, data in writes:
        done = 0
        while done < len(data):
            done += os.pwrite(fd, memoryview(data)[done:], offset + done)
    os.fdatasync(fd)


def _zeroes(layout: Layout) -> Iterator[Write]:
    end = layout.bitmap_offset + layout.bitmap_bytes
    for offset in range(layout.bitmap_offset, end, _CHUNK_BYTES):
        yield offset, bytes(min(_CHUNK_BYTES, end - offset))
