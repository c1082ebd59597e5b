"""Statuses as a daemon gives them, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def status(name: str = "r0", **changes: Any) -> Row:
    """A Secondary with good data, connected to a Primary. `changes`: keys of any level, with _ for -."""
    peer_device: Row = {
        "volume": 0,
        "replication-state": "Established",
        "peer-disk-state": "UpToDate",
        "peer-client": False,
        "resync-suspended": "no",
        "received": 20,
        "sent": 0,
        "out-of-sync": 0,
        "pending": 0,
        "unacked": 0,
        "percent-in-sync": 100.0,
    }
    path: Row = {
        "this_host": {"address": "10.0.0.1", "port": 7789, "family": "ipv4"},
        "remote_host": {"address": "10.0.0.2", "port": 7789, "family": "ipv4"},
        "established": True,
    }
    connection: Row = {
        "peer-node-id": 1,
        "name": "beta",
        "connection-state": "Connected",
        "congested": False,
        "peer-role": "Primary",
        "ap-in-flight": 0,
        "rs-in-flight": 0,
        "paths": [path],
        "peer_devices": [peer_device],
    }
    device: Row = {
        "volume": 0,
        "minor": 0,
        "disk-state": "UpToDate",
        "client": False,
        "open": False,
        "quorum": True,
        "size": 102400,
        "read": 4,
        "written": 20,
        "al-writes": 1,
        "bm-writes": 0,
        "upper-pending": 0,
        "lower-pending": 0,
        "device": None,
        "backing-disk": "/dev/vg/r0",
    }
    mirror: Row = {
        "takeover": "manual",
        "eligible": True,
        "reason": None,
        "remedy": None,
        "since": 12.5,
        "generation": "00C0FFEE00C0FFEE",
        "memory-kib": 30000,
        "blocked-by-disk-s": None,
        "warnings": [],
    }
    resource: Row = {
        "name": name,
        "node-id": 0,
        "role": "Secondary",
        "suspended": False,
        "suspended-user": False,
        "suspended-no-data": False,
        "suspended-fencing": False,
        "suspended-quorum": False,
        "force-io-failures": False,
        "write-ordering": "flush",
        "devices": [device],
        "connections": [connection],
        "mirror": mirror,
    }
    optional = {"done", "rate-kib-s", "estimated-seconds-to-finish"}
    for key, value in changes.items():
        word = key.replace("_", "-")
        rows = [row for row in (resource, device, connection, peer_device, path, mirror) if word in row]
        assert rows or word in optional, word
        (rows[0] if rows else peer_device)[word] = value
    return resource


def syncing(done: float, **changes: Any) -> Row:
    """The same, while it is overwritten by its peer."""
    return status(
        replication_state="SyncTarget",
        disk_state="Inconsistent",
        out_of_sync=59300,
        done=done,
        rate_kib_s=54374.4,
        estimated_seconds_to_finish=71.2,
        **changes,
    )


def alone(**changes: Any) -> Row:
    """The same, without its peer."""
    away: Row = {
        "connection_state": "Connecting",
        "replication_state": "Off",
        "peer_role": "Unknown",
        "peer_disk_state": "DUnknown",
        "established": False,
    }
    return status(**(away | changes))
