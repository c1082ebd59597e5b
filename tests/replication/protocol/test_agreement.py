"""Changes of state that both sides have to agree to."""

from __future__ import annotations

import pytest

from replication.protocol import packets
from replication.protocol.agreement import ANSWER_S
from replication.protocol.effects import Stream
from replication.protocol.packets import P_CONN_ST_CHG_REQ, P_STATE_CHG_REPLY, P_STATE_CHG_REQ
from replication.protocol.requests import WRITE
from replication.protocol.states import ConnectionState, Role
from replication.protocol.volume import Force
from tests.replication.protocol.coupled import MirrorPair, Side, block


def asked(side: Side, mask: int, value: int, command: int = P_STATE_CHG_REQ) -> None:
    """The peer asks `side` for a change."""
    side.give(Stream.DATA, bytearray(packets.packet(command, packets.STATE_CHANGE_BODY.pack(mask, value))))


def replies(pair: MirrorPair, side: Side) -> list[int]:
    return [
        int.from_bytes(body, "big", signed=True)
        for command, body in pair.packets(side, Stream.META)
        if command in (P_STATE_CHG_REPLY, packets.P_CONN_ST_CHG_REPLY)
    ]


# promotion


def test_a_peer_is_pinged_before_it_is_asked() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    pair.forget_trails()
    pair.promote(pair.alpha)
    assert pair.alpha.does("send P_PING", "send P_STATE_CHG_REQ", "answer")
    assert pair.beta.does("send P_PING_ACK", "send P_STATE_CHG_REPLY")


def test_a_peer_that_does_not_answer_the_ping_is_dropped_instead_of_believed() -> None:
    pair = MirrorPair(ping_timeout_s=0.5)
    pair.declare_equal()
    operation = pair.ask(pair.alpha, "promote")
    pair.alpha.run()
    pair.beta.inbox[Stream.META].clear()
    pair.pass_time(0.6)
    assert "contact to beta was lost" in pair.refused(operation).fact
    assert pair.alpha.connection() is ConnectionState.WF_CONNECTION
    pair.promote(pair.alpha)


def test_the_generation_is_durable_before_the_promotion_is_answered() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    pair.forget_trails()
    pair.promote(pair.alpha)
    assert pair.alpha.does("Primary Connected UpToDate/UpToDate", "persist superblock", "answer")


@pytest.mark.parametrize("first", ["alpha", "beta"])
@pytest.mark.parametrize("meta_first", [False, True])
def test_of_two_that_want_to_be_primary_at_once_exactly_one_becomes_it(first: str, meta_first: bool) -> None:
    pair = MirrorPair()
    pair.declare_equal()
    pair.meta_first = meta_first
    order = pair.sides if first == "alpha" else pair.sides[::-1]
    operations = [pair.ask(side, "promote") for side in order]
    outcomes = [pair.done(operation) for operation in operations]
    assert outcomes.count(True) == 1
    roles = {side.volume.state.role for side in pair.sides}
    assert roles == {Role.PRIMARY, Role.SECONDARY}
    for side in pair.sides:
        assert side.volume.state.peer is pair.other(side).volume.state.role


def test_of_two_that_want_to_be_primary_at_once_exactly_one_becomes_it_in_any_order_of_steps() -> None:
    for pattern in range(0, 256, 3):
        pair = MirrorPair(disk_bytes=1 << 20)
        pair.declare_equal()
        operations = [pair.ask(side, "promote") for side in pair.sides]
        for bit in range(8):
            side = pair.sides[pattern >> bit & 1]
            pair.meta_first = bool(pattern >> (bit * 3) % 8 & 1)
            side.step()
        outcomes = [pair.done(operation) for operation in operations]
        primaries = [side for side in pair.sides if side.volume.state.role is Role.PRIMARY]
        assert len(primaries) <= 1, pattern
        assert outcomes.count(True) == len(primaries), pattern
        assert pair.alpha.connection() is ConnectionState.CONNECTED, pattern
        for side in pair.sides:
            assert side.volume.state.peer is pair.other(side).volume.state.role, pattern


def test_a_primary_does_not_let_its_peer_be_promoted() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    asked(alpha, 0x3, 0x1)
    assert replies(pair, alpha) == [-1]
    assert alpha.volume.state.peer is Role.SECONDARY


def test_a_node_that_demotes_answers_later() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 0, block(b"w"))
    alpha.flushes_at_once = False
    pair.ask(alpha, "demote")
    asked(alpha, 0x3, 0x1)
    assert replies(pair, alpha) == [-18]


def test_nobody_is_promoted_by_force_in_the_middle_of_a_resync() -> None:
    pair = MirrorPair(resync_rate_max=1)
    pair.connect()
    pair.promote(pair.alpha, Force.OVERWRITE)
    pair.demote(pair.alpha)
    asked(pair.alpha, 0x1E03, 0x1001)
    assert replies(pair, pair.alpha)[-1] < 0
    assert pair.alpha.words == "Secondary SyncSource UpToDate/Inconsistent"


def test_a_forced_promotion_makes_the_peer_a_target() -> None:
    pair = MirrorPair()
    pair.connect()
    pair.promote(pair.beta, Force.OVERWRITE)
    assert pair.equal
    assert pair.beta.words == "Primary Connected UpToDate/UpToDate"


def test_force_does_not_overwrite_a_better_disk() -> None:
    pair = MirrorPair(resync_rate_max=1)
    pair.connect()
    pair.promote(pair.alpha, Force.OVERWRITE)
    pair.demote(pair.alpha)
    error = pair.refused(pair.ask(pair.beta, "promote", force=Force.OVERWRITE))
    assert "alpha holds better data (UpToDate) than this side (Inconsistent)" in error.fact


def test_one_change_at_a_time_is_asked_for() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    first = pair.ask(pair.alpha, "invalidate_remote")
    second = pair.ask(pair.alpha, "disconnect")
    assert "being asked of beta to invalidate the peer" in pair.refused(second).fact
    assert pair.done(first)
    third = pair.ask(pair.alpha, "promote")
    assert "another change of its role is under way" in pair.refused(pair.ask(pair.alpha, "disconnect")).fact
    assert pair.done(third)


def test_a_request_that_nobody_answers_ends_after_a_while() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    operation = pair.ask(pair.alpha, "promote")
    pair.alpha.run()
    pair.beta.run()
    pair.alpha.run()
    pair.beta.inbox[Stream.DATA].clear()
    pair.pass_time(ANSWER_S + 0.1)
    assert "did not answer in 10 s" in pair.refused(operation).fact
    pair.promote(pair.alpha)


# what is no request, or one we do not know


@pytest.mark.parametrize(
    ("mask", "value", "reply"),
    [
        (0, 0, -17),
        (0x1F0, 31 << 4, -17),
        (0x1E00, 15 << 9, -17),
        (0x3, 0x2, -17),
        (0xFFFFFFFF, 0xFFFFFFFF, -17),
        (0x1F0, 0x120, -14),
        (0x1E00, 0x400, 1),
    ],
)
def test_requests_that_make_no_sense_are_answered_and_change_nothing(mask: int, value: int, reply: int) -> None:
    pair = MirrorPair()
    pair.declare_equal()
    before = pair.alpha.volume.state
    asked(pair.alpha, mask, value)
    assert replies(pair, pair.alpha) == [reply]
    assert pair.alpha.volume.state == before


# disconnecting


def test_after_a_polite_disconnect_one_stands_alone_and_the_other_waits() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    assert pair.done(pair.ask(pair.alpha, "disconnect"))
    assert pair.alpha.words == "Secondary StandAlone UpToDate/DUnknown"
    assert pair.beta.words == "Secondary WFConnection UpToDate/DUnknown"
    pair.connect()
    assert pair.equal


def test_a_secondary_that_leaves_its_primary_is_outdated_on_both_sides() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    assert pair.done(pair.ask(pair.beta, "disconnect"))
    assert pair.beta.words == "Secondary StandAlone Outdated/DUnknown"
    assert pair.beta.durable_disk_state.name == "OUTDATED"
    assert alpha.words == "Primary WFConnection UpToDate/Outdated"
    assert "Outdated: alpha has newer data" in pair.refused(pair.ask(pair.beta, "promote")).fact


def test_a_secondary_that_leaves_is_outdated_even_if_the_answer_got_lost() -> None:
    pair = MirrorPair()
    pair.with_primary()
    operation = pair.ask(pair.beta, "disconnect")
    pair.alpha.run()
    pair.beta.run()
    pair.cut()
    assert pair.done(operation)
    assert pair.beta.words == "Secondary StandAlone Outdated/DUnknown"


def test_a_primary_that_is_left_goes_on_in_a_new_generation() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    name = alpha.volume.data.generation.name
    assert pair.done(pair.ask(pair.beta, "disconnect"))
    assert alpha.volume.data.generation.name != name
    pair.write(alpha, 0, block(b"n"))
    pair.connect()
    assert pair.equal


def test_a_primary_may_leave_its_secondary() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    request = alpha.request(WRITE, 0, block(b"l"))
    alpha.submit(request)
    assert pair.done(pair.ask(alpha, "disconnect"))
    assert request in alpha.completed
    assert alpha.words == "Primary StandAlone UpToDate/DUnknown"
    assert pair.beta.words == "Secondary WFConnection UpToDate/DUnknown"


def test_both_may_leave_at_the_same_time() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    operations = [pair.ask(side, "disconnect") for side in pair.sides]
    assert all(pair.done(operation) for operation in operations)
    assert pair.alpha.words == pair.beta.words == "Secondary StandAlone UpToDate/DUnknown"


def test_whoever_wants_to_leave_a_dead_peer_is_not_kept() -> None:
    pair = MirrorPair(ping_timeout_s=0.5)
    pair.declare_equal()
    operation = pair.ask(pair.alpha, "disconnect")
    pair.beta.inbox[Stream.META].clear()
    pair.pass_time(0.6)
    assert pair.done(operation)
    assert pair.alpha.words == "Secondary StandAlone UpToDate/DUnknown"


def test_a_promotion_that_waits_is_refused_at_once_when_the_peer_leaves() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    operation = pair.ask(pair.beta, "promote")
    pair.beta.run()
    asked(pair.beta, 0x1F0, 0x10, P_CONN_ST_CHG_REQ)
    error = pair.beta.answers[operation]
    assert error is not None
    assert "contact to alpha was lost" in error.fact


# invalidating


@pytest.mark.parametrize("meta_first", [False, True])
@pytest.mark.parametrize("what", ["invalidate", "invalidate_remote"])
def test_invalid_data_come_anew_from_the_other_side(what: str, meta_first: bool) -> None:
    pair = MirrorPair()
    pair.declare_equal()
    pair.meta_first = meta_first
    source, target = pair.sides if what == "invalidate_remote" else pair.sides[::-1]
    source.disk.content[4096:8192] = block(b"s")
    target.disk.content[4096:8192] = block(b"t")
    assert pair.done(pair.ask(pair.alpha, what))
    assert pair.equal
    assert target.disk.read(4096, 4096) == block(b"s")


def test_a_standby_of_a_primary_may_be_invalidated_from_either_side() -> None:
    for what, asks in (("invalidate", 1), ("invalidate_remote", 0)):
        pair = MirrorPair()
        pair.with_primary()
        pair.beta.disk.content[0:4096] = block(b"?")
        assert pair.done(pair.ask(pair.sides[asks], what))
        assert pair.equal


def test_a_primarys_data_are_never_invalidated() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    assert "this side is Primary" in pair.refused(pair.ask(alpha, "invalidate")).fact
    assert "alpha is Primary" in pair.refused(pair.ask(pair.beta, "invalidate_remote")).fact
    asked(alpha, 0x1F0, 0xB0)
    assert replies(pair, alpha) == [-12]


def test_invalidated_data_are_marked_everywhere_before_the_disk_says_inconsistent() -> None:
    pair = MirrorPair()
    pair.declare_equal()
    pair.cut()
    pair.beta.disk.content[4096:8192] = block(b"t")
    pair.forget_trails()
    assert pair.done(pair.ask(pair.beta, "invalidate"))
    assert pair.beta.does("persist bitmap", "persist superblock", "answer")
    pair.crash(pair.beta)
    pair.restart(pair.beta)
    pair.connect()
    assert pair.equal
    assert pair.beta.disk.read(4096, 4096) == bytes(4096)


def test_a_full_resync_that_was_cut_off_at_its_start_is_still_a_full_one() -> None:
    pair = MirrorPair(resync_rate_max=1)
    pair.declare_equal()
    pair.ask(pair.beta, "invalidate")
    pair.run()
    assert pair.beta.connection() is ConnectionState.SYNC_TARGET
    pair.crash(pair.beta)
    pair.restart(pair.beta)
    assert pair.beta.words == "Secondary StandAlone Inconsistent/DUnknown"
    assert pair.beta.out_of_sync_blocks > 0
