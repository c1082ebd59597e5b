"""Take the virtual address off an interface so that nothing else goes with it, whenever we may be killed.

Order: make secondaries survive → write down what could be lost → delete → put back what was lost → forget the list.
A list found by a later stop or start is worked off first.
"""

from __future__ import annotations

import errno

from agents.address.decide import Keepsakes, at_risk, lost
from agents.address.model import Address, Link, Route, show_ipv4
from agents.address.netlink import Rtnetlink, decode_address, decode_route, encode_address
from agents.address.settings import WANTED, apply
from agents.ocf.log import Log
from agents.ocf.state import Record

GONE = (errno.EADDRNOTAVAIL, errno.ENODEV)


def remove(kernel: Rtnetlink, link: Link, copies: list[Address], record: Record, claimed: set[str], log: Log) -> None:
    """Delete all copies of one address from one interface. The caller holds the interface's lock.

    claimed   addresses other resources look after themselves: not written down, since they may be stopped before the
              list is worked off, and must not come back then

    Raises OSError when the kernel refuses the deletion.
    """
    ip = copies[0].local
    apply(link.name, {"promote_secondaries": WANTED["promote_secondaries"]}, log)
    kept = at_risk(ip, link.index, kernel.addresses(), routes_of(kernel, link, ip))
    lasting = Keepsakes([one for one in kept.addresses if show_ipv4(one.local) not in claimed], kept.routes)
    if lasting.addresses or lasting.routes:
        write_down(record, link, ip, lasting, log)
    for copy in copies:
        try:
            kernel.delete_address(copy)
        except OSError as error:
            if error.errno not in GONE:
                raise
    put_back(kernel, link, ip, kept, log)
    record.remove()


def routes_of(kernel: Rtnetlink, link: Link, ip: int) -> list[Route]:
    """Routes over the interface, and those over others that prefer the address as source: the kernel drops both."""
    others = [route for route in kernel.routes_preferring(ip) if route.index != link.index]
    return kernel.routes(link.index) + others


def put_back(kernel: Rtnetlink, link: Link, ip: int, kept: Keepsakes, log: Log) -> None:
    """Re-add what is missing. A route the kernel refuses now depended on the virtual address; it is only logged."""
    if not kept.addresses and not kept.routes:
        return
    indexes = {link.index, *(route.index for route in kept.routes)}

    def routes() -> list[Route]:
        return [route for index in indexes for route in kernel.routes(index)]

    for address in lost(ip, kept, kernel.addresses(), routes()).addresses:
        log.warning(f"{address} vanished with {show_ipv4(ip)}; adding it again")
        try:
            kernel.add_address(address)
        except OSError as error:
            _refused(f"address {address}", error, log)
    # with their addresses some routes are back already
    for route in lost(ip, kept, kernel.addresses(), routes()).routes:
        log.warning(f"route {route} vanished with {show_ipv4(ip)}; adding it again")
        try:
            kernel.add_route(route, keep_source=route.preferred_source != ip)
        except OSError as error:
            _refused(f"route {route}", error, log)


def _refused(what: str, error: OSError, log: Log) -> None:
    if error.errno != errno.EEXIST:  # the kernel or somebody else was faster: fine
        log.error(f"{what} could not be added again: {error.strerror}")


def write_down(record: Record, link: Link, ip: int, kept: Keepsakes, log: Log) -> None:
    """A full or read-only disk must not keep the address up: then only a kill in the next millisecond would hurt."""
    try:
        record.write(
            {
                "nic": link.name,
                "index": str(link.index),
                "ip": str(ip),
                "addresses": " ".join(encode_address(address).hex() for address in kept.addresses),
                "routes": " ".join(route.payload.hex() for route in kept.routes),
            }
        )
    except OSError as error:
        log.warning(f"{record.path} not written: {error.strerror}")


def repair(kernel: Rtnetlink, record: Record, claimed: set[str], log: Log) -> None:
    """Work off the list of a stop that was killed. `claimed`: addresses other resources look after themselves."""
    pairs = record.read()
    if pairs:
        link = kernel.link(int(pairs["index"]))
        if link is not None and link.name == pairs["nic"]:
            addresses = [decode_address(bytes.fromhex(word)) for word in pairs["addresses"].split()]
            routes = [decode_route(bytes.fromhex(word)) for word in pairs["routes"].split()]
            kept = Keepsakes(
                [one for one in addresses if one is not None and show_ipv4(one.local) not in claimed],
                [one for one in routes if one is not None],
            )
            put_back(kernel, link, int(pairs["ip"]), kept, log)
    record.remove()
