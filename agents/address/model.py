"""IPv4 numbers, and what the kernel says about addresses, links and routes. Pure; part of every monitor's start-up.

An IPv4 address is an int here (0x0A000032 is 10.0.0.50): cheap to compare, mask and sort.
"""

from __future__ import annotations

ALL_ONES = 0xFFFFFFFF

# linux/if.h, linux/if_addr.h, linux/if_arp.h
IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_NOARP = 0x80
IFA_F_SECONDARY = 0x01
IFA_F_PERMANENT = 0x80
IFA_F_NOPREFIXROUTE = 0x200
ARPHRD_ETHER = 1


def parse_ipv4(text: str) -> int:
    """Strict dotted quad. Raises ValueError ("must be …") for anything else, also for 010.0.0.1 and 10.1."""
    parts = text.split(".")
    number = 0
    for part in parts:
        if not (part.isascii() and part.isdigit()) or len(part) > 3 or int(part) > 255 or str(int(part)) != part:
            break
        number = number << 8 | int(part)
    else:
        if len(parts) == 4:
            return number
    raise ValueError("must be an IPv4 address such as 10.0.0.50")


def show_ipv4(number: int) -> str:
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def netmask(prefix_len: int) -> int:
    return ALL_ONES << (32 - prefix_len) & ALL_ONES


def prefix_of_netmask(mask: int) -> int:
    """255.255.255.0 -> 24. Raises ValueError when the ones are not all on the left."""
    prefix_len = mask.bit_count()
    if netmask(prefix_len) != mask:
        raise ValueError("must be a prefix length 1 to 32 or a netmask such as 255.255.255.0")
    return prefix_len


def network_of(number: int, prefix_len: int) -> int:
    return number & netmask(prefix_len)


def broadcast_of(number: int, prefix_len: int) -> int:
    return number | (ALL_ONES ^ netmask(prefix_len))


class Address:
    """One IPv4 address of an interface. `peer` is the far end of a point-to-point address, else the same as `local`.

    Lifetimes are in seconds, ALL_ONES = for ever. A secondary address lives and dies with the primary one of its
    subnet unless promote_secondaries is set.
    """

    __slots__ = (
        "broadcast",
        "flags",
        "index",
        "label",
        "local",
        "peer",
        "preferred_s",
        "prefix_len",
        "scope",
        "valid_s",
    )

    def __init__(
        self,
        index: int,
        local: int,
        prefix_len: int,
        *,
        peer: int | None = None,
        broadcast: int | None = None,
        label: str = "",
        scope: int = 0,
        flags: int = IFA_F_PERMANENT,
        valid_s: int = ALL_ONES,
        preferred_s: int = ALL_ONES,
    ) -> None:
        self.index = index
        self.local = local
        self.prefix_len = prefix_len
        self.peer = local if peer is None else peer
        self.broadcast = broadcast
        self.label = label
        self.scope = scope
        self.flags = flags
        self.valid_s = valid_s
        self.preferred_s = preferred_s

    @property
    def key(self) -> tuple[int, int, int, int]:
        """What the kernel tells addresses of one host apart by."""
        return self.index, self.local, self.prefix_len, self.peer

    @property
    def is_secondary(self) -> bool:
        return bool(self.flags & IFA_F_SECONDARY)

    @property
    def subnet(self) -> tuple[int, int, int]:
        """Addresses of the same subnet in this sense form one family of primary and secondaries."""
        return self.index, network_of(self.peer, self.prefix_len), self.prefix_len

    def __repr__(self) -> str:
        return f"{show_ipv4(self.local)}/{self.prefix_len}@{self.index}"


class Link:
    """One network interface. `carrier` is None where the driver does not say; `carrier_changes` counts flaps."""

    __slots__ = ("carrier", "carrier_changes", "flags", "hardware", "index", "mac", "name")

    def __init__(
        self,
        index: int,
        name: str,
        *,
        flags: int,
        carrier: bool | None,
        mac: bytes = b"",
        hardware: int = ARPHRD_ETHER,
        carrier_changes: int = 0,
    ) -> None:
        self.index = index
        self.name = name
        self.flags = flags
        self.carrier = carrier
        self.mac = mac
        self.hardware = hardware
        self.carrier_changes = carrier_changes

    @property
    def life(self) -> str:
        """Changes whenever neighbours may have forgotten us: new interface, new MAC, link lost and back."""
        return f"{self.index} {self.mac.hex()} {self.carrier_changes}"

    @property
    def is_up(self) -> bool:
        return bool(self.flags & IFF_UP)

    @property
    def has_carrier(self) -> bool:
        return self.is_up and self.carrier is not False

    @property
    def is_loopback(self) -> bool:
        return bool(self.flags & IFF_LOOPBACK)

    @property
    def speaks_arp(self) -> bool:
        return self.hardware == ARPHRD_ETHER and not self.flags & (IFF_NOARP | IFF_LOOPBACK) and len(self.mac) == 6

    def __repr__(self) -> str:
        return f"{self.name}@{self.index}"


class Route:
    """One IPv4 route. `payload` is the kernel's own message, so that a lost route comes back exactly as it was."""

    __slots__ = (
        "destination",
        "gateway",
        "index",
        "payload",
        "preferred_source",
        "prefix_len",
        "priority",
        "protocol",
        "scope",
        "table",
        "tos",
    )

    def __init__(
        self,
        index: int,
        destination: int,
        prefix_len: int,
        *,
        table: int = 254,
        scope: int = 0,
        protocol: int = 3,
        tos: int = 0,
        priority: int = 0,
        gateway: bool = False,
        preferred_source: int | None = None,
        payload: bytes = b"",
    ) -> None:
        self.index = index
        self.destination = destination
        self.prefix_len = prefix_len
        self.table = table
        self.scope = scope
        self.protocol = protocol
        self.tos = tos
        self.priority = priority
        self.gateway = gateway
        self.preferred_source = preferred_source
        self.payload = payload

    @property
    def key(self) -> tuple[int, int, int, int, int]:
        """What the kernel tells routes apart by."""
        return self.table, self.destination, self.prefix_len, self.tos, self.priority

    def __repr__(self) -> str:
        return f"{show_ipv4(self.destination)}/{self.prefix_len} table {self.table} dev {self.index}"
