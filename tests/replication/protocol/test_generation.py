"""Who is newer, and who resynchronises whom: the table row by row, then everything against its mirror image."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.protocol.decision import Decision, Outcome, Policies, Reason, decide
from replication.protocol.generation import (
    JUST_CREATED,
    PEER_TOO_OLD,
    SPLIT_BRAIN,
    SPLIT_BRAIN_OLD,
    SYNC_STEP,
    UNRELATED,
    Generation,
    Side,
    Verdict,
    compare,
)
from replication.protocol.options import AfterSplitBrain
from replication.protocol.states import DiskState, Role

A, B, C, D, E = (0x1111_0000_0000_0000 * factor + 0xAB0 for factor in range(1, 6))
RANDOM = 0x5A5A_1234_5678_9000
FRESH = Generation.just_created()
PRIMARY, SECONDARY = Role.PRIMARY, Role.SECONDARY
UP_TO_DATE, INCONSISTENT = DiskState.UP_TO_DATE, DiskState.INCONSISTENT


def side(
    *uuids: int,
    role: Role = SECONDARY,
    disk: DiskState = UP_TO_DATE,
    bits_set: int = 0,
    crashed_primary: bool = False,
    discard_my_data: bool = False,
    attaching: bool = False,
) -> Side:
    generation = Generation(*(*uuids, 0, 0, 0)[:4])
    return Side(generation, bits_set, role, disk, crashed_primary, discard_my_data, attaching)


def verdict(own: Side, peer: Side, resolve_conflicts: bool = False, write_same: bool = True) -> Verdict:
    return compare(own, peer, resolve_conflicts=resolve_conflicts, write_same_feature=write_same, protocol_version=101)


def decision(
    own: Side, peer: Side, resolve_conflicts: bool = False, policies: Policies | None = None, mirrored: bool = False
) -> Decision:
    return decide(
        own,
        peer,
        own_name="beta" if mirrored else "alpha",
        peer_name="alpha" if mirrored else "beta",
        resolve_conflicts=resolve_conflicts,
        write_same_feature=True,
        protocol_version=101,
        policies=policies or Policies(),
    )


# Life of the numbers


def test_a_primary_that_goes_on_alone_names_its_data_anew_and_counts_from_the_old_name() -> None:
    fresh = A >> 40 << 40 | RANDOM & (1 << 40) - 1
    assert Generation(A | 1, 0, B, C).lost_peer(RANDOM) == Generation(fresh | 1, A | 1, B, C)
    assert Generation(A, 0, B, C).lost_peer(RANDOM | 1) == Generation(fresh, A, B, C)


def test_the_first_name_of_a_new_mirror_is_all_random() -> None:
    assert FRESH.with_role_bit(primary=True).lost_peer(E) == Generation(E | 1, JUST_CREATED | 1, 0, 0)


def test_a_name_that_the_peer_may_hold_is_replaced_once_and_kept_in_the_history() -> None:
    source = Generation(A | 1, B, C, D).became_sync_source(E)
    assert not source.is_ours_alone
    alone = source.went_on_alone(RANDOM)
    assert alone.is_ours_alone
    assert (alone.bitmap, alone.history) == (source.bitmap, (B, A))
    assert alone.name not in (A, B)
    assert alone.went_on_alone(RANDOM + 0x10) is alone
    again = alone.became_sync_source(E)
    assert not again.is_ours_alone
    assert not again.went_on_alone(RANDOM).became_sync_source(E).is_ours_alone


def test_no_resync_begins_under_a_name_that_seems_ours_alone() -> None:
    """By chance, its random bitmap UUID could agree with the name that the target gets at the end."""
    for bitmap in (0, JUST_CREATED):
        assert not Generation(A, bitmap, 0, 0).became_sync_source(A | 0x10).is_ours_alone
    assert not Generation(A + SYNC_STEP, A, 0, 0).became_sync_source(E).is_ours_alone


@pytest.mark.parametrize("promotions", [1, 2, 3, 7])
@pytest.mark.parametrize("target_has_ended", [False, True])
def test_however_often_a_side_went_on_alone_its_peer_is_known(promotions: int, target_has_ended: bool) -> None:
    """The end of a resync was lost, and the source was promoted alone again and again: simulation seed 52918."""
    before = Generation(A, B, C, D)
    source = before.became_sync_source(E)
    target = Generation(B, 0, D, 0).became_sync_target(source.bitmap)
    if target_has_ended:
        target = target.resync_finished_target(before)
    for number in range(promotions):
        source = source.went_on_alone(RANDOM + 0x1000 * number)
    level = 2 if target_has_ended else 1
    assert verdict(Side(source, 1, SECONDARY, UP_TO_DATE), Side(target, 0, SECONDARY, UP_TO_DATE)).number == level


def test_losing_the_peer_again_changes_nothing() -> None:
    alone = Generation(A | 1, B, C, D)
    assert alone.lost_peer(E) is alone


def test_the_role_is_one_bit_of_the_current_name() -> None:
    promoted = Generation(A, B, C, D).with_role_bit(primary=True)
    assert promoted == Generation(A | 1, B, C, D)
    assert promoted.with_role_bit(primary=False) == Generation(A, B, C, D)
    assert promoted.name == A


def test_a_source_names_the_resync_after_its_bitmap() -> None:
    assert Generation(A, B, C, D).became_sync_source(E) == Generation(A, B + SYNC_STEP, B, C)
    assert Generation(A, (1 << 64) - 2, C, D).became_sync_source(E).bitmap == SYNC_STEP - 2
    assert Generation(A, 0, C, D).became_sync_source(E) == Generation(A, E, C, D)
    assert Generation(A, JUST_CREATED, 0, 0).became_sync_source(E) == Generation(A, E, JUST_CREATED, 0)


@pytest.mark.parametrize("before", [Generation(A | 1, B, C, D), Generation(A | 1, 0, C, D), Generation(A | 1, 4, 0, 0)])
def test_after_a_resync_both_sides_have_the_same_numbers(before: Generation) -> None:
    source = before.became_sync_source(E)
    target = Generation(B, 0, D, 0).became_sync_target(source.bitmap)
    assert target.bitmap == 0
    assert verdict(Side(target, 5, SECONDARY, INCONSISTENT), Side(source, 5, PRIMARY, UP_TO_DATE)).number == -1
    target, source = target.resync_finished_target(before), source.resync_finished_source()
    assert target == source.with_role_bit(primary=False)


def test_a_name_that_the_source_took_during_the_resync_is_the_one_to_keep() -> None:
    ended = Generation(B, 0, 0, 0).resync_finished_target(Generation(A, C, 0, 0), peer_current=E | 1)
    assert ended == Generation(E, 0, B, C)


def test_declared_equal_both_sides_get_one_new_name_and_count_nothing() -> None:
    cleared = FRESH.with_role_bit(primary=True).cleared(E)
    assert cleared == Generation(E | 1, 0, 0, 0)
    assert FRESH.became_sync_target(cleared.current) == Generation(E, 0, 0, 0)


def test_generations_are_shown_as_the_tools_show_them() -> None:
    assert str(Generation(0xAB, 4, 0, 1)) == "00000000000000AB:0000000000000004:0000000000000000:0000000000000001"


# The table

RULES = [
    (10, 0, side(4), side(5)),
    (10, 0, side(0), side(0)),
    (20, -2, side(4), side(A)),
    (20, -2, side(0), side(A)),
    (34, 1, side(A, B, C, D), side(A, 0, B, C)),
    (36, 1, side(A, B, C, D), side(A, 0, C, D)),
    (40, 0, side(A, 0, B, C), side(A | 1, 0, B, C)),
    (40, 0, side(A, B), side(A, C)),
    (40, 1, side(A, crashed_primary=True), side(A)),
    (40, -1, side(A), side(A, crashed_primary=True)),
    (41, 1, side(A, role=PRIMARY), side(A, crashed_primary=True)),
    (41, 1, side(A, role=PRIMARY, crashed_primary=True), side(A)),
    (41, 1, side(A, role=PRIMARY), side(A, role=SECONDARY, crashed_primary=True)),
    (41, SPLIT_BRAIN_OLD, side(A, role=PRIMARY, crashed_primary=True), side(A, role=PRIMARY)),
    (50, -1, side(A, 0, C), side(B | 1, A | 1, C)),
    (51, -1, side(A), side(B, A + SYNC_STEP, A, C)),
    (51, -1, side(A), side(B, A + SYNC_STEP, D, C)),
    (60, -2, side(A), side(B, D, A, C)),
    (60, -2, side(A), side(B, D, C, A)),
    (60, -2, side(A), side(B, 0, A, C)),
    (90, SPLIT_BRAIN, side(A, C), side(B, C | 1)),
    (100, SPLIT_BRAIN_OLD, side(A, 0, C), side(B, E, D, C)),
    (0, UNRELATED, side(A), side(B)),
    (100, SPLIT_BRAIN_OLD, side(A, C, D, 0), side(B, D, 0, C)),
    (100, SPLIT_BRAIN_OLD, side(A, C), side(B, D, C)),
    (90, SPLIT_BRAIN, side(A, C + SYNC_STEP, C, 0), side(B, C)),
]
MIRRORED = {20: 30, 34: 35, 36: 37, 50: 70, 51: 71, 60: 80}


@pytest.mark.parametrize(("rule", "number", "own", "peer"), RULES)
def test_each_rule_finds_its_case_and_its_mirror_image(rule: int, number: int, own: Side, peer: Side) -> None:
    seen = verdict(own, peer)
    assert (seen.rule, seen.number) == (rule, number)
    seen = verdict(peer, own, resolve_conflicts=True)
    mirrored = number if abs(number) >= SPLIT_BRAIN else -number
    assert (seen.rule, seen.number) == (MIRRORED.get(rule, rule), mirrored)


def test_when_both_crashed_as_primary_the_holder_of_the_tie_break_is_target() -> None:
    both = side(A, crashed_primary=True)
    assert verdict(both, both, resolve_conflicts=True).number == -1
    assert verdict(both, both, resolve_conflicts=False).number == 1


def test_a_peer_too_old_for_a_crash_beside_a_primary_is_refused() -> None:
    own, peer = side(A, role=PRIMARY), side(A, crashed_primary=True)
    assert verdict(own, peer, write_same=False).number == PEER_TOO_OLD
    assert verdict(side(A), peer, write_same=False).number == -1


def test_a_missed_end_of_a_resync_is_caught_up_with() -> None:
    source, target = side(A, B, C, D), side(A, 0, B, C)
    caught_up = Generation(A, 0, B, C)
    assert verdict(source, target).own == caught_up
    assert verdict(target, source).peer == caught_up


def test_a_resync_that_the_target_never_heard_of_is_taken_back() -> None:
    before = Generation(B, A, C, C)
    source, target = Side(before.became_sync_source(E), 9, SECONDARY, UP_TO_DATE), side(A)
    assert verdict(source, target).own == before
    assert verdict(target, source).peer == before


def test_before_version_96_that_trick_is_not_known() -> None:
    seen = compare(
        side(A),
        side(B, A + SYNC_STEP, A, C),
        resolve_conflicts=False,
        write_same_feature=True,
        protocol_version=95,
    )
    assert (seen.rule, seen.number) == (60, -2)


def test_names_that_contradict_each_other_are_no_relation() -> None:
    assert verdict(side(A, B), side(B, A)).number == UNRELATED
    assert verdict(side(A, B), side(B, 0, A)).number == UNRELATED


def test_fresh_metadata_is_no_common_ancestor() -> None:
    assert verdict(side(A, 0, C, JUST_CREATED), side(B, 0, D, JUST_CREATED)).number == UNRELATED


# The decision


def test_equal_sides_connect_without_a_resync() -> None:
    seen = decision(side(A | 1, role=PRIMARY), side(A))
    assert (seen.outcome, seen.reason) == (Outcome.NONE, Reason.EQUAL)
    assert seen.text == "alpha and beta hold the same generation"


def test_marked_blocks_on_equal_sides_are_told() -> None:
    assert decision(side(A), side(A, bits_set=7)).text.endswith("; 7 blocks stay marked out of sync")


def test_who_has_newer_data_is_said_by_name() -> None:
    seen = decision(side(A), side(B, A, role=PRIMARY))
    assert (seen.outcome, seen.reason) == (Outcome.TARGET_BITMAP, Reason.GENERATIONS)
    assert seen.text == "beta has newer data: it went on from what alpha has"
    assert decision(side(B, A), side(A)).text == "alpha has newer data: it went on from what beta has"


def test_a_fresh_side_takes_everything() -> None:
    own = side(4, disk=INCONSISTENT)
    assert decision(own, side(A, 4, role=PRIMARY)).outcome is Outcome.TARGET_FULL
    assert decision(side(A, 4, role=PRIMARY), own).outcome is Outcome.SOURCE_FULL
    assert decision(own, own).outcome is Outcome.NONE


def test_an_interrupted_resync_goes_on_by_bitmap() -> None:
    source = Generation(A, B, C, 0).became_sync_source(E)
    target = Generation(B, 0, C, 0).became_sync_target(source.bitmap)
    seen = decision(Side(target, 3, SECONDARY, INCONSISTENT), Side(source, 8, PRIMARY, UP_TO_DATE))
    assert seen.outcome is Outcome.TARGET_BITMAP


@pytest.mark.parametrize(
    ("own", "peer", "outcome"),
    [
        (side(A, disk=INCONSISTENT), side(A), Outcome.TARGET_BITMAP),
        (side(B, A, disk=INCONSISTENT), side(A), Outcome.TARGET_BITMAP),
        (side(A, C, disk=INCONSISTENT), side(B, C), Outcome.TARGET_BITMAP),
        (side(B, 0, A, disk=INCONSISTENT), side(A), Outcome.TARGET_FULL),
        (side(A, 0, C, disk=INCONSISTENT), side(B, 0, C), Outcome.TARGET_FULL),
        (side(A, disk=INCONSISTENT), side(B), Outcome.REFUSE),
    ],
)
def test_the_better_disk_is_source_whatever_the_names_say(own: Side, peer: Side, outcome: Outcome) -> None:
    assert decision(own, peer).outcome is outcome


def test_without_a_disk_there_is_nothing_to_decide() -> None:
    assert decision(side(A, disk=DiskState.DISKLESS), side(B)).reason is Reason.NO_DISK
    assert decision(side(A), side(B, disk=DiskState.DISKLESS)).outcome is Outcome.NONE


def test_two_inconsistent_disks_of_different_age_wait_for_the_operator() -> None:
    seen = decision(side(B, A, disk=INCONSISTENT), side(A, disk=INCONSISTENT))
    assert (seen.outcome, seen.reason) == (Outcome.REFUSE, Reason.OWN_DISK_INCONSISTENT)
    assert "alpha too, which would have to give its data" in seen.text


def test_a_primary_is_never_overwritten() -> None:
    newer, older = side(B, A), side(A, role=PRIMARY)
    for seen in (decision(older, newer), decision(newer, older)):
        assert (seen.outcome, seen.reason) == (Outcome.REFUSE, Reason.PRIMARY_WOULD_BE_TARGET)
    assert decision(older, newer).text.startswith("alpha is Primary, and its data would be overwritten")


def test_a_peer_that_gets_its_disk_back_while_primary_may_be_our_target() -> None:
    peer = side(A, role=PRIMARY, disk=DiskState.CONSISTENT, attaching=True)
    assert decision(side(B, A), peer).outcome is Outcome.SOURCE_BITMAP
    assert decision(peer, side(B, A)).reason is Reason.PRIMARY_WOULD_BE_TARGET


def test_two_primaries_never_connect() -> None:
    for own, peer in [(side(A), side(A)), (side(B, A), side(A)), (side(A, crashed_primary=True), side(A))]:
        seen = decision(replace(own, role=PRIMARY), replace(peer, role=PRIMARY))
        assert (seen.outcome, seen.reason) == (Outcome.REFUSE, Reason.BOTH_PRIMARY)


def test_unrelated_data_is_refused_even_when_one_side_gives_its_own_up() -> None:
    seen = decision(side(A, discard_my_data=True), side(B))
    assert (seen.outcome, seen.reason) == (Outcome.REFUSE, Reason.UNRELATED_DATA)


SPLIT = (side(A, C, bits_set=10), side(B, C, bits_set=20))


def test_a_split_brain_waits_for_the_operator() -> None:
    seen = decision(*SPLIT)
    assert (seen.outcome, seen.reason, seen.split_brain) == (Outcome.REFUSE, Reason.SPLIT_BRAIN, True)
    assert seen.text == "split brain: alpha and beta both went on from the same data, each without the other"
    assert "--discard-my-data" in seen.remedy


@pytest.mark.parametrize(
    ("own", "peer", "outcome"),
    [
        (side(A, C), side(B, C), Outcome.TARGET_BITMAP),
        (side(A, 0, C), side(B, 0, C), Outcome.TARGET_FULL),
        (side(A, JUST_CREATED), side(B, JUST_CREATED), Outcome.TARGET_FULL),
    ],
)
def test_the_side_that_discards_its_data_is_overwritten(own: Side, peer: Side, outcome: Outcome) -> None:
    given_up = replace(own, discard_my_data=True)
    seen = decision(given_up, peer)
    assert (seen.outcome, seen.reason, seen.split_brain) == (outcome, Reason.SOLVED_BY_OPERATOR, True)
    assert decision(given_up, replace(peer, discard_my_data=True)).reason is Reason.SPLIT_BRAIN
    assert decision(replace(given_up, role=PRIMARY), peer).reason is Reason.PRIMARY_WOULD_BE_TARGET


WAS_PRIMARY, WAS_SECONDARY = side(A, C | 1, bits_set=10), side(B, C, bits_set=20)


@pytest.mark.parametrize(
    ("policy", "own", "peer", "number"),
    [
        (AfterSplitBrain.DISCONNECT, *SPLIT, 0),
        (AfterSplitBrain.CONSENSUS, *SPLIT, 0),
        (AfterSplitBrain.DISCARD_LOCAL, *SPLIT, -1),
        (AfterSplitBrain.DISCARD_REMOTE, *SPLIT, 1),
        (AfterSplitBrain.DISCARD_LEAST_CHANGES, *SPLIT, -1),
        (AfterSplitBrain.DISCARD_LEAST_CHANGES, side(A, C, bits_set=5), side(B, C, bits_set=5), 1),
        (AfterSplitBrain.DISCARD_ZERO_CHANGES, *SPLIT, 0),
        (AfterSplitBrain.DISCARD_ZERO_CHANGES, side(A, C), SPLIT[1], -1),
        (AfterSplitBrain.DISCARD_ZERO_CHANGES, side(A, C), side(B, C), 1),
        (AfterSplitBrain.DISCARD_YOUNGER_PRIMARY, WAS_PRIMARY, WAS_SECONDARY, 1),
        (AfterSplitBrain.DISCARD_OLDER_PRIMARY, WAS_PRIMARY, WAS_SECONDARY, -1),
        (AfterSplitBrain.DISCARD_YOUNGER_PRIMARY, *SPLIT, -1),
        (AfterSplitBrain.DISCARD_OLDER_PRIMARY, side(A, C), side(B, C), 1),
    ],
)
def test_a_policy_without_primaries_chooses_the_loser(
    policy: AfterSplitBrain, own: Side, peer: Side, number: int
) -> None:
    seen = decision(own, peer, policies=Policies(no_primary=policy))
    wanted = {0: Outcome.REFUSE, 1: Outcome.SOURCE_BITMAP, -1: Outcome.TARGET_BITMAP}[number]
    assert seen.outcome is wanted
    assert seen.reason is (Reason.SOLVED_BY_POLICY if number else Reason.SPLIT_BRAIN)


LEAST = AfterSplitBrain.DISCARD_LEAST_CHANGES


@pytest.mark.parametrize(
    ("policy", "primary_bits", "reason"),
    [
        (AfterSplitBrain.DISCONNECT, 30, Reason.SPLIT_BRAIN),
        (AfterSplitBrain.DISCARD_SECONDARY, 10, Reason.SOLVED_BY_POLICY),
        (AfterSplitBrain.CONSENSUS, 30, Reason.SOLVED_BY_POLICY),
        (AfterSplitBrain.CONSENSUS, 10, Reason.SPLIT_BRAIN),
        (AfterSplitBrain.CALL_PRI_LOST_AFTER_SB, 30, Reason.SOLVED_BY_POLICY),
        (AfterSplitBrain.CALL_PRI_LOST_AFTER_SB, 10, Reason.PRIMARY_WOULD_BE_TARGET),
        (AfterSplitBrain.VIOLENTLY_AS0P, 10, Reason.PRIMARY_WOULD_BE_TARGET),
    ],
)
def test_with_one_primary_only_the_secondary_can_lose(
    policy: AfterSplitBrain, primary_bits: int, reason: Reason
) -> None:
    own, peer = side(A, C, role=PRIMARY, bits_set=primary_bits), side(B, C, bits_set=20)
    policies = Policies(no_primary=LEAST, one_primary=policy)
    seen = decision(own, peer, policies=policies)
    assert seen.reason is reason
    assert seen.outcome is (Outcome.SOURCE_BITMAP if reason is Reason.SOLVED_BY_POLICY else Outcome.REFUSE)
    assert decision(peer, own, policies=policies).reason is reason


def test_no_policy_touches_an_ancestor_that_only_the_histories_know() -> None:
    seen = decision(side(A, 0, C), side(B, 0, C), policies=Policies(no_primary=AfterSplitBrain.DISCARD_REMOTE))
    assert seen.reason is Reason.SPLIT_BRAIN


# Everything, against its mirror image

MIRROR_OUTCOME = {
    Outcome.NONE: Outcome.NONE,
    Outcome.REFUSE: Outcome.REFUSE,
    Outcome.SOURCE_BITMAP: Outcome.TARGET_BITMAP,
    Outcome.SOURCE_FULL: Outcome.TARGET_FULL,
    Outcome.TARGET_BITMAP: Outcome.SOURCE_BITMAP,
    Outcome.TARGET_FULL: Outcome.SOURCE_FULL,
}
MIRROR_REASON = {
    Reason.OWN_DISK_INCONSISTENT: Reason.PEER_DISK_INCONSISTENT,
    Reason.PEER_DISK_INCONSISTENT: Reason.OWN_DISK_INCONSISTENT,
}
MIRROR_POLICY = {
    AfterSplitBrain.DISCARD_LOCAL: AfterSplitBrain.DISCARD_REMOTE,
    AfterSplitBrain.DISCARD_REMOTE: AfterSplitBrain.DISCARD_LOCAL,
}


def check(own: Side, peer: Side, resolve_conflicts: bool, policies: Policies) -> None:
    """What must hold for any two sides whatever."""
    seen = decision(own, peer, resolve_conflicts, policies)
    mirrored_policies = Policies(
        *(
            MIRROR_POLICY.get(policy, policy)
            for policy in (policies.no_primary, policies.one_primary, policies.two_primaries)
        )
    )
    other = decision(peer, own, not resolve_conflicts, mirrored_policies, mirrored=True)
    assert other.outcome is MIRROR_OUTCOME[seen.outcome], (seen, other)
    assert other.reason is MIRROR_REASON.get(seen.reason, seen.reason)
    assert (other.verdict.own, other.verdict.peer) == (seen.verdict.peer, seen.verdict.own)
    source, target = (own, peer) if seen.outcome.is_source else (peer, own)
    if seen.outcome.is_source or seen.outcome.is_target:
        assert source.disk > INCONSISTENT
        assert target.role is not PRIMARY
    if seen.outcome is not Outcome.REFUSE:
        assert not own.role is peer.role is PRIMARY or seen.reason is Reason.NO_DISK
        assert not seen.remedy
    else:
        assert seen.remedy
    assert "alpha" in seen.text or "beta" in seen.text
    assert "{" not in seen.text


def test_every_relation_of_the_table_is_decided_alike_on_both_sides() -> None:
    roles, disks, flags = (PRIMARY, SECONDARY), (INCONSISTENT, DiskState.OUTDATED, UP_TO_DATE), (False, True)
    policies = Policies(LEAST, AfterSplitBrain.CONSENSUS, AfterSplitBrain.VIOLENTLY_AS0P)
    for (_, _, own, peer), own_role, peer_role, own_disk, peer_disk, crashed, discards, tie in itertools.product(
        RULES, roles, roles, disks, disks, itertools.product(flags, flags), (0, 1, 2), flags
    ):
        check(
            replace(own, role=own_role, disk=own_disk, crashed_primary=crashed[0], discard_my_data=discards == 1),
            replace(peer, role=peer_role, disk=peer_disk, crashed_primary=crashed[1], discard_my_data=discards == 2),
            tie,
            policies,
        )


uuids = st.sampled_from([0, JUST_CREATED, A, A | 1, B, C, D, A + SYNC_STEP, B + SYNC_STEP, C | 1])
sides = st.builds(
    Side,
    st.builds(Generation, uuids, uuids, uuids, uuids),
    st.sampled_from([0, 1, 50]),
    st.sampled_from([PRIMARY, SECONDARY]),
    st.sampled_from([disk for disk in DiskState if disk is not DiskState.NEGOTIATING]),
    st.booleans(),
    st.booleans(),
)
policy_sets = st.builds(Policies, *[st.sampled_from(AfterSplitBrain)] * 3)


@settings(max_examples=1000)
@given(sides, sides, st.booleans(), policy_sets)
def test_any_two_sides_are_decided_alike_on_both(own: Side, peer: Side, tie: bool, policies: Policies) -> None:
    check(own, peer, tie, policies)
