"""The laboratory's supervisor: PID 1 of its PID namespace, and its only state.

Everything the laboratory starts lives below this process: nodes, disks, relays. So when it ends, for whatever reason,
the kernel ends all of them and their namespaces, mounts, bridges and loop devices with them. It serves one request at a
time from two sockets: `control` (all verbs) and `power` (the mains switch that fence agents work).
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from vagrant import description as lab_description
from vagrant.engines import Engine, Fencing, catalogue
from vagrant.namespaces.hub import Hub
from vagrant.namespaces.machine import PYTHON, Machine, MachineError, Power
from vagrant.namespaces.rules import Cut
from vagrant.namespaces.serial_line import Fault as SerialFault
from vagrant.namespaces.serial_line import after_order

RUN = Path("/run/lab")
CONTROL, POWER_SWITCH = RUN / "control", RUN / "power"
SERIAL_LINE = Path(__file__).parent / "serial_line.py"
PROJECT = Path(__file__).resolve().parents[2]
REQUEST_TIMEOUT_S = 5.0
REQUEST_BYTES_MAX = 65536
DELAY_MS_MAX = 120_000
"""Two relays share it; each takes up to a minute."""


class VerbError(Exception):
    """The laboratory cannot do what was asked. Names the object, the fact and the remedy."""

    def __init__(self, what: str, fact: str, remedy: str) -> None:
        super().__init__(f"{what}: {fact}; {remedy}")


class Supervisor:
    """Carries out verbs, by methods named like them. Each raises MachineError or VerbError for what does not exist."""

    def __init__(self, engine: Engine, fencing: Fencing, layers: list[str], disk_directory: str) -> None:
        self.description = lab_description.read()
        self.engine = engine
        self.keep = "random"
        shared = [str(PROJECT)]
        self.machines = {
            name: Machine(node, RUN / "nodes" / name, layers, shared, disk_directory)
            for name, node in self.description.nodes.items()
        }
        self.serial = self._join_serial_lines()
        for name, machine in self.machines.items():
            machine.outlets = [str(POWER_SWITCH)]
            if self.description.nodes[name].in_cluster:
                machine.programs = engine.install(self.description, name, fencing, machine.root_upper)
        self.hub = Hub(self.description)
        self.verbs: dict[str, Callable[..., Any]] = {
            "power-cut": self.power_cut, "power-on": self.power_on, "power-status": self.power_status,
            "power-list": self.power_list,
            "pause": self.pause, "resume": self.resume,
            "nic-down": self.nic_down, "nic-up": self.nic_up,
            "cut": self.cut, "heal": self.heal, "loss": self.loss, "delay": self.delay,
            "disk": self.disk, "disk-keep": self.disk_keep, "serial": self.serial_fault,
            "status": self.status, "down": self.down,
        }  # fmt: skip

    def build(self) -> None:
        """Hub, cables and nodes, all nodes at once."""
        self.hub.build()
        self._start(list(self.machines.values()))

    # power

    def power_cut(self, node: str) -> None:
        """Cables first, then the disk, then the processor: a dying kernel gets no word out, neither FIN nor write."""
        machine = self._machine(node)
        if machine.power is Power.OFF:
            return
        self.hub.silence(machine.node)
        if machine.disk is not None:
            machine.tell_disk(do="freeze")
        self._switched_off(machine, self.keep)

    def _switched_off(self, machine: Machine, keep: str) -> None:
        machine.kill()
        self.hub.faults.silent.discard(machine.node.name)
        self.hub.unplug(machine.node)
        if machine.disk is not None:
            machine.tell_disk(do="power-loss", keep=keep)

    def power_on(self, node: str) -> None:
        machine = self._machine(node)
        if machine.power is Power.OFF:
            self._start([machine])

    def power_status(self, node: str) -> str:
        return "off" if self._machine(node).power is Power.OFF else "on"

    def power_list(self) -> list[str]:
        return list(self.machines)

    def pause(self, node: str) -> None:
        machine = self._machine(node)
        machine.pause()
        self.hub.faults.silent.add(node)
        self.hub.apply()

    def resume(self, node: str) -> None:
        machine = self._machine(node)
        machine.resume()
        self.hub.faults.silent.discard(node)
        self.hub.apply()

    # cables

    def nic_down(self, node: str, nic: str) -> None:
        self._set_carrier(node, nic, "down")

    def nic_up(self, node: str, nic: str) -> None:
        self._set_carrier(node, nic, "up")

    def cut(self, network: str, source: str | None = None, target: str | None = None) -> None:
        self._network(network)
        for name in (source, target):
            if name is not None and network not in self._machine(name).node.addresses:
                attached = ", ".join(self._machine(name).node.addresses)
                raise MachineError(name, f"is not on network {network}", f"choose one of {attached}")
        if source is not None and source == target:
            raise MachineError(source, "sends nothing to itself over a cable", "give two nodes")
        self.hub.faults.cuts.add(Cut(network, source, target))
        self.hub.apply()

    def heal(self, network: str | None = None) -> None:
        """End every cut, loss and delay on one network, or on all."""
        names = [self._network(network)] if network is not None else list(self.description.networks)
        self.hub.faults.cuts = {cut for cut in self.hub.faults.cuts if cut.network not in names}
        for name in names:
            self.hub.faults.loss_percent.pop(name, None)
            if name in self.hub.delay_ms:
                self.hub.set_delay(self.description.networks[name], 0)
        self.hub.apply()

    def loss(self, network: str, percent: int) -> None:
        if not 0 <= percent <= 100:
            raise VerbError(f"network {network}", f"{percent} % of the frames cannot get lost", "give 0 to 100")
        self.hub.faults.loss_percent[self._network(network)] = percent
        if percent == 0:
            del self.hub.faults.loss_percent[network]
        self.hub.apply()

    def delay(self, network: str, delay_ms: int) -> None:
        self._network(network)
        if not 0 <= delay_ms <= DELAY_MS_MAX:
            raise VerbError(
                f"network {network}", f"a delay of {delay_ms} ms is not possible", f"give 0 to {DELAY_MS_MAX}"
            )
        self.hub.set_delay(self.description.networks[network], delay_ms)

    # disks and serial lines

    def disk(self, node: str, **request: Any) -> dict[str, Any]:
        return self._machine(node).tell_disk(**request)

    def disk_keep(self, keep: str) -> None:
        """What the next power cuts leave of unflushed sectors: none, all or random."""
        if keep not in ("none", "all", "random"):
            raise VerbError("disk-keep", f'"{keep}" is no way to lose power', "choose none, all or random")
        self.keep = keep

    def serial_fault(self, fault: str) -> None:
        try:
            after_order(SerialFault(), fault)
        except ValueError as error:
            raise VerbError(
                "serial line", f'"{fault}" is no fault of it', "give cut, heal, or noise 0 to 100"
            ) from error
        for line in self.serial:
            assert line.stdin is not None
            line.stdin.write(fault + "\n")
            line.stdin.flush()

    # the laboratory

    def status(self) -> dict[str, Any]:
        for name in self.machines:
            self._machine(name)
        return {
            "name": self.description.name,
            "engine": self.engine.name,
            "nodes": {
                name: {
                    "power": machine.power.value,
                    "unshare_pid": machine.unshare.pid if machine.unshare else None,
                    "boots": machine.boots,
                }
                for name, machine in self.machines.items()
            },
            "pulled": sorted([node, network] for network, node in self.hub.pulled),
            "cuts": [[cut.network, cut.source, cut.target] for cut in self.hub.faults.cuts],
            "loss_percent": self.hub.faults.loss_percent,
            "delay_ms": self.hub.delay_ms,
        }

    def down(self) -> None:
        raise SystemExit(0)

    def end(self) -> None:
        """Switch all nodes off, one after the other.

        The kernel would end them with us; but what dies in any order may have nbdfuse as the last holder of a node's
        mounts, and that waits for itself for ever (see Machine.kill).
        """
        for machine in self.machines.values():
            if machine.power is not Power.OFF:
                machine.kill()

    def _start(self, machines: list[Machine]) -> None:
        for machine in machines:
            if machine.disk is not None:
                machine.tell_disk(do="thaw")
            machine.start()
        for machine in machines:
            self.hub.plug_in(machine.node, machine.wait_until_mounted())
            machine.let_boot()

    def _set_carrier(self, node: str, nic: str, state: str) -> None:
        machine = self._machine(node)
        choices = []
        for name in machine.node.addresses:
            network = self.description.networks[name]
            if nic in (network.nic, name):
                self.hub.set_carrier(machine.node, network, state)
                return
            choices.append(f"{network.nic} ({name})")
        raise MachineError(node, f"has no NIC {nic}", f"choose one of {', '.join(choices)}")

    def _machine(self, name: str) -> Machine:
        if name not in self.machines:
            raise MachineError(name, "is not in this laboratory", f"choose one of {', '.join(self.machines)}")
        machine = self.machines[name]
        if machine.ended_by_itself:  # it halted; its disk kept its power
            if machine.disk is not None:
                machine.tell_disk(do="freeze")
            self._switched_off(machine, "all")
        return machine

    def _network(self, name: str) -> str:
        if name not in self.description.networks:
            choices = ", ".join(self.description.networks)
            raise VerbError(f"network {name}", "is not in this laboratory", f"choose one of {choices}")
        return name

    def _join_serial_lines(self) -> list[subprocess.Popen[str]]:
        lines = []
        for line in self.description.serial:
            links = [RUN / f"serial.{line.name}.{end}" for end in line.nodes]
            relay = subprocess.Popen(
                [*PYTHON, str(SERIAL_LINE), *map(str, links), "--baud", str(line.baud)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert relay.stdout is not None
            if relay.stdout.readline().strip() != "ready":
                raise MachineError(line.name, "the serial line did not come up", "see the messages above")
            lines.append(relay)
            for end, link in zip(line.nodes, links, strict=True):
                self.machines[end].serial = {"device": line.device, "link": str(link)}
        return lines


POWER_VERBS = frozenset({"power-cut", "power-on", "power-status", "power-list"})


class Outlet:
    """A listening unix socket: one JSON request a connection, {"verb": ..., "arguments": {...}}, one JSON answer."""

    def __init__(self, path: Path, verbs: dict[str, Callable[..., Any]]) -> None:
        self.verbs = verbs
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(str(path))
        self.socket.listen(16)

    def serve_one(self) -> None:
        connection, _ = self.socket.accept()
        with connection:
            connection.settimeout(REQUEST_TIMEOUT_S)
            try:
                request = json.loads(connection.makefile("rb").readline(REQUEST_BYTES_MAX))
                answer = {"result": self._carry_out(request["verb"], request.get("arguments", {}))}
            except SystemExit:
                connection.sendall(b'{"result": null}\n')
                raise
            except (MachineError, VerbError) as error:
                answer = {"error": str(error)}
            except (NetlinkError, LookupError, OSError, ValueError, TypeError, subprocess.SubprocessError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            try:
                connection.sendall(json.dumps(answer).encode() + b"\n")
            except OSError:
                return  # the caller is gone, often with the node we have just switched off

    def _carry_out(self, verb: str, arguments: dict[str, Any]) -> Any:
        if verb not in self.verbs:
            raise ValueError(f'unknown verb "{verb}"; choose one of {", ".join(self.verbs)}')
        return self.verbs[verb](**arguments)


def main() -> None:
    parser = argparse.ArgumentParser(prog="supervisor", description=__doc__)
    parser.add_argument("--engine", default="none")
    parser.add_argument("--fencing", default="power-switch", choices=[kind.value for kind in Fencing])
    parser.add_argument("--layer", action="append", default=[], help="directory copied over each node's root")
    parser.add_argument("--disk-directory", default="/var/tmp")
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # PID 1 ignores what it does not handle
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # /run is replaced, not extended: in this mount namespace nobody else needs it, and nothing is left on the machine
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True)
    RUN.mkdir()
    power: dict[str, Callable[..., Any]] = {}
    switch = Outlet(POWER_SWITCH, power)
    engine = catalogue.engine(options.engine)
    supervisor = Supervisor(engine, Fencing(options.fencing), options.layer, options.disk_directory)
    power.update({verb: carry_out for verb, carry_out in supervisor.verbs.items() if verb in POWER_VERBS})
    supervisor.build()
    control = Outlet(CONTROL, supervisor.verbs)
    loop = selectors.DefaultSelector()
    loop.register(control.socket, selectors.EVENT_READ, control.serve_one)
    loop.register(switch.socket, selectors.EVENT_READ, switch.serve_one)

    def owner_speaks() -> None:
        if not os.read(0, 4096):
            sys.exit(0)
        loop.unregister(sys.stdin)  # whatever it says means: go on without me

    loop.register(sys.stdin, selectors.EVENT_READ, owner_speaks)
    print("ready", flush=True)
    ourselves = os.getpid()
    try:
        while True:
            for key, _ in loop.select():
                key.data()
    finally:
        # what pyroute2 forks is ended by SIGTERM, and comes by here too
        if os.getpid() == ourselves:
            supervisor.end()


if __name__ == "__main__":
    main()
