from __future__ import annotations

from typing import Any

import pytest

from replication.protocol import packets
from replication.protocol.effects import Stream
from replication.protocol.options import AfterSplitBrain
from replication.protocol.states import ConnectionState, DiskState
from replication.protocol.volume import Force
from tests.replication.protocol.coupled import SECRET, MirrorPair, Side, block

PIECES = [None, 1, 7]
"""How much of a stream comes at once: all of it, byte by byte, and in odd pieces."""


def both_stand_alone(pair: MirrorPair) -> bool:
    return all(side.connection() is ConnectionState.STAND_ALONE for side in pair.sides)


def told(side: Side, words: str) -> bool:
    return any(words in note for note in side.notes)


@pytest.mark.parametrize("piece_bytes", PIECES)
@pytest.mark.parametrize("secret", [{}, {"hmac_algorithm": "sha256", "shared_secret": SECRET}])
def test_fresh_disks_connect_and_know_that_neither_holds_data(piece_bytes: int | None, secret: dict[str, Any]) -> None:
    pair = MirrorPair(piece_bytes=piece_bytes, **secret)
    pair.connect()
    for side in pair.sides:
        assert side.words == "Secondary Connected Inconsistent/Inconsistent"
        assert side.volume.size_bytes == side.disk.layout.data_bytes


def test_it_does_not_matter_who_opened_which_stream_nor_which_is_read_first() -> None:
    for meta_first in (False, True):
        pair = MirrorPair()
        pair.meta_first = meta_first
        for side in pair.sides:
            pair.ask(side, "connect")
        pair.plug(accepts_meta=pair.beta)
        pair.run()
        assert pair.done(pair.ask(pair.alpha, "new_current_uuid"))
        assert pair.equal


@pytest.mark.parametrize("piece_bytes", PIECES)
def test_fresh_disks_can_be_declared_equal_without_copying_anything(piece_bytes: int | None) -> None:
    pair = MirrorPair(piece_bytes=piece_bytes)
    pair.declare_equal()
    assert pair.out_of_sync() == (0, 0)
    assert packets.P_RS_DATA_REQUEST not in [command for command, _ in pair.packets(pair.beta, Stream.DATA)]
    assert pair.alpha.volume.data.generation == pair.beta.volume.data.generation
    assert {side.durable_disk_state for side in pair.sides} == {DiskState.UP_TO_DATE}


def test_only_fresh_disks_can_be_declared_equal() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    assert "fresh from create-md" in pair.refused(pair.ask(pair.beta, "new_current_uuid")).fact


def test_the_device_is_as_large_as_the_smaller_disk() -> None:
    pair = MirrorPair(disk_bytes=16 << 20, beta_disk_bytes=12 << 20)
    pair.first_resync()
    assert pair.alpha.volume.size_bytes == pair.beta.disk.layout.data_bytes
    pair.crash(pair.alpha)
    pair.restart(pair.alpha)
    assert pair.alpha.volume.size_bytes == pair.beta.disk.layout.data_bytes


def test_data_are_never_cut_off_by_a_smaller_disk() -> None:
    pair = MirrorPair(disk_bytes=16 << 20, beta_disk_bytes=12 << 20)
    pair.promote(pair.alpha, Force.OVERWRITE)
    pair.write(pair.alpha, pair.alpha.volume.size_bytes - 4096, block(b"z"))
    pair.connect()
    assert pair.alpha.connection() is ConnectionState.STAND_ALONE
    assert told(pair.alpha, "give it a larger disk")
    assert pair.read(pair.alpha, pair.alpha.volume.size_bytes - 4096, 4096) == block(b"z")


def test_a_larger_replacement_disk_takes_the_size_that_the_data_have() -> None:
    pair = MirrorPair(disk_bytes=16 << 20, beta_disk_bytes=12 << 20)
    pair.first_resync()
    pair.write(pair.alpha, 0, block(b"k"))
    pair.crash(pair.beta)
    pair.beta.replace_disk(16 << 20)
    pair.connect()
    assert pair.alpha.volume.size_bytes == pair.beta.volume.size_bytes < (12 << 20)
    assert pair.equal


def test_after_the_disks_were_told_apart_only_what_was_written_meanwhile_is_copied() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.cut()
    pair.write(alpha, 5 << 20, block(b"m", 3))
    before = len(pair.wire["alpha", Stream.DATA])
    pair.connect()
    assert pair.equal
    assert len(pair.wire["alpha", Stream.DATA]) - before < 3 * 4096 + 2000


def test_a_fresh_disk_gets_everything_from_one_that_holds_data() -> None:
    pair = MirrorPair()
    pair.promote(pair.alpha, Force.OVERWRITE)
    pair.write(pair.alpha, 0, block(b"d"))
    pair.connect()
    assert pair.equal
    assert pair.beta.does("persist bitmap", "Secondary SyncTarget Inconsistent/UpToDate")


def test_a_wrong_secret_is_for_good_on_both_sides() -> None:
    pair = MirrorPair(
        hmac_algorithm="sha256", alpha={"shared_secret": "one"}, beta={"shared_secret": "two"}
    )  # fmt: skip
    pair.connect()
    assert both_stand_alone(pair)
    assert told(pair.alpha, "compare shared-secret")
    assert packets.P_PROTOCOL not in [command for command, _ in pair.packets(pair.alpha, Stream.DATA)]
    assert pair.alpha.status["mirror"]["reason"] == "StandAlone: does not know the shared secret"


def test_a_peer_without_authentication_gets_nothing_and_is_told_for_good() -> None:
    pair = MirrorPair(alpha={"hmac_algorithm": "sha256", "shared_secret": SECRET})
    pair.connect()
    assert pair.alpha.connection() is ConnectionState.STAND_ALONE
    assert told(pair.alpha, "is cram-hmac-alg set on both nodes?")
    assert packets.P_PROTOCOL not in [command for command, _ in pair.packets(pair.alpha, Stream.DATA)]
    assert pair.beta.connection() is ConnectionState.WF_CONNECTION


def test_our_own_challenge_sent_back_is_refused() -> None:
    pair = MirrorPair(alpha={"hmac_algorithm": "sha256", "shared_secret": SECRET})
    alpha = pair.alpha
    pair.ask(alpha, "connect")
    pair.plug()
    alpha.give(Stream.DATA, bytearray(packets.features_packet()))
    command, challenge = pair.packets(alpha, Stream.DATA)[-1]
    assert command == packets.P_AUTH_CHALLENGE
    alpha.give(Stream.DATA, bytearray(packets.packet(packets.P_AUTH_CHALLENGE, challenge)))
    assert alpha.connection() is ConnectionState.STAND_ALONE
    assert told(alpha, "sent our own challenge back")
    assert packets.P_AUTH_RESPONSE not in [command for command, _ in pair.packets(alpha, Stream.DATA)]


def test_a_longer_challenge_of_another_implementation_is_answered() -> None:
    pair = MirrorPair(alpha={"hmac_algorithm": "sha1", "shared_secret": SECRET})
    pair.ask(pair.alpha, "connect")
    pair.plug()
    pair.alpha.give(Stream.DATA, bytearray(packets.features_packet()))
    pair.alpha.give(Stream.DATA, bytearray(packets.packet(packets.P_AUTH_CHALLENGE, b"c" * 128)))
    command, response = pair.packets(pair.alpha, Stream.DATA)[-1]
    assert (command, len(response)) == (packets.P_AUTH_RESPONSE, 20)


@pytest.mark.parametrize("version", [99, 86])
def test_a_peer_that_speaks_only_old_protocols_is_refused_for_good(version: int) -> None:
    pair = MirrorPair()
    pair.ask(pair.alpha, "connect")
    pair.plug()
    body = packets.FEATURES_BODY.pack(86, 0, version, 0)
    pair.alpha.give(
        Stream.DATA, bytearray(packets.HEADER_80.pack(packets.MAGIC_80, packets.P_CONNECTION_FEATURES, 72) + body)
    )
    assert pair.alpha.connection() is ConnectionState.STAND_ALONE
    assert told(pair.alpha, f"speaks protocol 86 to {version}")


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"protocol": 1}, "protocol A, we with C"),
        ({"protocol": 2}, "protocol B, we with C"),
        ({"two_primaries": 1}, "allow-two-primaries yes"),
        ({"after_sb_0pri": 3}, "after-sb-0pri 3"),
        ({"after_sb_2pri": 9}, "after-sb-2pri 9"),
        ({"integrity": b"sha1\0"}, "data-integrity-alg sha1"),
    ],
)
def test_a_peer_that_is_configured_otherwise_is_refused_for_good(change: dict[str, Any], option: str) -> None:
    pair = MirrorPair()
    pair.ask(pair.alpha, "connect")
    pair.plug()
    fields = {"protocol": 3, "after_sb_0pri": 0, "after_sb_1pri": 0, "after_sb_2pri": 0, "flags": 0, "two_primaries": 0}
    integrity = change.pop("integrity", b"\0")
    fields |= change
    pair.alpha.give(Stream.DATA, bytearray(packets.features_packet()))
    body = packets.PROTOCOL_BODY.pack(*fields.values()) + integrity
    pair.alpha.give(Stream.DATA, bytearray(packets.packet(packets.P_PROTOCOL, body)))
    assert pair.alpha.connection() is ConnectionState.STAND_ALONE
    assert told(pair.alpha, option)
    assert told(pair.alpha, ".res files")


def test_policies_that_differ_are_noticed_by_both() -> None:
    pair = MirrorPair(
        alpha={"after_sb_0pri": AfterSplitBrain.DISCARD_ZERO_CHANGES},
        beta={"after_sb_0pri": AfterSplitBrain.DISCARD_LEAST_CHANGES},
    )
    pair.connect()
    assert both_stand_alone(pair)


def test_discard_local_here_is_discard_remote_there() -> None:
    pair = MirrorPair(
        alpha={"after_sb_0pri": AfterSplitBrain.DISCARD_LOCAL}, beta={"after_sb_0pri": AfterSplitBrain.DISCARD_REMOTE}
    )
    pair.connect()
    assert pair.alpha.words == "Secondary Connected Inconsistent/Inconsistent"


def test_digests_that_only_one_side_computes_are_refused() -> None:
    pair = MirrorPair()
    pair.ask(pair.alpha, "connect")
    pair.plug()
    pair.alpha.give(Stream.DATA, bytearray(packets.features_packet()))
    body = packets.SYNC_PARAM_BODY.pack(250, b"crc32c", b"", 20, 10, 100, 102400)
    pair.alpha.give(Stream.DATA, bytearray(packets.packet(packets.P_SYNC_PARAM89, body)))
    assert pair.alpha.connection() is ConnectionState.STAND_ALONE
    assert told(pair.alpha, "verify-alg crc32c")


def test_a_handshake_has_a_deadline() -> None:
    pair = MirrorPair(timeout_s=2.0, ping_timeout_s=0.5)
    pair.ask(pair.alpha, "connect")
    pair.plug()
    pair.pass_time(3.9)
    assert pair.alpha.connection() is ConnectionState.WF_REPORT_PARAMS
    pair.pass_time(0.2)
    assert pair.alpha.connection() is ConnectionState.WF_CONNECTION
    assert told(pair.alpha, "the handshake was not over after 4 s")


def test_a_connection_while_one_exists_is_dropped() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    effects = pair.alpha.volume.link_up(True, pair.now)
    assert [type(effect).__name__ for effect in effects] == ["DropLink"]


# split brain


def two_who_went_on_alone(**options: Any) -> MirrorPair:
    """alpha and beta have both written without each other, and are Secondary now."""
    pair = MirrorPair(**options)
    pair.with_primary()
    pair.cut()
    pair.write(pair.alpha, 0, block(b"a"))
    assert pair.done(pair.ask(pair.beta, "permit", "beta"))
    pair.promote(pair.beta)
    pair.write(pair.beta, 1 << 20, block(b"b"))
    pair.demote(pair.alpha)
    pair.demote(pair.beta)
    return pair


def test_a_split_brain_is_refused_by_both_and_nothing_is_overwritten() -> None:
    pair = two_who_went_on_alone()
    pair.connect()
    assert both_stand_alone(pair)
    assert pair.alpha.disk.read(0, 4096) == block(b"a")
    assert pair.beta.disk.read(1 << 20, 4096) == block(b"b")
    for side in pair.sides:
        assert told(side, "split brain")
        assert "discard-my-data" in side.status["mirror"]["remedy"]


def test_whoever_discards_its_data_gets_the_others() -> None:
    pair = two_who_went_on_alone()
    pair.connect()
    pair.ask(pair.beta, "connect", discard_my_data=True)
    pair.ask(pair.alpha, "connect")
    pair.plug()
    pair.run()
    assert pair.equal
    assert pair.beta.disk.read(0, 4096) == block(b"a")
    assert pair.beta.disk.read(1 << 20, 4096) == bytes(4096)


def test_to_discard_holds_for_one_split_brain_only() -> None:
    pair = two_who_went_on_alone()
    pair.ask(pair.beta, "connect", discard_my_data=True)
    pair.connect()
    assert pair.equal
    assert not pair.beta.volume.data.discard_my_data


def test_not_both_sides_can_discard_their_data() -> None:
    pair = two_who_went_on_alone()
    for side in pair.sides:
        pair.ask(side, "connect", discard_my_data=True)
    pair.plug()
    pair.run()
    assert both_stand_alone(pair)
    assert told(pair.alpha, "nobody would keep any")


def test_a_primary_cannot_discard_its_data() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    assert pair.done(pair.ask(alpha, "disconnect"))
    assert "a Primary cannot discard" in pair.refused(pair.ask(alpha, "connect", discard_my_data=True)).fact


def test_a_policy_that_both_have_settles_a_split_brain() -> None:
    pair = two_who_went_on_alone(after_sb_0pri=AfterSplitBrain.DISCARD_LEAST_CHANGES)
    pair.promote(pair.alpha)
    pair.write(pair.alpha, 2 << 20, block(b"a", 5))
    pair.demote(pair.alpha)
    pair.connect()
    assert pair.equal
    assert pair.beta.disk.read(2 << 20, 4096) == block(b"a")


def test_two_primaries_never_connect() -> None:
    pair = MirrorPair()
    pair.with_primary()
    pair.cut()
    assert pair.done(pair.ask(pair.beta, "permit", "beta"))
    pair.promote(pair.beta)
    pair.connect()
    assert both_stand_alone(pair)
    assert pair.alpha.words.startswith("Primary")
    assert pair.beta.words.startswith("Primary")


def test_disks_that_were_never_one_mirror_are_refused() -> None:
    pair = MirrorPair()
    for side in pair.sides:
        pair.promote(side, Force.OVERWRITE)
        pair.demote(side)
        pair.promote(side)
        pair.demote(side)
    pair.alpha.volume.data.generation = pair.alpha.volume.data.generation.__class__(0x10, 0, 0, 0)
    pair.beta.volume.data.generation = pair.beta.volume.data.generation.__class__(0x20, 0, 0, 0)
    pair.connect()
    assert both_stand_alone(pair)
    assert told(pair.alpha, "never one mirror")


# what a peer must not say


def state_of(number: int) -> bytearray:
    return bytearray(packets.packet(packets.P_STATE, number.to_bytes(4, "big")))


@pytest.mark.parametrize("number", [0xFFFFFFFF, 3, 31 << 4 | 2, 15 << 9 | 2])
def test_a_state_that_is_none_ends_the_connection(number: int) -> None:
    pair = MirrorPair()
    pair.declare_equal()
    pair.alpha.give(Stream.DATA, state_of(number))
    assert pair.alpha.connection() is ConnectionState.WF_CONNECTION
    assert told(pair.alpha, "sent a state that is none")


def test_a_peer_cannot_claim_a_disk_without_its_generations() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    pair.cut()
    pair.plug()
    pair.alpha.give(Stream.DATA, bytearray(packets.features_packet()))
    body = packets.PROTOCOL_BODY.pack(3, 0, 0, 0, 0, 0) + b"\0"
    pair.alpha.give(Stream.DATA, bytearray(packets.packet(packets.P_PROTOCOL, body)))
    pair.alpha.give(Stream.DATA, state_of(0x000110AA))
    assert pair.alpha.connection() is ConnectionState.WF_CONNECTION
    assert told(pair.alpha, "without its generations")


def test_a_disk_that_is_attached_in_the_middle_of_a_resync_ends_the_connection() -> None:
    pair = MirrorPair(resync_rate_max=1)
    pair.connect()
    pair.promote(pair.alpha, Force.OVERWRITE)
    assert pair.alpha.connection() is ConnectionState.SYNC_SOURCE
    negotiating = 2 | 1 << 2 | 10 << 4 | 3 << 9 | 8 << 13
    pair.alpha.give(Stream.DATA, state_of(negotiating))
    assert pair.alpha.connection() is ConnectionState.WF_CONNECTION


@pytest.mark.parametrize("size_sectors", [0, 1, 8, 1 << 62])
def test_no_size_of_the_peer_cuts_off_data_or_confuses_a_resync(size_sectors: int) -> None:
    pair = MirrorPair(resync_rate_max=1)
    pair.connect()
    pair.promote(pair.alpha, Force.OVERWRITE)
    size = pair.beta.volume.size_bytes
    for side in pair.sides:
        body = packets.SIZES_BODY.pack(size_sectors, 0, size_sectors, 1 << 20, 0, 0)
        side.give(Stream.DATA, bytearray(packets.packet(packets.P_SIZES, body)))
        assert side.volume.size_bytes == size
