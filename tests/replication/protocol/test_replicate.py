"""The Primary's half: what must have happened before a client hears that its write, flush or zeroing is done."""

from __future__ import annotations

import pytest

from replication.protocol import packets
from replication.protocol.effects import Stream
from replication.protocol.requests import ESHUTDOWN, FLAG_FUA, FLAG_NO_HOLE, FLUSH, WRITE
from replication.protocol.states import ConnectionState
from replication.protocol.volume import Force
from tests.replication.protocol.coupled import MIB, MirrorPair, block

PIECES = [None, 1, 7]


@pytest.mark.parametrize("piece_bytes", PIECES)
def test_a_write_is_on_both_disks_before_it_is_answered(piece_bytes: int | None) -> None:
    pair = MirrorPair(piece_bytes=piece_bytes)
    alpha = pair.with_primary()
    pair.write(alpha, 4096, block(b"w"))
    assert pair.beta.disk.read(4096, 4096) == alpha.disk.read(4096, 4096) == block(b"w")
    assert alpha.does("write", "complete")


def test_a_write_waits_for_the_peer() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    request = alpha.request(WRITE, 0, block(b"w"))
    alpha.submit(request)
    assert alpha.trail == ["persist activity-log", "send P_DATA", "write"]
    pair.run()
    assert alpha.completed == [request]
    assert request.error == 0


def test_the_activity_log_is_durable_before_a_write_reaches_peer_or_disk() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 0, block(b"w"))
    assert alpha.trail[:3] == ["persist activity-log", "send P_DATA", "write"]
    pair.forget_trails()
    pair.write(alpha, 4096, block(b"w"))
    assert "persist activity-log" not in alpha.trail


def test_a_batch_costs_one_transaction_one_send_and_one_write() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    requests = [alpha.request(WRITE, number * 4 * MIB, block(b"w")) for number in range(3)]
    alpha.submit(*requests)
    assert alpha.trail == ["persist activity-log", *["send P_DATA"] * 3, "write"]
    pair.run()
    assert pair.beta.trail.count("write") == 1
    assert alpha.completed == requests


def test_a_write_across_two_extents_makes_both_hot() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 4 * MIB - 4096, block(b"w", 2))
    assert set(alpha.volume.data.activity_log.hot) == {0, 1}  # type: ignore[union-attr]


def test_a_large_write_goes_in_pieces_and_is_answered_once() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 512 * 1024, b"l" * (3 * MIB))
    assert pair.equal
    assert alpha.trail.count("send P_DATA") == 3
    assert len(alpha.completed) == 1


@pytest.mark.parametrize("piece_bytes", PIECES)
def test_a_flush_is_answered_when_the_peer_has_flushed_what_was_answered_before(piece_bytes: int | None) -> None:
    pair = MirrorPair(piece_bytes=piece_bytes)
    alpha = pair.with_primary()
    pair.beta.flushes_at_once = False
    pair.write(alpha, 0, block(b"w"))
    flush = alpha.request(FLUSH)
    alpha.submit(flush)
    pair.run()
    assert alpha.does("send P_BARRIER", "flush")
    assert flush not in alpha.completed
    pair.beta.finish_flush()
    pair.run()
    assert flush in alpha.completed


def test_a_flush_is_answered_when_our_own_disk_has_flushed() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 0, block(b"w"))
    alpha.flushes_at_once = False
    flush = alpha.request(FLUSH)
    alpha.submit(flush)
    pair.run()
    assert "send P_BARRIER_ACK" in pair.beta.trail
    assert flush not in alpha.completed
    alpha.finish_flush()
    assert flush in alpha.completed


def test_a_flush_waits_for_epochs_that_were_closed_before_it() -> None:
    pair = MirrorPair(max_epoch_size=1)
    alpha = pair.with_primary()
    pair.beta.flushes_at_once = False
    alpha.submit(alpha.request(WRITE, 0, block(b"w")))
    pair.run()
    assert "send P_BARRIER" in alpha.trail
    flush = alpha.request(FLUSH)
    alpha.submit(flush)
    pair.run()
    assert flush not in alpha.completed
    pair.beta.finish_flush()
    pair.run()
    assert flush in alpha.completed


def test_a_flush_without_writes_needs_no_barrier() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.flush(alpha)
    assert alpha.trail == ["flush", "complete"]


def test_what_was_flushed_survives_a_power_cut_on_either_side() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 0, block(b"f"))
    pair.flush(alpha)
    pair.write(alpha, 8192, block(b"v"))
    for side in pair.sides:
        side.disk.lose_power()
        assert side.disk.read(0, 4096) == block(b"f")
        assert side.disk.read(8192, 4096) == bytes(4096)


def test_a_fua_write_is_stable_on_both_sides_before_its_answer() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    for side in pair.sides:
        side.flushes_at_once = False
    write = alpha.request(WRITE, 0, block(b"f"), flags=FLAG_FUA)
    alpha.submit(write)
    pair.run()
    assert "send P_WRITE_ACK" not in pair.beta.trail
    pair.beta.finish_flush()
    pair.run()
    assert "send P_WRITE_ACK" in pair.beta.trail
    assert write not in alpha.completed
    alpha.finish_flush()
    pair.run()
    assert alpha.completed == [write]
    for side in pair.sides:
        side.disk.lose_power()
        assert side.disk.read(0, 4096) == block(b"f")


def test_a_fua_write_without_a_peer_waits_for_our_own_flush() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.cut()
    alpha.flushes_at_once = False
    write = alpha.request(WRITE, 0, block(b"f"), flags=FLAG_FUA)
    alpha.submit(write)
    pair.run()
    assert write not in alpha.completed
    alpha.finish_flush()
    assert write in alpha.completed


def test_trimmed_and_zeroed_ranges_are_equal_on_both_sides() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 0, block(b"x", 64))
    pair.trim(alpha, 4096 + 512, 8192)
    pair.zero(alpha, 65536, 4096)
    pair.zero(alpha, 131072, 1024, flags=FLAG_NO_HOLE)
    assert pair.equal
    assert alpha.disk.read(4096 + 512, 8192) == bytes(8192)
    assert alpha.disk.read(4096, 512) == b"x" * 512
    assert [step for step in pair.beta.trail if step in ("unmap", "zero")] == ["unmap", "unmap", "zero"]


def test_the_whole_device_can_be_trimmed_in_one_request() -> None:
    pair = MirrorPair(al_extents=2)
    alpha = pair.with_primary()
    pair.write(alpha, 0, block(b"x"))
    size = alpha.volume.size_bytes
    pair.trim(alpha, 0, size)
    assert pair.equal
    assert alpha.disk.read(0, size) == bytes(size)
    assert len(alpha.completed) == 2


def test_an_epoch_ends_when_it_is_full() -> None:
    pair = MirrorPair(max_epoch_size=3)
    alpha = pair.with_primary()
    for number in range(7):
        pair.write(alpha, number * 4096, block(b"w"))
    assert alpha.trail.count("send P_BARRIER") == 2
    assert alpha.volume.data.log.current.count == 1


def test_an_epoch_ends_when_nobody_has_written_for_a_while() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 0, block(b"w"))
    pair.pass_time(0.15)
    assert "send P_BARRIER" not in alpha.trail
    pair.pass_time(0.1)
    assert "send P_BARRIER" in alpha.trail
    assert alpha.volume.data.log.is_empty


def test_reads_are_served_from_our_own_disk_alone() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 8192, block(b"r"))
    sent = len(pair.wire["alpha", Stream.DATA])
    assert pair.read(alpha, 8192, 4096) == block(b"r")
    assert len(pair.wire["alpha", Stream.DATA]) == sent


def test_a_secondary_serves_nobody() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    request = pair.write(pair.beta, 0, block(b"x"))
    assert request.error == ESHUTDOWN
    assert pair.beta.disk.read(0, 4096) == bytes(4096)


# the activity log under pressure


def test_changed_pages_of_the_bitmap_are_durable_before_their_extent_cools_down() -> None:
    pair = MirrorPair(al_extents=1)
    alpha = pair.with_primary()
    pair.cut()
    pair.write(alpha, 0, block(b"w"))
    pair.forget_trails()
    pair.write(alpha, 4 * MIB, block(b"w"))
    assert alpha.trail[:3] == ["persist bitmap", "persist activity-log", "write"]


def test_an_extent_with_unstable_writes_is_not_given_up() -> None:
    pair = MirrorPair(al_extents=1)
    alpha = pair.with_primary()
    pair.beta.flushes_at_once = False
    pair.write(alpha, 0, block(b"1"))
    second = alpha.request(WRITE, 4 * MIB, block(b"2"))
    alpha.submit(second)
    pair.run()
    assert not alpha.accepting()
    assert second not in alpha.completed
    assert alpha.trail.count("persist activity-log") == 1
    assert alpha.trail[-1] == "send P_BARRIER"
    pair.beta.finish_flush()
    pair.run()
    assert alpha.accepting()
    assert second in alpha.completed
    assert pair.equal


def test_order_is_kept_while_writes_wait_for_the_activity_log() -> None:
    pair = MirrorPair(al_extents=1)
    alpha = pair.with_primary()
    requests = [
        alpha.request(WRITE, offset, block(letter))
        for offset, letter in [(0, b"1"), (4 * MIB, b"2"), (0, b"3"), (4 * MIB, b"4"), (4 * MIB, b"5")]
    ]
    flush = alpha.request(FLUSH)
    alpha.submit(*requests, flush)
    pair.run()
    assert alpha.disk.read(0, 4096) == pair.beta.disk.read(0, 4096) == block(b"3")
    assert alpha.disk.read(4 * MIB, 4096) == pair.beta.disk.read(4 * MIB, 4096) == block(b"5")
    assert alpha.completed == [*requests, flush]


def test_writes_that_wait_are_carried_when_the_peer_is_lost() -> None:
    pair = MirrorPair(al_extents=1)
    alpha = pair.with_primary()
    pair.beta.flushes_at_once = False
    pair.write(alpha, 0, block(b"1"))
    waiting = alpha.request(WRITE, 4 * MIB, block(b"2"))
    alpha.submit(waiting)
    pair.run()
    assert waiting not in alpha.completed
    pair.cut()
    assert waiting in alpha.completed
    assert alpha.out_of_sync_blocks == 2


def test_a_write_as_large_as_the_activity_log_is_written() -> None:
    pair = MirrorPair(al_extents=2)
    alpha = pair.with_primary()
    pair.write(alpha, 4 * MIB - 512 * 1024, b"x" * MIB)
    assert pair.equal


# beside a resync


@pytest.mark.parametrize("piece_bytes", [None, 4093])
def test_writes_during_a_resync_are_in_the_end_on_both_sides(piece_bytes: int | None) -> None:
    pair = MirrorPair(resync_rate_max=4 * MIB, piece_bytes=piece_bytes)
    pair.connect()
    pair.promote(pair.alpha, Force.OVERWRITE)
    for round_number in range(8):
        assert pair.beta.words == "Secondary SyncTarget Inconsistent/UpToDate"
        for offset in (0, 3 * MIB, 9 * MIB + 512, 15 * MIB):
            pair.write(pair.alpha, offset + round_number * 8192, bytes([65 + round_number]) * 8704)
        pair.trim(pair.alpha, 5 * MIB + round_number * 65536, 32768)
        pair.pass_time(0.2)
    pair.pass_time(10)
    assert pair.equal


def test_writes_between_the_bitmaps_are_told_and_not_sent() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.cut()
    pair.write(alpha, 0, block(b"1"))
    pair.plug()
    while alpha.connection() is not ConnectionState.WF_BITMAP_S:
        moved = alpha.step() or pair.beta.step()
        assert moved, "the bitmaps were never exchanged"
    pair.forget_trails()
    alpha.submit(alpha.request(WRITE, 8 * MIB, block(b"2")))
    assert alpha.does("send P_OUT_OF_SYNC", "complete")
    assert "send P_DATA" not in alpha.trail
    pair.run()
    assert pair.equal


def test_a_write_that_the_peer_could_not_do_is_answered_well_and_copied_later() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    request = alpha.request(WRITE, 8192, block(b"n"))
    alpha.submit(request)
    (block_id,) = alpha.volume.data.log.in_flight
    pair.beta.inbox[Stream.DATA].clear()
    pair.forget_trails()
    alpha.give(Stream.META, bytearray(packets.block_packet(packets.P_NEG_ACK, 8192, block_id, 4096, 1)))
    assert request.error == 0
    assert alpha.does("persist superblock", "complete")
    assert alpha.out_of_sync_blocks == 1
    pair.cut()
    pair.connect()
    assert pair.equal
