"""Whole lives of two mirrors, from one seed each; the other half of the seeds is in test_random_runs_b.py.

A failure prints the line that replays it. `make simulate SEEDS=n` runs more of them.
"""

from __future__ import annotations

from tests.simulation.campaign import run_seeds
from tests.simulation.faults import Fault


def test_every_promise_is_kept_whatever_happens() -> None:
    tally = run_seeds(range(0, 500))
    assert not tally.failures, "\n\n".join(tally.failures.values())
    assert tally.writes > 10_000
    assert tally.resyncs > 500
    missing = [kind.value for kind in Fault if not tally.faults[kind.value]]
    assert not missing, f"500 seeds, and never: {missing}"
