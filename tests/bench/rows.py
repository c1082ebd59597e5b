"""One row of the benchmark: two series of measurements made in turn -> figures and a verdict. Pure."""

from __future__ import annotations

import enum
import statistics
from dataclasses import asdict, dataclass
from typing import Any


class Bound(enum.StrEnum):
    """On which side of its bar a ratio must be."""

    AT_MOST = "at most"
    """For times."""
    AT_LEAST = "at least"
    """For rates."""


@dataclass(frozen=True)
class Row:
    """Medians of both sides. For times and for rates alike, `ratio` is ours / theirs."""

    case: str
    unit: str
    ours: float
    peer: str
    theirs: float
    ratio: float
    runs: int
    spread: float
    """The larger of the two sides' interquartile ranges, as a share of its median."""
    bar: float | None
    """What the ratio is held against, in the way `bound` says; None where we hold ourselves to nothing."""
    bound: Bound = Bound.AT_MOST

    @property
    def holds(self) -> bool:
        if self.bar is None:
            return True
        return self.ratio <= self.bar if self.bound is Bound.AT_MOST else self.ratio >= self.bar

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def row(
    case: str,
    unit: str,
    ours: list[float],
    peer: str,
    theirs: list[float],
    bar: float | None,
    bound: Bound = Bound.AT_MOST,
) -> Row:
    """Raises ValueError when the two series do not have the same length, or fewer than 4 measurements."""
    if len(ours) != len(theirs) or len(ours) < 4:
        raise ValueError(
            f"{case}: {len(ours)} measurements of ours against {len(theirs)}; both must have the same 4 or more"
        )
    mine, other = statistics.median(ours), statistics.median(theirs)
    spread = max(_spread(ours), _spread(theirs))
    ratio = round(mine / other, 3)
    return Row(case, unit, round(mine, 2), peer, round(other, 2), ratio, len(ours), round(spread, 2), bar, bound)


def table(rows: list[Row]) -> str:
    """The rows for people."""
    lines = [f"{'case':34} {'ours':>9} {'peer':>13} {'theirs':>9}  unit   {'ratio':>6} {'bar':>8}  runs  spread"]
    for one in rows:
        bar = "" if one.bar is None else f"{'≤' if one.bound is Bound.AT_MOST else '≥'} {one.bar:.2f}"
        verdict = "" if one.holds else "  MISSED"
        lines.append(
            f"{one.case:34} {one.ours:9.2f} {one.peer:>13} {one.theirs:9.2f}  {one.unit:5}  {one.ratio:6.3f} {bar:>8}"
            f"  {one.runs:4}  {one.spread:6.2f}{verdict}"
        )
    return "\n".join(lines)


def _spread(values: list[float]) -> float:
    first, _, third = statistics.quantiles(values, n=4)
    return (third - first) / statistics.median(values)
