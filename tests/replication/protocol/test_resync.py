from __future__ import annotations

from typing import Any

import pytest

from replication.protocol import packets
from replication.protocol.effects import Stream
from replication.protocol.packets import P_RS_DATA_REPLY, P_RS_DATA_REQUEST, P_RS_WRITE_ACK
from replication.protocol.states import ConnectionState, DiskState, Role
from replication.protocol.volume import Force
from tests.replication.protocol.coupled import MIB, MirrorPair, block

SYNC_TARGET = "Secondary SyncTarget Inconsistent/UpToDate"


def half_done(**options: Any) -> MirrorPair:
    """A first resync from alpha, Primary, that stands still somewhere in the middle."""
    pair = MirrorPair(**{"resync_rate_max": 1, "resync_in_flight": 4} | options)
    pair.promote(pair.alpha, Force.OVERWRITE)
    for extent in range(3):
        pair.write(pair.alpha, extent * 4 * MIB + 8192, block(b"f", 4))
    pair.flush(pair.alpha)
    pair.connect()
    assert pair.beta.words == SYNC_TARGET
    assert 0 < pair.beta.out_of_sync_blocks < pair.beta.volume.size_bytes // 4096
    return pair


@pytest.mark.parametrize("piece_bytes", [None, 13, 4093])
def test_a_first_resync_makes_both_disks_equal(piece_bytes: int | None) -> None:
    pair = MirrorPair(disk_bytes=MIB, piece_bytes=piece_bytes)
    pair.alpha.disk.content[4096:8192] = block(b"o")
    pair.first_resync()
    assert pair.beta.disk.read(4096, 4096) == block(b"o")
    assert pair.alpha.words == "Primary Connected UpToDate/UpToDate"
    assert pair.beta.words == "Secondary Connected UpToDate/UpToDate"


def test_both_sides_end_with_the_same_generation() -> None:
    pair = MirrorPair()
    pair.first_resync()
    ours, theirs = pair.alpha.volume.data.generation, pair.beta.volume.data.generation
    assert ours.name == theirs.name
    assert (ours.bitmap, theirs.bitmap) == (0, 0)
    assert [uuid & ~1 for uuid in ours.history] == [uuid & ~1 for uuid in theirs.history]
    assert pair.out_of_sync() == (0, 0)


def test_the_target_is_durably_inconsistent_before_the_first_block_is_asked_for() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.cut()
    pair.write(alpha, 0, block(b"n"))
    pair.forget_trails()
    pair.connect()
    assert pair.beta.does(SYNC_TARGET, "persist superblock", "send P_RS_DATA_REQUEST", "write", "flush")


def test_a_handshake_that_is_interrupted_before_the_resync_begins_costs_nothing() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.cut()
    pair.write(alpha, 0, block(b"n"))
    pair.plug()
    while pair.beta.connection() is not ConnectionState.WF_BITMAP_T:
        alpha.step()
        pair.beta.step()
    assert pair.beta.durable_disk_state is DiskState.OUTDATED
    pair.cut()
    pair.crash(pair.beta)
    pair.restart(pair.beta)
    assert pair.beta.durable_disk_state > DiskState.INCONSISTENT


def test_the_target_flushes_its_data_and_writes_its_bitmap_before_it_is_up_to_date() -> None:
    pair = half_done(resync_rate_max=1)
    pair.beta.flushes_at_once = False
    pair.beta.volume.data.options = pair.beta.options.__class__("r0", "beta", "alpha", resync_rate_max=0)
    pair.forget_trails()
    for _ in range(20):
        pair.pass_time(0.05)
    while len(pair.beta.disk.flushing) > 0 and pair.beta.out_of_sync_blocks:
        pair.beta.finish_flush()
        pair.run()
    assert pair.beta.out_of_sync_blocks == 0
    assert pair.beta.words == SYNC_TARGET
    assert pair.beta.disk.flushing
    while pair.beta.disk.flushing:
        pair.beta.finish_flush()
        pair.run()
    assert pair.beta.does(
        "send P_PING", "flush", "persist bitmap", "Secondary Connected UpToDate/UpToDate", "send P_STATE"
    )
    assert pair.equal
    pair.beta.disk.lose_power()
    assert pair.same_data


def test_a_resync_that_was_cut_off_goes_on_where_it_was() -> None:
    pair = half_done()
    left = pair.beta.out_of_sync_blocks
    pair.cut()
    sent = len(pair.wire["alpha", Stream.DATA])
    for side in pair.sides:
        side.volume.data.options = side.options.__class__("r0", side.name, pair.other(side).name, resync_rate_max=0)
    pair.connect()
    assert pair.equal
    assert len(pair.wire["alpha", Stream.DATA]) - sent < (left + 64) * 4096 + 20_000


def test_a_target_that_loses_its_power_in_the_middle_of_a_resync_gets_back_what_its_cache_lost() -> None:
    pair = half_done()
    pair.pass_time(3.0)
    pair.crash(pair.beta, power_cut=True)
    pair.restart(pair.beta)
    assert pair.beta.volume.state.disk is DiskState.INCONSISTENT
    for side in pair.sides:
        side.volume.data.options = side.options.__class__("r0", side.name, pair.other(side).name, resync_rate_max=0)
    pair.connect()
    assert pair.equal


def test_bits_are_cleared_on_the_targets_disk_only_after_a_flush() -> None:
    pair = half_done()
    before = pair.beta.disk.attachment().bitmap.count
    assert before == pair.beta.volume.size_bytes // 4096
    pair.beta.flushes_at_once = False
    pair.pass_time(2.5)
    assert pair.beta.disk.flushing
    assert pair.beta.disk.attachment().bitmap.count == before
    pair.beta.finish_flush()
    assert pair.beta.disk.attachment().bitmap.count < before


def test_a_block_marked_during_a_resync_does_not_take_cleared_bits_to_the_targets_disk() -> None:
    pair = half_done()
    beta = pair.beta
    cleared = pair.alpha.volume.size_bytes // 4096 - beta.out_of_sync_blocks
    assert cleared > 1
    pair.forget_trails()
    first, length = 0, 4096
    beta.inbox[Stream.DATA] += packets.OUT_OF_SYNC.pack(
        packets.MAGIC_100, 0, packets.P_OUT_OF_SYNC, 16, 0, first >> 9, length, 0
    )
    beta.step()
    assert beta.volume.data.bitmap.count == pair.alpha.volume.size_bytes // 4096 - cleared + 1
    assert "persist bitmap" not in beta.trail


def test_an_inconsistent_disk_cannot_be_used() -> None:
    pair = half_done()
    pair.cut()
    error = pair.refused(pair.ask(pair.beta, "promote"))
    assert "Inconsistent, a mixture of old and new blocks" in error.fact


def test_a_source_that_crashes_in_the_middle_is_source_again() -> None:
    pair = half_done()
    pair.crash(pair.alpha)
    pair.restart(pair.alpha)
    for side in pair.sides:
        side.volume.data.options = side.options.__class__("r0", side.name, pair.other(side).name, resync_rate_max=0)
    pair.connect()
    assert pair.equal
    assert pair.beta.disk.read(8192, 4096) == block(b"f")


def test_a_secondary_may_be_source_and_be_promoted_meanwhile() -> None:
    pair = MirrorPair(resync_rate_max=MIB)
    pair.connect()
    pair.promote(pair.alpha, Force.OVERWRITE)
    pair.demote(pair.alpha)
    assert pair.alpha.words == "Secondary SyncSource UpToDate/Inconsistent"
    pair.promote(pair.alpha)
    pair.write(pair.alpha, 12 * MIB, block(b"p"))
    pair.pass_time(20)
    assert pair.equal


def test_the_rate_bounds_how_much_is_asked_for() -> None:
    pair = MirrorPair(resync_rate_max=2 * MIB)
    pair.connect()
    pair.promote(pair.alpha, Force.OVERWRITE)
    before = pair.beta.out_of_sync_blocks
    pair.pass_time(2.0)
    copied = (before - pair.beta.out_of_sync_blocks) * 4096
    assert 3 * MIB <= copied <= 5 * MIB


def test_no_more_is_in_flight_than_allowed() -> None:
    pair = MirrorPair(resync_in_flight=3)
    pair.connect()
    pair.ask(pair.alpha, "promote", force=Force.OVERWRITE)
    most = 0
    for _ in range(100_000):
        moved = [side.step() for side in pair.sides]
        resync = pair.beta.volume.data.resync
        most = max(most, len(resync.outstanding) if resync is not None else 0)
        if not any(moved):
            break
    assert most == 3
    assert pair.equal


def test_requests_are_aligned_and_never_longer_than_one_packet_may_answer() -> None:
    pair = MirrorPair()
    pair.first_resync()
    for command, body in pair.packets(pair.beta, Stream.DATA):
        if command == P_RS_DATA_REQUEST:
            sector, _, size, _ = packets.BLOCK_BODY.unpack(body)
            assert sector % 8 == 0
            assert 0 < size <= MIB
            assert sector * 512 // (16 * MIB) == (sector * 512 + size - 1) // (16 * MIB)


def test_a_device_that_ends_within_a_block_is_copied_to_its_last_sector() -> None:
    pair = MirrorPair()
    pair.connect()
    pair.ask(pair.alpha, "disconnect")
    pair.run()
    odd = pair.alpha.volume.size_bytes - 4096 + 512
    for side in pair.sides:
        side.start()
        side.volume.data.size_bytes = odd
    pair.promote(pair.alpha, Force.OVERWRITE)
    pair.alpha.disk.content[odd - 512 : odd] = b"e" * 512
    pair.connect()
    assert pair.beta.volume.size_bytes == odd
    assert pair.equal
    assert pair.beta.disk.read(odd - 512, 512) == b"e" * 512


def test_a_resync_with_nothing_to_copy_ends_at_once() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.cut()
    pair.connect()
    assert pair.equal
    assert P_RS_DATA_REQUEST not in [command for command, _ in pair.packets(pair.beta, Stream.DATA)]
    assert alpha.volume.state.role is Role.PRIMARY


def test_after_a_resync_the_source_lifts_the_fence() -> None:
    pair = MirrorPair()
    pair.first_resync()
    assert "handler unfence-peer" in pair.alpha.trail


def test_without_run_lengths_the_bitmap_is_words_and_an_empty_packet() -> None:
    pair = MirrorPair(use_rle=False)
    pair.first_resync()
    sent = [(command, len(body)) for command, body in pair.packets(pair.alpha, Stream.DATA)]
    bitmap = [length for command, length in sent if command == packets.P_BITMAP]
    assert bitmap[-1] == 0
    assert sum(bitmap) == (pair.alpha.volume.size_bytes // 4096 + 63) // 64 * 8
    assert packets.P_COMPRESSED_BITMAP not in [command for command, _ in sent]


# a peer that does it wrong


def test_a_block_that_was_not_asked_for_ends_the_connection() -> None:
    pair = half_done()
    offset = 12 * MIB
    body = packets.block_packet(P_RS_DATA_REPLY, offset, packets.ID_SYNCER, 0, 0, length=24 + 4096) + block(b"?")
    pair.beta.give(Stream.DATA, bytearray(body))
    assert pair.beta.connection() is ConnectionState.WF_CONNECTION
    assert pair.beta.disk.read(offset, 4096) == bytes(4096)


def test_a_target_that_claims_to_be_done_too_early_is_dropped() -> None:
    pair = half_done()
    done = 2 | 1 << 2 | 10 << 4 | 8 << 9 | 8 << 13
    pair.alpha.give(Stream.DATA, bytearray(packets.packet(packets.P_STATE, done.to_bytes(4, "big"))))
    assert pair.alpha.connection() is ConnectionState.WF_CONNECTION
    assert any("says it is UpToDate while" in note for note in pair.alpha.notes)


def test_a_block_the_target_could_not_write_stays_marked() -> None:
    pair = half_done()
    marked = pair.alpha.out_of_sync_blocks
    nack = packets.block_packet(packets.P_NEG_ACK, 0, packets.ID_SYNCER, 4096, 1)
    pair.alpha.give(Stream.META, bytearray(nack))
    assert pair.alpha.out_of_sync_blocks == marked
    assert pair.alpha.status["connections"][0]["peer_devices"][0]["rs-failed"] == 1


def test_a_block_the_source_could_not_read_keeps_the_target_inconsistent() -> None:
    pair = half_done()
    pair.beta.volume.data.options = pair.beta.options.__class__("r0", "beta", "alpha", resync_rate_max=MIB)
    pair.now += 1
    pair.beta.tick()
    offset = next(iter(pair.beta.volume.data.resync.outstanding))  # type: ignore[union-attr]
    length = pair.beta.volume.data.resync.outstanding[offset]  # type: ignore[union-attr]
    nack = packets.block_packet(packets.P_NEG_RS_DREPLY, offset, packets.ID_SYNCER, length, 1)
    pair.beta.give(Stream.META, bytearray(nack))
    assert any("resync will not finish" in note for note in pair.beta.notes)
    assert pair.beta.volume.data.bitmap.any_set(offset, length)


def test_bits_are_cleared_only_for_blocks_that_are_covered_wholly() -> None:
    pair = half_done()
    offset = 12 * MIB
    ack = packets.block_packet(P_RS_WRITE_ACK, offset + 512, packets.ID_SYNCER, 8192, 1)
    pair.alpha.give(Stream.META, bytearray(ack))
    bitmap = pair.alpha.volume.data.bitmap
    assert [bitmap.any_set(offset + number * 4096, 4096) for number in range(3)] == [True, False, True]
