"""The link is lost, the disk is lost, the node is lost: what must be true before anybody hears of it."""

from __future__ import annotations

import pytest

from replication.protocol.effects import FlushData, Stream
from replication.protocol.loss import FENCING_RETRY_S
from replication.protocol.options import Fencing
from replication.protocol.requests import EIO, FLAG_FUA, FLUSH, WRITE
from replication.protocol.states import ConnectionState, DiskState, Role
from replication.protocol.volume import Force
from tests.replication.protocol.coupled import MIB, MirrorPair, block

STONITH = Fencing.RESOURCE_AND_STONITH


# the link


def test_the_new_generation_is_durable_before_writes_in_flight_are_answered() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    request = alpha.request(WRITE, 0, block(b"w"))
    alpha.submit(request)
    pair.cut()
    assert alpha.does("write", "persist superblock", "complete")
    assert alpha.completed == [request]
    assert request.error == 0


def test_what_the_peer_has_not_made_stable_is_out_of_sync_when_it_is_lost() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 0, block(b"s"))
    pair.flush(alpha)
    pair.beta.flushes_at_once = False
    pair.write(alpha, 8192, block(b"a", 2))
    pair.flush_without_waiting(alpha)
    alpha.submit(alpha.request(WRITE, 65536, block(b"b")))
    pair.run()
    pair.crash(pair.beta, power_cut=True)
    bitmap = alpha.volume.data.bitmap
    assert [bitmap.any_set(offset, 4096) for offset in (0, 8192, 12288, 65536)] == [False, True, True, True]
    assert alpha.out_of_sync_blocks == 3
    pair.beta.flushes_at_once = True
    pair.restart(pair.beta)
    pair.connect()
    assert pair.equal


def test_a_flush_that_waits_for_the_peer_is_answered_when_the_peer_is_lost() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.beta.flushes_at_once = False
    fua = alpha.request(WRITE, 0, block(b"w"), flags=FLAG_FUA)
    flush = alpha.request(FLUSH)
    alpha.submit(fua, flush)
    pair.run()
    assert alpha.completed == []
    pair.cut()
    assert sorted(alpha.completed, key=id) == sorted([fua, flush], key=id)


def test_a_primary_that_lost_its_peer_begins_one_generation_not_many() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.cut()
    generation = alpha.volume.data.generation
    for _ in range(3):
        pair.plug()
        pair.cut()
    assert alpha.volume.data.generation == generation


def test_two_secondaries_that_lose_each_other_stay_of_one_generation() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    pair.cut()
    assert pair.alpha.volume.data.generation == pair.beta.volume.data.generation
    pair.connect()
    assert pair.equal


def test_after_a_short_interruption_only_the_difference_is_copied() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    for number in range(4):
        pair.write(alpha, number * 3 * MIB, block(b"0", 8))
    pair.cut()
    pair.write(alpha, 3 * MIB + 4096, block(b"1", 2))
    pair.trim(alpha, 9 * MIB, 8192)
    assert alpha.out_of_sync_blocks >= 4
    pair.connect()
    assert pair.equal
    assert pair.out_of_sync() == (0, 0)


def test_a_link_that_is_lost_again_and_again_loses_nothing() -> None:
    pair = MirrorPair(resync_rate_max=MIB)
    alpha = pair.with_primary()
    for number in range(6):
        pair.cut()
        pair.write(alpha, number * 2 * MIB, block(bytes([65 + number]), 64))
        pair.connect()
        pair.pass_time(0.1)
        pair.write(alpha, number * 2 * MIB + 65536, block(b"z"))
    pair.pass_time(30)
    assert pair.equal


def test_link_down_is_heard_once() -> None:
    pair = MirrorPair()
    pair.with_primary()
    pair.cut()
    assert pair.alpha.volume.link_down("again", pair.now) == []


# the node


def test_a_crashed_primary_may_have_written_in_hot_extents_and_these_are_copied() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 4 * MIB, block(b"b"))
    pair.flush(alpha)
    half = alpha.request(WRITE, 5 * MIB, block(b"h"))
    alpha.submit(half)
    pair.beta.inbox[Stream.DATA].clear()
    pair.crash(alpha, power_cut=False)
    pair.restart(alpha)
    assert alpha.out_of_sync_blocks == 1024
    assert alpha.volume.data.crashed_primary
    pair.connect()
    assert pair.equal
    assert not alpha.volume.data.crashed_primary


def test_of_a_crashed_primary_and_its_successor_the_successor_is_right() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 0, block(b"1"))
    pair.crash(alpha, power_cut=True)
    assert pair.done(pair.ask(pair.beta, "permit", "beta"))
    pair.promote(pair.beta)
    pair.write(pair.beta, 4096, block(b"2"))
    pair.restart(alpha)
    pair.connect()
    assert pair.equal
    assert pair.beta.volume.state.role is Role.PRIMARY
    assert alpha.disk.read(0, 8192) == block(b"1") + block(b"2")


def test_after_a_crash_of_both_the_primarys_hot_extents_are_made_equal() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 8 * MIB, block(b"c"))
    pair.crash(pair.beta, power_cut=True)
    alpha.disk.flushing.clear()
    pair.restart(alpha)
    pair.restart(pair.beta)
    pair.connect()
    assert pair.equal


def test_a_crash_of_a_standby_costs_only_what_was_not_stable() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 0, block(b"1"))
    pair.flush(alpha)
    pair.write(alpha, 4096, block(b"2"))
    pair.crash(pair.beta, power_cut=True)
    assert alpha.out_of_sync_blocks == 1
    pair.restart(pair.beta)
    pair.connect()
    assert pair.equal


# the clock


def test_an_idle_link_is_pinged_and_a_silent_one_is_lost() -> None:
    pair = MirrorPair(ping_interval_s=1.0, ping_timeout_s=0.5)
    alpha = pair.with_primary()
    pair.pass_time(3)
    assert alpha.trail.count("send P_PING") >= 2
    assert alpha.connection() is ConnectionState.CONNECTED
    pair.silence(pair.beta)
    pair.pass_time(1.7)
    assert alpha.connection() is ConnectionState.WF_CONNECTION
    assert any("no answer to a ping within 0.5 s" in note for note in alpha.notes)


def test_a_peer_that_answers_pings_but_no_writes_is_dropped_after_ko_count_timeouts() -> None:
    pair = MirrorPair(timeout_s=2.0, ko_count=3, ping_interval_s=1.0)
    alpha = pair.with_primary()
    pair.beta.flushes_at_once = False
    request = alpha.request(WRITE, 0, block(b"w"), flags=FLAG_FUA)
    alpha.submit(request)
    pair.pass_time(5.8)
    assert alpha.connection() is ConnectionState.CONNECTED
    pair.pass_time(0.4)
    assert alpha.connection() is ConnectionState.WF_CONNECTION
    assert request in alpha.completed
    assert any("no answer to a write within 6 s" in note for note in alpha.notes)


def test_a_barrier_that_is_not_answered_counts_too() -> None:
    pair = MirrorPair(timeout_s=2.0, ko_count=3, ping_interval_s=1.0)
    alpha = pair.with_primary()
    pair.beta.flushes_at_once = False
    pair.write(alpha, 0, block(b"w"))
    flush = alpha.request(FLUSH)
    alpha.submit(flush)
    pair.pass_time(6.3)
    assert flush in alpha.completed
    assert alpha.out_of_sync_blocks == 1


def test_without_a_ko_count_a_slow_peer_is_waited_for() -> None:
    pair = MirrorPair(timeout_s=1.0, ko_count=0, ping_interval_s=1.0)
    alpha = pair.with_primary()
    pair.beta.flushes_at_once = False
    alpha.submit(alpha.request(WRITE, 0, block(b"w"), flags=FLAG_FUA))
    pair.pass_time(60, step=0.4)
    assert alpha.connection() is ConnectionState.CONNECTED


def test_a_pause_of_our_own_process_blames_nobody() -> None:
    pair = MirrorPair(ping_interval_s=1.0, ping_timeout_s=0.5)
    alpha = pair.with_primary()
    pair.pass_time(0.9)
    pair.now += 0.2
    alpha.tick()
    assert alpha.trail[-1] == "send P_PING"
    pair.beta.run()
    pair.now += 60
    alpha.run()
    alpha.tick()
    pair.run()
    assert alpha.connection() is ConnectionState.CONNECTED


# our own disk


def test_a_standby_whose_disk_fails_says_so_and_comes_back_without_one() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.beta.disk.fails = True
    request = pair.write(alpha, 0, block(b"w"))
    assert request.error == 0
    assert pair.beta.words == "Secondary WFConnection Diskless/DUnknown"
    assert "replace it" in pair.beta.status["mirror"]["remedy"]
    pair.plug()
    pair.run()
    assert alpha.words == "Primary Connected UpToDate/Diskless"
    assert pair.beta.words == "Secondary Connected Diskless/UpToDate"
    pair.write(alpha, 4096, block(b"x"))
    assert alpha.out_of_sync_blocks == 2


def test_a_replaced_disk_gets_everything() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 0, block(b"1"))
    pair.beta.disk.fails = True
    pair.write(alpha, 4096, block(b"2"))
    pair.beta.replace_disk(pair.alpha.disk.layout.capacity_bytes)
    pair.connect()
    assert pair.equal
    assert pair.beta.disk.read(0, 8192) == block(b"1") + block(b"2")


def test_a_primary_whose_disk_fails_answers_everything_with_an_error_and_ends_its_device() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.beta.flushes_at_once = False
    flush = alpha.request(FLUSH)
    first = alpha.request(WRITE, 0, block(b"1"))
    alpha.submit(first, flush)
    alpha.disk.fails = True
    second = pair.write(alpha, 4096, block(b"2"))
    assert second.error == EIO
    assert flush in alpha.completed
    assert alpha.device_failed
    assert alpha.words == "Primary StandAlone Diskless/DUnknown"
    assert pair.write(alpha, 8192, block(b"3")).error == EIO
    assert pair.done(pair.ask(alpha, "demote"))


def test_what_a_failed_disk_said_of_itself_stays_as_it_was() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 0, block(b"1"))
    alpha.disk.fails = True
    pair.write(alpha, 4096, block(b"2"))
    alpha.disk.fails = False
    pair.run()
    pair.restart(alpha)
    assert alpha.volume.data.crashed_primary
    assert alpha.out_of_sync_blocks >= 1024
    pair.connect()
    assert pair.equal


def test_nothing_is_answered_twice_when_a_disk_fails() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    alpha.flushes_at_once = False
    requests = [alpha.request(WRITE, 0, block(b"1"), flags=FLAG_FUA), alpha.request(FLUSH)]
    alpha.submit(*requests)
    pair.beta.run()
    alpha.disk.fails = True
    alpha.submit(alpha.request(WRITE, 8192, block(b"x")))
    pair.run()
    assert len(alpha.completed) == len({id(request) for request in alpha.completed}) == 3
    assert all(request.error == EIO for request in alpha.completed)


def test_a_disk_that_fails_in_the_middle_of_a_resync_ends_it() -> None:
    pair = MirrorPair(resync_rate_max=1)
    pair.connect()
    pair.promote(pair.alpha, Force.OVERWRITE)
    pair.beta.disk.fails = True
    pair.write(pair.alpha, 0, block(b"w"))
    assert pair.beta.volume.state.disk is DiskState.DISKLESS
    assert pair.alpha.volume.state.role is Role.PRIMARY
    assert pair.alpha.volume.state.disk is DiskState.UP_TO_DATE


# fencing


@pytest.mark.parametrize(
    ("exit_code", "peer_disk"),
    [(3, DiskState.INCONSISTENT), (4, DiskState.OUTDATED), (5, DiskState.UNKNOWN), (7, DiskState.OUTDATED)],
)
def test_io_is_frozen_until_the_handler_has_made_sure(exit_code: int, peer_disk: DiskState) -> None:
    pair = MirrorPair(fencing=STONITH)
    alpha = pair.with_primary()
    request = alpha.request(WRITE, 0, block(b"w"))
    alpha.submit(request)
    pair.cut()
    assert alpha.handlers == ["fence-peer"]
    assert alpha.completed == []
    assert not alpha.accepting()
    assert alpha.status["suspended"]
    later = alpha.request(WRITE, 4096, block(b"l"))
    alpha.submit(later)
    assert alpha.completed == []
    alpha.handler_ends(exit_code)
    assert alpha.completed == [request, later]
    assert alpha.volume.state.peer_disk is peer_disk
    assert alpha.accepting()
    assert alpha.disk.read(4096, 4096) == block(b"l")


@pytest.mark.parametrize("exit_code", [0, 1, 2, 6, 20, 127, 255])
def test_after_any_other_answer_it_stays_frozen_and_asks_again(exit_code: int) -> None:
    pair = MirrorPair(fencing=STONITH)
    alpha = pair.with_primary()
    request = alpha.request(WRITE, 0, block(b"w"))
    alpha.submit(request)
    pair.cut()
    alpha.handler_ends(exit_code)
    assert alpha.completed == []
    assert any(f"fence-peer ended with {exit_code}" in note for note in alpha.notes)
    pair.pass_time(FENCING_RETRY_S + 0.1)
    assert alpha.handlers == ["fence-peer"]
    alpha.handler_ends(7)
    assert alpha.completed == [request]


def test_the_peer_that_comes_back_ends_the_wait() -> None:
    pair = MirrorPair(fencing=STONITH)
    alpha = pair.with_primary()
    request = alpha.request(WRITE, 0, block(b"w"))
    alpha.submit(request)
    pair.cut()
    alpha.handlers.clear()
    pair.connect()
    assert request in alpha.completed
    assert pair.equal
    assert not alpha.status["suspended"]


def test_a_handler_that_ends_after_the_peer_is_back_is_ignored() -> None:
    pair = MirrorPair(fencing=STONITH)
    alpha = pair.with_primary()
    pair.cut()
    pair.connect()
    alpha.handlers = ["fence-peer"]
    alpha.handler_ends(4)
    assert pair.equal
    assert alpha.words == "Primary Connected UpToDate/UpToDate"


def test_fencing_the_resource_only_does_not_freeze() -> None:
    pair = MirrorPair(fencing=Fencing.RESOURCE_ONLY)
    alpha = pair.with_primary()
    pair.cut()
    assert alpha.handlers == ["fence-peer"]
    assert pair.write(alpha, 0, block(b"w")).error == 0
    alpha.handler_ends(4)
    assert alpha.volume.state.peer_disk is DiskState.OUTDATED


def test_a_secondary_fences_nobody() -> None:
    pair = MirrorPair(fencing=STONITH)
    pair.with_primary()
    pair.cut()
    assert pair.beta.handlers == []


def test_a_frozen_disk_that_fails_ends_the_wait_with_errors() -> None:
    pair = MirrorPair(fencing=STONITH)
    alpha = pair.with_primary()
    request = alpha.request(WRITE, 0, block(b"w"))
    alpha.submit(request)
    pair.cut()
    effects = alpha.volume.disk_failed(FlushData(1), "Input/output error", pair.now)
    alpha.act(effects)
    assert [done.error for done in alpha.completed] == [EIO]


def test_with_fencing_a_disk_alone_is_only_consistent_until_the_peer_is_known_to_be_old() -> None:
    pair = MirrorPair(fencing=STONITH)
    pair.demote(pair.with_primary())
    pair.crash(pair.alpha, power_cut=False)
    pair.restart(pair.alpha)
    assert pair.alpha.volume.state.disk is DiskState.CONSISTENT
    pair.connect()
    assert pair.equal


def test_other_handlers_are_only_heard_when_they_fail() -> None:
    pair = MirrorPair()
    pair.first_resync()
    pair.alpha.handlers = ["unfence-peer"]
    pair.alpha.handler_ends(1)
    assert any("handler unfence-peer ended with 1" in note for note in pair.alpha.notes)
