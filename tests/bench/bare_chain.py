"""The floor under a mirrored write of depth 1: its system calls, with nothing between them.

    python -m tests.bench.bare_chain primary FILE SOCKET ADDRESS PORT
    python -m tests.bench.bare_chain replica FILE ADDRESS PORT

A client's write is received, sent to the replica, written here, written there, acknowledged and answered: one call for
each of these steps, with blocking sockets, for one client that has one request under way. No metadata, no epochs, no
time-outs, no second client: nobody may use it. What the mirror needs beyond it is the mirror's own. One that polls
instead of sleeping could be faster than this, at the price of two processors.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

from replication.protocol.nbd import GREETING, Export, Handshake, Phase

HEAD = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")
REPLY_MAGIC = 0x67446698
WRITE, DISCONNECT = 1, 2
ACK = b"\1"
DATA_MAX = 1 << 20


def primary(file: int, path: str, address: str, port: int) -> None:
    replica = socket.create_connection((address, port))
    replica.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    buffer = memoryview(bytearray(HEAD.size + DATA_MAX))
    answer, acknowledged = bytearray(REPLY.size), bytearray(1)
    while True:
        client = listener.accept()[0]
        _negotiate(client, Export(os.fstat(file).st_size))
        while got := client.recv_into(buffer):
            while got < HEAD.size:
                got += client.recv_into(buffer[got:])
            _, _, command, cookie, offset, length = HEAD.unpack_from(buffer)
            if command == DISCONNECT:
                break
            if command == WRITE:
                end = HEAD.size + length
                while got < end:
                    got += client.recv_into(buffer[got:])
                replica.sendall(buffer[:end])
                os.pwrite(file, buffer[HEAD.size : end], offset)
                replica.recv_into(acknowledged)
            REPLY.pack_into(answer, 0, REPLY_MAGIC, 0, cookie)
            client.send(answer)
        client.close()


def replica(file: int, address: str, port: int) -> None:
    listener = socket.create_server((address, port))
    primary_side = listener.accept()[0]
    primary_side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(bytearray(HEAD.size + DATA_MAX))
    while got := primary_side.recv_into(buffer):
        while got < HEAD.size:
            got += primary_side.recv_into(buffer[got:])
        _, _, _, _, offset, length = HEAD.unpack_from(buffer)
        end = HEAD.size + length
        while got < end:
            got += primary_side.recv_into(buffer[got:])
        os.pwrite(file, buffer[HEAD.size : end], offset)
        primary_side.send(ACK)


def _negotiate(client: socket.socket, export: Export) -> None:
    handshake = Handshake(export)
    client.sendall(GREETING)
    received = b""
    while handshake.phase is not Phase.TRANSMISSION:
        received += client.recv(65536)
        consumed, answer = handshake.receive(memoryview(received))
        received = received[consumed:]
        client.sendall(answer)


if __name__ == "__main__":
    descriptor = os.open(sys.argv[2], os.O_RDWR)
    if sys.argv[1] == "primary":
        primary(descriptor, sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        replica(descriptor, sys.argv[3], int(sys.argv[4]))
