"""Two statuses and what happened between them, as `drbdsetup events2` says it: one line an event.

    exists resource name:r0 role:Secondary suspended:no force-io-failures:no may_promote:yes promotion_score:10102
    change connection name:r0 peer-node-id:1 conn-name:beta connection:Connecting role:Unknown
    destroy path name:r0 peer-node-id:1 conn-name:beta local:ipv4:10.0.0.1:7789 peer:ipv4:10.0.0.2:7789
    exists -

A change names only what changed. What a daemon's end takes away is destroyed from the inside out.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

from replication.commands.status_text import Row, percent, suspension, yes_no


class Action(enum.StrEnum):
    EXISTS = "exists"
    CREATE = "create"
    CHANGE = "change"
    DESTROY = "destroy"
    CALL = "call"
    RESPONSE = "response"


class Statistics(enum.Enum):
    LEFT_OUT = enum.auto()
    SHOWN = enum.auto()


@dataclass(frozen=True, slots=True)
class Event:
    action: Action
    object: str
    """resource, device, connection, peer-device, path, helper; "-" ends what exists at the start."""
    keys: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.action.value, self.object, *(f"{key}:{value}" for key, value in self.keys.items())])


END_OF_START = Event(Action.EXISTS, "-")

Identity = tuple[str, tuple[tuple[str, str], ...]]
"""Kind of object, and the keys that tell it from others of its kind."""


def between(
    before: Row | None,
    after: Row | None,
    statistics: Statistics = Statistics.LEFT_OUT,
    *,
    appearing: Action = Action.CREATE,
) -> list[Event]:
    """Events that lead from one status of a resource to the next; None: it does not run."""
    old = dict(_objects(before, statistics)) if before else {}
    new = dict(_objects(after, statistics)) if after else {}
    events = [
        Event(Action.DESTROY, kind, dict(identity)) for kind, identity in reversed(old) if (kind, identity) not in new
    ]
    for (kind, identity), keys in new.items():
        known = old.get((kind, identity))
        changed = {key: value for key, value in keys.items() if known is None or known.get(key) != value}
        if known is None:
            events.append(Event(appearing, kind, dict(identity) | keys))
        elif changed:
            events.append(Event(Action.CHANGE, kind, dict(identity) | changed))
    return events


def of_helper(resource: str, helper: Row) -> Event:
    """A handler's call, or its end when it has an exit code."""
    keys = {"name": resource, "helper": str(helper["name"])}
    if helper.get("exit-code") is None:
        return Event(Action.CALL, "helper", keys)
    return Event(Action.RESPONSE, "helper", keys | {"status": str(helper["exit-code"])})


def may_promote(status: Row) -> bool:
    """Nobody is Primary, good data is in reach, and the takeover rules let this node."""
    peers = [connection["peer-role"] for connection in status["connections"]]
    good = all(copies > 0 for copies in _good_copies(status))
    return good and "Primary" not in [status["role"], *peers] and bool(status.get("mirror", {}).get("eligible", True))


def promotion_score(status: Row) -> int:
    """DRBD's advice, higher is better: 10000 with all disks here, 100 for each good one, 1 for the good copies."""
    devices = status["devices"]
    copies = min(_good_copies(status), default=0)
    if copies == 0 or status.get("force-io-failures") or not all(device.get("quorum", True) for device in devices):
        return 0
    own = [device["disk-state"] for device in devices]
    here = all(state in ("UpToDate", "Consistent", "Inconsistent") for state in own)
    return 10000 * here + 100 * min(own.count("UpToDate"), 99) + min(copies, 99)


def _good_copies(status: Row) -> list[int]:
    """For each volume, how many UpToDate copies are in reach."""
    counts = {device["volume"]: int(device["disk-state"] == "UpToDate") for device in status["devices"]}
    for connection in status["connections"]:
        for peer_device in connection["peer_devices"]:
            reached = connection["connection-state"] == "Connected" and peer_device["peer-disk-state"] == "UpToDate"
            counts[peer_device["volume"]] = counts.get(peer_device["volume"], 0) + reached
    return list(counts.values())


def _objects(status: Row, statistics: Statistics) -> Iterator[tuple[Identity, dict[str, str]]]:
    """Every object and its keys, the outer before the inner."""
    shown = statistics is Statistics.SHOWN
    name = ("name", str(status["name"]))
    resource = {"role": status["role"], "suspended": suspension(status)}
    resource["force-io-failures"] = yes_no(status.get("force-io-failures"))
    resource |= {"may_promote": yes_no(may_promote(status)), "promotion_score": str(promotion_score(status))}
    yield ("resource", (name,)), resource
    for connection in status["connections"]:
        peer = (name, ("peer-node-id", str(connection["peer-node-id"])), ("conn-name", str(connection["name"])))
        keys = {"connection": connection["connection-state"], "role": connection["peer-role"]}
        if shown:
            keys |= {"congested": yes_no(connection.get("congested"))}
            keys |= _figures(connection, ("ap-in-flight", "rs-in-flight"))
        yield ("connection", peer), keys
    for device in status["devices"]:
        identity = (name, ("volume", str(device["volume"])), ("minor", str(device["minor"])))
        keys = {"backing_dev": device.get("backing-disk") or "none", "disk": device["disk-state"]}
        keys |= {"client": yes_no(device.get("client")), "open": yes_no(device.get("open"))}
        keys |= {"quorum": yes_no(device.get("quorum", True))}
        if shown:
            keys |= _figures(device, ("size", "read", "written", "al-writes", "bm-writes"))
            keys |= _figures(device, ("upper-pending", "lower-pending"))
        yield ("device", identity), keys
    for connection in status["connections"]:
        peer = (name, ("peer-node-id", str(connection["peer-node-id"])), ("conn-name", str(connection["name"])))
        for peer_device in connection["peer_devices"]:
            yield ("peer-device", (*peer, ("volume", str(peer_device["volume"])))), _peer_device(peer_device, shown)
        for path in connection["paths"]:
            ends = (("local", _address(path["this_host"])), ("peer", _address(path["remote_host"])))
            yield ("path", (*peer, *ends)), {"established": yes_no(path["established"])}


def _peer_device(peer_device: Row, shown: bool) -> dict[str, str]:
    keys = {"replication": str(peer_device["replication-state"]), "peer-disk": str(peer_device["peer-disk-state"])}
    keys |= {"peer-client": yes_no(peer_device.get("peer-client"))}
    keys |= {"resync-suspended": str(peer_device.get("resync-suspended", "no"))}
    if peer_device.get("done") is not None:
        keys["done"] = percent(peer_device["done"])
    return keys | (_figures(peer_device, ("received", "sent", "out-of-sync", "pending", "unacked")) if shown else {})


def _figures(row: Row, keys: tuple[str, ...]) -> dict[str, str]:
    return {key: str(row[key]) for key in keys if row.get(key) is not None}


def _address(end: Row) -> str:
    address = f"[{end['address']}]" if end["family"] == "ipv6" else end["address"]
    return f"{end['family']}:{address}:{end['port']}"
