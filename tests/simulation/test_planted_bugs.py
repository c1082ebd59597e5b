"""The simulation finds what it is for: three bugs, each within a thousand seeds."""

from __future__ import annotations

import itertools

import pytest

from tests.simulation import world
from tests.simulation.node import Variation
from tests.simulation.planted import AcknowledgedBeforeActivityLog, BitClearedOnSend, GenerationNotDurable

SEEDS = 1000


@pytest.mark.parametrize("variation", [AcknowledgedBeforeActivityLog, BitClearedOnSend, GenerationNotDurable])
def test_a_planted_bug_is_found_and_says_how_to_replay_it(variation: type[Variation]) -> None:
    for seed in itertools.count():
        assert seed < SEEDS, f"{SEEDS} seeds and {variation.__name__} was not found"
        try:
            world.run(seed, variation())
        except AssertionError as found:
            print(f"{variation.__name__}: found by seed {seed}")
            assert f"--seed {seed} " in str(found)
            break
