"""Blocks that are overwritten and synced: `block_writer.py write FILE`, `block_writer.py check FILE LAST`.

A batch is a few writes of 4 KiB to 64 KiB anywhere in the file, then fdatasync. `write` prints the number of each
batch, counted from 1, once its fdatasync has returned. Where batch N writes follows from N alone. So `check` knows of
each sector which batch wrote it last. LAST was acknowledged, the one after it may have been under way: a sector must be
that of one of these two, whole. It prints how many sectors it looked at, and ends with 1 when one is wrong.

Sectors are checked one by one since a disk may tear what it has not been told to flush.
"""

from __future__ import annotations

import itertools
import os
import random
import struct
import sys
import zlib
from collections.abc import Iterator

SECTOR_BYTES = 512
BLOCK_BYTES = 4096
FILE_BLOCKS = 4096
FINDINGS_MAX = 20
WRITES_MAX = 8
BLOCKS_MAX = 16
HEADER = struct.Struct("<QQ")  # batch, index of the sector
CHECKSUM = struct.Struct("<I")
NEVER = 0
"""The batch that fills the file, before the first one is acknowledged."""


def sector(batch: int, index: int) -> bytes:
    body = HEADER.pack(batch, index) * ((SECTOR_BYTES - CHECKSUM.size) // HEADER.size)
    body = body.ljust(SECTOR_BYTES - CHECKSUM.size, b"\0")
    return body + CHECKSUM.pack(zlib.crc32(body))


def writes(batch: int) -> Iterator[tuple[int, int]]:
    """(first block, blocks) of each write of `batch`."""
    chance = random.Random(batch)
    for _ in range(chance.randint(1, WRITES_MAX)):
        blocks = chance.randint(1, BLOCKS_MAX)
        yield chance.randrange(FILE_BLOCKS - blocks), blocks


def sectors(first_block: int, blocks: int) -> range:
    ratio = BLOCK_BYTES // SECTOR_BYTES
    return range(first_block * ratio, (first_block + blocks) * ratio)


def write(file: str) -> None:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    for first in range(0, FILE_BLOCKS, BLOCKS_MAX):
        put(descriptor, NEVER, first, BLOCKS_MAX)
    os.fsync(descriptor)
    for batch in itertools.count(1):
        for first_block, blocks in writes(batch):
            put(descriptor, batch, first_block, blocks)
        os.fdatasync(descriptor)
        print(batch, flush=True)


def put(descriptor: int, batch: int, first_block: int, blocks: int) -> None:
    data = b"".join(sector(batch, index) for index in sectors(first_block, blocks))
    if os.pwrite(descriptor, data, first_block * BLOCK_BYTES) != len(data):
        sys.exit(f"write at block {first_block} was cut short")


def check(file: str, last: int) -> list[str]:
    newest = dict.fromkeys(sectors(0, FILE_BLOCKS), NEVER)
    for batch in range(1, last + 1):
        for first_block, blocks in writes(batch):
            newest.update(dict.fromkeys(sectors(first_block, blocks), batch))
    under_way = {index for first_block, blocks in writes(last + 1) for index in sectors(first_block, blocks)}
    findings = []
    with open(file, "rb") as content:
        for index, batch in newest.items():
            found = content.read(SECTOR_BYTES)
            if found != sector(batch, index) and not (index in under_way and found == sector(last + 1, index)):
                findings.append(f"sector {index}: batch {batch} was acknowledged, found is {describe(found)}")
    print(len(newest))
    return findings


def describe(found: bytes) -> str:
    if len(found) < SECTOR_BYTES:
        return "the end of the file"
    batch, index = HEADER.unpack_from(found)
    return f"batch {batch} of sector {index}" if found == sector(batch, index) else f"no sector of ours: {found[:16]!r}"


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2])
    sys.exit("\n".join(check(sys.argv[2], int(sys.argv[3]))[:FINDINGS_MAX]) or 0)
