"""The ports of a node's executor: simulated disk, link, clients, side file and log, and where the node is struck."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from replication.protocol.effects import Answer, Buffer, Note, ReadForClients, StateChanged, Stream
from replication.protocol.errors import DiskFailure
from replication.protocol.requests import EIO, Request
from tests.simulation.faults import Fault, Killed, Moment, PowerCut, Strike

if TYPE_CHECKING:
    from tests.simulation.node import Node


class Port:
    """At each effect the node may be struck."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def _struck(self, what: str, torn: Callable[[], None] | None, do: Callable[[], None]) -> None:
        node = self._node
        strike = node.strikes.reach(what)
        if strike is None:
            do()
            return
        if strike.moment is Moment.MIDDLE and torn is not None and strike.exception is PowerCut:
            node.world.count(Fault.TORN_WRITE if what == "write" else Fault.TORN_PERSIST)
            torn()
        elif strike.moment is Moment.AFTER:
            do()
        self._count(strike, what)
        raise strike.exception(node.strikes.last)

    def _count(self, strike: Strike, what: str) -> None:
        world = self._node.world
        if strike.exception is Killed:
            world.count(Fault.KILL)
        elif what in ("superblock", "activity-log", "bitmap", "attach", "record"):
            world.count(Fault.POWER_CUT_AT_PERSIST)
        else:
            world.count(Fault.POWER_CUT)


class DiskPort(Port):
    def write(self, writes: list[tuple[int, Buffer]]) -> None:
        disk = self._node.disk
        self._struck("write", lambda: disk.write_torn(writes, stable=False), lambda: disk.write(writes))

    def zero(self, offset: int, length: int, may_unmap: bool) -> None:
        disk = self._node.disk
        torn: list[tuple[int, Buffer]] = [(offset, bytes(length))]
        self._struck("write", lambda: disk.write_torn(torn, stable=False), lambda: disk.zero(offset, length, may_unmap))

    def read(self, offset: int, length: int) -> Buffer:
        self._node.world.variation.block_sent(self._node, offset, length)
        return self._node.disk.read(offset, length)

    def start_flush(self, token: int) -> None:
        self._struck("flush", None, lambda: self._node.disk.start_flush(token))

    def flush_at_start(self) -> None:
        self._struck("flush", None, self._node.disk.flush_now)

    def persist(self, what: str, writes: list[tuple[int, bytes]]) -> None:
        node = self._node
        node.metadata_changes += 1

        def do() -> None:
            if not node.world.variation.persist(node, what, writes):
                node.disk.persist(what, writes)

        self._struck(what, lambda: node.disk.write_torn(list(writes), stable=True), do)


class LinkPort(Port):
    def send(self, stream: Stream, buffers: list[Buffer]) -> None:
        end = self._node.end
        if end is not None:
            self._struck("send", None, lambda: end.send(stream, buffers))

    def drop(self, fact: str) -> None:
        node = self._node
        if node.end is not None:
            node.world.oracle.session_ends(node)
            node.end.drop()
            node.end = None


class ClientsPort(Port):
    def complete(self, requests: list[Request]) -> None:
        self._struck("complete", None, lambda: self._node.world.workload.completed(self._node, requests))

    def read(self, requests: list[Request]) -> None:
        node = self._node
        for request in requests:
            try:
                content = node.disk.read(request.offset, request.length)
            except DiskFailure as failure:
                request.error = EIO
                self._report_later(ReadForClients(requests), str(failure))
                node.world.workload.completed(node, [request])
            else:
                node.world.workload.has_read(node, request, content)

    def _report_later(self, effect: ReadForClients, fact: str) -> None:
        node = self._node
        life = node.life

        def report() -> None:
            if life == node.life:
                node.disk_failed(effect, fact)

        node.world.after(0.0001, "read failed", report)

    def device_failed(self, fact: str) -> None:
        """The device ends, and with it every request that is not answered."""
        self._node.world.say(self._node, f"device failed: {fact}")
        self._node.world.workload.node_died(self._node)


class RecordsPort(Port):
    def save(self, record: dict[str, Any]) -> None:
        node = self._node

        def do() -> None:
            node.record = copy.deepcopy(record)

        self._struck("record", None, do)


class Witness(Port):
    """The log, operators and handler programs."""

    def state_changed(self, effect: StateChanged) -> None:
        node = self._node
        before, after = effect.before, effect.after
        node.world.say(
            node,
            f"{before.role} {before.connection} {before.disk}/{before.peer_disk} -> {after.role} {after.connection}"
            f" {after.disk}/{after.peer_disk} ({effect.reason})",
        )
        node.world.oracle.state_changed(node, before, after)

    def note(self, effect: Note) -> None:
        self._node.world.say(self._node, effect.text)

    def answer(self, effect: Answer) -> None:
        self._node.answered(effect)

    def call_handler(self, name: str) -> None:
        node = self._node
        life = node.life

        def ended() -> None:
            if life == node.life:
                node.later(lambda: node.handler_done(name, node.world.handler(node, name)))

        node.world.after(0.05 + 0.2 * node.world.rng.random(), f"handler {name}", ended)
