"""What can happen to a service, each as one function: break something, wait for clients to be served, return the watch.

Tests judge one run of each; the long run `outages` collects how long clients waited. All raise AssertionError when the
service does not behave.
"""

from __future__ import annotations

import time

from tests.acceptance.cluster import GROUP, Cluster
from tests.acceptance.watch import Watch

LONGER_THAN_ANY_TIMEOUT_S = 8.0
"""Corosync's token and consensus time-outs together are 6.6 s: who wanted to fence would have done it by then."""
APPLICATION = "[g]reeter.py"
"""For pkill -f and pgrep -f; the brackets keep it from matching its own shell."""

STUCK = f"""
<group id="{GROUP}">
  <primitive id="shop-stuck" class="ocf" provider="mirrorha" type="Application">
    <instance_attributes id="shop-stuck-attributes">
      <nvpair id="shop-stuck-start-script" name="start_script" value="/usr/bin/touch /run/stuck"/>
      <nvpair id="shop-stuck-monitor-script" name="monitor_script" value="/usr/bin/test -e /run/stuck"/>
      <nvpair id="shop-stuck-map" name="monitor_rc_map" value="0=0,1=7,*=1"/>
      <nvpair id="shop-stuck-stop-script" name="stop_script" value="/bin/false"/>
    </instance_attributes>
    <operations>
      <op id="shop-stuck-start" name="start" interval="0s" timeout="10s"/>
      <op id="shop-stuck-stop" name="stop" interval="0s" timeout="10s"/>
    </operations>
  </primitive>
</group>"""
"""An application that comes up and never goes down."""


def planned_switch(cluster: Cluster, active: str) -> Watch:
    other = cluster.other(active)
    cluster.settle(active)
    with Watch(cluster.lab) as watch:
        cluster.switch(other)
        assert other in watch.wait_for_answer()
    return watch


def nic_down(cluster: Cluster, active: str) -> Watch:
    other = cluster.other(active)
    cluster.settle(active)
    with Watch(cluster.lab) as watch:
        cluster.lab.nic_down(active, "public")
        watch.wait_for_silence()
        cluster.wait_active(other)
        assert other in watch.wait_for_answer()
    assert cluster.lab.power_status(active) == "on"
    return watch


def application_killed(cluster: Cluster, active: str) -> Watch:
    cluster.settle(active)
    with Watch(cluster.lab) as watch:
        before = watch.wait_for_answer().split()[-1]
        cluster.hosts[active].check_output(f"pkill -KILL -f '{APPLICATION}'")
        watch.wait_for_silence()
        assert watch.wait_for_answer().split()[-1] != before
    assert cluster.lab.power_status(active) == "on"
    return watch


def application_hangs(cluster: Cluster, active: str) -> Watch:
    other = cluster.other(active)
    cluster.settle(active)
    with Watch(cluster.lab) as watch:
        cluster.hosts[active].check_output(f"pkill -STOP -f '{APPLICATION}'")
        watch.wait_for_silence()
        cluster.wait_active(other)
        assert other in watch.wait_for_answer()
    assert cluster.hosts[active].run(f"pgrep -f '{APPLICATION}'").rc == 1, "the hanging process was left behind"
    assert cluster.lab.power_status(active) == "on"
    return watch


def stop_fails(cluster: Cluster, active: str) -> Watch:
    other = cluster.other(active)
    cluster.settle(active)
    cluster.hosts[active].check_output("cibadmin --modify --allow-create --scope resources --xml-text %s", STUCK)
    cluster.wait("the stuck application runs", lambda view: view.active.get("shop-stuck") == [active])
    with Watch(cluster.lab) as watch:
        cluster.hosts[other].check_output(f"crm_resource --resource {GROUP} --move --node {other}")
        cluster.wait(f"{active} switched off", lambda _: cluster.lab.power_status(active) == "off")
        cluster.wait_active(other)
        assert other in watch.wait_for_answer()
        cluster.hosts[other].check_output(f"crm_resource --resource {GROUP} --clear")
    cluster.wait(f"the stuck application runs on {other}", lambda view: view.active.get("shop-stuck") == [other])
    survivor = cluster.hosts[other]
    survivor.check_output("rm /run/stuck")
    survivor.check_output("crm_resource --resource shop-stuck --set-parameter target-role --meta -v Stopped")
    cluster.wait("the stuck application stopped", lambda view: not view.active.get("shop-stuck"))
    survivor.check_output("cibadmin --delete --xml-text '<primitive id=\"shop-stuck\"/>'")
    return watch


def power_cut(cluster: Cluster, active: str) -> Watch:
    """The active host loses its mains, the other serves; the lost one returns and takes nothing back."""
    other = cluster.other(active)
    cluster.settle(active)
    with Watch(cluster.lab) as watch:
        cluster.lab.power_cut(active)
        watch.wait_for_silence()
        assert other in watch.wait_for_answer()
        cluster.wait_active(other)
        cluster.lab.power_on(active)
        watch.watch_node(active)
        cluster.wait_online()
        cluster.wait_idle()
        assert cluster.active_node() == other, "a returning host must not take the service back"
    return watch


def partition(cluster: Cluster, active: str) -> Watch:
    """The hosts hear nothing of each other, the client hears both; the loser boots again while still cut off."""
    cluster.settle(active)
    victim = cluster.other(active)
    with Watch(cluster.lab) as watch:
        for network in cluster.lab.description.networks:
            cluster.lab.cut(network, source="alpha", target="beta")
            cluster.lab.cut(network, source="beta", target="alpha")
        cluster.wait(f"{victim} switched off", lambda _: cluster.lab.power_status(victim) == "off", node=active)
        assert cluster.lab.power_status(active) == "on"
        assert active in watch.wait_for_answer()

        cluster.lab.power_on(victim)
        watch.watch_node(victim)
        view = cluster.wait(f"{victim} has a controller", lambda view: view.has_controller, node=victim)
        assert not view.quorate, "a host that booted alone must not believe it is the cluster"
        end = time.monotonic() + LONGER_THAN_ANY_TIMEOUT_S
        while time.monotonic() < end:
            assert cluster.lab.power_status(active) == "on", "the returning host shot the one that serves"
            assert not cluster.view(victim).active.get("shop-address")
            time.sleep(0.2)

        cluster.lab.heal()
        cluster.wait_online()
        cluster.wait_idle()
        assert cluster.active_node() == active
    return watch
