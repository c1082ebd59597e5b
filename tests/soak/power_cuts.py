"""Fifty power cuts of the active host in a row."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from tests.acceptance import scenarios
from tests.acceptance.cluster import Cluster
from tests.soak.evidence import Case, Figures
from tests.soak.laboratories import shared


def cut_once(cluster: Cluster, number: int) -> Figures:
    """Whoever is active loses its power; so the hosts take turns. Raises AssertionError."""
    victim = cluster.active_node()
    watch = scenarios.power_cut(cluster, victim)
    watch.assert_never_twice()
    return {"victim": victim, "outage_s": round(watch.longest_outage_s(), 2), "double_active": 0}


def run(first: int, count: int) -> Iterator[Figures]:
    return shared(first, count, cut_once)


def summary(figures: list[Figures]) -> Figures:
    outages = [float(one["outage_s"]) for one in figures]
    return {
        "power_cuts": len(figures),
        "double_active": sum(int(one["double_active"]) for one in figures),
        "outage_s_median": round(statistics.median(outages), 2),
        "outage_s_max": max(outages),
    }


CASE = Case(
    name="power-cuts",
    proves="After each of 50 power cuts of the active host the other serves, and the address is never active twice.",
    covers=(
        "agents/**/*.py",
        "vagrant/**/*",
        "tests/acceptance/*.py",
        "tests/acceptance/programs/*",
        "tests/soak/*.py",
    ),
    rounds=50,
    run=run,
    summary=summary,
)
