"""What to do about two sides' generations and disks when a connection begins: who resynchronises whom, or neither.

Both sides decide for themselves and come to the same end. `generation.compare` says what the names say; here come the
disks, the roles, the policies after a split brain, and the words for people.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from replication.protocol.generation import (
    JUST_CREATED,
    PEER_TOO_OLD,
    SPLIT_BRAIN,
    SPLIT_BRAIN_OLD,
    UNRELATED,
    Side,
    Verdict,
    compare,
)
from replication.protocol.options import AfterSplitBrain
from replication.protocol.states import DiskState, Role


class Outcome(enum.Enum):
    NONE = "none"
    """Connect without a resync. Bits that are set stay set."""
    SOURCE_BITMAP = "source, by bitmap"
    SOURCE_FULL = "source, everything"
    TARGET_BITMAP = "target, by bitmap"
    TARGET_FULL = "target, everything"
    REFUSE = "refuse"
    """Do not connect again before an operator has acted."""

    @property
    def is_source(self) -> bool:
        return self in (Outcome.SOURCE_BITMAP, Outcome.SOURCE_FULL)

    @property
    def is_target(self) -> bool:
        return self in (Outcome.TARGET_BITMAP, Outcome.TARGET_FULL)

    @property
    def is_full(self) -> bool:
        return self in (Outcome.SOURCE_FULL, Outcome.TARGET_FULL)


class Reason(enum.Enum):
    NO_DISK = "no disk to compare"
    EQUAL = "same generation"
    GENERATIONS = "generations"
    DISK_STATES = "disk states"
    SOLVED_BY_POLICY = "split brain, solved by policy"
    SOLVED_BY_OPERATOR = "split brain, solved by the operator"
    SPLIT_BRAIN = "split brain"
    UNRELATED_DATA = "unrelated data"
    PEER_TOO_OLD = "peer too old"
    OWN_DISK_INCONSISTENT = "own disk inconsistent"
    PEER_DISK_INCONSISTENT = "peer's disk inconsistent"
    PRIMARY_WOULD_BE_TARGET = "a Primary would become target"
    BOTH_PRIMARY = "both sides are Primary"


@dataclass(frozen=True, slots=True)
class Policies:
    """What settles a split brain without an operator, by how many sides are Primary now (after-sb-0pri, 1pri, 2pri)."""

    no_primary: AfterSplitBrain = AfterSplitBrain.DISCONNECT
    one_primary: AfterSplitBrain = AfterSplitBrain.DISCONNECT
    two_primaries: AfterSplitBrain = AfterSplitBrain.DISCONNECT


@dataclass(frozen=True, slots=True)
class Decision:
    outcome: Outcome
    reason: Reason
    verdict: Verdict
    text: str
    """For people, with both names: who has newer data, and why this outcome."""
    remedy: str = ""
    """What to do after REFUSE."""

    @property
    def split_brain(self) -> bool:
        """Solved or not; handlers want to hear of it."""
        return self.reason in (Reason.SPLIT_BRAIN, Reason.SOLVED_BY_POLICY, Reason.SOLVED_BY_OPERATOR)


def decide(
    own: Side,
    peer: Side,
    *,
    own_name: str,
    peer_name: str,
    resolve_conflicts: bool,
    write_same_feature: bool,
    protocol_version: int,
    policies: Policies = Policies(),
) -> Decision:
    """Who resynchronises whom when a connection begins, or a disk is attached to one. Both sides come to the same end.

    Never a source that is Inconsistent, nor a target that is Primary; the exception is a *peer* that attaches a disk
    while Primary: that it is the target of a resync is its own affair.
    """
    verdict = compare(
        own,
        peer,
        resolve_conflicts=resolve_conflicts,
        write_same_feature=write_same_feature,
        protocol_version=protocol_version,
    )
    names = (own_name, peer_name)

    def refuse(reason: Reason, text: str, remedy: str) -> Decision:
        return Decision(Outcome.REFUSE, reason, verdict, text, remedy)

    for side, name in ((own, own_name), (peer, peer_name)):
        if side.disk < DiskState.INCONSISTENT or side.disk is DiskState.UNKNOWN:
            return Decision(Outcome.NONE, Reason.NO_DISK, verdict, f"{name} has no disk to compare")
    if verdict.number == UNRELATED:
        return refuse(
            Reason.UNRELATED_DATA,
            f"{own_name} and {peer_name} hold data that have nothing in common: they were never one mirror",
            f"make sure that {peer_name} is the right host; then, on the side whose data can go: mirroradm create-md",
        )
    if verdict.number == PEER_TOO_OLD:
        return refuse(
            Reason.PEER_TOO_OLD,
            f"{own_name} and {peer_name} hold the same generation, one of them crashed as Primary, and {peer_name} does"
            " not know how to go on from there",
            f"update DRBD on {peer_name}, or make both Secondary before they connect",
        )
    number, reason, text = verdict.number, Reason.GENERATIONS, _who_is_newer(verdict, names)
    better = (own.disk > DiskState.INCONSISTENT) - (peer.disk > DiskState.INCONSISTENT)
    if better:
        full = number == SPLIT_BRAIN_OLD or abs(number) == 2
        number, reason = better * (2 if full else 1), Reason.DISK_STATES
        text = f"{_target(names, number)} is Inconsistent; {_source(names, number)} is not"
    if abs(number) == SPLIT_BRAIN and verdict.rule != 41:
        number, reason = _settle_split_brain(own, peer, verdict, policies, resolve_conflicts)
        if not number:
            return refuse(
                reason,
                text,
                "decide whose changes can go; on that side: mirroradm disconnect, mirroradm secondary,"
                " mirroradm connect --discard-my-data; on the other: mirroradm connect",
            )
        how = "discards its data by the operator's word" if reason is Reason.SOLVED_BY_OPERATOR else "loses by policy"
        text = f"{text}; {_target(names, number)} {how}"
    if own.role is Role.PRIMARY and peer.role is Role.PRIMARY:
        return refuse(
            Reason.BOTH_PRIMARY,
            f"{own_name} and {peer_name} are both Primary ({text})",
            "stop the service on one of them, and there: mirroradm secondary, then mirroradm connect",
        )
    if number and (own if number > 0 else peer).disk is DiskState.INCONSISTENT:
        # Had only one disk been Inconsistent, the other would be source by now.
        return refuse(
            Reason.OWN_DISK_INCONSISTENT if number > 0 else Reason.PEER_DISK_INCONSISTENT,
            f"{own_name} and {peer_name} are both Inconsistent, {_source(names, number)} too, which would have to give"
            f" its data ({text})",
            "restore one side from a backup, or choose one to be taken as it is, and there: mirroradm primary --force;"
            " then mirroradm connect",
        )
    target, target_name = (own, own_name) if number < 0 else (peer, peer_name)
    if number and target.role is Role.PRIMARY and (target is own or not peer.attaching):
        return refuse(
            Reason.PRIMARY_WOULD_BE_TARGET,
            f"{target_name} is Primary, and its data would be overwritten while in use ({text})",
            f"stop the service on {target_name}, and there: mirroradm secondary, then mirroradm connect",
        )
    if not number:
        return Decision(Outcome.NONE, Reason.EQUAL, verdict, text + _left_over(own, peer))
    return Decision(_OUTCOMES[number], reason, verdict, text)


_OUTCOMES = {
    1: Outcome.SOURCE_BITMAP,
    2: Outcome.SOURCE_FULL,
    -1: Outcome.TARGET_BITMAP,
    -2: Outcome.TARGET_FULL,
}


def _settle_split_brain(
    own: Side, peer: Side, verdict: Verdict, policies: Policies, resolve_conflicts: bool
) -> tuple[int, Reason]:
    """1, 2, -1 or -2 and how it came to that; 0 when an operator must decide."""
    # Fresh metadata (4) as the common ancestor means that nothing was ever common.
    by_bitmap = verdict.number == SPLIT_BRAIN and verdict.own.bitmap & ~1 != JUST_CREATED
    step = 1 if by_bitmap else 2
    # DRBD's `always-asbp no`: without a bitmap that counts from the ancestor, only an operator decides.
    direction = _after_split_brain(own, peer, policies, resolve_conflicts) if verdict.number == SPLIT_BRAIN else 0
    if direction:
        return direction * step, Reason.SOLVED_BY_POLICY
    if own.discard_my_data != peer.discard_my_data:
        return -step if own.discard_my_data else step, Reason.SOLVED_BY_OPERATOR
    return 0, Reason.SPLIT_BRAIN


def _after_split_brain(own: Side, peer: Side, policies: Policies, resolve_conflicts: bool) -> int:
    """1: the peer loses, -1: we lose, 0: no policy says.

    A Primary that loses has to be demoted first (call-pri-lost-after-sb) or is overwritten in use (violently-as0p);
    `decide` refuses either.
    """
    primaries = (own.role is Role.PRIMARY) + (peer.role is Role.PRIMARY)
    if primaries == 0:
        return _loser_without_primary(own, peer, policies.no_primary, resolve_conflicts)
    policy = policies.one_primary if primaries == 1 else policies.two_primaries
    if policy in (AfterSplitBrain.CALL_PRI_LOST_AFTER_SB, AfterSplitBrain.VIOLENTLY_AS0P):
        return _loser_without_primary(own, peer, policies.no_primary, resolve_conflicts)
    if primaries == 2:
        return 0
    for_primary = 1 if own.role is Role.PRIMARY else -1
    if policy is AfterSplitBrain.DISCARD_SECONDARY:
        return for_primary
    if policy is AfterSplitBrain.CONSENSUS:
        direction = _loser_without_primary(own, peer, policies.no_primary, resolve_conflicts)
        return direction if direction == for_primary else 0
    return 0


def _loser_without_primary(own: Side, peer: Side, policy: AfterSplitBrain, resolve_conflicts: bool) -> int:
    """after-sb-0pri; 1: the peer loses, -1: we lose, 0: it does not say."""
    tie = -1 if resolve_conflicts else 1
    # Bit 0 of a bitmap UUID: its side was Primary when the two parted.
    age = (own.generation.bitmap & 1) - (peer.generation.bitmap & 1)
    zero = (peer.bits_set == 0) - (own.bits_set == 0)
    least = (own.bits_set > peer.bits_set) - (own.bits_set < peer.bits_set)
    nothing_written = own.bits_set == peer.bits_set == 0
    if policy is AfterSplitBrain.DISCARD_LOCAL:
        return -1
    if policy is AfterSplitBrain.DISCARD_REMOTE:
        return 1
    if policy is AfterSplitBrain.DISCARD_YOUNGER_PRIMARY:
        return age or least or tie
    if policy is AfterSplitBrain.DISCARD_OLDER_PRIMARY:
        return -age or least or tie
    if policy is AfterSplitBrain.DISCARD_ZERO_CHANGES:
        return tie if nothing_written else zero
    if policy is AfterSplitBrain.DISCARD_LEAST_CHANGES:
        return least or tie
    return 0


# What to say about it


def _source(names: tuple[str, str], number: int) -> str:
    return names[0] if number > 0 else names[1]


def _target(names: tuple[str, str], number: int) -> str:
    return names[1] if number > 0 else names[0]


def _who_is_newer(verdict: Verdict, names: tuple[str, str]) -> str:
    sentence = _SENTENCES[verdict.rule] if verdict.number or verdict.rule != 40 else _EQUAL
    direction = verdict.number if abs(verdict.number) <= 2 else 0
    return sentence.format(source=_source(names, direction), target=_target(names, direction))


def _left_over(own: Side, peer: Side) -> str:
    blocks = max(own.bits_set, peer.bits_set)
    return f"; {blocks} blocks stay marked out of sync" if blocks else ""


_EQUAL = "{target} and {source} hold the same generation"
_CUT_OFF = "the last resync from {source} to {target} had not ended on both"
_NEWER = "{source} has newer data: it went on from what {target} has"
_MUCH_NEWER = "{source} has newer data: it went on, long ago, from what {target} has"
_SENTENCES = {
    10: "neither {target} nor {source} holds data yet",
    20: "{target} holds no data yet, {source} does",
    30: "{target} holds no data yet, {source} does",
    34: _CUT_OFF,
    35: _CUT_OFF,
    36: _CUT_OFF,
    37: _CUT_OFF,
    40: _EQUAL + ", and what was being written at the crash counts as {source} has it",
    41: _EQUAL + ", and what was being written at the crash counts as {source} has it, since it is Primary",
    50: _NEWER,
    51: _NEWER,
    60: _MUCH_NEWER,
    70: _NEWER,
    71: _NEWER,
    80: _MUCH_NEWER,
    90: "split brain: {target} and {source} both went on from the same data, each without the other",
    100: "split brain: {target} and {source} both went on, long ago, from the same data, each without the other",
}
