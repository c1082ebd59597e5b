"""Both hosts live and cannot hear each other: one must die, and it must not be the one that serves."""

from __future__ import annotations

import time

import pytest

from tests.acceptance import scenarios
from tests.acceptance.cluster import Cluster
from tests.acceptance.watch import Watch

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("active", ["alpha", "beta"])
def test_in_a_partition_the_active_host_survives_and_serves(cluster: Cluster, active: str) -> None:
    scenarios.partition(cluster, active).assert_never_twice()


def test_a_cut_of_one_heartbeat_line_is_no_partition(cluster: Cluster) -> None:
    cluster.settle("alpha")
    with Watch(cluster.lab) as watch:
        cluster.lab.cut("heartbeat")
        end = time.monotonic() + scenarios.LONGER_THAN_ANY_TIMEOUT_S
        while time.monotonic() < end:
            assert cluster.view("beta").online == {"alpha", "beta"}
            time.sleep(0.2)
    watch.assert_never_twice()
    assert watch.outages() == []
