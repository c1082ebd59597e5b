"""A host with resource r0, whose daemons end with the test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from replication.control import daemon_pid, running
from tests.replication.commands.host import Host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    host.define()
    yield host
    for name in running(host.runtime):
        pid = daemon_pid(name, host.runtime)
        if pid:
            os.kill(pid, signal.SIGKILL)
