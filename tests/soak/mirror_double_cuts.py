"""Ten times both nodes of the mirror lose their power at the same moment, and only the former standby starts again."""

from __future__ import annotations

from collections.abc import Iterator

from tests.acceptance.mirror.power_cuts import cut_both
from tests.soak import mirror_power_cuts
from tests.soak.evidence import Case, Figures


def run(first: int, count: int) -> Iterator[Figures]:
    return mirror_power_cuts.play(cut_both, first, count)


CASE = Case(
    name="mirror-double-cuts",
    proves="After each of 10 power cuts of both nodes at once the former standby, started alone and promoted with a"
    " permit, has all that was acknowledged.",
    covers=(*mirror_power_cuts.CASE.covers, "tests/soak/mirror_double_cuts.py"),
    rounds=10,
    run=run,
    summary=mirror_power_cuts.summary,
)
