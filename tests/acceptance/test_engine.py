"""The engine as the laboratory starts it: complete, fenced when asked for, and unfenced when asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.acceptance.cluster import Cluster
from vagrant.namespaces.lab import Lab

pytestmark = pytest.mark.lab


def test_without_fencing_the_cluster_comes_up_and_says_so(layers: tuple[Path, ...]) -> None:
    with Lab(engine="debian", fencing="none", layers=layers, log=sys.stderr) as lab:
        cluster = Cluster(lab)
        cluster.wait_online()
        assert "power-switch" not in cluster.view().active
        value = cluster.hosts["alpha"].check_output("crm_attribute --query --name stonith-enabled --quiet")
        assert value == "false"
        for name, host in cluster.hosts.items():
            status = host.check_output("corosync-cfgtool -s")
            assert status.count("connected") >= 2, f"{name} has not both of its links"


def test_the_fence_agent_follows_the_conventions_and_works_the_switch(cluster: Cluster) -> None:
    beta = cluster.hosts["beta"]
    metadata = beta.check_output("fence_lab -o metadata")
    for action in ("status", "off", "on", "reboot", "monitor"):
        assert f'<action name="{action}"' in metadata
    cluster.settle("beta")
    assert beta.run("printf 'action=status\\nplug=alpha\\n' | fence_lab").rc == 0
    assert beta.run("printf 'action=off\\nplug=alpha\\n' | fence_lab").rc == 0
    assert beta.run("fence_lab -o status -n alpha").rc == 2
    assert cluster.lab.power_status("alpha") == "off"
    assert beta.run("fence_lab -o on -n alpha").rc == 0
    assert beta.run("fence_lab -o monitor").rc == 0
    unknown = beta.run("fence_lab -o off -n gamma")
    assert unknown.rc == 1
    assert "gamma: is not in this laboratory" in unknown.stderr
    missing = beta.run("fence_lab -o off")
    assert missing.rc == 1
    assert "give plug=NODE" in missing.stderr
    cluster.wait_online()


def test_pacemaker_itself_can_switch_a_host_off_and_on(cluster: Cluster) -> None:
    cluster.settle("alpha")
    cluster.hosts["alpha"].check_output("stonith_admin --fence beta --timeout 20")
    assert cluster.lab.power_status("beta") == "off"
    cluster.hosts["alpha"].check_output("stonith_admin --unfence beta --timeout 20")
    cluster.wait_online()
