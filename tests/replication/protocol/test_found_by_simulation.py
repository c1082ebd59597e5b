"""Each of these once went wrong in the simulation of two whole nodes; here it is as short as it can be told."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from replication.protocol import packets
from replication.protocol.effects import Stream
from replication.protocol.errors import Refusal
from replication.protocol.options import Fencing, Takeover
from replication.protocol.requests import EIO, ESHUTDOWN, WRITE
from replication.protocol.states import ConnectionState, DiskState, Role
from tests.replication.protocol.coupled import MIB, MirrorPair, Side, block

STEPS_MAX = 1000


def step_until(pair: MirrorPair, condition: Callable[[], bool]) -> None:
    """One thing after the other, on both sides in turn, and not one more than needed."""
    for number in range(STEPS_MAX):
        if condition():
            return
        pair.sides[number % 2].step()
    raise AssertionError("it never came to that")


def something_arrives(pair: MirrorPair, order: random.Random) -> None:
    """A flush ends, or one stream of one side is read: the two streams may overtake each other."""
    side = order.choice(pair.sides)
    if side.disk.flushing and order.random() < 0.5:
        side.finish_flush()
    else:
        side.feed(order.choice(list(Stream)))


def name(side: Side) -> int:
    return side.volume.data.generation.name


def assert_split_brain(pair: MirrorPair) -> None:
    """Neither follows the other, and an operator is told why."""
    for side in pair.sides:
        assert side.connection() is ConnectionState.STAND_ALONE
        assert "split brain" in side.status["mirror"]["reason"].lower()


# what a power cut may take back


def test_an_extent_stays_hot_until_our_own_disk_was_flushed_too() -> None:
    pair = MirrorPair(al_extents=1)
    alpha = pair.with_primary()
    alpha.flushes_at_once = False
    pair.write(alpha, 0, block(b"1"))
    pair.pass_time(0.5)
    assert "send P_BARRIER_ACK" in pair.beta.trail
    second = alpha.request(WRITE, 4 * MIB, block(b"2"))
    alpha.submit(second)
    pair.pass_time(0.5)
    assert alpha.trail.count("persist activity-log") == 1
    assert second not in alpha.completed
    alpha.finish_flush()
    pair.run()
    assert alpha.trail.count("persist activity-log") == 2
    assert second in alpha.completed
    assert pair.equal


def test_what_only_the_peer_has_made_stable_is_copied_after_a_power_cut() -> None:
    pair = MirrorPair(al_extents=1)
    alpha = pair.with_primary()
    alpha.flushes_at_once = False
    pair.write(alpha, 0, block(b"1"))
    pair.pass_time(0.5)
    alpha.submit(alpha.request(WRITE, 4 * MIB, block(b"2")))
    pair.run()
    pair.crash(alpha, power_cut=True)
    assert alpha.disk.read(0, 4096) != pair.beta.disk.read(0, 4096)
    alpha.flushes_at_once = True
    pair.restart(alpha)
    pair.connect()
    assert pair.equal


def test_what_came_as_a_secondary_is_stable_before_it_becomes_primary() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 0, block(b"w"))
    pair.crash(alpha)
    assert pair.done(pair.ask(pair.beta, "permit", "beta"))
    pair.beta.flushes_at_once = False
    operation = pair.ask(pair.beta, "promote")
    pair.run()
    assert pair.beta.trail[-1] == "flush"
    assert operation not in pair.beta.answers
    assert pair.beta.words == "Secondary WFConnection UpToDate/DUnknown"
    pair.beta.finish_flush()
    assert pair.done(operation)
    assert pair.beta.words == "Primary WFConnection UpToDate/DUnknown"
    pair.beta.disk.lose_power()
    assert pair.beta.disk.read(0, 4096) == block(b"w")


def test_a_source_has_no_bit_on_its_disk_any_more_when_it_gives_up_the_name_of_the_bits() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.cut()
    pair.write(alpha, 0, block(b"n"))
    pair.forget_trails()
    pair.connect()
    assert pair.equal
    assert alpha.does(
        "send P_SYNC_UUID", "persist bitmap", "Primary Connected UpToDate/UpToDate", "persist superblock",
        "handler unfence-peer",
    )  # fmt: skip
    superblock = alpha.disk.attachment().superblock
    assert superblock.bitmap_uuid == 0
    assert alpha.trail[-2:] == ["persist superblock", "handler unfence-peer"]


# who may be Primary


@pytest.mark.parametrize("accepts_meta", ["alpha", "beta"])
def test_of_two_promoted_at_once_one_becomes_primary_and_the_other_is_told_that_it_did_not(accepts_meta: str) -> None:
    for seed in range(150):
        order = random.Random(seed)
        pair = MirrorPair(disk_bytes=MIB)
        pair.declare_equal()
        pair.cut()
        pair.plug(accepts_meta=pair.alpha if accepts_meta == "alpha" else pair.beta)
        pair.run()
        operations = [(side, pair.ask(side, "promote")) for side in pair.sides]
        for _ in range(16):
            something_arrives(pair, order)
        pair.run()
        outcome = {side.volume.state.role: operation for side, operation in operations}
        assert set(outcome) == {Role.PRIMARY, Role.SECONDARY}, seed
        assert pair.done(outcome[Role.PRIMARY]), seed
        assert "promote" in pair.refused(outcome[Role.SECONDARY]).fact, seed
        for side in pair.sides:
            assert side.connection() is ConnectionState.CONNECTED, seed
            assert side.volume.state.peer is pair.other(side).volume.state.role, seed


def test_a_peer_without_a_disk_cannot_say_that_nothing_was_newer_there() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    alpha.disk.fails = True
    pair.write(alpha, 0, block(b"w"))
    pair.demote(alpha)
    pair.connect()
    assert pair.beta.words == "Secondary Connected UpToDate/Diskless"
    assert "--accept-loss=beta" in pair.refused(pair.ask(pair.beta, "promote")).remedy
    pair.cut()
    assert "alpha was Primary when contact was lost" in pair.refused(pair.ask(pair.beta, "promote")).fact
    assert pair.done(pair.ask(pair.beta, "permit", "beta"))
    pair.promote(pair.beta)


def test_a_frozen_primary_can_be_demoted_and_what_it_held_back_has_failed() -> None:
    pair = MirrorPair(fencing=Fencing.RESOURCE_AND_STONITH)
    alpha = pair.with_primary()
    in_flight = alpha.request(WRITE, 0, block(b"1"))
    alpha.submit(in_flight)
    pair.cut()
    held = alpha.request(WRITE, 4096, block(b"2"))
    alpha.submit(held)
    pair.run()
    assert alpha.handlers == ["fence-peer"]
    assert alpha.completed == []
    pair.demote(alpha)
    assert sorted(alpha.completed, key=id) == sorted([in_flight, held], key=id)
    assert (in_flight.error, held.error) == (ESHUTDOWN, ESHUTDOWN)
    assert alpha.accepting()
    alpha.handler_ends(7)
    pair.run()
    assert len(alpha.completed) == 2


# whose data are newer


def test_a_second_resync_in_one_connection_ends_in_the_generation_its_source_has_now() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.cut()
    pair.write(alpha, 0, block(b"n"))
    pair.connect()
    pair.demote(alpha)
    assert pair.done(pair.ask(alpha, "invalidate"))
    assert "send P_RS_DATA_REQUEST" in alpha.trail
    assert pair.equal
    ours, theirs = alpha.volume.data.generation, pair.beta.volume.data.generation
    assert (ours.name, ours.bitmap) == (theirs.name, theirs.bitmap) == (name(pair.beta), 0)
    pair.cut()
    pair.forget_trails()
    pair.connect()
    assert pair.equal
    for side in pair.sides:
        assert "send P_RS_DATA_REQUEST" not in side.trail
        assert not any("Sync" in step for step in side.trail)


def test_a_split_brain_is_recognised_although_a_sync_uuid_was_lost() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.cut()
    pair.write(alpha, 0, block(b"a"))
    pair.plug()
    step_until(pair, lambda: alpha.connection() is ConnectionState.SYNC_SOURCE)
    assert pair.beta.connection() is ConnectionState.WF_SYNC_UUID
    pair.cut()
    assert pair.done(pair.ask(pair.beta, "permit", "beta"))
    pair.promote(pair.beta)
    pair.write(pair.beta, 4096, block(b"b"))
    pair.demote(pair.beta)
    pair.connect()
    assert_split_brain(pair)


def test_a_side_promoted_alone_takes_a_new_name_although_it_counts_differences() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.cut()
    pair.write(alpha, 0, block(b"a"))
    pair.demote(alpha)
    pair.plug()
    finished = "Secondary Connected UpToDate/UpToDate"
    step_until(pair, lambda: pair.beta.words == finished)
    assert alpha.connection() is ConnectionState.SYNC_SOURCE
    pair.cut()
    assert name(alpha) == name(pair.beta)
    for side, letter in zip(pair.sides, (b"x", b"y"), strict=True):
        pair.promote(side)
        pair.write(side, 8192, block(letter))
        pair.demote(side)
    assert name(alpha) != name(pair.beta)
    pair.connect()
    assert_split_brain(pair)
    assert [side.disk.read(8192, 1) for side in pair.sides] == [b"x", b"y"]


def test_a_primary_that_loses_its_target_at_the_very_end_takes_a_new_name() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.cut()
    pair.write(alpha, 0, block(b"a"))
    pair.plug()
    step_until(pair, lambda: pair.beta.words == "Secondary Connected UpToDate/UpToDate")
    assert alpha.words == "Primary SyncSource UpToDate/Inconsistent"
    assert alpha.out_of_sync_blocks == 0
    pair.cut()
    assert name(alpha) != name(pair.beta)
    pair.write(alpha, 8192, block(b"x"))
    assert pair.done(pair.ask(pair.beta, "permit", "beta"))
    pair.promote(pair.beta)
    pair.write(pair.beta, 8192, block(b"y"))
    pair.demote(pair.beta)
    pair.connect()
    assert_split_brain(pair)


def test_a_primary_that_lost_its_target_at_the_very_end_copies_only_what_it_wrote_since() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.cut()
    pair.write(alpha, 0, block(b"a"))
    pair.plug()
    step_until(pair, lambda: pair.beta.words == "Secondary Connected UpToDate/UpToDate")
    pair.cut()
    pair.write(alpha, 8192, block(b"x"))
    assert alpha.out_of_sync_blocks == 1
    pair.connect()
    assert pair.equal
    assert alpha.volume.state.role is Role.PRIMARY


# what goes wrong halfway


def test_half_a_packet_is_no_sign_of_life() -> None:
    pair = MirrorPair(ping_interval_s=1.0, ping_timeout_s=0.5)
    alpha = pair.with_primary()
    pair.silence(pair.beta)
    half = packets.block_packet(packets.P_WRITE_ACK, 0, 1, 4096, 1)[:12]
    alpha.inbox[Stream.META] += half
    alpha.inbox[Stream.DATA] += half
    pair.pass_time(1.2)
    assert alpha.trail == ["send P_PING"]
    pair.pass_time(0.5)
    assert alpha.connection() is ConnectionState.WF_CONNECTION
    assert any("no answer to a ping within 0.5 s" in note for note in alpha.notes)


def test_an_operator_is_answered_although_the_disk_failed_what_was_asked_for() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    pair.cut()
    pair.beta.disk.fails = True
    error = pair.refused(pair.ask(pair.beta, "invalidate"))
    assert "the disk failed" in error.fact
    assert isinstance(error, Refusal)
    assert error.code == 16
    assert pair.beta.words == "Secondary WFConnection Diskless/DUnknown"


def test_clients_hear_of_their_writes_and_the_link_is_dropped_although_the_disk_failed_before() -> None:
    pair = MirrorPair(ping_interval_s=1.0, ping_timeout_s=0.5)
    alpha = pair.with_primary()
    pair.silence(pair.beta)
    request = alpha.request(WRITE, 0, block(b"w"))
    alpha.submit(request)
    alpha.disk.fails = True
    pair.forget_trails()
    pair.pass_time(1.7)
    assert not any("persist" in step for step in alpha.trail), "the new generation could not be written"
    assert alpha.trail.count("drop") == 1
    assert alpha.completed == [request]
    assert request.error == EIO
    assert alpha.words == "Primary StandAlone Diskless/DUnknown"


def test_a_write_between_the_bitmaps_and_the_first_block_is_marked_on_the_targets_disk_before_its_block_comes() -> None:
    """The source forgets a block that the target has written; the target's cache may forget it too."""
    pair = MirrorPair()
    alpha, beta = pair.with_primary(), pair.beta
    pair.cut()
    pair.write(alpha, 0, block(b"a"))
    pair.plug()
    step_until(pair, lambda: beta.connection() is ConnectionState.WF_SYNC_UUID)
    assert alpha.connection() is ConnectionState.WF_BITMAP_S
    request = alpha.request(WRITE, 4 * MIB, block(b"n"))
    alpha.submit(request)
    step_until(pair, lambda: beta.connection() is ConnectionState.SYNC_TARGET)
    beta.flushes_at_once = False
    step_until(pair, lambda: alpha.out_of_sync_blocks == 0)
    pair.cut()
    pair.crash(beta)
    assert beta.disk.read(4 * MIB, 1) != b"n"
    pair.restart(beta)
    beta.flushes_at_once = True
    pair.connect()
    assert beta.disk.read(4 * MIB, 1) == b"n"
    assert pair.equal


def test_a_promotion_asked_for_beside_a_peer_is_not_carried_out_when_that_peer_is_lost_as_primary() -> None:
    pair = MirrorPair(takeover=Takeover.CONSISTENT, fencing=Fencing.RESOURCE_AND_STONITH)
    pair.declare_equal()
    alpha, beta = pair.sides
    alpha.flushes_at_once = False
    mine = pair.ask(alpha, "promote")
    pair.promote(beta)
    pair.cut()
    alpha.finish_flush()
    assert "was lost meanwhile" in pair.refused(mine).fact
    assert alpha.volume.state.role is Role.SECONDARY


@pytest.mark.parametrize("known_old", [False, True])
def test_a_side_promoted_alone_answers_nothing_before_its_peer_is_fenced(known_old: bool) -> None:
    """Its peer may believe that it saw a Primary equal to itself, and take over as soon as we die: seeds 6354, 7008."""
    pair = MirrorPair(takeover=Takeover.CONSISTENT, fencing=Fencing.RESOURCE_AND_STONITH)
    alpha = pair.with_primary()
    pair.demote(alpha)
    pair.cut()
    if known_old:
        alpha.volume.data.state = replace(alpha.volume.data.state, peer_disk=DiskState.OUTDATED)
    pair.promote(alpha)
    request = alpha.request(WRITE, 0, block(b"x"))
    if known_old:
        assert alpha.handlers == []
        alpha.submit(request)
        assert alpha.completed == [request]
        return
    assert alpha.handlers == ["fence-peer"]
    assert not alpha.accepting()
    alpha.handler_ends(7)
    assert alpha.accepting()
    alpha.submit(request)
    assert alpha.completed == [request]


def test_a_primary_that_froze_and_was_taken_over_comes_back_as_a_target() -> None:
    """It answered nothing after the loss, so it holds nothing of its own: no split brain (seed 8293)."""
    pair = MirrorPair(takeover=Takeover.CONSISTENT, fencing=Fencing.RESOURCE_AND_STONITH)
    alpha, beta = pair.with_primary(), pair.beta
    pair.cut()
    assert not alpha.accepting()
    pair.crash(alpha)
    pair.promote(beta)
    beta.handler_ends(7)
    pair.write(beta, 0, block(b"b"))
    pair.restart(alpha)
    pair.connect()
    assert alpha.words == "Secondary Connected UpToDate/UpToDate"
    assert alpha.disk.read(0, 1) == b"b"


def test_what_was_on_its_way_when_a_primary_froze_is_copied_when_the_peer_is_back_in_time() -> None:
    pair = MirrorPair(fencing=Fencing.RESOURCE_AND_STONITH)
    alpha, beta = pair.with_primary(), pair.beta
    request = alpha.request(WRITE, 8192, block(b"w"))
    alpha.submit(request)
    pair.cut()
    assert alpha.completed == []
    assert beta.disk.read(8192, 1) != b"w"
    pair.connect()
    assert alpha.completed == [request]
    assert beta.disk.read(8192, 1) == b"w"
    assert pair.equal


def test_a_primary_demoted_while_frozen_does_not_call_its_data_the_newest() -> None:
    pair = MirrorPair(fencing=Fencing.RESOURCE_AND_STONITH)
    alpha = pair.with_primary()
    pair.cut()
    pair.demote(alpha)
    assert "right" not in alpha.record


def test_a_source_keeps_the_name_of_its_target_through_a_start_that_the_target_never_heard_of() -> None:
    """Seed 8755: the second start pushed it out of the history, and both had nothing in common."""
    pair = MirrorPair()
    alpha, beta = pair.with_primary(), pair.beta
    pair.cut()
    pair.write(alpha, 0, block(b"a"))
    pair.demote(alpha)
    pair.plug()
    step_until(pair, lambda: beta.words == "Secondary Connected UpToDate/UpToDate")
    pair.cut()
    pair.promote(alpha)
    pair.write(alpha, 4096, block(b"n"))
    for _ in range(3):
        pair.plug()
        step_until(pair, lambda: alpha.connection() is ConnectionState.SYNC_SOURCE)
        assert beta.connection() is ConnectionState.WF_SYNC_UUID
        pair.cut()
    pair.connect()
    assert pair.equal
    assert beta.disk.read(4096, 1) == b"n"
