"""VirtualIP as the manager runs it, on two hosts with a switch between: what IPaddr2 was seen to do, and better."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from agents.address.arp import REPLY, REQUEST
from tests.agents.namespaces import STATE, Host, Listener, Network, Ran

pytestmark = pytest.mark.namespaces
VIP = "10.77.0.50"
# short waits where a test is not about them
QUICK: dict[str, Any] = {
    "ip": VIP,
    "conflict_wait": "60ms",
    "garp_delay_repeat": "0",
    "garp_count": "1",
    "link_grace": "0",
}
HOME = ["10.77.0.1/24"]


def wait_until(condition: Callable[[], bool], limit_s: float = 5) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)


def act(host: Host, action: str, **parameters: Any) -> Ran:
    return host.agent(action, **{**QUICK, **parameters})


def start(host: Host, **parameters: Any) -> Ran:
    ran = act(host, "start", **parameters)
    assert ran.code == 0, ran.errors
    return ran


# --- start, monitor, stop ---------------------------------------------------------------------------------------------


def test_a_started_address_is_there_is_monitored_and_leaves_without_a_trace(net: Network) -> None:
    addresses, routes, files = net.alpha.addresses(), net.alpha.routes(), net.alpha.run("ls", STATE)
    assert act(net.alpha, "monitor").code == 7
    start(net.alpha)
    assert net.alpha.addresses() == [*HOME, f"{VIP}/24"]
    assert act(net.alpha, "monitor").code == 0
    assert act(net.alpha, "monitor", interval_ms=0).code == 0
    assert net.beta.run("ping", "-c1", "-W2", VIP)
    assert act(net.alpha, "stop").code == 0
    assert act(net.alpha, "monitor").code == 7
    assert (net.alpha.addresses(), net.alpha.routes()) == (addresses, routes)
    assert net.alpha.run("ls", STATE).split() == [*files.split(), "VirtualIP-eth0.lock"]


def test_a_good_monitor_is_silent(net: Network) -> None:
    start(net.alpha)
    ran = act(net.alpha, "monitor")
    assert (ran.code, ran.errors, ran.output) == (0, "", "")


def test_the_first_announcement_comes_at_once_as_request_and_reply_and_the_rest_from_behind(net: Network) -> None:
    with Listener(net.hub, "br0") as wire:
        ran = start(net.alpha, garp_count="3", garp_interval="100ms", garp_delay_repeat="300ms", conflict_check="off")
        frames = wire.announcements(VIP, 12, 5)
    mac = bytes.fromhex(net.alpha.json("link", "show", "eth0")[0]["address"].replace(":", ""))
    assert [arp.operation for _, arp in frames] == [REQUEST, REPLY] * 6
    assert {arp.sender_mac for _, arp in frames} == {mac}
    times = [at - frames[0][0] for at, _ in frames[::2]]
    assert all(gap >= 0.095 for gap in (times[1], times[2] - times[1]))
    assert times[3] - times[2] >= 0.295
    assert ran.seconds < times[-1], "start waited for its announcements"


def test_a_second_start_changes_nothing_and_announces_once_more(net: Network) -> None:
    start(net.alpha)
    before = net.alpha.json("-4", "address", "show", "dev", "eth0")
    with Listener(net.hub, "br0") as wire:
        start(net.alpha, garp_count="5")
        frames = wire.announcements(VIP, 3, 0.5)
    assert [arp.operation for _, arp in frames] == [REQUEST, REPLY]
    assert net.alpha.json("-4", "address", "show", "dev", "eth0") == before


def test_stop_ends_the_helper_so_that_nothing_announces_an_address_that_left(net: Network) -> None:
    start(net.alpha, garp_count="50", garp_interval="20ms")
    act(net.alpha, "stop")
    with Listener(net.hub, "br0") as wire:
        assert wire.announcements(VIP, 1, 0.2) == []


def test_the_helper_sends_nothing_once_the_address_was_taken_away_behind_its_back(net: Network) -> None:
    start(net.alpha, garp_count="50", garp_interval="20ms")
    net.alpha.ip(f"address del {VIP}/24 dev eth0")
    with Listener(net.hub, "br0") as wire:
        assert wire.announcements(VIP, 1, 0.2) == []


def test_a_refresh_announces_with_each_monitor_but_not_with_a_probe(net: Network) -> None:
    start(net.alpha)
    with Listener(net.hub, "br0") as wire:
        act(net.alpha, "monitor", garp_refresh="2")
        assert len(wire.announcements(VIP, 5, 0.3)) == 4
        act(net.alpha, "monitor", garp_refresh="2", interval_ms=0)
        assert wire.announcements(VIP, 1, 0.2) == []


def test_the_kernel_announces_the_address_by_itself_when_the_mac_changes(net: Network) -> None:
    start(net.alpha)
    with Listener(net.hub, "br0") as wire:
        net.alpha.ip("link set eth0 address 02:00:00:00:00:99")
        assert wire.announcements(VIP, 1, 3)


def test_the_monitor_announces_once_after_a_cable_that_came_back(net: Network) -> None:
    start(net.alpha)
    net.hub.ip("link set alpha0 down", "link set alpha0 up")
    wait_until(lambda: act(net.alpha, "monitor", interval_ms=0).code == 0)
    with Listener(net.alpha, "eth0") as wire:
        assert act(net.alpha, "monitor").code == 0
        assert len(wire.announcements(VIP, 3, 0.3)) == 2
        assert act(net.alpha, "monitor").code == 0
        assert wire.announcements(VIP, 1, 0.2) == []


def test_label_broadcast_and_no_prefix_route_reach_the_kernel(net: Network) -> None:
    start(net.alpha, iflabel="shop", broadcast="10.77.0.127", noprefixroute="yes", cidr_netmask="255.255.255.128")
    shown = net.alpha.json("-4", "address", "show", "dev", "eth0")[0]["addr_info"][-1]
    assert (shown["label"], shown["broadcast"], shown["prefixlen"]) == ("eth0:shop", "10.77.0.127", 25)
    assert shown["noprefixroute"] is True
    assert not [route for route in net.alpha.routes() if route.startswith("10.77.0.0/25")]
    assert act(net.alpha, "stop").code == 0
    assert net.alpha.addresses() == HOME


def test_a_stop_twice_and_a_stop_of_what_never_ran_succeed(net: Network) -> None:
    assert act(net.alpha, "stop").code == 0
    start(net.alpha)
    assert act(net.alpha, "stop").code == 0
    assert act(net.alpha, "stop").code == 0


def test_new_values_of_reloadable_parameters_are_taken_without_interruption(net: Network) -> None:
    start(net.alpha)
    assert act(net.alpha, "reload-agent", garp_count="9", check_link="admin").code == 0
    assert act(net.alpha, "reload-agent", garp_count="many").code == 6
    assert act(net.alpha, "monitor", check_link="admin").code == 0


# --- the link ---------------------------------------------------------------------------------------------------------


def test_a_link_administratively_down_fails_the_monitor_unless_told_otherwise(net: Network) -> None:
    start(net.alpha)
    net.alpha.ip("link set eth0 down")
    ran = act(net.alpha, "monitor")
    assert (ran.code, "eth0 is administratively down" in ran.reason) == (1, True)
    assert act(net.alpha, "monitor", check_link="none").code == 0
    start(net.alpha)
    assert act(net.alpha, "monitor").code == 0


def test_a_pulled_cable_fails_the_monitor_after_the_grace_time(net: Network) -> None:
    start(net.alpha)
    net.hub.ip("link set alpha0 down")
    ran = act(net.alpha, "monitor", link_grace="300ms")
    assert (ran.code, "eth0 has no carrier" in ran.reason) == (1, True)
    assert ran.seconds >= 0.3
    assert act(net.alpha, "monitor", check_link="admin").code == 0


def test_a_cable_that_comes_back_within_the_grace_time_is_forgiven(net: Network) -> None:
    start(net.alpha)
    net.hub.ip("link set alpha0 down")
    command = net.alpha.command("monitor", **{**QUICK, "link_grace": "5s"})
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as monitor:
        net.hub.ip("link set alpha0 up")
        assert monitor.wait(10) == 0


def test_a_start_without_carrier_fails_instead_of_believing_that_the_address_is_free(net: Network) -> None:
    net.hub.ip("link set alpha0 down")
    ran = act(net.alpha, "start", link_grace="100ms")
    assert (ran.code, "no carrier" in ran.reason) == (1, True)
    assert net.alpha.addresses() == HOME
    start(net.alpha, check_link="none")


def test_a_start_switches_the_interface_on(net: Network) -> None:
    net.alpha.ip("link set eth0 down")
    start(net.alpha, nic="eth0", cidr_netmask="24")
    assert net.alpha.addresses() == [*HOME, f"{VIP}/24"]
    assert act(net.alpha, "monitor").code == 0


def test_the_second_interface_of_the_list_is_taken_when_the_first_has_no_carrier(net: Network) -> None:
    net.hub.ip("link set alpha1 down")
    start(net.alpha, nic="eth1 eth0", cidr_netmask="24")
    assert net.alpha.addresses() == [*HOME, f"{VIP}/24"]
    net.hub.ip("link set alpha1 up")
    start(net.alpha, nic="eth1 eth0", cidr_netmask="24")
    assert net.alpha.addresses("eth1") == [], "a healthy address was moved by a second start"
    net.hub.ip("link set alpha0 down")
    start(net.alpha, nic="eth1 eth0", cidr_netmask="24")
    assert (net.alpha.addresses("eth0"), net.alpha.addresses("eth1")) == (HOME, [f"{VIP}/24"])


# --- others who have the address -------------------------------------------------------------------------------------


def test_an_address_in_use_elsewhere_is_not_taken_and_the_answer_comes_early(net: Network) -> None:
    net.beta.ip(f"address add {VIP}/24 dev eth0")
    ran = act(net.alpha, "start", conflict_wait="5s")
    mac = net.beta.json("link", "show", "eth0")[0]["address"]
    assert (ran.code, ran.reason.startswith(f"{VIP} is in use by {mac}")) == (1, True)
    assert ran.seconds < 2
    assert net.alpha.addresses() == HOME
    assert act(net.alpha, "stop").code == 0


@pytest.mark.parametrize("policy", ["warn", "off"])
def test_an_operator_may_force_the_takeover(net: Network, policy: str) -> None:
    net.beta.ip(f"address add {VIP}/24 dev eth0")
    ran = start(net.alpha, conflict_check=policy)
    assert ("in use by" in ran.errors) is (policy == "warn")
    assert net.alpha.addresses() == [*HOME, f"{VIP}/24"]


def test_two_hosts_that_start_at_the_same_time_do_not_both_succeed(net: Network) -> None:
    commands = [host.command("start", **{**QUICK, "conflict_wait": "600ms"}) for host in (net.alpha, net.beta)]
    running = [subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for command in commands]
    assert sum(one.wait(10) == 0 for one in running) <= 1
    assert sum(f"{VIP}/24" in host.addresses() for host in (net.alpha, net.beta)) <= 1


def test_the_default_check_takes_less_than_a_second_when_nobody_answers(net: Network) -> None:
    assert net.alpha.agent("start", ip=VIP).seconds < 1


def test_a_copy_with_another_prefix_is_recognised_corrected_and_removed(net: Network) -> None:
    net.alpha.ip(f"address add {VIP}/32 dev eth0")
    ran = act(net.alpha, "monitor", cidr_netmask="24")
    assert (ran.code, "prefix length 32 instead of 24" in ran.reason) == (1, True)
    start(net.alpha, cidr_netmask="24")
    assert net.alpha.addresses() == [*HOME, f"{VIP}/24"]
    net.alpha.ip(f"address add {VIP}/32 dev eth0")
    assert act(net.alpha, "stop", cidr_netmask="24").code == 0
    assert net.alpha.addresses() == HOME


def test_a_copy_on_an_interface_that_is_not_ours_fails_start_and_monitor_and_stays(net: Network) -> None:
    net.alpha.ip(f"address add {VIP}/24 dev eth1")
    assert act(net.alpha, "monitor", nic="eth0").code == 1
    ran = act(net.alpha, "start", nic="eth0")
    assert (ran.code, f"{VIP} is on eth1" in ran.reason) == (1, True)
    assert act(net.alpha, "stop", nic="eth0").code == 0
    assert (net.alpha.addresses("eth0"), net.alpha.addresses("eth1")) == (HOME, [f"{VIP}/24"])


# --- missing things ---------------------------------------------------------------------------------------------------


def test_a_missing_interface_bans_this_node_at_start_only(net: Network) -> None:
    codes = {action: act(net.alpha, action, nic="eth9").code for action in ("start", "stop", "monitor")}
    assert codes == {"start": 5, "stop": 0, "monitor": 7}
    assert act(net.alpha, "monitor", nic="eth9", interval_ms=0).code == 7
    assert act(net.alpha, "validate-all", nic="eth9").code == 0
    assert act(net.alpha, "validate-all", nic="eth9", level=10).code == 5


def test_an_interface_deleted_while_the_address_was_up_is_a_clean_stop(net: Network) -> None:
    start(net.alpha)
    net.alpha.ip("link del eth0")
    assert act(net.alpha, "monitor").code == 7
    assert act(net.alpha, "stop").code == 0
    assert act(net.alpha, "start", nic="eth0").code == 5


def test_a_renamed_interface_is_still_cleaned_by_stop(net: Network) -> None:
    start(net.alpha, nic="eth0")
    net.alpha.ip("link set eth0 down", "link set eth0 name lan0", "link set lan0 up")
    assert act(net.alpha, "monitor", nic="eth0").code == 1
    assert act(net.alpha, "stop", nic="eth0").code == 0
    assert net.alpha.addresses("lan0") == HOME


def test_no_network_for_the_address_bans_this_node_with_the_remedy(net: Network) -> None:
    ran = act(net.alpha, "start", ip="172.31.0.5")
    assert (ran.code, ran.reason.endswith("set nic")) == (2, True)


@pytest.mark.parametrize("ip", ["10.77.0.500", "shop.example", "fe80::1", "224.0.0.1"])
def test_a_malformed_address_bans_all_nodes_and_stops_cleanly(net: Network, ip: str) -> None:
    assert act(net.alpha, "start", ip=ip).code == 6
    assert act(net.alpha, "validate-all", ip=ip).code == 6
    assert act(net.alpha, "stop", ip=ip).code == 0
    assert act(net.alpha, "monitor", ip=ip, interval_ms=0).code == 7


def test_a_missing_address_is_no_reason_to_fence_anyone(net: Network) -> None:
    assert act(net.alpha, "validate-all", ip="").code == 6
    assert act(net.alpha, "stop", ip="").code == 0
    assert act(net.alpha, "monitor", ip="", interval_ms=0).code == 7


def test_an_unprivileged_user_reads_the_meta_data_and_fails_at_start(net: Network) -> None:
    ran = net.alpha.agent("meta-data", user="65534")
    assert (ran.code, ran.output.startswith('<?xml version="1.0"?>')) == (0, True)
    assert act(net.alpha, "monitor", user="65534").code == 7
    assert act(net.alpha, "start", user="65534").code == 4


@pytest.mark.parametrize("action", ["promote", "demote", "notify", "migrate_to", "migrate_from", "reload", "fly"])
def test_what_the_agent_does_not_do_is_answered_with_three(net: Network, action: str) -> None:
    assert act(net.alpha, action).code == 3


# --- the host's own addresses and routes ------------------------------------------------------------------------------


@pytest.fixture
def first(net: Network) -> Network:
    """A host whose virtual address came before its own: the kernel calls the virtual one primary."""
    net.alpha.ip(
        "address flush dev eth0",
        f"address add {VIP}/24 brd + dev eth0",
        "address add 10.77.0.1/24 brd + dev eth0",
        "route add default via 10.77.0.254 dev eth0",
        "route add 10.99.0.0/16 via 10.77.0.250 dev eth0 metric 50",
        "route add 10.98.0.0/16 dev eth0 scope link table 100",
    )
    return net


@pytest.mark.parametrize("promote", ["0", "1"])
def test_stopping_a_primary_address_leaves_the_hosts_own_address_and_routes(first: Network, promote: str) -> None:
    first.alpha.setting("promote_secondaries", promote)
    routes = [route.replace(VIP, "10.77.0.1") for route in first.alpha.routes()]
    assert act(first.alpha, "stop").code == 0
    assert first.alpha.addresses() == HOME
    assert first.alpha.routes() == routes


def test_even_where_the_kernel_settings_cannot_be_written_everything_comes_back(first: Network) -> None:
    """As in a container with a read-only /proc/sys: the kernel deletes, and stop puts back."""
    first.alpha.setting("promote_secondaries", "0")
    first.alpha.run("mount", "-o", "bind,ro", "/proc/sys", "/proc/sys")
    try:
        routes = [route.replace(VIP, "10.77.0.1") for route in first.alpha.routes()]
        ran = act(first.alpha, "stop")
        assert (ran.code, "vanished with" in ran.errors) == (0, True)
        assert first.alpha.addresses() == HOME
        assert first.alpha.routes() == routes
    finally:
        first.alpha.run("umount", "/proc/sys")


def test_a_default_route_that_prefers_the_virtual_address_survives_without_the_preference(net: Network) -> None:
    start(net.alpha)
    net.alpha.ip(f"route replace default via 10.77.0.254 dev eth0 src {VIP}")
    assert act(net.alpha, "stop").code == 0
    assert "default via 10.77.0.254" in net.alpha.routes()


def test_the_interface_settings_are_put_back_by_the_last_of_several_addresses(net: Network) -> None:
    net.alpha.setting("promote_secondaries", "0")
    net.alpha.setting("arp_notify", "0")
    other = {"ip": "10.77.0.51", "instance": "second"}
    start(net.alpha)
    start(net.alpha, **other)
    assert net.alpha.setting("promote_secondaries") == "1"
    assert act(net.alpha, "stop").code == 0
    assert (net.alpha.setting("promote_secondaries"), net.alpha.setting("arp_notify")) == ("1", "1")
    assert act(net.alpha, "stop", **other).code == 0
    assert (net.alpha.setting("promote_secondaries"), net.alpha.setting("arp_notify")) == ("0", "0")


def test_two_addresses_of_one_subnet_without_any_other_leave_independently(net: Network) -> None:
    net.alpha.ip("address flush dev eth0")
    other = {"ip": "10.77.0.51", "instance": "second", "nic": "eth0", "cidr_netmask": "24"}
    start(net.alpha, nic="eth0", cidr_netmask="24")
    start(net.alpha, **other)
    assert act(net.alpha, "stop", nic="eth0").code == 0
    assert net.alpha.addresses() == ["10.77.0.51/24"]
    assert act(net.alpha, "monitor", **other).code == 0
    assert act(net.alpha, "stop", **other).code == 0
    assert net.alpha.addresses() == []


def test_fifty_addresses_start_and_stop_at_the_same_time_without_touching_each_other(net: Network) -> None:
    wanted = [f"10.77.0.{number}" for number in range(100, 150)]

    def all_at_once(action: str) -> list[int]:
        running = []
        for ip in wanted:
            command = net.alpha.command(action, instance=ip, **{**QUICK, "ip": ip, "garp_count": "0"})
            running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
        return [one.wait(30) for one in running]

    routes = net.alpha.routes()
    assert set(all_at_once("start")) == {0}
    assert sorted(net.alpha.addresses()) == sorted([*HOME, *(f"{ip}/24" for ip in wanted)])
    assert set(all_at_once("monitor")) == {0}
    assert set(all_at_once("stop")) == {0}
    assert (net.alpha.addresses(), net.alpha.routes()) == (HOME, routes)


def test_a_read_only_state_directory_keeps_neither_start_nor_stop_from_working(net: Network) -> None:
    net.alpha.run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", STATE)
    try:
        ran = start(net.alpha)
        assert "Read-only file system" in ran.errors
        assert act(net.alpha, "monitor").code == 0
        assert act(net.alpha, "stop").code == 0
        assert net.alpha.addresses() == HOME
    finally:
        net.alpha.run("umount", STATE)


def test_a_default_route_over_another_interface_survives_when_its_preferred_source_leaves(net: Network) -> None:
    start(net.alpha, nic="eth1", cidr_netmask="24", conflict_check="off")
    net.alpha.ip(f"route replace default via 10.77.0.254 dev eth0 src {VIP}")
    assert act(net.alpha, "stop", nic="eth1", cidr_netmask="24").code == 0
    assert "default via 10.77.0.254" in net.alpha.routes()


# --- several resources, and one resource configured anew -------------------------------------------------------------


def test_a_frozen_holder_of_the_lock_does_not_make_a_stop_fail(net: Network) -> None:
    start(net.alpha)
    with subprocess.Popen(
        net.alpha.enter("flock", f"{STATE}/VirtualIP-eth0.lock", "cat"), stdin=subprocess.PIPE
    ) as holder:
        held = f"flock -n {STATE}/VirtualIP-eth0.lock true || echo held"
        wait_until(lambda: net.alpha.run("sh", "-c", held) == "held\n")
        ran = act(net.alpha, "stop", timeout_ms=4000)
        holder.communicate()
    assert (ran.code, "is held by another process" in ran.errors) == (0, True)
    assert net.alpha.addresses() == HOME


@pytest.mark.parametrize("action", ["stop", "start"])
def test_an_address_configured_anew_does_not_leave_the_former_one_behind(net: Network, action: str) -> None:
    start(net.alpha)
    assert act(net.alpha, action, ip="10.77.0.51").code == 0
    assert f"{VIP}/24" not in net.alpha.addresses()
    assert act(net.alpha, "stop", ip="10.77.0.51").code == 0
    assert net.alpha.addresses() == HOME


def test_a_former_address_that_another_resource_took_over_stays(net: Network) -> None:
    start(net.alpha)
    start(net.alpha, instance="second")
    assert act(net.alpha, "stop", ip="10.77.0.51").code == 0
    assert net.alpha.addresses() == [*HOME, f"{VIP}/24"]


def test_the_settings_of_an_interface_are_put_back_when_the_address_moves_to_another(net: Network) -> None:
    net.alpha.setting("promote_secondaries", "0")
    net.alpha.setting("arp_notify", "0")
    either = {"nic": "eth0 eth1", "cidr_netmask": "24", "conflict_check": "off"}
    start(net.alpha, **either)
    net.hub.ip("link set alpha0 down")
    start(net.alpha, **either)
    assert (net.alpha.setting("promote_secondaries"), net.alpha.setting("arp_notify")) == ("0", "0")
    assert act(net.alpha, "stop", **either).code == 0
    assert net.alpha.run("sh", "-c", f"ls {STATE} | grep -v lock || true") == ""
