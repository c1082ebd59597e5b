"""The disk server: one process is one disk of one node, and outlives the node's power cuts.

It serves NBD on one unix socket and takes orders on another, one JSON object a line, each answered by one line:
state, error, slow, hang, full, ok (faults, see faults.py), and freeze, power-loss, thaw (a power cut in three steps:
the disk falls silent, the host dies and the cache is lost, the host is back). A refused order is answered by an object
with `error` and `remedy`. One thread, no queue without a bound.
"""

import argparse
import errno
import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

if not __package__:
    sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3)))

from vagrant.namespaces.disk import nbd
from vagrant.namespaces.disk.cache import Keep, Loss
from vagrant.namespaces.disk.connection import Connection
from vagrant.namespaces.disk.faults import Faults, Operation, Refusal, after_order
from vagrant.namespaces.disk.medium import Medium

CONNECTIONS_MAX = 16
ORDER_BYTES_MAX = 65536
JOURNAL_BYTES = 32 << 20
SEND_BUFFER_BYTES = 1 << 20

_OPERATION: dict[int, Operation] = {
    nbd.Command.READ: Operation.READ,
    nbd.Command.WRITE: Operation.WRITE,
    nbd.Command.TRIM: Operation.WRITE,
    nbd.Command.WRITE_ZEROES: Operation.WRITE,
    nbd.Command.FLUSH: Operation.FLUSH,
}


class DiskServer:
    """Medium, faults, clients and orders of one disk."""

    def __init__(self, medium: Medium, data_socket: socket.socket, control_socket: socket.socket) -> None:
        self.medium = medium
        self.faults = Faults()
        self.frozen = False
        self.counts = {"reads": 0, "writes": 0, "flushes": 0, "trims": 0, "errors": 0}
        self._data_socket = data_socket
        self._connections: set[Connection] = set()
        self._events = selectors.DefaultSelector()
        self._events.register(data_socket, selectors.EVENT_READ, self._accept_client)
        self._events.register(control_socket, selectors.EVENT_READ, lambda mask: self._accept_operator(control_socket))

    @property
    def size_bytes(self) -> int:
        return self.medium.size_bytes

    @property
    def hung(self) -> bool:
        return self.faults.hung

    @property
    def latency_s(self) -> float:
        return self.faults.slow_ms / 1000

    def run(self) -> None:
        """Serve until the process is killed."""
        while True:
            for key, mask in self._events.select(self._patience_s()):
                # An earlier event of the same round may have ended this one's subject.
                if self._events.get_map().get(key.fd) is not None and self._events.get_key(key.fd).data is key.data:
                    key.data(mask)
            self._carry_out_due()

    def carry_out(self, request: nbd.Request) -> tuple[int, bytes]:
        """Answer one request as the disk with its present faults would: error number (0: none) and data read."""
        error = nbd.refusal(request, self.size_bytes)
        data = b""
        if error is None and self._is_bad(request):
            error = nbd.ErrorNumber.EIO
        if error is None:
            try:
                data = self._touch_medium(request)
            except OSError as failure:
                error = nbd.ErrorNumber.ENOSPC if failure.errno == errno.ENOSPC else nbd.ErrorNumber.EIO
        if error is not None:
            self.counts["errors"] += 1
            return error, b""
        return 0, data

    def _touch_medium(self, request: nbd.Request) -> bytes:
        command, flags, _, offset_bytes, length_bytes, payload = request
        stable = bool(flags & nbd.CommandFlag.FUA)
        if command == nbd.Command.READ:
            self.counts["reads"] += 1
            return self.medium.read(offset_bytes, length_bytes)
        if command == nbd.Command.WRITE:
            self._refuse_when_full(offset_bytes, length_bytes)
            self.counts["writes"] += 1
            self.medium.write(offset_bytes, payload, stable=stable)
        elif command == nbd.Command.FLUSH:
            self.counts["flushes"] += 1
            self.medium.flush()
        elif command == nbd.Command.WRITE_ZEROES and flags & nbd.CommandFlag.NO_HOLE:
            self._refuse_when_full(offset_bytes, length_bytes)
            self.counts["writes"] += 1
            self.medium.write_zeroes(offset_bytes, length_bytes, stable=stable)
        else:
            self.counts["trims"] += 1
            self.medium.give_back(offset_bytes, length_bytes, stable=stable)
        return b""

    def _is_bad(self, request: nbd.Request) -> bool:
        return self.faults.fails(_OPERATION[request.command], request.offset_bytes, request.length_bytes)

    def _refuse_when_full(self, offset_bytes: int, length_bytes: int) -> None:
        if self.faults.full and self.medium.would_allocate(offset_bytes, length_bytes):
            raise OSError(errno.ENOSPC, "the disk was ordered to be full")

    # Clients

    def _accept_client(self, mask: int) -> None:
        try:
            peer, _ = self._data_socket.accept()
        except BlockingIOError:
            return
        if len(self._connections) >= CONNECTIONS_MAX:
            peer.close()
            return
        peer.setblocking(False)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        connection = Connection(peer, self)
        self._connections.add(connection)
        self._step(connection, connection.advance)

    def _client_event(self, connection: Connection, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._step(connection, connection.writable)
        if mask & selectors.EVENT_READ and connection in self._connections and connection.wants_to_read():
            self._step(connection, connection.readable)

    def _step(self, connection: Connection, act: Callable[[], None]) -> None:
        try:
            act()
        except nbd.PeerError as error:
            print(f"client dropped: {error}", file=sys.stderr)
            connection.finished = True
        except OSError:
            connection.finished = True  # the client is gone
        if connection.finished:
            self._drop(connection)
        else:
            self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        wanted = 0
        if not self.frozen:
            wanted |= selectors.EVENT_READ if connection.wants_to_read() else 0
            wanted |= selectors.EVENT_WRITE if connection.wants_to_write() else 0
        known = self._events.get_map().get(connection.peer)
        if known is None and wanted:
            self._events.register(connection.peer, wanted, lambda mask: self._client_event(connection, mask))
        elif known is not None and not wanted:
            self._events.unregister(connection.peer)
        elif known is not None and known.events != wanted:
            self._events.modify(connection.peer, wanted, known.data)

    def _drop(self, connection: Connection) -> None:
        if self._events.get_map().get(connection.peer) is not None:
            self._events.unregister(connection.peer)
        connection.peer.close()
        self._connections.discard(connection)

    def _patience_s(self) -> float | None:
        if self.frozen:
            return None
        due = [moment for moment in (connection.next_due_s() for connection in self._connections) if moment is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _carry_out_due(self) -> None:
        if self.frozen:
            return
        now_s = time.monotonic()
        for connection in list(self._connections):
            due_s = connection.next_due_s()
            if due_s is not None and due_s <= now_s:
                self._step(connection, connection.advance)

    # Orders

    def _accept_operator(self, control_socket: socket.socket) -> None:
        try:
            peer, _ = control_socket.accept()
        except BlockingIOError:
            return
        peer.setblocking(False)
        received = bytearray()
        self._events.register(peer, selectors.EVENT_READ, lambda mask: self._operator_event(peer, received))

    def _operator_event(self, peer: socket.socket, received: bytearray) -> None:
        try:
            data = peer.recv(ORDER_BYTES_MAX)
            received += data
            while b"\n" in received:
                line, _, rest = received.partition(b"\n")
                received[:] = rest
                answer = json.dumps(self.obey(bytes(line))).encode() + b"\n"
                if peer.send(answer) < len(answer):
                    data = b""  # who does not read the answers gets no more of them
        except OSError:
            data = b""
        if not data or len(received) > ORDER_BYTES_MAX:
            self._events.unregister(peer)
            peer.close()

    def obey(self, line: bytes) -> dict[str, Any]:
        """Carry out one order as it came over the control socket; the answer to it."""
        try:
            order = json.loads(line)
        except ValueError as error:
            return {"error": f"the order is no JSON: {error}", "remedy": 'send one object a line, as {"do": "state"}'}
        if not isinstance(order, dict):
            return {"error": "the order is no JSON object", "remedy": 'send one object a line, as {"do": "state"}'}
        try:
            return self._carry_out_order(order)
        except Refusal as refusal:
            return {"error": refusal.fact, "remedy": refusal.remedy}

    def _carry_out_order(self, order: dict[str, Any]) -> dict[str, Any]:
        verb = order.get("do")
        if verb == "power-loss":
            return self._lose_power(order)
        if verb == "freeze":
            self._freeze()
        elif verb == "thaw":
            self._thaw()
        elif verb != "state":
            faults = after_order(self.faults, verb, order, self.size_bytes) if isinstance(verb, str) else None
            if faults is None:
                verbs = "state, error, slow, hang, full, ok, freeze, power-loss or thaw"
                raise Refusal(f"order {verb!r} is not known", f"do one of {verbs}")
            self.faults = faults
            if verb == "ok":
                self._release()
        return self.state()

    def state(self) -> dict[str, Any]:
        """What the disk is, was asked for, and would stand to lose."""
        return {
            "mode": "frozen" if self.frozen else "serving",
            "faults": self.faults.names(),
            "size_bytes": self.size_bytes,
            **self.counts,
            "unflushed_sectors": self.medium.cache.unflushed_sectors(),
            "connections": len(self._connections),
            "held_requests": sum(connection.held_count for connection in self._connections),
            "power_losses": self.medium.power_losses,
        }

    def _freeze(self) -> None:
        if not self.frozen:
            self.frozen = True
            self._events.unregister(self._data_socket)
            for connection in self._connections:
                self._watch(connection)

    def _lose_power(self, order: dict[str, Any]) -> dict[str, Any]:
        keep = order.get("keep", Keep.RANDOM.value)
        seed = order.get("seed")
        if keep not in [choice.value for choice in Keep]:
            raise Refusal(f"keep is {keep!r}", f"keep one of {', '.join(choice.value for choice in Keep)}")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise Refusal(f"seed is {seed!r}", "give a whole number, or none for one that differs each time")
        self._freeze()
        for connection in list(self._connections):
            self._drop(connection)
        self._drop_backlog()
        used_seed, loss = self.medium.lose_power(Keep(keep), seed)
        return {**self.state(), **_told(loss), "seed": used_seed}

    def _drop_backlog(self) -> None:
        while True:
            try:
                self._data_socket.accept()[0].close()
            except BlockingIOError:
                return

    def _thaw(self) -> None:
        if self.frozen:
            self.frozen = False
            self._events.register(self._data_socket, selectors.EVENT_READ, self._accept_client)
            self._release() if not self.faults.names() else self._advance()

    def _release(self) -> None:
        for connection in self._connections:
            connection.release()
        self._advance()

    def _advance(self) -> None:
        if not self.frozen:
            for connection in list(self._connections):
                self._step(connection, connection.advance)


def _told(loss: Loss) -> dict[str, int]:
    return {"sectors_at_risk": loss.at_risk, "kept": loss.kept, "lost": loss.lost}


def listen(path: str) -> socket.socket:
    """A unix socket at `path`, in the place of one whose server died. Raises OSError; EADDRINUSE if it is served."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:
            os.unlink(path)
    listener.bind(path)
    listener.listen(CONNECTIONS_MAX)
    listener.setblocking(False)
    return listener


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="server.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--size", type=int, required=True, metavar="BYTES", help="size of the disk, whole sectors")
    parser.add_argument("--socket", required=True, metavar="PATH", help="where to serve NBD")
    parser.add_argument("--control", required=True, metavar="PATH", help="where to take orders")
    parser.add_argument("--directory", required=True, metavar="DIR", help="file system that holds the unlinked file")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="what a power cut takes (default: 1)")
    options = parser.parse_args(arguments)
    if options.size < 512 or options.size % 512:
        parser.error(f"--size {options.size} is no whole number of sectors; give a multiple of 512")
    try:
        medium = Medium(options.directory, options.size, options.seed, JOURNAL_BYTES)
    except OSError as error:
        fact = f"disk of {options.size} bytes: no file in {options.directory}: {error.strerror}"
        print(f"{fact}; name a writable directory of a file system with room", file=sys.stderr)
        return 1
    sockets = []
    for path in (options.socket, options.control):
        try:
            sockets.append(listen(path))
        except OSError as error:
            remedy = "stop the server that uses it, or name another path"
            print(f"socket {path}: {error.strerror}; {remedy}", file=sys.stderr)
            return 1
    server = DiskServer(medium, *sockets)
    print("ready", flush=True)
    server.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
