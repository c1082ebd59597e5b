"""Who may become Primary: each rule as a story, then every combination of what can be."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from replication.protocol.options import Fencing, Takeover
from replication.protocol.states import DiskState, Role
from replication.protocol.takeover import (
    NO_GOOD_DATA,
    REFUSED,
    Standing,
    eligible,
    hand_over_record,
    permit_record,
    right_holds,
)

GENERATION = 0xA1B2_C3D4_E5F6_0718
OTHER = 0x1111_2222_3333_4444

ALONE = Standing(
    policy=Takeover.MANUAL,
    fencing=Fencing.DONT_CARE,
    disk=DiskState.UP_TO_DATE,
    peer_disk=DiskState.UNKNOWN,
    connected=False,
    peer_role_now=Role.UNKNOWN,
    peer_role_at_loss=Role.PRIMARY,
    was_equal_at_loss=True,
    record={},
    generation=GENERATION,
    local_name="beta",
    peer_name="alpha",
    resource="r0",
)
CONNECTED = replace(ALONE, connected=True, peer_role_now=Role.SECONDARY, peer_disk=DiskState.UP_TO_DATE)
FENCED = replace(ALONE, policy=Takeover.CONSISTENT, fencing=Fencing.RESOURCE_AND_STONITH)
PERMIT = permit_record(GENERATION, "beta")


def refused(standing: Standing) -> tuple[int, str, str]:
    refusal = eligible(standing)
    assert refusal is not None
    assert refusal.subject == "mirror r0"
    return refusal.code, refusal.fact, refusal.remedy


def test_with_the_peer_secondary_and_our_disk_good_we_may() -> None:
    assert eligible(CONNECTED) is None


def test_beside_a_primary_nobody_may_not_even_with_a_permit() -> None:
    code, fact, remedy = refused(replace(CONNECTED, peer_role_now=Role.PRIMARY, record=PERMIT))
    assert code == REFUSED
    assert fact == "not promoted: peer alpha is Primary, and two primaries are never allowed"
    assert "mirroradm secondary r0" in remedy


def test_a_standby_that_lost_its_primary_waits_for_a_word() -> None:
    assert refused(ALONE) == (
        11,
        "not promoted: peer alpha was Primary when contact was lost",
        "wait for alpha, or accept losing what only alpha has: mirroradm permit r0 --accept-loss=beta",
    )
    assert eligible(replace(ALONE, record=PERMIT)) is None


def test_a_permit_must_name_what_is_lost() -> None:
    assert refused(replace(ALONE, record=permit_record(GENERATION, None)))[0] == REFUSED
    assert refused(replace(ALONE, record=permit_record(GENERATION, "gamma")))[0] == REFUSED


def test_a_permit_for_an_older_generation_is_void() -> None:
    assert refused(replace(ALONE, record=permit_record(OTHER, "beta")))[0] == REFUSED


def test_a_hand_over_does_not_cover_a_peer_that_became_primary_again() -> None:
    assert refused(replace(ALONE, record=hand_over_record(GENERATION)))[0] == REFUSED


def test_after_a_restart_only_a_right_helps_until_the_peer_was_seen() -> None:
    started = replace(FENCED, peer_role_at_loss=None, disk=DiskState.CONSISTENT)
    assert "was not seen since beta started" in refused(started)[1]
    assert eligible(replace(started, record=hand_over_record(GENERATION))) is None
    assert eligible(replace(started, record=permit_record(GENERATION, None))) is None


def test_what_a_secondary_leaves_behind_is_ours() -> None:
    assert eligible(replace(ALONE, peer_role_at_loss=Role.SECONDARY)) is None


def test_an_equal_mirror_behind_fencing_takes_over_by_itself() -> None:
    assert eligible(FENCED) is None
    assert refused(replace(FENCED, was_equal_at_loss=False))[1].endswith("and the mirror was not equal then")


def test_without_fencing_consistent_is_as_careful_as_manual() -> None:
    for fencing in (Fencing.DONT_CARE, Fencing.RESOURCE_ONLY):
        _, fact, _ = refused(replace(FENCED, fencing=fencing))
        assert fact.endswith("without fencing resource-and-stonith it may have gone on writing")


def test_a_mixture_of_two_images_is_never_served() -> None:
    for standing in (ALONE, FENCED, CONNECTED):
        code, fact, _ = refused(replace(standing, disk=DiskState.INCONSISTENT, record=PERMIT))
        assert code == NO_GOOD_DATA
        assert "Inconsistent, a mixture of old and new blocks" in fact
    assert "no disk to serve from (Diskless)" in refused(replace(CONNECTED, disk=DiskState.DISKLESS))[1]


def test_an_outdated_disk_wants_the_loss_to_be_named() -> None:
    outdated = replace(CONNECTED, disk=DiskState.OUTDATED, connected=False, peer_role_at_loss=Role.PRIMARY)
    code, fact, remedy = refused(replace(outdated, record=hand_over_record(GENERATION)))
    assert (code, fact) == (NO_GOOD_DATA, "not promoted: the disk of beta is Outdated: alpha has newer data")
    assert "--accept-loss=beta" in remedy
    assert eligible(replace(outdated, record=PERMIT)) is None


def test_with_the_peer_in_sight_nothing_has_to_be_lost() -> None:
    """A permit was given when the peer was away, and never used: simulation seed 5510."""
    code, _, remedy = refused(replace(CONNECTED, disk=DiskState.OUTDATED, record=PERMIT))
    assert (code, remedy) == (NO_GOOD_DATA, "wait for the resync from alpha")


def test_a_connected_disk_not_yet_compared_waits_a_moment() -> None:
    assert refused(replace(CONNECTED, disk=DiskState.CONSISTENT))[0] == NO_GOOD_DATA
    assert refused(replace(CONNECTED, peer_role_now=Role.UNKNOWN, record=PERMIT))[0] == REFUSED


def test_records_say_what_they_are_for() -> None:
    assert hand_over_record(0xAB1) == {
        "right": {"kind": "hand-over", "generation": "0000000000000AB0", "accept_loss": None}
    }
    assert permit_record(0xAB0, "alpha")["right"]["kind"] == "permit"
    assert right_holds(hand_over_record(0xAB1), 0xAB0)
    assert not right_holds(hand_over_record(0xAB1), 0xAB2)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"right": None},
        {"right": "permit"},
        {"right": {"kind": "permit"}},
        {"right": {"kind": "permit", "generation": GENERATION}},
        {"right": {"kind": ["permit"], "generation": f"{GENERATION:016X}"}},
        {"right": {"kind": "favour", "generation": f"{GENERATION:016X}"}},
    ],
)
def test_a_damaged_record_gives_no_right(record: dict[str, Any]) -> None:
    assert not right_holds(record, GENERATION)


RIGHTS: dict[str, dict[str, Any]] = {
    "none": {},
    "hand-over": hand_over_record(GENERATION),
    "permit": permit_record(GENERATION, None),
    "permit naming alpha": PERMIT,
    "void": permit_record(OTHER, "beta"),
}


def expected(standing: Standing, right: str) -> int | None:
    """The exit code, said in another way than the code says it: by what speaks for the promotion."""
    named = right == "permit naming alpha"
    any_right = right in ("hand-over", "permit", "permit naming alpha")
    good_enough = {DiskState.UP_TO_DATE, DiskState.CONSISTENT} | (
        {DiskState.OUTDATED} if named and not standing.connected else set()
    )
    if standing.connected and standing.peer_role_now is not Role.SECONDARY:
        return REFUSED
    if standing.disk not in good_enough:
        return NO_GOOD_DATA
    if standing.connected:
        return None if standing.disk is DiskState.UP_TO_DATE or any_right else NO_GOOD_DATA
    automatic = standing.policy is Takeover.CONSISTENT and standing.fencing is Fencing.RESOURCE_AND_STONITH
    speaks_for_it = {
        Role.SECONDARY: True,
        Role.PRIMARY: named or (automatic and standing.was_equal_at_loss),
        Role.UNKNOWN: any_right,
        None: any_right,
    }
    return None if speaks_for_it[standing.peer_role_at_loss] else REFUSED


def test_every_combination_has_its_outcome() -> None:
    count = 0
    for policy, fencing, disk, peer_disk, connected, now, at_loss, equal, right in itertools.product(
        Takeover, Fencing, DiskState, DiskState, (False, True), Role, [*Role, None], (False, True), RIGHTS
    ):
        standing = Standing(
            policy, fencing, disk, peer_disk, connected, now, at_loss, equal, RIGHTS[right], GENERATION | 1,
            "beta", "alpha", "r0",
        )  # fmt: skip
        refusal = eligible(standing)
        assert (refusal.code if refusal else None) == expected(standing, right), (standing, right, refusal)
        if refusal:
            assert refusal.fact.startswith("not promoted: ")
            assert refusal.remedy
        count += 1
    assert count == 2 * 3 * 9 * 9 * 2 * 3 * 4 * 2 * 5
