"""create-md and dump-md: the metadata at the end of a resource's disk on this host, while no daemon uses it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from replication import create_metadata
from replication.commands.targets import here
from replication.config import Resource
from replication.control import daemon_pid
from replication.create_metadata import Existing
from replication.errors import DiskFailure, Refusal


def create(resource: Resource, existing: Existing, runtime: Path) -> str:
    """A sentence of what was made. Raises as replication.create_metadata.create; Refusal while the resource is up."""
    if daemon_pid(resource.name, runtime) is not None:
        raise Refusal(f"mirror {resource.name}", "it is up, and uses the disk", f"mirroradm down {resource.name}")
    disk = resource.local(here()).disk
    layout = create_metadata.create(disk, existing=existing, al_extents=resource.disk.al_extents)
    return f"{disk}: new metadata; {layout.data_bytes // 1024} KiB for data"


def read(resource: Resource) -> dict[str, Any]:
    """What the metadata says, and what taking the disk into use would find. Writes nothing."""
    disk = resource.local(here()).disk
    try:
        descriptor = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DiskFailure(disk, f"opening it: {error.strerror}") from error
    try:
        found = create_metadata.inspect(descriptor, os.lseek(descriptor, 0, os.SEEK_END), disk)
    finally:
        os.close(descriptor)
    block = dataclasses.asdict(found.superblock)
    identifiers = ("current_uuid", "bitmap_uuid", "history0", "history1", "device_uuid")
    block |= {key: f"{block[key]:016X}" for key in identifiers}
    block["flags"] = [flag.name for flag in type(found.superblock.flags) if flag in found.superblock.flags]
    return {
        "name": resource.name,
        "disk": disk,
        "data-kib": found.layout.data_bytes // 1024,
        "superblock": {key.replace("_", "-"): value for key, value in block.items()},
        "out-of-sync-kib": found.bitmap.count * found.superblock.bytes_per_bit // 1024,
        "hot-extents": sorted(found.replayed_extents),
        "notes": list(found.notes),
    }


def render(row: dict[str, Any]) -> str:
    """Lines `key value;` as drbdmeta's dump has them."""
    lines = [f"# {row['name']}: {row['disk']}, {row['data-kib']} KiB for data"]
    lines += [f"# {note}" for note in row["notes"]]
    for key, value in row["superblock"].items():
        words = " ".join(value) if isinstance(value, list) else value
        lines.append(f"{key} {words};")
    lines.append(f"out-of-sync-kib {row['out-of-sync-kib']};")
    lines.append(f"hot-extents {' '.join(map(str, row['hot-extents'])) or 'none'};")
    return "\n".join(lines) + "\n"
