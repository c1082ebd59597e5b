"""The simulation finds what it is for: three bugs, each within a thousand seeds."""

from __future__ import annotations

import pytest

from tests.simulation import world
from tests.simulation.node import Variation
from tests.simulation.planted import AcknowledgedBeforeActivityLog, BitClearedOnSend, GenerationNotDurable

SEEDS = 1000


def found_by(variation: type[Variation]) -> tuple[int, str] | None:
    """The first seed that finds it, and its report."""
    for seed in range(SEEDS):
        try:
            world.run(seed, variation())
        except AssertionError as found:
            return seed, str(found)
    return None


@pytest.mark.parametrize("variation", [AcknowledgedBeforeActivityLog, BitClearedOnSend, GenerationNotDurable])
def test_a_planted_bug_is_found_and_says_how_to_replay_it(variation: type[Variation]) -> None:
    found = found_by(variation)
    assert found is not None, f"{SEEDS} seeds, and {variation.__name__} was not found"
    seed, report = found
    print(f"{variation.__name__}: found by seed {seed}: {report.splitlines()[1]}")
    assert f"--seed {seed} " in report
    world.run(seed)  # without the bug this seed ends well: it was the bug that was found
