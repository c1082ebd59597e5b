"""What the laboratory is: lab.toml as frozen dataclasses.

Pure: text in, description out. Whoever builds the laboratory (virtual machines or namespaces) reads it from here or,
where Python is not at hand (Vagrantfile), from the same file.
"""

from __future__ import annotations

import ipaddress
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAB_TOML = Path(__file__).parent / "lab.toml"
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class DescriptionError(Exception):
    """lab.toml says something that cannot be built. Names the table, the fact and the remedy."""

    def __init__(self, table: str, fact: str, remedy: str) -> None:
        super().__init__(f"lab.toml [{table}]: {fact}; {remedy}")


@dataclass(frozen=True)
class Network:
    name: str
    subnet: ipaddress.IPv4Network
    nic: str
    gateway: ipaddress.IPv4Address | None


@dataclass(frozen=True)
class Disk:
    name: str
    size_bytes: int
    device: str
    seed: int


@dataclass(frozen=True)
class Node:
    name: str
    number: int
    in_cluster: bool
    addresses: dict[str, ipaddress.IPv4Interface]
    """Network name -> address with the network's prefix length."""
    disk: Disk | None

    def mac(self, network_index: int) -> str:
        """The same locally administered address at each boot, so that captures of two runs can be compared."""
        return f"02:4c:41:42:{network_index:02x}:{self.number:02x}"


@dataclass(frozen=True)
class SerialLine:
    name: str
    nodes: tuple[str, str]
    device: str
    baud: int


@dataclass(frozen=True)
class LabDescription:
    name: str
    cluster_name: str
    networks: dict[str, Network]
    nodes: dict[str, Node]
    serial: tuple[SerialLine, ...]

    @property
    def cluster_nodes(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.in_cluster]

    def network_index(self, network: str) -> int:
        return list(self.networks).index(network)


def read(path: Path = LAB_TOML) -> LabDescription:
    """The description in the file at `path`. Raises DescriptionError, OSError, tomllib.TOMLDecodeError."""
    return parse(path.read_text(encoding="utf-8"))


def parse(text: str) -> LabDescription:
    """The description in `text` (TOML). Raises DescriptionError, tomllib.TOMLDecodeError."""
    table: dict[str, Any] = tomllib.loads(text)
    networks = {name: _network(name, entry) for name, entry in table.get("network", {}).items()}
    disks = {name: _disk(name, entry) for name, entry in table.get("disk", {}).items()}
    nodes = {name: _node(name, entry, networks, disks) for name, entry in table.get("node", {}).items()}
    serial = tuple(_serial(name, entry, nodes) for name, entry in table.get("serial", {}).items())
    if not nodes:
        raise DescriptionError("node", "no node is described", "add a table [node.alpha]")
    numbers = [node.number for node in nodes.values()]
    if len(set(numbers)) != len(numbers):
        raise DescriptionError("node", "two nodes have the same number", "give each its own")
    lab = table.get("lab", {})
    return LabDescription(str(lab.get("name", "lab")), str(lab.get("cluster", "cluster")), networks, nodes, serial)


def _required(table: str, entry: dict[str, Any], key: str) -> Any:
    if key not in entry:
        raise DescriptionError(table, f'"{key}" is missing', f"add {key} = ...")
    return entry[key]


def _network(name: str, entry: dict[str, Any]) -> Network:
    table = f"network.{name}"
    gateway = entry.get("gateway")
    try:
        subnet = ipaddress.IPv4Network(_required(table, entry, "subnet"))
    except ValueError as error:
        raise DescriptionError(table, str(error), 'write it as "192.168.56.0/24"') from error
    return Network(
        name, subnet, str(_required(table, entry, "nic")), ipaddress.IPv4Address(gateway) if gateway else None
    )


def _node(name: str, entry: dict[str, Any], networks: dict[str, Network], disks: dict[str, Disk]) -> Node:
    table = f"node.{name}"
    addresses = {}
    for network in networks.values():
        if network.name not in entry:
            continue
        address = ipaddress.IPv4Address(entry[network.name])
        if address not in network.subnet:
            raise DescriptionError(
                table, f"{address} is outside {network.subnet}", f"choose one of [network.{network.name}]"
            )
        addresses[network.name] = ipaddress.IPv4Interface(f"{address}/{network.subnet.prefixlen}")
        if len(f"{name}.{network.nic}.b") > 15:
            raise DescriptionError(table, "name and NIC are too long for an interface name", "use at most 8 letters")
    disk = entry.get("disk")
    if disk is not None and disk not in disks:
        raise DescriptionError(table, f'disk "{disk}" is not described', f"add a table [disk.{disk}]")
    return Node(
        name, int(_required(table, entry, "number")), bool(entry.get("cluster", False)), addresses,
        disks[disk] if disk is not None else None,
    )  # fmt: skip


def _disk(name: str, entry: dict[str, Any]) -> Disk:
    table = f"disk.{name}"
    text = str(_required(table, entry, "size"))
    unit = UNITS.get(text[-3:])
    if unit is None or not text[:-3].isdigit():
        raise DescriptionError(table, f'size "{text}" is not understood', 'write it as "256MiB"')
    return Disk(name, int(text[:-3]) * unit, str(_required(table, entry, "device")), int(entry.get("seed", 0)))


def _serial(name: str, entry: dict[str, Any], nodes: dict[str, Node]) -> SerialLine:
    table = f"serial.{name}"
    ends = _required(table, entry, "nodes")
    if len(ends) != 2 or any(end not in nodes for end in ends):
        raise DescriptionError(table, "a serial line joins two described nodes", 'write nodes = ["alpha", "beta"]')
    return SerialLine(name, (ends[0], ends[1]), str(_required(table, entry, "device")), int(entry.get("baud", 115200)))
