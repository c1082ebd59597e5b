"""How fit a side is to be promoted, as the manager is told: advice only, since mirrord decides at that instant.

*Not eligible* is said as -INFINITY and never by silence: without a score, a location rule alone lets a manager promote.
The promoted side has the highest of all, or the other one would take the service away as soon as it is back.
"""

from __future__ import annotations

from agents.mirroring.view import UP_TO_DATE, View

PROMOTED = 10_000
UP_TO_DATE_DATA = 1_000
OLD_DATA = 100
"""Eligible although its data may lack something: an operator's permit."""
NOT_ELIGIBLE = "-INFINITY"


def score(view: View) -> str:
    if view.is_promoted:
        return NOT_ELIGIBLE if view.fault_of_promoted else str(PROMOTED)
    if not view.is_eligible:
        return NOT_ELIGIBLE
    return str(UP_TO_DATE_DATA if view.disk == UP_TO_DATE else OLD_DATA)
