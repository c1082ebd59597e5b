"""ARP frames for IPv4 over Ethernet, and what those of others mean. Pure. Sources: RFC 826, RFC 5227."""

from __future__ import annotations

from _struct import pack, unpack_from

ETH_P_ARP = 0x0806
BROADCAST_MAC = b"\xff" * 6
UNKNOWN_MAC = b"\0" * 6
REQUEST, REPLY = 1, 2
LAYOUT = "!6s6sHHHBBH6s4s6s4s"  # target, source, type, hardware, protocol, lengths, operation, sender, target
FRAME_SIZE = 42


class Arp:
    """The parts of a frame that matter: who claims which address."""

    def __init__(self, operation: int, sender_mac: bytes, sender_ip: int, target_mac: bytes, target_ip: int) -> None:
        self.operation = operation
        self.sender_mac = sender_mac
        self.sender_ip = sender_ip
        self.target_mac = target_mac
        self.target_ip = target_ip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arp) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.operation, self.sender_mac, self.sender_ip, self.target_mac, self.target_ip))

    def __repr__(self) -> str:
        return f"Arp({vars(self)})"


def encode(arp: Arp, destination: bytes = BROADCAST_MAC) -> bytes:
    """A whole Ethernet frame, from the sender's MAC."""
    return pack(
        LAYOUT,
        destination,
        arp.sender_mac,
        ETH_P_ARP,
        1,
        0x0800,
        6,
        4,
        arp.operation,
        arp.sender_mac,
        arp.sender_ip.to_bytes(4, "big"),
        arp.target_mac,
        arp.target_ip.to_bytes(4, "big"),
    )


def decode(frame: bytes) -> Arp | None:
    """None for anything that is not ARP for IPv4 over Ethernet, or is cut off."""
    if len(frame) < FRAME_SIZE:
        return None
    _, _, kind, hardware, protocol, hlen, plen, operation, smac, sip, tmac, tip = unpack_from(LAYOUT, frame)
    if (kind, hardware, protocol, hlen, plen) != (ETH_P_ARP, 1, 0x0800, 6, 4):
        return None
    return Arp(operation, smac, int.from_bytes(sip, "big"), tmac, int.from_bytes(tip, "big"))


def announcement(operation: int, mac: bytes, ip: int) -> bytes:
    """Gratuitous ARP: sender and target address are both ours. Some stacks honour only one of request and reply."""
    return encode(Arp(operation, mac, ip, UNKNOWN_MAC if operation == REQUEST else mac, ip))


def probe(mac: bytes, ip: int) -> bytes:
    """RFC 5227 probe: asks who has `ip` without claiming it (sender address 0.0.0.0)."""
    return encode(Arp(REQUEST, mac, 0, UNKNOWN_MAC, ip))


def claimant(frame: bytes, ip: int, own_macs: frozenset[bytes]) -> bytes | None:
    """The foreign MAC that uses `ip`, or is about to (a probe of another host); None when the frame says neither."""
    arp = decode(frame)
    if arp is None or arp.sender_mac in own_macs:
        return None
    claims = arp.sender_ip == ip
    probes = arp.operation == REQUEST and arp.sender_ip == 0 and arp.target_ip == ip
    return arp.sender_mac if claims or probes else None
