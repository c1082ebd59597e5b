"""Whether this side may become Primary now, and if not, why and what to do. The promote action asks at that instant.

The one thing that must never happen is two active sides; the next is that acknowledged data are lost without an
operator having accepted it. So:

1. never beside a peer that is Primary, never with a disk that is Inconsistent or absent;
2. with the peer in sight and Secondary, and our own disk UpToDate: yes;
3. out of its sight, after it was Secondary: yes, it had nothing that we lack;
4. out of its sight, after it was Primary, or not seen at all since we started, or with a disk known to be old: only by
   a right, or, under `takeover consistent`, when the mirror was equal at the loss. That policy counts only with
   `fencing resource-and-stonith`: else the lost Primary goes on writing, and what was equal at two is not at five.

A right is a word in the side file, bound to the generation it was given for. A *permit* is the operator's; what is
known to be lost with it must be named in it. A *hand-over* is a Primary's word to itself, left when it demotes without
its peer: nobody has newer data unless an operator accepted that. A demotion that a standby saw is none: its peer may be
promoted again, alone, while the standby is off. Whoever keeps the record must drop the right when the peer becomes
Primary.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from replication.protocol.errors import Refusal
from replication.protocol.options import Fencing, Takeover
from replication.protocol.states import DiskState, Role

REFUSED = 11
NO_GOOD_DATA = 17
"""Exit codes that drbdsetup has for a refused state change, and for no UpToDate data in reach."""


class Right(enum.Enum):
    HAND_OVER = "hand-over"
    PERMIT = "permit"


@dataclass(frozen=True, slots=True)
class Standing:
    """How this side stands at the moment of the question."""

    policy: Takeover
    fencing: Fencing
    disk: DiskState
    peer_disk: DiskState
    connected: bool
    peer_role_now: Role
    peer_role_at_loss: Role | None
    """None: the peer was never seen since this process started."""
    was_equal_at_loss: bool
    """Both disks were UpToDate, and nothing was marked out of sync, when contact was lost."""
    record: Mapping[str, Any]
    """The side file."""
    generation: int
    """Our current UUID; bit 0 does not matter."""
    local_name: str
    peer_name: str
    resource: str


def hand_over_record(generation: int) -> dict[str, Any]:
    """For the side file, when the peer left after a clean demotion: nothing is newer than what we hold."""
    return _record(Right.HAND_OVER, generation, None)


def permit_record(generation: int, accept_loss: str | None) -> dict[str, Any]:
    """For the side file, by the operator's word. `accept_loss`: our own name, of the host that may lack data."""
    return _record(Right.PERMIT, generation, accept_loss)


def right_holds(record: Mapping[str, Any], generation: int) -> bool:
    """Whether the side file gives a right for this generation. One for another generation is void."""
    return _right(record, generation) is not None


def eligible(standing: Standing) -> Refusal | None:
    """None when this side may become Primary now, else the refusal to give."""
    peer = standing.peer_name
    right = _right(standing.record, standing.generation)
    loss_accepted = right is not None and right[0] is Right.PERMIT and right[1] == standing.local_name
    if standing.connected:
        if standing.peer_role_now is Role.PRIMARY:
            return _refusal(
                standing,
                f"peer {peer} is Primary, and two primaries are never allowed",
                f"demote it first, on {peer}: mirroradm secondary {standing.resource}",
            )
        if standing.peer_role_now is not Role.SECONDARY:
            return _refusal(standing, f"peer {peer} has not said yet which role it has", "ask again in a moment")
    if standing.disk < DiskState.OUTDATED or standing.disk is DiskState.UNKNOWN:
        return _no_good_data(standing)
    # with the peer in sight nothing has to be lost: a permit speaks of a peer that does not come back
    if standing.disk is DiskState.OUTDATED and (standing.connected or not loss_accepted):
        return _refusal(
            standing,
            f"the disk of {standing.local_name} is Outdated: {peer} has newer data",
            f"wait for the resync from {peer}" + ("" if standing.connected else f", or {_permit(standing)}"),
            NO_GOOD_DATA,
        )
    if standing.connected:
        if standing.disk is DiskState.CONSISTENT and right is None:
            return _refusal(
                standing,
                f"it is not known yet whether the disk of {standing.local_name} is the newest",
                f"wait until {standing.local_name} and {peer} have compared their data: mirroradm status"
                f" {standing.resource}",
                NO_GOOD_DATA,
            )
        return None
    if standing.peer_role_at_loss is Role.SECONDARY or loss_accepted:
        return None
    equal = standing.was_equal_at_loss and _takes_over_when_equal(standing)
    if standing.peer_role_at_loss is Role.PRIMARY:
        return None if equal else _after_a_primary(standing)
    if right is not None:
        return None
    return _refusal(
        standing,
        f"peer {peer} was not seen since {standing.local_name} started, so it may have newer data",
        f"start {peer} and wait for the connection, or {_permit(standing)}",
    )


def _takes_over_when_equal(standing: Standing) -> bool:
    return standing.policy is Takeover.CONSISTENT and standing.fencing is Fencing.RESOURCE_AND_STONITH


def _no_good_data(standing: Standing) -> Refusal:
    peer = standing.peer_name
    if standing.disk is DiskState.INCONSISTENT:
        fact = f"the disk of {standing.local_name} is Inconsistent, a mixture of old and new blocks"
        remedy = (
            f"wait for the resync from {peer} to end, or promote {peer}; for the first start of a new mirror:"
            f" mirroradm primary --force {standing.resource} on the host whose data count"
        )
    else:
        fact = f"{standing.local_name} has no disk to serve from ({standing.disk})"
        remedy = f"mirroradm attach {standing.resource}, or promote {peer}"
    return _refusal(standing, fact, remedy, NO_GOOD_DATA)


def _after_a_primary(standing: Standing) -> Refusal:
    peer = standing.peer_name
    fact = f"peer {peer} was Primary when contact was lost"
    if standing.policy is Takeover.CONSISTENT:
        if not standing.was_equal_at_loss:
            fact += ", and the mirror was not equal then"
        elif standing.fencing is not Fencing.RESOURCE_AND_STONITH:
            fact += ", and without fencing resource-and-stonith it may have gone on writing"
    return _refusal(standing, fact, f"wait for {peer}, or accept losing what only {peer} has: {_command(standing)}")


def _permit(standing: Standing) -> str:
    return f"accept losing what only {standing.peer_name} has: {_command(standing)}"


def _command(standing: Standing) -> str:
    return f"mirroradm permit {standing.resource} --accept-loss={standing.local_name}"


def _refusal(standing: Standing, fact: str, remedy: str, code: int = REFUSED) -> Refusal:
    return Refusal(f"mirror {standing.resource}", f"not promoted: {fact}", remedy, code=code)


def _record(kind: Right, generation: int, accept_loss: str | None) -> dict[str, Any]:
    return {"right": {"kind": kind.value, "generation": _name(generation), "accept_loss": accept_loss}}


def _right(record: Mapping[str, Any], generation: int) -> tuple[Right, str | None] | None:
    """Kind, and which host may lack data. What cannot be read gives no right."""
    right = record.get("right")
    if not isinstance(right, Mapping) or right.get("generation") != _name(generation):
        return None
    try:
        return Right(right.get("kind")), right.get("accept_loss")
    except ValueError:
        return None


def _name(generation: int) -> str:
    return f"{generation & ~1:016X}"
