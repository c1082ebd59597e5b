"""What must be true after every event, whatever happened.

- one-writer: never two sides Primary, unless an operator permitted the second one;
- refused: nobody becomes Primary beside or behind a newer side without a permit;
- acknowledged, flushed: the oracle of `history`, on the disk of whoever answers, and of its peer while it is in sync;
- kept: what a start finds on a disk, and what a new Primary serves, is what its clients were promised;
- superset: a block that differs is marked on a side, or hot in an activity log; of a node that is down, on its disk;
- no-drop: the source of a resync unmarks a block when its target has written it, not before;
- equal: both say UpToDate, nothing is marked and nothing on its way: then no block differs;
- table: states follow one another as the tables say;
- answers: operators, and clients of a disk that failed, are not left waiting;
- serves: only a Primary answers clients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replication.protocol.errors import MetadataError
from replication.protocol.metadata import BLOCK_BYTES, EXTENT_BYTES
from replication.protocol.requests import FLAG_FUA, FLUSH
from replication.protocol.states import NEXT_CONNECTION, NEXT_DISK, ConnectionState, DiskState, Role, State
from tests.simulation.disk import SECTOR_BYTES
from tests.simulation.history import Line

if TYPE_CHECKING:
    from tests.simulation.node import Node
    from tests.simulation.workload import Asked
    from tests.simulation.world import World

_BLOCKS_PER_EXTENT = EXTENT_BYTES // BLOCK_BYTES
_SECTORS_PER_BLOCK = BLOCK_BYTES // SECTOR_BYTES
_TARGET = (ConnectionState.SYNC_TARGET, ConnectionState.PAUSED_SYNC_T)


class InvariantBroken(AssertionError):
    """`invariant` is its name above."""

    def __init__(self, invariant: str, fact: str) -> None:
        super().__init__(f"{invariant}: {fact}")
        self.invariant = invariant


class Oracle:
    def __init__(self, world: World, device_bytes: int) -> None:
        self._world = world
        self._device_bytes = device_bytes
        self.zeroing: set[int] = set()
        self.lines = [Line(self.zeroing), Line(self.zeroing)]
        self.states = [State(), State()]
        """As far as the effects carried out say."""
        self.differing: set[int] = set()
        """Blocks that are not equal on the two disks."""
        self.last_primary: int | None = None
        self.primary_since_contact = [False, False]
        """Whether that node was Primary since the two last were connected and equal."""
        self.permits = [False, False]
        self.syncs_finished = 0
        self._last_lines: dict[tuple[int, int], Line] = {}
        """(session, node) -> its line when it lost that session."""
        self._power_cuts_at_start: dict[tuple[int, int], int] = {}
        self._covered_when_down: dict[int, tuple[tuple[int, int], bytes | None]] = {}

    def check(self, holds: bool, invariant: str, fact: str) -> None:
        if not holds:
            raise InvariantBroken(invariant, fact)

    # what the disks tell

    def watch(self, node: Node) -> None:
        """Keep `differing` true: called once for each node, when both disks exist."""

        def changed(offset: int, length: int) -> None:
            if offset >= self._device_bytes:
                return
            own, other = self._world.nodes[node.index].disk, self._world.nodes[1 - node.index].disk
            first, end = offset // BLOCK_BYTES, -(-min(offset + length, self._device_bytes) // BLOCK_BYTES)
            for block in range(first, end):
                at = block * BLOCK_BYTES
                if own.content(at, BLOCK_BYTES) == other.content(at, BLOCK_BYTES):
                    self.differing.discard(block)
                else:
                    self.differing.add(block)

        node.disk.changed = changed

    # what happens to nodes

    def lost_power(self, node: Node) -> None:
        self.lines[node.index].lost_power()

    def session_begins(self, node: Node) -> None:
        assert node.end is not None
        for either in self._world.nodes:
            self._power_cuts_at_start[node.end.session.number, either.index] = either.power_cuts

    def session_ends(self, node: Node) -> None:
        """Before anything else is known of the loss: what its peer can have of its data ends here."""
        if node.end is not None:
            self._last_lines[node.end.session.number, node.index] = self.lines[node.index].copy()

    def started(self, node: Node) -> None:
        """The process of that node begins with nothing known."""
        self.states[node.index] = State()

    def state_changed(self, node: Node, before: State, after: State) -> None:
        known = self.states[node.index]
        # when the disk fails an effect, changes behind it are not carried out: they are not said either
        self.check(
            known == before or after.disk is DiskState.FAILED,
            "table",
            f"{node.name} changed from {before}, and was {known}",
        )
        self.states[node.index] = after
        if after.connection is not before.connection:
            self.check(
                after.connection in NEXT_CONNECTION[before.connection],
                "table",
                f"{node.name}: {before.connection} -> {after.connection}",
            )
        if after.disk is not before.disk:
            self.check(
                after.disk in NEXT_DISK[before.disk] | {DiskState.FAILED},
                "table",
                f"{node.name}: {before.disk} -> {after.disk}",
            )
        if (
            before.connection in _TARGET
            and before.disk is DiskState.INCONSISTENT
            and after.disk > DiskState.INCONSISTENT
        ):
            self._resynchronised(node)
        elif before.disk is DiskState.ATTACHING and after.disk > DiskState.INCONSISTENT:
            self._content_kept(node, self.lines[node.index], "at its start")
        if after.connection >= ConnectionState.CONNECTED:
            if after.disk is DiskState.UP_TO_DATE and after.peer_disk is DiskState.UP_TO_DATE:
                self.primary_since_contact[node.index] = after.role is Role.PRIMARY
            if after.peer is Role.PRIMARY:
                self.permits[node.index] = False
        if after.role is Role.PRIMARY and before.role is not Role.PRIMARY:
            self._promoted(node)

    def _resynchronised(self, node: Node) -> None:
        """It holds what its source held; not what the source got after the two had lost each other."""
        self.syncs_finished += 1
        source = self._world.nodes[1 - node.index]
        assert node.end is not None
        session = node.end.session
        still = source.end is not None and source.end.session is session
        line = self.lines[source.index] if still else self._last_lines[session.number, source.index]
        self.lines[node.index] = line.copy()
        inside = node.inside
        assert inside is not None
        self.check(
            inside.bitmap.count == 0, "equal", f"{node.name} is UpToDate with {inside.bitmap.count} blocks out of sync"
        )
        self._content_kept(node, self.lines[node.index], "after its resync")

    def _promoted(self, node: Node) -> None:
        peer = self._world.nodes[1 - node.index]
        permitted = self.permits[node.index]
        if not permitted:
            self.check(
                peer.role is not Role.PRIMARY, "one-writer", f"{node.name} became Primary, and {peer.name} is Primary"
            )
            if self.last_primary == peer.index:
                self._content_kept(node, self.lines[peer.index], f"now Primary after {peer.name}, without a permit")
        self._content_kept(node, self.lines[node.index], "now Primary")
        self.last_primary = node.index
        self.primary_since_contact[node.index] = True
        self.permits[node.index] = False

    def content_kept(self, node: Node, when: str) -> None:
        """Raises InvariantBroken unless its disk holds what its clients were promised."""
        self._content_kept(node, self.lines[node.index], when)

    def _content_kept(self, node: Node, line: Line, when: str) -> None:
        for sector in line.sectors():
            objection = line.objection(sector, node.disk.content(sector * SECTOR_BYTES, SECTOR_BYTES))
            if objection:
                raise InvariantBroken("kept", f"{node.name} {when}: {objection}")

    # what clients see

    def submitted(self, node: Node, version: int, sectors: range) -> None:
        """Handed to the Primary `node`; its peer may get it if they are connected."""
        self.lines[node.index].submitted(version, sectors)
        if self.states[node.index].connection >= ConnectionState.CONNECTED:
            self.lines[1 - node.index].submitted(version, sectors)

    def answered(self, node: Node, asked: Asked) -> None:
        """With success."""
        request = asked.request
        state = self.states[node.index]
        self.check(state.role is Role.PRIMARY, "serves", f"{node.name} answered a client as {state.role}")
        holders = [node, self._world.nodes[1 - node.index]] if self._mirrored(node, state) else [node]
        for holder in holders:
            line = self.lines[holder.index]
            if request.command == FLUSH:
                assert asked.covered is not None
                line.flushed(asked.covered)
                self._stable(holder, line, asked.covered)
                continue
            line.acknowledged(asked.version, asked.sectors)
            for sector in asked.sectors:
                content = holder.disk.content(sector * SECTOR_BYTES, SECTOR_BYTES)
                if objection := line.objection(sector, content):
                    raise InvariantBroken("acknowledged", f"{holder.name}: {objection}")
            if request.flags & FLAG_FUA:
                covered = dict.fromkeys(asked.sectors, asked.version)
                line.flushed(covered)
                self._stable(holder, line, covered)

    def _mirrored(self, node: Node, state: State) -> bool:
        """Whether `node` believes its peer to be in sync, and the peer has not lost its power since they met."""
        if state.connection < ConnectionState.CONNECTED or state.peer_disk is not DiskState.UP_TO_DATE:
            return False
        peer = self._world.nodes[1 - node.index]
        assert node.end is not None
        return peer.power_cuts == self._power_cuts_at_start[node.end.session.number, peer.index]

    def _stable(self, node: Node, line: Line, covered: dict[int, int]) -> None:
        for sector in covered:
            for content in node.disk.possible(sector):
                if objection := line.objection_to_stable(sector, content):
                    raise InvariantBroken("flushed", f"{node.name}, after a power cut now: {objection}")

    def has_read(self, node: Node, sectors: range, content: bytes) -> None:
        state = self.states[node.index]
        self.check(state.role is Role.PRIMARY, "serves", f"{node.name} answered a read as {state.role}")
        line = self.lines[node.index]
        for number, sector in enumerate(sectors):
            part = content[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES]
            if objection := line.objection(sector, part):
                raise InvariantBroken("acknowledged", f"{node.name} gave a client: {objection}")

    def nobody_waits_for_a_failed_disk(self, node: Node) -> None:
        self.check(not self._world.workload.asks(node), "answers", f"{node.name} lost its disk; clients wait for ever")
        self.check(not node.owes_an_answer, "answers", f"{node.name} lost its disk; an operator waits for ever")

    # after every event

    def after_event(self) -> None:
        if self.differing:
            self._differing_blocks_are_covered()
            self._sources_drop_nothing()
            if self.quiet_and_in_sync():
                blocks = sorted(self.differing)[:5]
                raise InvariantBroken("equal", f"both say UpToDate and nothing is on its way; blocks {blocks} differ")
        first, second = self._world.nodes
        if first.role is Role.PRIMARY and second.role is Role.PRIMARY and not self._world.manager.split_brain:
            raise InvariantBroken("one-writer", f"{first.describe()}; {second.describe()}")

    def quiet_and_in_sync(self) -> bool:
        nodes = self._world.nodes
        session = self._world.network.session
        if session is None or not all(
            node.end is not None and node.end.session is session and not node.end.lost for node in nodes
        ):
            return False
        for node in nodes:
            inside = node.inside
            if inside is None or inside.waiting or not inside.log.is_empty or inside.bitmap.count:
                return False
            state = inside.state
            if state.connection is not ConnectionState.CONNECTED:
                return False
            if state.disk is not DiskState.UP_TO_DATE or state.peer_disk is not DiskState.UP_TO_DATE:
                return False
        return not any(pipe.waiting for pipe in session.pipes.values()) and not any(
            any(end.inbox.values()) for end in session.ends
        )

    def _differing_blocks_are_covered(self) -> None:
        left = self.differing
        for node in self._world.nodes:
            left = self._not_covered(node, left)
            if not left:
                return
        block = min(left)
        words = "; ".join(node.describe() for node in self._world.nodes)
        raise InvariantBroken("superset", f"block {block} differs, and nothing on either side says so ({words})")

    def _sources_drop_nothing(self) -> None:
        """The target's bits would cover for it; but then they would be the only ones."""
        for node in self._world.nodes:
            if self.states[node.index].connection is not ConnectionState.SYNC_SOURCE or node.end is None:
                continue
            peer = self._world.nodes[1 - node.index]
            if peer.power_cuts != self._power_cuts_at_start[node.end.session.number, peer.index]:
                continue  # what its target has lost, it cannot know yet
            if left := self._not_covered(node, self.differing):
                raise InvariantBroken("no-drop", f"{node.name} has unmarked block {min(left)}, which differs")

    def _not_covered(self, node: Node, blocks: set[int]) -> set[int]:
        inside = node.inside
        if inside is not None and inside.activity_log is not None and inside.superblock is not None:
            hot, bits = inside.activity_log.hot, inside.bitmap.data
            return {
                block
                for block in blocks
                if not bits[block >> 3] & 1 << (block & 7) and block // _BLOCKS_PER_EXTENT not in hot
            }
        found = self.covered_on_disk(node)
        if found is None:
            return set()
        return {block for block in blocks if not found[block >> 3] & 1 << (block & 7)}

    def covered_on_disk(self, node: Node) -> bytes | None:
        """The bitmap that a start of the node would make of its disk; None: it would refuse the disk."""
        key = (node.life, node.metadata_changes)
        known = self._covered_when_down.get(node.index)
        if known is None or known[0] != key:
            try:
                known = (key, bytes(node.metadata().bitmap.data))
            except MetadataError as error:
                raise InvariantBroken("superset", f"{node.name} could not start from its disk: {error}") from error
            self._covered_when_down[node.index] = known
        return known[1]
