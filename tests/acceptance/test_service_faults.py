"""The service is at fault, or only a part of its host: it moves without anybody being fenced."""

from __future__ import annotations

import pytest

from tests.acceptance import scenarios
from tests.acceptance.cluster import Cluster

pytestmark = pytest.mark.lab


def test_a_planned_switch_moves_the_service_and_leaves_no_constraint(cluster: Cluster) -> None:
    for active in ("alpha", "beta"):
        watch = scenarios.planned_switch(cluster, active)
        watch.assert_never_twice()
        assert len(watch.outages()) <= 1
        constraints = cluster.hosts["alpha"].check_output("cibadmin --query --scope constraints")
        assert "rsc_location" not in constraints


def test_a_pulled_public_cable_moves_the_service_to_the_host_that_has_one(cluster: Cluster) -> None:
    scenarios.nic_down(cluster, "alpha").assert_never_twice()


def test_a_killed_application_is_noticed_and_served_again(cluster: Cluster) -> None:
    scenarios.application_killed(cluster, "alpha").assert_never_twice()


def test_an_application_that_hangs_is_killed_and_served_elsewhere(cluster: Cluster) -> None:
    scenarios.application_hangs(cluster, "alpha").assert_never_twice()
