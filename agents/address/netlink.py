"""rtnetlink with nothing but `_socket` and `_struct`: addresses, links and routes of this network namespace.

`import pyroute2` alone costs six times a whole shell agent. Codec functions (encode_*, decode_*) are pure; `Rtnetlink`
is the socket. Sources: netlink(7), rtnetlink(7), linux/rtnetlink.h, linux/if_link.h.
"""

from __future__ import annotations

import errno
import posix
import sys
from _socket import AF_INET, AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW, SOL_SOCKET, socket
from _struct import pack, unpack_from

from agents.address.model import ALL_ONES, Address, Link, Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
NLM_F_DUMP, NLM_F_EXCL, NLM_F_CREATE = 0x300, 0x200, 0x400
RTM_NEWLINK, RTM_GETLINK = 16, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
IFLA_ADDRESS, IFLA_IFNAME, IFLA_CARRIER, IFLA_CARRIER_CHANGES = 1, 3, 33, 35
IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_BROADCAST, IFA_CACHEINFO, IFA_FLAGS = 1, 2, 3, 4, 6, 8
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_CACHEINFO, RTA_TABLE, RTA_VIA = 1, 4, 5, 6, 7, 12, 15, 18
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12
SO_RCVTIMEO = 20

HEADER = "=IHHII"  # length, type, flags, sequence, port id
HEADER_SIZE = 16
IFADDRMSG = "=BBBBI"  # family, prefix length, flags, scope, index
IFADDRMSG_SIZE = 8
IFINFOMSG = "=BBHiII"  # family, padding, hardware type, index, flags, change mask
IFINFOMSG_SIZE = 16
RTMSG = "=BBBBBBBBI"  # family, dst len, src len, tos, table, protocol, scope, type, flags
RTMSG_SIZE = 12
RECEIVE_BYTES = 1 << 18
ANSWER_WAIT_S = 5
DUMP_ATTEMPTS = 5


def encode_attribute(kind: int, value: bytes) -> bytes:
    """Length, kind, value, padding to four bytes."""
    return pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def decode_attributes(data: bytes, offset: int) -> dict[int, bytes]:
    """Kind -> value. What is cut off or claims an impossible length ends the list; the kernel never sends such."""
    found: dict[int, bytes] = {}
    while offset + 4 <= len(data):
        length, kind = unpack_from("=HH", data, offset)
        if length < 4 or offset + length > len(data):
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += length + 3 & ~3
    return found


def decode_messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence and payload of each message in one datagram."""
    offset = 0
    while offset + HEADER_SIZE <= len(data):
        length, kind, flags, sequence, _ = unpack_from(HEADER, data, offset)
        if length < HEADER_SIZE or offset + length > len(data):
            break
        yield kind, flags, sequence, data[offset + HEADER_SIZE : offset + length]
        offset += length + 3 & ~3


def number(value: bytes | None) -> int | None:
    """An IPv4 address attribute."""
    return int.from_bytes(value, "big") if value is not None and len(value) == 4 else None


def encode_address(address: Address) -> bytes:
    """Payload of RTM_NEWADDR or RTM_DELADDR."""
    data = pack(IFADDRMSG, AF_INET, address.prefix_len, address.flags & 0xFF, address.scope, address.index)
    data += encode_attribute(IFA_LOCAL, address.local.to_bytes(4, "big"))
    data += encode_attribute(IFA_ADDRESS, address.peer.to_bytes(4, "big"))
    if address.broadcast is not None:
        data += encode_attribute(IFA_BROADCAST, address.broadcast.to_bytes(4, "big"))
    if address.label:
        data += encode_attribute(IFA_LABEL, address.label.encode() + b"\0")
    if address.flags & ~0xFF:
        data += encode_attribute(IFA_FLAGS, pack("=I", address.flags))
    if address.valid_s != ALL_ONES or address.preferred_s != ALL_ONES:
        data += encode_attribute(IFA_CACHEINFO, pack("=IIII", address.preferred_s, address.valid_s, 0, 0))
    return data


def decode_address(payload: bytes) -> Address | None:
    """None for another family or a message without an address."""
    if len(payload) < IFADDRMSG_SIZE:
        return None
    family, prefix_len, flags, scope, index = unpack_from(IFADDRMSG, payload)
    attributes = decode_attributes(payload, IFADDRMSG_SIZE)
    local = number(attributes.get(IFA_LOCAL, attributes.get(IFA_ADDRESS)))
    if family != AF_INET or local is None:
        return None
    if len(attributes.get(IFA_FLAGS, b"")) == 4:
        (flags,) = unpack_from("=I", attributes[IFA_FLAGS])
    preferred_s, valid_s = ALL_ONES, ALL_ONES
    if len(attributes.get(IFA_CACHEINFO, b"")) >= 8:
        preferred_s, valid_s = unpack_from("=II", attributes[IFA_CACHEINFO])
    return Address(
        index,
        local,
        prefix_len,
        peer=number(attributes.get(IFA_ADDRESS)),
        broadcast=number(attributes.get(IFA_BROADCAST)),
        label=attributes.get(IFA_LABEL, b"").rstrip(b"\0").decode("utf-8", "replace"),
        scope=scope,
        flags=flags,
        valid_s=valid_s,
        preferred_s=preferred_s,
    )


def decode_link(payload: bytes) -> Link | None:
    if len(payload) < IFINFOMSG_SIZE:
        return None
    _, _, hardware, index, flags, _ = unpack_from(IFINFOMSG, payload)
    attributes = decode_attributes(payload, IFINFOMSG_SIZE)
    carrier = attributes.get(IFLA_CARRIER)
    changes = attributes.get(IFLA_CARRIER_CHANGES, b"")
    return Link(
        index,
        attributes.get(IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace"),
        flags=flags,
        carrier=None if carrier is None else carrier != b"\0",
        mac=attributes.get(IFLA_ADDRESS, b""),
        hardware=hardware,
        carrier_changes=int.from_bytes(changes, sys.byteorder),
    )


def decode_route(payload: bytes) -> Route | None:
    """None for another family or a route without a single outgoing interface (unreachable, multipath)."""
    if len(payload) < RTMSG_SIZE:
        return None
    family, prefix_len, _, tos, table, protocol, scope, _, _ = unpack_from(RTMSG, payload)
    attributes = decode_attributes(payload, RTMSG_SIZE)
    if family != AF_INET or len(attributes.get(RTA_OIF, b"")) != 4:
        return None
    if len(attributes.get(RTA_TABLE, b"")) == 4:
        (table,) = unpack_from("=I", attributes[RTA_TABLE])
    priority = unpack_from("=I", attributes[RTA_PRIORITY])[0] if len(attributes.get(RTA_PRIORITY, b"")) == 4 else 0
    return Route(
        unpack_from("=I", attributes[RTA_OIF])[0],
        number(attributes.get(RTA_DST)) or 0,
        prefix_len,
        table=table,
        scope=scope,
        protocol=protocol,
        tos=tos,
        priority=priority,
        gateway=RTA_GATEWAY in attributes or RTA_VIA in attributes,
        preferred_source=number(attributes.get(RTA_PREFSRC)),
        payload=payload,
    )


def without_attributes(payload: bytes, kinds: frozenset[int]) -> bytes:
    """A route message with some attributes left out, the rest byte for byte (nested ones too)."""
    kept = payload[:RTMSG_SIZE]
    offset = RTMSG_SIZE
    while offset + 4 <= len(payload):
        length, kind = unpack_from("=HH", payload, offset)
        if length < 4 or offset + length > len(payload):
            break
        if kind & 0x3FFF not in kinds:
            kept += encode_attribute(kind, payload[offset + 4 : offset + length])
        offset += length + 3 & ~3
    return kept


class Rtnetlink:
    """A request socket. Kernel refusals come out as OSError with the kernel's errno."""

    def __init__(self) -> None:
        self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0)
        self._sequence = 0
        try:
            self._socket.setsockopt(SOL_SOCKET, SO_RCVTIMEO, pack("@ll", ANSWER_WAIT_S, 0))
            # the kernel filters dumps only for those who promise well-formed requests (Linux 4.20)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                self._socket.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def addresses(self) -> list[Address]:
        """All IPv4 addresses, primaries before their secondaries, in the kernel's order."""
        payloads = self._dump(RTM_GETADDR, pack(IFADDRMSG, AF_INET, 0, 0, 0, 0))
        return [address for address in map(decode_address, payloads) if address is not None]

    def links(self) -> list[Link]:
        payloads = self._dump(RTM_GETLINK, pack(IFINFOMSG, 0, 0, 0, 0, 0, 0))
        return [link for link in map(decode_link, payloads) if link is not None]

    def link(self, index: int) -> Link | None:
        """One interface; None when it is gone."""
        try:
            payloads = self._request(RTM_GETLINK, 0, pack(IFINFOMSG, 0, 0, 0, index, 0, 0))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return decode_link(payloads[0]) if payloads else None

    def routes(self, index: int = 0) -> list[Route]:
        """IPv4 routes of all tables, of one interface if given."""
        wanted = encode_attribute(RTA_OIF, pack("=I", index)) if index else b""
        payloads = self._dump(RTM_GETROUTE, pack(RTMSG, AF_INET, 0, 0, 0, 0, 0, 0, 0, 0) + wanted)
        found = [route for route in map(decode_route, payloads) if route is not None]
        return [route for route in found if not index or route.index == index]

    def routes_preferring(self, source: int) -> list[Route]:
        """IPv4 routes of all tables and interfaces with this preferred source. Only these are decoded, since a router
        may have a million others.
        """
        needle = encode_attribute(RTA_PREFSRC, source.to_bytes(4, "big"))
        payloads = self._dump(RTM_GETROUTE, pack(RTMSG, AF_INET, 0, 0, 0, 0, 0, 0, 0, 0))
        found = [decode_route(payload) for payload in payloads if needle in payload]
        return [route for route in found if route is not None and route.preferred_source == source]

    def add_address(self, address: Address) -> None:
        """Raises OSError: EEXIST when the same address and prefix are there, ENODEV when the interface is gone."""
        self._request(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, encode_address(address))

    def delete_address(self, address: Address) -> None:
        """Raises OSError: EADDRNOTAVAIL when it is not there, ENODEV when the interface is gone."""
        self._request(RTM_DELADDR, NLM_F_ACK, encode_address(address))

    def set_up(self, index: int) -> None:
        self._request(RTM_NEWLINK, NLM_F_ACK, pack(IFINFOMSG, 0, 0, 0, index, 1, 1))

    def add_route(self, route: Route, *, keep_source: bool = True) -> None:
        """Put a recorded route back. Raises OSError: EEXIST, ENETUNREACH when its gateway cannot be reached."""
        dropped = frozenset((RTA_CACHEINFO,)) if keep_source else frozenset((RTA_CACHEINFO, RTA_PREFSRC))
        payload = without_attributes(route.payload, dropped)
        # message flags hold state such as "link is down", which a request may not set; ONLINK (4) may stay
        flags = unpack_from(RTMSG, payload)[8] & 4
        payload = payload[:8] + pack("=I", flags) + payload[RTMSG_SIZE:]
        self._request(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, payload)

    def _dump(self, kind: int, payload: bytes) -> list[bytes]:
        for _ in range(DUMP_ATTEMPTS - 1):
            try:
                return self._request(kind, NLM_F_DUMP, payload)
            except InterruptedError:
                continue
        return self._request(kind, NLM_F_DUMP, payload)

    def _request(self, kind: int, flags: int, payload: bytes) -> list[bytes]:
        """Payloads of the answer. A dump that changed while it ran raises InterruptedError (EINTR)."""
        self._sequence += 1
        sequence = self._sequence
        header = pack(HEADER, HEADER_SIZE + len(payload), kind, NLM_F_REQUEST | flags, sequence, 0)
        self._socket.send(header + payload)
        answers: list[bytes] = []
        interrupted = False
        while True:
            for answer, answer_flags, answered, body in decode_messages(self._socket.recv(RECEIVE_BYTES)):
                if answered != sequence:
                    continue
                interrupted = interrupted or bool(answer_flags & NLM_F_DUMP_INTR)
                if answer == NLMSG_DONE:
                    if interrupted:
                        raise InterruptedError(errno.EINTR, "the kernel's table changed during the dump")
                    return answers
                if answer == NLMSG_ERROR:
                    (code,) = unpack_from("=i", body)
                    if code:
                        raise OSError(-code, posix.strerror(-code))
                    return answers
                answers.append(body)
                if flags & NLM_F_DUMP != NLM_F_DUMP and not flags & NLM_F_ACK:
                    return answers
