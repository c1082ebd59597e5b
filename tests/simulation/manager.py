"""The cluster manager and the operator: who is asked to do what, and when.

Like a real one it promotes one side at a time, and not one that the other may have left behind, except with a permit.
Now and then it asks for what must be refused: two promotions at once, a promotion beside an active peer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from replication.protocol.effects import Effect
from replication.protocol.errors import MirrorError
from replication.protocol.options import Takeover
from replication.protocol.states import ConnectionState, DiskState, Role
from replication.protocol.volume import Force
from tests.simulation.faults import Fault, PowerCut

if TYPE_CHECKING:
    from tests.simulation.node import Node
    from tests.simulation.world import World

FIRST_SYNC_CHANCE = 0.08
"""How often a mirror begins with a full resync instead of two disks declared equal."""
ANSWER_BOUND_S = 40.0
"""An operator is answered within this, unless the node is paused or dies."""


class Manager:
    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = random.Random(world.rng.random())
        self.split_brain = False
        """Both sides may be Primary: an operator permitted the second while the first was alive."""
        self.diverged = False
        """A permit was used: at the next contact the two may find a split brain."""
        self.outdated = False
        """An operator said that data are old: perhaps of both sides."""
        self.settling = False
        self.initialised = False
        self._pending: dict[int, tuple[str, float]] = {}
        self._refused_connects = [0, 0]

    def start(self) -> None:
        self._world.after(0.2, "manager", self._step)

    def demoting(self, node: Node) -> bool:
        return self._pending.get(node.index, ("", 0.0))[0] == "demote"

    # asking

    def _ask(
        self,
        node: Node,
        what: str,
        ask: Callable[[int], list[Effect]],
        then: Callable[[MirrorError | None], None] | None = None,
    ) -> None:
        self._pending[node.index] = (what, self._world.now)

        def told(error: MirrorError | None) -> None:
            if self._pending.get(node.index, ("", 0.0))[0] == what:
                del self._pending[node.index]
            if then is not None:
                then(error)

        node.operate(what, ask, told)

    def promote(self, node: Node, force: Force = Force.NO) -> None:
        volume = node.volume
        assert volume is not None
        self._ask(node, "promote", lambda operation: volume.promote(operation, self._world.now, force))

    def _permit(self, node: Node) -> None:
        volume = node.volume
        assert volume is not None

        def then(error: MirrorError | None) -> None:
            if error is None and node.volume is volume:
                self.diverged = True
                self._world.oracle.permits[node.index] = True
                self.promote(node)

        self._ask(node, "permit", lambda operation: volume.permit(operation, node.name, self._world.now), then)

    def _demote(self, node: Node, then: Callable[[MirrorError | None], None] | None = None) -> None:
        """Take the device away, then demote: nothing of a client may be on its way."""
        volume = node.volume
        assert volume is not None
        self._pending[node.index] = ("demote", self._world.now)

        def when_drained() -> None:
            if node.volume is not volume:
                self._pending.pop(node.index, None)
            elif self._world.workload.asks(node):
                self._world.after(0.02, "drain", when_drained)
            else:
                self._ask(node, "demote", lambda operation: volume.demote(operation, self._world.now), then)

        when_drained()

    def _connect(self, node: Node, *, discard_my_data: bool = False) -> None:
        volume = node.volume
        assert volume is not None
        self._ask(node, "connect", lambda operation: volume.connect(operation, self._world.now, discard_my_data))

    # deciding

    def _step(self) -> None:
        self._world.after(0.05 + 0.4 * self._rng.random(), "manager", self._step)
        for index, (what, since) in self._pending.items():
            node = self._world.nodes[index]
            if not node.paused and self._world.now - max(since, node.resumed_at) > ANSWER_BOUND_S:
                self._world.oracle.check(
                    False, "answers", f"{node.name} has not answered {what} for {ANSWER_BOUND_S} s"
                )
        if self._pending:
            return
        if not self.initialised:
            self._initialise()
        elif self.settling:
            self._settle()
        else:
            self._operate()

    def _in_contact(self) -> bool:
        """Both run and are connected to each other, as they see it."""
        nodes = self._world.nodes
        if not all(node.running and node.end is not None for node in nodes):
            return False
        first, second = nodes
        assert first.end is not None
        assert second.end is not None
        return first.end.session is second.end.session and all(
            node.volume is not None and node.volume.state.connection >= ConnectionState.CONNECTED for node in nodes
        )

    def _initialise(self) -> None:
        node = self._world.nodes[0]
        volume = node.volume
        if volume is None or not self._in_contact() or volume.state.connection is not ConnectionState.CONNECTED:
            return

        def then(error: MirrorError | None) -> None:
            self.initialised = error is None

        if self._rng.random() < FIRST_SYNC_CHANCE:
            self._ask(node, "promote", lambda op: volume.promote(op, self._world.now, Force.OVERWRITE), then)
        else:
            self._ask(node, "new-current-uuid", lambda op: volume.new_current_uuid(op, self._world.now), then)

    def _operate(self) -> None:
        nodes = self._world.nodes
        if self._in_contact():
            self._refused_connects = [0, 0]
        primaries = [node for node in nodes if node.role is Role.PRIMARY]
        if len(primaries) == 2:
            if self._rng.random() < 0.1:
                self._resolve()
            return
        for node in nodes:
            alone = node.volume is not None and node.volume.state.connection is ConnectionState.STAND_ALONE
            if alone and node.running and self._rng.random() < 0.3:
                self._connect_again(node)
                return
        if not primaries:
            self._choose_a_primary()
            return
        primary = primaries[0]
        standby = nodes[1 - primary.index]
        if primary.running:
            self._something(primary, standby)

    def _connect_again(self, node: Node) -> None:
        self._refused_connects[node.index] += 1
        if self._refused_connects[node.index] > 4:
            self._refused_connects = [0, 0]
            self._resolve()
        else:
            self._connect(node)

    def _choose_a_primary(self) -> None:
        world = self._world
        nodes = world.nodes
        if self._in_contact():
            if self._rng.random() < 0.15:
                world.count(Fault.PROMOTE_RACE)
                for node in nodes:
                    self.promote(node)
            else:
                self.promote(self._rng.choice(nodes))
            return
        running = [node for node in nodes if node.running]
        if not running:
            return
        node = self._rng.choice(running)
        peer = nodes[1 - node.index]
        if not world.oracle.primary_since_contact[peer.index]:
            self.promote(node)
        elif peer.volume is None and self._rng.random() < 0.3:
            inside = node.inside
            assert inside is not None
            survivor = inside.peer_role_at_loss is Role.PRIMARY and world.options.takeover is Takeover.CONSISTENT
            if survivor and not peer.powered and self._rng.random() < 0.5:
                self.promote(node)
            else:
                world.count(Fault.TAKEOVER)
                self._permit(node)

    def _something(self, primary: Node, standby: Node) -> None:
        chance = self._rng.random()
        if chance < 0.12:
            self._switch(primary, standby)
        elif chance < 0.18:
            self._demote(primary)
        elif standby.volume is None or not standby.running:
            return
        elif chance < 0.24:
            self._leave(self._rng.choice([primary, standby]))
        elif chance < 0.29:
            self._invalidate(standby)
        elif chance < 0.33:
            self._outdate(standby)
        elif chance < 0.42:
            self._promote_unfit(primary, standby)
        elif chance < 0.47 and self._world.plan.split_brain and not self._in_contact():
            self._permit_beside(standby)

    def _switch(self, primary: Node, standby: Node) -> None:
        if not self._in_contact():
            return
        self._world.count(Fault.SWITCH)

        def then(error: MirrorError | None) -> None:
            if error is None and standby.running and self._in_contact():
                self.promote(standby)

        self._demote(primary, then)

    def _leave(self, node: Node) -> None:
        volume = node.volume
        assert volume is not None
        self._world.count(Fault.DISCONNECT)
        self._ask(node, "disconnect", lambda operation: volume.disconnect(operation, self._world.now))

    def _invalidate(self, standby: Node) -> None:
        volume = standby.volume
        assert volume is not None
        if self._in_contact():
            self._world.count(Fault.INVALIDATE)
            self._ask(standby, "invalidate", lambda operation: volume.invalidate(operation, self._world.now))

    def _outdate(self, standby: Node) -> None:
        volume = standby.volume
        assert volume is not None
        if volume.state.connection < ConnectionState.CONNECTED:
            self._world.count(Fault.OUTDATE)
            self.outdated = True
            self._ask(standby, "outdate", lambda operation: volume.outdate(operation, self._world.now))

    def _promote_unfit(self, primary: Node, standby: Node) -> None:
        """Only where the standby itself can know better."""
        inside = standby.inside
        assert inside is not None
        knows = inside.state.peer is Role.PRIMARY or (
            inside.peer_role_at_loss is Role.PRIMARY and self._world.options.takeover is Takeover.MANUAL
        )
        if knows and not self._world.oracle.permits[standby.index]:
            self._world.count(Fault.PROMOTE_UNFIT)
            self.promote(standby)

    def _permit_beside(self, standby: Node) -> None:
        """The mistake of an operator who believes that the other side is dead."""
        self._world.count(Fault.SPLIT_BRAIN)
        self.split_brain = True
        self._permit(standby)

    # after a split brain, and at the end

    def _resolve(self) -> None:
        """One side's data win; the other is demoted and discards its own."""
        world = self._world
        if not all(node.running for node in world.nodes):
            return
        world.oracle.check(
            self.diverged,
            "split brain",
            "the two sides do not connect, and no permit was ever used: " + world.describe(),
        )
        primaries = [node for node in world.nodes if node.role is Role.PRIMARY]
        winner = primaries[0] if len(primaries) == 1 else self._rng.choice(world.nodes)
        loser = world.nodes[1 - winner.index]
        world.note(f"operator resolves the split brain: {winner.name} wins")
        world.oracle.last_primary = winner.index

        def discard(error: MirrorError | None) -> None:
            self.split_brain = len([node for node in world.nodes if node.role is Role.PRIMARY]) == 2
            volume = loser.volume
            if error is not None or volume is None or not loser.running:
                return
            if volume.state.connection is not ConnectionState.STAND_ALONE:
                self._ask(loser, "disconnect", lambda op: volume.disconnect(op, world.now), discard_and_connect)
            else:
                discard_and_connect(None)

        def discard_and_connect(error: MirrorError | None) -> None:
            if error is None and loser.running:
                self._connect(loser, discard_my_data=True)
                if winner.running and winner.volume is not None:
                    self._connect(winner)

        if loser.role is Role.PRIMARY:
            self._demote(loser, discard)
        else:
            discard(None)

    def _settle(self) -> None:
        nodes = self._world.nodes
        if not all(node.running for node in nodes):
            return
        if all(node.role is Role.PRIMARY for node in nodes):
            self._resolve()
            return
        if self._in_contact():
            self._refused_connects = [0, 0]
        for node in nodes:
            assert node.volume is not None
            if node.volume.state.connection is ConnectionState.STAND_ALONE:
                self._connect_again(node)
                return
        if self._in_contact() and self._world.now - self._world.settling_since > 20.0:
            first, second = nodes
            assert first.volume is not None
            assert second.volume is not None
            disks = [first.volume.state.disk, second.volume.state.disk]
            quiet = first.volume.state.connection is ConnectionState.CONNECTED
            if quiet and self.outdated and DiskState.UP_TO_DATE not in disks:
                best = nodes[0] if disks[0] >= disks[1] else nodes[1]
                self.promote(best, Force.OVERWRITE)

    def fence(self, node: Node) -> int:
        """What a fence-peer handler does: it takes the peer's power, and says so; now and then it cannot."""
        peer = self._world.nodes[1 - node.index]
        if self._rng.random() < 0.2:
            return 1
        if peer.powered:
            self._world.count(Fault.POWER_CUT)
            peer.die(PowerCut("by fencing"))
        return 7
