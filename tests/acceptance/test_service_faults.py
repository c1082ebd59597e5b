"""The service is at fault, or only a part of its host: it moves without anybody being fenced."""

from __future__ import annotations

import pytest

from tests.acceptance.cluster import Cluster
from tests.acceptance.watch import Watch

pytestmark = pytest.mark.lab


def test_a_planned_switch_moves_the_service_and_leaves_no_constraint(cluster: Cluster) -> None:
    cluster.settle("alpha")
    with Watch(cluster.lab) as watch:
        cluster.switch("beta")
        assert "beta" in watch.wait_for_answer()
        cluster.switch("alpha")
        assert "alpha" in watch.wait_for_answer()
    watch.assert_never_twice()
    assert len(watch.outages()) <= 2
    constraints = cluster.hosts["alpha"].check_output("cibadmin --query --scope constraints")
    assert "rsc_location" not in constraints


def test_a_pulled_public_cable_moves_the_service_to_the_host_that_has_one(cluster: Cluster) -> None:
    cluster.settle("alpha")
    with Watch(cluster.lab) as watch:
        cluster.lab.nic_down("alpha", "public")
        watch.wait_for_silence()
        cluster.wait_active("beta")
        assert "beta" in watch.wait_for_answer()
    watch.assert_never_twice()
    assert cluster.lab.power_status("alpha") == "on"


def test_a_killed_application_is_noticed_and_served_again(cluster: Cluster) -> None:
    cluster.settle("alpha")
    with Watch(cluster.lab) as watch:
        before = watch.wait_for_answer().split()[-1]
        cluster.hosts["alpha"].check_output("pkill -KILL -f '[g]reeter.py'")
        watch.wait_for_silence()
        assert watch.wait_for_answer().split()[-1] != before
    watch.assert_never_twice()
    assert cluster.lab.power_status("alpha") == "on"


def test_an_application_that_hangs_is_killed_and_served_elsewhere(cluster: Cluster) -> None:
    cluster.settle("alpha")
    with Watch(cluster.lab) as watch:
        cluster.hosts["alpha"].check_output("pkill -STOP -f '[g]reeter.py'")
        watch.wait_for_silence()
        cluster.wait_active("beta")
        assert "beta" in watch.wait_for_answer()
    watch.assert_never_twice()
    assert cluster.hosts["alpha"].run("pgrep -f '[g]reeter.py'").rc == 1
    assert cluster.lab.power_status("alpha") == "on"
