"""Asks the wire every 50 ms who has an address: `arp_watch.py NIC ADDRESS` prints "<monotonic s> <MAC>" per answer.

An address that answers from two MACs to one question is active twice, whatever the nodes themselves believe.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import sys
import time

INTERVAL_S = 0.05
ETHERTYPE_ARP = 0x0806
SIOCGIFADDR = 0x8915


def own_address(nic: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("16s240x", nic.encode()))[20:24]


def request(mac: bytes, own: bytes, address: bytes) -> bytes:
    """An ARP request (RFC 826) with our address: without one it is a probe, and counts as a conflict (RFC 5227)."""
    ethernet = b"\xff" * 6 + mac + struct.pack(">H", ETHERTYPE_ARP)
    return ethernet + struct.pack(">HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, own, bytes(6), address)


def main() -> None:
    nic, address = sys.argv[1], socket.inet_aton(sys.argv[2])
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE_ARP))
    link.bind((nic, ETHERTYPE_ARP))
    mac, own = link.getsockname()[4], own_address(nic)
    due = time.monotonic()
    while True:
        link.send(request(mac, own, address))
        due += INTERVAL_S
        while (left := due - time.monotonic()) > 0:
            if not select.select([link], [], [], left)[0]:
                break
            frame = link.recv(2048)
            operation, sender_mac, sender = struct.unpack_from(">H6s4s", frame, 20)
            if operation == 2 and sender == address and frame[0:6] == mac:
                print(f"{time.monotonic():.4f} {sender_mac.hex(':')}", flush=True)


if __name__ == "__main__":
    main()
