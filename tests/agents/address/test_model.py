"""IPv4 numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.address.model import broadcast_of, network_of, parse_ipv4, prefix_of_netmask, show_ipv4


@given(st.integers(0, 0xFFFFFFFF))
def test_every_address_survives_being_written_and_read(number: int) -> None:
    assert parse_ipv4(show_ipv4(number)) == number


@pytest.mark.parametrize(
    "text", ["", "10.0.0", "10.0.0.0.1", "10.0.0.256", "10.0.0.01", "0x0a.0.0.1", "10.0.0.-1", "a.b.c.d", "::1", "10.1"]
)
def test_only_strict_dotted_quads_are_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="must be an IPv4 address"):
        parse_ipv4(text)


def test_network_and_broadcast_of_an_address() -> None:
    ip = parse_ipv4("10.1.2.50")
    assert show_ipv4(network_of(ip, 24)) == "10.1.2.0"
    assert show_ipv4(broadcast_of(ip, 24)) == "10.1.2.255"
    assert show_ipv4(broadcast_of(ip, 32)) == "10.1.2.50"


@pytest.mark.parametrize(("mask", "prefix_len"), [("255.255.255.0", 24), ("255.255.255.255", 32), ("128.0.0.0", 1)])
def test_netmasks_are_prefix_lengths(mask: str, prefix_len: int) -> None:
    assert prefix_of_netmask(parse_ipv4(mask)) == prefix_len


def test_a_netmask_with_holes_is_refused() -> None:
    with pytest.raises(ValueError, match="prefix length"):
        prefix_of_netmask(parse_ipv4("255.0.255.0"))
