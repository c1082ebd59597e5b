from __future__ import annotations

import pytest

from vagrant import description
from vagrant.description import DescriptionError

SMALL = """
[network.public]
subnet = "10.0.0.0/24"
nic = "eth1"
[disk.data]
size = "64MiB"
device = "/dev/vdb"
[node.alpha]
number = 1
cluster = true
public = "10.0.0.1"
disk = "data"
"""


def test_the_laboratory_has_two_nodes_a_client_three_networks_and_a_serial_line() -> None:
    lab = description.read()
    assert [node.name for node in lab.cluster_nodes] == ["alpha", "beta"]
    assert set(lab.nodes) - {"alpha", "beta"} == {"client"}
    assert list(lab.networks) == ["public", "heartbeat", "data"]
    assert [line.nodes for line in lab.serial] == [("alpha", "beta")]
    assert all(node.disk for node in lab.cluster_nodes)


def test_sizes_become_bytes_and_addresses_carry_their_prefix() -> None:
    node = description.parse(SMALL).nodes["alpha"]
    assert node.disk is not None
    assert node.disk.size_bytes == 64 << 20
    assert str(node.addresses["public"]) == "10.0.0.1/24"


def test_each_cable_has_a_mac_of_its_own() -> None:
    lab = description.read()
    macs = [node.mac(lab.network_index(name)) for node in lab.nodes.values() for name in node.addresses]
    assert len(set(macs)) == len(macs)


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ('public = "10.0.0.1"', 'public = "10.1.0.1"', "10.1.0.1 is outside 10.0.0.0/24"),
        ('disk = "data"', 'disk = "lost"', 'disk "lost" is not described'),
        ('size = "64MiB"', 'size = "64"', 'size "64" is not understood'),
        ("number = 1", "", '"number" is missing'),
        ('subnet = "10.0.0.0/24"', 'subnet = "10.0.0.1/24"', "network.public"),
        ("[node.alpha]", "[node.alphabetically]", "too long for an interface name"),
    ],
)
def test_a_description_that_cannot_be_built_names_its_table(before: str, after: str, named: str) -> None:
    with pytest.raises(DescriptionError, match=r"lab\.toml \[") as caught:
        description.parse(SMALL.replace(before, after))
    assert named in str(caught.value)


def test_two_nodes_with_one_number_are_refused() -> None:
    twin = SMALL + '[node.beta]\nnumber = 1\npublic = "10.0.0.2"\n'
    with pytest.raises(DescriptionError, match="same number"):
        description.parse(twin)
