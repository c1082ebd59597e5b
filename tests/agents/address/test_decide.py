"""Decisions about a virtual address, row by row."""

from __future__ import annotations

from typing import Any

import pytest

from agents.address.announce import pauses
from agents.address.decide import (
    PROTOCOL_KERNEL,
    SCOPE_LINK,
    TABLE_LOCAL,
    Wish,
    at_risk,
    choose_address,
    choose_link,
    contradiction,
    judge,
    link_trouble,
    lost,
)
from agents.address.model import IFA_F_NOPREFIXROUTE, IFA_F_SECONDARY, IFF_LOOPBACK, IFF_UP, Address, Link, Route
from agents.address.model import parse_ipv4 as ip
from agents.ocf.exit_code import (
    ERR_ARGS,
    ERR_CONFIGURED,
    ERR_GENERIC,
    ERR_INSTALLED,
    NOT_RUNNING,
    SUCCESS,
    AgentError,
    OcfExit,
)

VIP = ip("10.0.0.50")
LO = Link(1, "lo", flags=IFF_UP | IFF_LOOPBACK, carrier=True)
ETH0 = Link(2, "eth0", flags=IFF_UP, carrier=True, mac=bytes(6))
ETH1 = Link(3, "eth1", flags=IFF_UP, carrier=True, mac=bytes(6))
UNPLUGGED = Link(2, "eth0", flags=IFF_UP, carrier=False)
OFF = Link(2, "eth0", flags=0, carrier=False)
GUESTS = Link(4, "virbr0", flags=IFF_UP, carrier=True)
LINKS = [LO, ETH0, ETH1, GUESTS]


def net(index: int, network: str, prefix_len: int, source: str = "", **more: Any) -> Route:
    """A connected network, as the kernel makes one with an address."""
    preferred = ip(source) if source else None
    return Route(
        index, ip(network), prefix_len, scope=SCOPE_LINK, protocol=PROTOCOL_KERNEL, preferred_source=preferred, **more
    )


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "prefix_len", "word"),
    [
        ("127.0.0.5", 0, "loopback"),
        ("224.0.0.5", 0, "multicast"),
        ("0.0.0.5", 0, "0.x"),
        ("255.255.255.255", 0, "broadcast"),
        ("10.0.0.0", 24, "address of its network"),
        ("10.0.0.255", 24, "broadcast address of its network"),
    ],
)
def test_an_address_no_host_can_have_is_refused(address: str, prefix_len: int, word: str) -> None:
    assert word in contradiction(Wish(ip(address), prefix_len=prefix_len))


@pytest.mark.parametrize(("address", "prefix_len"), [("10.0.0.0", 31), ("10.0.0.255", 32), ("10.0.0.255", 16)])
def test_small_and_large_networks_have_other_host_addresses(address: str, prefix_len: int) -> None:
    assert contradiction(Wish(ip(address), prefix_len=prefix_len)) == ""


def test_a_label_too_long_for_any_interface_of_the_list_is_refused() -> None:
    assert contradiction(Wish(VIP, nics=("eth0",), label="shop")) == ""
    assert "shorten iflabel" in contradiction(Wish(VIP, nics=("eth0", "enp12s0f1"), label="virtual"))


# --- which interface --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("links", "chosen"),
    [
        ([LO, ETH0, ETH1], "eth0"),
        ([LO, UNPLUGGED, ETH1], "eth1"),
        ([LO, OFF, ETH1], "eth1"),
        ([LO, OFF], "eth0"),
        ([LO, ETH1], "eth1"),
    ],
)
def test_the_first_interface_of_the_list_with_carrier_is_taken_or_else_the_first(
    links: list[Link], chosen: str
) -> None:
    assert choose_link(Wish(VIP, nics=("eth0", "eth1")), [], links, []).name == chosen


def test_a_named_interface_that_is_missing_bans_this_node_only() -> None:
    with pytest.raises(AgentError) as caught:
        choose_link(Wish(VIP, nics=("bond0",)), [], LINKS, [net(2, "10.0.0.0", 24)])
    assert (caught.value.exit, "bond0 does not exist" in caught.value.reason) == (ERR_INSTALLED, True)


@pytest.mark.parametrize(
    ("routes", "chosen"),
    [
        ([net(2, "10.0.0.0", 24), net(3, "10.0.0.0", 16)], "eth0"),
        ([net(2, "10.0.0.0", 8), net(3, "10.0.0.0", 16)], "eth1"),
        ([net(2, "10.0.0.0", 24, priority=100), net(3, "10.0.0.0", 24, priority=50)], "eth1"),
        ([net(4, "10.0.0.0", 24), net(3, "10.0.0.0", 16)], "eth1"),  # never a guests' bridge
        ([net(2, "10.0.0.0", 24, "10.0.0.50"), net(3, "10.0.0.0", 16)], "eth1"),  # not the route the address made
    ],
)
def test_without_a_name_the_smallest_connected_network_decides(routes: list[Route], chosen: str) -> None:
    assert choose_link(Wish(VIP), [], LINKS, routes).name == chosen


@pytest.mark.parametrize(
    "routes",
    [
        [],
        [net(2, "10.1.0.0", 24)],
        [Route(2, 0, 0, gateway=True)],  # a default route does not make a neighbour
        [Route(2, ip("10.0.0.0"), 24, gateway=True)],
        [net(2, "10.0.0.0", 24, table=100)],
    ],
)
def test_without_a_connected_network_the_operator_must_name_the_interface(routes: list[Route]) -> None:
    with pytest.raises(AgentError) as caught:
        choose_link(Wish(VIP), [], LINKS, routes)
    assert (caught.value.exit, caught.value.reason.endswith("set nic")) == (ERR_ARGS, True)


# --- which address ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "addresses", "routes", "expected"),
    [
        (Wish(VIP, prefix_len=20), [], [net(2, "10.0.0.0", 24)], "10.0.0.50/20@2"),
        (Wish(VIP), [], [net(2, "10.0.0.0", 24)], "10.0.0.50/24@2"),
        (Wish(VIP), [], [net(2, "10.0.0.0", 16), net(3, "10.0.0.0", 24)], "10.0.0.50/16@2"),
        (Wish(VIP), [], [], "10.0.0.50/32@2"),
        # the address is there already: as first of its network, or alone
        (Wish(VIP), [Address(2, VIP, 24), Address(2, VIP + 1, 24)], [net(2, "10.0.0.0", 24, "10.0.0.50")], "/24@2"),
        (Wish(VIP), [Address(2, VIP, 28)], [net(2, "10.0.0.48", 28, "10.0.0.50")], "/28@2"),
        (Wish(VIP), [Address(2, VIP, 32), Address(2, VIP + 1, 24)], [net(2, "10.0.0.0", 24)], "/24@2"),
    ],
)
def test_the_prefix_comes_from_the_configuration_the_network_or_the_copy_there(
    wish: Wish, addresses: list[Address], routes: list[Route], expected: str
) -> None:
    assert repr(choose_address(wish, ETH0, addresses, routes)).endswith(expected)


@pytest.mark.parametrize(
    ("broadcast", "prefix_len", "expected"),
    [
        ("", 24, "10.0.0.255"),
        ("+", 24, "10.0.0.255"),
        ("-", 24, "10.0.0.0"),
        ("10.0.9.9", 24, "10.0.9.9"),
        ("", 32, None),
        ("+", 31, None),
    ],
)
def test_the_broadcast_address_is_derived_unless_given(broadcast: str, prefix_len: int, expected: str | None) -> None:
    chosen = choose_address(Wish(VIP, prefix_len=prefix_len, broadcast=broadcast), ETH0, [], [])
    assert chosen.broadcast == (ip(expected) if expected else None)


def test_label_and_route_flag_go_into_the_address() -> None:
    chosen = choose_address(Wish(VIP, label="shop", noprefixroute=True), ETH0, [], [])
    assert chosen.label == "eth0:shop"
    assert chosen.flags & IFA_F_NOPREFIXROUTE


def test_an_address_that_turns_out_to_be_the_networks_own_is_refused() -> None:
    with pytest.raises(AgentError) as caught:
        choose_address(Wish(ip("10.0.0.255")), ETH0, [], [net(2, "10.0.0.0", 24)])
    assert caught.value.exit == ERR_CONFIGURED


# --- monitor ----------------------------------------------------------------------------------------------------------

BOTH = {2: ETH0, 3: ETH1, 1: LO}


@pytest.mark.parametrize(
    ("wish", "copies", "code", "word"),
    [
        (Wish(VIP), [], NOT_RUNNING, ""),
        (Wish(VIP), [Address(1, VIP, 32)], NOT_RUNNING, ""),  # on loopback for a load balancer
        (Wish(VIP), [Address(2, VIP, 24)], SUCCESS, ""),
        (Wish(VIP, nics=("eth0", "eth1")), [Address(3, VIP, 24)], SUCCESS, ""),
        (Wish(VIP, nics=("eth0",), prefix_len=24), [Address(2, VIP, 24)], SUCCESS, ""),
        (Wish(VIP, nics=("eth0",)), [Address(3, VIP, 24)], ERR_GENERIC, "is on eth1"),
        (Wish(VIP, prefix_len=24), [Address(2, VIP, 32)], ERR_GENERIC, "prefix length 32 instead of 24"),
        (Wish(VIP), [Address(2, VIP, 24), Address(3, VIP, 24)], ERR_GENERIC, "eth0 and eth1"),
        (Wish(VIP), [Address(9, VIP, 24)], NOT_RUNNING, ""),  # its interface vanished meanwhile
    ],
)
def test_a_monitor_says_seven_only_when_the_address_is_nowhere(
    wish: Wish, copies: list[Address], code: OcfExit, word: str
) -> None:
    found, reason = judge(wish, copies, BOTH)
    assert found == code
    assert word in reason


@pytest.mark.parametrize(
    ("link", "policy", "word"),
    [
        (ETH0, "carrier", ""),
        (UNPLUGGED, "carrier", "no carrier"),
        (OFF, "carrier", "administratively down"),
        (UNPLUGGED, "admin", ""),
        (OFF, "admin", "administratively down"),
        (OFF, "none", ""),
        (Link(2, "tun0", flags=IFF_UP, carrier=None), "carrier", ""),  # the driver does not say
    ],
)
def test_the_link_check_demands_what_it_was_told_to(link: Link, policy: str, word: str) -> None:
    trouble = link_trouble(link, policy)
    assert (word in trouble) if word else trouble == ""


# --- removal ----------------------------------------------------------------------------------------------------------

OWN = Address(2, ip("10.0.0.1"), 24)
VIP_SECOND = Address(2, VIP, 24, flags=IFA_F_SECONDARY)
VIP_FIRST = Address(2, VIP, 24)
OWN_SECOND = Address(2, ip("10.0.0.1"), 24, flags=IFA_F_SECONDARY)
ELSEWHERE = Address(2, ip("192.168.0.1"), 24, flags=IFA_F_SECONDARY)
DEFAULT = Route(2, 0, 0, gateway=True)
TO_NEIGHBOUR = Route(2, ip("10.9.0.0"), 16, scope=SCOPE_LINK)
CONNECTED = net(2, "10.0.0.0", 24, "10.0.0.50")
VIA_VIP = Route(2, ip("10.8.0.0"), 16, gateway=True, preferred_source=VIP)
LOCAL = Route(2, VIP, 32, table=TABLE_LOCAL)
ROUTES = [DEFAULT, TO_NEIGHBOUR, CONNECTED, VIA_VIP, LOCAL]


def test_a_secondary_takes_only_routes_along_that_prefer_it_as_source() -> None:
    kept = at_risk(VIP, 2, [OWN, VIP_SECOND, ELSEWHERE], ROUTES)
    assert (kept.addresses, kept.routes) == ([], [VIA_VIP])


def test_a_primary_endangers_the_secondaries_of_its_subnet_and_all_configured_routes() -> None:
    kept = at_risk(VIP, 2, [VIP_FIRST, OWN_SECOND, ELSEWHERE], ROUTES)
    assert (kept.addresses, kept.routes) == ([OWN_SECOND], [DEFAULT, TO_NEIGHBOUR, VIA_VIP])


def test_a_route_over_another_interface_that_prefers_the_address_is_at_risk_too() -> None:
    elsewhere = Route(3, 0, 0, gateway=True, preferred_source=VIP)
    assert at_risk(VIP, 2, [OWN, VIP_SECOND], [elsewhere]).routes == [elsewhere]
    assert at_risk(VIP, 2, [VIP_FIRST], [Route(3, 0, 0, gateway=True)]).routes == []


def test_only_the_loopback_interface_itself_is_passed_over_and_not_all_whose_name_begins_alike() -> None:
    onboard = Link(4, "lom1", flags=IFF_UP, carrier=True)
    assert choose_link(Wish(VIP), [], [onboard], [net(4, "10.0.0.0", 24)]) is onboard


def test_a_label_is_measured_in_the_bytes_that_the_kernel_counts() -> None:
    assert "longer" in contradiction(Wish(VIP, nics=("eth0",), label="商店街一"))
    assert contradiction(Wish(VIP, nics=("eth0",), label="商店")) == ""


def test_nothing_is_at_risk_when_the_address_is_not_there() -> None:
    kept = at_risk(VIP, 2, [OWN], [DEFAULT, TO_NEIGHBOUR, CONNECTED])
    assert (kept.addresses, kept.routes) == ([], [])


def test_only_what_is_missing_comes_back_and_neighbours_before_gateways() -> None:
    kept = at_risk(VIP, 2, [VIP_FIRST, OWN_SECOND], ROUTES)
    missing = lost(VIP, kept, [], [VIA_VIP])
    assert (missing.addresses, missing.routes) == ([OWN_SECOND], [TO_NEIGHBOUR, DEFAULT])
    assert lost(VIP, kept, [OWN], ROUTES).addresses == []  # promoted to primary meanwhile


# --- announcements ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "interval_ms", "repeat_s", "waits"),
    [
        (5, 200, 5.0, [0.2] * 4 + [5.0] + [0.2] * 4),
        (5, 200, 0, [0.2] * 4),
        (1, 200, 0, []),
        (1, 200, 3, [3]),
        (0, 200, 5.0, []),
    ],
)
def test_the_burst_is_repeated_once_after_its_delay(
    count: int, interval_ms: int, repeat_s: float, waits: list[float]
) -> None:
    assert pauses(count, interval_ms, repeat_s) == waits
