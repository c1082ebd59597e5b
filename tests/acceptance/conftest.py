"""One booted laboratory for all tests of a file; each file is a story of one kind of fault."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.cluster import Cluster, Service
from vagrant.engines.layers import Layers
from vagrant.namespaces.lab import Lab


@pytest.fixture(scope="session")
def layers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """This checkout's agents, installed once for each process that runs tests."""
    return Layers.build(tmp_path_factory.mktemp("agents"))


@pytest.fixture(scope="module")
def cluster(layers: tuple[Path, ...]) -> Iterator[Cluster]:
    """Debian's engine on both nodes, fencing by the power switch, and the service created."""
    with Lab(engine="debian", layers=layers, log=sys.stderr) as lab:
        cluster = Cluster(lab)
        cluster.wait_online()
        cluster.create(Service())
        yield cluster
