"""A service whose data live on a mirror, under Debian's Pacemaker: mirror, file system, address and application."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.acceptance.cluster import ADDRESS, Cluster, View
from tests.acceptance.mirror.pair import MirrorPair
from vagrant.namespaces.lab import Lab

MOUNT = "/srv/shop"
MIRRORADM = str(Path(sys.executable).with_name("mirroradm"))
MONITOR_S = 2
CLONE, GROUP, MIRROR = "shop-mirrors", "shop", "shop-mirror"


class MirroredService:
    """Made on a laboratory with an engine; the file system is made on the mirror's first Primary."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.cluster = Cluster(lab)
        self.cluster.wait_online()
        self.pair = MirrorPair(lab, name)
        first, second = self.pair.nodes
        self.pair.create()
        self.pair.promote(first)
        self.pair.run(first, "mkfs.ext4", "-q", "-F", "-E", "nodiscard", self.pair.device)
        self.pair.demote(first)
        for node in (first, second):
            self.pair.down(node)

    def create(self) -> None:
        self.cluster.must(["cibadmin", "--create", "--scope", "resources", "--xml-text", self._clone()])
        self.cluster.must(["cibadmin", "--create", "--scope", "resources", "--xml-text", self._group()])
        self.cluster.must(["cibadmin", "--create", "--scope", "constraints", "--xml-text", self._colocation()])
        self.cluster.must(["cibadmin", "--create", "--scope", "constraints", "--xml-text", self._order()])
        role = ["--meta", "--set-parameter", "target-role", "--parameter-value", "Started"]
        self.cluster.must(["crm_resource", "--resource", GROUP, *role])

    def wait_active(self, node: str | None = None, timeout_s: float = 60.0) -> str:
        """All of the group runs on one host, `node` if given; returns which."""

        def active(view: View) -> bool:
            hosts = [view.active.get(f"shop-{part}", []) for part in ("files", "address", "app")]
            return all(host == hosts[0] and len(host) == 1 and node in (None, host[0]) for host in hosts)

        (host,) = self.cluster.wait(f"service on {node or 'one host'}", active, timeout_s).active["shop-app"]
        return host

    def is_stopped(self, view: View) -> bool:
        return not any(view.active.get(f"shop-{part}") for part in ("files", "address", "app"))

    def write(self, node: str, name: str, content: str) -> None:
        """Acknowledged to the caller once it is stable."""
        path = f"{MOUNT}/{name}"
        self.pair.run(node, "sh", "-c", f"printf %s {content} > {path} && sync {path} && sync {MOUNT}")

    def read(self, node: str, name: str) -> str:
        return self.pair.run(node, "cat", f"{MOUNT}/{name}")

    def _clone(self) -> str:
        parameters = {"resource": self.pair.name, "mirroradm": MIRRORADM, "wait_connect": "3s"}
        return f"""
        <clone id="{CLONE}">
          <meta_attributes id="{CLONE}-meta">
            {_pairs(CLONE, {"promotable": "true", "promoted-max": "1", "clone-max": "2", "notify": "true"})}
          </meta_attributes>
          <primitive id="{MIRROR}" class="ocf" provider="mirrorha" type="Mirror">
            <instance_attributes id="{MIRROR}-attributes">{_pairs(MIRROR, parameters)}</instance_attributes>
            <operations>
              {_operations(MIRROR, "start", "stop", "promote", "demote", "notify")}
              <op id="{MIRROR}-promoted" name="monitor" interval="{MONITOR_S}s" timeout="20s" role="Promoted"/>
              <op id="{MIRROR}-unpromoted" name="monitor" interval="{MONITOR_S + 1}s" timeout="20s" role="Unpromoted"/>
            </operations>
          </primitive>
        </clone>"""

    def _group(self) -> str:
        members = {
            "files": ("Filesystem", {"device": self.pair.device, "directory": MOUNT, "fstype": "ext4"}),
            "address": ("VirtualIP", {"ip": ADDRESS}),
            "app": ("Application", {"command": f"/usr/bin/tail -f /dev/null {MOUNT}"}),
        }
        stopped = f'<meta_attributes id="{GROUP}-meta">{_pairs(GROUP, {"target-role": "Stopped"})}</meta_attributes>'
        primitives = [
            f"""<primitive id="shop-{part}" class="ocf" provider="mirrorha" type="{agent}">
              <instance_attributes id="shop-{part}-set">{_pairs(f"shop-{part}", parameters)}</instance_attributes>
              <operations>{_operations(f"shop-{part}", "start", "stop")}
                <op id="shop-{part}-monitor" name="monitor" interval="{MONITOR_S}s" timeout="20s"/></operations>
            </primitive>"""
            for part, (agent, parameters) in members.items()
        ]
        return f'<group id="{GROUP}">{stopped}{"".join(primitives)}</group>'

    def _colocation(self) -> str:
        return (
            f'<rsc_colocation id="shop-with-mirror" rsc="{GROUP}" rsc-role="Started" with-rsc="{CLONE}"'
            ' with-rsc-role="Promoted" score="INFINITY"/>'
        )

    def _order(self) -> str:
        return (
            f'<rsc_order id="shop-after-mirror" first="{CLONE}" first-action="promote" then="{GROUP}"'
            ' then-action="start" kind="Mandatory"/>'
        )


def _pairs(owner: str, values: dict[str, str]) -> str:
    return "".join(f'<nvpair id="{owner}-{name}" name="{name}" value="{value}"/>' for name, value in values.items())


def _operations(resource: str, *names: str) -> str:
    return "".join(f'<op id="{resource}-{name}" name="{name}" interval="0s" timeout="30s"/>' for name in names)
