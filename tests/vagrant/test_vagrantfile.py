"""The Vagrantfile describes the laboratory of lab.toml: Vagrant accepts it, and the machines that it defines are those.

A stand-in for Vagrant notes every setting, also those inside the blocks of hypervisors that are not installed here.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vagrant import description

VAGRANT_DIRECTORY = Path(__file__).resolve().parents[2] / "vagrant"
DEADLINE_S = 120.0

RECORDER = """
require "json"
$said = []
class Recorder < BasicObject
  def initialize(path) = @path = path
  def respond_to_missing?(*) = true
  def method_missing(name, *arguments, **options, &block)
    path = [*@path, name.to_s.delete_suffix("=")]
    $said << [path, arguments, options] unless arguments.empty? && options.empty? && block.nil?
    inside = ::Recorder.new([*path, *arguments.first(1)])
    block&.call(inside)
    inside
  end
end
module Vagrant
  def self.configure(version) = yield(Recorder.new([]))
end
load ARGV[0]
puts JSON.dump($said)
"""


def tool(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is missing; apt-get install --no-install-recommends vagrant (it brings ruby along)"
    return found


class Said:
    """What the Vagrantfile says: settings by where they stand."""

    def __init__(self, settings: list[tuple[list[str], list[Any], dict[str, Any]]]) -> None:
        self.settings = settings

    def calls(self, *path: str) -> Iterator[tuple[list[Any], dict[str, Any]]]:
        for where, arguments, options in self.settings:
            if where == list(path):
                yield arguments, options

    def machine(self, name: str, *path: str) -> list[tuple[list[Any], dict[str, Any]]]:
        return list(self.calls("vm", "define", name, *path))


@pytest.fixture(scope="module")
def said() -> Said:
    done = subprocess.run(
        [tool("ruby"), "-e", RECORDER, str(VAGRANT_DIRECTORY / "Vagrantfile")],
        capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Said([(path, arguments, options) for path, arguments, options in json.loads(done.stdout)])


@pytest.fixture(scope="module")
def lab() -> description.LabDescription:
    return description.read()


def test_vagrant_accepts_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [tool("vagrant"), "validate", "--ignore-provider"],
        cwd=VAGRANT_DIRECTORY, capture_output=True, text=True, timeout=DEADLINE_S,
        env=os.environ | {
            "VAGRANT_HOME": str(tmp_path / "home"),
            "VAGRANT_DOTFILE_PATH": str(tmp_path / "state"),
            "VAGRANT_CHECKPOINT_DISABLE": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated successfully" in done.stdout


def test_each_node_of_the_description_is_one_machine_of_its_name(said: Said, lab: description.LabDescription) -> None:
    assert [arguments[0] for arguments, _ in said.calls("vm", "define")] == list(lab.nodes)
    for name in lab.nodes:
        assert said.machine(name, "vm", "hostname") == [([name], {})]


def test_each_machine_has_the_addresses_described_in_the_order_of_its_interfaces(
    said: Said, lab: description.LabDescription
) -> None:
    for name, node in lab.nodes.items():
        by_nic = sorted(node.addresses, key=lambda network: lab.networks[network].nic)
        assert [lab.networks[network].nic for network in by_nic] == [f"eth{index + 1}" for index in range(len(by_nic))]
        defined = said.machine(name, "vm", "network")
        assert [arguments for arguments, _ in defined] == [["private_network"]] * len(by_nic)
        assert [(options["ip"], options["netmask"], options["libvirt__network_name"]) for _, options in defined] == [
            (str(node.addresses[network].ip), str(node.addresses[network].netmask), f"{lab.name}-{network}")
            for network in by_nic
        ]


def test_only_a_network_with_a_gateway_reaches_the_machine_that_runs_the_laboratory(
    said: Said, lab: description.LabDescription
) -> None:
    networks = {f"{lab.name}-{name}": network for name, network in lab.networks.items()}
    for name in lab.nodes:
        for _, options in said.machine(name, "vm", "network"):
            label = options["libvirt__network_name"]
            closed = networks[label].gateway is None
            assert (options.get("libvirt__forward_mode") == "none") == closed
            assert options.get("virtualbox__intnet") == (label if closed else None)


def test_each_node_has_its_disk_under_both_hypervisors_and_no_other(
    said: Said, lab: description.LabDescription
) -> None:
    for name, node in lab.nodes.items():
        libvirt = said.machine(name, "vm", "provider", "libvirt", "storage")
        customized = [arguments[0] for arguments, _ in said.machine(name, "vm", "provider", "virtualbox", "customize")]
        created = [words for words in customized if words[0] == "createmedium"]
        attached = [words for words in customized if words[0] == "storageattach"]
        (environment,) = [options["env"] for _, options in said.machine(name, "vm", "provision")]
        if node.disk is None:
            assert (libvirt, created, attached, environment["LAB_DISK"]) == ([], [], [], "")
            continue
        mebibytes = node.disk.size_bytes >> 20
        device = Path(node.disk.device).name
        assert libvirt == [(["file"], {"size": f"{mebibytes}M", "device": device, "bus": "virtio"})]
        assert [words[words.index("--size") + 1] for words in created] in ([str(mebibytes)], [])  # made only once
        assert [words[words.index("--medium") + 1] for words in attached] == [
            str(VAGRANT_DIRECTORY / ".vagrant" / f"{name}-{node.disk.name}.vdi")
        ]
        assert environment["LAB_DISK"] == node.disk.device


def test_each_serial_line_joins_its_two_nodes_and_only_one_end_listens(
    said: Said, lab: description.LabDescription
) -> None:
    for line in lab.serial:
        port = int(line.device.removeprefix("/dev/ttyS"))
        sockets, listening = set(), []
        for name in line.nodes:
            values = [options["value"] for _, options in said.machine(name, "vm", "provider", "libvirt", "qemuargs")]
            socket = next(value for value in values if value.startswith(f"socket,id={line.name},"))
            assert f"isa-serial,chardev={line.name},index={port}" in values
            words = dict(word.split("=", 1) for word in socket.split(",")[1:])
            sockets.add(words["path"])
            listening.append("server" in words)
            customized = [words[0] for words, _ in said.machine(name, "vm", "provider", "virtualbox", "customize")]
            (mode,) = [words for words in customized if f"--uartmode{port + 1}" in words]
            assert mode[3] == ("server" if listening[-1] else "client")
            sockets.add(mode[4])
            (environment,) = [options["env"] for _, options in said.machine(name, "vm", "provision")]
            assert f"{line.device} {line.baud}" in environment["LAB_SERIAL"].splitlines()
        assert len(sockets) == 1
        assert listening == [True, False]
    ends = {name for line in lab.serial for name in line.nodes}
    for name in set(lab.nodes) - ends:
        assert said.machine(name, "vm", "provider", "libvirt", "qemuargs") == []


def test_every_machine_is_provisioned_by_the_script_with_all_hosts_and_its_part(
    said: Said, lab: description.LabDescription
) -> None:
    hosts = [f"{node.addresses['public'].ip} {name}" for name, node in lab.nodes.items()]
    for name, node in lab.nodes.items():
        ((arguments, options),) = said.machine(name, "vm", "provision")
        assert arguments == ["shell"]
        assert (VAGRANT_DIRECTORY / options["path"]).is_file()
        assert options["env"]["LAB_HOSTS"].splitlines() == hosts
        assert options["env"]["LAB_CLUSTER"] == ("yes" if node.in_cluster else "no")


def test_the_provisioning_script_is_sound_shell() -> None:
    subprocess.run(["/bin/sh", "-n", str(VAGRANT_DIRECTORY / "provision" / "node.sh")], check=True)
