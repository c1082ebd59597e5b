"""What a volume says of itself, in the words and units of `drbdadm status --json`, and what those have no word for."""

from __future__ import annotations

from typing import Any

from replication.protocol.operations import standing
from replication.protocol.packets import BLOCK_BYTES
from replication.protocol.states import ConnectionState, DiskState, Role
from replication.protocol.takeover import eligible
from replication.protocol.volume_data import VolumeData

KIB = 1024


def describe(data: VolumeData) -> dict[str, Any]:
    """One element of the status list; the shell adds what only it knows (device, paths, memory)."""
    state = data.state
    counters = data.counters
    return {
        "name": data.options.resource,
        "role": str(state.role),
        "suspended": data.frozen,
        "suspended-user": False,
        "suspended-no-data": False,
        "suspended-fencing": state.suspended_fencing,
        "suspended-quorum": False,
        "force-io-failures": False,
        "write-ordering": "flush",
        "devices": [
            {
                "volume": 0,
                "disk-state": str(state.disk),
                "client": False,
                "quorum": True,
                "size": data.size_bytes // KIB,
                "read": counters["read"] // KIB,
                "written": counters["written"] // KIB,
                "al-writes": counters["al-writes"],
                "bm-writes": counters["bm-writes"],
                "upper-pending": len(data.log.in_flight) + len(data.waiting),
                "lower-pending": len(data.on_flush),
            }
        ],
        "connections": [
            {
                "name": data.peer_name,
                "connection-state": state.connection.link,
                "congested": data.starved,
                "peer-role": str(state.peer),
                "ap-in-flight": sum(entry[2] for entry in data.log.in_flight.values()) // KIB,
                "rs-in-flight": sum(data.resync.outstanding.values()) // KIB if data.resync else 0,
                "peer_devices": [_peer_device(data)],
            }
        ],
        "mirror": _mirror(data),
    }


def _peer_device(data: VolumeData) -> dict[str, Any]:
    state = data.state
    out_of_sync = min(data.bitmap.count * BLOCK_BYTES, data.size_bytes)
    result: dict[str, Any] = {
        "volume": 0,
        "replication-state": state.connection.replication,
        "peer-disk-state": str(state.peer_disk),
        "peer-client": False,
        "resync-suspended": "no",
        "received": data.counters["received"] // KIB,
        "sent": (data.counters["sent"] + (data.counters["written"] if data.connected else 0)) // KIB,
        "out-of-sync": out_of_sync // KIB,
        "pending": len(data.log.in_flight),
        "unacked": len(data.log.closed),
        "has-sync-details": data.resync is not None,
        "has-online-verify-details": False,
        "percent-in-sync": round(100.0 * (1 - out_of_sync / data.size_bytes), 2) if data.size_bytes else 100.0,
    }
    resync = data.resync
    if resync is not None:
        done = resync.total_blocks - data.bitmap.count
        result["done"] = round(100.0 * max(0, done) / resync.total_blocks, 2) if resync.total_blocks else 100.0
        rate = 0.0
        if resync.marks:
            then, left = resync.marks[0]
            elapsed = data.now - then
            rate = max(0, left - data.bitmap.count) * BLOCK_BYTES / KIB / elapsed if elapsed > 0 else 0.0
        result["rate-kib-s"] = round(rate, 1)
        result["estimated-seconds-to-finish"] = round(out_of_sync / KIB / rate) if rate else None
        result["rs-total"] = resync.total_blocks * BLOCK_BYTES // 512
        result["rs-failed"] = resync.failed_blocks
    return result


def _mirror(data: VolumeData) -> dict[str, Any]:
    state = data.state
    refusal = None if state.role is Role.PRIMARY else eligible(standing(data))
    reason, remedy = data.reason, data.remedy
    if not reason and state.disk is DiskState.INCONSISTENT and state.connection is not ConnectionState.SYNC_TARGET:
        reason = "the disk holds a mixture of two images; a resync from the peer makes it usable"
    if not reason and refusal is not None:
        reason, remedy = refusal.fact, refusal.remedy
    return {
        "takeover": data.options.takeover.value,
        "eligible": state.role is Role.PRIMARY or refusal is None,
        "reason": reason or None,
        "remedy": remedy or None,
        "since": round(data.now - data.since, 1),
        "generation": f"{data.generation.name:016X}",
        "cs": str(state.connection),
    }
