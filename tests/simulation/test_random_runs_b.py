"""The second half of the seeds of test_random_runs_a.py."""

from __future__ import annotations

from tests.simulation.campaign import run_seeds


def test_every_promise_is_kept_in_another_five_hundred_lives() -> None:
    tally = run_seeds(range(500, 1000))
    assert not tally.failures, "\n\n".join(tally.failures.values())
