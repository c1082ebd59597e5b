"""Whoever reads and writes a mounted mirror is never kept waiting for the peer longer than the documentation says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.acceptance.mirror import reader
from tests.acceptance.mirror.reader import FAULTS, Fault
from tests.acceptance.mirror.rounds import Stage

pytestmark = pytest.mark.lab

LONGEST_S = 4.0
"""Here; the long run mirror-reader pauses the peer for longer."""


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_client_never_waits_for_the_peer_longer_than_documented(stage: Stage, fault: Fault) -> None:
    reader.meet(stage, replace(fault, lasts_s=min(fault.lasts_s, LONGEST_S)))
