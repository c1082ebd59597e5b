"""rtnetlink messages, against bytes of a real kernel and against rubbish."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.address.model import Address, parse_ipv4
from agents.address.netlink import (
    RTA_PREFSRC,
    Rtnetlink,
    decode_address,
    decode_attributes,
    decode_link,
    decode_messages,
    decode_route,
    encode_address,
    encode_attribute,
    without_attributes,
)

# `10.9.0.0/16 via 10.1.0.254 dev 7 src 10.1.0.50 metric 20`: rtmsg, then table, dst, priority, prefsrc, gateway, oif
ROUTE = bytes.fromhex(
    "02100000fe030001" "00000000"
    "08000f00fe000000" "080001000a090000" "0800060014000000" "080007000a010032" "080005000a0100fe" "0800040007000000"
)  # fmt: skip

addresses = st.builds(
    Address,
    st.integers(1, 2**31),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
    peer=st.integers(0, 2**32 - 1),
    broadcast=st.none() | st.integers(0, 2**32 - 1),
    label=st.from_regex(r"[a-z0-9:]{0,15}", fullmatch=True),
    scope=st.integers(0, 255),
    flags=st.integers(0, 2**32 - 1),
    valid_s=st.integers(0, 2**32 - 1),
    preferred_s=st.integers(0, 2**32 - 1),
)


@given(addresses)
def test_every_address_survives_the_wire(address: Address) -> None:
    again = decode_address(encode_address(address))
    assert again is not None
    assert all(getattr(again, name) == getattr(address, name) for name in Address.__slots__)


def test_a_route_is_understood_with_all_that_tells_it_apart() -> None:
    route = decode_route(ROUTE)
    assert route is not None
    assert repr(route) == "10.9.0.0/16 table 254 dev 7"
    assert (route.priority, route.gateway, route.protocol, route.scope) == (20, True, 3, 0)
    assert route.preferred_source == parse_ipv4("10.1.0.50")


def test_one_attribute_can_be_left_out_of_a_recorded_route() -> None:
    kept = without_attributes(ROUTE, frozenset((RTA_PREFSRC,)))
    assert RTA_PREFSRC not in decode_attributes(kept, 12)
    assert len(ROUTE) - len(kept) == 8
    assert without_attributes(ROUTE, frozenset()) == ROUTE


@given(st.binary(max_size=200))
def test_no_bytes_break_a_decoder(data: bytes) -> None:
    for decoder in (decode_address, decode_link, decode_route):
        decoder(data)
    list(decode_messages(data))
    without_attributes(data, frozenset((1,)))


@given(st.integers(1, 100), st.binary(max_size=40))
def test_attributes_survive_the_wire_padded(kind: int, value: bytes) -> None:
    data = encode_attribute(kind, value)
    assert len(data) % 4 == 0
    assert decode_attributes(data, 0) == {kind: value}


def test_a_kernel_refusal_carries_the_kernels_errno() -> None:
    with Rtnetlink() as kernel, pytest.raises(OSError, match=r"No such device|Operation not permitted"):
        kernel.set_up(0x7FFFFFF0)


def test_the_loopback_interface_is_seen_as_the_kernel_shows_it() -> None:
    with Rtnetlink() as kernel:
        link = kernel.link(socket.if_nametoindex("lo"))
        assert link is not None
        assert link.is_loopback
        assert not link.speaks_arp
        assert [one.name for one in kernel.links()].count("lo") == 1
        assert kernel.link(0x7FFFFFF0) is None
