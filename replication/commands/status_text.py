"""Status for people: the lines of `drbdadm status`, and what DRBD does not say: why, what to type, how long still.

    r0 role:Secondary
      disk:Inconsistent
      beta role:Primary
        replication:SyncTarget peer-disk:UpToDate done:42.10 rate:53.1MiB/s eta:0:01:12
      reason:there is no usable second copy until the resync ends

Sizes are KiB. What goes without saying is left out: a connection that is there, a suspension that is not.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator
from typing import Any

Row = dict[str, Any]

NOTHING_RUNS = "# No mirror runs here."


class Detail(enum.Flag):
    PLAIN = 0
    VERBOSE = enum.auto()
    STATISTICS = enum.auto()


class Paint(enum.Enum):
    NONE = enum.auto()
    ANSI = enum.auto()


_GREEN, _YELLOW, _RED = "32", "33", "31"
_COLOURS = {
    **dict.fromkeys(("Primary", "UpToDate"), _GREEN),
    **dict.fromkeys(("Outdated", "Consistent", "Connecting", "DUnknown"), _YELLOW),
    **dict.fromkeys(("SyncSource", "SyncTarget", "PausedSyncS", "PausedSyncT", "WFBitMapS", "WFBitMapT"), _YELLOW),
    **dict.fromkeys(("Inconsistent", "Failed", "Diskless", "StandAlone", "NetworkFailure", "ProtocolError"), _RED),
}
_DEVICE_STATISTICS = ("size", "read", "written", "al-writes", "bm-writes", "upper-pending", "lower-pending")
_PEER_STATISTICS = ("received", "sent", "out-of-sync", "pending", "unacked")


def render(statuses: Iterable[Row], detail: Detail = Detail.PLAIN, paint: Paint = Paint.NONE) -> str:
    """All resources, a blank line between two; ends with a line feed."""
    blocks = ["\n".join(_resource(status, detail, paint)) + "\n" for status in statuses]
    return "\n".join(blocks) or NOTHING_RUNS + "\n"


def rate(kib_s: float) -> str:
    """53.1MiB/s, or KiB/s below one MiB."""
    return f"{kib_s / 1024:.1f}MiB/s" if kib_s >= 1024 else f"{kib_s:.0f}KiB/s"


def remaining(seconds: float | None) -> str:
    """0:01:12, or "stalled" when there is no end in sight."""
    if seconds is None or not math.isfinite(seconds):
        return "stalled"
    whole = math.ceil(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def percent(done: float) -> str:
    """Two decimals, and never 100.00 for what is not finished."""
    return f"{min(math.floor(done * 100) / 100, 99.99):.2f}"


def progress(peer_device: Row) -> Iterator[str]:
    """done, rate and eta of a resync that runs; nothing otherwise."""
    if peer_device.get("done") is None:
        return
    yield f"done:{percent(peer_device['done'])}"
    if peer_device.get("rate-kib-s") is not None:
        yield f"rate:{rate(peer_device['rate-kib-s'])}"
        yield f"eta:{remaining(peer_device.get('estimated-seconds-to-finish'))}"


def suspension(status: Row) -> str:
    """The word behind `suspended:`: no, or who suspended."""
    causes = [cause for cause in ("user", "no-data", "fencing", "quorum") if status.get(f"suspended-{cause}")]
    return ",".join(causes) or ("yes" if status.get("suspended") else "no")


def yes_no(value: object) -> str:
    return "yes" if value else "no"


def _resource(status: Row, detail: Detail, paint: Paint) -> Iterator[str]:
    verbose = Detail.VERBOSE in detail
    mirror = status.get("mirror", {})
    head = [status["name"]]
    if verbose:
        head.append(f"node-id:{status['node-id']}")
    head.append(_state("role", status["role"], paint))
    suspended = suspension(status)
    if verbose or suspended != "no":
        head.append(f"suspended:{suspended}")
    if status.get("force-io-failures"):
        head.append("force-io-failures:yes")
    yield " ".join(head)
    numbered = verbose or len(status["devices"]) > 1
    for device in status["devices"]:
        yield from _device(device, mirror.get("blocked-by-disk-s"), detail, numbered, paint)
    for connection in status["connections"]:
        yield from _connection(connection, detail, numbered, paint)
    if verbose and mirror:
        words = [f"takeover:{mirror['takeover']}", f"eligible:{yes_no(mirror['eligible'])}"]
        yield "  " + " ".join([*words, f"generation:{mirror['generation']}"])
    yield from (f"  {key}:{mirror[key]}" for key in ("reason", "remedy") if mirror.get(key))
    yield from (f"  warning:{warning}" for warning in mirror.get("warnings", ()))


def _device(device: Row, blocked_s: float | None, detail: Detail, numbered: bool, paint: Paint) -> Iterator[str]:
    verbose = Detail.VERBOSE in detail
    words = [f"volume:{device['volume']}", f"minor:{device['minor']}"] if numbered else []
    words.append(_state("disk", device["disk-state"], paint))
    if verbose or device.get("client"):
        words.append(f"client:{yes_no(device.get('client'))}")
    if verbose:
        words.append(f"backing_dev:{device.get('backing-disk') or 'none'}")
        words.append(f"device:{device.get('device') or 'none'}")
    if verbose or device.get("quorum") is False:
        words.append(f"quorum:{yes_no(device.get('quorum', True))}")
    if verbose or device.get("open"):
        words.append(f"open:{yes_no(device.get('open'))}")
    if blocked_s is not None:
        words.append(f"blocked:lower blocked-for:{blocked_s:.1f}s")
    yield "  " + " ".join(words)
    if Detail.STATISTICS in detail:
        yield "      " + _numbers(device, _DEVICE_STATISTICS)


def _connection(connection: Row, detail: Detail, numbered: bool, paint: Paint) -> Iterator[str]:
    verbose = Detail.VERBOSE in detail
    words = [connection["name"]]
    if verbose:
        words.append(f"node-id:{connection['peer-node-id']}")
    if verbose or connection["connection-state"] != "Connected":
        words.append(_state("connection", connection["connection-state"], paint))
    if verbose or connection["peer-role"] != "Unknown":
        words.append(_state("role", connection["peer-role"], paint))
    if verbose or connection.get("congested"):
        words.append(f"congested:{yes_no(connection.get('congested'))}")
        words.append(_numbers(connection, ("ap-in-flight", "rs-in-flight")))
    yield "  " + " ".join(words)
    for peer_device in connection["peer_devices"]:
        yield from _peer_device(peer_device, detail, numbered, paint)


def _peer_device(peer_device: Row, detail: Detail, numbered: bool, paint: Paint) -> Iterator[str]:
    words = [f"volume:{peer_device['volume']}"] if numbered else []
    if detail or peer_device["replication-state"] not in ("Off", "Established"):
        words.append(_state("replication", peer_device["replication-state"], paint))
    if detail or peer_device["peer-disk-state"] != "DUnknown":
        words.append(_state("peer-disk", peer_device["peer-disk-state"], paint))
    elif words == [f"volume:{peer_device['volume']}"]:
        words = []  # a peer that was never seen: its name says it all
    words.extend(progress(peer_device))
    if peer_device.get("resync-suspended", "no") != "no":
        words.append(f"resync-suspended:{peer_device['resync-suspended']}")
    if words:
        yield "    " + " ".join(words)
    if Detail.STATISTICS in detail:
        yield "        " + _numbers(peer_device, _PEER_STATISTICS)


def _numbers(row: Row, keys: Iterable[str]) -> str:
    return " ".join(f"{key}:{row[key]}" for key in keys if row.get(key) is not None)


def _state(key: str, word: str, paint: Paint) -> str:
    colour = _COLOURS.get(word)
    return f"{key}:\033[1;{colour}m{word}\033[0m" if colour and paint is Paint.ANSI else f"{key}:{word}"
