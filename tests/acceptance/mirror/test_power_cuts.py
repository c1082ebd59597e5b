"""Power cuts under load: what was acknowledged is there. Long forms: mirror-power-cuts and mirror-double-cuts."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.acceptance.mirror.pair import MirrorPair
from tests.acceptance.mirror.power_cuts import EXT4, XFS, Beside, Load, Permit, cut_both, cut_primary, laboratory
from tests.acceptance.mirror.writers import BLOCKS, POSTGRES, SQLITE

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def pair() -> Iterator[MirrorPair]:
    with laboratory() as pair:
        yield pair


def test_three_times_the_primary_loses_its_power_and_nothing_acknowledged_is_lost(pair: MirrorPair) -> None:
    """Each time the other one takes over by hand, and the one that was cut comes back as its standby."""
    load = Load(EXT4, (SQLITE, BLOCKS), Beside.FIO)
    for number, primary in enumerate(("alpha", "beta", "alpha")):
        cut_primary(pair, primary, load, list(Permit)[number % 2], random.Random(number))


def test_a_database_on_xfs_outlives_its_host(pair: MirrorPair) -> None:
    cut_primary(pair, "beta", Load(XFS, (POSTGRES,)), Permit.AT_ONCE, random.Random(3))


def test_both_lose_their_power_and_the_standby_alone_has_all_that_was_acknowledged(pair: MirrorPair) -> None:
    cut_both(pair, "alpha", Load(EXT4, (SQLITE, BLOCKS)), Permit.FIRST, random.Random(4))
