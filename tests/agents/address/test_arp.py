"""ARP frames, and who claims an address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.address.arp import REPLY, REQUEST, UNKNOWN_MAC, Arp, announcement, claimant, decode, encode, probe
from agents.address.model import parse_ipv4

MINE, THEIRS = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
IP, OTHER = parse_ipv4("10.0.0.50"), parse_ipv4("10.0.0.9")
OWN = frozenset((MINE,))


def test_a_probe_on_the_wire_is_the_frame_of_rfc_5227() -> None:
    assert probe(MINE, IP).hex() == (
        "ffffffffffff" "020000000001" "0806" "0001" "0800" "06" "04" "0001"
        "020000000001" "00000000" "000000000000" "0a000032"
    )  # fmt: skip


def test_an_announcement_names_the_address_as_sender_and_target() -> None:
    for operation in (REQUEST, REPLY):
        arp = decode(announcement(operation, MINE, IP))
        assert arp is not None
        assert (arp.operation, arp.sender_mac, arp.sender_ip, arp.target_ip) == (operation, MINE, IP, IP)


@given(
    st.builds(
        Arp,
        st.integers(0, 0xFFFF),
        st.binary(min_size=6, max_size=6),
        st.integers(0, 0xFFFFFFFF),
        st.binary(min_size=6, max_size=6),
        st.integers(0, 0xFFFFFFFF),
    )
)
def test_every_frame_survives_the_wire(arp: Arp) -> None:
    assert decode(encode(arp)) == arp
    assert decode(encode(arp) + bytes(18)) == arp  # padded to Ethernet's minimum


@given(st.binary(max_size=64))
def test_rubbish_is_not_a_claim(frame: bytes) -> None:
    assert decode(frame) is None or len(frame) >= 42
    claimant(frame, IP, OWN)


@pytest.mark.parametrize(
    ("arp", "is_claim"),
    [
        (Arp(REPLY, THEIRS, IP, MINE, 0), True),  # its owner answers our probe
        (Arp(REQUEST, THEIRS, IP, UNKNOWN_MAC, OTHER), True),  # its owner talks to somebody else
        (Arp(REQUEST, THEIRS, IP, UNKNOWN_MAC, IP), True),  # its owner announces itself
        (Arp(REQUEST, THEIRS, 0, UNKNOWN_MAC, IP), True),  # another host is about to take it
        (Arp(REQUEST, MINE, 0, UNKNOWN_MAC, IP), False),  # our own probe, sent back by a switch
        (Arp(REPLY, MINE, IP, THEIRS, OTHER), False),  # our own old claim
        (Arp(REQUEST, THEIRS, OTHER, UNKNOWN_MAC, IP), False),  # a client looks for the address
        (Arp(REQUEST, THEIRS, 0, UNKNOWN_MAC, OTHER), False),  # a probe for something else
    ],
)
def test_only_foreign_users_and_probers_of_the_address_are_claimants(arp: Arp, is_claim: bool) -> None:
    assert claimant(encode(arp), IP, OWN) == (THEIRS if is_claim else None)
