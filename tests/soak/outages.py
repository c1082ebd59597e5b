"""Every kind of fault, six times, the hosts taking turns: how long clients waited."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from tests.acceptance import scenarios
from tests.acceptance.cluster import Cluster
from tests.soak import power_cuts
from tests.soak.evidence import Case, Figures
from tests.soak.laboratories import shared

SCENARIOS = (
    scenarios.planned_switch,
    scenarios.nic_down,
    scenarios.application_killed,
    scenarios.application_hangs,
    scenarios.stop_fails,
    scenarios.power_cut,
    scenarios.partition,
)


def play_all(cluster: Cluster, number: int) -> Figures:
    """One round: each scenario once. Raises AssertionError."""
    figures: Figures = {"active": "alpha" if number % 2 == 0 else "beta", "double_active": 0}
    for scenario in SCENARIOS:
        watch = scenario(cluster, figures["active"])
        watch.assert_never_twice()
        figures[f"{scenario.__name__}_s"] = round(watch.longest_outage_s(), 2)
    return figures


def run(first: int, count: int) -> Iterator[Figures]:
    return shared(first, count, play_all)


def summary(figures: list[Figures]) -> Figures:
    columns = [f"{scenario.__name__}_s" for scenario in SCENARIOS]
    return {
        "double_active": sum(int(one["double_active"]) for one in figures),
        **{
            f"{column}_median": round(statistics.median(float(one[column]) for one in figures), 2) for column in columns
        },
        **{f"{column}_max": max(float(one[column]) for one in figures) for column in columns},
    }


CASE = Case(
    name="outages",
    proves="After each kind of fault, with either host active, the service comes back and was never active twice.",
    covers=power_cuts.CASE.covers,
    rounds=6,
    run=run,
    summary=summary,
)
