"""Both hosts live and cannot hear each other: one must die, and it must not be the one that serves."""

from __future__ import annotations

import time

import pytest

from tests.acceptance.cluster import Cluster
from tests.acceptance.watch import Watch

pytestmark = pytest.mark.lab
WATCHED_S = 8.0
"""Longer than corosync's token and consensus time-outs together: who wanted to fence would have done it."""


def partition(cluster: Cluster) -> None:
    """The two hosts hear nothing of each other; the client hears both."""
    for network in cluster.lab.description.networks:
        cluster.lab.cut(network, source="alpha", target="beta")
        cluster.lab.cut(network, source="beta", target="alpha")


@pytest.mark.parametrize("active", ["alpha", "beta"])
def test_in_a_partition_the_active_host_survives_and_serves(cluster: Cluster, active: str) -> None:
    cluster.settle(active)
    victim = cluster.other(active)
    with Watch(cluster.lab) as watch:
        partition(cluster)
        cluster.wait(f"{victim} switched off", lambda _: cluster.lab.power_status(victim) == "off", node=active)
        assert cluster.lab.power_status(active) == "on"
        assert active in watch.wait_for_answer()

        cluster.lab.power_on(victim)
        watch.watch_node(victim)
        view = cluster.wait(f"{victim} has a controller", lambda view: view.has_controller, node=victim)
        assert not view.quorate, "a host that booted alone must not believe it is the cluster"
        end = time.monotonic() + WATCHED_S
        while time.monotonic() < end:
            assert cluster.lab.power_status(active) == "on", "the returning host shot the one that serves"
            assert not cluster.view(victim).active.get("shop-address")
            time.sleep(0.2)

        cluster.lab.heal()
        cluster.wait_online()
        cluster.wait_idle()
        assert cluster.active_node() == active
    watch.assert_never_twice()


def test_a_cut_of_one_heartbeat_line_is_no_partition(cluster: Cluster) -> None:
    cluster.settle("alpha")
    with Watch(cluster.lab) as watch:
        cluster.lab.cut("heartbeat")
        end = time.monotonic() + WATCHED_S
        while time.monotonic() < end:
            assert cluster.view("beta").online == {"alpha", "beta"}
            time.sleep(0.2)
    watch.assert_never_twice()
    assert watch.outages() == []
