"""The hub: one bridge for each network, one cable for each NIC, in the laboratory's own network namespace.

Touches the kernel, decides nothing: which frames pass is written by `rules`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vagrant.description import LabDescription, Network, Node
from vagrant.namespaces.rules import CableFaults, Ports, ruleset

DELAY_RELAY = Path(__file__).parent / "delay_relay.py"
APPEAR_DEADLINE_S = 5.0


class Hub:
    """Bridges and cables. A cable's end at the hub is called `<node>.<nic>`."""

    def __init__(self, description: LabDescription) -> None:
        self.description = description
        self.faults = CableFaults()
        self.route = IPRoute()
        self.plugged: set[tuple[str, str]] = set()
        """(network, node) of the cables that exist, whether or not they carry anything."""
        self.pulled: set[tuple[str, str]] = set()
        """(network, node) of the cables that someone pulled: they stay so when the node is switched off and on."""
        self.relays: dict[tuple[str, str], subprocess.Popen[str]] = {}
        self.delay_ms: dict[str, int] = {}

    def build(self) -> None:
        self.route.link("set", index=self._index("lo"), state="up")
        for network in self.description.networks.values():
            self.route.link("add", ifname=network.name, kind="bridge", br_forward_delay=0)
            index = self._index(network.name)
            # without this a bridge reports itself as an IGMP querier and floods captures
            self.route.link("set", index=index, kind="bridge", br_mcast_snooping=0, state="up")
            if network.gateway is not None:
                self.route.addr("add", index=index, address=str(network.gateway), prefixlen=network.subnet.prefixlen)

    def plug_in(self, node: Node, init_pid: int) -> None:
        """Give a freshly started node its NICs, addresses and default route. Raises NetlinkError."""
        for name in node.addresses:
            network = self.description.networks[name]
            port = port_name(network, node)
            peer = {
                "ifname": network.nic,
                "net_ns_pid": init_pid,
                "address": node.mac(self.description.network_index(name)),
            }
            self.route.link("add", ifname=port, kind="veth", peer=peer)
            self.route.link("set", index=self._index(port), state="up")
            self.plugged.add((name, node.name))
            if name in self.delay_ms:
                self._insert_relay(network, node)
            else:
                self.route.link("set", index=self._index(port), master=self._index(name))
        with self._inside(init_pid) as inside:
            inside.link("set", index=inside.link_lookup(ifname="lo")[0], state="up")
            for name, interface in node.addresses.items():
                network = self.description.networks[name]
                index = inside.link_lookup(ifname=network.nic)[0]
                inside.link("set", index=index, state="up")
                inside.addr(
                    "add", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen,
                    broadcast=str(interface.network.broadcast_address),
                )  # fmt: skip
                if network.gateway is not None:
                    inside.route("add", dst="default", gateway=str(network.gateway))
        for name in node.addresses:
            if (name, node.name) in self.pulled:
                self._set_port(node, self.description.networks[name], "down")
        self.apply()

    def unplug(self, node: Node) -> None:
        """Remove the node's cables. A cable that went away with its node's namespace is no error."""
        for name in node.addresses:
            network = self.description.networks[name]
            self._remove_relay(network, node)
            self._delete(port_name(network, node))
            self.plugged.discard((name, node.name))
        self.apply()

    def set_carrier(self, node: Node, network: Network, state: str) -> None:
        """`state` "down" pulls the cable at the hub: the node's NIC loses its carrier. It stays pulled until "up"."""
        if state == "down":
            self.pulled.add((network.name, node.name))
        else:
            self.pulled.discard((network.name, node.name))
        self._set_port(node, network, state)

    def silence(self, node: Node) -> None:
        """No word of this node gets out any more: all its cables lose their carrier until it is plugged in again."""
        for name in node.addresses:
            self._set_port(node, self.description.networks[name], "down")

    def _set_port(self, node: Node, network: Network, state: str) -> None:
        """A cable that is not there, of a node that is off or lost its NIC, needs nothing."""
        for index in self.route.link_lookup(ifname=port_name(network, node)):
            self.route.link("set", index=index, state=state)

    def apply(self) -> None:
        """Let the faults as they are now take effect. Raises subprocess.CalledProcessError."""
        subprocess.run(["nft", "-f", "-"], input=ruleset(self.faults, self._ports()), text=True, check=True)

    def set_delay(self, network: Network, delay_ms: int) -> None:
        """Each frame on `network` arrives `delay_ms` later; 0 removes the relays."""
        if delay_ms > 0:
            self.delay_ms[network.name] = delay_ms
        else:
            self.delay_ms.pop(network.name, None)
        for name, node_name in sorted(self.plugged):
            if name != network.name:
                continue
            node = self.description.nodes[node_name]
            self._remove_relay(network, node)
            if delay_ms > 0:
                self._insert_relay(network, node)
        self.apply()

    def _insert_relay(self, network: Network, node: Node) -> None:
        """cable - small bridge - tap a - relay - tap b - network: half of the delay on each node's cable."""
        port = port_name(network, node)
        near, far, small = f"{port}.a", f"{port}.b", f"{port}.m"
        relay = subprocess.Popen(
            ["/usr/bin/python3", "-IS", str(DELAY_RELAY), near, far, "--ms", str(self.delay_ms[network.name] / 2)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.relays[network.name, node.name] = relay
        self.route.link("add", ifname=small, kind="bridge", br_forward_delay=0)
        self.route.link("set", index=self._index(small), state="up")
        for tap, master in ((near, small), (far, network.name)):
            self.route.link("set", index=self._wait_for(tap), master=self._index(master), state="up")
        self.route.link("set", index=self._index(port), master=self._index(small))

    def _remove_relay(self, network: Network, node: Node) -> None:
        relay = self.relays.pop((network.name, node.name), None)
        if relay is None:
            return
        relay.kill()
        relay.wait()
        port = port_name(network, node)
        self._delete(f"{port}.m")
        with contextlib.suppress(LookupError, NetlinkError):
            self.route.link("set", index=self._index(port), master=self._index(network.name))

    def _ports(self) -> Ports:
        ports: Ports = {}
        for name, node_name in self.plugged:
            port = port_name(self.description.networks[name], self.description.nodes[node_name])
            ports[name, node_name] = (port, f"{port}.b") if (name, node_name) in self.relays else (port,)
        return ports

    def _index(self, name: str) -> int:
        found = self.route.link_lookup(ifname=name)
        if not found:
            raise LookupError(f"the hub has no interface {name}")
        return int(found[0])

    def _wait_for(self, name: str) -> int:
        deadline = time.monotonic() + APPEAR_DEADLINE_S
        while True:
            found = self.route.link_lookup(ifname=name)
            if found:
                return int(found[0])
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the delay relay did not make {name} within {APPEAR_DEADLINE_S} s; is /dev/net/tun usable?"
                )
            time.sleep(0.005)

    def _delete(self, name: str) -> None:
        for index in self.route.link_lookup(ifname=name):
            try:
                self.route.link("del", index=index)
            except NetlinkError as error:
                if error.code != errno.ENODEV:
                    raise

    @contextlib.contextmanager
    def _inside(self, pid: int) -> Iterator[IPRoute]:
        """A netlink socket that belongs to the network namespace of process `pid`."""
        with IPRoute(netns=f"/proc/{pid}/ns/net", flags=os.O_RDONLY) as inside:
            yield inside


def port_name(network: Network, node: Node) -> str:
    return f"{node.name}.{network.nic}"
