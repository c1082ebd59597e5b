"""The judges of the mirror are judged: what they look for, they find."""

from __future__ import annotations

import os
import sys

import pytest

from tests.acceptance.mirror.pair import MirrorPair
from vagrant.namespaces.lab import Lab

pytestmark = pytest.mark.lab


def test_a_single_wrong_sector_and_every_part_of_a_device_are_found() -> None:
    with Lab(engine="none", log=sys.stderr) as lab:
        pair = MirrorPair(lab, f"p{os.getpid()}")
        pair.create()
        alpha, beta = pair.nodes
        assert pair.data_areas_differ() == []
        assert pair.leftovers(alpha) == pair.leftovers(beta) == []

        pair.promote(alpha)
        found = {line.split()[0] for line in pair.leftovers(alpha)}
        assert found == {"link", "loop", "mount", "process", "socket"}
        assert pair.leftovers(beta) == []
        pair.demote(alpha)

        pair.run(beta, "dd", "if=/dev/urandom", f"of={pair.disks[beta]}", "bs=512", "count=1", "seek=7000",
                 "conv=notrunc", "oflag=direct")  # fmt: skip
        assert pair.data_areas_differ() == [3]
