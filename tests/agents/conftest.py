"""The agents, installed once per run as on a real system, and a network of two hosts for each module."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents import install
from tests.agents import namespaces
from tests.agents.cell import Cell, cell
from tests.agents.disks import PACKAGES as DISK_PACKAGES
from tests.agents.disks import Disk, disk_in, unmount_all

PACKAGES = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "strace": "strace",
    "xmllint": "libxml2-utils",
    "ocf-tester": "resource-agents",
    "crm": "crmsh",
    "pcs": "pcs",
    "tcpdump": "tcpdump",
}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a complete installation; the tests see it as an overlay on /usr/lib/ocf."""
    root = tmp_path_factory.mktemp("root")
    install.install(root, dry_run=False)
    return root


@pytest.fixture(scope="module")
def whole_network(installed: Path) -> Iterator[namespaces.Network]:
    assert os.geteuid() == 0, "namespace tests need root"
    missing = sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None})
    assert not missing, f"apt-get install {' '.join(missing)}"
    with namespaces.network(installed) as made:
        yield made


@pytest.fixture
def net(whole_network: namespaces.Network) -> namespaces.Network:
    """The module's network in its initial state."""
    whole_network.reset()
    return whole_network


@pytest.fixture(scope="module")
def disk_room(installed: Path) -> Iterator[Cell]:
    """A closed place for tests that mount: nothing mounted inside is seen outside."""
    assert os.geteuid() == 0, "mounting needs root"
    missing = sorted({package for program, package in DISK_PACKAGES.items() if shutil.which(program) is None})
    assert not missing, f"apt-get install {' '.join(missing)}"
    with cell(installed) as made:
        yield made


@pytest.fixture
def room(disk_room: Cell) -> Iterator[Cell]:
    yield disk_room
    disk_room.end_all()
    unmount_all(disk_room)


@pytest.fixture
def disk(room: Cell) -> Iterator[Disk]:
    """An ext4 file system on a loop device, not mounted."""
    with disk_in(room, "ext4") as made:
        yield made


@pytest.fixture
def other_disk(room: Cell) -> Iterator[Disk]:
    with disk_in(room, "ext4") as made:
        yield made
