"""The data network fails and comes back, at random moments under load, and nobody has to lend a hand."""

from __future__ import annotations

import pytest

from tests.acceptance.mirror import rounds
from tests.acceptance.mirror.rounds import Stage

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("number", range(3))
def test_after_a_link_cut_no_flushed_write_is_lost_and_the_disks_become_equal(stage: Stage, number: int) -> None:
    stage.play(rounds.link_cut, switch=number % 2 == 0)
