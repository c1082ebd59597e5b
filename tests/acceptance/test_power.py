"""A host is lost, or must be: the power switch makes sure before anybody takes over."""

from __future__ import annotations

import pytest

from tests.acceptance.cluster import GROUP, Cluster
from tests.acceptance.watch import Watch

pytestmark = pytest.mark.lab

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


@pytest.mark.parametrize("victim", ["alpha", "beta"])
def test_a_power_cut_of_the_active_host_is_survived(cluster: Cluster, victim: str) -> None:
    cluster.settle(victim)
    survivor = cluster.other(victim)
    with Watch(cluster.lab) as watch:
        cluster.lab.power_cut(victim)
        watch.wait_for_silence()
        assert survivor in watch.wait_for_answer()
        cluster.wait_active(survivor)
        cluster.lab.power_on(victim)
        watch.watch_node(victim)
        cluster.wait_online()
        cluster.wait_idle()
        assert cluster.active_node() == survivor, "a returning host must not take the service back"
    watch.assert_never_twice()


def test_a_stop_that_fails_gets_its_host_fenced_and_the_service_moved(cluster: Cluster) -> None:
    cluster.settle("alpha")
    cluster.hosts["alpha"].check_output("cibadmin --modify --allow-create --scope resources --xml-text %s", STUCK)
    cluster.wait("the stuck application runs", lambda view: view.active.get("shop-stuck") == ["alpha"])
    with Watch(cluster.lab) as watch:
        cluster.hosts["beta"].check_output(f"crm_resource --resource {GROUP} --move --node beta")
        cluster.wait("alpha switched off", lambda _: cluster.lab.power_status("alpha") == "off")
        cluster.wait_active("beta")
        assert "beta" in watch.wait_for_answer()
        cluster.hosts["beta"].check_output(f"crm_resource --resource {GROUP} --clear")
    watch.assert_never_twice()
    cluster.hosts["beta"].check_output("rm /run/stuck")
    cluster.hosts["beta"].check_output(
        "crm_resource --resource shop-stuck --set-parameter target-role --meta -v Stopped"
    )
    cluster.wait("the stuck application stopped", lambda view: not view.active.get("shop-stuck"))
    cluster.hosts["beta"].check_output("cibadmin --delete --xml-text '<primitive id=\"shop-stuck\"/>'")
