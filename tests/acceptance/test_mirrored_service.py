"""A service on a mirror under Pacemaker: `takeover = manual`, the default of RoseMirrorHA."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.mirrored_service import MirroredService
from vagrant.namespaces.lab import Lab

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def service(layers: tuple[Path, ...]) -> Iterator[MirroredService]:
    with Lab(engine="debian", layers=layers, log=sys.stderr) as lab:
        service = MirroredService(lab, f"s{os.getpid()}")
        service.create()
        yield service


def test_after_a_power_cut_the_standby_waits_for_an_operators_word_and_has_all_that_was_acknowledged(
    service: MirroredService,
) -> None:
    pair, cluster = service.pair, service.cluster
    active = service.wait_active()
    standby = pair.other(active)
    pair.wait_in_sync()
    service.write(active, "order", "acknowledged")
    service.lab.power_cut(active)
    view = cluster.wait(f"{active} fenced", lambda view: active in view.offline and active not in view.unclean)
    pair.wait(standby, "the peer's loss noticed", lambda status: not status["mirror"]["eligible"])
    assert service.is_stopped(view)
    cluster.wait_idle()
    assert service.is_stopped(cluster.view())
    why = pair.status(standby)["mirror"]
    assert f"peer {active} was Primary when contact was lost" in why["reason"]
    assert f"--accept-loss={standby}" in why["remedy"]

    pair.adm(standby, "permit", f"--accept-loss={standby}", pair.name)
    service.wait_active(standby)
    assert service.read(standby, "order") == "acknowledged"
    service.write(standby, "later", "too")

    service.lab.power_on(active)
    cluster.wait_online()
    pair.wait_in_sync()
    assert service.wait_active() == standby, "a returning host takes nothing away"


def test_a_mirrord_killed_on_the_active_host_is_recovered(service: MirroredService) -> None:
    pair = service.pair
    active = service.wait_active()
    pair.wait_in_sync()
    service.write(active, "before", "the-kill")
    pair.kill_mirrord(active)
    service.cluster.wait("the failure seen", lambda view: bool(view.failures))
    host = service.wait_active(timeout_s=90.0)
    assert service.read(host, "before") == "the-kill"
    pair.wait_in_sync()
