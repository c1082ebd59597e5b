"""kill -9 of mirrord at random moments under load."""

from __future__ import annotations

import pytest

from tests.acceptance.mirror import rounds
from tests.acceptance.mirror.rounds import Stage

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("number", range(3))
def test_a_standby_whose_mirrord_was_killed_needs_nothing_but_its_start(stage: Stage, number: int) -> None:
    stage.play(rounds.kill_standby, switch=number % 2 == 0)


@pytest.mark.parametrize("number", range(2))
def test_when_the_active_mirrord_is_killed_its_users_are_told_and_nothing_flushed_is_lost(
    stage: Stage, number: int
) -> None:
    stage.play(rounds.kill_active, switch=number % 2 == 0)
