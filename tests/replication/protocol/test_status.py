"""What an operator, an agent and `drbdadm status --json` scripts are told in each situation."""

from __future__ import annotations

import json
from typing import Any

from replication.protocol.options import Fencing
from replication.protocol.requests import WRITE
from replication.protocol.volume import Force
from tests.replication.protocol.coupled import MIB, MirrorPair, Side, block


def device(side: Side) -> dict[str, Any]:
    found: dict[str, Any] = side.status["devices"][0]
    return found


def connection(side: Side) -> dict[str, Any]:
    found: dict[str, Any] = side.status["connections"][0]
    return found


def peer_device(side: Side) -> dict[str, Any]:
    found: dict[str, Any] = connection(side)["peer_devices"][0]
    return found


def mirror(side: Side) -> dict[str, Any]:
    found: dict[str, Any] = side.status["mirror"]
    return found


def test_it_is_plain_data_in_every_situation() -> None:
    pair = MirrorPair(resync_rate_max=1)
    json.dumps(pair.alpha.status)
    pair.connect()
    pair.promote(pair.alpha, Force.OVERWRITE)
    for side in pair.sides:
        json.dumps(side.status)
    pair.alpha.start(attach=False)
    json.dumps(pair.alpha.status)


def test_a_healthy_pair() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    assert (alpha.status["name"], alpha.status["role"], alpha.status["suspended"]) == ("r0", "Primary", False)
    assert device(alpha)["disk-state"] == "UpToDate"
    assert device(alpha)["size"] == alpha.volume.size_bytes // 1024
    assert connection(alpha)["connection-state"] == "Connected"
    assert (connection(alpha)["name"], connection(alpha)["peer-role"]) == ("beta", "Secondary")
    assert peer_device(alpha)["replication-state"] == "Established"
    assert peer_device(alpha)["peer-disk-state"] == "UpToDate"
    assert (peer_device(alpha)["out-of-sync"], peer_device(alpha)["percent-in-sync"]) == (0, 100.0)
    assert (mirror(alpha)["eligible"], mirror(alpha)["reason"], mirror(alpha)["cs"]) == (True, None, "Connected")
    assert mirror(alpha)["generation"] == mirror(pair.beta)["generation"]


def test_a_standby_says_why_it_may_not_be_promoted() -> None:
    pair = MirrorPair()
    pair.with_primary()
    assert mirror(pair.beta)["eligible"] is False
    assert "alpha is Primary" in mirror(pair.beta)["reason"]
    pair.cut()
    assert "was Primary when contact was lost" in mirror(pair.beta)["reason"]
    assert "--accept-loss=beta" in mirror(pair.beta)["remedy"]
    assert connection(pair.beta)["connection-state"] == "Connecting"
    assert connection(pair.beta)["peer-role"] == "Unknown"
    assert peer_device(pair.beta)["replication-state"] == "Off"
    assert peer_device(pair.beta)["peer-disk-state"] == "DUnknown"


def test_out_of_sync_is_in_kib() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.cut()
    pair.write(alpha, 0, block(b"x", 3))
    assert peer_device(alpha)["out-of-sync"] == 12
    assert 99.9 < peer_device(alpha)["percent-in-sync"] < 100


def test_a_resync_shows_progress_rate_and_what_is_left() -> None:
    pair = MirrorPair(resync_rate_max=MIB)
    pair.connect()
    pair.promote(pair.alpha, Force.OVERWRITE)
    before = peer_device(pair.beta)
    assert (before["replication-state"], peer_device(pair.alpha)["replication-state"]) == ("SyncTarget", "SyncSource")
    assert before["has-sync-details"] is True
    pair.pass_time(4)
    after = peer_device(pair.beta)
    assert 0 < before["done"] < after["done"] < 100
    assert after["out-of-sync"] < before["out-of-sync"]
    assert 500 < after["rate-kib-s"] < 2000
    left_s = after["out-of-sync"] / after["rate-kib-s"]
    assert abs(after["estimated-seconds-to-finish"] - left_s) <= 1
    assert 500 < peer_device(pair.alpha)["rate-kib-s"] < 2000
    assert device(pair.beta)["disk-state"] == "Inconsistent"


def test_without_a_resync_there_are_no_details_of_one() -> None:
    pair = MirrorPair()
    pair.first_resync()
    for side in pair.sides:
        assert peer_device(side)["has-sync-details"] is False
        assert "done" not in peer_device(side)


def test_writes_in_flight_and_bytes_are_counted() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    alpha.submit(alpha.request(WRITE, 0, block(b"w", 2)))
    assert device(alpha)["upper-pending"] == peer_device(alpha)["pending"] == 1
    assert connection(alpha)["ap-in-flight"] == 8
    pair.run()
    assert device(alpha)["upper-pending"] == 0
    assert (device(alpha)["written"], peer_device(alpha)["sent"]) == (8, 8)
    assert peer_device(pair.beta)["received"] == 8
    assert device(alpha)["al-writes"] == 1


def test_an_unfinished_flush_is_pending_below() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.write(alpha, 0, block(b"w"))
    alpha.flushes_at_once = False
    pair.flush_without_waiting(alpha)
    assert device(alpha)["lower-pending"] == 1
    alpha.finish_flush()
    assert device(alpha)["lower-pending"] == 0


def test_a_frozen_primary_says_that_it_is() -> None:
    pair = MirrorPair(fencing=Fencing.RESOURCE_AND_STONITH)
    alpha = pair.with_primary()
    pair.cut()
    assert (alpha.status["suspended"], alpha.status["suspended-fencing"]) == (True, True)
    alpha.handler_ends(7)
    assert (alpha.status["suspended"], alpha.status["suspended-fencing"]) == (False, False)


def test_a_node_without_a_disk_says_what_to_do() -> None:
    pair = MirrorPair()
    pair.with_primary()
    pair.beta.disk.fails = True
    pair.write(pair.alpha, 0, block(b"w"))
    assert device(pair.beta)["disk-state"] == "Diskless"
    assert "the disk failed" in mirror(pair.beta)["reason"]
    assert "create-md" in mirror(pair.beta)["remedy"]


def test_a_connection_that_was_refused_for_good_says_why_until_it_is_tried_again() -> None:
    pair = MirrorPair(hmac_algorithm="sha256", alpha={"shared_secret": "1"}, beta={"shared_secret": "2"})
    pair.connect()
    assert connection(pair.alpha)["connection-state"] == "StandAlone"
    assert "shared secret" in mirror(pair.alpha)["reason"]
    pair.ask(pair.alpha, "connect")
    assert "shared secret" not in (mirror(pair.alpha)["reason"] or "")


def test_since_counts_from_the_last_change() -> None:
    pair = MirrorPair()
    alpha = pair.with_primary()
    pair.pass_time(3)
    assert 2.9 < mirror(alpha)["since"] < 3.1
    pair.cut()
    assert mirror(alpha)["since"] == 0
