"""One booted laboratory with a mirror for all tests of a file."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator

import pytest

from tests.acceptance.mirror.pair import MirrorPair
from tests.acceptance.mirror.rounds import Stage
from vagrant.namespaces.lab import Lab


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Alpha is Primary, with a file system full of stamps."""
    with Lab(engine="none", log=sys.stderr) as lab:
        yield Stage.set_up(MirrorPair(lab, f"r{os.getpid()}"), random.Random(1))
