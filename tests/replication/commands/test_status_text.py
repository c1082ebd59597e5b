"""Status for people: the words of drbdadm status, and what it leaves to be guessed."""

from __future__ import annotations

import pytest

from replication.commands.status_text import Detail, Paint, percent, rate, remaining, render
from tests.replication.statuses import alone, status, syncing


def test_a_healthy_mirror_is_four_short_lines() -> None:
    assert render([status()]) == (
        "r0 role:Secondary\n"
        "  disk:UpToDate\n"
        "  beta role:Primary\n"
        "    peer-disk:UpToDate\n"
    )  # fmt: skip


def test_a_resync_says_how_far_how_fast_and_how_long_still() -> None:
    reason = "there is no usable second copy until the resync ends"
    assert render([syncing(42.1, reason=reason)]) == (
        "r0 role:Secondary\n"
        "  disk:Inconsistent\n"
        "  beta role:Primary\n"
        "    replication:SyncTarget peer-disk:UpToDate done:42.10 rate:53.1MiB/s eta:0:01:12\n"
        "  reason:there is no usable second copy until the resync ends\n"
    )


def test_of_a_peer_that_is_away_nothing_is_claimed() -> None:
    assert render([alone()]) == (
        "r0 role:Secondary\n"
        "  disk:UpToDate\n"
        "  beta connection:Connecting\n"
    )  # fmt: skip


def test_what_is_known_of_a_peer_that_is_away_is_said() -> None:
    assert "    peer-disk:Outdated\n" in render([alone(peer_disk_state="Outdated")])


def test_who_stands_alone_is_told_why_and_what_to_type() -> None:
    text = render(
        [
            alone(
                connection_state="StandAlone",
                reason="split brain: both sides were written since 12:02",
                remedy="on the side that gives way: mirroradm connect --discard-my-data r0",
            )
        ]
    )
    assert text == (
        "r0 role:Secondary\n"
        "  disk:UpToDate\n"
        "  beta connection:StandAlone\n"
        "  reason:split brain: both sides were written since 12:02\n"
        "  remedy:on the side that gives way: mirroradm connect --discard-my-data r0\n"
    )


def test_frozen_io_a_hung_disk_and_congestion_are_not_hidden() -> None:
    text = render(
        [
            status(
                role="Primary",
                suspended=True,
                suspended_fencing=True,
                suspended_no_data=True,
                blocked_by_disk_s=12.34,
                congested=True,
                ap_in_flight=300,
                open=True,
                warnings=["swap is on"],
                resync_suspended="user",
            )
        ]
    )
    assert text == (
        "r0 role:Primary suspended:no-data,fencing\n"
        "  disk:UpToDate open:yes blocked:lower blocked-for:12.3s\n"
        "  beta role:Primary congested:yes ap-in-flight:300 rs-in-flight:0\n"
        "    peer-disk:UpToDate resync-suspended:user\n"
        "  warning:swap is on\n"
    )


def test_verbose_says_also_what_goes_without_saying() -> None:
    assert render([status()], Detail.VERBOSE) == (
        "r0 node-id:0 role:Secondary suspended:no\n"
        "  volume:0 minor:0 disk:UpToDate client:no backing_dev:/dev/vg/r0 device:none quorum:yes open:no\n"
        "  beta node-id:1 connection:Connected role:Primary congested:no ap-in-flight:0 rs-in-flight:0\n"
        "    volume:0 replication:Established peer-disk:UpToDate\n"
        "  takeover:manual eligible:yes generation:00C0FFEE00C0FFEE\n"
    )


def test_statistics_stand_below_what_they_count() -> None:
    assert render([status()], Detail.STATISTICS) == (
        "r0 role:Secondary\n"
        "  disk:UpToDate\n"
        "      size:102400 read:4 written:20 al-writes:1 bm-writes:0 upper-pending:0 lower-pending:0\n"
        "  beta role:Primary\n"
        "    replication:Established peer-disk:UpToDate\n"
        "        received:20 sent:0 out-of-sync:0 pending:0 unacked:0\n"
    )


def test_a_blank_line_separates_resources_and_none_is_said_in_words() -> None:
    assert "\n\nr1 role:" in render([status("r0"), status("r1")])
    assert render([]) == "# No mirror runs here.\n"


def test_colours_mark_words_and_never_change_them() -> None:
    painted = render([syncing(1.0)], paint=Paint.ANSI)
    assert "disk:\033[1;31mInconsistent\033[0m" in painted
    for code in ("\033[1;31m", "\033[1;32m", "\033[1;33m", "\033[0m"):
        painted = painted.replace(code, "")
    assert painted == render([syncing(1.0)])


@pytest.mark.parametrize(("done", "said"), [(0.0, "0.00"), (42.109, "42.10"), (99.999, "99.99"), (100.0, "99.99")])
def test_what_is_not_finished_is_never_called_so(done: float, said: str) -> None:
    assert percent(done) == said


def test_a_resync_that_stalls_has_no_end_in_sight() -> None:
    assert remaining(None) == remaining(float("inf")) == "stalled"
    assert [remaining(0), remaining(59.2), remaining(3600), remaining(360000)] == [
        "0:00:00", "0:01:00", "1:00:00", "100:00:00",
    ]  # fmt: skip
    assert [rate(0), rate(999.6), rate(1024)] == ["0KiB/s", "1000KiB/s", "1.0MiB/s"]
