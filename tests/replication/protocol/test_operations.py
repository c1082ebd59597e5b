"""What an operator asks for, and why it is refused."""

from __future__ import annotations

from replication.protocol.states import ConnectionState, DiskState, Role
from replication.protocol.volume import Force
from tests.replication.protocol.coupled import MirrorPair, block

# promote


def test_a_standby_in_sight_of_a_secondary_may_be_promoted() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    pair.promote(pair.beta)
    assert pair.alpha.words == "Secondary Connected UpToDate/UpToDate"
    assert pair.alpha.volume.state.peer is Role.PRIMARY


def test_to_promote_a_primary_changes_nothing() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    generation = alpha.volume.data.generation
    pair.promote(alpha)
    assert alpha.volume.data.generation == generation


def test_never_two_primaries_in_sight_of_each_other() -> None:
    pair = MirrorPair()
    pair.with_primary()
    error = pair.refused(pair.ask(pair.beta, "promote"))
    assert "two primaries are never allowed" in error.fact
    assert "on alpha: mirroradm secondary r0" in error.remedy


def test_fresh_disks_are_promoted_only_by_force() -> None:
    pair = MirrorPair()
    assert "Inconsistent" in pair.refused(pair.ask(pair.alpha, "promote")).fact
    pair.connect()
    assert "primary --force" in pair.refused(pair.ask(pair.alpha, "promote")).remedy
    pair.promote(pair.alpha, Force.OVERWRITE)


def test_a_standby_that_lost_its_primary_is_not_promoted_without_an_operators_word() -> None:
    pair = MirrorPair()
    pair.with_primary()
    pair.crash(pair.alpha)
    error = pair.refused(pair.ask(pair.beta, "promote"))
    assert "alpha was Primary when contact was lost" in error.fact
    assert "--accept-loss=beta" in error.remedy


def test_a_permit_names_the_host_that_may_lack_data() -> None:
    pair = MirrorPair()
    pair.with_primary()
    pair.crash(pair.alpha)
    assert 'not "alpha"' in pair.refused(pair.ask(pair.beta, "permit", "alpha")).fact
    assert pair.done(pair.ask(pair.beta, "permit", "beta"))
    pair.promote(pair.beta)


def test_a_permit_outlives_a_restart_and_is_used_up_by_the_promotion() -> None:
    pair = MirrorPair()
    pair.with_primary()
    pair.crash(pair.alpha)
    assert pair.done(pair.ask(pair.beta, "permit", "beta"))
    pair.restart(pair.beta)
    pair.promote(pair.beta)
    pair.crash(pair.beta)
    pair.restart(pair.beta)
    assert "was not seen since beta started" in pair.refused(pair.ask(pair.beta, "promote")).fact


def test_a_permit_is_not_needed_while_the_peer_is_there() -> None:
    pair = MirrorPair()
    pair.with_primary()
    assert "nothing has to be lost" in pair.refused(pair.ask(pair.beta, "permit", "beta")).fact


def test_a_permit_ends_when_the_peer_is_seen_as_primary_again() -> None:
    pair = MirrorPair()
    pair.with_primary()
    pair.cut()
    assert pair.done(pair.ask(pair.beta, "permit", "beta"))
    pair.connect()
    pair.cut()
    assert "was Primary when contact was lost" in pair.refused(pair.ask(pair.beta, "promote")).fact


def test_no_permit_makes_a_mixture_usable() -> None:
    pair = MirrorPair(resync_rate_max=1)
    pair.connect()
    pair.promote(pair.alpha, Force.OVERWRITE)
    pair.cut()
    assert "no image an application could use" in pair.refused(pair.ask(pair.beta, "permit", "beta")).fact


def test_a_standby_whose_primary_was_demoted_takes_over_alone() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 0, block(b"h"))
    pair.demote(alpha)
    pair.crash(alpha)
    pair.promote(pair.beta)
    assert pair.read(pair.beta, 0, 4096) == block(b"h")


def test_after_a_restart_a_demotion_seen_before_is_no_right_any_more() -> None:
    """The peer may have been promoted since, alone."""
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.demote(alpha)
    pair.crash(alpha)
    pair.crash(pair.beta, power_cut=False)
    pair.restart(pair.beta)
    assert "was not seen since" in pair.refused(pair.ask(pair.beta, "promote")).fact


def test_to_demote_a_secondary_changes_nothing() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    before = pair.alpha.volume.state
    assert pair.done(pair.ask(pair.alpha, "demote"))
    assert pair.alpha.volume.state == before


def test_who_demotes_alone_may_be_promoted_again_after_a_restart() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.crash(pair.beta)
    pair.cut()
    pair.demote(alpha)
    assert alpha.record["right"]["kind"] == "hand-over"
    pair.crash(alpha, power_cut=False)
    pair.restart(alpha)
    pair.promote(alpha)
    assert "right" not in alpha.record


# connect, disconnect, detach, outdate


def test_to_connect_twice_changes_nothing() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    before = pair.alpha.volume.state
    assert pair.done(pair.ask(pair.alpha, "connect"))
    assert pair.alpha.volume.state == before


def test_to_discard_ones_data_is_not_silently_forgotten_while_connected() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    assert "is Connected already" in pair.refused(pair.ask(pair.alpha, "connect", discard_my_data=True)).fact


def test_to_disconnect_without_a_connection_only_stays_alone() -> None:
    pair = MirrorPair()
    pair.ask(pair.alpha, "connect")
    assert pair.done(pair.ask(pair.alpha, "disconnect"))
    assert pair.alpha.connection() is ConnectionState.STAND_ALONE
    assert not pair.alpha.volume.wants_link


def test_to_disconnect_during_the_handshake_ends_it() -> None:
    pair = MirrorPair()
    pair.connect()
    pair.cut()
    pair.plug()
    assert pair.done(pair.ask(pair.alpha, "disconnect"))
    assert pair.alpha.connection() is ConnectionState.STAND_ALONE
    assert not pair.alpha.linked


def test_a_disk_is_put_away_clean_so_that_drbd_can_attach_it() -> None:
    pair = MirrorPair()
    pair.demote(pair.with_primary())
    pair.ask(pair.alpha, "disconnect")
    pair.run()
    assert pair.done(pair.ask(pair.alpha, "detach"))
    offset = pair.alpha.disk.layout.superblock_offset
    assert pair.alpha.disk.content[offset + 60 : offset + 64].hex() == "8374026b"
    flags = int.from_bytes(pair.alpha.disk.content[offset + 56 : offset + 60], "big")
    assert flags & 2 == 0
    assert flags & 128
    assert pair.alpha.words == "Secondary StandAlone Diskless/DUnknown"
    pair.restart(pair.alpha)
    assert pair.alpha.out_of_sync_blocks == 0


def test_a_disk_in_use_says_so() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    offset = pair.alpha.disk.layout.superblock_offset
    assert pair.alpha.disk.content[offset + 60 : offset + 64].hex() == "8374026c"


def test_a_disk_is_not_put_away_under_a_primary_or_a_connection() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    for side in pair.sides:
        assert "is Primary or connected" in pair.refused(pair.ask(side, "detach")).fact
    assert alpha.volume.state.disk is DiskState.UP_TO_DATE


def test_a_detach_that_waits_ends_when_the_disk_fails() -> None:
    pair = MirrorPair()
    pair.alpha.flushes_at_once = False
    operation = pair.ask(pair.alpha, "detach")
    pair.alpha.disk.fails = pair.alpha.flushes_at_once = True
    pair.run()
    assert operation in pair.alpha.answers
    assert pair.alpha.volume.state.disk is DiskState.DISKLESS


def test_an_operator_may_outdate_what_is_not_connected() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    assert "is Primary" in pair.refused(pair.ask(alpha, "outdate")).fact
    assert "is connected" in pair.refused(pair.ask(pair.beta, "outdate")).fact
    pair.cut()
    assert pair.done(pair.ask(pair.beta, "outdate"))
    assert pair.beta.durable_disk_state is DiskState.OUTDATED
    pair.connect()
    assert pair.equal


def test_invalidation_needs_somebody_with_good_data() -> None:
    pair = MirrorPair()
    pair.connect()
    assert "no UpToDate data to take" in pair.refused(pair.ask(pair.alpha, "invalidate")).fact
    assert "the data here are Inconsistent" in pair.refused(pair.ask(pair.alpha, "invalidate_remote")).fact
    pair.cut()
    assert "is not connected" in pair.refused(pair.ask(pair.alpha, "invalidate_remote")).fact
