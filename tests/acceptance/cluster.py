"""The cluster as an acceptance test talks to it: through the manager's own commands and their XML.

Knows nodes only as testinfra hosts and faults only as the laboratory's verbs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lxml import etree

from vagrant.namespaces.lab import Lab, LabError

PROGRAMS = Path(__file__).parent / "programs"
ADDRESS = "192.168.56.100"
PORT = 8080
GROUP = "shop"
POLL_S = 0.1
DISCONNECTED = 102
"""Exit code of Pacemaker's commands when the manager does not (yet) listen."""


@dataclass(frozen=True)
class Service:
    """An address and an application as one group; times as Pacemaker writes them."""

    stop_script: str = ""
    monitor_interval: str = "2s"
    monitor_timeout: str = "4s"
    failure_timeout: str = "60s"
    migration_threshold: int = 1

    def xml(self) -> str:
        stop = (
            f'<nvpair id="shop-app-param-stop" name="stop_script" value="{self.stop_script}"/>'
            if self.stop_script
            else ""
        )
        greeter = f"/usr/bin/python3 {PROGRAMS / 'greeter.py'} 0.0.0.0 {PORT}"
        probe = f"/usr/bin/curl -sf -m 2 http://{ADDRESS}:{PORT}/"
        return f"""
        <group id="{GROUP}">
          <meta_attributes id="{GROUP}-meta">
            <nvpair id="{GROUP}-priority" name="priority" value="10"/>
            <nvpair id="{GROUP}-threshold" name="migration-threshold" value="{self.migration_threshold}"/>
            <nvpair id="{GROUP}-failure-timeout" name="failure-timeout" value="{self.failure_timeout}"/>
          </meta_attributes>
          <primitive id="shop-address" class="ocf" provider="mirrorha" type="VirtualIP">
            <instance_attributes id="shop-address-attributes">
              <nvpair id="shop-address-param-ip" name="ip" value="{ADDRESS}"/>
            </instance_attributes>
            {self._operations("shop-address", "10s")}
          </primitive>
          <primitive id="shop-app" class="ocf" provider="mirrorha" type="Application">
            <instance_attributes id="shop-app-attributes">
              <nvpair id="shop-app-param-command" name="command" value="{greeter}"/>
              <nvpair id="shop-app-param-monitor" name="monitor_script" value="{probe}"/>
              {stop}
            </instance_attributes>
            {self._operations("shop-app", self.monitor_timeout)}
          </primitive>
        </group>"""

    def _operations(self, resource: str, monitor_timeout: str) -> str:
        monitor = f'name="monitor" interval="{self.monitor_interval}" timeout="{monitor_timeout}"'
        return f"""<operations>
              <op id="{resource}-start" name="start" interval="0s" timeout="20s"/>
              <op id="{resource}-stop" name="stop" interval="0s" timeout="10s"/>
              <op id="{resource}-monitor" {monitor}/>
            </operations>"""


@dataclass
class View:
    """One look at crm_mon."""

    online: set[str] = field(default_factory=set)
    offline: set[str] = field(default_factory=set)
    unclean: set[str] = field(default_factory=set)
    active: dict[str, list[str]] = field(default_factory=dict)
    """Resource -> the nodes it runs on."""
    failures: list[str] = field(default_factory=list)
    has_controller: bool = False
    quorate: bool = False


class Cluster:
    """Asks any node that is on; changes the cluster by cibadmin and crm_resource."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.names = [node.name for node in lab.description.cluster_nodes]
        self.hosts = {name: lab.host(name) for name in self.names}

    def view(self, node: str | None = None) -> View:
        """Raises AssertionError when no manager answers."""
        for name in [node] if node else self._powered():
            with contextlib.suppress(LabError):  # it may be fenced between two looks
                result = self.lab.run(name, ["crm_mon", "--output-as=xml"])
                if result.returncode == 0:
                    return parse(result.stdout)
        raise AssertionError(f"no cluster manager answers on {node or self._powered()}")

    def wait(
        self, what: str, fulfilled: Callable[[View], bool], timeout_s: float = 60.0, node: str | None = None
    ) -> View:
        """Look until `fulfilled`. Raises AssertionError with the last view when it takes too long."""
        deadline = time.monotonic() + timeout_s
        view = View()
        while True:
            try:
                view = self.view(node)
                if fulfilled(view):
                    return view
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                raise AssertionError(f"after {timeout_s} s still not: {what}; last seen: {view}")
            time.sleep(POLL_S)

    def wait_online(self, timeout_s: float = 60.0) -> None:
        self.wait(
            "both nodes online with a controller",
            lambda view: view.online == set(self.names) and view.has_controller,
            timeout_s,
        )

    def wait_active(self, node: str, timeout_s: float = 60.0) -> None:
        """The whole service runs on `node` and nowhere else."""
        self.wait(
            f"service on {node}",
            lambda view: all(view.active.get(resource) == [node] for resource in ("shop-address", "shop-app")),
            timeout_s,
        )

    def wait_idle(self, timeout_s: float = 60.0) -> None:
        """Nothing left to do: the transition is finished on every node."""
        self.must(["crm_resource", "--wait", f"--timeout={int(timeout_s)}"], timeout_s + 10)

    def create(self, service: Service) -> None:
        self.must(["cibadmin", "--create", "--scope", "resources", "--xml-text", service.xml()])

    def delete(self) -> None:
        self.must(
            [
                "crm_resource",
                "--resource",
                GROUP,
                "--set-parameter",
                "target-role",
                "--meta",
                "--parameter-value",
                "Stopped",
            ]
        )
        self.wait(
            "service stopped", lambda view: not any(view.active.get(name) for name in ("shop-address", "shop-app"))
        )
        self.must(["cibadmin", "--delete", "--xml-text", f'<group id="{GROUP}"/>'])
        self.wait("service forgotten", lambda view: "shop-app" not in view.active)

    def settle(self, active: str) -> None:
        """Everything as new, service on `active`: power on, cables healed, failures forgotten."""
        self.lab.heal()
        for name in self.names:
            if self.lab.status()["nodes"][name]["power"] == "paused":
                self.lab.resume(name)
            self.lab.power_on(name)
            for nic in self.lab.description.nodes[name].addresses:
                self.lab.nic_up(name, nic)
        self.wait_online()
        self.wait_idle()
        self.must(["crm_resource", "--cleanup"])
        self.wait("service somewhere", lambda view: len(view.active.get("shop-app", [])) == 1)
        if self.view().active["shop-app"] != [active]:
            self.switch(active)
        self.wait_active(active)
        self.wait_idle()

    def switch(self, target: str) -> None:
        """A planned switch, with no constraint left behind."""
        self.must(["crm_resource", "--resource", GROUP, "--move", "--node", target])
        self.wait_active(target)
        self.must(["crm_resource", "--resource", GROUP, "--clear"])

    def active_node(self) -> str:
        (node,) = self.view().active["shop-app"]
        return node

    def other(self, node: str) -> str:
        (other,) = [name for name in self.names if name != node]
        return other

    def _powered(self) -> list[str]:
        nodes = self.lab.status()["nodes"]
        powered = [name for name in self.names if nodes[name]["power"] == "on"]
        assert powered, "no node of the cluster is on"
        return powered

    def must(self, argv: list[str], timeout_s: float = 30.0) -> None:
        """Run a manager's command on some node; a manager that is still coming up is asked again."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                result = self.lab.run(self._powered()[0], argv, timeout_s)
                if result.returncode == 0:
                    return
                failure = f"exit {result.returncode}: {result.stderr}"
                may_pass = result.returncode == DISCONNECTED
            except LabError as error:  # the node was switched off just now; the other will answer
                failure, may_pass = str(error), True
            if not may_pass or time.monotonic() > deadline:
                raise AssertionError(f"{' '.join(argv)}: {failure}")
            time.sleep(POLL_S)


def parse(text: str) -> View:
    """The view in `crm_mon --output-as=xml`."""
    root = etree.fromstring(text.encode())
    view = View()
    for node in root.iterfind("nodes/node"):
        name = node.get("name", "")
        (view.online if node.get("online") == "true" else view.offline).add(name)
        if node.get("unclean") == "true":
            view.unclean.add(name)
    controller = root.find("summary/current_dc")
    view.has_controller = controller is not None and controller.get("present") == "true"
    view.quorate = controller is not None and controller.get("with_quorum") == "true"
    for resource in _resources(root):
        # one whose start has not ended yet counts as active for the manager, but not for a client
        runs = resource.get("active") == "true" and resource.get("role") != "Starting"
        view.active[resource.get("id", "")] = [node.get("name", "") for node in resource.iterfind("node") if runs]
    view.failures = [f"{f.get('op_key')}: {f.get('exitreason')}" for f in root.iterfind("failures/failure")]
    return view


def _resources(root: etree._Element) -> Iterator[etree._Element]:
    resources = root.find("resources")
    if resources is not None:
        yield from resources.iter("resource")
