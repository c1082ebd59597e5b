"""A host is lost, or must be: the power switch makes sure before anybody takes over."""

from __future__ import annotations

import pytest

from tests.acceptance import scenarios
from tests.acceptance.cluster import Cluster

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("victim", ["alpha", "beta"])
def test_a_power_cut_of_the_active_host_is_survived(cluster: Cluster, victim: str) -> None:
    scenarios.power_cut(cluster, victim).assert_never_twice()


def test_a_stop_that_fails_gets_its_host_fenced_and_the_service_moved(cluster: Cluster) -> None:
    scenarios.stop_fails(cluster, "alpha").assert_never_twice()
