"""One node: the real volume and the real executor, with a simulated disk, link and clients as their ports.

It boots as the daemon does, from the bytes on its disk; it is struck by power cuts and kills between any two effects;
while it is paused the world goes on and what arrives for it waits.
"""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from replication.executor import Executor
from replication.protocol.activity_log import initialised_ring
from replication.protocol.attachment import Attachment, prepare_attachment
from replication.protocol.effects import (
    Answer,
    Effect,
    FlushData,
    Stream,
)
from replication.protocol.errors import DiskFailure, MirrorError, PeerError
from replication.protocol.metadata import Layout, internal_layout, just_created
from replication.protocol.options import VolumeOptions
from replication.protocol.requests import Request
from replication.protocol.states import ConnectionState, DiskState, Role
from replication.protocol.volume import Volume
from replication.protocol.volume_data import VolumeData
from tests.simulation.disk import SimulatedDisk
from tests.simulation.faults import Killed, PowerCut, StrikePoint, Struck
from tests.simulation.network import End
from tests.simulation.ports import ClientsPort, DiskPort, LinkPort, RecordsPort, Witness

if TYPE_CHECKING:
    from tests.simulation.world import World

SCRIBBLE = b"\xee"
"""What a buffer holds once its owner may use it again: whoever still has a view of it sends or writes this."""

Told = Callable[[MirrorError | None], None]


class Variation:
    """What a planted bug changes: the effects between volume and executor. This one changes nothing."""

    def effects(self, node: Node, effects: list[Effect]) -> list[Effect]:
        return effects

    def persist(self, node: Node, what: str, writes: list[tuple[int, bytes]]) -> bool:
        """Whether it has done something else instead."""
        return False

    def block_sent(self, node: Node, offset: int, length: int) -> None:
        """A resync block was read for the peer."""


class Node:
    def __init__(self, world: World, index: int, options: VolumeOptions, layout: Layout) -> None:
        self.world = world
        self.index = index
        self.name = options.local_name
        self.options = options
        self.layout = layout
        self.disk = SimulatedDisk(layout.capacity_bytes, random.Random(world.rng.random()))
        self.disk.flush_started = self._flush_started
        self.strikes = StrikePoint()
        self.record: dict[str, Any] = {}
        self.powered = True
        self.volume: Volume | None = None
        self.end: End | None = None
        self.paused = False
        self.resumed_at = 0.0
        self.power_cuts = 0
        self.life = 0
        """Grows with each start and each death: what an earlier life started is not for this one."""
        self.metadata_changes = 0
        self._executor: Executor | None = None
        self._operations: dict[int, Told] = {}
        self._deferred: list[tuple[int, Callable[[], None]]] = []
        self._disk_port = DiskPort(self)

    # what others look at

    @property
    def inside(self) -> VolumeData | None:
        """What the volume knows, for checkers."""
        return self.volume.data if self.volume is not None else None

    @property
    def running(self) -> bool:
        return self.volume is not None and not self.paused

    @property
    def role(self) -> Role:
        return self.volume.state.role if self.volume is not None else Role.UNKNOWN

    @property
    def owes_an_answer(self) -> bool:
        """Whether an operator waits, and nothing is under way that would end in an answer."""
        inside = self.inside
        under_way = inside is not None and (
            inside.request is not None or inside.promoting is not None or inside.demoting is not None
        )
        return bool(self._operations) and not under_way

    def describe(self) -> str:
        if self.volume is None:
            return f"{self.name} {'down' if self.powered else 'off'}"
        state = self.volume.state
        words = f"{self.name} {state.role} {state.connection} {state.disk}/{state.peer_disk}"
        return words + (" paused" if self.paused else "")

    def metadata(self) -> Attachment:
        """What a start would make of the disk as it is now."""
        layout, disk = self.layout, self.disk
        return prepare_attachment(
            layout,
            disk.content(layout.superblock_offset, 4096),
            disk.content(layout.al_offset, layout.al_bytes),
            disk.content(layout.bitmap_offset, layout.bitmap_bytes),
        )

    # life

    def create_metadata(self) -> None:
        layout = self.layout
        superblock = just_created(layout, self.options.al_extents).encode()
        self.disk.persist("create-md", [(layout.superblock_offset, superblock)])
        self.disk.persist("create-md", [(layout.al_offset, initialised_ring(layout))])

    def boot(self) -> None:
        """Start the process; the power must be on."""
        assert self.powered
        assert self.volume is None
        self.life += 1
        self.disk.reads_fail = self.disk.writes_fail = False
        self.volume = Volume(self.options, lambda: self.world.rng.getrandbits(64), self.world.now)
        self._executor = Executor(
            self._disk_failed_now, self._disk_port, LinkPort(self), ClientsPort(self), RecordsPort(self), Witness(self)
        )
        self.world.oracle.started(self)
        self.world.say(self, "starts")
        volume = self.volume

        def attach() -> list[Effect]:
            # what a killed process had written, and nobody flushed, is not known to its successor
            self._disk_port.flush_at_start()
            attachment = self.metadata()
            for write in attachment.writes:
                self._disk_port.persist("attach", [write])
            return volume.attach(attachment, copy.deepcopy(self.record), self.world.now)

        self.act(attach)
        if self.volume is volume and volume.state.connection is ConnectionState.STAND_ALONE:
            self.operate("connect", lambda operation: volume.connect(operation, self.world.now))
        self._tick_later()

    def die(self, struck: Struck) -> None:
        """The process ends here; with a power cut the disk's cache is lost too."""
        if self.volume is None and not isinstance(struck, PowerCut):
            return
        self.world.oracle.session_ends(self)
        self.volume = self._executor = None
        self.life += 1
        self.paused = False
        self._deferred.clear()
        self.strikes.armed = None
        self.metadata_changes += 1
        if isinstance(struck, PowerCut):
            self.powered = False
            self.power_cuts += 1
            self.world.network.vanish(self.index)
            self.disk.lose_power()
            self.world.oracle.lost_power(self)
            self.world.say(self, f"loses its power {struck}")
        else:
            if self.end is not None:
                self.end.drop()
            self.disk.forget_flushes()
            self.world.say(self, f"is killed {struck}")
        self.end = None
        operations, self._operations = self._operations, {}
        for told in operations.values():
            told(MirrorError(self.name, "died"))
        self.world.workload.node_died(self)

    def power_on(self) -> None:
        self.powered = True

    def pause(self) -> None:
        self.paused = True
        self.world.say(self, "pauses")

    def resume(self) -> None:
        """First what had arrived meanwhile, then the clock."""
        self.paused = False
        self.resumed_at = self.world.now
        self.world.say(self, "goes on")
        self.feed()
        deferred, self._deferred = self._deferred, []
        for life, action in deferred:
            if life == self.life and self.volume is not None:
                action()

    # acting

    def act(self, decide: Callable[[], list[Effect]]) -> None:
        """Let the volume decide and carry it out, unless the node is struck meanwhile."""
        try:
            assert self._executor is not None
            self._executor.carry_out(self.world.variation.effects(self, decide()))
        except Struck as struck:
            self.die(struck)
        except DiskFailure as failure:  # of the start itself
            self.world.say(self, f"cannot start: {failure}")
            self.die(Killed())

    def later(self, action: Callable[[], None]) -> None:
        """Do it now, or after the pause."""
        if self.volume is None:
            return
        if self.paused:
            self._deferred.append((self.life, action))
        else:
            action()

    def operate(self, what: str, ask: Callable[[int], list[Effect]], told: Told | None = None) -> None:
        """Ask the volume as an operator does; `told` hears the refusal, or None."""
        number = self.world.next_number()

        def answered(error: MirrorError | None) -> None:
            self.world.say(self, f"{what}: {error or 'done'}")
            if told is not None:
                told(error)

        self._operations[number] = answered

        def do() -> None:
            self.world.say(self, f"is asked to {what}")
            self.act(lambda: ask(number))

        self.later(do)

    def answered(self, effect: Answer) -> None:
        told = self._operations.pop(effect.operation, None)
        if told is not None:  # not from inside the executor: whoever hears it may ask for more
            self.world.after(0.0, "answer", lambda: told(effect.error))

    def submit(self, requests: list[Request]) -> None:
        volume = self.volume
        assert volume is not None
        self.act(lambda: volume.submit(requests, self.world.now))

    def link_up(self, end: End, *, resolve_conflicts: bool) -> None:
        volume = self.volume
        if volume is None or self.end is not None or not volume.wants_link:
            end.drop()
            return
        self.end = end
        end.wake = lambda: self.later(self.feed)
        self.world.oracle.session_begins(self)
        self.act(lambda: volume.link_up(resolve_conflicts, self.world.now))
        self.feed()

    def feed(self) -> None:
        """Give the volume what has arrived, until it wants no more; then tell it when no more will come."""
        end = self.end
        order = list(Stream)
        if self.world.rng.random() < 0.5:
            order.reverse()
        progress = True
        while progress:
            progress = False
            for stream in order:
                if self.end is not end or end is None or self.volume is None:
                    return
                progress = self._receive(end, stream) or progress
        if end is not None and end.lost:
            self._lose(end)

    def _receive(self, end: End, stream: Stream) -> bool:
        volume, inbox = self.volume, end.inbox[stream]
        assert volume is not None
        if not inbox or (stream is Stream.DATA and volume.holding):
            return False
        consumed = 0

        def decide() -> list[Effect]:
            nonlocal consumed
            receive = volume.receive_data if stream is Stream.DATA else volume.receive_meta
            try:
                consumed, effects = receive(memoryview(inbox), self.world.now)
            except PeerError as error:
                self.world.say(self, f"peer error: {error.fact}")
                return volume.peer_error(error, self.world.now)
            return effects

        self.act(decide)
        if consumed:
            end.inbox[stream] = inbox[consumed:]
            inbox[:consumed] = SCRIBBLE * consumed
        return consumed > 0

    def _lose(self, end: End) -> None:
        volume = self.volume
        assert volume is not None
        self.world.oracle.session_ends(self)
        self.end = None
        self.act(lambda: volume.link_down(end.lost, self.world.now))

    def disk_failed(self, effect: Effect, fact: str) -> None:
        volume = self.volume
        if volume is not None:
            self.act(lambda: volume.disk_failed(effect, fact, self.world.now))

    def _disk_failed_now(self, effect: Effect, fact: str) -> list[Effect]:
        assert self.volume is not None
        self.world.say(self, f"{type(effect).__name__} failed: {fact}")
        return self.world.variation.effects(self, self.volume.disk_failed(effect, fact, self.world.now))

    def _tick_later(self) -> None:
        life = self.life

        def tick() -> None:
            volume = self.volume
            if life != self.life or volume is None:
                return

            def now() -> None:
                self.feed()
                if self.volume is volume:
                    self.act(lambda: volume.tick(self.world.now))

            self.later(now)
            self.world.after(0.05 + 0.05 * self.world.rng.random(), "tick", tick)

        self.world.after(0.1 * self.world.rng.random(), "tick", tick)

    def handler_done(self, name: str, exit_code: int) -> None:
        volume = self.volume
        assert volume is not None
        self.act(lambda: volume.handler_done(name, exit_code, self.world.now))

    def _flush_started(self, token: int) -> None:
        life = self.life
        slow = 0.2 if self.world.rng.random() < 0.05 else 0.004

        def ended() -> None:
            if life == self.life:
                self.later(lambda: self._flush_ended(token))

        self.world.after(slow * self.world.rng.random(), "flush", ended)

    def _flush_ended(self, token: int) -> None:
        volume = self.volume
        assert volume is not None
        try:
            self.disk.finish_flush(token)
        except DiskFailure as failure:
            self.disk_failed(FlushData(token), str(failure))
            return
        self.act(lambda: volume.flushed(token, self.world.now))
        self.feed()


def options_of(base: VolumeOptions, local: str, peer: str) -> VolumeOptions:
    return dataclasses.replace(base, local_name=local, peer_name=peer)


def layout_of(capacity_bytes: int, ring_blocks: int) -> Layout:
    return internal_layout(capacity_bytes, al_stripe_size_4k=ring_blocks)


def usable(node: Node) -> bool:
    """Whether the node has a disk that it may use."""
    return node.volume is not None and node.volume.state.disk >= DiskState.INCONSISTENT
