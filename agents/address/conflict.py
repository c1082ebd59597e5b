"""Does another host use the address? RFC 5227 in the time a failover can afford, decided early when one answers."""

from __future__ import annotations

import time
from _socket import AF_PACKET, SOCK_CLOEXEC, SOCK_RAW, socket

from agents.address.arp import ETH_P_ARP, claimant, probe
from agents.address.model import Link

PROBE_COUNT = 3
OUTGOING = 4  # PACKET_OUTGOING: our own frames, as packet sockets see them


def find_claimant(link: Link, ip: int, own_macs: frozenset[bytes], wait_ms: int) -> bytes | None:
    """MAC of another host that uses or probes `ip`; None when nobody answered three probes within `wait_ms`.

    Returns at the first claim. Raises OSError when the interface is down or gone.
    """
    end = time.monotonic() + wait_ms / 1000
    spacing = wait_ms / 1000 / PROBE_COUNT
    wire = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0)
    try:
        wire.bind((link.name, ETH_P_ARP))
        for sent in range(1, PROBE_COUNT + 1):
            wire.send(probe(link.mac, ip))
            until = end - (PROBE_COUNT - sent) * spacing
            while (left := until - time.monotonic()) > 0:
                wire.settimeout(left)
                try:
                    frame, address = wire.recvfrom(2048)
                except TimeoutError:
                    break
                found = None if address[2] == OUTGOING else claimant(frame, ip, own_macs)
                if found is not None:
                    return found
    finally:
        wire.close()
    return None
