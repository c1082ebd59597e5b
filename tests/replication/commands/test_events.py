"""events2: what lies between two statuses."""

from __future__ import annotations

from replication.commands import events
from replication.commands.events import Action, Statistics, between, may_promote, of_helper, promotion_score
from tests.replication.statuses import alone, status, syncing


def lines(*events_: events.Event) -> list[str]:
    return [str(event) for event in events_]


def test_at_the_start_everything_that_exists_is_named() -> None:
    assert lines(*between(None, status(), appearing=Action.EXISTS), events.END_OF_START) == [
        "exists resource name:r0 role:Secondary suspended:no force-io-failures:no may_promote:no promotion_score:10102",
        "exists connection name:r0 peer-node-id:1 conn-name:beta connection:Connected role:Primary",
        "exists device name:r0 volume:0 minor:0 backing_dev:/dev/vg/r0 disk:UpToDate client:no open:no quorum:yes",
        "exists peer-device name:r0 peer-node-id:1 conn-name:beta volume:0 replication:Established peer-disk:UpToDate "
        "peer-client:no resync-suspended:no",
        "exists path name:r0 peer-node-id:1 conn-name:beta local:ipv4:10.0.0.1:7789 peer:ipv4:10.0.0.2:7789 "
        "established:yes",
        "exists -",
    ]


def test_a_change_names_only_what_changed() -> None:
    assert lines(*between(status(), alone(connection_state="NetworkFailure"))) == [
        "change resource name:r0 may_promote:yes promotion_score:10101",
        "change connection name:r0 peer-node-id:1 conn-name:beta connection:NetworkFailure role:Unknown",
        "change peer-device name:r0 peer-node-id:1 conn-name:beta volume:0 replication:Off peer-disk:DUnknown",
        "change path name:r0 peer-node-id:1 conn-name:beta local:ipv4:10.0.0.1:7789 peer:ipv4:10.0.0.2:7789 "
        "established:no",
    ]


def test_nothing_changed_is_no_event() -> None:
    assert between(status(), status()) == []


def test_counters_are_events_only_for_those_who_ask() -> None:
    assert between(status(), status(written=21)) == []
    assert lines(*between(status(), status(written=21), Statistics.SHOWN)) == [
        "change device name:r0 volume:0 minor:0 written:21"
    ]


def test_progress_is_an_event() -> None:
    assert lines(*between(syncing(10.0), syncing(10.5))) == [
        "change peer-device name:r0 peer-node-id:1 conn-name:beta volume:0 done:10.50"
    ]


def test_the_end_of_a_daemon_destroys_from_the_inside_out() -> None:
    kinds = [event.object for event in between(status(), None)]
    assert kinds == ["path", "peer-device", "device", "connection", "resource"]
    assert lines(*between(status(), None))[-1] == "destroy resource name:r0"


def test_another_peer_is_another_object() -> None:
    actions = [(event.action, event.object) for event in between(status(), status(peer_node_id=2))]
    assert actions.count((Action.DESTROY, "connection")) == actions.count((Action.CREATE, "connection")) == 1


def test_a_handler_is_called_and_responds() -> None:
    assert lines(
        of_helper("r0", {"name": "fence-peer"}),
        of_helper("r0", {"name": "fence-peer", "exit-code": 7}),
    ) == [
        "call helper name:r0 helper:fence-peer",
        "response helper name:r0 helper:fence-peer status:7",
    ]


def test_only_who_may_take_over_is_said_to_be_promotable() -> None:
    assert may_promote(status(peer_role="Secondary"))
    assert not may_promote(status(peer_role="Primary"))
    assert not may_promote(status(role="Primary", peer_role="Secondary"))
    assert not may_promote(alone(eligible=False))
    assert not may_promote(alone(disk_state="Outdated"))


def test_the_score_counts_good_copies_in_reach() -> None:
    assert promotion_score(status()) == 10102
    assert promotion_score(alone()) == 10101
    assert promotion_score(status(disk_state="Diskless")) == 1
    assert promotion_score(syncing(5.0)) == 10001
    assert promotion_score(alone(disk_state="Outdated")) == 0
    assert promotion_score(status(force_io_failures=True)) == 0


def test_an_ipv6_address_wears_brackets() -> None:
    row = status()
    path = row["connections"][0]["paths"][0]
    path["this_host"] = {"address": "fd00::1", "port": 7789, "family": "ipv6"}
    assert "local:ipv6:[fd00::1]:7789" in lines(*between(None, row))[-1]
