"""The laboratory on the command line: bring it up, work in its nodes, break it. `vagrant/lab -h` lists the verbs."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vagrant.engines.layers import Layers
from vagrant.namespaces.lab import CLEAN_ENVIRONMENT, Lab, LabError

REGISTRY = Path(os.environ.get("MIRRORHA_LAB", "/run/mirrorha-lab.json"))
"""Which laboratory the verbs mean: the one brought up by `up`. A second one needs another file in MIRRORHA_LAB."""
LOG = REGISTRY.with_suffix(".log")
"""Messages of that laboratory; not the terminal, which a `vagrant/lab up | tee` would then never let go."""
DOWN_DEADLINE_S = 3.0

EXAMPLES = """examples:
  vagrant/lab up --engine debian       two nodes with Debian's corosync and pacemaker, and a client
  vagrant/lab shell alpha              a shell in a node
  vagrant/lab run beta crm_mon -1      one command in a node
  vagrant/lab power-cut alpha          what a pulled mains plug does
  vagrant/lab cut heartbeat --from alpha --to beta
  vagrant/lab heal                     ends every cut, loss and delay
  vagrant/lab serial "noise 5"         one byte in twenty arrives damaged
  vagrant/lab down
  MIRRORHA_LAB=/run/second.json vagrant/lab up      one more beside it; so for its verbs too
"""


def main() -> None:
    options = parser().parse_args()
    try:
        options.carry_out(options)
    except LabError as error:
        sys.exit(f"lab: {error}")


def up(options: argparse.Namespace) -> None:
    if os.geteuid() != 0:
        raise LabError("the laboratory makes namespaces and bridges; run it as root")
    with REGISTRY.open("a+", encoding="utf-8") as registry, LOG.open("w", encoding="utf-8") as log:
        fcntl.flock(registry, fcntl.LOCK_EX)  # of two that come at once, the second shall see the first one's
        with contextlib.suppress(LabError):
            running()
            raise SystemExit("lab: one is up already; vagrant/lab down first")
        try:
            lab = Lab(options.engine, options.fencing, layers=Layers.build(), log=log)
        except subprocess.CalledProcessError as error:
            raise LabError(f"the agents cannot be installed for the nodes ({error}); see above") from error
        except LabError:
            sys.stderr.write(LOG.read_text(encoding="utf-8", errors="replace"))
            raise
        entry = {"unshare_pid": lab.unshare_pid, "start_time": start_time(lab.unshare_pid)}
        REGISTRY.write_text(json.dumps(entry), encoding="utf-8")
        lab.leave()  # only now: whoever kills this command earlier must not be left with what no verb can reach
    print(f"laboratory up: {', '.join(lab.description.nodes)} (engine {options.engine}, fencing {options.fencing})")


def running() -> Lab:
    """The laboratory that is up. Raises LabError when none is."""
    try:
        entry = json.loads(REGISTRY.read_text(encoding="utf-8"))
        if start_time(entry["unshare_pid"]) != entry["start_time"]:
            raise ProcessLookupError
    except (OSError, ValueError, LookupError, TypeError):
        raise LabError("no laboratory is up; vagrant/lab up") from None
    return Lab.running(entry["unshare_pid"])


def start_time(pid: int) -> str:
    """Field 22 of proc(5) stat: tells a process from a later one with the same number.

    Raises OSError when there is none, or only one that ended and was not fetched by its parent yet.
    """
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    if fields[0] == "Z":
        raise ProcessLookupError(f"process {pid} has ended")
    return fields[19]


def down(options: argparse.Namespace) -> None:
    """Returns when nothing of it is left; a supervisor that does not answer is killed."""
    lab = running()
    try:
        watch = os.pidfd_open(lab.unshare_pid)
    except ProcessLookupError:
        return
    patience_s = DOWN_DEADLINE_S
    try:
        lab.ask("down", timeout_s=DOWN_DEADLINE_S)
    except LabError:
        patience_s = 0.0
    if not select.select([watch], [], [], patience_s)[0]:
        signal.pidfd_send_signal(watch, signal.SIGKILL)  # unshare takes the supervisor with it, and that one the rest
        select.select([watch], [], [], DOWN_DEADLINE_S)
    REGISTRY.write_text("", encoding="utf-8")  # not unlinked: `up` locks this very file


def run(options: argparse.Namespace) -> None:
    """The terminal's kind is all that a node inherits from the caller."""
    words = running().enter(options.node) + (options.command or ["bash", "-i"])
    os.execvpe(words[0], words, {**CLEAN_ENVIRONMENT, "TERM": os.environ.get("TERM", "dumb")})


def status(options: argparse.Namespace) -> None:
    lab = running()
    facts = lab.status()
    if options.output == "json":
        print(json.dumps(facts, indent=2))
        return
    print(f"laboratory {facts['name']}, engine {facts['engine']}")
    for name, node in facts["nodes"].items():
        addresses = ", ".join(f"{on} {at.ip}" for on, at in lab.description.nodes[name].addresses.items())
        print(f"  {name:8} {node['power']:6} {addresses}")
    for node, network in facts["pulled"]:
        print(f"  pulled   {network}: {node}")
    for network, source, target in facts["cuts"]:
        print(f"  cut      {network}: {source or 'all'} -> {target or 'all'}")
    for network, percent in facts["loss_percent"].items():
        print(f"  loss     {network}: {percent} %")
    for network, delay_ms in facts["delay_ms"].items():
        print(f"  delay    {network}: {delay_ms} ms one way")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="vagrant/lab", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = top.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, meaning: str, carry_out: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        entry = verbs.add_parser(name, help=meaning, description=meaning)
        entry.set_defaults(carry_out=carry_out)
        return entry

    def fault(name: str, meaning: str, *arguments: str, **constants: Any) -> argparse.ArgumentParser:
        """A verb that goes to the supervisor as it is: `arguments` by name, and `constants`."""

        def carry_out(options: argparse.Namespace) -> None:
            given = {key: getattr(options, key) for key in arguments}
            answer = running().ask(constants.get("verb", name), **given, **constants.get("arguments", {}))
            if isinstance(answer, dict):
                print(json.dumps(answer, indent=2))
            elif answer is not None:
                print(answer)

        return verb(name, meaning, carry_out)

    entry = verb("up", "bring the laboratory up", up)
    entry.add_argument("--engine", default="none", choices=["none", "debian"])
    entry.add_argument("--fencing", default="power-switch", choices=["power-switch", "none"])
    verb("down", "end the laboratory and all that lives in it", down)
    entry = verb("status", "what is up and what is broken", status)
    entry.add_argument("-o", "--output", default="text", choices=["text", "json"])
    for name, meaning in (("shell", "a shell in a node"), ("run", "run one command in a node")):
        entry = verb(name, meaning, run)
        entry.add_argument("node")
        entry.add_argument("command", nargs=argparse.REMAINDER if name == "run" else "*", metavar="COMMAND")
    for name, meaning in (
        ("power-cut", "pull a node's mains plug"), ("power-on", "plug it in again"), ("power-status", "on or off"),
        ("pause", "stop a node as a hypervisor does"), ("resume", "let it go on"),
    ):  # fmt: skip
        fault(name, meaning, "node").add_argument("node")
    for name, meaning in (("nic-down", "pull one network cable of a node"), ("nic-up", "plug it in again")):
        entry = fault(name, meaning, "node", "nic")
        entry.add_argument("node")
        entry.add_argument("nic", help="interface or network")
    entry = fault("cut", "lose every frame on a network", "network", "source", "target")
    entry.add_argument("network")
    entry.add_argument("--from", dest="source", metavar="NODE", help="only what this node sends")
    entry.add_argument("--to", dest="target", metavar="NODE", help="only what this node would receive")
    entry = fault("heal", "end cuts, loss and delay", "network")
    entry.add_argument("network", nargs="?", help="default: all networks")
    entry = fault("loss", "lose frames by chance", "network", "percent")
    entry.add_argument("network")
    entry.add_argument("percent", type=int)
    entry = fault("delay", "deliver frames later; 0 ends it", "network", "delay_ms")
    entry.add_argument("network")
    entry.add_argument("delay_ms", type=int, metavar="MS")
    for do, meaning in (
        ("error", "answer with EIO"), ("slow", "answer late"), ("hang", "answer nothing"),
        ("full", "refuse to allocate (ENOSPC)"), ("ok", "end the disk's faults"), ("state", "the disk's counters"),
    ):  # fmt: skip
        names = ("node", "ms") if do == "slow" else ("node",)
        entry = fault(f"disk-{do}", f"disk: {meaning}", *names, verb="disk", arguments={"do": do})
        entry.add_argument("node")
        if do == "slow":
            entry.add_argument("ms", type=int)
    entry = fault("disk-keep", "what power cuts leave of unflushed sectors", "keep")
    entry.add_argument("keep", choices=["none", "all", "random"])
    entry = fault("serial", "break the serial line: cut, heal, or noise PERCENT", "fault")
    entry.add_argument("fault", help='"cut", "heal" or "noise 5"')
    return top


if __name__ == "__main__":
    main()
