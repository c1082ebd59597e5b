"""What to do about one virtual address, given what the kernel says. Pure: no socket, file, clock.

The agent reads addresses, links and routes, asks here, and acts. Trouble comes back as AgentError with the exit code
that makes the manager react rightly (2 and 5 ban a node, 6 all nodes, 1 retries).
"""

from __future__ import annotations

from agents.address.model import (
    IFA_F_NOPREFIXROUTE,
    IFA_F_PERMANENT,
    Address,
    Link,
    Route,
    broadcast_of,
    network_of,
    parse_ipv4,
    show_ipv4,
)
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

# never chosen without being named: guests', containers' and management-controller networks
NOT_CHOSEN = ("virbr", "docker", "veth", "br-", "cni", "flannel", "cali", "usb", "dummy", "vnet", "tap")
LABEL_LIMIT = 15
TABLE_MAIN, TABLE_LOCAL = 254, 255
SCOPE_LINK = 253
PROTOCOL_KERNEL = 2


class Wish:
    """What the configuration asks for. `prefix_len` 0 and empty `nics` = find out; `broadcast` as configured."""

    def __init__(
        self,
        ip: int,
        *,
        prefix_len: int = 0,
        nics: tuple[str, ...] = (),
        label: str = "",
        broadcast: str = "",
        noprefixroute: bool = False,
    ) -> None:
        self.ip = ip
        self.prefix_len = prefix_len
        self.nics = nics
        self.label = label
        self.broadcast = broadcast
        self.noprefixroute = noprefixroute


# --- configuration -----------------------------------------------------------------------------------------------


def contradiction(wish: Wish) -> str:
    """Why no node could ever hold this address; "" when one could."""
    shown = show_ipv4(wish.ip)
    if wish.ip >> 28 == 14 or wish.ip >> 24 in (0, 127) or wish.ip == 0xFFFFFFFF:
        return f"ip {shown} is not an address a host can have (loopback, multicast, broadcast or 0.x)"
    if 0 < wish.prefix_len < 31:
        if wish.ip == network_of(wish.ip, wish.prefix_len):
            return f"ip {shown}/{wish.prefix_len} is the address of its network; choose a host address"
        if wish.ip == broadcast_of(wish.ip, wish.prefix_len):
            return f"ip {shown}/{wish.prefix_len} is the broadcast address of its network; choose a host address"
    for nic in wish.nics:
        if wish.label and len(f"{nic}:{wish.label}".encode("utf-8", "replace")) > LABEL_LIMIT:
            return f"label {nic}:{wish.label} is longer than {LABEL_LIMIT} bytes; shorten iflabel"
    return ""


# --- where ---------------------------------------------------------------------------------------------------------


def is_managed(wish: Wish, link: Link | None) -> bool:
    """May this resource put its address there, and must stop remove it from there?"""
    if link is None or link.is_loopback:
        return False
    return link.name in wish.nics if wish.nics else True


def choose_link(wish: Wish, addresses: list[Address], links: list[Link], routes: list[Route]) -> Link:
    """The interface to hold the address: an early one of the list that has carrier, or the one of the subnet.

    Raises AgentError: 5 when none of the named interfaces exists here, 2 when no connected network holds the address.
    """
    if wish.nics:
        by_name = {link.name: link for link in links}
        present = [by_name[name] for name in wish.nics if name in by_name]
        if not present:
            names = " ".join(wish.nics)
            raise AgentError(ERR_INSTALLED, f"network interface {names} does not exist on this node; correct nic")
        return next((link for link in present if link.has_carrier), present[0])
    by_index = {link.index: link for link in links if not link.is_loopback and not link.name.startswith(NOT_CHOSEN)}
    fitting = [route for route in connected(wish.ip, routes) if route.index in by_index]
    if fitting:
        best = min(fitting, key=lambda route: (-route.prefix_len, route.priority))
        return by_index[best.index]
    holding = [address.index for address in addresses if address.local == wish.ip and address.index in by_index]
    if holding:
        return by_index[holding[0]]
    raise AgentError(
        ERR_ARGS, f"no network interface of this node is connected to the network of {show_ipv4(wish.ip)}; set nic"
    )


def connected(ip: int, routes: list[Route]) -> list[Route]:
    """Directly connected networks that contain `ip`, without the network that `ip` itself brought along."""
    return [
        route
        for route in routes
        if route.table == TABLE_MAIN
        and route.scope == SCOPE_LINK
        and not route.gateway
        and 0 < route.prefix_len < 32
        and network_of(ip, route.prefix_len) == route.destination
        and route.preferred_source != ip
    ]


def choose_address(wish: Wish, link: Link, addresses: list[Address], routes: list[Route]) -> Address:
    """The address to add: prefix length from the configuration, the connected network, or a copy already there.

    Raises AgentError (6) when the label is too long, the broadcast address malformed or the host part impossible.
    """
    copies = [address for address in addresses if address.local == wish.ip and address.index == link.index]
    networks = [route.prefix_len for route in connected(wish.ip, routes) if route.index == link.index]
    # our own copy may be the primary of its network, whose route then names it as source
    siblings = [
        address.prefix_len
        for address in addresses
        if address.index == link.index
        and address.local != wish.ip
        and 0 < address.prefix_len < 32
        and network_of(wish.ip, address.prefix_len) == network_of(address.local, address.prefix_len)
    ]
    prefix_len = wish.prefix_len or max([*networks, *siblings], default=copies[0].prefix_len if copies else 32)
    settled = Wish(wish.ip, prefix_len=prefix_len, nics=(link.name,), label=wish.label)
    trouble = contradiction(settled)
    if trouble:
        raise AgentError(ERR_CONFIGURED, trouble)
    return Address(
        link.index,
        wish.ip,
        prefix_len,
        broadcast=choose_broadcast(wish, prefix_len),
        label=f"{link.name}:{wish.label}" if wish.label else link.name,
        flags=IFA_F_PERMANENT | (IFA_F_NOPREFIXROUTE if wish.noprefixroute else 0),
    )


def choose_broadcast(wish: Wish, prefix_len: int) -> int | None:
    """ "" and "+": all host bits one; "-": all host bits zero; None for /31 and /32. Raises AgentError (6)."""
    if wish.broadcast in ("", "+", "-") and prefix_len > 30:
        return None
    if wish.broadcast in ("", "+"):
        return broadcast_of(wish.ip, prefix_len)
    if wish.broadcast == "-":
        return network_of(wish.ip, prefix_len)
    try:
        return parse_ipv4(wish.broadcast)
    except ValueError as error:
        raise AgentError(ERR_CONFIGURED, f"parameter broadcast {error}, or + or -; not {wish.broadcast!r}") from None


# --- monitor -------------------------------------------------------------------------------------------------------


def judge(wish: Wish, copies: list[Address], links: dict[int, Link]) -> tuple[OcfExit, str]:
    """Exit code and reason for where the address is. `copies`: all of it; `links`: the interfaces they sit on.

    7 only when the address is nowhere (loopback apart): wherever else it is, it answers, and must be cleaned up.
    """
    shown = show_ipv4(wish.ip)
    seen = [copy for copy in copies if copy.index in links and not links[copy.index].is_loopback]
    if not seen:
        return NOT_RUNNING, ""
    foreign = [links[copy.index].name for copy in seen if not is_managed(wish, links[copy.index])]
    if foreign:
        return ERR_GENERIC, f"{shown} is on {foreign[0]}, but this resource keeps it on {' '.join(wish.nics)}"
    if wish.prefix_len and all(copy.prefix_len != wish.prefix_len for copy in seen):
        return ERR_GENERIC, f"{shown} has prefix length {seen[0].prefix_len} instead of {wish.prefix_len}"
    if len({copy.index for copy in seen}) > 1:
        names = " and ".join(links[copy.index].name for copy in seen)
        return ERR_GENERIC, f"{shown} is on {names} at the same time"
    return SUCCESS, ""


def link_trouble(link: Link, check_link: str) -> str:
    """What is wrong with the interface under the policy none, admin or carrier; "" = nothing."""
    if check_link != "none" and not link.is_up:
        return f"link {link.name} is administratively down; ip link set {link.name} up"
    if check_link == "carrier" and not link.has_carrier:
        return f"link {link.name} has no carrier; check cable and switch, or set check_link=admin"
    return ""


# --- what deleting an address may cost -------------------------------------------------------------------------------


class Keepsakes:
    """What must still be there after the virtual address is gone from one interface."""

    def __init__(self, addresses: list[Address], routes: list[Route]) -> None:
        self.addresses = addresses
        self.routes = routes


def at_risk(ip: int, index: int, addresses: list[Address], routes: list[Route]) -> Keepsakes:
    """What the kernel may take along when `ip` leaves the interface.

    Only a primary address takes others along: the secondaries of its subnet. With the last address of an interface go
    the routes over it that somebody configured, with their preferred source those over any interface; routes the kernel
    made itself come back with their addresses. The list is kept this narrow so that nobody else's deliberate removal is
    undone.
    """
    leaving = [address for address in addresses if address.index == index and address.local == ip]
    subnets = {address.subnet for address in leaving if not address.is_secondary}
    secondaries = [
        address for address in addresses if address.local != ip and address.is_secondary and address.subnet in subnets
    ]
    configured = [
        route
        for route in routes
        if (route.preferred_source == ip or (subnets and route.index == index))
        and route.table != TABLE_LOCAL
        and route.protocol != PROTOCOL_KERNEL
    ]
    return Keepsakes(secondaries, configured)


def lost(ip: int, kept: Keepsakes, addresses: list[Address], routes: list[Route]) -> Keepsakes:
    """Which keepsakes are missing now, in the order to put them back: routes to neighbours before those via them."""
    present = {address.key for address in addresses}
    present_routes = {route.key for route in routes}
    missing = [route for route in kept.routes if route.key not in present_routes]
    return Keepsakes(
        [address for address in kept.addresses if address.key not in present and address.local != ip],
        sorted(missing, key=lambda route: (-route.scope, route.gateway)),
    )
