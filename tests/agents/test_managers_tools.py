"""The original tools around resource agents accept ours: ocf-tester, crmsh, pcs."""

from __future__ import annotations

import re
import subprocess

import pytest

from agents.install import find_agents
from tests.agents.disks import Disk
from tests.agents.namespaces import AGENT, Network

pytestmark = pytest.mark.namespaces


def test_ocf_tester_passes(net: Network) -> None:
    options = ["ip=10.77.0.50", "conflict_wait=60ms", "garp_delay_repeat=0"]
    words = [word for option in options for word in ("-o", option)]
    command = net.alpha.enter("ocf-tester", "-n", "tested", *words, f"{AGENT}/VirtualIP")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.rstrip().endswith(f"{AGENT}/VirtualIP passed all tests"), done.stdout + done.stderr
    assert "* rc=" not in done.stdout
    assert net.alpha.addresses() == ["10.77.0.1/24"]


def test_ocf_tester_passes_on_a_file_system(net: Network, disk: Disk) -> None:
    options = [f"device={disk.device}", f"directory={disk.directory}", "fstype=ext4"]
    words = [word for option in options for word in ("-o", option)]
    command = net.alpha.enter("ocf-tester", "-n", "tested", *words, f"{AGENT}/Filesystem")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.rstrip().endswith(f"{AGENT}/Filesystem passed all tests"), done.stdout + done.stderr
    assert "* rc=" not in done.stdout
    assert disk.device not in net.alpha.run("cat", "/proc/mounts")


def test_crmsh_shows_parameters_and_operations(net: Network) -> None:
    shown = net.alpha.run("crm", "ra", "info", "ocf:mirrorha:VirtualIP")
    assert "Keeps one IPv4 address on the node where the resource runs (ocf:mirrorha:VirtualIP)" in shown
    assert "ip* (string): The virtual address" in shown
    assert "garp_interval (time, [200ms]): Pause between announcements" in shown
    assert "monitor       timeout=20s interval=10s" in shown


def test_pcs_describes_the_agent(net: Network) -> None:
    shown = net.alpha.run("pcs", "resource", "describe", "ocf:mirrorha:VirtualIP")
    assert "ocf:mirrorha:VirtualIP - Keeps one IPv4 address on the node where the resource runs" in shown
    assert "ip (required) (unique group: addr)" in shown
    assert "conflict_check" in shown
    assert "stop:" in shown


def test_crmsh_and_pcs_show_every_parameter_of_every_agent(net: Network) -> None:
    for agent in find_agents():
        name = f"ocf:mirrorha:{agent.__name__}"
        for command in (("crm", "ra", "info", name), ("pcs", "resource", "describe", name)):
            shown = net.alpha.run(*command)
            for parameter in agent.parameters():
                assert re.search(rf"^\s*{parameter.name}\b", shown, re.MULTILINE), (
                    f"{' '.join(command)}: {parameter.name}"
                )


def test_the_meta_data_of_every_agent_is_valid_by_the_dtd_of_resource_agents(net: Network) -> None:
    for agent in find_agents():
        shown = net.alpha.run(f"{AGENT}/{agent.__name__}", "meta-data")
        checked = subprocess.run(
            ["xmllint", "--noout", "--valid", "-"],
            input=shown,
            text=True,
            cwd="/usr/share/resource-agents",
            check=False,
        )
        assert checked.returncode == 0, agent.__name__
