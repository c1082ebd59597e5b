"""Engine `debian`: the distribution's corosync and pacemaker, fencing through the laboratory's power switch."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

import jinja2

from vagrant.description import LabDescription
from vagrant.engines import Engine, Fencing

HERE = Path(__file__).parent
FENCE_AGENT = HERE / "fence_lab"
PACKAGES = "corosync pacemaker pacemaker-cli-utils resource-agents"
RING_NETWORKS = ("heartbeat", "data")
"""One knet link each, in this order of preference."""
PRIORITY_FENCING_DELAY_S = 2
"""Head start of the node that runs the service when both nodes shoot; the survivor of a real crash pays it too."""


class Debian(Engine):
    name = "debian"

    def install(self, lab: LabDescription, node: str, fencing: Fencing, root: Path) -> list[list[str]]:
        if shutil.which("pacemakerd", path="/usr/sbin:/sbin") is None:
            raise LookupError(f"engine debian: pacemakerd is missing; apt-get install {PACKAGES}")
        templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined,
            trim_blocks=True, lstrip_blocks=True, autoescape=False, keep_trailing_newline=True,
        )  # fmt: skip
        facts = {
            "cluster_name": lab.cluster_name, "members": lab.cluster_nodes, "links": RING_NETWORKS,
            "fencing": fencing is Fencing.POWER_SWITCH, "priority_fencing_delay_s": PRIORITY_FENCING_DELAY_S,
        }  # fmt: skip
        _write(root / "etc/corosync/corosync.conf", templates.get_template("corosync.conf.j2").render(facts))
        _write(root / "etc/corosync/authkey", _authentication_key(lab), mode=0o400)
        _write(
            root / "usr/local/sbin/start-cluster", templates.get_template("start-cluster.j2").render(facts), mode=0o755
        )
        _write(root / "usr/sbin/fence_lab", FENCE_AGENT.read_text(encoding="utf-8"), mode=0o755)
        owner = pwd.getpwnam("hacluster")
        cib = root / "var/lib/pacemaker/cib/cib.xml"
        _write(cib, templates.get_template("cib.xml.j2").render(facts), mode=0o600)
        for path in (cib, cib.parent, cib.parent.parent):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        for directory in (cib.parent, cib.parent.parent):
            directory.chmod(0o750)
        for log in ("var/log/pacemaker", "var/log/corosync", "var/log/cluster"):
            (root / log).mkdir(parents=True)
        os.chown(root / "var/log/pacemaker", owner.pw_uid, owner.pw_gid)
        return [["/usr/local/sbin/start-cluster"]]


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def _authentication_key(lab: LabDescription) -> str:
    """The same on every node of one laboratory, and worth nothing outside of it: its network ends in its namespaces."""
    return (lab.cluster_name * 256)[:256]
