from __future__ import annotations

from tests.acceptance.cluster import parse

CRM_MON = """<pacemaker-result api-version="2.25">
  <summary><current_dc present="true" name="alpha" with_quorum="true"/></summary>
  <nodes>
    <node name="alpha" online="true" unclean="false"/>
    <node name="beta" online="false" unclean="true"/>
  </nodes>
  <resources>
    <group id="shop">
      <resource id="shop-address" role="Started" active="true"><node name="alpha"/></resource>
      <resource id="shop-app" role="Starting" active="true"><node name="alpha"/></resource>
    </group>
    <resource id="power-switch" active="false"/>
  </resources>
  <failures><failure op_key="shop-app_monitor_2000" exitreason="monitor script hung"/></failures>
</pacemaker-result>"""


def test_a_view_tells_who_is_there_and_who_is_missed() -> None:
    view = parse(CRM_MON)
    assert (view.online, view.offline, view.unclean) == ({"alpha"}, {"beta"}, {"beta"})
    assert view.has_controller
    assert view.quorate
    assert view.failures == ["shop-app_monitor_2000: monitor script hung"]


def test_a_resource_that_is_still_starting_does_not_run_yet() -> None:
    view = parse(CRM_MON)
    assert view.active == {"shop-address": ["alpha"], "shop-app": [], "power-switch": []}
