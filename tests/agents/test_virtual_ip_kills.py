"""The manager's time-out is SIGKILL without warning: whatever the agent was about to do, the next action must cope.

strace kills the agent right before its n-th call that can change anything, for n = 1, 2, 3 … until it survives.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.agents.namespaces import STATE, Host, Network

pytestmark = pytest.mark.namespaces
VIP = "10.77.0.50"
QUICK: dict[str, Any] = {
    "ip": VIP,
    "nic": "eth0",
    "cidr_netmask": "24",
    "conflict_wait": "50ms",
    "garp_delay_repeat": "0",
    "garp_count": "2",
    "garp_interval": "10ms",
}
CHANGING_CALLS = "sendto,write,rename,unlink,flock,clone,fork,vfork"
STEP_LIMIT = 200


def killed_at_each_step(host: Host, action: str) -> Iterator[int]:
    """Run the action killed before its first, second … changing call; ends when an action lived to its end."""
    for step in range(1, STEP_LIMIT):
        inject = f"inject={CHANGING_CALLS}:signal=KILL:when={step}"
        trace = ("strace", "-qq", "-o", "/dev/null", "-e", f"trace={CHANGING_CALLS}", "-e", inject)
        command = host.command(action, trace=trace, **QUICK)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=30)
        if done.returncode == 0:
            assert step > 8, "strace killed nothing: the test would prove nothing"
            return
        assert done.returncode in (-9, 137), done.stderr
        yield step
    pytest.fail(f"{action} makes more than {STEP_LIMIT} changing calls")


def everything(host: Host) -> tuple[list[str], list[str], str, str, list[str]]:
    """All that a start touches and a stop must bring back."""
    files = [name for name in host.run("ls", "-A", STATE).split() if not name.endswith(".lock")]
    settings = host.setting("promote_secondaries"), host.setting("arp_notify")
    return host.addresses(), host.routes(), *settings, files


def test_a_start_killed_anywhere_is_undone_by_the_next_stop(net: Network) -> None:
    before = everything(net.alpha)
    seen = set()
    for step in killed_at_each_step(net.alpha, "start"):
        seen.add(f"{VIP}/24" in net.alpha.addresses())
        assert net.alpha.agent("stop", **QUICK).code == 0, f"step {step}"
        assert everything(net.alpha) == before, f"step {step}"
        assert net.alpha.agent("monitor", **QUICK).code == 7, f"step {step}"
    assert seen == {True, False}, "no kill fell before, or none after, the address was added"


def test_a_start_killed_anywhere_is_resumed_by_the_next_start(net: Network) -> None:
    before = everything(net.alpha)
    for step in killed_at_each_step(net.alpha, "start"):
        again = net.alpha.agent("start", **QUICK)
        assert again.code == 0, f"step {step}: {again.errors}"
        assert net.alpha.agent("monitor", **QUICK).code == 0, f"step {step}"
        assert net.alpha.agent("stop", **QUICK).code == 0, f"step {step}"
        assert everything(net.alpha) == before, f"step {step}"


@pytest.fixture(params=["writable settings", "read-only settings"])
def settings(request: pytest.FixtureRequest, net: Network) -> Iterator[str]:
    """Read-only: the kernel does take the host's own address along, and somebody must put it back."""
    if request.param == "read-only settings":
        net.alpha.run("mount", "-o", "bind,ro", "/proc/sys", "/proc/sys")
        yield request.param
        net.alpha.run("umount", "/proc/sys")
    else:
        yield request.param


def test_a_stop_killed_anywhere_is_finished_by_the_next_stop_and_the_host_keeps_its_own(
    net: Network, settings: str
) -> None:
    writable = settings == "writable settings"

    def virtual_address_first() -> None:
        if writable:
            net.alpha.setting("promote_secondaries", "0")
        net.alpha.ip(
            "address flush dev eth0",
            f"address add {VIP}/24 brd + dev eth0",
            "address add 10.77.0.1/24 brd + dev eth0",
            "route add default via 10.77.0.254 dev eth0",
            "route add 10.99.0.0/16 via 10.77.0.250 dev eth0 metric 50",
        )

    virtual_address_first()
    own_routes = [route.replace(VIP, "10.77.0.1") for route in net.alpha.routes()]
    seen = set()
    for step in killed_at_each_step(net.alpha, "stop"):
        addresses = net.alpha.addresses()
        seen.add(f"{VIP}/24" in addresses)
        assert "10.77.0.1/24" in addresses or not writable, f"step {step}: the host lost its address"
        assert net.alpha.agent("stop", **QUICK).code == 0, f"step {step}"
        assert net.alpha.addresses() == ["10.77.0.1/24"], f"step {step}"
        assert net.alpha.routes() == own_routes, f"step {step}"
        virtual_address_first()
    assert seen == {True, False}, "no kill fell before, or none after, the address was deleted"


def test_a_stop_killed_and_resumed_later_does_not_bring_back_an_address_stopped_meanwhile(net: Network) -> None:
    other = {**QUICK, "ip": "10.77.0.51", "instance": "second"}
    net.alpha.ip("address flush dev eth0")
    seen = False
    for options in (QUICK, other):
        assert net.alpha.agent("start", **options).code == 0
    for step in killed_at_each_step(net.alpha, "stop"):
        seen = seen or f"{VIP}/24" in net.alpha.addresses()
        assert net.alpha.agent("stop", **other).code == 0, f"step {step}"
        assert net.alpha.agent("stop", **QUICK).code == 0, f"step {step}"
        assert net.alpha.addresses() == [], f"step {step}: the other address would be on two nodes"
        for options in (QUICK, other):
            assert net.alpha.agent("start", **options).code == 0
    assert seen
