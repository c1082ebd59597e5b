"""Generation identifiers: which side holds newer data, and who therefore gives blocks to whom.

Each side keeps four numbers (UUIDs) in its superblock, and sends them when a connection begins:

current    names the data it holds; random, new whenever it goes on without the peer
bitmap     names the data against which its bitmap counts differences; 0: it counts none
history    two names its data had before, the younger first

So `beta.current == alpha.bitmap` says: alpha went on from what beta has, and alpha's bitmap holds the difference. Bit 0
of a current UUID says that its holder is, or was, Primary, and is no part of the name. The rules, their order and
their numbers are those that DRBD 8.4 logs (`... by rule 70`), since both sides decide for themselves and must come to
the same end. Stricter than DRBD:

- 4, the name of fresh metadata, is no common ancestor. Two mirrors that never met both have it in their history;
- names that say of each side that it is the older one are unrelated data, instead of two targets;
- a common ancestor in the history only is resolved by a full resync, as no bitmap counts from there;
- we never become target while Primary, whatever `rr-conflict` says, and two Primaries never connect.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from replication.protocol.states import DiskState, Role

JUST_CREATED = 4
"""Current UUID of fresh metadata: no data yet."""
SYNC_STEP = 1 << 48
"""What a source adds to its bitmap UUID when a resync starts."""

SPLIT_BRAIN = 100
SPLIT_BRAIN_OLD = -100
"""The last common generation is only in the histories."""
UNRELATED = -1000
PEER_TOO_OLD = -2000
"""Rule 41 applies, and the peer does not know it."""

_NAME = ~1
_U64 = (1 << 64) - 1
_FAMILY = ~0 << 40 & _U64
"""The part of a name that is taken over from the bitmap UUID: see `is_ours_alone`. `SYNC_STEP` changes it."""
_FIRST_VERSION_WITH_SYNC_STEP = 96


@dataclass(frozen=True, slots=True)
class Generation:
    """The four UUIDs of one side, each an unsigned 64 bit number. Every change gives a new one, to be made durable."""

    current: int
    bitmap: int
    history0: int
    history1: int

    @staticmethod
    def just_created() -> Generation:
        return Generation(JUST_CREATED, 0, 0, 0)

    @property
    def name(self) -> int:
        """The current UUID without the role bit: what to show, and to bind a promise to."""
        return self.current & _NAME

    @property
    def history(self) -> tuple[int, int]:
        return self.history0, self.history1

    @property
    def ancestors(self) -> tuple[int, int, int]:
        return self.bitmap, self.history0, self.history1

    def __str__(self) -> str:
        return ":".join(f"{uuid:016X}" for uuid in (self.current, self.bitmap, self.history0, self.history1))

    def with_role_bit(self, primary: bool) -> Generation:
        """After promotion or demotion. A promotion without the peer is `lost_peer` first, then this."""
        return replace(self, current=self.current & _NAME | primary)

    def lost_peer(self, random: int) -> Generation:
        """We go on without the peer's data; `random` is 64 random bits.

        Unchanged while differences are counted already: they go on counting from the same generation.
        """
        if self.bitmap:
            return self
        return replace(self, current=self._name_alone(random, self.current), bitmap=self.current)

    def went_on_alone(self, random: int) -> Generation:
        """As `lost_peer`, where the peer may hold this very generation although differences are counted.

        It does when it finished a resync of which we did not hear the end. Were the name kept, what both write alone
        would bear one name, and the next handshake would take a split brain for a peer that is merely behind. A name
        that is ours alone is kept: each new one would push a name that the peer may hold out of the history.
        """
        if not self.bitmap:
            return self.lost_peer(random)
        if self.is_ours_alone:
            return self
        # history0 stays: with `bitmap` it tells of a resync that began
        return replace(self, current=self._name_alone(random, self.bitmap), history1=self.current & _NAME)

    @property
    def is_ours_alone(self) -> bool:
        """Whether this name was given while we counted the differences that we still count.

        The peer gets our name by the end of a resync only, and `bitmap` changes when one starts. So a name given
        without the peer takes its upper 24 bits from `bitmap`, and is ours alone as long as both agree. This leaves 39
        random bits; a name that another program gave agrees by chance once in 16 million times.
        """
        if self.bitmap & _NAME == JUST_CREATED:
            return True  # no resync has begun yet
        return self.bitmap != 0 and (self.current ^ self.bitmap) & _FAMILY == 0

    def _name_alone(self, random: int, bitmap: int) -> int:
        family = random if bitmap & _NAME == JUST_CREATED else bitmap
        return family & _FAMILY | random & ~_FAMILY & _NAME | self.current & 1

    def became_sync_source(self, random: int, target: int = 0) -> Generation:
        """A resync from us starts. The new `bitmap` is what the target gets to know (P_SYNC_UUID).

        `target` is the target's current UUID. If only our history has it, it stays there: this start may be lost too.
        """
        fresh = (random if self.bitmap in (0, JUST_CREATED) else self.bitmap + SYNC_STEP) & _U64
        if (fresh ^ self.current) & _FAMILY == 0:
            fresh ^= 1 << 63  # the target is about to get our name
        begun = replace(self._bitmap_into_history(), bitmap=fresh)
        is_known = any(_same(target, name) for name in self.history)
        if is_known and not any(_same(target, name) for name in begun.history):
            begun = replace(begun, history1=target & _NAME)
        return begun

    def became_sync_target(self, sync_uuid: int) -> Generation:
        """A resync to us starts under this name; also when we take a peer's generation without a resync (flag 8)."""
        return replace(self, current=sync_uuid & _U64 & _NAME | self.current & 1, bitmap=0)

    def resync_finished_source(self) -> Generation:
        return replace(self._bitmap_into_history(), bitmap=0)

    def resync_finished_target(self, peer: Generation, peer_current: int | None = None) -> Generation:
        """`peer` is what the source said in the handshake; `peer_current` its current UUID if that has changed since.

        Both sides then have the same four numbers.
        """
        current = peer.current if peer_current is None else peer_current
        return Generation(
            current=current & _NAME | self.current & 1,
            bitmap=0,
            history0=self.current & _NAME,
            history1=peer.bitmap or peer.history0,
        )

    def cleared(self, random: int) -> Generation:
        """The operator says that both sides are equal: a new generation that counts no differences."""
        return replace(self, current=random & _U64 & _NAME | self.current & 1, bitmap=0)

    def _bitmap_into_history(self) -> Generation:
        return replace(self, history0=self.bitmap, history1=self.history0) if self.bitmap else self

    @property
    def began_resync(self) -> bool:
        """As its source, from a generation that the history still names."""
        return self.history0 & _NAME != 0 and (self.history0 & _NAME) + SYNC_STEP & _U64 == self.bitmap & _NAME

    def _undo_resync_start(self) -> Generation:
        # What was pushed out of history1 is gone; twice the same name there does no harm.
        return replace(self, bitmap=self.history0, history0=self.history1)


@dataclass(frozen=True, slots=True)
class Side:
    """What one side knows or says of itself when a connection begins."""

    generation: Generation
    bits_set: int
    """Blocks out of sync in its bitmap."""
    role: Role
    disk: DiskState
    """For a disk that is being attached: what it would be by itself, not Negotiating."""
    crashed_primary: bool = False
    discard_my_data: bool = False
    attaching: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the UUIDs say. `own` and `peer` are as given, or corrected where one side had missed an event."""

    rule: int
    """Number that DRBD logs; 0: no rule matched."""
    number: int
    """DRBD's `hg`: 1 source by bitmap, 2 source of everything, -1 and -2 target likewise, 0 equal, or a constant."""
    own: Generation
    peer: Generation
    text: str


# What the UUIDs say


def compare(
    own: Side, peer: Side, *, resolve_conflicts: bool, write_same_feature: bool, protocol_version: int
) -> Verdict:
    """The table of rules, without a look at the disks. `resolve_conflicts`: we accepted the meta stream."""
    ours, theirs = own.generation, peer.generation
    we_are_fresh, peer_is_fresh = (uuids.name in (0, JUST_CREATED) for uuids in (ours, theirs))
    if we_are_fresh and peer_is_fresh:
        return _verdict(10, 0, ours, theirs)
    if we_are_fresh:
        return _verdict(20, -2, ours, theirs)
    if peer_is_fresh:
        return _verdict(30, 2, ours, theirs)
    if ours.name == theirs.name:
        return _same_current(own, peer, resolve_conflicts, write_same_feature)
    they_are_newer = _newer(ours, theirs, protocol_version)
    we_are_newer = _newer(theirs, ours, protocol_version)
    if they_are_newer and we_are_newer:
        return _verdict(0, UNRELATED, ours, theirs)
    if they_are_newer:
        step, level, corrected = they_are_newer
        return _verdict(50 + step, -level, ours, corrected)
    if we_are_newer:
        step, level, corrected = we_are_newer
        return _verdict(70 + step, level, corrected, theirs)
    for mine, yours in _with_resync_starts_undone(ours, theirs):
        if _same(mine.bitmap, yours.bitmap):
            return _verdict(90, SPLIT_BRAIN, mine, yours)
    common = ((mine, yours) for mine in ours.ancestors for yours in theirs.ancestors if mine & _NAME != JUST_CREATED)
    if any(_same(mine, yours) for mine, yours in common):
        return _verdict(100, SPLIT_BRAIN_OLD, ours, theirs)
    return _verdict(0, UNRELATED, ours, theirs)


def _with_resync_starts_undone(ours: Generation, theirs: Generation) -> Iterator[tuple[Generation, Generation]]:
    """Both as they are, then each as if the resync it began as source, and whose target never heard of it, had not."""
    for mine in (ours, ours._undo_resync_start()) if ours.began_resync else (ours,):
        for yours in (theirs, theirs._undo_resync_start()) if theirs.began_resync else (theirs,):
            yield mine, yours


def _newer(older: Generation, newer: Generation, protocol_version: int) -> tuple[int, int, Generation] | None:
    """Whether `newer` went on from the data of `older`.

    (distance from the first rule of this direction, 1 by bitmap or 2 everything, `newer` corrected); None if not.
    """
    if _same(older.current, newer.bitmap):
        return 0, 1, newer
    # The source began a resync, and the target never heard of it: its P_SYNC_UUID was lost.
    knows_the_step = protocol_version >= _FIRST_VERSION_WITH_SYNC_STEP
    if _same((older.current & _NAME) + SYNC_STEP & _U64, newer.bitmap) and knows_the_step:
        if newer.began_resync:
            return 1, 1, newer._undo_resync_start()
        # it has gone on alone since, more than once: its history does not reach back so far, the name still tells
        return 1, 1, replace(newer, bitmap=older.current)
    if any(_same(older.current, uuid) for uuid in newer.history):
        return 10, 2, newer
    return None


def _same_current(own: Side, peer: Side, resolve_conflicts: bool, write_same_feature: bool) -> Verdict:
    ours, theirs = own.generation, peer.generation
    if ours.bitmap and not theirs.bitmap:
        if _missed_end(ours, theirs):
            return _verdict(34, 1, ours.resync_finished_source(), theirs)
        return _verdict(36, 1, ours, theirs)
    if theirs.bitmap and not ours.bitmap:
        if _missed_end(theirs, ours):
            return _verdict(35, -1, ours, theirs.resync_finished_source())
        return _verdict(37, -1, ours, theirs)
    if not own.crashed_primary and not peer.crashed_primary:
        return _verdict(40, 0, ours, theirs)
    if Role.PRIMARY in (own.role, peer.role):
        if not write_same_feature:
            return _verdict(41, PEER_TOO_OLD, ours, theirs)
        if own.role is peer.role:
            return _verdict(41, SPLIT_BRAIN_OLD, ours, theirs)
        return _verdict(41, 1 if own.role is Role.PRIMARY else -1, ours, theirs)
    if own.crashed_primary and peer.crashed_primary:
        return _verdict(40, -1 if resolve_conflicts else 1, ours, theirs)
    return _verdict(40, 1 if own.crashed_primary else -1, ours, theirs)


def _missed_end(source: Generation, target: Generation) -> bool:
    """The target ended a resync, and its source never heard of it."""
    return (source.bitmap ^ target.history0) & _NAME == 0 and (source.history0 ^ target.history1) & _NAME == 0


def _same(one: int, other: int) -> bool:
    """Whether two UUIDs name the same generation; 0 names none."""
    return (one ^ other) & _NAME == 0 and one & _NAME != 0


def _verdict(rule: int, number: int, own: Generation, peer: Generation) -> Verdict:
    return Verdict(rule, number, own, peer, _RULE_TEXTS[rule])


_RULE_TEXTS = {
    0: "nothing in common",
    10: "both sides are fresh",
    20: "this side is fresh",
    30: "the peer is fresh",
    34: "same generation; this side had missed the end of a resync",
    35: "same generation; the peer had missed the end of a resync",
    36: "same generation; a resync from this side had not ended",
    37: "same generation; a resync from the peer had not ended",
    40: "same generation",
    41: "same generation; one side crashed as Primary, and one is Primary now",
    50: "the peer went on from our generation",
    51: "the peer went on from our generation, and had begun a resync",
    60: "our generation is in the peer's history",
    70: "this side went on from the peer's generation",
    71: "this side went on from the peer's generation, and had begun a resync",
    80: "the peer's generation is in our history",
    90: "both sides went on from the same generation",
    100: "both sides went on from a generation long ago",
}
